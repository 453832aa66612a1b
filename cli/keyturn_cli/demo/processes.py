"""The demo's child processes: started with logs of their own, ended by their ids, whatever happens."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Final, Self

from keyturn_cli.errors import CliError, Exit

GRACE_S: Final = 10.0
"""From SIGTERM to SIGKILL."""
_TAIL_BYTES: Final = 2_000


@dataclass(frozen=True, slots=True)
class Child:
    """A running program and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The end of what it wrote, for a message."""
        try:
            data = self.log.read_bytes()[-_TAIL_BYTES:]
        except OSError:
            return ""
        lines = data.decode("utf-8", "replace").strip().splitlines()
        return " | ".join(lines[-3:])


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The end of what it said, for a message."""
        return " | ".join(self.err.strip().splitlines()[-2:])


class Children:
    """Starts programs and, when left, leaves none of them running.

    Children get sessions of their own, so that Ctrl-C reaches this process only and they end in order.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[Child] = []
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._starting = self._interrupted = False

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._interrupted = True  # from here on no signal stops the clean-up half-way
        try:
            for child in self._running:
                _signal(child, signal.SIGTERM)
            deadline_s = time.monotonic() + GRACE_S
            for child in self._running:
                try:
                    child.process.wait(max(deadline_s - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    _signal(child, signal.SIGKILL)
                    child.process.wait()
            self._running.clear()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def start(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None) -> Child:
        """Start a console script; what it says goes to a log.

        :param env: variables besides this process's own.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as out:
            return self._start(name, command, log, env, out, subprocess.STDOUT)

    def run(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 30) -> str:
        """Run a console script to its end; returns its stdout.

        :raises CliError: it failed.
        """
        done = self.attempt(name, *command, env=env, timeout_s=timeout_s)
        if done.code:
            said = " | ".join(done.err.strip().splitlines()[-3:])
            raise CliError(f"{name} ended with {done.code}: {said}", exit=Exit.REJECTED)
        return done.out

    def attempt(
        self, name: str, *command: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 30
    ) -> Done:
        """Run a console script to its end, however that is.

        :raises CliError: it doesn't end.
        """
        child = self._start(name, command, self._logs / "none", env, subprocess.PIPE, subprocess.PIPE)
        try:
            out, err = child.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise CliError(f"{name}: no end after {timeout_s:.0f} s", exit=Exit.REJECTED) from None
        self._running.remove(child)
        return Done(child.process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    def _start(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        env: Mapping[str, str] | None,
        out: IO[bytes] | int,
        err: int,
    ) -> Child:
        """Start and remember, as one step: a signal in between would leave a child that nobody ends."""
        path = program(str(command[0]))
        self._starting = True
        try:
            process = subprocess.Popen(
                [path, *map(str, command[1:])],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
            child = Child(name, process, log)
            self._running.append(child)
        finally:
            self._starting = False
        if self._interrupted:
            raise KeyboardInterrupt
        return child

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Once: the second of two signals would break into the clean-up that the first one began."""
        again, self._interrupted = self._interrupted, True
        if not self._starting and not again:
            raise KeyboardInterrupt

    def finish(self, child: Child, deadline_s: float) -> None:
        """Wait for a child to end by itself.

        :param deadline_s: on the monotonic clock.
        :raises CliError: it failed, or is still running then.
        """
        if code := self.ended(child, deadline_s):
            raise CliError(f"{child.name} ended with {code}: {child.tail()}", exit=Exit.REJECTED)

    def ended(self, child: Child, deadline_s: float) -> int:
        """Wait for a child to end by itself; returns its exit status.

        :param deadline_s: on the monotonic clock.
        :raises CliError: it is still running then.
        """
        try:
            code = child.process.wait(max(deadline_s - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise CliError(f"{child.name} is still running: {child.tail()}", exit=Exit.REJECTED) from None
        self._running.remove(child)
        return code

    def stop(self, child: Child) -> None:
        """End a child that would go on, in order.

        :raises CliError: it ended in another way than it was asked to.
        """
        if child.process.poll() is not None:
            raise CliError(f"{child.name} ended with {child.process.returncode}: {child.tail()}", exit=Exit.REJECTED)
        _signal(child, signal.SIGTERM)
        self.finish(child, time.monotonic() + GRACE_S)


def program(name: str) -> str:
    """The console script beside this interpreter: the same installation, whatever PATH says.

    :raises CliError: it isn't there.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise CliError(
            f"{name} is not installed beside {sys.executable}",
            exit=Exit.USAGE,
            hint="make demo installs all three programs",
        )
    return str(path)


def wait_for(path: Path, child: Child, deadline_s: float) -> str:
    """The content of a file that a child writes when it is ready.

    :raises CliError: the child ended, or took too long.
    """
    while time.monotonic() < deadline_s:
        if child.process.poll() is not None:
            raise CliError(f"{child.name} ended with {child.process.returncode}: {child.tail()}", exit=Exit.REJECTED)
        try:
            if text := path.read_text().strip():
                return text
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    raise CliError(f"{child.name} is not ready: {child.tail()}", exit=Exit.REJECTED)


def _signal(child: Child, number: int) -> None:
    """Only to a process that this one started and hasn't waited for: its id can't belong to another."""
    if child.process.poll() is None:
        child.process.send_signal(number)
