"""NVML readings over the real binding, against a stub of the driver's library: each trap is a test."""

import math
from itertools import pairwise

import pynvml
import pytest

from keyturn_agent.errors import UsageError
from keyturn_agent.sources import nvml_causes
from keyturn_agent.sources.nvml import GpuProcess
from keyturn_agent.sources.nvml_causes import CAUSES, cause_of
from keyturn_agent.sources.nvml_gpm import Now, divisor, plausible
from keyturn_agent.sources.nvml_source import NvmlSource
from tests.agent.conftest import Sources
from tests.agent.nvml_stub.stories import (
    SECOND_US,
    body_of,
    metered,
    only,
    read,
    read_seconds,
    steady_gpu,
    to_start,
    usage,
)
from tests.agent.nvml_stub.stub import START_US, Script, Stub


def test_our_table_of_codes_is_the_binding_s() -> None:
    theirs = {
        getattr(pynvml, name): name
        for name in dir(pynvml)
        if name.startswith("NVML_ERROR_") and isinstance(getattr(pynvml, name), int)
    }
    assert CAUSES.keys() == theirs.keys()
    assert len({cause.slug for cause in CAUSES.values()}) == len(CAUSES)
    for ours in ("NOT_SUPPORTED", "NO_PERMISSION", "NOT_FOUND", "FUNCTION_NOT_FOUND", "LIB_RM_VERSION_MISMATCH"):
        assert getattr(nvml_causes, ours) == getattr(pynvml, f"NVML_ERROR_{ours}")


def test_a_code_of_a_newer_driver_has_a_cause() -> None:
    assert cause_of(4711).slug == "nvml_error_4711"


def test_busy_is_not_work(stub: Stub, make: Sources) -> None:
    """utilization.gpu reads 100 % while the tensor pipe is at 28 %: both are told, neither for the other."""
    script = steady_gpu().at(START_US + SECOND_US, "0", g5=28)
    source = make(stub, script)
    to_start(stub, source)
    reading = only(read_seconds(stub, source, 1)[1])
    assert reading.busy_ppm == 1_000_000
    assert reading.tensor_ppm is not None
    assert reading.tensor_ppm < 500_000


def test_gpm_ratios_where_the_driver_has_no_counters(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu())
    to_start(stub, source)
    reading = only(read_seconds(stub, source, 2)[2])
    assert (reading.elapsed_kcycles, reading.tensor_kcycles) == (None, None)
    assert (reading.sm_active_ppm, reading.tensor_ppm, reading.hmma_ppm) == (800_000, 400_000, 400_000)
    assert (reading.fp64_ppm, reading.fp32_ppm, reading.fp16_ppm, reading.dram_ppm) == (10_000, 50_000, 20_000, 250_000)
    assert (reading.sm_clock_mhz, reading.memory_mib, reading.power_mw) == (1500, 1024, 300_000)


def test_rates_of_the_links_add_up(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu())
    to_start(stub, source)
    first, second = (only(sample) for sample in read_seconds(stub, source, 4)[3:])
    rates = {"pcie_tx_kib": 100, "pcie_rx_kib": 200, "nvlink_rx_kib": 300, "nvlink_tx_kib": 400}
    for name, mib_per_s in rates.items():
        assert getattr(second, name) - getattr(first, name) == mib_per_s * 1024


def test_gpm_counters_are_preferred(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().cycles())
    (chip,) = to_start(stub, source).chips
    assert chip.measured_by["elapsed_mcycles"] == chip.measured_by["tensor_mcycles"] == "cycle_counter"
    first, second = (only(sample) for sample in read_seconds(stub, source, 2)[1:])
    assert first.elapsed_kcycles is not None
    assert second.elapsed_kcycles == first.elapsed_kcycles + 1_500_000
    assert (first.tensor_kcycles or 0) + 600_000 == second.tensor_kcycles


def test_counters_that_are_sums_of_all_sms_are_divided_by_them(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().cycles(sms=114))
    to_start(stub, source)
    first, second = (only(sample) for sample in read_seconds(stub, source, 2)[1:])
    assert first.elapsed_kcycles is not None
    assert second.elapsed_kcycles == first.elapsed_kcycles + 1_500_000


