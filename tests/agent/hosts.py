"""An enrolled host in a folder, and runs of its agent in simulated time, in this process."""

from pathlib import Path
from typing import Any

from keyturn_agent.clock import SimulatedClock
from keyturn_agent.config import Config
from keyturn_agent.courier import Courier
from keyturn_agent.daemon import Daemon
from keyturn_agent.enroll import enroll
from keyturn_agent.ports import Clock, Stop
from keyturn_agent.recording import parse_recording
from keyturn_agent.sources.replay import ReplaySource
from keyturn_agent.store import Store
from tests.agent.fakes import TOKEN, Even, FakeVerifier, NoStop
from tests.agent.samples import steady_recording

START_US = 1_790_000_000_000_000
START_S = 1_790_000_000


class PatientClock(SimulatedClock):
    """Simulated time that waits for the verifier's first answer, which it would outrun."""

    courier: Courier | None = None

    def wait_until(self, mono_us: int, stop: Stop) -> None:
        if self.courier is not None:
            self.courier.wait_asked(20)
        super().wait_until(mono_us, stop)


class Host:
    """One state folder and the runs over it. Each run is a boot of its own."""

    def __init__(self, folder: Path, verifier: FakeVerifier) -> None:
        self.folder = folder
        self.verifier = verifier
        self.random = Even()
        self.real_s = START_S

    def enroll(self, token: str = TOKEN, url: str = "http://127.0.0.1:1", patience_s: float = 10, **more: Any) -> None:
        enroll(
            self.folder,
            url,
            token,
            self.verifier.pinned,
            "replay",
            verifier=self.verifier,
            clock=SimulatedClock(START_US, self.random.uuid4()),
            random=self.random,
            patience_s=patience_s,
            **more,
        )

    def clock(self, newest_us: int = 0) -> Clock:
        """Of one more boot."""
        return PatientClock(max(START_US, newest_us), self.random.uuid4())

    def run(
        self,
        recording: bytes | None = None,
        *,
        loops: int = 1,
        stop: Stop | None = None,
        drain_s: int = 20,
        checkpoint_s: int = 300,
        **settings: Any,
    ) -> bool:
        config = Config(
            jitter_s=0, drain_s=drain_s, checkpoint_us=checkpoint_s * 1_000_000, incarnation_s=600, **settings
        )
        store, clock = Store.open(self.folder, self.clock, self.real_s)
        try:
            source = ReplaySource(
                parse_recording(steady_recording(60) if recording is None else recording),
                clock.now().mono_us,
                loops=loops,
            )
            pinned = store.pinned
            courier = Courier(self.verifier, pinned.receipt_key, pinned.log_key, self.random, jitter_s=0)
            assert isinstance(clock, PatientClock)
            clock.courier = courier
            return Daemon(
                store, source, clock, courier, NoStop() if stop is None else stop, config, lambda: self.real_s
            ).run()
        finally:
            store.close()
