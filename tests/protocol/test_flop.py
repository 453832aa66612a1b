"""FLOP of a usage row: exact formulas, and what must hold for any row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyturn_protocol.chips import PIPE_OF, ChipSpec, chip_table, parse_chip_table
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.flop import ZERO, Estimate, Interval, Verdict, estimate, estimate_gap, verdict
from keyturn_protocol.ids import GAP
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.usage import Gap, UsageRow
from tests.support.rows import HOUR_US, make_chip, make_row

TABLE = chip_table()
H100 = make_chip("NVIDIA H100 PCIe")
A100 = make_chip("NVIDIA A100-SXM4-80GB")
UNKNOWN = make_chip("Some Other GPU")
MIG = make_chip("NVIDIA H100 PCIe MIG 1g.10gb", role="mig_instance", parent="GPU-1", sms=16)
MIG_PARENT = make_chip("NVIDIA H100 PCIe", role="mig_parent")
SMS, M = 114, 10**6
PEAK_H100 = 1755 * SMS * (8192 + 512)
"""FLOP per µs of everything at once at 1755 MHz."""


def of(row: UsageRow, chip: Chip = H100, dtype: str | None = None) -> Estimate:
    return estimate(row, chip, dtype, TABLE)


# --- formulas ---------------------------------------------------------------------------------------------------

ACTIVE: dict[str, Any] = {"elapsed_mcycles": 2_000, "active_mcycles": 1_500}
NO_VECTOR: dict[str, Any] = {"fp64_mcycles": 0, "fp32_mcycles": 0, "fp16_mcycles": 0}


def interval(low: int, best: int, high: int) -> Interval:
    return Interval(low * SMS, best * SMS, high * M * SMS)


@pytest.mark.parametrize(
    ("what", "measured", "dtype", "undeclared", "declared"),
    [
        (
            "some tensor pipe: from FP64 to FP8; the vector pipes may have been busy as long as the SMs",
            {**ACTIVE, "tensor_mcycles": 1_000},
            None,
            interval(1_000 * 256 * 900_000, 1_000 * 4096 * 950_000, 1_000 * 8192 + 1_500 * 512),
            None,
        ),
        (
            "bf16 declared",
            {**ACTIVE, "tensor_mcycles": 1_000},
            "bf16",
            interval(1_000 * 256 * 900_000, 1_000 * 4096 * 950_000, 1_000 * 8192 + 1_500 * 512),
            interval(1_000 * 4096 * 900_000, 1_000 * 4096 * 950_000, 1_000 * 4096 + 1_500 * 512),
        ),
        (
            "fp8 declared moves best, and the undeclared ends stay",
            {**ACTIVE, "tensor_mcycles": 1_000},
            "fp8",
            interval(1_000 * 256 * 900_000, 1_000 * 8192 * 950_000, 1_000 * 8192 + 1_500 * 512),
            interval(1_000 * 8192 * 900_000, 1_000 * 8192 * 950_000, 1_000 * 8192 + 1_500 * 512),
        ),
        (
            "SM activity not measured: the SMs may have been active all the time",
            {"elapsed_mcycles": 2_000, "tensor_mcycles": 1_000},
            None,
            interval(1_000 * 256 * 900_000, 1_000 * 4096 * 950_000, 1_000 * 8192 + 2_000 * 512),
            None,
        ),
        (
            "vector pipes measured and idle",
            {**ACTIVE, **NO_VECTOR, "tensor_mcycles": 1_000},
            None,
            interval(1_000 * 256 * 900_000, 1_000 * 4096 * 950_000, 1_000 * 8192),
            None,
        ),
        (
            "vector pipes measured: the FMA pipe may have executed FP16x2",
            {**ACTIVE, "fp64_mcycles": 10, "fp32_mcycles": 100, "fp16_mcycles": 1_000, "tensor_mcycles": 0},
            None,
            interval(0, 0, 10 * 128 + 100 * 512 + 1_000 * 512),
            None,
        ),
        (
            "pipes told apart: HMMA from TF32 to FP8, DMMA is FP64, IMMA is nothing or FP8",
            {
                **ACTIVE,
                **NO_VECTOR,
                "tensor_mcycles": 1_111,
                "hmma_mcycles": 1_000,
                "imma_mcycles": 100,
                "dmma_mcycles": 11,
            },
            None,
            interval((1_000 * 2048 + 11 * 256) * 900_000, (1_000 * 4096 + 11 * 256) * 950_000, 1_100 * 8192 + 11 * 256),
            None,
        ),
        (
            "with bf16 declared IMMA is integer work",
            {
                **ACTIVE,
                **NO_VECTOR,
                "tensor_mcycles": 1_111,
                "hmma_mcycles": 1_000,
                "imma_mcycles": 100,
                "dmma_mcycles": 11,
            },
            "bf16",
            interval((1_000 * 2048 + 11 * 256) * 900_000, (1_000 * 4096 + 11 * 256) * 950_000, 1_100 * 8192 + 11 * 256),
            interval((1_000 * 4096 + 11 * 256) * 900_000, (1_000 * 4096 + 11 * 256) * 950_000, 1_000 * 4096 + 11 * 256),
        ),
        (
            "tensor cycles that no pipe explains may be the fastest type",
            {**ACTIVE, **NO_VECTOR, "tensor_mcycles": 100, "hmma_mcycles": 60, "imma_mcycles": 0, "dmma_mcycles": 10},
            None,
            interval((60 * 2048 + 10 * 256) * 900_000, (60 * 4096 + 10 * 256) * 950_000, 90 * 8192 + 10 * 256),
            None,
        ),
        (
            "integer tensor work has no low end",
            {**ACTIVE, **NO_VECTOR, "tensor_mcycles": 500, "hmma_mcycles": 0, "imma_mcycles": 500, "dmma_mcycles": 0},
            None,
            interval(0, 0, 500 * 8192),
            None,
        ),
        (
            "IMMA without the other pipes: how much of it was integer work isn't known",
            {**ACTIVE, **NO_VECTOR, "tensor_mcycles": 500, "imma_mcycles": 1},
            None,
            interval(0, 500 * 4096 * 950_000, 500 * 8192),
            None,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_formula_on_h100(
    what: str, measured: dict[str, Any], dtype: str | None, undeclared: Interval, declared: Interval | None
):
    assert of(make_row(**measured), dtype=dtype) == Estimate(undeclared, declared)


@pytest.mark.parametrize("dtype", [None, "int8", "fp64", "fp32", "fp4", "bfloat16", ""])
def test_a_type_that_is_no_floating_point_tensor_type_of_the_chip_declares_nothing(dtype: str | None):
    row = make_row(**ACTIVE, tensor_mcycles=1_000)
    assert of(row, dtype=dtype) == of(row)


def test_fp8_on_a_chip_without_it_declares_nothing():
    assert of(make_row(**ACTIVE, tensor_mcycles=1_000), A100, "fp8").declared is None


def test_without_calibration_the_low_end_is_nothing():
    done = of(make_row(**ACTIVE, tensor_mcycles=1_000), A100, "bf16")
    assert done.undeclared == Interval(0, 1_000 * M * 108 * 2048, (1_000 * 2048 + 1_500 * 512) * M * 108)
    assert done.declared == done.undeclared


def test_imma_on_a_chip_without_fp8_is_integer_work():
    row = make_row(**ACTIVE, **NO_VECTOR, tensor_mcycles=500, hmma_mcycles=0, imma_mcycles=500, dmma_mcycles=0)
    assert of(row, A100).undeclared == ZERO


@pytest.mark.parametrize(
    ("what", "measured", "best", "high"),
    [
        ("active SMs", {**ACTIVE}, 1_500 * M * 2048, 1_500 * M * 2560),
        ("elapsed cycles", {"elapsed_mcycles": 2_000}, 2_000 * M * 2048, 2_000 * M * 2560),
        ("time", {"memory_mib_max": 1}, HOUR_US * 1410 * 2048, HOUR_US * 1410 * 2560),
        ("busy time guides best only", {"busy_us": 1_000}, 1_000 * 1410 * 2048, HOUR_US * 1410 * 2560),
    ],
)
def test_without_tensor_counters(what: str, measured: dict[str, Any], best: int, high: int):
    """From 0 to peak; best is 40 % of the busy time in bf16."""
    assert of(make_row(**measured), A100).undeclared == Interval(0, best * 108 * 4 // 10, high * 108)


def test_the_maximum_clock_is_the_higher_of_table_and_driver():
    row = make_row(memory_mib_max=1)
    slow, fast = (make_chip("NVIDIA A100-SXM4-80GB", clock_max_mhz=mhz) for mhz in (1_200, 1_500))
    assert of(row, slow) == of(row, A100)
    assert of(row, fast).undeclared.high == HOUR_US * 1500 * 108 * 2560


def test_energy_tightens_where_there_is_no_tensor_counter():
    idle = make_row(energy_mj=50 * 3_600 * 1_000)
    assert of(idle, A100).undeclared.high == 50 * 3_600 * 3_750_000_000_000
    assert of(make_row(energy_mj=400 * 3_600 * 1_000), A100) == of(make_row(memory_mib_max=1), A100)


def test_energy_rounds_up_and_never_widens(repo: Path):
    data = (repo / "protocol/keyturn_protocol/chips.toml").read_text()
    odd = parse_chip_table(data.replace("value = 3_750_000_000_000", "value = 3_750_000_000_001").encode())
    done = estimate(make_row(1_000_000, energy_mj=10_001), A100, None, odd)
    assert done.undeclared.high == 10_001 * 3_750_000_000 + 11
    assert of(make_row(1, energy_mj=1), A100).undeclared.high == 1410 * 108 * 2560


@pytest.mark.parametrize("energy_mj", [0, 10 * 3_600 * 1_000 - 1])
def test_a_broken_energy_counter_bounds_nothing(energy_mj: int):
    assert of(make_row(energy_mj=energy_mj), A100).undeclared.high == HOUR_US * 1410 * 108 * 2560


def test_energy_says_nothing_about_a_row_with_tensor_counters():
    measured: dict[str, Any] = {**ACTIVE, "tensor_mcycles": 1_000}
    assert of(make_row(**measured, energy_mj=36_000_000)) == of(make_row(**measured))


@pytest.mark.parametrize("chip", [H100, MIG_PARENT], ids=["gpu", "mig_parent"])
def test_unmeasured_time_is_anything_up_to_peak(chip: Chip):
    whole = Interval(0, 0, HOUR_US * PEAK_H100)
    gap = Gap(log="x", chip=chip.uuid, from_us=5, to_us=5 + HOUR_US, inventory_seq=1, cause=None)
    assert estimate_gap(gap, chip, TABLE) == whole
    assert of(make_row(), chip) == Estimate(whole, None)
    assert of(make_row(workload=GAP), chip, "bf16") == Estimate(whole, None)
    assert of(make_row(workload=GAP, tensor_mcycles=0), chip) == Estimate(whole, None)


def test_a_row_of_nulls_keeps_its_declaration():
    done = of(make_row(), dtype="tf32")
    assert done == Estimate(Interval(0, 0, HOUR_US * PEAK_H100), Interval(0, 0, HOUR_US * 1755 * SMS * (2048 + 512)))


def test_a_shared_row_of_nulls_is_unmeasured_too():
    row = msgspec.structs.replace(make_row(), basis=make_row().basis | 1 << 30)
    assert of(row).undeclared == Interval(0, 0, HOUR_US * PEAK_H100)


def test_an_unknown_chip_is_unbounded():
    gap = Gap(log="x", chip=UNKNOWN.uuid, from_us=0, to_us=1, inventory_seq=1, cause=None)
    assert estimate_gap(gap, UNKNOWN, TABLE) == Interval(0, 0, None)
    for row in (make_row(), make_row(workload=GAP), make_row(tensor_mcycles=5)):
        assert of(row, UNKNOWN, "bf16") == Estimate(Interval(0, 0, None), None)


def test_a_mig_instance_has_its_own_sms():
    row = make_row(**ACTIVE, tensor_mcycles=1_000)
    whole, part = of(row).undeclared, of(row, MIG).undeclared
    assert part.high is not None
    assert whole.high is not None
    assert (part.low * SMS, part.best * SMS, part.high * SMS) == (whole.low * 16, whole.best * 16, whole.high * 16)


def test_a_mig_instance_of_unknown_size_is_between_nothing_and_the_gpu():
    row = make_row(**ACTIVE, tensor_mcycles=1_000)
    whole = of(row).undeclared
    assert of(row, msgspec.structs.replace(MIG, sms=None)).undeclared == Interval(0, whole.best, whole.high)


def test_a_mig_parent_that_was_read_is_counted_in_its_instances():
    assert of(make_row(**ACTIVE, tensor_mcycles=1_000), MIG_PARENT) == Estimate(ZERO, None)
    assert of(make_row(energy_mj=5), MIG_PARENT, "bf16") == Estimate(ZERO, None)


def test_sms_that_the_driver_counts_otherwise_widen_both_ends():
    row = make_row(**ACTIVE, tensor_mcycles=1_000)
    known, more, fewer = (of(row, make_chip("NVIDIA H100 PCIe", sms=n)).undeclared for n in (114, 120, 100))
    assert known == of(row).undeclared
    assert (more.low, more.best) == (known.low, known.best)
    assert (fewer.best, fewer.high) == (known.best, known.high)
    assert fewer.low < known.low
    assert more.high is not None
    assert more.high > (known.high or 0)


# --- any row ----------------------------------------------------------------------------------------------------

CHIPS = st.one_of(
    st.sampled_from([name for spec in TABLE.chips for name in spec.nvml_names]).map(make_chip),
    st.sampled_from([H100, A100, UNKNOWN, MIG, MIG_PARENT, msgspec.structs.replace(MIG, sms=None)]),
)
DTYPES = st.none() | st.sampled_from([*PIPE_OF, "fp64", "nonsense"])
COUNT = st.integers(0, 10_000) | st.integers(0, MAX_INT)
KNOWN = st.sets(st.sampled_from(FIELDS)).map(sorted)


@st.composite
def rows(draw: st.DrawFn, known: list[str] | None = None, workload: str = "slurm:fixture:1") -> UsageRow:
    measured = {name: draw(COUNT) for name in (draw(KNOWN) if known is None else known)}
    return make_row(draw(COUNT), workload, **measured)


def inside(part: Interval, whole: Interval) -> bool:
    above = whole.high is not None and (part.high is None or part.high > whole.high)
    return whole.low <= part.low and not above


@given(rows(), CHIPS, DTYPES)
def test_any_row_has_an_ordered_interval_and_the_declared_one_lies_inside(row: UsageRow, chip: Chip, dtype: str | None):
    """Whatever the counters say: `Interval` refuses to be out of order."""
    done = of(row, chip, dtype)
    assert of(row, chip).undeclared.low == done.undeclared.low
    assert of(row, chip).undeclared.high == done.undeclared.high
    if done.declared is not None:
        assert inside(done.declared, done.undeclared)


def added(a: UsageRow, b: UsageRow) -> UsageRow:
    """Two rows of one key, as the fold adds them."""

    def both(name: str) -> int | None:
        x, y = getattr(a, name), getattr(b, name)
        if x is None or y is None:
            return None
        return int(max(x, y) if name.endswith("_max") else x + y)

    return msgspec.structs.replace(a, **{name: both(name) for name in ("time_us", *FIELDS)})


def unexplained(row: UsageRow) -> int:
    pipes = (row.hmma_mcycles, row.imma_mcycles, row.dmma_mcycles)
    return 0 if row.tensor_mcycles is None else row.tensor_mcycles - sum(p or 0 for p in pipes)


@given(st.data(), CHIPS, DTYPES, KNOWN, st.sampled_from(["slurm:fixture:1", GAP]))
def test_splitting_a_row_changes_no_end(
    data: st.DataObject, chip: Chip, dtype: str | None, known: list[str], workload: str
):
    """Neither tighter nor looser. Without the two exceptions that `flop` names."""
    a, b = data.draw(rows(known, workload)), data.draw(rows(known, workload))
    assume(unexplained(a) * unexplained(b) >= 0)
    counted = "tensor_mcycles" in known or {"hmma_mcycles", "imma_mcycles", "dmma_mcycles"} <= {*known}
    assume(counted or "energy_mj" not in known)
    whole, parts = of(added(a, b), chip, dtype), [of(r, chip, dtype) for r in (a, b)]
    ends = sum((p.undeclared for p in parts), ZERO)
    assert (ends.low, ends.high) == (whole.undeclared.low, whole.undeclared.high)
    if counted:
        assert ends == whole.undeclared
    assert (whole.declared is None) == (parts[0].declared is None) == (parts[1].declared is None)
    if whole.declared is not None:
        ends = sum((p.declared for p in parts if p.declared is not None), ZERO)
        assert (ends.low, ends.high) == (whole.declared.low, whole.declared.high)


@given(st.data(), KNOWN)
def test_with_energy_the_finer_split_is_the_tighter_one(data: st.DataObject, known: list[str]):
    known = sorted({*known, "energy_mj"} - {"tensor_mcycles", "hmma_mcycles"})
    a, b = data.draw(rows(known)), data.draw(rows(known))
    assume(all((r.energy_mj or 0) * 100 >= r.time_us for r in (a, b)))
    parts, whole = of(a, A100).undeclared + of(b, A100).undeclared, of(added(a, b), A100).undeclared
    assert parts.high is not None
    assert whole.high is not None
    assert parts.high <= whole.high


@dataclass(frozen=True)
class Work:
    """What an SM really did, and the counters that it left."""

    flop: int
    dtype: str | None
    measured: dict[str, Any]


@st.composite
def works(draw: st.DrawFn, spec: ChipSpec, *, pipes_overlap: bool = True) -> Work:
    """Tensor work of several types at rates between the floor and full, vector work within what can be issued."""
    dtypes = draw(st.lists(st.sampled_from(sorted(spec.k_tensor)), max_size=4, unique=True))
    pipes = dict.fromkeys(("hmma", "imma", "dmma"), 0)
    flop = 0
    for dtype in dtypes:
        cycles = draw(st.integers(0, 1_000))
        pipes[PIPE_OF[dtype]] += cycles
        if PIPE_OF[dtype] != "imma":
            rate = draw(st.integers(spec.calibration.floor_ppm, M))
            flop += -(-cycles * spec.k_tensor[dtype].middle * rate // 1)
    busiest, total = max(pipes.values()), sum(pipes.values())
    tensor = total
    if pipes_overlap and pipes["imma"] == 0:
        tensor = draw(st.integers(busiest, total))
    active = draw(st.integers(tensor, 5_000))
    vector = {name: draw(st.integers(0, active // 4)) for name in ("fp64", "fp32", "fp16")}
    for name, cycles in vector.items():
        flop += cycles * spec.k_vector[name].middle * M * draw(st.integers(0, 1))
    elapsed = draw(st.integers(active, 6_000))
    measured: dict[str, Any] = {
        "elapsed_mcycles": elapsed,
        "active_mcycles": active,
        "tensor_mcycles": tensor,
        **{f"{name}_mcycles": cycles for name, cycles in (*pipes.items(), *vector.items())},
    }
    floating = [d for d in dtypes if PIPE_OF[d] != "imma"]
    return Work(flop * spec.sms.middle, floating[0] if len(floating) == len(dtypes) == 1 else None, measured)


@given(st.data(), st.sampled_from([H100, A100, make_chip("NVIDIA H200")]), st.sets(st.sampled_from(FIELDS)))
def test_what_was_done_lies_in_the_interval_whatever_was_not_measured(data: st.DataObject, chip: Chip, lost: set[str]):
    """Missing is never zero. With all tensor cycles floating point unless a pipe counter says otherwise."""
    spec = TABLE.lookup(chip)
    assert spec is not None
    work = data.draw(works(spec))
    # Integer work is told apart only by all three pipes: the assumption that `flop` names.
    assume(not work.measured["imma_mcycles"] or not lost & {"hmma_mcycles", "imma_mcycles", "dmma_mcycles"})
    kept: dict[str, Any] = {name: value for name, value in work.measured.items() if name not in lost}
    time_us = -(-(work.measured["elapsed_mcycles"] or 0) * M // spec.clock_max_mhz.low)
    done = of(make_row(time_us, **kept, busy_us=1), chip, work.dtype)
    for one in (done.undeclared, done.declared):
        if one is not None:
            assert one.low <= work.flop
            assert one.high is None or work.flop <= one.high
    assert (done.declared is None) == (work.dtype is None)


@given(st.data(), st.sets(st.sampled_from(FIELDS)))
def test_measuring_less_never_narrows(data: st.DataObject, lost: set[str]):
    spec = TABLE.lookup(H100)
    assert spec is not None
    work = data.draw(works(spec, pipes_overlap=False))
    assume(not work.measured["imma_mcycles"])
    row = make_row(HOUR_US, **work.measured)
    less = make_row(HOUR_US, **{k: v for k, v in work.measured.items() if k not in lost})
    assert inside(of(row).undeclared, of(less).undeclared)


# --- intervals and verdicts -------------------------------------------------------------------------------------


def test_unbounded_absorbs():
    assert Interval(1, 2, 3) + Interval(10, 20, 30) == Interval(11, 22, 33)
    assert Interval(1, 2, 3) + Interval(0, 0, None) == Interval(1, 2, None) == Interval(0, 0, None) + Interval(1, 2, 3)


@pytest.mark.parametrize(("low", "best", "high"), [(2, 1, 3), (1, 4, 3), (-1, 0, 1), (1, 0, None)])
def test_an_interval_is_in_order(low: int, best: int, high: int | None):
    with pytest.raises(ValueError, match="not an interval"):
        Interval(low, best, high)


@pytest.mark.parametrize(
    ("low", "high", "more_than", "at_least"),
    [
        (11, 12, "above", "above"),
        (10, 12, "undetermined", "above"),
        (9, 11, "undetermined", "undetermined"),
        (9, 10, "below", "undetermined"),
        (10, 10, "below", "above"),
        (8, 9, "below", "below"),
        (11, None, "above", "above"),
        (10, None, "undetermined", "above"),
        (0, None, "undetermined", "undetermined"),
    ],
)
def test_verdict_against_ten(low: int, high: int | None, more_than: Verdict, at_least: Verdict):
    one = Interval(low, low, high)
    assert (verdict(one, 10, "more than"), verdict(one, 10, ">=")) == (more_than, at_least)