def test_counters_that_do_not_fit_the_clock_are_not_believed(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().cycles(sms=17))
    (chip,) = to_start(stub, source).chips
    assert chip.measured_by["tensor_mcycles"] == "ratio_x_sm_clock"
    assert only(read_seconds(stub, source, 1)[1]).elapsed_kcycles is None


@pytest.mark.parametrize(
    ("cycles", "expected"),
    [
        (150e6, 1),  # the clock itself
        (40e6, 1),  # a clock that was lower before
        (150e6 * 114, 114),
        (150e6 * 17, None),
        (1e3, None),  # not cumulative: two differences are nearly the same
        (-1.0, None),
        (math.nan, None),
    ],
)
def test_divisor_of_counters(cycles: float, expected: int | None) -> None:
    assert divisor(cycles, 100_000, 1500, 1755, 114) == expected


def test_divisor_without_a_clock_is_none() -> None:
    assert divisor(150e6, 100_000, None, 1755, 114) is None


def test_two_gpm_samples_are_at_least_100_ms_apart(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu())
    to_start(stub, source)
    read_seconds(stub, source, 1)
    early = only(read(stub, source, START_US + 1_050_000))
    assert (early.tensor_ppm, early.power_mw) == (None, 300_000)
    # The early one didn't take the place of the one before it.
    assert only(read(stub, source, START_US + 1_100_000)).tensor_ppm == 400_000


def test_a_period_below_100_ms_is_refused(stub: Stub) -> None:
    with pytest.raises(UsageError, match="at least 100000"):
        NvmlSource(stub.clock, period_us=50_000)


def test_due_moments_keep_the_grid_and_the_distance(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu(), period_us=SECOND_US)
    assert source.due_us(START_US) == START_US
    read(stub, source, START_US + 10_000)
    assert source.due_us(START_US) == START_US + SECOND_US
    read(stub, source, START_US + 3_950_000)
    # 2 and 3 were missed; 4 would be too close.
    assert source.due_us(START_US) == START_US + 4_050_000


def test_nan_is_null_and_nothing_spans_it(stub: Stub, make: Sources) -> None:
    script = Script().gpu().at(0, "0", clock_mhz=1500, g2=80)
    for second in range(20):
        value: object = "nan" if second == 12 else 40
        script.at(second * SECOND_US, "0", g5=value)
    source = make(stub, script)
    to_start(stub, source)
    samples = [only(sample) for sample in read_seconds(stub, source, 4)]
    assert [s.tensor_ppm for s in samples[1:]] == [400_000, None, 400_000, 400_000]


def test_no_permission_in_mid_run_is_null_from_then_on(stub: Stub, make: Sources) -> None:
    """NVIDIA/DCGM issue 214: ``nvmlGpmSampleGet`` begins to answer NO_PERMISSION under load."""
    script = steady_gpu().fail("nvmlGpmSampleGet", 4, after=6, to_us=START_US + 4 * SECOND_US)
    source = make(stub, script)
    to_start(stub, source)
    samples = [only(sample) for sample in read_seconds(stub, source, 8)]
    pipes = [s.tensor_ppm for s in samples]
    assert pipes[1] == 400_000
    lost = pipes.index(None, 1)
    assert set(pipes[lost:]) == {None}
    assert all(s.energy_mj is not None and s.sm_clock_mhz == 1500 for s in samples)
    assert source.inventory_changed
    (chip,) = source.inventory().chips
    assert chip.not_measured["tensor_mcycles"] == "no_permission: nvmlGpmSampleGet"
    assert not source.inventory_changed


def test_a_gpm_failure_that_passes_is_null_and_nothing_spans_it(stub: Stub, make: Sources) -> None:
    """The mean over two seconds must not stand for the second of them."""
    from_us, to_us = START_US + 2 * SECOND_US, START_US + 3 * SECOND_US
    source = make(stub, steady_gpu().fail("nvmlGpmSampleGet", 999, from_us=from_us, to_us=to_us))
    to_start(stub, source)
    pipes = [only(sample).tensor_ppm for sample in read_seconds(stub, source, 4)]
    assert pipes[1:] == [400_000, None, None, 400_000]


