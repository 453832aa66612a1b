"""The state directory: made whole or not at all.

verifier.toml    configuration
log.key          signs checkpoints of the verifier's log; nothing else
receipt.key      signs receipts; nothing else
trust.json       both public keys, to hand out by a way that isn't this server
verifier.db      the database, unless --db names another one
serve.lock       held by the one serving process
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, make_url

from keyturn_protocol.canonical import encode_record
from keyturn_protocol.ids import Deployment
from keyturn_protocol.leaves import InitBody
from keyturn_verifier import config, keyfiles, translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.db.engine import open_engine, writing
from keyturn_verifier.db.schema import check, migrate
from keyturn_verifier.errors import VerifierError

TRUST: Final = "trust.json"
LOCK: Final = "serve.lock"


def create(state: Path, name: Deployment, db: str | None, clock: Clock) -> Path:
    """Make a new verifier: keys, database, first leaf, first checkpoint. Returns the path of ``trust.json``.

    Everything is made in a folder beside ``state`` and renamed into place at the end. A crash before that leaves
    a folder ``.keyturn-init-…`` that nothing refers to.

    :raises VerifierError: ``state`` or the database is there already.
    """
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise VerifierError(f"{state} is there already", hint="one state directory is one verifier, made once")
    target = None if db is None else _database_file(db)
    state.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".keyturn-init-", dir=state.parent))  # mode 0700
    placed = False
    try:
        keys = keyfiles.generate(name)
        keyfiles.write(made, keys)
        _write(made / config.FILE, config.format_config(name, db).encode())
        _write(made / TRUST, encode_record(keys.trust(name)))
        _fill(made / config.DATABASE, name, keys, clock)
        if target is not None:
            (made / config.DATABASE).rename(target)
            placed = True
        _sync(made)
        made.rename(state)  # after the next line, all of it survives
        _sync(state.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        if target is not None and placed:
            target.unlink(missing_ok=True)
        raise
    return state / TRUST


def _fill(path: Path, name: Deployment, keys: keyfiles.Keys, clock: Clock) -> None:
    engine = open_engine(f"sqlite:///{path}")
    try:
        migrate(engine)
        trust = keys.trust(name)
        body = InitBody(deployment=name, log_vkey=trust.log_vkey, receipt_vkey=trust.receipt_vkey)
        with writing(engine) as connection:
            translog.create(connection, body, clock())
            translog.publish(connection, keys.log)
    finally:
        engine.dispose()
    path.chmod(0o600)


def _database_file(db: str) -> Path:
    """The file that a database URL names: absolute, not there yet, in a folder on a disk that a rename can reach."""
    open_engine(db).dispose()
    path = Path(make_url(db).database or "")
    if not path.is_absolute():
        raise VerifierError("--db needs an absolute path", hint="sqlite:////absolute/path/verifier.db")
    if path.exists():
        raise VerifierError(f"{path} is there already")
    if not path.parent.is_dir():
        raise VerifierError(f"{path.parent} is not a folder")
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
    :raises VerifierError: there is no such database; nothing is made in its place.
    """
    engine = open_engine(settings.db)
    path = make_url(settings.db).database
    if path is None or not Path(path).is_file():
        raise VerifierError(f"the database {path} is not there")
    if migrating:
        migrate(engine)
    else:
        check(engine)
    return engine


@contextmanager
def serving(state: Path) -> Iterator[None]:
    """Hold the lock of the one serving process; it goes with the process, however that ends.

    :raises VerifierError: another process holds it.
    """
    with (state / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VerifierError(
                f"another process serves {state}", hint="SQLite has one serving process; stop the other one first"
            ) from None
        yield
