"""From a usage row to FLOP, as an interval in exact integers.

    estimate(row, chip, "bf16", table)
      undeclared   low 1.7e14 ≤ best 2.9e15 ≤ high 7.3e15      rests on counters
      declared     low 2.7e15 ≤ best 2.9e15 ≤ high 4.2e15      also on the word "bf16"

FLOP are floating-point additions and multiplications, an FMA is two; comparisons, conversions, special functions
and integer operations are none. Sparse tensor instructions count what they execute.

``FLOP = mcycles x 10^6 x SMs x k(dtype)``. *High* takes every pipe that was active at its full rate, and a pipe
that wasn't measured as active for as long as the SMs were. *Low* takes the slowest data type that the active pipe
can mean, times the die's efficiency floor, which is empirical (:class:`~keyturn_protocol.chips.Calibration`).
Where the vendor's pipe counters are missing and only "some tensor pipe" is known, low takes the slowest
floating-point tensor type, FP64. That cycles not told apart are floating point at all is an assumption: int8
work would be none.

Both ends are linear in the row's fields, with coefficients that depend only on which fields are null (the basis)
and on the chip, so that splitting a row changes no sum. Two exceptions, which make the finer split the tighter or
the wider one: the bound by energy where there is no tensor counter, and the remainder of tensor cycles that no
pipe counter explains.
"""

from dataclasses import dataclass
from typing import Final, Literal, Protocol, assert_never

from keyturn_protocol.chips import PIPE_OF, ChipSpec, ChipTable, Figure
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.ids import GAP
from keyturn_protocol.usage import ALL_NULL, Gap, UsageRow

Operator = Literal["more than", ">="]
"""How a regime compares with its threshold: EU and California say "more than" or "greater than"."""
Verdict = Literal["above", "below", "undetermined"]

DEFAULT_DTYPE: Final = "bf16"
"""What ``best`` takes tensor work for where nothing is declared."""
LEAST_POWER_MJ_PER_S: Final = 10_000
"""No chip of the table runs on less than 10 W: less energy than that is a broken counter, and bounds nothing."""

_M: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """FLOP, ``low <= best <= high``. ``high`` None is unbounded."""

    low: int
    best: int
    high: int | None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.best or (self.high is not None and self.best > self.high):
            raise ValueError(f"not an interval: {self.low} <= {self.best} <= {self.high}")

    def __add__(self, other: "Interval") -> "Interval":
        high = None if self.high is None or other.high is None else self.high + other.high
        return Interval(self.low + other.low, self.best + other.best, high)


