"""State that goes back in time: snapshots that are put back, backups that are restored, hosts that are cloned.

A host that forgot what it signed must sign nothing more in that log; a verifier that forgot what it receipted must get
it back, with the receipts that it gave. Two hosts with one key are found by what they sign.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from keyturn_agent.status import read_status
from keyturn_protocol.findings import FindingCode
from tests.faults.after import SILENCE, check, receipts
from tests.faults.site import Agent
from tests.faults.table import LONG, record
from tests.support.verifier import Verifier
from tests.verifier.test_rollback import Site, on_file, on_server

ROUNDS = 12 if LONG else 1


@pytest.mark.parametrize("times", range(1, 4 if LONG else 2))
def test_a_host_that_was_put_back_goes_on_in_another_log(tmp_path: Path, times: int) -> None:
    """As often as it happens: a log of its own each time, and what was receipted stays."""
    given: dict[tuple[str, int], bytes] = {}
    with Verifier(tmp_path / "site") as verifier:
        host = Agent(tmp_path / "host", verifier)
        assert host.run()
        for number in range(times):
            kept = host.copy(tmp_path / f"kept-{number}")
            assert host.run()
            given |= receipts(host.folder)
            host.restore(kept)
            assert host.run()
            assert read_status(host.folder).incarnation_reason == "rollback"
        expect = {FindingCode.NEW_INCARNATION, FindingCode.LOST_HEAD}
        after = check(verifier, tmp_path / "out", [host.folder], given=given, expect=expect)
    assert after.report.logs == 1 + times
    expected = "another incarnation; the verifier keeps what the host forgot"
    record("faults", "agent", "state folder put back to a snapshot", expected=expected, seen=after.seen)


@pytest.mark.parametrize("kind", [on_file, on_server], ids=["sqlite", "postgres"])
def test_a_verifier_that_was_put_back_is_told_again(
    tmp_path: Path, kind: Callable[[Path], AbstractContextManager[Site]]
) -> None:
    with kind(tmp_path / "site") as (start, keep, restore):
        with start() as verifier:
            hosts = [Agent(tmp_path / f"host-{number}", verifier) for number in range(3 if LONG else 1)]
            assert all(host.run() for host in hosts)
        keep()
        with start() as verifier:
            for _ in range(2):
                assert all(host.run(url=verifier.client.url) for host in hosts)
        given = {key: receipt for host in hosts for key, receipt in receipts(host.folder).items()}
        restore()
        with start() as verifier:
            assert all(host.run(url=verifier.client.url) for host in hosts)
            folders = [host.folder for host in hosts]
            expect = {FindingCode.VERIFIER_ROLLBACK}
            after = check(verifier, tmp_path / "out", folders, given=given, expect=expect)
            assert after.report.logs == len(hosts)
    where = "verifier (SQLite)" if kind is on_file else "verifier (PostgreSQL)"
    expected = "the same receipts again, no other incarnation"
    record("faults", where, "database put back to a backup", expected=expected, seen=after.seen)


@pytest.mark.parametrize("kept", range(1, 4 if LONG else 2))
def test_a_verifier_that_lost_older_logs_of_a_host_too_is_told_again(tmp_path: Path, kept: int) -> None:
    """One log is left, the next ends with a key roll. What is put back knows ``kept`` of three, the last in part."""
    with on_file(tmp_path / "site") as (start, keep, restore):
        with start() as verifier:
            host = Agent(tmp_path / "host", verifier)
            assert host.run()
        before = host.copy(tmp_path / "before")
        for number in range(1, 4):
            if number == kept:
                keep()
            with start() as verifier:
                url = verifier.client.url
                assert host.run(url=url)
                if number == 1:
                    host.restore(before)
                if number == 2:
                    host.roll(url)
                assert host.run(url=url)
        assert read_status(host.folder).incarnation == 3
        given = receipts(host.folder)
        restore()
        with start() as verifier:
            assert host.run(url=verifier.client.url)
            assert read_status(host.folder).incarnation == 3
            expect = {FindingCode.VERIFIER_ROLLBACK, FindingCode.NEW_INCARNATION}
            allow = {FindingCode.LOST_HEAD, *SILENCE}
            after = check(verifier, tmp_path / "out", [host.folder], given=given, expect=expect, allow=allow)
            assert after.report.logs == 3
    record("faults", "verifier (SQLite)", "database put back to before further logs of a host",
           expected="all of them again, in their order, with the same receipts", seen=after.seen)  # fmt: skip


@pytest.mark.parametrize("further", ["host", "verifier"])
def test_a_verifier_and_a_host_that_were_both_put_back(tmp_path: Path, further: str) -> None:
    """One of them to an older state than the other: what either still knows is lost by neither."""
    with on_file(tmp_path / "site") as (start, keep, restore):
        with start() as verifier:
            host = Agent(tmp_path / "host", verifier)
            assert host.run()
        older = host.copy(tmp_path / "older")
        if further == "verifier":
            keep()
        with start() as verifier:
            assert host.run(url=verifier.client.url)
        if further == "host":
            keep()
        else:
            older = host.copy(tmp_path / "newer")
        with start() as verifier:
            assert host.run(url=verifier.client.url)
        restore()
        host.restore(older)
        with start() as verifier:
            assert host.run(url=verifier.client.url)
            if further == "host":
                expect = {FindingCode.NEW_INCARNATION, FindingCode.LOST_HEAD}
            else:
                expect = {FindingCode.VERIFIER_ROLLBACK}
            after = check(verifier, tmp_path / "out", [host.folder], expect=expect)
    expected = "what either still knows is there"
    record("faults", "agent and verifier", f"both put back, the {further} further", expected=expected, seen=after.seen)


def test_a_clone_that_starts_later_leaves_the_log_to_the_first(tmp_path: Path) -> None:
    with Verifier(tmp_path / "site") as verifier:
        first = Agent(tmp_path / "first", verifier)
        assert first.run()
        clone = first.copy(tmp_path / "clone")
        for _ in range(ROUNDS):
            assert first.run()
            assert clone.run()
        assert read_status(first.folder).incarnation == 1
        assert read_status(clone.folder).incarnation == 2
        expect = {FindingCode.NEW_INCARNATION, FindingCode.LOST_HEAD}
        after = check(verifier, tmp_path / "out", [first.folder, clone.folder], expect=expect)
    record("faults", "agent", "host cloned, the clone starts later",
           expected="each goes on in a log of its own", seen=after.seen)  # fmt: skip


def test_clones_that_both_asked_before_either_sent_are_found_by_their_two_heads(tmp_path: Path) -> None:
    with Verifier(tmp_path / "site") as verifier:
        first = Agent(tmp_path / "first", verifier)
        assert first.run()
        clone = first.copy(tmp_path / "clone")
        clone.run(meanwhile=first.run, drain_s=5)
        given = receipts(first.folder) | receipts(clone.folder)
        expect = {FindingCode.FORK, FindingCode.NEW_INCARNATION}
        allow = {FindingCode.LOST_HEAD, *SILENCE}
        after = check(verifier, tmp_path / "out", given=given, expect=expect, allow=allow, contradicted=True)
        assert verifier.count("evidence") == 1
        assert sum(one.code is FindingCode.FORK for one in after.report.findings) == 1
    expected = "frozen, both heads are evidence; nothing receipted is lost"
    record("faults", "agent", "host cloned, both run at once", expected=expected, seen=after.seen)


@pytest.mark.skipif(not LONG, reason="a race: make faults")
@pytest.mark.parametrize("turn", range(ROUNDS))
def test_clones_that_race(tmp_path: Path, turn: int) -> None:
    """Whichever of the two is told first: by two heads of one size, or by a head that it never signed."""
    with Verifier(tmp_path / "site") as verifier:
        first = Agent(tmp_path / "first", verifier)
        assert first.run()
        hosts = [first, first.copy(tmp_path / "clone")]
        gate = threading.Barrier(2)
        threads = [threading.Thread(target=host.run, kwargs={"meanwhile": gate.wait, "drain_s": 2}) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        given = receipts(hosts[0].folder) | receipts(hosts[1].folder)
        expect, allow = {FindingCode.NEW_INCARNATION}, {FindingCode.FORK, FindingCode.LOST_HEAD, *SILENCE}
        after = check(verifier, tmp_path / "out", given=given, expect=expect, allow=allow, contradicted=None)
    record("faults", "agent", "host cloned, a race", expected="a fork, or another incarnation", seen=after.seen)


def test_a_backup_from_before_the_enrolment_is_said_plainly(tmp_path: Path) -> None:
    """The verifier doesn't know the host any more: nothing is thrown away, and the host says what to do."""
    with on_file(tmp_path / "site") as (start, keep, restore):
        with start():
            pass
        keep()
        with start() as verifier:
            host = Agent(tmp_path / "host", verifier)
            assert host.run()
        before = receipts(host.folder)
        restore()
        with start() as verifier:
            assert not host.run(url=verifier.client.url, drain_s=1)
            after = check(verifier, tmp_path / "out")
        assert before.items() <= receipts(host.folder).items()
        live = read_status(host.folder).live
        assert live is not None
        assert "is not enrolled here" in (live.last_error or "")
    record("faults", "verifier (SQLite)", "database put back to before an enrolment",
           expected="the host keeps its log and says that it isn't enrolled", seen=after.seen)  # fmt: skip
