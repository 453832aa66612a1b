"""One host under the start switch for fault injection: an agent, a gate that enforces, and a run. Either program may be
killed at any moment; it is started again, and what must hold meanwhile is looked at all the time.
"""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from keyturn_agent.recording import read_recording
from keyturn_agent.status import read_status
from keyturn_agent.switch import lease_files
from keyturn_agent.switch.lease_state import Book
from keyturn_agent.switch.pin import Seen
from keyturn_gate.server import ask
from keyturn_protocol.canonical import decode
from keyturn_protocol.ids import parse_origin
from tests.agent.leasing import FIXTURE
from tests.agent.nvml_stub.stub import Control, Script
from tests.faults.after import origin_of, receipts
from tests.faults.leased_site import BUDGET, Link, Site
from tests.faults.warm import Running

Program = Literal["agent", "gate"]

PROHIBITED: Final = 2
"""``NVML_COMPUTEMODE_PROHIBITED``."""
PATIENCE_S: Final = 60.0
LOCKED_WITHIN_S: Final = 10.0
"""Of the end of a grant, or of the start of a gate."""
_LOOK_S: Final = 0.05
_COMMAND: Final = """\
exec >> said
echo $$ > pid
for signal in HUP INT QUIT USR1 USR2; do trap "echo $signal" $signal; done
trap 'echo TERM; exit 9' TERM
echo begun
while [ ! -e end ]; do sleep 0.1; done
echo ended
"""
"""A run that writes down what it is told, and ends when it is let."""


@dataclass
class Heard:
    """What a host knew of a suspension, by its files: it may learn more and forget nothing."""

    epoch: int = 0
    stop_us: int | None = None

    @property
    def any(self) -> bool:
        return self.epoch > 0 or self.stop_us is not None


