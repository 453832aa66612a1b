"""What operators ask of a running agent beside a short pause: one that outlives it, a new key, retirements."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from keyturn_agent import control, pausing
from keyturn_agent.control import KeyRollRequest, RetireRequest
from keyturn_agent.errors import RefusedError, UnreachableError
from keyturn_agent.pausing import Pausing
from keyturn_agent.ports import Answer
from keyturn_agent.signer import FileSigner
from keyturn_agent.status import read_listed
from keyturn_agent.store import FolderLock
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.canonical import encode
from keyturn_protocol.entries import Entry, Gap, Genesis, Inventory, KeyRoll, Paused, Retired, Shutdown, Usage
from keyturn_protocol.ids import Origin
from keyturn_protocol.usage import EMPTY, fold, silence
from tests.agent.conftest import Sources
from tests.agent.fakes import refusal, unreachable
from tests.agent.hosts import START_US
from tests.agent.live import LiveHost
from tests.agent.nvml_stub.stories import SECOND_US, steady_gpu, two_gpus
from tests.agent.nvml_stub.stub import START_US as STORY_US
from tests.agent.nvml_stub.stub import Script, Stub
from tests.agent.test_nvml_daemon import divided
from tests.agent.test_pause import ID, Operator, measured, pause


@pytest.fixture
def live(tmp_path: Path, stub: Stub, make: Sources) -> LiveHost:
    return LiveHost(tmp_path / "state", stub, make)


def story(second: int) -> int:
    """UTC of a second of the story."""
    return START_US + STORY_US + second * SECOND_US


# -- a pause that outlives the agent


def test_a_pause_holds_over_a_restart_until_its_end(live: LiveHost) -> None:
    operator = Operator(live, (5 * SECOND_US, pause(30)))
    live.run(steady_gpu(), 10)
    assert operator.replies[0].refused is None
    opened = live.stub.control.get("openings")
    operator.sessions.clear()
    entries = live.run(steady_gpu(), 40)
    assert {n for second, n in operator.sessions.items() if 11 <= second < 34} == {0}, "nothing opens the driver"
    assert opened + 1 == live.stub.control.get("openings")
    first, again = (e for e in entries if isinstance(e, Paused))
    assert again.body.reason == first.body.reason
    # What is left of it is said anew, behind the inventory of this start.
    left_us = first.time_us + first.body.for_us - again.time_us
    assert abs(again.body.for_us - left_us) <= SECOND_US
    assert isinstance(entries[again.seq - 1], Inventory)
    assert not any(start < 35 and end > 6 for start, end in measured(entries))
    assert max(end for _, end in measured(entries)) >= 48
    assert not (live.folder / pausing.NAME).exists()
    # Nothing is lost between: the log accounts for all of it as one gap.
    assert sum(g.to_us - g.from_us for g in fold(Origin("x"), EMPTY, entries).gaps) >= 29 * SECOND_US
    assert {e.body.cause for e in entries if isinstance(e, Gap)} >= {"paused"}


def test_a_pause_that_is_over_at_the_start_is_over(live: LiveHost) -> None:
    operator = Operator(live, (5 * SECOND_US, pause(10)))
    live.run(steady_gpu(), 8)
    live.stub.control.set("now_us", STORY_US + 20 * SECOND_US)
    entries = live.run(steady_gpu(), 10)
    assert operator.replies[0].refused is None
    assert len([e for e in entries if isinstance(e, Paused)]) == 1
    assert any(start >= 20 for start, _ in measured(entries))
    assert not (live.folder / pausing.NAME).exists()


@pytest.mark.parametrize(
    ("boot", "time_us", "left_s"),
    [
        ("same", story(50), 20),
        # The wall clock was set back: in one boot it doesn't matter, and after a reboot it can't lengthen the pause.
        ("same", story(0), 20),
        ("other", story(50), 10),
        ("other", story(0), 30),
        ("other", story(90), -30),
    ],
)
def test_how_long_a_pause_lasts(live: LiveHost, boot: str, time_us: int, left_s: int) -> None:
    live.stub.control.set("now_us", STORY_US + 40 * SECOND_US)
    found = Pausing(
        v=1,
        boot_id=live.clock.boot_id if boot == "same" else ID.format(0xBB),
        until_mono_us=STORY_US + 60 * SECOND_US,
        until_us=story(60),
        for_us=30 * SECOND_US,
        reason="x",
    )
    live.clock.steps.append((0, time_us - story(40)))
    assert found.left_us(live.clock) == left_s * SECOND_US


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[]"])
def test_a_file_that_says_nothing_pauses_nothing(live: LiveHost, data: bytes) -> None:
    (live.folder / pausing.NAME).write_bytes(data)
    assert any(isinstance(e, Usage) for e in live.run(steady_gpu(), 12))


def test_resume_after_a_restart_ends_it(live: LiveHost) -> None:
    operator = Operator(
        live, (5 * SECOND_US, pause(3600)), (12 * SECOND_US, control.ResumeRequest(id=ID.format(2)))
    )  # fmt: skip
    live.run(steady_gpu(), 8)
    entries = live.run(steady_gpu(), 20)
    assert [r.refused for r in operator.replies] == [None, None]
    assert any(start >= 13 for start, _ in measured(entries))
    size = len(entries)
    assert any(isinstance(e, Usage) for e in live.run(steady_gpu(), 15)[size:])


def test_an_instance_that_goes_while_nothing_is_shown_is_retired_once_something_is(live: LiveHost) -> None:
    """The start of a paused agent lists no chip; what it knew before isn't forgotten by that."""
    Operator(live, (5 * SECOND_US, pause(20)))
    live.run(divided(second_to=15 * SECOND_US), 10)
    assert len(read_listed(live.folder)) == 3
    entries = live.run(divided(second_to=15 * SECOND_US), 40)
    assert [len(e.body.chips) for e in entries if isinstance(e, Inventory)] == [3, 0, 2]
    (retired,) = (e for e in entries if isinstance(e, Retired))
    assert retired.body.chips == ["MIG-1"]
    owed = silence(Origin("x"), fold(Origin("x"), EMPTY, entries).state, story(10_000))
    assert "MIG-1" not in {gap.chip for gap in owed}


