"""Each call of NVML answers each kind of error, at the start and in mid-run: nothing raises, nothing is made up.

Each chip works at another pace in each second, so that every value that is metered is known beforehand, whatever
failed meanwhile, and none can be taken for that of another second or chip.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

import pytest

from keyturn_agent.ports import Sample
from keyturn_agent.sources.nvml_causes import Reach, cause_of
from keyturn_agent.sources.nvml_source import NvmlSource
from keyturn_protocol.entry_inventory import InventoryBody
from keyturn_protocol.entry_usage import FIELDS
from tests.agent.conftest import Sources, library, make, stub
from tests.agent.nvml_stub.stories import SECOND_US, body_of, metered, read, to_start
from tests.agent.nvml_stub.stub import HERE, START_US, Script, Stub
from tests.faults.table import LONG, record

__all__ = ("library", "make", "stub")
"""Fixtures."""

CALLS: Final = sorted(set(re.findall(r"\bAPI int (nvml\w+)\(", (HERE / "nvml.c").read_text())))
CODES: Final = (1, 2, 3, 4, 7, 9, 13, 15, 17, 18, 19, 26, 999, 4711)
"""One of each reach, and those that drivers are known to give in odd places."""
PASSING: Final = 999
VALUES: Final = {
    "nvmlDeviceGetClockInfo", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetTotalEnergyConsumption", "nvmlGpmMetricsGet", "nvmlGpmMigSampleGet", "nvmlGpmSampleGet",
}  # fmt: skip
SECONDS: Final = 40
PART: Final = "agent, NVML"
UNITS: Final = ("0", "1", "1.0")
"""By their place in the inventory; the last is a MIG instance of the second, at whose clock it runs."""


def codes(call: str) -> tuple[int, ...]:
    """All of them, or in the short form another one for each call, and one that passes for each that gives a value."""
    one = CODES[CALLS.index(call) % len(CODES)]
    return CODES if LONG else (one, PASSING) if call in VALUES and one != PASSING else (one,)


class Second(NamedTuple):
    """What one chip does in one second."""

    clock_mhz: int
    power_mw: int
    busy: int
    active: int
    hmma: int
    dmma: int
    fp32: int
    dram: int
    """Percent of the time, as those before it."""
    pcie_mib: int

    def truth(self) -> dict[str, int]:
        """The fields of usage that come of it."""
        cycles = {
            "active": self.active, "tensor": self.hmma + self.dmma, "hmma": self.hmma, "dmma": self.dmma,
            "fp32": self.fp32,
        }  # fmt: skip
        return {
            "energy_mj": self.power_mw,
            "busy_us": self.busy * 10_000,
            "elapsed_mcycles": self.clock_mhz,
            **{f"{pipe}_mcycles": self.clock_mhz * percent // 100 for pipe, percent in cycles.items()},
            "dram_busy_us": self.dram * 10_000,
            "pcie_tx_kib": self.pcie_mib * 1024,
        }


def pace(place: int, second: int) -> Second:
    """What the chip in this place does in the second that ends at ``second``."""
    beat: Callable[[int, int], int] = lambda step, among: (step * second + 13 * place) % among  # noqa: E731
    hmma, dmma = 10 + beat(17, 50), beat(5, 9)
    return Second(
        clock_mhz=100 * (10 + (7 * second + 3 * min(place, 1)) % 8),
        power_mw=100_000 + 1_000 * beat(53, 200),
        busy=55 + beat(7, 45),
        active=hmma + dmma + 10 + beat(3, 20),
        hmma=hmma,
        dmma=dmma,
        fp32=beat(11, 30),
        dram=5 + beat(19, 60),
        pcie_mib=50 + beat(31, 100),
    )


def work(made: Script, place: int) -> None:
    """Let the chip in this place work: values of a moment are those of the second before it."""
    unit, energy_mj = UNITS[place], 5_000_000
    made.at(0, unit, memory_mib=1024, reasons=0)
    for second in range(SECONDS + 13):
        now = pace(place, second)
        energy_mj += now.power_mw if second else 0
        made.at(second * SECOND_US, unit, clock_mhz=now.clock_mhz, power_mw=now.power_mw, busy_percent=now.busy)
        made.at(second * SECOND_US, unit, energy_mj=energy_mj)
        ratios = {2: now.active, 5: now.hmma + now.dmma, 7: now.hmma, 8: now.dmma, 10: now.dram, 12: now.fp32}
        rates = {20: now.pcie_mib, 21: 200, 60: 300, 61: 400}
        made.at(second * SECOND_US, unit, g6=0, g9=0, g11=0, g13=0, **{f"g{m}": v for m, v in (ratios | rates).items()})


def counters(made: Script) -> None:
    """The first chip has counters of cycles as well, ten points a second."""
    sums = dict.fromkeys((248, 249, 250, 251, 252, 253, 254, 258, 259, 260), 10**12)
    for tenth in range(10 * (SECONDS + 12) + 1):
        now = pace(0, (tenth + 9) // 10)
        percent = {248: 100, 249: now.active, 250: now.hmma + now.dmma, 251: now.dmma, 252: now.hmma, 259: now.fp32}
        for metric in sums:
            if tenth:
                sums[metric] += now.clock_mhz * percent.get(metric, 0) * 1_000
            made.add("at", tenth * 100_000, "0", f"g{metric}", sums[metric])


def script() -> Script:
    made = Script().gpu(0, links=18)
    made.add("process", "0", 4711, 512, 40)
    made.gpu(1, mig=1)
    made.unit(
        "1.0", uuid="MIG-0", name="NVIDIA H100 PCIe MIG 3g.40gb", gpu_instance=1, sms=60, memory_mib_total=40320,
        gpu_slices=3, compute_slices=3, gpm=1,
    )  # fmt: skip
    for place in range(len(UNITS)):
        work(made, place)
    counters(made)
    return made


def check(samples: list[Sample], places: list[int]) -> None:
    """What was measured is the truth over exactly the time that it is said to be of, second by second."""
    for body in metered(samples, SECOND_US)[0] if samples else []:
        seconds = range(body.from_us // SECOND_US + 1, body.to_us // SECOND_US + 1)
        for chip, count in enumerate(body.samples):
            truths = [pace(places[chip], second).truth() for second in seconds]
            for name in truths[0]:
                value, truth = getattr(body, name)[chip], sum(each[name] for each in truths)
                assert value is None or abs(value - truth) <= max(count, 1), (name, chip, truth, body)


def go(stub: Stub, source: NvmlSource, seconds: int) -> None:
    """So many seconds, as the daemon goes through them."""
    places = places_of(to_start(stub, source))
    samples: list[Sample] = []
    for second in range(seconds):
        sample = read(stub, source, START_US + second * SECOND_US)
        assert (sample.error is None) <= (None not in sample.chips), "what is missing has a cause"
        if source.inventory_changed:
            check(samples, places)
            inventory = source.inventory()
            body_of(inventory)
            samples, places = [], places_of(inventory)
            continue
        samples.append(sample)
    check(samples, places)


def places_of(inventory: InventoryBody) -> list[int]:
    """Which of :data:`UNITS` each listed chip is."""
    return [2 if chip.uuid == "MIG-0" else int(chip.uuid.split("-")[1]) for chip in inventory.chips]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_at_the_start_and_for_good(stub: Stub, make: Sources, call: str) -> None:
    for code in codes(call):
        source = make(stub, script().fail(call, code))
        go(stub, source, 14)
        for chip in source.inventory().chips:
            assert chip.measured_by.keys() | chip.not_measured.keys() == set(FIELDS)
            assert all(chip.not_measured.values()), "each with a reason"
        seen = "all values true, each null has a reason"
        what = f"a call fails from the start on: {cause_of(code).slug}"
        record("faults", PART, what, expected="a value or null with a reason, nothing made up", seen=seen)
        end(stub, source)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_for_a_while(stub: Stub, make: Sources, call: str) -> None:
    """Afterwards everything is measured as before, but for what the driver refused for good."""
    for code in codes(call):
        from_us, to_us = START_US + 3 * SECOND_US, START_US + 6 * SECOND_US
        source = make(stub, script().fail(call, code, from_us=from_us, to_us=to_us))
        go(stub, source, SECONDS - 2)
        chips = {chip.uuid: chip for chip in source.inventory().chips}
        assert len(chips) == 3, (call, code)
        last = read(stub, source, START_US + (SECONDS - 1) * SECOND_US)
        assert None not in last.chips, (call, code, last.error)
        gpu = next(chip for uuid, chip in chips.items() if uuid.startswith("GPU-00000000"))
        if cause_of(code).reach is not Reach.VALUE:
            assert gpu.not_measured == {}, (call, code)
            assert gpu.measured_by["tensor_mcycles"] == "cycle_counter", (call, code)
        else:
            slug = cause_of(code).slug
            assert all(reason.startswith(slug) for reason in gpu.not_measured.values()), (call, code)
        seen = "all values true, all chips read again"
        what = f"a call fails for 3 s: {cause_of(code).slug}"
        record("faults", PART, what, expected="nothing made up, and measured again afterwards", seen=seen)
        end(stub, source)


def end(stub: Stub, source: NvmlSource) -> None:
    source.stop()
    source.worker.join()
    assert stub.control.get("sessions") == 0
    stub.control.set("now_us", 0)


def test_there_are_calls() -> None:
    assert len(CALLS) > 30
