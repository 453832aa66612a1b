"""The state directory: made whole or not at all.

verifier.toml    configuration; the database's URL, unless it is inside of this directory
log.key          signs checkpoints of the verifier's log; nothing else
receipt.key      signs receipts; nothing else
trust.json       both public keys, to hand out by a way that isn't this server
verifier.db      the database, unless --db names another one
serve.lock       held by the one process that serves a SQLite file
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, inspect, make_url

from keyturn_protocol.bundle import parse_trust
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.ids import Deployment
from keyturn_protocol.leaves import Init, InitBody, parse_leaf
from keyturn_verifier import config, keyfiles, translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.db.engine import is_postgres, open_engine, parse_url, reading, writing
from keyturn_verifier.db.schema import check, migrate, upgrade
from keyturn_verifier.errors import OutcomeUnknown, UsageError, VerifierError

TRUST: Final = "trust.json"
LOCK: Final = "serve.lock"
DAMAGED: Final = "restore it from a backup; agents send again what they hold receipts for"


def create(state: Path, name: Deployment, db: str | None, clock: Clock) -> Path:
    """Make a new verifier: keys, database, first leaf, first checkpoint. Returns the path of ``trust.json``.

    Everything is made in a folder beside ``state`` and renamed into place at the end. A crash before that leaves
    a folder ``.keyturn-init-…`` that nothing refers to.

    :raises UsageError: ``db`` names no database that this version knows, or no absolute path.
    :raises VerifierError: ``state`` or the database is there already.
    """
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise VerifierError(f"{state} is there already", hint="one state directory is one verifier, made once")
    on_server = db is not None and _kind(db) == "postgresql"
    target = None if db is None or on_server else _database_file(db)
    state.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".keyturn-init-", dir=state.parent))  # mode 0700
    try:
        keys = keyfiles.generate(name)
        keyfiles.write(made, keys)
        _write(made / config.FILE, config.format_config(name, db).encode())
        (made / config.FILE).chmod(0o600)  # the URL may hold a password
        _write(made / TRUST, encode_record(keys.trust(name)))
        if db is not None and on_server:
            _create_on_server(db, name, keys, clock, made, state)
        else:
            _create_file(name, keys, clock, made, state, target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return state / TRUST


def _create_file(
    name: Deployment, keys: keyfiles.Keys, clock: Clock, made: Path, state: Path, target: Path | None
) -> None:
    """Fill a database file and move it, then the folder, into place."""
    path = made / config.DATABASE
    engine = open_engine(f"sqlite:///{path}")
    placed = False
    try:
        with writing(engine) as connection:
            _fill(connection, name, keys, clock)
    finally:
        engine.dispose()
    path.chmod(0o600)
    try:
        if target is not None:
            path.rename(target)
            placed = True
        _place(made, state)
    except BaseException:
        if target is not None and placed:
            target.unlink(missing_ok=True)
        raise


def _create_on_server(db: str, name: Deployment, keys: keyfiles.Keys, clock: Clock, made: Path, state: Path) -> None:
    """Fill a database on a server. The keys are in place before the COMMIT: they are of no use without it, and it
    would be of none without them.
    """
    engine = open_engine(db)
    try:
        with writing(engine) as connection:
            if inspect(connection).get_table_names():
                raise VerifierError("the database is not empty", hint="one database is one verifier, made once")
            _fill(connection, name, keys, clock)
            _place(made, state)
    except OutcomeUnknown:
        raise
    except BaseException:
        # Nothing was committed, so these keys have signed nothing that is kept.
        if not made.exists():
            shutil.rmtree(state, ignore_errors=True)
        raise
    finally:
        engine.dispose()


def _place(made: Path, state: Path) -> None:
    _sync(made)
    made.rename(state)  # after the next line, all of it survives
    _sync(state.parent)


def _fill(connection: Connection, name: Deployment, keys: keyfiles.Keys, clock: Clock) -> None:
    upgrade(connection)
    trust = keys.trust(name)
    body = InitBody(deployment=name, log_vkey=trust.log_vkey, receipt_vkey=trust.receipt_vkey)
    now_us = clock()
    translog.create(connection, body, now_us)
    translog.publish(connection, keys.log, now_us)


def _kind(db: str) -> str:
    try:
        return parse_url(db).get_backend_name()
    except VerifierError as error:
        raise UsageError(f"--db: {error}", hint=error.hint) from None


def _database_file(db: str) -> Path:
    """The file that a database URL names: absolute, not there yet, in a folder on a disk that a rename can reach."""
    path = Path(make_url(db).database or "")
    if not path.is_absolute():
        raise UsageError("--db: must be an absolute path", hint="sqlite:////absolute/path/verifier.db")
    if path.exists():
        raise VerifierError(f"{path} is there already")
    if not path.parent.is_dir():
        raise UsageError(f"--db: {path.parent} is not a folder")
    return path


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_database(settings: config.Config, *, migrating: bool = False) -> Engine:
    """An engine for the verifier's database, at the schema of this version.

    :param migrating: bring an older database to it; otherwise it is refused.
    :raises VerifierError: there is no such database, nothing is made in its place; or it is another verifier's.
    """
    engine = open_engine(settings.db)
    try:
        path = None if is_postgres(engine) else engine.url.database
        if path is not None and not Path(path).is_file():
            raise VerifierError(f"the database {path} is not there", hint=DAMAGED)
        if path is not None and not Path(path).stat().st_size:
            # Migrating it would make a database that never was this verifier's.
            raise VerifierError(f"the database {path} is empty, and was not when it was made", hint=DAMAGED)
        if migrating:
            migrate(engine)
        else:
            check(engine)
        with reading(engine) as connection:
            _is_ours(connection, settings)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def opened(settings: config.Config) -> Iterator[Engine]:
    """:func:`open_database` for as long as a command takes."""
    engine = open_database(settings)
    try:
        yield engine
    finally:
        engine.dispose()


def _is_ours(connection: Connection, settings: config.Config) -> None:
    """That the keys beside the configuration are those that the database began with."""
    trust = parse_trust((settings.state / TRUST).read_bytes())
    first = translog.leaves(connection, 0, 1)
    leaf = parse_leaf(first[0]) if first else None
    if not isinstance(leaf, Init) or (leaf.body.log_vkey, leaf.body.receipt_vkey) != (
        trust.log_vkey,
        trust.receipt_vkey,
    ):
        raise VerifierError(
            f"the database is not the one of {settings.state}: it began with other keys",
            hint="every replica has the same keys, verifier.toml and trust.json",
        )


@contextmanager
def serving(settings: config.Config) -> Iterator[None]:
    """Hold the lock of the one serving process of a SQLite file; it goes with the process, however that ends.

    On PostgreSQL nothing is held: any number of replicas serve one database, also out of one folder.

    :raises VerifierError: another process holds it.
    """
    if parse_url(settings.db).get_backend_name() == "postgresql":
        yield
        return
    with (settings.state / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VerifierError(
                f"another process serves {settings.state}",
                hint="SQLite has one serving process; stop the other one first",
            ) from None
        yield
