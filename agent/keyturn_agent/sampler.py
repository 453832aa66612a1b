"""From readings to usage entries: exact integrals over intervals. Pure.

Between two readings of a chip lies a *span*. What a span adds to a field is an exact integer in a unit so fine
that nothing is rounded (:data:`RULES`); it is added up from the start of the process, and an entry holds the
difference of two rounded sums. So the entries of any intervals add up to the rounded whole.

An interval ends when it is long enough, at a UTC hour, and wherever what is measured changes: a chip is lost or
back, a field turns null or comes back, a workload comes or goes. So every value in an entry holds for the whole
of its interval, and nothing that was measured is thrown away. Lost time has samples 0 and nulls: it is never
zero and never filled in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keyturn_agent.attribution import Weights, parties
from keyturn_agent.ports import COUNTERS, Reading, Sample
from keyturn_protocol.entry_usage import MAX_FIELDS, SUM_FIELDS, UsageBody
from keyturn_protocol.limits import MAX_INT, USAGE_SPAN_US
from keyturn_protocol.values import Slug


@dataclass(frozen=True, slots=True)
class Rule:
    """How one field comes from readings.

    :param unit: fine units in one unit of the field.
    :param counter: the reading's counter, if it has one, which is preferred.
    :param scale: fine units in one unit of the counter.
    :param rate: fine units in one µs, out of the reading at the end of the span.
    """

    unit: int
    counter: str | None
    scale: int
    rate: Callable[[Reading], int | None]


def _value(name: str) -> Callable[[Reading], int | None]:
    def rate(reading: Reading) -> int | None:
        value: int | None = getattr(reading, name)
        return value

    return rate


def _cycles(name: str) -> Callable[[Reading], int | None]:
    # MHz x µs x ppm = 10^-12 of 10^6 cycles, sample by sample: clock and activity move against each other.
    def rate(reading: Reading) -> int | None:
        ppm: int | None = getattr(reading, name)
        clock = reading.sm_clock_mhz
        return None if ppm is None or clock is None else clock * ppm

    return rate


def _elapsed(reading: Reading) -> int | None:
    return None if reading.sm_clock_mhz is None else reading.sm_clock_mhz * 1_000_000


def _never(_: Reading) -> int | None:
    return None


def _pipe(name: str, ppm: str) -> Rule:
    return Rule(10**12, f"{name}_kcycles", 10**9, _cycles(ppm))


RULES: Final[dict[str, Rule]] = {
    # mW x µs = 10^-6 mJ
    "energy_mj": Rule(10**6, "energy_mj", 10**6, _value("power_mw")),
    # ppm x µs = 10^-6 µs
    "busy_us": Rule(10**6, None, 0, _value("busy_ppm")),
    "elapsed_mcycles": Rule(10**12, "elapsed_kcycles", 10**9, _elapsed),
    "active_mcycles": _pipe("active", "sm_active_ppm"),
    "tensor_mcycles": _pipe("tensor", "tensor_ppm"),
    "hmma_mcycles": _pipe("hmma", "hmma_ppm"),
    "imma_mcycles": _pipe("imma", "imma_ppm"),
    "dmma_mcycles": _pipe("dmma", "dmma_ppm"),
    "fp64_mcycles": _pipe("fp64", "fp64_ppm"),
    "fp32_mcycles": _pipe("fp32", "fp32_ppm"),
    "fp16_mcycles": _pipe("fp16", "fp16_ppm"),
    "dram_busy_us": Rule(10**6, None, 0, _value("dram_ppm")),
    "nvlink_tx_kib": Rule(1, "nvlink_tx_kib", 1, _never),
    "nvlink_rx_kib": Rule(1, "nvlink_rx_kib", 1, _never),
    "pcie_tx_kib": Rule(1, "pcie_tx_kib", 1, _never),
    "pcie_rx_kib": Rule(1, "pcie_rx_kib", 1, _never),
    "throttled_us": Rule(10**6, None, 0, _value("throttled_ppm")),
}
MAXIMA: Final = {"memory_mib_max": "memory_mib", "clock_mhz_max": "sm_clock_mhz"}
_SUMS: Final = tuple(RULES[name] for name in SUM_FIELDS)
_MAXIMA: Final = tuple(MAXIMA[name] for name in MAX_FIELDS)

RESET: Final[Slug] = "counter_reset"
UNREADABLE: Final[Slug] = "unreadable"
NEWLY_LISTED: Final[Slug] = "newly_listed"
"""Of the time up to a chip's first sample."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A span of one chip that wasn't measured, and why. ``over``: the chip can be read again at the span's end."""

    cause: Slug
    over: bool


