"""Pausing the agent so that the driver can be replaced: what is signed, what is closed, and how it goes on."""

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from keyturn_agent import control
from keyturn_agent.control import PauseRequest, Reply, ResumeRequest
from keyturn_agent.errors import RefusedError, UnreachableError
from keyturn_agent.store import FolderLock
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.entries import Entry, Gap, Paused, Usage
from keyturn_protocol.ids import Origin
from keyturn_protocol.usage import EMPTY, fold
from tests.agent.conftest import Sources
from tests.agent.fakes import FakeVerifier
from tests.agent.hosts import START_US, Host
from tests.agent.live import LiveHost
from tests.agent.nvml_stub.stories import SECOND_US, steady_gpu
from tests.agent.nvml_stub.stub import START_US as STORY_US
from tests.agent.nvml_stub.stub import Stub

ID = "00000000-0000-4000-8000-0000000000{:02x}"


@pytest.fixture
def live(tmp_path: Path, stub: Stub, make: Sources) -> LiveHost:
    return LiveHost(tmp_path / "state", stub, make)


class Operator:
    """Puts requests at moments of the story, and keeps what was answered and what was open then."""

    def __init__(self, live: LiveHost, *requests: tuple[int, control.Request]) -> None:
        self.live = live
        self.waiting = list(requests)
        self.replies: list[Reply] = []
        self.sessions: dict[int, int] = {}
        live.clock.on_wait = self.look

    def look(self, now_us: int) -> None:
        self.sessions[(now_us - STORY_US) // SECOND_US] = self.live.stub.control.get("sessions")
        reply = self.live.folder / "reply.json"
        if reply.exists():
            self.replies.append(decode(reply.read_bytes(), Reply))
            reply.unlink()
        if self.waiting and now_us >= STORY_US + self.waiting[0][0]:
            control._put(self.live.folder / "request.json", encode(self.waiting.pop(0)[1]))


def pause(for_s: int, number: int = 1) -> PauseRequest:
    return PauseRequest(id=ID.format(number), for_us=for_s * SECOND_US, reason="driver upgrade")


def measured(entries: list[Entry]) -> list[tuple[int, int]]:
    return [
        ((e.body.from_us - START_US - STORY_US) // SECOND_US, (e.body.to_us - START_US - STORY_US) // SECOND_US)
        for e in entries
        if isinstance(e, Usage)
    ]


def test_a_pause_closes_nvml_is_signed_and_ends_by_itself(live: LiveHost) -> None:
    operator = Operator(live, (12 * SECOND_US, pause(10)))
    entries = live.run(steady_gpu(), 40)
    (paused,) = (e for e in entries if isinstance(e, Paused))
    assert (paused.body.for_us, paused.body.reason) == (10 * SECOND_US, "driver upgrade")
    (reply,) = operator.replies
    assert (reply.refused, paused.body.for_us) == (None, 10 * SECOND_US)
    assert reply.until_us is not None
    # It is asked between two samples and obeyed with the next.
    assert 0 <= reply.until_us - (START_US + STORY_US + 22 * SECOND_US) < SECOND_US
    assert operator.sessions[11] == 1
    assert {operator.sessions[s] for s in range(14, 21)} == {0}, "no handle is open"
    assert operator.sessions[30] == 1
    assert not any(start < 22 and end > 13 for start, end in measured(entries))
    assert max(end for _, end in measured(entries)) >= 38
    (gap,) = (g for g in fold(Origin("x"), EMPTY, entries).gaps if g.to_us - g.from_us > 5 * SECOND_US)
    assert gap.cause == "reopened"
    assert {e.body.cause for e in entries if isinstance(e, Gap)} == {"paused", "reopened"}
    # What was measured before the pause is in the log before it.
    assert isinstance(entries[paused.seq - 1], Usage)


def test_resume_ends_it_early_and_again_is_refused(live: LiveHost) -> None:
    resume = [ResumeRequest(id=ID.format(n)) for n in (2, 3)]
    operator = Operator(
        live, (5 * SECOND_US, pause(3600)), (12 * SECOND_US, resume[0]), (20 * SECOND_US, resume[1])
    )  # fmt: skip
    entries = live.run(steady_gpu(), 30)
    assert [(r.id, r.refused) for r in operator.replies] == [
        (ID.format(1), None), (ID.format(2), None), (ID.format(3), "not_paused"),
    ]  # fmt: skip
    assert any(start >= 12 for start, _ in measured(entries))


def test_a_call_that_hangs_refuses_the_pause_and_signs_none(live: LiveHost) -> None:
    script = steady_gpu().hang("nvmlDeviceGetPowerUsage", from_us=STORY_US + 5 * SECOND_US)
    operator = Operator(live, (7 * SECOND_US, pause(10)))
    live.deadline_s = 0.05
    entries = live.run(script, 15)
    (reply,) = operator.replies
    assert reply.refused == "nvml_hung"
    assert reply.hint is not None
    assert reply.until_us is None
    assert not any(isinstance(e, Paused) for e in entries)
    assert "call_hung" in {e.body.cause for e in entries if isinstance(e, Gap)}


def test_a_request_that_waits_since_before_the_start_is_dropped(live: LiveHost) -> None:
    control._put(live.folder / "request.json", encode(pause(10)))
    assert not any(isinstance(e, Paused) for e in live.run(steady_gpu(), 10))
    assert not (live.folder / "request.json").exists()


def test_a_replay_has_nothing_to_close(tmp_path: Path) -> None:
    host = Host(tmp_path / "state", FakeVerifier())
    host.enroll()

    class Asking:
        """A stop that never comes, and asks once on the way."""

        asked = False

        @property
        def requested(self) -> bool:
            if not self.asked:
                self.asked = True
                return False
            if not (host.folder / "reply.json").exists() and not (host.folder / "request.json").exists():
                control._put(host.folder / "request.json", encode(pause(10)))
            return False

        def wait(self, seconds: float) -> None:
            raise AssertionError("simulated time doesn't wait")

    assert host.run(stop=Asking())
    reply: Reply = decode((host.folder / "reply.json").read_bytes(), Reply)
    assert reply.refused == "not_live"
    assert not any(isinstance(e, Paused) for e in host.verifier.entries())


# -- the files


def test_a_request_is_for_the_owner_alone_and_is_taken_once(tmp_path: Path) -> None:
    control._put(tmp_path / "request.json", encode(pause(10)))
    assert stat.S_IMODE((tmp_path / "request.json").stat().st_mode) == 0o600
    assert control.take(tmp_path) == pause(10)
    assert control.take(tmp_path) is None
    control.answer(tmp_path, Reply(id=ID.format(1), refused=None, detail="x", hint=None, until_us=None))
    assert stat.S_IMODE((tmp_path / "reply.json").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask for somebody else")
def test_what_root_asks_can_be_read_by_the_agent_s_account(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    control._put(tmp_path / "request.json", encode(pause(10)))
    assert (tmp_path / "request.json").stat().st_uid == 12345


def write(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


@pytest.mark.parametrize(
    "make",
    [
        write(b"{}"),
        write(b"\xff"),
        write(encode(pause(10)) + b"\n"),
        write(encode(pause(10)).replace(b'"for_us":10000000', b'"for_us":0')),
        write(encode(pause(10)).replace(b'"for_us":10000000', b'"for_us":86400000001')),
        write(encode(pause(10)).replace(b"driver", b"dri\\nver")),
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: os.mkfifo(path),
    ],
)
def test_what_is_no_request_is_taken_away_and_nothing_is_done(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "request.json")
    assert control.take(tmp_path) is None
    assert not (tmp_path / "request.json").is_symlink()
    assert not (tmp_path / "request.json").exists()


def test_what_cannot_be_taken_away_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control._put(tmp_path / "request.json", encode(pause(10)))

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    assert control.take(tmp_path) is None


def test_asking_without_an_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no agent runs"):
        control.ask(tmp_path, pause(10), 1)
    assert not (tmp_path / "request.json").exists()


def test_an_agent_that_does_not_answer(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    # An answer to somebody else is none.
    control.answer(tmp_path, Reply(id=ID.format(9), refused=None, detail="x", hint=None, until_us=None))
    with pytest.raises(UnreachableError):
        control.ask(tmp_path, pause(10), 0.2)
    assert not (tmp_path / "request.json").exists(), "nobody is surprised by it later"
    lock.release()


def test_what_is_refused_is_an_error_with_its_code(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)

    def refuse() -> None:
        while (request := control.take(tmp_path)) is None:
            time.sleep(0.005)
        reply = Reply(id=request.id, refused="nvml_hung", detail="it hangs", hint="wait", until_us=None)
        control.answer(tmp_path, reply)

    agent = threading.Thread(target=refuse)
    agent.start()
    with pytest.raises(RefusedError, match="it hangs") as caught:
        control.ask(tmp_path, pause(10), 30)
    agent.join()
    assert (caught.value.code, caught.value.hint) == ("nvml_hung", "wait")
    lock.release()
