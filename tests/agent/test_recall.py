"""A verifier that lost whole logs: they come back in their order, and never hold up the newest one for long."""

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from keyturn_agent.errors import UnreachableError
from keyturn_agent.last_words import roll_key
from keyturn_agent.ports import Answer
from keyturn_agent.recall import TIRED, Recall
from keyturn_agent.removed import remember
from keyturn_agent.spool import read_segment
from keyturn_agent.status import read_status
from keyturn_agent.store import Store
from keyturn_agent.trail import Older, trail
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.ids import LogName, parse_origin
from keyturn_protocol.segment import parse_segment
from tests.agent.fakes import FakeVerifier, Log, refusal, unreachable
from tests.agent.hosts import START_S, Host

Logs = dict[str, Log]
PASS: Callable[[str, Answer], Answer] = lambda _, answer: answer  # noqa: E731


@dataclass
class Life:
    """A host that left its first log and rolled its key in the second; ``known[n]``: what its verifier knew then."""

    host: Host
    known: list[Logs]

    def copy(self, folder: Path) -> Host:
        shutil.copytree(self.host.folder, folder)
        host = Host(folder, self.host.verifier)
        host.real_s = self.host.real_s + 10_000
        return host


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    verifier = FakeVerifier()
    host = Host(tmp_path_factory.mktemp("life") / "state", verifier)
    known: list[Logs] = []

    def run() -> None:
        assert host.run(checkpoint_s=10)
        host.real_s += 10_000
        known.append(copy.deepcopy(verifier.logs))

    host.enroll()
    known.append(copy.deepcopy(verifier.logs))
    run()
    snapshot = host.folder.with_name("snapshot")
    shutil.copytree(host.folder, snapshot)
    run()
    shutil.rmtree(host.folder)
    shutil.copytree(snapshot, host.folder)
    run()
    run()
    roll_key(host.folder, lambda _: verifier, host.random, 20, START_S)
    run()
    run()
    assert read_status(host.folder).incarnation == 3
    return Life(host, known)


@pytest.fixture
def host(life: Life, tmp_path: Path) -> Host:
    verifier = life.host.verifier
    verifier.interfere = PASS
    verifier.calls.clear()
    verifier.logs = copy.deepcopy(life.known[-1])
    return life.copy(tmp_path / "state")


def receipts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("logs/*/*.receipt")}


def stored(verifier: FakeVerifier) -> dict[str, bytes]:
    return {
        f"logs/{parse_origin(origin).incarnation}/{start}-{end}.receipt": segment.receipt
        for origin, log in verifier.logs.items()
        for (start, end), segment in log.segments.items()
    }


def older(host: Host) -> list[Older]:
    store, _ = Store.open(host.folder, host.clock, host.real_s)
    try:
        return list(store.older())
    finally:
        store.close()


def finish(recall: Recall) -> None:
    while recall.going_on:
        assert recall.step(0) == 0


@pytest.mark.parametrize("back_to", range(6))
def test_all_that_was_receipted_comes_back_with_its_receipts(life: Life, host: Host, back_to: int) -> None:
    held = receipts(host.folder)
    host.verifier.logs = copy.deepcopy(life.known[back_to])
    assert host.run(checkpoint_s=10)
    assert read_status(host.folder).incarnation == 3
    assert held.items() <= stored(host.verifier).items()
    assert receipts(host.folder).items() <= stored(host.verifier).items()


def goes_on(host: Host, held: Mapping[str, bytes]) -> None:
    """A replay may end before the older logs are sent; each start goes on with them."""
    for _ in range(20):
        if held.items() <= stored(host.verifier).items():
            return
        assert host.run(checkpoint_s=10)


