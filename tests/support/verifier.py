"""A verifier for tests: the real one, on a real database, over real HTTP on 127.0.0.1."""

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import uvicorn
from sqlalchemy import Connection, Row, event, select, text
from sqlmodel import SQLModel

from keyturn_protocol.api import Trust
from keyturn_protocol.audit import Report, audit
from keyturn_protocol.bundle import parse_trust
from keyturn_protocol.chips import chip_table
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Deployment
from keyturn_verifier import cli, config, keyfiles, service, state, tokens, translog
from keyturn_verifier.clock import Clock, wall_clock
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.db.schema import upgrade
from keyturn_verifier.db.tables import log, segment
from keyturn_verifier.export import export
from keyturn_verifier.server import bind, configure
from tests.support.node import Client, Node
from tests.support.paths import REPO

DEPLOYMENT = Deployment("keyturn.example.org")
DAY_US = 86_400_000_000
Database = Callable[[], str | None]
"""Makes a new database; None is a SQLite file inside of the state directory."""
UNCOMPARED = {
    "tree_checkpoint",
    "ledger_snapshot",
    *(name for name in SQLModel.metadata.tables if name.startswith("rollup_")),
}
"""Published, or brought up to date, by clocks of their own."""


_said: dict[str, list[tuple[str, Any]]] = {}
"""What the migrations said to an empty database, by dialect."""


def _upgrade(connection: Connection) -> None:
    """The migrations of an empty database: run once in a process, and after that repeated word by word."""
    known = _said.get(connection.dialect.name)
    if known is not None:
        for statement, parameters in known:
            connection.exec_driver_sql(statement, parameters)
        return
    said: list[tuple[str, Any]] = []

    def heard(_c: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: bool) -> None:
        said.append((statement, parameters or None))

    event.listen(connection, "before_cursor_execute", heard)
    upgrade(connection)
    event.remove(connection, "before_cursor_execute", heard)
    _said[connection.dialect.name] = said


