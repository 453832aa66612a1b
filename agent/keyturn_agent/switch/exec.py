"""``keyturn-agent exec``: asks the agent for a lease, starts the command when it has one, and says why it stops.

The command's exit status is ours. What stops it is the gate, or, where that only observes and the run wants to obey
all the same, this process. If the agent goes away meanwhile, the run goes on: its lease and the gate's timers hold. An
agent that is started again is told who we are, so that it is heard again.
"""

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from keyturn_agent.errors import RefusedError, UnreachableError, UsageError
from keyturn_agent.switch.asking import (
    LINE_BYTES,
    Ask,
    Attach,
    Ended,
    Leased,
    Over,
    Refused,
    Stopping,
    ToExec,
    Told,
    line,
    to_exec,
)
from keyturn_agent.switch.scope import Place, places
from keyturn_agent.switch.spec import describe
from keyturn_agent.switch.stub import TOKEN
from keyturn_agent.words import count
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.values import SpecPart

_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_AGAIN_S: Final = 0.25
"""Between two looks for an agent that went away."""
_KILL_S: Final = 60.0
"""Between SIGTERM and SIGKILL, where no agent said how long."""
_DAY_S: Final = 86_400.0
_LAST_WORDS_S: Final = 20.0
"""How long the agent's last report is waited for, once the command has ended."""


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be done."""

    socket: Path
    ask: Ask
    files: Mapping[SpecPart, Path]
    argv: Sequence[str]
    wait_s: int | None
    obey: bool


def execute(command: Command) -> int:
    """Run it; returns its exit status.

    :raises RefusedError: it wasn't started. :raises UnreachableError: no lease came in time, or no agent is there.
    """
    fds = [_open(part, path) for part, path in command.files.items()]
    try:
        agent = _connect(command.socket)
        try:
            socket.send_fds(agent, [line(command.ask)[:1]], fds) if fds else agent.sendall(line(command.ask)[:1])
            agent.sendall(line(command.ask)[1:])
        except OSError as error:
            raise UnreachableError("no_agent", f"the agent doesn't listen at {command.socket}: {error}") from None
    finally:
        for fd in fds:
            os.close(fd)
    with contextlib.closing(_Session(command, agent)) as session:
        return session.run()


@dataclass(slots=True)
class _Stop:
    """A stop that was announced (``time.monotonic``)."""

    at: float
    kill_at: float
    why: str
    enforced: bool
    termed: bool = False


@dataclass(slots=True)
class _Session:
    command: Command
    agent: socket.socket | None
    data: bytes = b""
    child: "subprocess.Popen[bytes] | None" = None
    place: Place = field(default_factory=Place)
    job: str = ""
    link: Literal["there", "away", "lost"] = "there"
    """``away``: the agent went away, and the next one is looked for. ``lost``: that one doesn't know the command."""
    stop: _Stop | None = None
    over: Over | None = None
    early: list[int] = field(default_factory=list)
    """Signals for a command that wasn't there yet."""
    refused: bool = False
    """After that the agent says nothing more."""

    def run(self) -> int:
        leased = self._wait_for_lease()
        _say(f"lease {leased.lease[:16]} on {count(len(leased.chips), 'chip')} · {describe(leased.spec)}")
        with _signals(self):
            self._start(leased)
            status = self._attend()
        try:
            self._last_words(status)
        except KeyboardInterrupt:
            _say("interrupted; the agent's last report is in the log")
        return status

    def close(self) -> None:
        if self.agent is not None:
            self.agent.close()
        if self.place.group is not None:
            with contextlib.suppress(OSError):
                self.place.group.rmdir()

    # -- before it starts

    def _wait_for_lease(self) -> Leased:
        deadline = None if self.command.wait_s is None else time.monotonic() + self.command.wait_s
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise UnreachableError("no_lease", f"no lease within {self.command.wait_s} s", hint="--wait")
            for message in self._hear(left):
                match message:
                    case Leased():
                        return message
                    case Told(text=text):
                        _say(text)
                    case Refused():
                        raise RefusedError(message.code, message.detail, hint=message.hint)
                    case _:
                        pass
            if self.agent is None:
                raise UnreachableError("no_agent", "the agent went away before there was a lease")

    def _start(self, leased: Leased) -> None:
        """Start the stub in the best place that there is; it becomes the command once the chips are open."""
        self.job = leased.job
        env = os.environ | {"KEYTURN_LEASE": leased.lease, "KEYTURN_JOB": leased.job, TOKEN: leased.token}
        if leased.notice is not None:
            env["KEYTURN_NOTICE"] = leased.notice
        if self.command.ask.chips is not None:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(leased.chips)
        for place in places(leased.job):
            if place.group is not None:
                try:
                    place.group.mkdir()
                    with (place.group / "cgroup.procs").open("a"):
                        pass
                except OSError:
                    continue
            group = "-" if place.group is None else str(place.group)
            stub = [sys.executable, "-m", "keyturn_agent.switch.stub", str(self.command.socket), group]
            self.place = place
            self.child = subprocess.Popen([*place.prefix, *stub, str(int(place.session)), *self.command.argv], env=env)
            for number in self.early:
                self.send(number)
            if place.prefix and self._fails_at_once(self.child):
                continue
            return

    @staticmethod
    def _fails_at_once(child: "subprocess.Popen[bytes]") -> bool:
        """Whether a service manager made no scope: it says so within a moment, and the stub never ran."""
        try:
            return child.wait(0.3) == 1
        except subprocess.TimeoutExpired:
            return False

    # -- while it runs

    def _attend(self) -> int:
        """Wait for the end of the command, and say what the agent says meanwhile."""
        child = self.child
        if child is None:
            raise UnreachableError("no_place", "the command could not be started anywhere")
        pidfd = os.pidfd_open(child.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(pidfd, selectors.EVENT_READ)
                while child.poll() is None:
                    if self.agent is not None and self.agent not in selector.get_map():
                        selector.register(self.agent, selectors.EVENT_READ)
                    ready = selector.select(self._until())
                    if self.link == "away" and self.agent is None:
                        self._attach()
                    if any(key.fileobj is self.agent for key, _ in ready):
                        agent = self.agent
                        for message in self._hear(0):
                            self._note(message)
                        if self.agent is None and agent is not None:
                            selector.unregister(agent)
                            self._gone()
                    self._obey()
        finally:
            os.close(pidfd)
        return child.returncode if child.returncode >= 0 else 128 - child.returncode

    def _gone(self) -> None:
        """The agent has hung up."""
        if self.link == "there" and self.over is None:
            self.link = "away"
            _say("the agent went away; the run goes on under its lease")

    def _attach(self) -> None:
        """Look for the agent that follows on the one that went away."""
        with contextlib.suppress(UnreachableError, OSError):
            agent = _connect(self.command.socket)
            agent.sendall(line(Attach(job=self.job)))
            self.agent = agent

    def _note(self, message: ToExec) -> None:
        match message:
            case Told(text=text):
                self.link = "there"
                _say(text)
            case Stopping():
                now = time.monotonic()
                at = now + message.in_ms / 1000
                self.stop = _Stop(at, at + message.kill_s, message.why, message.enforced)
                how = "stops" if message.enforced or self.command.obey else "would stop"
                _say(f"this run {how} in {message.in_ms / 1000:.0f} s: {message.why}")
            case Refused():
                self.refused = True
                _say(f"refused: {message.detail}")
                if self.link == "away":
                    self.link = "lost"
                    if self.agent is not None:
                        self.agent.close()
                        self.agent = None
                    now = time.monotonic()
                    # It has no lease of which anybody knows: who wants to obey doesn't go on without one.
                    self.stop = self.stop or _Stop(
                        now, now + _KILL_S, "the agent knows no lease of it any more", enforced=False
                    )
            case Over():
                self.over = message
            case _:
                pass

    def _until(self) -> float | None:
        again = _AGAIN_S if self.link == "away" and self.agent is None else None
        if self.stop is None or self.stop.enforced or not self.command.obey:
            return again
        moment = self.stop.kill_at if self.stop.termed else self.stop.at
        left = max(0.05, moment - time.monotonic())
        return left if again is None else min(left, again)

    def _obey(self) -> None:
        """Stop the command ourselves, where nobody else does and the run wants it."""
        stop, now = self.stop, time.monotonic()
        if stop is None or stop.enforced or not self.command.obey or now < stop.at:
            return
        if not stop.termed:
            stop.termed = True
            _say(f"SIGTERM: {stop.why}")
            self.send(signal.SIGTERM)
        elif now >= stop.kill_at:
            self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        """Signal the command: its session where it has one, else its first process."""
        child = self.child
        if child is None:
            self.early.append(number)
            return
        if child.poll() is not None:
            return
        with contextlib.suppress(OSError):
            if self.place.session:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
                    return
            # Also where the stub has made no session yet.
            child.send_signal(number)

    # -- the end

    def _last_words(self, status: int) -> None:
        """Say why it ended, and what it cost."""
        if self.agent is not None and self.over is None and not self.refused:
            with contextlib.suppress(OSError):
                self.agent.sendall(line(Ended(status=status)))
            self._wait_for_over(time.monotonic() + _LAST_WORDS_S)
        if self.stop is not None and time.monotonic() >= self.stop.at:
            _say(f"stopped: {self.stop.why}")
        if self.over is not None:
            _say(f"charged {int(self.over.charged_flop):.3g} FLOP in all · {self.over.detail}")

    def _wait_for_over(self, deadline: float) -> None:
        while self.over is None and self.agent is not None and (left := deadline - time.monotonic()) > 0:
            for message in self._hear(left):
                self._note(message)

    def _hear(self, seconds: float | None) -> list[ToExec]:
        """What the agent said, waiting for so long for the first of it; its end leaves :attr:`agent` None."""
        if self.agent is None:
            return []
        # The kernel counts milliseconds in 31 bits.
        self.agent.settimeout(None if seconds is None else min(max(0.0, seconds), _DAY_S))
        try:
            part = self.agent.recv(65_536)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            part = b""
        self.data += part
        *lines, self.data = self.data.split(b"\n")
        if not part or len(self.data) > LINE_BYTES:
            self.agent.close()
            self.agent = None
        try:
            return [to_exec(text) for text in lines]
        except ProtocolError as error:
            raise UnreachableError("bad_agent", f"the agent's answer is not one: {error}") from None


@contextlib.contextmanager
def _signals(session: _Session):  # type: ignore[no-untyped-def]
    """Pass on what we are told; what a terminal sends reaches a command without a session of its own by itself."""

    def forward(number: int, _: object) -> None:
        if session.child is None or session.place.session or number in (signal.SIGTERM, signal.SIGHUP):
            session.send(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open(part: SpecPart, path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError("bad_file", f"the {part}: {error}") from None


def _connect(path: Path) -> socket.socket:
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        agent.connect(str(path))
    except OSError as error:
        agent.close()
        raise UnreachableError(
            "no_agent",
            f"no agent at {path}: {error}",
            hint="switch.exec_socket in the agent's configuration, or --socket",
        ) from None
    return agent


def _say(text: str) -> None:
    print(f"keyturn: {text}", file=sys.stderr, flush=True)
