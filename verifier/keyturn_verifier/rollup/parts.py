"""A part of the totals: exact sums, what they are of, and which logs and chips are in them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from backports import zstd

from keyturn_protocol.api import FlopInterval, WorkloadTotal
from keyturn_protocol.flop import Estimate, Interval
from keyturn_protocol.ids import GAP
from keyturn_protocol.totals import to_text
from keyturn_protocol.usage import HOUR_S, SHARED, UsageRow
from keyturn_verifier.rollup import numbers

Sums = list[int]
"""In the order of the names below; integers of any size."""
TIME, GAPS, ENERGY, NO_ENERGY, PIECES = range(5)
LOW, BEST, HIGH, UNBOUNDED = range(5, 9)
"""Without declarations; ``HIGH`` is of those that have a bound, ``UNBOUNDED`` counts the others."""
D_LOW, D_BEST, D_HIGH, D_UNBOUNDED, DECLARED = range(9, 14)
"""With them; ``DECLARED`` counts rows that have a usable one."""
WIDTH: Final = 14


class Part:
    """Mutable. ``dtypes`` counts hours of logs by what is declared; ``logs`` and ``chips`` are numbers."""

    __slots__ = ("chips", "classes", "dtypes", "from_s", "logs", "sums", "to_s")

    def __init__(self) -> None:
        self.sums: Sums = [0] * WIDTH
        self.from_s: int | None = None
        self.to_s: int | None = None
        self.dtypes: dict[str | None, int] = {}
        self.classes: set[str] = set()
        self.logs: numbers.Numbers = {}
        self.chips: numbers.Numbers = {}

    def row(self, row: UsageRow, one: Estimate) -> None:
        """Add a row of one hour."""
        sums, (low, best, high) = self.sums, _ends(one.undeclared)
        sums[TIME] += row.time_us
        if row.workload == GAP:
            sums[GAPS] += row.time_us
        if row.energy_mj is None:
            sums[NO_ENERGY] += 1
        else:
            sums[ENERGY] += row.energy_mj
        sums[PIECES] += 1
        sums[LOW] += low
        sums[BEST] += best
        if high is None:
            sums[UNBOUNDED] += 1
        else:
            sums[HIGH] += high
        if one.declared is not None:
            low, best, high = _ends(one.declared)
            sums[DECLARED] += 1
        sums[D_LOW] += low
        sums[D_BEST] += best
        if high is None:
            sums[D_UNBOUNDED] += 1
        else:
            sums[D_HIGH] += high
        if row.basis & SHARED:
            self.classes.add("shared")
        self.span(row.hour_s, row.hour_s + HOUR_S)

    def gap(self, from_us: int, to_us: int, count: int, rate: int, unbounded: int) -> None:
        """Add the same stretch of time missing on ``count`` chips.

        :param rate: the most FLOP for each µs of those that have a bound, together; ``unbounded`` have none.
        """
        self.missing((to_us - from_us) * count, rate * (to_us - from_us), count, unbounded)
        self.span(from_us // 1_000_000, -(-to_us // 1_000_000))

    def missing(self, time_us: int, high: int, count: int, unbounded: int) -> None:
        """Add time of which nothing is known but what chips can do at most."""
        for at, value in (
            *((TIME, time_us), (GAPS, time_us), (NO_ENERGY, count), (PIECES, count)),
            *((HIGH, high), (UNBOUNDED, unbounded), (D_HIGH, high), (D_UNBOUNDED, unbounded)),
        ):
            self.sums[at] += value

    def span(self, from_s: int, to_s: int) -> None:
        """Widen the time that this is of."""
        if self.from_s is None or from_s < self.from_s:
            self.from_s = from_s
        if self.to_s is None or to_s > self.to_s:
            self.to_s = to_s

    def add(self, other: "Part") -> None:
        """Add another part; one that takes away has negative sums."""
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        if other.from_s is not None and other.to_s is not None:
            self.span(other.from_s, other.to_s)
        for dtype, count in other.dtypes.items():
            self.dtypes[dtype] = self.dtypes.get(dtype, 0) + count
        self.classes |= other.classes
        numbers.merge(self.logs, other.logs)
        numbers.merge(self.chips, other.chips)

    def hour(self, hour_s: int, workload: str) -> "HourPart":
        """What this is worth remembering as, if it is of one hour of one log."""
        return HourPart(hour_s, workload, next(iter(self.dtypes)), tuple(sorted(self.classes)), list(self.sums))

    def less(self, was: "HourPart") -> None:
        """Take away what an hour of a log had put in. Sets and spans stay: rows are never removed."""
        self.sums = [a - b for a, b in zip(self.sums, was.sums, strict=True)]
        self.dtypes[was.dtype] = self.dtypes.get(was.dtype, 0) - 1

    def encode(self) -> bytes:
        """Bytes for the database."""
        dtypes = [(dtype, count) for dtype, count in self.dtypes.items() if count]
        return _ENCODER.encode(
            _Stored(
                " ".join(map(str, self.sums)),
                self.from_s,
                self.to_s,
                dtypes,
                sorted(self.classes),
                numbers.pack(self.logs),
                numbers.pack(self.chips),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> "Part":
        """The part that :meth:`encode` wrote."""
        stored = _DECODER.decode(data)
        part = cls.__new__(cls)
        part.sums = list(map(int, stored.sums.split()))
        part.from_s, part.to_s = stored.from_s, stored.to_s
        part.dtypes = dict(stored.dtypes)
        part.classes = set(stored.classes)
        part.logs, part.chips = numbers.unpack(stored.logs), numbers.unpack(stored.chips)
        return part

    @property
    def time_us(self) -> int:
        return self.sums[TIME]

    @property
    def gap_us(self) -> int:
        return self.sums[GAPS]

    @property
    def energy_mj(self) -> str | None:
        """In decimal digits; None where any of it is missing."""
        return None if self.sums[NO_ENERGY] else str(self.sums[ENERGY])

    @property
    def undeclared(self) -> FlopInterval:
        return to_text(self._interval(LOW))

    @property
    def declared(self) -> FlopInterval | None:
        return to_text(self._interval(D_LOW)) if self.sums[DECLARED] else None

    def _interval(self, first: int) -> Interval:
        low, best, high, unbounded = self.sums[first : first + 4]
        return Interval(low, best, None if unbounded else high)

    def total(self, workload: str) -> WorkloadTotal:
        """What the API shows of it, as :func:`keyturn_protocol.totals.summarise` does."""
        dtypes = [dtype for dtype, count in self.dtypes.items() if count]
        class_ = next(iter(self.classes)) if len(self.classes) == 1 else "shared" if self.classes else None
        return WorkloadTotal(
            workload=workload,
            class_=class_,  # type: ignore[arg-type]
            declared_dtype=dtypes[0] if len(dtypes) == 1 else None,
            logs=numbers.count(self.logs),
            chips=numbers.count(self.chips),
            time_us=self.time_us,
            gap_us=self.gap_us,
            energy_mj=self.energy_mj,
            from_s=self.from_s,
            to_s=self.to_s,
            undeclared=self.undeclared,
            declared=self.declared,
        )


class HourPart(NamedTuple):
    """What one hour of one log put in for one workload."""

    hour_s: int
    workload: str
    dtype: str | None
    classes: tuple[str, ...]
    sums: Sums


def encode_day(hours: Sequence[HourPart]) -> bytes:
    """Bytes of :class:`HourPart` for the database."""
    rows = [(*h[:4], " ".join(map(str, h.sums))) for h in hours]
    return zstd.compress(_ENCODER.encode(rows), level=1)


def decode_day(data: bytes) -> list[HourPart]:
    """What :func:`encode_day` wrote."""
    rows = _DAY_DECODER.decode(zstd.decompress(data))
    return [HourPart(*row[:4], list(map(int, row[4].split()))) for row in rows]


def _ends(interval: Interval) -> tuple[int, int, int | None]:
    return interval.low, interval.best, interval.high


class _Stored(msgspec.Struct, array_like=True):
    sums: str
    from_s: int | None
    to_s: int | None
    dtypes: list[tuple[str | None, int]]
    classes: list[str]
    logs: list[tuple[int, bytes]]
    chips: list[tuple[int, bytes]]


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Stored)
_DAY_DECODER: Final = msgspec.msgpack.Decoder(list[tuple[int, str, str | None, tuple[str, ...], str]])