def test_of_two_counters_of_the_fp64_tensor_pipe_the_one_that_grew_more_counts(stub: Stub, make: Sources) -> None:
    script = steady_gpu().cycles()
    for second in range(60):
        dmma, dfma = (0, 700_000_000 * second) if second < 12 else (10**12, 700_000_000 * 12)
        script.at(second * SECOND_US, "0", g251=dmma, g254=dfma)
    source = make(stub, script)
    to_start(stub, source)
    counted = [only(sample).dmma_kcycles for sample in read_seconds(stub, source, 4)]
    assert [b - a for a, b in pairwise(c for c in counted if c is not None)] == [700_000, 10**9, 0, 0]


@pytest.mark.parametrize(
    ("code", "counted", "ratios"),
    [
        (999, [100_000_000, None, None, None, 100_000_000], [100_000, None, 100_000]),
        (4, [100_000_000, None, None, None, None], [100_000, None, None]),
        # Only one that the driver doesn't have is nothing to wait for.
        (3, [100_000_000, 0, 0, 0, 0], [100_000, 0, 0]),
    ],
    ids=["for a moment", "no permission", "not there"],
)
def test_of_two_metrics_of_a_pipe_the_one_that_is_not_told_is_not_zero(
    stub: Stub, make: Sources, code: int, counted: list[int | None], ratios: list[int | None]
) -> None:
    """The other one may be a counter that stands still."""
    from_us, to_us = START_US + 2 * SECOND_US, START_US + 3 * SECOND_US
    script = steady_gpu().cycles()
    script.lines = [line for line in script.lines if " g8 " not in line]
    for second in range(60):
        script.at(second * SECOND_US, "0", g251=10**11 * second, g8=10)
    for metric in (251, 8):
        script.fail(f"metric:{metric}", code, from_us=from_us, to_us=to_us)
    source = make(stub, script)
    to_start(stub, source)
    readings = [only(sample) for sample in read_seconds(stub, source, 5)]
    sums = [reading.dmma_kcycles for reading in readings]
    assert [None if a is None or b is None else b - a for a, b in pairwise(sums)] == counted
    assert [reading.dmma_ppm for reading in readings[1:4]] == ratios


def test_no_permission_for_one_metric_is_null_for_that_one(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().fail("metric:13", 4, from_us=START_US + SECOND_US))
    to_start(stub, source)
    reading = only(read_seconds(stub, source, 3)[3])
    assert (reading.fp16_ppm, reading.fp32_ppm) == (None, 50_000)
    assert source.inventory_changed
    (chip,) = source.inventory().chips
    assert chip.not_measured == {"fp16_mcycles": "no_permission: nvmlGpmMetricsGet"}


def test_throttling_is_power_and_heat_and_not_idleness(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu())
    script = steady_gpu()
    for second, reasons in enumerate((0x1, 0x2, 0x4, 0x8, 0x20, 0x40, 0x80, 0x100, 0x5)):
        script.at(START_US + second * SECOND_US, "0", reasons=reasons)
    source = make(stub, script)
    to_start(stub, source)
    found = [only(sample).throttled_ppm for sample in read_seconds(stub, source, 8)]
    assert found == [0, 0, *[1_000_000] * 5, 0, 1_000_000]


def test_all_bits_set_is_no_value(stub: Stub, make: Sources) -> None:
    script = steady_gpu().at(START_US, "0", power_mw=2**32 - 1, energy_mj=2**64 - 1)
    source = make(stub, script)
    to_start(stub, source)
    reading = only(read(stub, source, START_US + 500_000))
    assert (reading.power_mw, reading.energy_mj) == (None, None)


def test_a100_has_no_gpm(stub: Stub, make: Sources) -> None:
    script = Script().gpu(name="NVIDIA A100-SXM4-80GB", gpm=0, cores=6912, cc_major=8, clock_max_mhz=1410)
    source = make(stub, script.steady())
    (chip,) = to_start(stub, source).chips
    assert chip.sms == 108
    assert chip.not_measured["tensor_mcycles"] == "not_supported: nvmlGpmSampleGet"
    assert chip.measured_by.keys() == {
        "energy_mj", "busy_us", "elapsed_mcycles", "throttled_us", "memory_mib_max", "clock_mhz_max",
    }  # fmt: skip
    reading = only(read_seconds(stub, source, 1)[1])
    assert (reading.busy_ppm, reading.tensor_ppm, reading.energy_mj) == (1_000_000, None, 8_300_000)
    body_of(source.inventory())


