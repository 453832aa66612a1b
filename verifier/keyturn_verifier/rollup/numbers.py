"""Sets of small numbers that are mostly close together or few: blocks of bits, by where they begin."""

from collections.abc import Iterable
from typing import Final

_BLOCK: Final = 1_024

Numbers = dict[int, int]
"""Block → its bits. No block is empty."""


def add(numbers: Numbers, number: int) -> None:
    """Put one number in."""
    block, bit = divmod(number, _BLOCK)
    numbers[block] = numbers.get(block, 0) | 1 << bit


def merge(numbers: Numbers, more: Numbers) -> None:
    """Put all of ``more`` in."""
    for block, bits in more.items():
        numbers[block] = numbers.get(block, 0) | bits


def of(some: Iterable[int]) -> Numbers:
    """A set of these."""
    numbers: Numbers = {}
    for number in some:
        add(numbers, number)
    return numbers


def count(numbers: Numbers) -> int:
    """How many there are."""
    return sum(bits.bit_count() for bits in numbers.values())


def pack(numbers: Numbers) -> list[tuple[int, bytes]]:
    """For the database: each block with its bytes from the lowest set byte on, in one number."""
    return [(block, _bytes(bits)) for block, bits in sorted(numbers.items())]


def unpack(packed: Iterable[tuple[int, bytes]]) -> Numbers:
    """What :func:`pack` packed."""
    return {block: int.from_bytes(data[1:], "little") << 8 * data[0] for block, data in packed}


def _bytes(bits: int) -> bytes:
    low = ((bits & -bits).bit_length() - 1) // 8
    bits >>= 8 * low
    return bytes((low,)) + bits.to_bytes((bits.bit_length() + 7) // 8, "little")
