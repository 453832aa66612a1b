"""A host whose chips are those of the stub: an agent in the stub's time in this process, or a process in real time."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from keyturn_agent.config import Config
from keyturn_agent.courier import Courier
from keyturn_agent.daemon import Daemon
from keyturn_agent.enroll import enroll
from keyturn_agent.ports import Moment, Stop
from keyturn_agent.procs import Attribution
from keyturn_agent.sources.nvml_source import NvmlSource
from keyturn_agent.store import Store
from keyturn_protocol.entries import Entry
from tests.agent.conftest import Sources
from tests.agent.fakes import TOKEN, Even, FakeVerifier, StopAt
from tests.agent.hosts import START_S, START_US
from tests.agent.nvml_stub.stories import SECOND_US
from tests.agent.nvml_stub.stub import START_US as STORY_US
from tests.agent.nvml_stub.stub import Control, Script, Stub
from tests.support.paths import REPO


class BootClock:
    """CLOCK_BOOTTIME is the stub's time, and the wall clock stands beside it, until it is set."""

    boot_id = "00000000-0000-4000-8000-0000000000aa"

    def __init__(self, control: Control) -> None:
        self.control = control
        self.steps: list[tuple[int, int]] = []
        self.on_wait: Callable[[int], None] = lambda _: None

    def now(self) -> Moment:
        now_us = self.control.get("now_us")
        return Moment(now_us, START_US + now_us + sum(step for at_us, step in self.steps if at_us <= now_us))

    def wait_until(self, mono_us: int, stop: Stop) -> None:
        self.control.set("now_us", max(mono_us, self.control.get("now_us")))
        self.on_wait(self.control.get("now_us"))


class LiveHost:
    """An enrolled host whose chips are those of the stub."""

    def __init__(self, folder: Path, stub: Stub, make: Sources) -> None:
        self.folder, self.stub, self.make = folder, stub, make
        self.verifier = FakeVerifier()
        self.clock = BootClock(stub.control)
        self.source: NvmlSource | None = None
        self.deadline_s = 30.0
        enroll(
            folder, "http://127.0.0.1:1", TOKEN, self.verifier.pinned, "nvml",
            verifier=self.verifier, clock=self.clock, random=Even(), patience_s=10,
        )  # fmt: skip

    def run(
        self,
        script: Script,
        seconds: int,
        *,
        checkpoint_s: int = 5,
        drain_s: int = 20,
        attribution: Attribution | None = None,
    ) -> list[Entry]:
        """The agent from the beginning of the story for so long; returns the verifier's entries."""
        self.source = source = self.make(self.stub, script, attribution=attribution, read_deadline_s=self.deadline_s)
        config = Config(jitter_s=0, drain_s=drain_s, checkpoint_us=checkpoint_s * SECOND_US)
        store, _ = Store.open(self.folder, lambda _: self.clock, START_S)
        try:
            pinned = store.pinned
            courier = Courier(self.verifier, pinned.receipt_key, pinned.log_key, Even(), jitter_s=0)
            self.stub.control.set("now_us", max(STORY_US, self.stub.control.get("now_us")))
            stop = StopAt(self.clock.now, self.stub.control.get("now_us") + seconds * SECOND_US)
            assert Daemon(store, source, self.clock, courier, stop, config, lambda: START_S).run()
        finally:
            store.close()
        return self.verifier.entries()


class RealTime:
    """The stub's time is that of the host, from the beginning of the story on."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._end = threading.Event()
        self._begin = time.monotonic()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "RealTime":
        self._control.set("now_us", STORY_US)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.005):
            self._control.set("now_us", STORY_US + int((time.monotonic() - self._begin) * 1e6))


def agent(arguments: list[str | Path], library: Path, folder: Path, **more: str) -> "subprocess.Popen[str]":
    folders = [str(REPO / part) for part in ("protocol", "agent")]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(folders),
        "LD_LIBRARY_PATH": str(library.parent),
        "KEYTURN_NVML_STUB": str(folder / "script.txt"),
        "KEYTURN_NVML_CONTROL": str(folder / "control"),
    }
    command = [sys.executable, "-m", "keyturn_agent", *map(str, arguments)]
    return subprocess.Popen(command, env=env | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