def test_a_chip_without_energy_counter_has_power_times_time(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu(name="Tesla T4", gpm=0).fail("nvmlDeviceGetTotalEnergyConsumption", 3))
    (chip,) = to_start(stub, source).chips
    assert chip.measured_by["energy_mj"] == "power_x_time"
    bodies = usage(source, stub, seconds=10)
    assert [body.energy_mj for body in bodies] == [[3_000_000]]


def test_a_chip_without_energy_and_power_says_so(stub: Stub, make: Sources) -> None:
    script = steady_gpu().fail("nvmlDeviceGetTotalEnergyConsumption", 3).fail("nvmlDeviceGetPowerUsage", 3)
    (chip,) = make(stub, script).inventory().chips
    assert chip.not_measured == {"energy_mj": "not_supported: nvmlDeviceGetPowerUsage"}


def test_an_old_driver_lacks_functions(old_stub: Stub, make: Sources) -> None:
    script = steady_gpu().add("process", "0", 4711, 2048, 37)
    source = make(old_stub, script)
    inventory = to_start(old_stub, source)
    (chip,) = inventory.chips
    assert (inventory.cuda_version, chip.sms, chip.fabric) == ("13.0", None, None)
    assert chip.not_measured["tensor_mcycles"] == "function_not_found: nvmlGpmSampleGet"
    # The older names of the same things.
    assert only(read_seconds(old_stub, source, 1)[1]).throttled_ppm == 0
    assert source.processes() == ((GpuProcess(4711, 2048, 370_000),),)


def test_an_unknown_error_is_null_once(stub: Stub, make: Sources) -> None:
    script = steady_gpu().fail(
        "nvmlDeviceGetPowerUsage", 999, from_us=START_US + SECOND_US, to_us=START_US + 2 * SECOND_US
    )
    source = make(stub, script)
    to_start(stub, source)
    assert [only(s).power_mw for s in read_seconds(stub, source, 2)] == [300_000, None, 300_000]
    assert not source.inventory_changed


# -- counters that aren't what they were


def counting(stub: Stub, make: Sources, script: Script, seconds: int) -> tuple[NvmlSource, list[int | None]]:
    """A source over so many seconds, and the tensor cycles (10^6) of each interval that has a value."""
    source = make(stub, script)
    to_start(stub, source)
    bodies = metered(read_seconds(stub, source, seconds))[0]
    return source, [body.tensor_mcycles[0] for body in bodies]