# -- a new key under a running agent


def roll(number: int = 7) -> KeyRollRequest:
    return KeyRollRequest(id=ID.format(number))


def key(live: LiveHost) -> bytes:
    return FileSigner.load(live.folder / "key").public_key


class Patient(Operator):
    """Lets the verifier's answers, which come in real time, not fall behind the story's time."""

    def look(self, now_us: int) -> None:
        super().look(now_us)
        time.sleep(0.02)


def test_a_key_is_rolled_while_the_agent_meters(live: LiveHost) -> None:
    old = key(live)
    operator = Patient(live, (8 * SECOND_US, roll()))
    before = live.run(steady_gpu(), 40)
    (reply,) = operator.replies
    assert reply.refused is None, reply.detail
    assert reply.detail.endswith("/2")
    assert isinstance(before[-1], KeyRoll)
    after = live.verifier.entries(2)
    assert isinstance(after[0], Genesis)
    assert isinstance(after[1], Inventory)
    assert isinstance(after[-1], Shutdown)
    new = key(live)
    assert before[-1].body.next_public_key == after[0].body.public_key == new.hex() != old.hex()
    assert not (live.folder / "key.next").exists()
    # It was metered across: what was measured last before and first after it touch.
    assert measured(before)[-1][1] == measured(after)[0][0]
    assert len(live.verifier.logs) == 2


def test_a_pause_that_goes_on_is_said_in_the_new_log(live: LiveHost) -> None:
    operator = Patient(live, (5 * SECOND_US, pause(60)), (10 * SECOND_US, roll()))
    live.run(steady_gpu(), 40)
    assert [r.refused for r in operator.replies] == [None, None]
    assert any(isinstance(e, Paused) for e in live.verifier.entries(2))