class Verifier:
    """A verifier that serves from a thread of this process. Use it as a context.

    :param db: where a new one keeps its data. A second one of the same folder is a replica.
    """

    def __init__(self, folder: Path, *, db: Database = lambda: None, clock: Clock = wall_clock, **limits: int) -> None:
        self.state = folder / "state"
        if not self.state.exists():
            with patch.object(state, "upgrade", _upgrade):
                state.create(self.state, DEPLOYMENT, db(), clock)
        settings = config.load(self.state)
        # Sums are brought up to date by the tests that are about it, and by processes of their own.
        limits = {"rollup_interval_ms": 10**9} | limits
        self.settings = replace(settings, limits=replace(settings.limits, **limits))
        self.clock = clock
        self.keys = keyfiles.load(self.state, DEPLOYMENT)
        self.engine = state.open_database(self.settings, migrating=True)
        self.service = service.build(self.settings, self.engine, self.keys, clock)
        self._listener = bind("127.0.0.1", 0)
        self._server = uvicorn.Server(configure(self.service))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self.client = Client(f"http://127.0.0.1:{self._listener.getsockname()[1]}")

    def __enter__(self) -> "Verifier":
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise AssertionError("the server did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.service.watch.close()
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
        self.engine.dispose()

    @property
    def trust(self) -> Trust:
        return parse_trust((self.state / state.TRUST).read_bytes())

    def join_token(self, hosts: int = 1, *, organisation: str = "acme", expires_us: int | None = None) -> str:
        now_us = self.clock()
        with writing(self.engine) as connection:
            return tokens.create_join(
                connection, organisation, "fra1", hosts, now_us, now_us + DAY_US if expires_us is None else expires_us
            )

    def reader_token(self, role: tokens.Role = "auditor") -> str:
        now_us = self.clock()
        with writing(self.engine) as connection:
            return tokens.create_reader(connection, role, now_us, now_us + DAY_US)

    def joined(self, *, seed: int | None = None) -> Node:
        """A new node that was announced."""
        node = Node.new(DEPLOYMENT, seed=seed)
        answer = self.client.join(node, self.join_token())
        assert answer.status == 200, answer
        return node

    def enrolled(self, *, chips: int = 1, at: int = 0, usage: int = 0, seed: int | None = None) -> Node:
        """A new node whose first segment was receipted; ``at``: the number of its first chip."""
        node = self.joined(seed=seed)
        answer = self.client.post(node.first(chips=chips, at=at, usage=usage))
        assert answer.status == 200, answer
        return node

    def dump(self) -> dict[str, list[tuple[object, ...]]]:
        """Everything that is stored, to compare before and after."""
        with reading(self.engine) as connection:
            return {
                name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
                for name, table in SQLModel.metadata.tables.items()
                if name not in UNCOMPARED
            }

    def dump_checkpoints(self) -> list[tuple[int, bytes]]:
        """Every published checkpoint of the verifier's log, by size."""
        with reading(self.engine) as connection:
            rows = connection.execute(text("SELECT size, note FROM tree_checkpoint ORDER BY size"))
            return [(row.size, row.note) for row in rows]

    def count(self, table: str) -> int:
        return len(self.dump()[table])

    def receipts(self, node_id: str) -> list[Row[tuple[str, int, int, bytes]]]:
        """Origin, start, end and receipt of every stored segment of a node."""
        columns = log.c.origin, segment.c.start, segment.c.end, segment.c.receipt
        query = select(*columns).join(segment, segment.c.log_id == log.c.id).where(log.c.node_id == node_id)
        with reading(self.engine) as connection:
            return list(connection.execute(query))

    def leaves(self) -> list[bytes]:
        """All leaves of the verifier's log."""
        with reading(self.engine) as connection:
            return translog.leaves(connection, 0, translog.head(connection).size)

    @contextmanager
    def write_lock(self) -> Iterator[Connection]:
        """Hold the lock that every write takes: what is posted meanwhile waits, and then forms one batch."""
        with writing(self.engine) as connection:
            translog.lock(connection)
            yield connection

    def export(self, out: Path, case: str | None = None) -> Path:
        return export(self.settings, self.engine, out, case, self.clock)

    def audit(self, bundle: Path) -> Report:
        """The auditor's word on a bundle, with this verifier's keys pinned."""
        return audit(FolderReader(bundle), self.trust, chip_table())


class FolderReader:
    """A bundle in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[str]:
        return [str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()]

    def read(self, path: str) -> bytes:
        try:
            return (self.folder / path).read_bytes()
        except OSError as error:
            raise ProtocolError(Code.BAD_BUNDLE, f"{path}: {error.strerror}") from None


def environment() -> dict[str, str]:
    """The environment of a subprocess that imports from this checkout."""
    folders = [str(REPO / part) for part in ("protocol", "verifier")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders)}


def command(*arguments: str | Path) -> list[str]:
    """The command line of ``keyturn-verifier``."""
    return [sys.executable, "-m", "keyturn_verifier", *map(str, arguments)]


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run ``keyturn-verifier`` to its end."""
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def call(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """:func:`run` in this process, many times as fast."""
    out, err = io.StringIO(), io.StringIO()
    line = [str(argument) for argument in arguments]
    with redirect_stdout(out), redirect_stderr(err):
        status = cli.run(line)
    return subprocess.CompletedProcess(line, status, out.getvalue(), err.getvalue())


class Served:
    """``keyturn-verifier serve`` as a process of its own. ``name`` tells replicas of one folder apart."""

    def __init__(self, folder: Path, name: str = "") -> None:
        self.state = folder
        self._port_file = folder.with_name(f"{folder.name}{name}.port")
        self._log = folder.with_name(f"{folder.name}{name}.log")

    def start(self) -> Client:
        """Start and wait until it is ready."""
        self._port_file.unlink(missing_ok=True)
        arguments = command("serve", "--state", self.state, "--port", "0", "--port-file", self._port_file)
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(arguments, env=environment(), stderr=out)
        while not self._port_file.exists():
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.01)
        return Client(f"http://127.0.0.1:{self._port_file.read_text().strip()}")

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=60)

    def log(self) -> str:
        return self._log.read_text()
