"""Connections and transactions. SQLite runs in WAL mode with ``synchronous=FULL``: a commit is on disk.

A writer begins with ``BEGIN IMMEDIATE``, so that it waits for its turn before it has read anything.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.sql.expression import ClauseElement

from keyturn_verifier.errors import OutcomeUnknown, VerifierError

BUSY_TIMEOUT_S: Final = 30
_CONNECTIONS: Final = 64
"""More than the web framework has threads (40), so that readers never keep the batching thread waiting."""
_WRITE: Final = "keyturn_write"
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-16384",
    "PRAGMA wal_autocheckpoint=4000",
)


def open_engine(url: str) -> Engine:
    """An engine for ``url``; nothing is opened yet.

    :raises VerifierError: for anything but a SQLite file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise VerifierError("--db is not a database URL", hint="sqlite:////absolute/path/verifier.db") from None
    if parsed.get_backend_name() == "postgresql":
        raise VerifierError("PostgreSQL comes later: this version keeps its data in SQLite")
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise VerifierError("--db must name a SQLite file", hint="sqlite:////absolute/path/verifier.db")
    engine = create_engine(
        parsed,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        pool_size=8,
        max_overflow=_CONNECTIONS - 8,
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: Any, _record: object) -> None:
    # The driver's own transaction control is off: it would begin too late and in the wrong mode.
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(pragma)


def _on_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One read transaction: everything in it sees the same state."""
    with engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One write transaction, durable when the block is left without an error.

    :raises OutcomeUnknown: COMMIT itself failed.
    """
    with engine.connect() as plain:
        connection = plain.execution_options(**{_WRITE: True})
        transaction = connection.begin()
        try:
            yield connection
        except BaseException:
            transaction.rollback()
            raise
        try:
            transaction.commit()
        except DBAPIError as error:
            connection.invalidate()
            raise OutcomeUnknown(str(error.orig)) from error


class Many:
    """A statement that is compiled once and run for many rows, given as tuples in the order of ``names``.

    It goes to the driver as it is: a batch has thousands of rows, and building a dict for each costs more than
    the database does.
    """

    def __init__(self, engine: Engine, statement: ClauseElement, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        order: Sequence[str] = getattr(compiled, "positiontup", None) or ()
        if list(order) != list(names):
            raise ValueError(f"statement binds {order}, not {names}")
        self._sql = str(compiled)

    def run(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run for every row; returns how many rows of the table were changed."""
        if not rows:
            return 0
        return connection.exec_driver_sql(self._sql, list(rows)).rowcount