@pytest.mark.parametrize("newest", ["forgotten", "known in part"])
def test_a_verifier_that_goes_back_while_the_agent_runs_is_told_again(
    life: Life, host: Host, newest: str, caplog: pytest.LogCaptureFixture
) -> None:
    held = receipts(host.folder)
    first, second, third = sorted(host.verifier.logs)
    parts = {first: life.known[0][first]}
    if newest == "known in part":
        parts |= {second: life.known[3][second], third: life.known[5][third]}
    once: list[str] = []

    def go_back(call: str, answer: Answer) -> Answer:
        if call == "segment" and not once:
            once.append(call)
            host.verifier.logs = copy.deepcopy(parts)
        return answer

    host.verifier.interfere = go_back
    assert host.run(checkpoint_s=10)
    if newest == "known in part":
        # The end waits for the newest log only; the next start goes on with the others.
        assert "sending them again" in caplog.text
        assert host.run(checkpoint_s=10)
        goes_on(host, held)
    assert read_status(host.folder).incarnation == 3
    assert held.items() <= stored(host.verifier).items()


def test_a_receipt_that_was_damaged_here_is_replaced_by_another(life: Life, host: Host) -> None:
    host.verifier.logs = copy.deepcopy(life.known[0])
    place = min((host.folder / "logs" / "1").glob("*.receipt"), key=lambda path: -int(path.name.partition("-")[0]))
    before = place.read_bytes()
    place.write_bytes(before[:-8] + b"AAAAAA=\n")
    assert host.run()
    assert place.read_bytes() == stored(host.verifier)[str(place.relative_to(host.folder))]


def test_where_nothing_is_lost_one_question_is_all(host: Host) -> None:
    assert host.run(checkpoint_s=10)
    assert host.verifier.calls.count("head") == 2, "about the newest log, and about the one before it"


def test_cut_short_anywhere_it_is_finished_by_the_next_start(life: Life, host: Host) -> None:
    held = receipts(host.folder)
    host.verifier.logs = copy.deepcopy(life.known[0])
    left = len(held)
    for exchanges in (2, 4, 6):
        host.verifier.calls.clear()

        def cut(call: str, answer: Answer, most: int = exchanges) -> Answer:
            return unreachable(call, answer) if len(host.verifier.calls) > most else answer

        host.verifier.interfere = cut
        assert not host.run(drain_s=0)
        before, left = left, len(held.keys() - stored(host.verifier).keys())
        assert left <= before
    assert 0 < left < len(held)
    host.verifier.interfere = PASS
    assert host.run()
    assert held.items() <= stored(host.verifier).items()


def test_where_the_newest_is_known_it_is_sent_between_the_older_ones(life: Life, host: Host) -> None:
    """And goes on where nothing of the older ones is taken."""
    _, second, newest = sorted(host.verifier.logs)
    host.verifier.logs[second] = copy.deepcopy(life.known[3][second])
    sent: list[int] = []
    real = host.verifier._receive

    def receive(data: bytes) -> Answer:
        sent.append(parse_segment(data).name.incarnation)
        return refusal(ProblemCode.OVERLOADED) if sent[-1] == 2 and refused else real(data)

    host.verifier._receive = receive  # type: ignore[method-assign]
    try:
        for refused in (True, False):  # noqa: B007
            sent.clear()
            host.run(checkpoint_s=10)
            assert read_status(host.folder).receipted == host.verifier.logs[newest].head.size
            assert {2, 3} <= set(sent)
    finally:
        host.verifier._receive = real  # type: ignore[method-assign]
    goes_on(host, receipts(host.folder))
    assert receipts(host.folder).items() <= stored(host.verifier).items()


def test_the_newest_waits_for_the_older_ones_and_not_for_ever(life: Life, host: Host) -> None:
    host.verifier.logs = copy.deepcopy(life.known[0])
    recall = Recall(host.verifier, host.verifier.pinned.receipt_key)
    recall.begin(older(host))
    assert recall.holds
    # Without any answer the newest gets none either.
    host.verifier.interfere = unreachable
    for _ in range(2 * TIRED):
        assert recall.step(0) > 0
    assert recall.holds
    host.verifier.interfere = lambda _, answer: refusal(ProblemCode.OVERLOADED)
    waits = []
    while recall.holds:
        waits.append(recall.step(0))
    assert (len(waits), recall.going_on) == (TIRED, True)
    host.verifier.interfere = PASS
    finish(recall)
    assert {parse_origin(origin).incarnation for origin in host.verifier.logs} == {1, 2}
    assert not recall.holds
    recall.begin(older(host))
    waits = []
    host.verifier.interfere = lambda _, answer: refusal(ProblemCode.OVERLOADED)
    while recall.holds:
        waits.append(recall.step(0))
    assert sum(waits) >= 600, "in good time for a verifier that is busy"