def test_without_a_verifier_the_running_agent_rolls_nothing(live: LiveHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyturn_agent.operator.RECEIPT_S", -1)
    old = key(live)
    operator = Patient(live, (8 * SECOND_US, roll()))

    def cut(call: str, answer: Answer) -> Answer:
        return unreachable(call, answer) if live.clock.now().mono_us < STORY_US + 20 * SECOND_US else answer

    live.verifier.interfere = cut
    with pytest.raises(AssertionError):
        # The upload backs off for longer than the end waits.
        live.run(steady_gpu(), 15)
    (reply,) = operator.replies
    assert reply.refused == control.NO_RECEIPT
    assert "the key was not rolled" in reply.detail
    assert key(live) == old
    assert not (live.folder / "key.next").exists()


def test_a_roll_that_the_verifier_refuses_is_answered_so(live: LiveHost) -> None:
    real = live.verifier._receive
    live.verifier._receive = lambda data: (  # type: ignore[method-assign]
        refusal(ProblemCode.LOG_FROZEN) if b'"type":"key_roll"' in data else real(data)
    )
    operator = Patient(live, (8 * SECOND_US, roll()))
    old = key(live)
    with pytest.raises(AssertionError):
        # The next incarnation may only open after a while, and this story is shorter.
        live.run(steady_gpu(), 40)
    assert operator.replies[0].refused == "rejected"
    assert key(live) == old


def test_a_sealed_key_is_not_rolled(live: LiveHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (live.folder / "key").rename(credentials / "keyturn-agent.key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    operator = Operator(live, (5 * SECOND_US, roll()))
    live.run(steady_gpu(), 10)
    assert operator.replies[0].refused == "sealed_key"


# -- retirements under a running agent

LOST = "GPU-00000001-0000-4000-8000-000000000000"
HELD = "GPU-00000000-0000-4000-8000-000000000000"


def lost_second() -> Script:
    return two_gpus().fail("*", 15, unit="1", from_us=STORY_US + 3 * SECOND_US, to_us=STORY_US + 60 * SECOND_US)


def retire(chips: list[str] | None, number: int = 9) -> RetireRequest:
    return RetireRequest(id=ID.format(number), chips=chips, reason="sold")


def test_a_chip_that_is_gone_is_retired_and_owed_nothing_more(live: LiveHost) -> None:
    operator = Operator(live, (8 * SECOND_US, retire([LOST])))
    entries = live.run(lost_second(), 40)
    assert operator.replies[0].refused is None, operator.replies[0].detail
    (retired,) = (e for e in entries if isinstance(e, Retired))
    assert (retired.body.chips, retired.body.reason) == ([LOST], "sold")
    assert [len(e.body.chips) for e in entries if isinstance(e, Inventory)] == [2, 1]
    owed = silence(Origin("x"), fold(Origin("x"), EMPTY, entries).state, story(10_000))
    assert {gap.chip for gap in owed} == {HELD}
    assert [chip.uuid for chip in read_listed(live.folder)] == [HELD]


def test_a_retired_chip_that_answers_again_is_listed_and_owed_again(live: LiveHost) -> None:
    Operator(live, (8 * SECOND_US, retire([LOST])))
    entries = live.run(lost_second(), 90)
    assert [len(e.body.chips) for e in entries if isinstance(e, Inventory)] == [2, 1, 2]
    owed = silence(Origin("x"), fold(Origin("x"), EMPTY, entries).state, story(10_000))
    assert {gap.chip for gap in owed} == {HELD, LOST}


@pytest.mark.parametrize(
    ("chips", "refused"), [([HELD], "still_metered"), (["GPU-7"], "no_chip"), ([HELD, LOST], "still_metered")]
)
def test_what_still_works_or_was_never_here_is_not_retired(live: LiveHost, chips: list[str], refused: str) -> None:
    operator = Operator(live, (8 * SECOND_US, retire(chips)))
    entries = live.run(lost_second(), 20)
    assert operator.replies[0].refused == refused
    assert not any(isinstance(e, Retired) for e in entries)


def test_a_chip_that_went_before_this_start_can_be_retired(live: LiveHost) -> None:
    live.run(two_gpus(), 5)
    operator = Operator(live, (10 * SECOND_US, retire([LOST])))
    entries = live.run(Script().gpu(0).steady("0"), 20)
    assert operator.replies[0].refused is None, operator.replies[0].detail
    owed = silence(Origin("x"), fold(Origin("x"), EMPTY, entries).state, story(10_000))
    assert {gap.chip for gap in owed} == {HELD}


def test_a_host_is_retired_while_it_runs_and_is_not_started_again(live: LiveHost) -> None:
    operator = Operator(live, (8 * SECOND_US, retire(None)))
    entries: list[Entry] = live.run(steady_gpu(), 600)
    operator.look(live.stub.control.get("now_us"))
    assert operator.replies[0].refused is None, operator.replies[0].detail
    last = entries[-1]
    assert isinstance(last, Retired)
    assert last.body.chips is None
    assert last.time_us < story(20), "the run ends with it"
    assert not any(isinstance(e, Shutdown) for e in entries)
    assert (live.folder / "retired").exists()
    with pytest.raises(RefusedError, match="was retired"):
        live.run(steady_gpu(), 5)


def test_a_host_is_not_retired_before_the_verifier_was_asked(live: LiveHost) -> None:
    """A folder that was rolled back would end its log under a second head of some size."""
    asked = threading.Event()

    def hang(call: str, answer: Answer) -> Answer:
        if call == "head":
            asked.wait()
        return answer

    live.run(steady_gpu(), 5)
    live.verifier.interfere = hang
    operator = Operator(live, (8 * SECOND_US, retire(None)))
    with pytest.raises(AssertionError):
        # What it wrote meanwhile has no receipt.
        live.run(steady_gpu(), 600, drain_s=0)
    asked.set()
    operator.look(live.stub.control.get("now_us"))
    assert operator.replies[0].refused == "not_retired"
    assert b'"type":"retired"' not in (live.folder / "logs" / "1" / "tail").read_bytes()
    live.verifier.interfere = lambda _, answer: answer
    assert isinstance(live.run(steady_gpu(), 5)[-1], Shutdown)


# -- the asking side


def answered(folder: Path, reply: Callable[[control.Request], control.Reply]) -> threading.Thread:
    def obey() -> None:
        while (request := control.take(folder)) is None:
            time.sleep(0.005)
        control.answer(folder, reply(request))

    thread = threading.Thread(target=obey)
    thread.start()
    return thread


def test_no_receipt_is_no_decision(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    agent = answered(
        tmp_path,
        lambda request: control.Reply(
            id=request.id, refused=control.NO_RECEIPT, detail="not yet", hint=None, until_us=None
        ),
    )
    with pytest.raises(UnreachableError, match="not yet"):
        control.ask(tmp_path, roll(), 30)
    agent.join()
    lock.release()


def test_a_retirement_of_no_chip_is_no_request(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_bytes(encode(retire([])))
    assert control.take(tmp_path) is None
