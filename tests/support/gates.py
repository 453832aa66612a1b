"""A real gate in a process of its own, and real runs for it to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from keyturn_gate.host import boot_id, boottime_us
from keyturn_gate.processes import _mounts, _stat
from keyturn_gate.server import ask
from tests.support.paths import REPO

SECOND_US: Final = 1_000_000
JOB: Final = "a" * 64
LEASE: Final = "b" * 64
PATIENCE_S: Final = 30.0


def until(what: Callable[[], Any], why: str = "") -> Any:
    """What ``what`` returns, once that is something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < deadline, why or "it never came to that"
        time.sleep(0.01)
    return found


class Gate:
    """``keyturn-gate serve`` on a socket in ``folder``, which may be killed and started again."""

    def __init__(
        self, folder: Path, driver: str = "observe", environ: Mapping[str, str] = {}, *, agent: int | None = None
    ) -> None:
        # A socket's path has to be short.
        self.folder, self.driver, self.environ = folder, driver, dict(environ)
        self.agent = os.geteuid() if agent is None else agent
        self.socket = folder / "gate.sock"
        self.notices = folder / "notices"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *prefix: str) -> "Gate":
        env = os.environ | {"PYTHONPATH": str(REPO / "gate"), "PYTHONUNBUFFERED": "1"} | self.environ
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "keyturn_gate", "serve", *self.arguments],
            env=env, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(lambda: self.process.poll() is not None or self._answers(), "no gate")  # type: ignore[union-attr]
        return self

    @property
    def arguments(self) -> list[str]:
        return [
            "--driver", self.driver, "--socket", str(self.socket), "--agent", str(self.agent),
            "--state", str(self.folder / "gate"), "--notices", str(self.notices),
        ]  # fmt: skip

    def _answers(self) -> bool:
        try:
            self.ask(verb="status", after=0)
        except Exception:
            return False
        return True

    def kill(self) -> str:
        """kill -9; returns what it had said."""
        return self._end(signal.SIGKILL)

    def stop(self) -> str:
        """The orderly end."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> str:
        assert self.process is not None
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in said, said
        return said

    def ask(self, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(ask(self.socket, json.dumps({"v": 1} | request).encode(), PATIENCE_S))
        return answer

    def grant(self, target: dict[str, Any] | None = None, *, for_s: float = 3600, **changes: Any) -> dict[str, Any]:
        fields = {
            "verb": "grant", "job": JOB, "lease": LEASE, "subject": "run", "boot_id": boot_id(), "chips": ["GPU-0"],
            "stop_at_us": boottime_us() + int(for_s * SECOND_US), "grace_s": 0, "kill_s": 0, "signal": None,
            "why": "the lease ends", "target": target,
        }  # fmt: skip
        return self.ask(**fields | changes)

    def status(self) -> dict[str, Any]:
        return self.ask(verb="status", after=0)

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.status()["events"]]

    def event(self, kind: str) -> dict[str, Any]:
        """The newest event of a kind, once there is one."""
        found: dict[str, Any] = until(
            lambda: next((e for e in reversed(self.status()["events"]) if e["kind"] == kind), None),
            f"no event {kind}",
        )
        return found


@contextmanager
def gate(
    folder: Path, driver: str = "observe", environ: Mapping[str, str] = {}, *, agent: int | None = None
) -> Iterator[Gate]:
    """A gate that is gone at the end."""
    made = Gate(folder, driver, environ, agent=agent)
    try:
        yield made.start()
    finally:
        if made.process is not None and made.process.poll() is None:
            made.kill()


class Running:
    """A run: a shell that says what it is told, in a session or in a cgroup of its own."""

    def __init__(self, folder: Path, script: str, cgroup: Path | None = None) -> None:
        self.said = folder / "said"
        self.said.touch()
        join = "" if cgroup is None else f"echo $$ > {cgroup}/cgroup.procs; "
        script = f"exec >> {self.said}; {join}{script}"
        self.process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
        self.cgroup = cgroup
        until(lambda: "ready" in self.said.read_text(), "the run never began")

    @property
    def target(self) -> dict[str, Any]:
        stat = _stat(self.process.pid)
        assert stat is not None
        where = (
            {"cgroup": None, "session": stat[1]}
            if self.cgroup is None
            else {"cgroup": str(self.cgroup), "session": None}
        )
        return {"pid": self.process.pid, "start": stat[2], **where}

    def words(self) -> list[str]:
        return self.said.read_text().split()

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def cgroup_place() -> Path | None:
    """Where this process may make groups, or None."""
    for top in sorted(_mounts(), key=lambda path: (path.name != "unified", str(path))):
        if os.access(top, os.W_OK) and (top / "cgroup.procs").exists():
            probe = top / f"keyturn-probe-{os.getpid()}"
            try:
                probe.mkdir()
            except OSError:
                continue
            probe.rmdir()
            return top
    return None