@pytest.mark.parametrize("counter", ["g248", "g249"])
def test_counters_that_stand_still_under_load_are_not_zero_work(stub: Stub, make: Sources, counter: str) -> None:
    script = steady_gpu().cycles(seconds=13)
    # From 13 s on that counter stays where it is, and the others go on.
    for tenth in range(131, 400):
        elapsed = 10**12 + 150_000_000 * tenth
        rest = {"g248": elapsed, "g249": elapsed * 8 // 10, "g250": elapsed * 4 // 10, "g252": elapsed * 4 // 10}
        script.at(tenth * 100_000, "0", **{name: value for name, value in rest.items() if name != counter})
    source, tensor = counting(stub, make, script, 20)
    assert sum(value or 0 for value in tensor) == 20 * 600, "by ratios, from that sample on"
    assert source.inventory_changed
    (chip,) = source.inventory().chips
    assert chip.measured_by["tensor_mcycles"] == "ratio_x_sm_clock"


@pytest.mark.parametrize("jump", [10**15, -(10**11)])
def test_counters_that_jump_once_don_t_count_for_that_sample(stub: Stub, make: Sources, jump: int) -> None:
    script = steady_gpu().cycles(seconds=12)
    for tenth in range(121, 400):
        elapsed = 10**12 + jump + 150_000_000 * tenth
        script.at(tenth * 100_000, "0", g248=elapsed, g249=elapsed * 8 // 10, g250=elapsed * 4 // 10, g252=0)
    source, tensor = counting(stub, make, script, 20)
    assert sum(value or 0 for value in tensor) == 20 * 600
    assert not source.inventory_changed, "counters are believed again after it"


def test_counters_that_stand_still_while_idle_are_decided_under_load(stub: Stub, make: Sources) -> None:
    """It isn't documented whether they count while nothing runs; an agent that starts then must not miss them."""
    script = Script().gpu().steady()
    for metric in (248, 249, 250, 251, 252, 253, 254, 258, 259, 260):
        script.at(0, "0", **{f"g{metric}": 10**12})
    for tenth in range(400):
        t_us = tenth * 100_000
        idle = t_us < START_US + 5 * SECOND_US
        script.at(t_us, "0", busy_percent=0 if idle else 100)
        if not idle:
            elapsed = 10**12 + 150_000_000 * (tenth - 150)
            script.at(t_us, "0", g248=elapsed, g249=elapsed * 8 // 10, g250=elapsed * 4 // 10)
    source = make(stub, script)
    (chip,) = to_start(stub, source).chips
    assert chip.measured_by["tensor_mcycles"] == "ratio_x_sm_clock"
    read_seconds(stub, source, 10)
    assert source.inventory_changed
    (chip,) = source.inventory().chips
    assert chip.measured_by["tensor_mcycles"] == chip.measured_by["elapsed_mcycles"] == "cycle_counter"


@pytest.mark.parametrize(
    ("elapsed", "active", "then", "now", "good"),
    [
        (1.5e9, 1.2e9, 100, 100, True),
        (1.5e9, None, 100, 100, True),
        (0.0, 0.0, 100, 100, False),
        (-1.0, None, 0, 0, False),
        (1.5e9, 0.0, 100, 100, False),
        # It just began to work, or has just stopped.
        (1.5e9, 0.0, 0, 100, True),
        (1.5e9, 0.0, 100, 0, True),
        (1.5e9, -1.0, 0, 0, False),
        (1.5e9, 1.7e9, 100, 100, False),
        (8e9, None, 100, 100, False),
        (0.2e9, 0.1e9, 100, 100, True),
    ],
)
def test_what_is_plausible(elapsed: float, active: float | None, then: int, now: int, good: bool) -> None:
    def at(busy: int) -> Now:
        return Now(clock_mhz=1500, clock_max_mhz=1755, sms=114, busy_percent=busy)

    assert plausible(elapsed, active, SECOND_US, at(then), at(now)) is good


def test_without_a_clock_only_the_direction_tells(stub: Stub) -> None:
    blind = Now(clock_mhz=None, clock_max_mhz=1755, sms=114, busy_percent=100)
    assert plausible(0, None, SECOND_US, None, blind)
    assert not plausible(-1, None, SECOND_US, None, blind)


def test_a_permission_that_comes_back_is_used(stub: Stub, make: Sources) -> None:
    """Another profiler may have held the counters: it isn't asked every second, and not never."""
    script = Script().gpu().steady(seconds=720)
    from_us, to_us = START_US + 5 * SECOND_US, START_US + 60 * SECOND_US
    script.fail("nvmlGpmSampleGet", 4, from_us=from_us, to_us=to_us).fail("metric:13", 4, from_us=from_us, to_us=to_us)
    source = make(stub, script)
    to_start(stub, source)
    lost = [only(s).tensor_ppm is None for s in read_seconds(stub, source, 700)]
    back = lost.index(False, 6)
    assert 580 < back < 605
    assert (lost[5:back], any(lost[back + 1 :])) == ([True] * (back - 5), False)
    (chip,) = source.inventory().chips
    assert chip.not_measured == {}


def test_a_permission_that_is_refused_at_the_start_may_be_given_later(stub: Stub, make: Sources) -> None:
    script = Script().gpu().steady(seconds=720).cycles(seconds=720)
    script.fail("nvmlGpmQueryDeviceSupport", 4, to_us=START_US + 60 * SECOND_US)
    source = make(stub, script)
    (chip,) = to_start(stub, source).chips
    assert chip.not_measured["tensor_mcycles"] == "no_permission: nvmlGpmSampleGet"
    read_seconds(stub, source, 610)
    assert source.inventory_changed
    (chip,) = source.inventory().chips
    assert chip.measured_by["tensor_mcycles"] == "cycle_counter"