ZERO: Final = Interval(0, 0, 0)
UNBOUNDED: Final = Interval(0, 0, None)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one row can mean. ``declared`` is None where nothing usable is declared; it lies in ``undeclared``."""

    undeclared: Interval
    declared: Interval | None


def estimate(row: UsageRow, chip: Chip, declared_dtype: str | None, table: ChipTable) -> Estimate:
    """The FLOP of one usage row, see the module and ``protocol/spec/flop.md``.

    :param chip: as the inventory ``row.inventory_seq`` describes it. One that the table doesn't know is unbounded.
    :param declared_dtype: a floating-point tensor type that the chip has; any other gives no declared interval.

    A MIG parent that was read carries no FLOP of its own: its instances are chips beside it, with rows of their
    own, and adding the parent's counters would count their work twice. This is sound as far as every instance is
    in the inventory; work on one that isn't shows in the parent's energy and counters, and is a matter for
    findings. A parent that was not read counts as a whole GPU, because nothing says that it was still divided.
    """
    if row.workload == GAP:
        return Estimate(_unmeasured(row.time_us, chip, table), None)
    unread = row.basis & ALL_NULL == ALL_NULL
    if chip.role == "mig_parent" and not unread:
        return Estimate(ZERO, None)
    spec = table.lookup(chip)
    if spec is None:
        return Estimate(UNBOUNDED, None)
    usable = declared_dtype if _is_floating(spec, declared_dtype) else None
    declared = None if usable is None else _rates_of(spec, frozenset((usable,)), usable)
    undeclared = _rates_of(spec, None, usable)
    if unread:
        bound = _peak(row.time_us, chip, spec, undeclared)
        narrow = None if declared is None else Interval(0, 0, _peak(row.time_us, chip, spec, declared))
        return Estimate(Interval(0, 0, bound), narrow)
    if _pipes_known(row) or row.tensor_mcycles is not None:
        return Estimate(
            _counted(row, chip, spec, undeclared),
            None if declared is None else _counted(row, chip, spec, declared),
        )
    return Estimate(
        _uncounted(row, chip, spec, undeclared, table),
        None if declared is None else _uncounted(row, chip, spec, declared, table),
    )


def estimate_gap(gap: Gap, chip: Chip, table: ChipTable) -> Interval:
    """What a chip can have done while nothing was measured: from nothing to its peak at the maximum clock."""
    return _unmeasured(gap.to_us - gap.from_us, chip, table)


def gap_rate(chip: Chip, table: ChipTable) -> int | None:
    """The high end of :func:`estimate_gap` for each µs: it grows by this, exactly. None: unbounded."""
    return _unmeasured(1, chip, table).high


class Counters(Protocol):
    """What one chip did in one interval: a usage row, or less than one."""

    @property
    def time_us(self) -> int: ...
    @property
    def energy_mj(self) -> int | None: ...
    @property
    def busy_us(self) -> int | None: ...
    @property
    def elapsed_mcycles(self) -> int | None: ...
    @property
    def active_mcycles(self) -> int | None: ...
    @property
    def tensor_mcycles(self) -> int | None: ...
    @property
    def hmma_mcycles(self) -> int | None: ...
    @property
    def imma_mcycles(self) -> int | None: ...
    @property
    def dmma_mcycles(self) -> int | None: ...
    @property
    def fp64_mcycles(self) -> int | None: ...
    @property
    def fp32_mcycles(self) -> int | None: ...
    @property
    def fp16_mcycles(self) -> int | None: ...


def highest(row: Counters, chip: Chip, dtypes: frozenset[str], table: ChipTable) -> int | None:
    """The most FLOP that a chip which was read can have done if nothing but ``dtypes`` ran on its tensor pipes.

    The undeclared high end where a counter contradicts that: cycles of a pipe on which none of them runs.

    :param dtypes: of :data:`~keyturn_protocol.chips.PIPE_OF`; empty: any.
    :returns: None: unbounded, of a chip that the table doesn't know.
    """
    if chip.role == "mig_parent":
        return 0
    spec = table.lookup(chip)
    if spec is None:
        return None
    believed = None if contradicts(row, chip, dtypes, table) else dtypes or None
    rates = _rates_of(spec, believed, None)
    if _pipes_known(row) or row.tensor_mcycles is not None:
        return _counted(row, chip, spec, rates).high
    return _uncounted(row, chip, spec, rates, table).high


def contradicts(row: Counters, chip: Chip, dtypes: frozenset[str], table: ChipTable) -> bool:
    """Whether a pipe was active on which none of ``dtypes`` runs on this chip; never if they are any, or unknown."""
    spec = table.lookup(chip)
    if spec is None or not dtypes:
        return False
    pipes = {PIPE_OF[dtype] for dtype in dtypes if dtype in spec.k_tensor}
    if "fp8" in dtypes and "fp8" in spec.k_tensor:
        pipes.add("imma")
    cycles = (("hmma", row.hmma_mcycles), ("imma", row.imma_mcycles), ("dmma", row.dmma_mcycles))
    return any(active and pipe not in pipes for pipe, active in cycles)


def peak_rate(chip: Chip, dtypes: frozenset[str], table: ChipTable) -> int | None:
    """FLOP a µs with all pipes at full rate and maximum clock, ``dtypes`` on the tensor pipes; None: unbounded.

    :param dtypes: empty: any.
    """
    spec = table.lookup(chip)
    return None if spec is None else _peak(1, chip, spec, _rates_of(spec, dtypes or None, None))


def energy_bound(energy_mj: int, time_us: int, chip: Chip, table: ChipTable) -> int | None:
    """The most FLOP that a whole GPU can have done with so much energy; None where that bounds nothing."""
    spec = table.lookup(chip)
    if spec is None or chip.role == "mig_instance" or energy_mj * _M < time_us * LEAST_POWER_MJ_PER_S:
        return None
    return -(-energy_mj * spec.flop_per_joule.high // 1000)


def verdict(interval: Interval, threshold_flop: int, operator: Operator) -> Verdict:
    """Where ``interval`` lies against a threshold, by the regime's own operator."""
    low, high = interval.low, interval.high
    match operator:
        case "more than":
            above, below = low > threshold_flop, high is not None and high <= threshold_flop
        case ">=":
            above, below = low >= threshold_flop, high is not None and high < threshold_flop
        case _:
            assert_never(operator)
    return "above" if above else "below" if below else "undetermined"


