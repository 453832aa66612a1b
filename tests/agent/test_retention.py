"""What is removed, what never is, and what a verifier that comes back from a backup is still told."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_agent.log import NodeLog
from keyturn_agent.ports import Answer
from keyturn_agent.removed import remember, removed_end, removed_root
from keyturn_agent.retention import EVERY_S, Kept, Retention, expired
from keyturn_agent.spool import Spool
from keyturn_agent.status import read_status
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.entries import Genesis
from keyturn_protocol.ids import Hash
from keyturn_protocol.segment import node_key
from tests.agent.fakes import FakeVerifier, refusal
from tests.agent.hosts import Host
from tests.agent.logs import BEAT, Recorder, make_log, reopen, stamp
from tests.agent.test_log import Crash, crash_at

DAY_S = 86_400
NOW_S = 1_790_000_000


def log_of(folder: Path, segments: int, receipted: int, days: Callable[[int], int] = lambda _: 0) -> NodeLog:
    """A log of segments of three entries, the first few receipted, the n-th of them so many days ago."""
    log = make_log(folder, Recorder())
    log.append([BEAT] * 2, stamp(1))
    for number in range(segments):
        log.seal()
        if number < receipted:
            start, end = 3 * number, 3 * number + 3
            log.spool.add_receipt(start, end, b"a receipt\n")
            moment = NOW_S - days(number) * DAY_S
            os.utime(folder / f"{start}-{end}.receipt", (moment, moment))
        if number + 1 < segments:
            log.append([BEAT] * 3, stamp(number + 2))
    return log


def left(folder: Path, kind: str = "segment") -> list[str]:
    return sorted((path.stem for path in folder.glob(f"*.{kind}")), key=lambda stem: int(stem.split("-")[1]))


def retention(days: int = 14, size: int = 2**30) -> Retention:
    return Retention(days * DAY_S, size, lambda: NOW_S)


def test_receipted_segments_go_after_their_time_and_the_newest_stays(tmp_path: Path) -> None:
    log = log_of(tmp_path / "1", 6, 6, lambda number: 16 - number)
    roots = {size: log.spool.root_at(size) for size in (3, 6, 9, 12, 15, 18)}
    assert retention().apply(log.spool) == 3
    assert left(tmp_path / "1") == ["9-12", "12-15", "15-18"]
    assert left(tmp_path / "1", "receipt") == ["9-12", "12-15", "15-18"]
    assert (log.spool.first, log.spool.receipted) == (9, 18)
    # Our own heads are known for ever: without that a restored verifier would look like a rollback of ours.
    assert {size: log.spool.root_at(size) for size in roots} == roots
    assert log.spool.root_at(4) is None
    log.close()
    again = reopen(tmp_path / "1", Recorder())
    assert {size: again.spool.root_at(size) for size in roots} == roots
    assert (again.spool.first, again.spool.receipted, again.size) == (9, 18, 18)
    assert retention(days=0).apply(again.spool) == 2
    assert left(tmp_path / "1") == ["15-18"]
    again.append([BEAT], stamp(2 * 10**9))
    again.seal()
    again.close()


def test_what_has_no_receipt_stays_however_old_and_large(tmp_path: Path) -> None:
    log = log_of(tmp_path / "1", 6, 2, lambda _: 400)
    assert retention(days=0, size=0).apply(log.spool) == 2
    assert left(tmp_path / "1") == ["6-9", "9-12", "12-15", "15-18"]
    upload = log.spool.upload(6)
    assert upload is not None
    assert upload.end == 18
    log.close()


def test_one_receipt_over_several_segments_counts_for_all_of_them(tmp_path: Path) -> None:
    log = log_of(tmp_path / "1", 4, 0)
    log.spool.add_receipt(0, 9, b"a receipt\n")
    os.utime(tmp_path / "1" / "0-9.receipt", (NOW_S - 20 * DAY_S,) * 2)
    assert retention().apply(log.spool) == 3
    assert left(tmp_path / "1") == ["9-12"]
    # The newest receipt says how far the verifier is; it stays.
    assert left(tmp_path / "1", "receipt") == ["0-9"]
    log.close()


def test_logs_that_were_left_are_tidied_too_and_count_first(tmp_path: Path) -> None:
    old = log_of(tmp_path / "1", 5, 3)
    old.close()
    log = log_of(tmp_path / "2", 5, 5)
    size = sum(path.stat().st_size for path in (tmp_path / "2").glob("*.segment"))
    assert retention(size=size + 100).apply(log.spool) == 2
    assert left(tmp_path / "1") == ["6-9", "9-12", "12-15"]
    assert len(left(tmp_path / "2")) == 5
    log.close()


def test_it_looks_once_an_hour(tmp_path: Path) -> None:
    log = log_of(tmp_path / "1", 3, 1, lambda _: 20)
    now = [NOW_S]
    rule = Retention(14 * DAY_S, 2**30, lambda: now[0])
    assert rule.apply(log.spool) == 1
    log.spool.add_receipt(3, 6, b"a receipt\n")
    os.utime(tmp_path / "1" / "3-6.receipt", (NOW_S - 20 * DAY_S,) * 2)
    now[0] += EVERY_S - 1
    assert rule.apply(log.spool) == 0
    now[0] += 1
    assert rule.apply(log.spool) == 1
    log.close()


@pytest.mark.parametrize("half", [False, True])
def test_a_crash_at_any_step_of_the_removal_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    for number in range(1, 100):
        folder = tmp_path / str(number) / "1"
        folder.parent.mkdir()
        log = log_of(folder, 5, 5, lambda _: 20)
        roots = {size: log.spool.root_at(size) for size in (3, 6, 9, 12, 15)}
        ended = True
        with crash_at(monkeypatch, number, half=half):
            try:
                retention().apply(log.spool)
            except Crash:
                ended = False
        log.close()
        again = reopen(folder, Recorder())
        assert {size: again.spool.root_at(size) for size in roots} == roots
        upload = again.spool.upload(again.spool.first)
        assert upload is not None
        retention().apply(again.spool)
        assert left(folder) == ["12-15"]
        assert removed_end(folder) == again.spool.first == 12
        again.close()
        if ended:
            assert number > 5
            return
    raise AssertionError


def test_a_torn_line_is_written_over(tmp_path: Path) -> None:
    roots = [Hash(bytes([n]) * 32) for n in range(3)]
    remember(tmp_path, [(5, roots[0])])
    with (tmp_path / "removed").open("ab") as file:
        file.write(b"9 abcdef")
    assert removed_end(tmp_path) == 5
    remember(tmp_path, [(9, roots[1]), (14, roots[2])])
    assert (tmp_path / "removed").read_text().count("\n") == 3
    assert [removed_root(tmp_path, size) for size in (5, 9, 14, 6)] == [*roots, None]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(0, 9))), st.integers(0, 9), st.integers(0, 40)
)
def test_what_stays_is_within_the_limits_or_protected_by_order(
    each: list[tuple[int, int, int]], keep_s: int, keep_bytes: int
) -> None:
    each.sort(key=lambda one: one[0])
    kept = [Kept(Path(str(folder)), n, n + 1, size, 10 - age) for n, (folder, age, size) in enumerate(each)]
    gone = expired(kept, keep_s, keep_bytes, 10)
    stay = [one for one in kept if one not in gone]
    for folder in {one.folder for one in kept}:
        ours = [one for one in kept if one.folder == folder]
        # A prefix of each log goes, so that what stays has no hole.
        assert [one for one in ours if one in gone] == ours[: sum(one in gone for one in ours)]
        rest = [one for one in ours if one in stay]
        assert not rest or 10 - rest[0].receipted_s < keep_s
    assert not stay or sum(one.bytes for one in stay) <= keep_bytes


def test_a_verifier_restored_to_before_what_is_kept_gets_the_next_incarnation(tmp_path: Path) -> None:
    verifier = FakeVerifier()
    host = Host(tmp_path / "state", verifier)
    host.enroll()
    assert host.run(checkpoint_s=10)
    (origin, log) = next(iter(verifier.logs.items()))
    spool = Spool(host.folder / "logs" / "1", node_key(log.head.name.origin, log.head.public_key))
    assert Retention(0, 0, lambda: NOW_S).apply(spool) > 0
    assert not (host.folder / "logs" / "1" / "0-1.segment").exists()

    def forgot(call: str, answer: Answer) -> Answer:
        return refusal(ProblemCode.BEHIND) if call == "segment" and len(verifier.logs) == 1 else answer

    verifier.interfere = forgot
    assert host.run(loops=3)
    status = read_status(host.folder)
    assert (status.incarnation, status.incarnation_reason) == (2, "rejected")
    genesis = verifier.entries(2)[0]
    assert isinstance(genesis, Genesis)
    assert genesis.body.previous is not None
    assert genesis.body.previous.origin == origin
