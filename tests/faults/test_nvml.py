"""Each call of NVML answers each kind of error, at the start and in mid-run: nothing raises, nothing is made up.

The chips work at a steady pace, so that every value that is metered is known beforehand, whatever failed meanwhile.
"""

import re
from typing import Final

import pytest

from keyturn_agent.ports import Sample
from keyturn_agent.sources.nvml_causes import Reach, cause_of
from keyturn_agent.sources.nvml_source import NvmlSource
from keyturn_protocol.entry_usage import FIELDS, UsageBody
from tests.agent.conftest import Sources, library, make, stub
from tests.agent.nvml_stub.stories import SECOND_US, body_of, metered, read, to_start
from tests.agent.nvml_stub.stub import HERE, START_US, Script, Stub
from tests.faults.table import LONG, record

__all__ = ("library", "make", "stub")
"""Fixtures."""

CALLS: Final = sorted(set(re.findall(r"\bAPI int (nvml\w+)\(", (HERE / "nvml.c").read_text())))
CODES: Final = (1, 2, 3, 4, 7, 9, 13, 15, 17, 18, 19, 26, 999, 4711)
"""One of each reach, and those that drivers are known to give in odd places."""
SECONDS: Final = 40
PART: Final = "agent, NVML"
TRUTH: Final = {"energy_mj": 300_000, "elapsed_mcycles": 1500, "tensor_mcycles": 600, "dram_busy_us": 250_000}
"""Of a second."""


def codes(call: str) -> tuple[int, ...]:
    """All of them, or in the short form one for each call."""
    return CODES if LONG else (CODES[CALLS.index(call) % len(CODES)],)


def script() -> Script:
    made = Script().gpu(0, links=18).steady("0", SECONDS + 12).cycles("0", SECONDS + 12)
    made.add("process", "0", 4711, 512, 40)
    made.gpu(1, mig=1).steady("1", SECONDS + 12)
    made.unit(
        "1.0", uuid="MIG-0", name="NVIDIA H100 PCIe MIG 3g.40gb", gpu_instance=1, sms=60, memory_mib_total=40320,
        gpu_slices=3, compute_slices=3, gpm=1,
    ).steady("1.0", SECONDS + 12)  # fmt: skip
    return made


def check(bodies: list[UsageBody]) -> None:
    """What was measured is the truth over exactly the time that it is said to be of."""
    for body in bodies:
        for chip, samples in enumerate(body.samples):
            seconds = (body.to_us - body.from_us) / 1e6
            for name, each in TRUTH.items():
                value = getattr(body, name)[chip]
                assert value is None or abs(value - each * seconds) <= max(samples, 1), (name, chip, body)


def go(stub: Stub, source: NvmlSource, seconds: int) -> None:
    """So many seconds, as the daemon goes through them."""
    to_start(stub, source)
    samples: list[Sample] = []
    for second in range(seconds):
        sample = read(stub, source, START_US + second * SECOND_US)
        assert (sample.error is None) <= (None not in sample.chips), "what is missing has a cause"
        if source.inventory_changed:
            check(metered(samples)[0] if samples else [])
            body_of(source.inventory())
            samples = []
            continue
        samples.append(sample)
    check(metered(samples)[0] if samples else [])


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