@dataclass(frozen=True, slots=True)
class _Rate:
    """FLOP per SM and active cycle of a counter: slowest, most likely and fastest meaning."""

    low: int
    best: int
    high: int


@dataclass(frozen=True, slots=True)
class _Rates:
    """What each tensor counter can mean. ``imma`` has only a high end: its integer operations are not FLOP."""

    any: _Rate
    hmma: _Rate
    dmma: _Rate
    imma_high: int


def _floating(spec: ChipSpec) -> dict[str, Figure]:
    return {dtype: k for dtype, k in spec.k_tensor.items() if PIPE_OF[dtype] != "imma"}


def _is_floating(spec: ChipSpec, dtype: str | None) -> bool:
    return dtype is not None and dtype in spec.k_tensor and PIPE_OF[dtype] != "imma"


def _rates_of(spec: ChipSpec, declared: frozenset[str] | None, likely: str | None) -> _Rates:
    """:func:`_rates`, made once for a row of the table: there are millions of usage rows and a dozen of these."""
    made = spec.derived.get((declared, likely))
    if isinstance(made, _Rates):
        return made
    spec.derived[declared, likely] = rates = _rates(spec, declared, likely)
    return rates


def _rates(spec: ChipSpec, declared: frozenset[str] | None, likely: str | None) -> _Rates:
    """The meaning of each counter when ``declared`` (or nothing) is believed, and ``likely`` is the best guess.

    A declaration speaks about the pipes that its data types run on; the other pipes keep their range. FP8 shows in
    HMMA as far as anyone has seen, but the vendor's own staff also placed it in IMMA (NVIDIA/DCGM issue 86), so on
    a chip with FP8 the high end takes IMMA cycles for FP8 unless another type is declared.
    """
    k = _floating(spec)
    best = likely if likely is not None else DEFAULT_DTYPE

    def rate(dtypes: list[str]) -> _Rate:
        dtypes = dtypes or list(k)
        of = [k[d] for d in dtypes if declared is not None and d in declared] or [k[d] for d in dtypes]
        guess = k[best if best in dtypes else DEFAULT_DTYPE if DEFAULT_DTYPE in dtypes else dtypes[0]]
        low, high = min(f.low for f in of), max(f.high for f in of)
        return _Rate(low, min(max(guess.middle, low), high), high)

    fp8 = k.get("fp8")
    return _Rates(
        any=rate(list(k)),
        hmma=rate([d for d in k if PIPE_OF[d] == "hmma"]),
        dmma=rate([d for d in k if PIPE_OF[d] == "dmma"]),
        imma_high=0 if fp8 is None or (declared is not None and "fp8" not in declared) else fp8.high,
    )


def _pipes_known(row: Counters) -> bool:
    return None not in (row.hmma_mcycles, row.imma_mcycles, row.dmma_mcycles)


def _counted(row: Counters, chip: Chip, spec: ChipSpec, rates: _Rates) -> Interval:
    """With tensor counters. Each sum is FLOP per SM, so that only the number of SMs remains to be multiplied."""
    floor, likely = spec.calibration.floor_ppm, spec.calibration.best_ppm
    if row.hmma_mcycles is not None and row.imma_mcycles is not None and row.dmma_mcycles is not None:
        h, i, d = row.hmma_mcycles, row.imma_mcycles, row.dmma_mcycles
        rest = max(0, (row.tensor_mcycles or 0) - h - i - d)
        low = (h * rates.hmma.low + d * rates.dmma.low) * floor
        best = (h * rates.hmma.best + d * rates.dmma.best) * likely
        high = (h * rates.hmma.high + d * rates.dmma.high + i * rates.imma_high + rest * rates.any.high) * _M
    else:
        tensor = row.tensor_mcycles or 0
        # Some of the cycles are known to be integer work, how many isn't: IMMA without the other pipes.
        low = 0 if row.imma_mcycles is not None else tensor * rates.any.low * floor
        best = tensor * rates.any.best * likely
        high = tensor * rates.any.high * _M
    sms = _sms(chip, spec)
    return Interval(low * sms.low, best * sms.best, (high + _vector(row, chip, spec)) * sms.high)