class Host:
    """One host with a run, from its enrolment to the last receipt."""

    def __init__(self, site: Site, number: int) -> None:
        self.site = site
        self.folder = site.folder / f"h{number}"
        self.folder.mkdir()
        self.number = number
        self.run: str | None = None
        self.chip = f"GPU-{number:08x}-0000-4000-8000-000000000000"
        self.link = Link(site.verifier.client.url)
        self.link.__enter__()
        self.agent: Running | None = None
        self.gate: Running | None = None
        self.exec: Running | None = None
        self.killed: list[Program] = []
        self.heard = Heard()
        self.suspended = self.released = False
        self.stop_by_us = 0
        self.expect: frozenset[str] = frozenset()
        """Findings that what was done to it raises."""
        self.leases: dict[str, bytes] = {}
        """By hash: all that it ever kept."""
        self.receipts: dict[tuple[str, int], bytes] = {}
        self._looked = 0.0
        self._open_since: float | None = None
        self._make()

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def _make(self) -> None:
        (own,) = read_recording(FIXTURE).header.chips
        (self.folder / "recording.jsonl").write_text(FIXTURE.read_text().replace(own.uuid, self.chip))
        Script().gpu(0, uuid=self.chip).write(self.folder / "script.txt")
        self.control = Control(self.folder / "control")
        (self.folder / "agent.toml").write_text(
            f'[switch]\nexec_socket = "{self.folder}/exec.sock"\nreport_s = 1\n'
            f'gate = "compute_mode"\ngate_socket = "{self.folder}/gate.sock"\n'
            "[upload]\ninterval_s = 300\njitter_s = 0\nstop_s = 20\n[usage]\ninterval_s = 1\n"
        )
        ended = self.site.agent.run(
            self.folder, "enroll", "--state", self.state, "--verifier", self.link.url,
            "--root", f"sha256:{self.site.office.root}", "--recording", self.folder / "recording.jsonl",
            env={**self.env, "KEYTURN_JOIN_TOKEN": self.site.token},
        )  # fmt: skip
        assert ended.status == 0, ended.err
        self.node = parse_origin(f"{origin_of(self.state)}/1").node_id

    # -- programs

    @property
    def env(self) -> dict[str, str]:
        return {
            # The verifier is met without TLS.
            "SSL_CERT_FILE": os.devnull,
            "SSL_CERT_DIR": "/nonexistent",
            "KEYTURN_NVML_STUB": str(self.folder / "script.txt"),
            "KEYTURN_NVML_CONTROL": str(self.folder / "control"),
        }

    def start(self, program: Program) -> Running:
        """Start one of them, and wait until it is there."""
        folder = self.folder
        if program == "gate":
            self.gate = running = self.site.gate.start(
                folder, "serve", "--driver", "compute-mode", "--socket", folder / "gate.sock",
                "--agent", str(os.geteuid()), "--state", folder / "gate", "--notices", folder / "notices", env=self.env,
            )  # fmt: skip
            there: Callable[[], object] = self.gate_answers
        else:
            before = self._listens()
            self.agent = running = self.site.agent.start(
                folder, "run", "--state", self.state, "--config", folder / "agent.toml",
                "--recording", folder / "recording.jsonl", "--loop", "1000", "--on-lease", env=self.env,
            )  # fmt: skip

            def there() -> object:
                return self._listens() not in (None, before)

        deadline = time.monotonic() + PATIENCE_S
        while not there():
            assert running.alive(), f"the {program} ended: {running.err()}"
            assert time.monotonic() < deadline, f"the {program} doesn't come: {running.err()}"
            time.sleep(0.01)
        return running

    def _listens(self) -> int | None:
        try:
            return (self.folder / "exec.sock").stat().st_ino
        except FileNotFoundError:
            return None

    def gate_answers(self) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = json.loads(ask(self.folder / "gate.sock", b'{"after":0,"v":1,"verb":"status"}', 5))
        except Exception:
            return None
        return answer

    def begin(self) -> None:
        """``keyturn-agent exec``: asks until the command has begun; whoever was killed is started again meanwhile."""
        what = ["--run", self.run] if self.run is not None else ["--lineage", f"line-{self.number}"]

        def begun() -> bool:
            if "begun" in self.words():
                return True
            if self.exec is None or not self.exec.alive():
                if self.exec is not None:
                    self.exec_ended()
                    time.sleep(0.2)
                self.exec = self.site.agent.start(
                    self.folder, "exec", "--socket", self.folder / "exec.sock", *what,
                    "--", "sh", "-c", f"cd {self.folder}\n{_COMMAND}", env=self.env,
                )  # fmt: skip
            return False

        self.until(begun, "the command never began")

    def exec_ended(self) -> None:
        assert self.exec is not None
        ended, self.exec = self.exec.wait(), None
        assert "Traceback" not in ended.err, ended.err

    def words(self) -> list[str]:
        """What the run wrote: that it began, what it was told, that it ended."""
        try:
            return (self.folder / "said").read_text().split()
        except FileNotFoundError:
            return []

    # -- what must hold at every moment

    def until(self, what: Callable[[], object], why: str) -> None:
        """Wait for something, starting again what was killed, and looking at what must hold."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.look()
            if what():
                return
            assert time.monotonic() < deadline, f"{why}\n{self.said()}"
            time.sleep(_LOOK_S)

    def look(self) -> None:
        """Start what was killed again, and check what must hold at every moment."""
        for program in ("gate", "agent"):
            running = self.gate if program == "gate" else self.agent
            if running is None or running.alive():
                continue
            ended = running.wait()
            assert ended.killed, f"the {program} ended with {ended.status}: {ended.err}"
            self.killed.append(program)
            self.remember()
            # What this host knows it has to keep to alone. Of two suspensions the first alone stops a run much later.
            knows = self.heard.any and (self.heard.stop_us or 0) <= self.stop_by_us
            self.link.down = self.link.down or (program == "agent" and knows)
            self.start(program)
        self.remember()
        signals = [word for word in self.words() if word not in ("begun", "ended")]
        assert not signals or self.suspended, f"the run was told {signals}, and nobody had said so\n{self.said()}"
        now = time.monotonic()
        unlocked = self.control.mode(0) != PROHIBITED and not self.released and not self.granted()
        self._open_since = (self._open_since or now) if unlocked else None
        assert self._open_since is None or now - self._open_since < LOCKED_WITHIN_S, (
            f"a chip is open without a lease\n{self.said()}"
        )
        if self.run is not None and now - self._looked > 1:
            self._looked = now
            committed = self.site.committed_tflop(self.run)
            assert committed <= BUDGET + 1, f"{committed} TFLOP are given out, of {BUDGET}"

    def granted(self) -> bool:
        """Whether the gate keeps a grant."""
        try:
            return bool(json.loads((self.folder / "gate/gate.json").read_bytes())["grants"])
        except FileNotFoundError:
            return False

    def book(self) -> Book:
        return lease_files.load(self.state)

    def remember(self) -> None:
        """That nothing was forgotten of a suspension, and which leases there are."""
        for job in self.book().jobs:
            said = None if job.bounds is None else job.bounds.said
            known = self.heard.stop_us
            assert known is None or said is not None, "a stop that was heard is gone from leases.json"
            if said is not None:
                assert known is None or said.at_us <= known, f"a stop was put off: from {known} to {said.at_us}"
                self.heard.stop_us = said.at_us
        seen: Seen = decode((self.state / "root.json").read_bytes(), Seen, limit=1 << 20)
        epoch = next((one.epoch for one in seen.runs if one.run == self.run), 0)
        assert epoch >= self.heard.epoch, f"an epoch that was seen is forgotten: {self.heard.epoch}, now {epoch}"
        self.heard.epoch = epoch
        for path in (self.state / "leases").glob("*"):
            if not path.name.endswith(".tmp"):
                self.leases[path.name] = path.read_bytes()

    def said(self) -> str:
        programs = {"agent": self.agent, "gate": self.gate, "exec": self.exec}
        return "\n".join(f"{name}: {one.err()[-1500:]}" for name, one in programs.items() if one is not None)

    # -- the end

    def returned(self) -> bool:
        """Whether the lease is given back: no job, no grant, and the chip is locked."""
        answer = self.gate_answers()
        return (
            not self.book().jobs
            and answer is not None
            and answer["grants"] == []
            and self.control.mode(0) == PROHIBITED
        )

    def settle(self) -> None:
        """Let it come to rest, send everything, and end the programs."""
        self.until(self.returned, "the lease is never given back")
        if self.exec is not None:
            self.until(lambda: not self.exec.alive(), "exec doesn't end")  # type: ignore[union-attr]
            self.exec_ended()
        if self.link.down:
            # An agent that was started again asks at once, and one that waits after many failures doesn't.
            self.link.down = False
            self.stop("agent")
            self.start("agent")
        self.until(lambda: read_status(self.state).spool_segments == 0, "not all is receipted")
        self.stop("agent")
        self.stop("gate")
        self.remember()
        assert read_status(self.state).spool_segments == 0, "the last words are not receipted"
        self.receipts = receipts(self.state)

    def traced(self, program: Program, options: Sequence[str]) -> AbstractContextManager[None]:
        """strace on one of them."""
        running = self.gate if program == "gate" else self.agent
        assert running is not None
        return running.traced(options)

    def stop(self, program: Program) -> None:
        """The orderly end of one of them."""
        running = self.gate if program == "gate" else self.agent
        assert running is not None
        running.signal(15)
        ended = running.wait()
        assert (ended.status, "Traceback" in ended.err) == (0, False), ended.err
        if program == "gate":
            self.gate = None
        else:
            self.agent = None

    def close(self) -> None:
        """End what is still there."""
        (self.folder / "end").touch()
        for running in (self.exec, self.agent, self.gate):
            if running is not None and running.alive():
                running.signal(9)
                running.wait()
        with contextlib.suppress(OSError, ValueError):
            # A run that nobody stopped; its folder goes, so that it would never see its end.
            os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
        self.link.__exit__()
        self.control.close()
        shutil.rmtree(self.folder)
        for path in self.site.folder.glob(f"{self.folder.name}.*"):
            path.unlink()


@contextmanager
def host_of(site: Site) -> Iterator[Host]:
    """A host whose processes are gone at the end."""
    host = Host(site, site.next_host())
    try:
        yield host
    finally:
        host.close()
