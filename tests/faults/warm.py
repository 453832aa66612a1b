"""Runs a command line program many times, each time in a process of its own, without its imports each time.

`Warm` starts one process that has imported the program; for each run it forks a child, which waits at a gate until
strace is attached, and then calls the program's main function with real arguments, files and signals.
"""

import gc
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from tests.faults.strace import Call, Fault, attach, calls, injecting, may_be_traced, was_injected, watching
from tests.support.paths import REPO

_PATIENCE_S: Final = 60.0
_MISSED_S: Final = 3.0


@dataclass(frozen=True)
class Ended:
    """How one run ended. `status` is negative for a signal; `reached` says whether the fault happened."""

    status: int
    out: str
    err: str
    reached: bool = False

    @property
    def killed(self) -> bool:
        return self.status == -9


class Running:
    """A child that runs."""

    def __init__(self, warm: "Warm", pid: int, base: Path, tracer: "subprocess.Popen[str] | None") -> None:
        self.pid = pid
        self._warm = warm
        self._base = base
        self._tracer = tracer

    def err(self) -> str:
        return _beside(self._base, ".err").read_text(errors="replace")

    def alive(self) -> bool:
        return not _gone(self.pid, 0) and not _zombie(self.pid)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, patience_s: float = _PATIENCE_S) -> Ended:
        """Wait for its end; one that hangs is killed, and that is an error."""
        deadline = time.monotonic() + patience_s
        while not _gone(self.pid, 0.5) and time.monotonic() < deadline:
            if _zombie(self.pid):
                self._let_go()
        hung = not _gone(self.pid, 0)
        if hung:
            os.kill(self.pid, 9)
        status = self._warm.reap(self.pid)
        if self._tracer is not None:
            self._tracer.communicate(timeout=30)
        err = self.err()
        assert not hung, f"still running after {patience_s} s:\n{err}"
        trace = _beside(self._base, ".trace")
        reached = status == -9 or (trace.exists() and was_injected(trace))
        return Ended(status, _beside(self._base, ".out").read_text(errors="replace"), err, reached)

    @contextmanager
    def traced(self, options: Sequence[str]) -> Iterator[None]:
        """strace on it from here on, until it ends or this does."""
        self._tracer = tracer = attach(self.pid, options)
        assert tracer.returncode is None, f"strace: {tracer.communicate()[1]}"
        try:
            yield
        finally:
            tracer.terminate()
            self._let_go()
            tracer.communicate(timeout=30)
            self._tracer = None

    def _let_go(self) -> None:
        """Have strace see the end of what it killed: now and then it misses that of a thread, and keeps the process."""
        if self._tracer is not None:
            try:
                self._tracer.wait(_MISSED_S)
            except subprocess.TimeoutExpired:
                self._tracer.kill()


class Warm:
    """One program, imported. Use it as a context.

    :param program: module and function, such as `keyturn_agent.cli:main`; it is called with the arguments.
    :param preload: further modules that it would import while it runs.
    :param environ: what has to be in the environment before a run has its own, such as where libraries are.
    """

    def __init__(self, program: str, preload: Sequence[str] = (), **environ: str) -> None:
        command = [sys.executable, "-m", "tests.faults.warm", program, *preload]
        self._server = subprocess.Popen(
            command, cwd=REPO, env=os.environ | environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            bufsize=1,
        )  # fmt: skip
        self._count = 0
        self._asking = threading.Lock()
        """Runs may be begun from several threads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()

    def start(
        self, folder: Path, *arguments: str | Path, env: dict[str, str] | None = None, trace: Sequence[str] = ()
    ) -> Running:
        """Begin a run. What it prints goes to files beside `folder`; `trace`: options of strace."""
        with self._asking:
            self._count += 1
            base = folder.with_name(f"{folder.name}.{self._count}")
        gate = _beside(base, ".gate")
        os.mkfifo(gate)
        job = {"argv": [str(a) for a in arguments], "env": env or {}, "base": str(base), "gate": str(gate)}
        pid = self._ask(job)
        tracer = None
        if trace:
            tracer = attach(pid, trace)
            assert tracer.returncode is None, f"strace: {tracer.communicate()[1]}"
        gate.open("w").close()
        gate.unlink()
        return Running(self, pid, base, tracer)

    def run(self, folder: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> Ended:
        """A run to its end."""
        return self.start(folder, *arguments, env=env).wait()

    def calls(self, folder: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> tuple[Ended, set[Call]]:
        """A run to its end, and its calls on files in `folder`."""
        out = folder.with_name(f"{folder.name}.{self._count + 1}.trace")
        ended = self.start(folder, *arguments, env=env, trace=watching(out)).wait()
        return ended, calls(out, folder)

    def inject(
        self, folder: Path, call: Call, fault: Fault, *arguments: str | Path, env: dict[str, str] | None = None
    ) -> Ended:
        """A run in which one call fails, or ends the process."""
        out = folder.with_name(f"{folder.name}.{self._count + 1}.trace")
        return self.start(folder, *arguments, env=env, trace=injecting(out, folder, call, fault)).wait()

    def reap(self, pid: int) -> int:
        """The exit status of a child that has ended."""
        return self._ask({"reap": pid})

    def _ask(self, job: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with self._asking:
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            return int(self._server.stdout.readline())


def _beside(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)


def _gone(pid: int, patience_s: float) -> bool:
    """Whether a process ends within the time."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()  # unlike select, with descriptors of any number
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(patience_s * 1000))
    finally:
        os.close(descriptor)


def _zombie(pid: int) -> bool:
    """Whether its first thread has ended, and with it the program."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False


def _child(run: Any, job: dict[str, Any]) -> NoReturn:
    os.setsid()
    may_be_traced()
    base = Path(job["base"])
    for number, target in ((0, Path(os.devnull)), (1, _beside(base, ".out")), (2, _beside(base, ".err"))):
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.update(job["env"])
    # Random names of folders would be others in each run.
    tempfile: Any = import_module("tempfile")
    tempfile._name_sequence = iter([f"temporary{i}" for i in range(100)])
    with open(job["gate"]) as gate:  # noqa: PTH123 -- blocks until the other end is opened
        gate.read()
    status = 70
    try:
        status = int(run(job["argv"]) or 0)
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        import_module("traceback").print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """The process that forks: a line of JSON for each run, answered with the process id; `reap` with its status."""
    module, _, function = sys.argv[1].partition(":")
    for name in sys.argv[2:]:
        import_module(name)
    run = getattr(import_module(module), function)
    # What was imported is the same in all children: the collector must not touch, and so copy, its pages.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        if "reap" in job:
            answer = os.waitstatus_to_exitcode(os.waitpid(job["reap"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _child(run, job)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
