"""What a host does where asking for a lease goes wrong on its own side, step by step."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from keyturn_agent.errors import AgentError
from keyturn_agent.switch.asking import ToExec, Told
from keyturn_agent.switch.errands import Done
from keyturn_agent.switch.lease_state import Job, Now, Phase
from keyturn_agent.switch.lessee import Lessee, _Live
from keyturn_agent.switch.spec import NOTHING
from keyturn_protocol.entries import Body

NOW = Now(50_000_000, 1_790_000_000_000_000)


class Full:
    """The daemon's hands where the disk is full: what is written waits in memory, and the log doesn't grow."""

    writable = False

    def __init__(self) -> None:
        self.held: list[Body] = []
        self.sealed = 0

    def write(self, bodies: Sequence[Body]) -> None:
        self.held += bodies

    def checkpoint(self) -> None:
        self.sealed += 1

    def flush(self) -> None:
        pass


class Listener:
    def __init__(self) -> None:
        self.heard: list[ToExec] = []

    def tell(self, message: ToExec) -> None:
        self.heard.append(message)


def asking() -> tuple[Lessee, _Live, Full, Listener]:
    """A host with one command that looks for a lease; what isn't needed for that isn't there."""
    lessee: Any = Lessee.__new__(Lessee)
    hands, listener = Full(), Listener()
    lessee._hands, lessee._hurry = hands, lambda: None
    lessee._clock = SimpleNamespace(now=lambda: NOW)
    lessee._store = SimpleNamespace(log=SimpleNamespace(size=41, name=SimpleNamespace(origin="kt.example/node/a/1")))
    job = Job(
        job="1" * 64, boot_id="0c6b1d9e-0000-4000-8000-000000000001", kind="allowance", run=None, lineage="aurora",
        group="0", hosts=1, chips=["GPU-0"], spec=NOTHING, signal=None, phase="looking", asked=None, lease=None,
        place=None, bounds=None, reported_us=0, why="",
    )  # fmt: skip
    live = _Live(job)
    live.visitor = listener  # type: ignore[assignment]
    lessee._live = {job.job: live}
    return lessee, live, hands, listener


def test_full_disk_asks_for_no_lease_with_another_entrys_place_in_the_log() -> None:
    lessee, live, hands, listener = asking()
    lessee._write_permit(live)
    assert (live.job.asked, live.phase, hands.held, hands.sealed) == (None, Phase.LOOKING, [], 0)
    assert live.again_us > NOW.mono_us
    assert "no room on the disk" in str(listener.heard)


def test_an_answer_that_breaks_what_reads_it_ends_neither_the_agent_nor_the_wait() -> None:
    """Of a verifier that is hostile nothing is known, also not which error its answer is."""
    lessee, live, _, listener = asking()
    for kind in ("permit", "lease"):
        lessee._done(Done(f"{kind} {live.job.job}", None, AgentError("errand", "RecursionError: too deep")))
        assert isinstance(listener.heard[-1], Told)
    assert lessee._live
    assert live.again_us > NOW.mono_us
