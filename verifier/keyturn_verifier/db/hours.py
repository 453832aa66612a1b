"""The hours that a segment's usage falls into, as a column: what was touched since the sums were made."""

import struct
from collections.abc import Iterable


def pack_hours(hours_s: Iterable[int]) -> bytes:
    """Each hour once, in order, 8 bytes big-endian; a segment has at most 256 entries, and an entry one hour."""
    apart = sorted(set(hours_s))
    return struct.pack(f">{len(apart)}q", *apart)


def unpack_hours(data: bytes) -> tuple[int, ...]:
    """The hours that :func:`pack_hours` packed."""
    return struct.unpack(f">{len(data) // 8}q", data)
