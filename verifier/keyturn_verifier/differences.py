"""Rows as they are stored against rows as they have to be."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Table

from keyturn_verifier.db.rows import Row


@dataclass(frozen=True, slots=True)
class Difference:
    """Something stored that isn't what the signed bytes give. ``where`` is a log, or the part of a table."""

    table: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.table}: {self.where}: {self.what}"


def plain(row: Iterable[object]) -> Row:
    """A row as a driver gives it, with bytes that can be compared."""
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)


def by_key(
    table: Table, where: str, names: Sequence[str], keys: int, expected: Iterable[Row], stored: Iterable[Row]
) -> Iterator[Difference]:
    """Rows that a key tells apart.

    :param names: of the columns, in the order of the rows.
    :param keys: how many of them, from the first on, are the key.
    """
    right = {row[:keys]: row for row in expected}
    there = {row[:keys]: row for row in stored}
    for key in sorted(right.keys() - there.keys(), key=repr):
        yield Difference(table.name, where, f"row is missing: {_named(names, key)}")
    for key in sorted(there.keys() - right.keys(), key=repr):
        yield Difference(table.name, where, f"row that nothing gives: {_named(names, key)}")
    for key in sorted(right.keys() & there.keys(), key=repr):
        for name, wanted, got in zip(names, right[key], there[key], strict=True):
            if wanted != got:
                yield differs(table, where, name, wanted, got, _named(names, key))


def as_bag(
    table: Table, where: str, names: Sequence[str], expected: Iterable[Row], stored: Iterable[Row]
) -> Iterator[Difference]:
    """Rows without a key of their own."""
    right, there = Counter(expected), Counter(stored)
    for row in sorted((right - there).elements(), key=repr):
        yield Difference(table.name, where, f"row is missing: {_named(names, row)}")
    for row in sorted((there - right).elements(), key=repr):
        yield Difference(table.name, where, f"row that nothing gives: {_named(names, row)}")


def differs(table: Table, where: str, name: str, wanted: object, got: object, row: str = "") -> Difference:
    """One value."""
    return Difference(table.name, where, f"{name}{row and f' of {row}'}: expected {_short(wanted)}, got {_short(got)}")


def _named(names: Sequence[str], values: Row) -> str:
    shown = zip(names, values, strict=False)
    return ", ".join(f"{name} {_short(value)}" for name, value in shown if name != "log_id")


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 64 else f"{text[:61]}…"