def _uncounted(row: Counters, chip: Chip, spec: ChipSpec, rates: _Rates, table: ChipTable) -> Interval:
    """Without tensor counters (before Hopper, or where GPM is refused): from 0 to active time at peak.

    ``utilization.gpu`` bounds nothing: it looks at the last part of a second before each sample. It guides
    ``best``, together with a utilisation of the busy time that is only a convention.
    """
    sms = _sms(chip, spec)
    active = _active_cycles(row, chip, spec)
    high = (active * rates.any.high + _vector(row, chip, spec)) * sms.high
    if row.energy_mj is not None and row.energy_mj * _M >= row.time_us * LEAST_POWER_MJ_PER_S:
        high = min(high, -(-row.energy_mj * spec.flop_per_joule.high // 1000))
    if row.active_mcycles is None and row.busy_us is not None:
        active = row.busy_us * spec.clock_nominal_mhz.middle
    best = active * rates.any.best * sms.best * table.utilisation_ppm.middle // _M
    return Interval(0, min(best, high), high)


def _unmeasured(time_us: int, chip: Chip, table: ChipTable) -> Interval:
    spec = table.lookup(chip)
    if spec is None:
        return UNBOUNDED
    return Interval(0, 0, _peak(time_us, chip, spec, _rates_of(spec, None, None)))


def _peak(time_us: int, chip: Chip, spec: ChipSpec, rates: _Rates) -> int:
    """All pipes at full rate and maximum clock. µs x MHz are cycles."""
    cycles = time_us * _clock_max_mhz(chip, spec)
    return cycles * (rates.any.high + spec.vector_issue.high) * _sms(chip, spec).high


def _vector(row: Counters, chip: Chip, spec: ChipSpec) -> int:
    """The most FLOP per SM outside the tensor pipes. (Low counts none: an active vector pipe may add integers,
    move or convert, and nothing tells.)

    The FP32 counter is that of the FMA pipe, which on Hopper also executes the denser FP16x2. Unless all three
    counters are there, the bound is what the SMs can issue while active.
    """
    if row.fp64_mcycles is None or row.fp32_mcycles is None or row.fp16_mcycles is None:
        return _active_cycles(row, chip, spec) * spec.vector_issue.high
    k = spec.k_vector
    fma = max(k["fp32"].high, k["fp16"].high)
    return (row.fp64_mcycles * k["fp64"].high + row.fp32_mcycles * fma + row.fp16_mcycles * k["fp16"].high) * _M


def _active_cycles(row: Counters, chip: Chip, spec: ChipSpec) -> int:
    """The most cycles that an SM can have been active: what is missing is bounded by what holds it."""
    if row.active_mcycles is not None:
        return row.active_mcycles * _M
    if row.elapsed_mcycles is not None:
        return row.elapsed_mcycles * _M
    return row.time_us * _clock_max_mhz(chip, spec)


def _clock_max_mhz(chip: Chip, spec: ChipSpec) -> int:
    return max(spec.clock_max_mhz.high, chip.clock_max_mhz or 0)


def _sms(chip: Chip, spec: ChipSpec) -> _Rate:
    """Number of SMs: a MIG instance's own, else the product's, widened by what the driver says."""
    whole = spec.sms
    if chip.role == "mig_instance":
        return _Rate(0, whole.middle, whole.high) if chip.sms is None else _Rate(chip.sms, chip.sms, chip.sms)
    if chip.sms is None:
        return _Rate(whole.low, whole.middle, whole.high)
    return _Rate(min(whole.low, chip.sms), whole.middle, max(whole.high, chip.sms))
