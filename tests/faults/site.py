"""A small site for faults: agents on state folders of their own, and how they reach a verifier.

An `Agent` runs in this process, in simulated time, over the real HTTP client: a day of metering is a moment. It
differs from the program in one thing, that it doesn't wait between tries. A `Process` is the program itself.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from keyturn_agent.client import HttpVerifier
from keyturn_agent.clock import SimulatedClock, SystemRandom
from keyturn_agent.config import Config
from keyturn_agent.courier import Courier
from keyturn_agent.daemon import Daemon
from keyturn_agent.enroll import enroll
from keyturn_agent.enrolment import parse_trust
from keyturn_agent.last_words import roll_key
from keyturn_agent.ports import Answer, Clock
from keyturn_agent.recording import format_recording, parse_recording
from keyturn_agent.retention import Retention
from keyturn_agent.sources.replay import ReplaySource
from keyturn_agent.store import Store, read_enrolment
from keyturn_protocol.canonical import encode_record
from tests.agent.fakes import NoStop
from tests.agent.hosts import PatientClock
from tests.agent.samples import header, steady
from tests.support.paths import REPO
from tests.support.verifier import Verifier

RUN_S: Final = 60
"""Recorded seconds of one run."""


class Hasty(Courier):
    """A courier that hardly waits between tries; everything else is the real one."""

    def _pause(self, seconds: float, *, firm: bool = False) -> None:
        super()._pause(min(seconds, 0.02), firm=firm)


class Interrupted(HttpVerifier):
    """Something else happens between the first answer about the log's head and whatever the host does next."""

    def __init__(self, url: str, timeout_s: float, meanwhile: Callable[[], object]) -> None:
        super().__init__(url, timeout_s, "direct")
        self._meanwhile: Callable[[], object] | None = meanwhile

    def head(self, origin: str) -> Answer:
        answer = super().head(origin)
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return answer


class Agent:
    """One enrolled host. Each run is a boot of its own, later than the one before.

    :param url: where it believes its verifier to be; by default where it is.
    """

    def __init__(self, folder: Path, verifier: Verifier, url: str | None = None, *, timeout_s: float = 5) -> None:
        self.folder = folder
        self.timeout_s = timeout_s
        enroll(
            folder,
            url or verifier.client.url,
            verifier.join_token(),
            parse_trust(encode_record(verifier.trust), "trust.json"),
            "replay",
            verifier=HttpVerifier(verifier.client.url, 30, "direct"),
            clock=SimulatedClock(_now_us(), SystemRandom().uuid4()),
            random=SystemRandom(),
            patience_s=20,
        )

    def run(
        self,
        *,
        url: str | None = None,
        loops: int = 1,
        checkpoint_s: int = 10,
        drain_s: int = 20,
        meanwhile: Callable[[], object] | None = None,
        free: Callable[[Path], int] | None = None,
        real_s: Callable[[], int] = lambda: int(time.time()),
        **settings: Any,
    ) -> bool:
        """One run to the end of its recording; returns whether everything was receipted.

        :param url: another way to the verifier than the one it was enrolled with.
        :param meanwhile: what happens once it has asked for its log's head, see :class:`Interrupted`.
        :param free: what it is told about the room on its disk.
        """
        config = Config(
            jitter_s=0, drain_s=drain_s, checkpoint_us=checkpoint_s * 1_000_000, incarnation_s=0, **settings
        )

        def clock_from(newest_us: int) -> Clock:
            return PatientClock(max(_now_us(), newest_us), SystemRandom().uuid4())

        store, clock = Store.open(self.folder, clock_from, real_s())
        try:
            source = ReplaySource(recording(), clock.now().mono_us, loops=loops)
            url = url or store.enrolment.verifier
            direct = HttpVerifier(url, self.timeout_s, "direct")
            verifier = direct if meanwhile is None else Interrupted(url, self.timeout_s, meanwhile)
            pinned = store.pinned
            retention = Retention(config.keep_s, config.keep_bytes, real_s)
            courier = Hasty(verifier, pinned.receipt_key, pinned.log_key, SystemRandom(), 0, retention)
            assert isinstance(clock, PatientClock)
            clock.courier = courier
            daemon = Daemon(store, source, clock, courier, NoStop(), config, real_s)
            if free is not None:
                daemon._writer._free = free
            return daemon.run()
        finally:
            store.close()

    def roll(self, url: str) -> None:
        """``keyturn-agent key-roll``, while the agent is stopped."""
        way = HttpVerifier(url, self.timeout_s, "direct")
        roll_key(self.folder, lambda _: way, SystemRandom(), 20, int(time.time()))

    def copy(self, folder: Path) -> "Agent":
        """The same host once more: what a cloned disk or a snapshot is."""
        shutil.copytree(self.folder, folder)
        made = object.__new__(Agent)
        made.folder, made.timeout_s = folder, self.timeout_s
        return made

    def restore(self, snapshot: "Agent") -> None:
        """Put a copy back in place of what is here."""
        shutil.rmtree(self.folder)
        shutil.copytree(snapshot.folder, self.folder)

    @property
    def origin(self) -> str:
        enrolment, _ = read_enrolment(self.folder)
        return f"{enrolment.deployment}/node/{enrolment.node_id}/1"


def recording() -> Any:
    """One chip at work for a minute; an H100, which the chip table knows."""
    return parse_recording(format_recording(header(1, ("run:w",)), steady(RUN_S)))


def _now_us() -> int:
    return time.time_ns() // 1000


class Process:
    """``keyturn-agent run`` on a state folder, as processes that come and go, in real time unless told otherwise."""

    def __init__(self, folder: Path, *, wrap: Sequence[str] = (), **environ: str) -> None:
        self.folder = folder
        self.wrap = list(wrap)
        self.environ = environ
        self.log = folder.with_name(f"{folder.name}.log")
        self.recording = folder.with_name(f"{folder.name}.recording")
        self.recording.write_bytes(format_recording(header(1, ("run:w",)), steady(RUN_S)))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str | Path) -> "Process":
        line = [
            *self.wrap, sys.executable, "-m", "keyturn_agent", "run", "--state", str(self.folder),
            "--recording", str(self.recording), "--jitter", "0", *map(str, arguments),
        ]  # fmt: skip
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(line, env=environment() | self.environ, stdout=out, stderr=out)
        return self

    def wait(self, timeout_s: float = 120) -> int:
        assert self.process is not None
        return self.process.wait(timeout=timeout_s)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return self.log.read_text()


def environment() -> dict[str, str]:
    """The environment of an agent that is imported from this checkout."""
    folders = [str(REPO / part) for part in ("protocol", "agent")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
