"""Rows by many keys at once, through an index whatever the number of keys."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, Table, TextClause, text

from keyturn_verifier.db.engine import is_postgres

_AT_ONCE: Final = 4_096
Key = tuple[int | str, ...]


def rows_of(
    connection: Connection, table: Table, on: Sequence[str], keys: Sequence[Key], **bounds: int | str
) -> Iterator[Row[Any]]:
    """The rows of ``table`` for ``keys``, in no particular order.

    :param on: a condition on ``t`` for each place of a key, with ``?`` where its value goes: ``log_id = ?``.
    :param bounds: more conditions, ``from_s=5`` being ``:from_s`` in ``on``; those take no place of a key.
    """
    if not keys:
        return
    statement = lookup(connection, table, on, keys[0])
    for first in range(0, len(keys), _AT_ONCE):
        part = keys[first : first + _AT_ONCE]
        yield from connection.execute(statement, values(connection, part) | bounds)


def lookup(connection: Connection, table: Table, on: Sequence[str], key: Key) -> TextClause:
    """The statement; a plan of it must be a loop over the keys around an index."""
    names = ", ".join(f't."{column.name}"' for column in table.c)
    places = iter(range(len(key)))
    if is_postgres(connection):
        kinds = ["bigint" if isinstance(value, int) else "text" for value in key]
        source = ", ".join(f"CAST(:k{i} AS {kind}[])" for i, kind in enumerate(kinds))
        columns = ", ".join(f"c{i}" for i in range(len(key)))
        join, value = f"unnest({source}) AS k({columns}) JOIN", "k.c{}"
    else:
        join, value = "json_each(:keys) AS k CROSS JOIN", "json_extract(k.value, '$[{}]')"
    conditions = " AND ".join(f"t.{c.replace('?', value.format(next(places))) if '?' in c else c}" for c in on)
    sql = f'SELECT {names} FROM {join} "{table.name}" AS t ON {conditions}'  # noqa: S608 -- names of our own
    return text(sql).columns(*table.c)  # type: ignore[return-value]


def values(connection: Connection, keys: Sequence[Key]) -> dict[str, Any]:
    """The parameters that :func:`lookup` takes its keys from."""
    if is_postgres(connection):
        return {f"k{i}": list(column) for i, column in enumerate(zip(*keys, strict=True))}
    return {"keys": json.dumps(keys, separators=(",", ":"))}
