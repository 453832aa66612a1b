"""Statements that run for thousands of rows, given as tuples in the order of their names.

SQLite takes a compiled statement and the tuples as they are. PostgreSQL takes binary COPY, which moves 2,048 usage
rows in 20 ms where ``executemany`` and ``unnest`` need 45 to 55: into the table itself, or into a temporary one
that a statement then merges from.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import psycopg
from sqlalchemy import BigInteger, Connection, Engine, Integer, LargeBinary, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import ClauseElement

Row = tuple[Any, ...]
_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]
_QUOTE: Final = _DIALECT.identifier_preparer.quote


class Many(Protocol):
    """Runs for many rows at once."""

    def run(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Run for every row; returns how many rows of the table were changed."""
        ...


class Each:
    """A statement that is compiled once and goes to the driver with a tuple for each row.

    A batch has thousands of rows, and building a dict for each costs more than the database does.
    """

    def __init__(self, engine: Engine, statement: ClauseElement, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        order: Sequence[str] = getattr(compiled, "positiontup", None) or ()
        if list(order) != list(names):
            raise ValueError(f"statement binds {order}, not {names}")
        self._sql = str(compiled)

    def run(self, connection: Connection, rows: Sequence[Row]) -> int:
        if not rows:
            return 0
        return connection.exec_driver_sql(self._sql, list(rows)).rowcount


class Copy:
    """COPY of rows into a table of PostgreSQL."""

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        columns = ", ".join(_QUOTE(name) for name in names)
        self._sql = f"COPY {_QUOTE(table.name)} ({columns}) FROM STDIN (FORMAT BINARY)"
        self._types = [_binary(table, name) for name in names]

    def run(self, connection: Connection, rows: Sequence[Row]) -> int:
        if not rows:
            return 0
        with driver(connection, self._sql) as raw, raw.cursor() as cursor, cursor.copy(self._sql) as copy:
            copy.set_types(self._types)
            for row in rows:
                copy.write_row(row)
        return len(rows)


class Through:
    """A statement of PostgreSQL that reads its rows from a temporary table, which they are copied into first.

    :param into: the table's name. It lives as long as the connection and is empty between transactions.
    :param columns: its columns, each with the column of ``table`` that it is like.
    :param sql: the statement that reads from it.
    """

    def __init__(self, table: Table, into: str, columns: Sequence[tuple[str, str]], sql: str) -> None:
        defined = ", ".join(f"{_QUOTE(name)} {_binary(table, like)}" for name, like in columns)
        name = _QUOTE(into)
        self._create = (
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {name} ({defined}) ON COMMIT DELETE ROWS; DELETE FROM pg_temp.{name}"  # noqa: S608
        )
        names = ", ".join(_QUOTE(name) for name, _ in columns)
        self._copy = f"COPY pg_temp.{name} ({names}) FROM STDIN (FORMAT BINARY)"
        self._types = [_binary(table, like) for _, like in columns]
        self._sql = sql

    def run(self, connection: Connection, rows: Sequence[Row]) -> int:
        if not rows:
            return 0
        with driver(connection, self._sql) as raw, raw.cursor() as cursor:
            cursor.execute(self._create)
            with cursor.copy(self._copy) as copy:
                copy.set_types(self._types)
                for row in rows:
                    copy.write_row(row)
            return cursor.execute(self._sql).rowcount


@contextmanager
def driver(connection: Connection, sql: str) -> Iterator["psycopg.Connection[Any]"]:
    """The driver's own connection, inside of the transaction; its errors are SQLAlchemy's all the same."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)  # noqa: S101
    try:
        yield raw
    except psycopg.Error as error:
        raise DBAPIError.instance(sql, None, error, psycopg.Error, dialect=connection.dialect) from error


def _binary(table: Table, name: str) -> str:
    """The type of a column as COPY has to know it."""
    kind = table.c[name].type
    if isinstance(kind, BigInteger | Integer):
        return "int8"
    return "bytea" if isinstance(kind, LargeBinary) else "text"