@dataclass(frozen=True, slots=True)
class Span:
    """What one chip did between two readings: fine units, and maxima over both readings."""

    sums: tuple[int | None, ...]
    maxima: tuple[int | None, ...]


def measure(before: Reading | None, after: Reading | None, dt_us: int, error: Slug | None = None) -> Span | Lost:
    """The span between two readings of one chip, ``dt_us`` apart.

    A counter that went backwards was reset: nothing says how much was lost, so the span is lost as a whole.
    """
    if before is None or after is None:
        return Lost(error or UNREADABLE, after is not None)
    for name in COUNTERS:
        old, new = getattr(before, name), getattr(after, name)
        if old is not None and new is not None and new < old:
            return Lost(RESET, True)
    sums: list[int | None] = []
    for rule in _SUMS:
        value: int | None = None
        if rule.counter is not None:
            old, new = getattr(before, rule.counter), getattr(after, rule.counter)
            if old is not None and new is not None:
                value = (new - old) * rule.scale
        if value is None and (rate := rule.rate(after)) is not None:
            value = rate * dt_us
        # What can't be written can't be meant: a driver's "no value" as a huge number.
        sums.append(None if value is not None and value // rule.unit > MAX_INT else value)
    maxima = (_larger(getattr(before, name), getattr(after, name)) for name in _MAXIMA)
    return Span(tuple(sums), tuple(maxima))


def _larger(old: int | None, new: int | None) -> int | None:
    return None if old is None or new is None else max(old, new)


@dataclass(frozen=True, slots=True)
class Step:
    """What a sample brought: the entries that end before its span, its spans, and the entries that end with it."""

    before: list[UsageBody]
    spans: tuple[Span | Lost, ...]
    after: list[UsageBody]


class Sampler:
    """Adds spans up to intervals.

    :param chips: columns of the last inventory.
    :param interval_us: the length that an interval has where nothing cuts it.
    :param anchor_us: UTC minus CLOCK_BOOTTIME.
    """

    def __init__(self, chips: int, interval_us: int, anchor_us: int) -> None:
        self._interval_us = interval_us
        self._anchor_us = anchor_us
        self._last: Sample | None = None
        self._sums = [[0] * len(_SUMS) for _ in range(chips)]
        self._written = [[0] * len(_SUMS) for _ in range(chips)]
        self._open: _Open | None = None

    def set_interval(self, interval_us: int) -> None:
        """Let intervals be so long from here on; also the open one."""
        self._interval_us = interval_us

    @property
    def last_mono_us(self) -> int | None:
        """The moment of the last sample."""
        return None if self._last is None else self._last.mono_us

    @property
    def between(self) -> bool:
        """Whether no interval is open."""
        return self._open is None

    def add(self, sample: Sample) -> Step:
        """Take one sample, later than the one before.

        The first sample of all has no span: what was before it isn't measured.
        """
        last, self._last = self._last, sample
        if last is None:
            return Step([], (), [])
        dt_us = sample.mono_us - last.mono_us
        spans = tuple(
            measure(old, new, dt_us, sample.error if new is None else last.error)
            for old, new in zip(last.chips, sample.chips, strict=True)
        )
        before: list[UsageBody] = []
        shape = _shape(spans, sample)
        if self._open is not None and self._open.shape != shape:
            before = self.flush()
        if not any(isinstance(span, Span) for span in spans):
            return Step(before, spans, [])
        return Step(before, spans, self._extend(shape, spans, sample, last.mono_us))

    def flush(self) -> list[UsageBody]:
        """End the open interval at the last sample."""
        interval, self._open = self._open, None
        return [] if interval is None else [self._body(interval)]

    def step_clock(self, anchor_us: int) -> list[UsageBody]:
        """The wall clock was set: end the open interval and count UTC anew from here."""
        done = self.flush()
        self._anchor_us = anchor_us
        return done

    def relist(self, origin: Sequence[int | None]) -> None:
        """Go on with other chips; the interval has been flushed.

        :param origin: for each chip its number so far, or None if it is new: that one's first span is lost.
        """
        self._sums, self._written = (
            [[0] * len(_SUMS) if chip is None else table[chip] for chip in origin]
            for table in (self._sums, self._written)
        )
        if (last := self._last) is not None:
            chips = tuple(None if chip is None else last.chips[chip] for chip in origin)
            self._last = Sample(last.mono_us, chips, last.error or (NEWLY_LISTED if None in origin else None), ())

    def _extend(self, shape: "_Shape", spans: Sequence[Span | Lost], sample: Sample, start_us: int) -> list[UsageBody]:
        """Add the spans that start at ``start_us``, cut at UTC hours."""
        done: list[UsageBody] = []
        begin, end = start_us + self._anchor_us, sample.mono_us + self._anchor_us
        bases = [list(sums) for sums in self._sums]
        at = begin
        while at < end:
            upto = min(end, at // USAGE_SPAN_US * USAGE_SPAN_US + USAGE_SPAN_US)
            if self._open is None:
                self._open = _Open(shape, at, at - self._anchor_us, len(spans))
            self._open.end_us = upto
            self._open.weights.add(sample.shares, upto - at)
            for chip, span in enumerate(spans):
                if isinstance(span, Span):
                    self._open.touch(chip, span)
                    for i, value in enumerate(span.sums):
                        if value is not None:
                            self._sums[chip][i] = bases[chip][i] + value * (upto - begin) // (end - begin)
            if upto - self._open.from_us >= self._interval_us or upto % USAGE_SPAN_US == 0:
                done += self.flush()
            at = upto
        return done

    def _body(self, interval: "_Open") -> UsageBody:
        columns: dict[str, list[int | None]] = {name: [] for name in (*SUM_FIELDS, *MAX_FIELDS)}
        for chip, mask in enumerate(interval.shape.measured):
            for i, name in enumerate(SUM_FIELDS):
                unit, value = _SUMS[i].unit, None
                if mask is not None and mask[i]:
                    value = self._sums[chip][i] // unit - self._written[chip][i] // unit
                columns[name].append(value if value is None or value <= MAX_INT else None)
            self._written[chip] = list(self._sums[chip])
            for i, name in enumerate(MAX_FIELDS):
                columns[name].append(interval.maxima[chip][i])
        fields: dict[str, Any] = columns
        return UsageBody(
            from_us=interval.from_us,
            to_us=interval.end_us,
            mono_from_us=interval.mono_from_us,
            samples=interval.samples,
            workloads=interval.weights.shares(interval.samples),
            **fields,
        )


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is measured, and who is there: an interval has one shape."""

    measured: tuple[tuple[bool, ...] | None, ...]
    parties: tuple[tuple[int, str, str], ...]


def _shape(spans: Sequence[Span | Lost], sample: Sample) -> _Shape:
    measured = tuple(
        tuple(value is not None for value in (*span.sums, *span.maxima)) if isinstance(span, Span) else None
        for span in spans
    )
    return _Shape(measured, parties(sample.shares))


class _Open:
    """The interval that is being filled."""

    def __init__(self, shape: _Shape, from_us: int, mono_from_us: int, chips: int) -> None:
        self.shape = shape
        self.from_us = self.end_us = from_us
        self.mono_from_us = mono_from_us
        self.samples = [0] * chips
        self.maxima: list[list[int | None]] = [[None] * len(_MAXIMA) for _ in range(chips)]
        self.weights = Weights()

    def touch(self, chip: int, span: Span) -> None:
        self.samples[chip] += 1
        for i, value in enumerate(span.maxima):
            have = self.maxima[chip][i]
            self.maxima[chip][i] = value if have is None or value is None else max(have, value)
