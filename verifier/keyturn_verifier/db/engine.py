"""Connections and transactions, on SQLite and on PostgreSQL; a commit is on disk in both.

SQLite runs in WAL mode with ``synchronous=FULL``. A writer begins with ``BEGIN IMMEDIATE``, so that it waits for
its turn before it has read anything. On PostgreSQL a writer runs in READ COMMITTED and takes row locks in the
order of :mod:`keyturn_verifier.db.commit`; a reader sees one snapshot.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine, RootTransaction, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from keyturn_verifier.errors import OutcomeUnknown, VerifierError

BUSY_TIMEOUT_S: Final = 30
LOCK_TIMEOUT_S: Final = 15
STATEMENT_TIMEOUT_S: Final = 120
_IDLE_TIMEOUT_S: Final = 300
"""An export writes files while its snapshot is open; anything else is idle in a transaction for less."""
_CONNECTIONS: Final = 64
"""More than the web framework has threads (40), so that readers never keep the batching thread waiting."""
_WRITE: Final = "keyturn_write"
_WARNINGS: Final = "keyturn_warnings"
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-16384",
    "PRAGMA wal_autocheckpoint=4000",
)
_SETTINGS: Final = (
    f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'",
    f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'",
    f"SET idle_in_transaction_session_timeout = '{_IDLE_TIMEOUT_S}s'",
    "SET client_min_messages = warning",
    # Receipts promise durability: what a server leaves to chance is not left to it here, what is stronger stays.
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')",
)
_CONNECT: Final[dict[str, object]] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "application_name": "keyturn-verifier",
}
_SQLITE_HINT: Final = "sqlite:////absolute/path/verifier.db"
_POSTGRES: Final = "postgresql"


def parse_url(url: str) -> URL:
    """A database URL that this version knows what to do with.

    :raises VerifierError: for anything but a SQLite file or PostgreSQL. The URL is not quoted: it may hold a password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise VerifierError("not a database URL", hint=f"{_SQLITE_HINT}, or postgresql://…") from None
    if parsed.drivername in (_POSTGRES, "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise VerifierError("must name a SQLite file or a PostgreSQL database", hint=_SQLITE_HINT)
    return parsed


def open_engine(url: str) -> Engine:
    """An engine for ``url``; nothing is opened yet.

    :raises VerifierError: for a URL that :func:`parse_url` refuses.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == _POSTGRES:
        return _postgres(parsed)
    engine = create_engine(
        parsed,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        pool_size=8,
        max_overflow=_CONNECTIONS - 8,
    )
    event.listen(engine, "connect", _on_sqlite)
    event.listen(engine, "begin", _on_begin)
    return engine


def _postgres(url: URL) -> Engine:
    # What the URL says in its query goes before what is set here.
    arguments = {name: value for name, value in _CONNECT.items() if name not in url.query}
    engine = create_engine(
        url,
        connect_args=arguments,
        # A connection that went away with its server is replaced before it is used.
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=_CONNECTIONS - 8,
        isolation_level="READ COMMITTED",
    )
    event.listen(engine, "connect", _on_postgres)
    return engine


def is_postgres(engine: Engine | Connection) -> bool:
    """Which of the two databases this is."""
    return engine.dialect.name == _POSTGRES


def _on_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transaction control is off: it would begin too late and in the wrong mode.
    connection.isolation_level = None
    try:
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except UnicodeDecodeError as error:
        # SQLite names what it couldn't read in a damaged schema, byte for byte.
        raise sqlite3.DatabaseError(f"malformed database schema: {error.object!r}") from None


def _on_postgres(connection: Any, record: Any) -> None:
    warnings: list[str] = []
    record.info[_WARNINGS] = warnings

    def notice(diagnostic: Any) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(str(diagnostic.message_primary))

    connection.add_notice_handler(notice)
    connection.autocommit = True
    for setting in _SETTINGS:
        connection.execute(setting)
    connection.autocommit = False


def _on_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One read transaction: everything in it sees the same state."""
    with engine.connect() as plain:
        connection = plain
        if is_postgres(engine):
            connection = plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One write transaction, durable when the block is left without an error.

    :raises OutcomeUnknown: COMMIT itself failed, and the database did not say that it rolled back.
    """
    with engine.connect() as plain:
        connection = plain.execution_options(**{_WRITE: True})
        transaction = connection.begin()
        try:
            yield connection
            if is_postgres(engine):
                # A COMMIT that waits for a standby must not be cut: it would say "committed" for what is not there.
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        except BaseException:
            _undo(connection, transaction)
            raise
        _commit(connection, transaction)


def _undo(connection: Connection, transaction: RootTransaction) -> None:
    try:
        transaction.rollback()
    except DBAPIError:
        # The connection is gone, and the transaction with it.
        connection.invalidate()


def _commit(connection: Connection, transaction: RootTransaction) -> None:
    warnings: list[str] = connection.info.get(_WARNINGS, [])
    warnings.clear()
    try:
        transaction.commit()
    except DBAPIError as error:
        connection.invalidate()
        if rolled_back(error):
            raise
        raise OutcomeUnknown(str(error.orig)) from error
    if warnings:
        # "canceling wait for synchronous replication": committed here, and perhaps on no standby.
        raise OutcomeUnknown(warnings[0])


def rolled_back(error: BaseException) -> bool:
    """Whether the database rolled a transaction back that may go well when it is done again.

    SQLSTATE class 40: a deadlock or a serialization failure.
    """
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(error, DBAPIError) and isinstance(state, str) and state.startswith("40")


_AWAY_SQLITE: Final = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
    sqlite3.SQLITE_CANTOPEN,
}
_AWAY_POSTGRES: Final = ("08", "40", "53", "55", "57", "58")
"""SQLSTATE classes: no connection, rolled back, short of something, a lock not to be had, stopped, its disk."""


def away(error: DBAPIError) -> bool:
    """Whether the database couldn't answer just now, which says nothing of what is in it."""
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _AWAY_SQLITE
    state = getattr(error.orig, "sqlstate", None)
    # Who got no connection, or lost it, has no SQLSTATE.
    return isinstance(error, OperationalError) and (state is None or state[:2] in _AWAY_POSTGRES)