@pytest.mark.parametrize("code", [ProblemCode.LOG_FROZEN, ProblemCode.DAMAGED_SEGMENT, ProblemCode.UNKNOWN_LOG])
def test_what_is_refused_is_given_up_and_said(
    life: Life, host: Host, code: ProblemCode, caplog: pytest.LogCaptureFixture
) -> None:
    host.verifier.logs = copy.deepcopy(life.known[3])
    host.verifier.interfere = lambda call, answer: refusal(code) if call == "segment" else answer
    recall = Recall(host.verifier, host.verifier.pinned.receipt_key)
    recall.begin(older(host))
    while recall.going_on:
        recall.step(0)
    assert f"doesn't take them back: {code}" in caplog.text
    assert host.verifier.calls.count("segment") in (1, 3)


def test_what_was_damaged_or_removed_here_is_named(life: Life, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    folder = host.folder / "logs" / "1"
    opening, second, *_ = sorted(folder.glob("*.segment"), key=lambda path: int(path.name.partition("-")[0]))
    whole = second.read_bytes()

    def remove() -> None:
        heads = [read_segment(path).checkpoint for path in (opening, second)]
        remember(folder, [(head.size, head.root) for head in heads])

    def damage() -> None:
        second.write_bytes(whole[:-1])

    for spoil, said in ((damage, "can't be given back: "), (remove, "of which the first were removed here")):
        second.write_bytes(whole)
        spoil()
        host.verifier.logs = copy.deepcopy(life.known[0])
        recall = Recall(host.verifier, host.verifier.pinned.receipt_key)
        recall.begin(older(host))
        finish(recall)
        assert said in caplog.text
        # What came after it is given back all the same.
        assert [log.head.size > 1 for _, log in sorted(host.verifier.logs.items())] == [False, True]


def test_a_head_that_is_not_ours_gives_nothing_back(life: Life, host: Host) -> None:
    """A folder that was rolled back knows less of that log than the verifier has."""
    host.verifier.logs = copy.deepcopy(life.known[2])
    recall = Recall(host.verifier, host.verifier.pinned.receipt_key)
    recall.begin(older(host)[:1])
    finish(recall)
    assert "segment" not in host.verifier.calls


def test_each_log_has_the_key_that_signed_it(life: Life, host: Host) -> None:
    found = older(host)
    assert [parse_origin(one.key.name).incarnation for one in found] == [1, 2]
    genesis = [host.verifier.entries(number)[0] for number in (1, 2, 3)]
    keys = [entry.body.public_key for entry in genesis]  # type: ignore[union-attr]
    assert [one.key.public_key.hex() for one in found] == keys[:2]
    # With one more log the third is an older one, under the key that the end of the second named.
    third = parse_origin(sorted(host.verifier.logs)[2])
    again = trail(
        host.folder / "logs", found[0].key.public_key, LogName(third.deployment, third.node_id, third.incarnation + 1)
    )
    assert again[-1].key.public_key.hex() == keys[2] != keys[1]
    # Where that end is gone nobody knows the key of what follows.
    for path in (host.folder / "logs" / "2").glob("*.segment"):
        path.unlink()
    again = trail(
        host.folder / "logs", found[0].key.public_key, LogName(third.deployment, third.node_id, third.incarnation + 1)
    )
    assert [parse_origin(one.key.name).incarnation for one in again] == [1, 2]


def test_nobody_answers(host: Host) -> None:
    host.verifier.interfere = unreachable
    recall = Recall(host.verifier, host.verifier.pinned.receipt_key)
    recall.begin(older(host))
    assert recall.step(0) > 0
    assert "no network" in recall.why
    with pytest.raises(UnreachableError):
        host.verifier.head("x")
