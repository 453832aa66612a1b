"""Time that is missing on chips: from one moment to another, or up to now. It is cut where a reader wants it cut."""

from typing import Final, NamedTuple

import msgspec

from keyturn_verifier.queries import Filter
from keyturn_verifier.rollup import numbers
from keyturn_verifier.rollup.parts import Part

Place = tuple[str, str]
"""Organisation and site."""


class Stretch(NamedTuple):
    """Time that is missing on ``missing`` chips of one log: ``from_us`` … ``to_us``, or up to now (None)."""

    log_id: int
    from_us: int
    to_us: int | None
    missing: int
    rate: int
    """The most FLOP a µs of the chips that have a bound, together."""
    unbounded: int
    chips: numbers.Numbers
    silent: bool = False
    """It is after the end of a log: nothing of it lies after the moment of asking."""
    place: Place = ("", "")


def add_stretch(part: Part, one: Stretch, from_us: int, to_us: int) -> None:
    """Add what of a stretch lies between two times that are within it."""
    part.gap(from_us, to_us, one.missing, one.rate, one.unbounded)
    numbers.add(part.logs, one.log_id)
    numbers.merge(part.chips, one.chips)


class Tally:
    """:func:`add_stretch` for many: every host of a fleet has a stretch that goes on now."""

    __slots__ = ("_chips", "_first_us", "_high", "_last_us", "_logs", "_missing", "_time_us", "_unbounded")

    def __init__(self) -> None:
        self._time_us = self._high = self._missing = self._unbounded = self._last_us = 0
        self._first_us = 2**62
        self._logs: list[int] = []
        self._chips: numbers.Numbers = {}

    def add(self, one: Stretch, from_us: int, to_us: int) -> None:
        """Add what of a stretch lies between two times that are within it."""
        span_us, chips = to_us - from_us, self._chips
        self._time_us += span_us * one.missing
        self._high += span_us * one.rate
        self._missing += one.missing
        self._unbounded += one.unbounded
        if from_us < self._first_us:
            self._first_us = from_us
        if to_us > self._last_us:
            self._last_us = to_us
        self._logs.append(one.log_id)
        for block, bits in one.chips.items():
            chips[block] = chips.get(block, 0) | bits

    def part(self) -> Part:
        """All of it."""
        part = Part()
        part.missing(self._time_us, self._high, self._missing, self._unbounded)
        part.span(self._first_us // 1_000_000, -(-self._last_us // 1_000_000))
        part.logs, part.chips = numbers.of(self._logs), dict(self._chips)
        return part


def overlap(one: Stretch, wanted: Filter, until_us: int) -> tuple[int, int] | None:
    """The part of a stretch that a filter lets through; the workload of a filter is not looked at."""
    from_us = one.from_us if wanted.from_s is None else max(one.from_us, wanted.from_s * 1_000_000)
    to_us = until_us if one.to_us is None else min(one.to_us, until_us) if one.silent else one.to_us
    if wanted.to_s is not None:
        to_us = min(to_us, wanted.to_s * 1_000_000)
    return (from_us, to_us) if from_us < to_us else None


def encode_stretch(one: Stretch) -> bytes:
    """Bytes for the database."""
    chips = numbers.pack(one.chips)
    return _ENCODER.encode((one.log_id, one.from_us, one.to_us, one.missing, str(one.rate), one.unbounded, chips))


def decode_stretch(data: bytes) -> Stretch:
    """What :func:`encode_stretch` wrote."""
    log_id, from_us, to_us, missing, rate, unbounded, chips = _DECODER.decode(data)
    return Stretch(log_id, from_us, to_us, missing, int(rate), unbounded, numbers.unpack(chips))


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(tuple[int, int, int | None, int, str, int, list[tuple[int, bytes]]])
