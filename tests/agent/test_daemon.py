"""The whole agent in simulated time against a verifier that decides with the real rules."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from keyturn_agent.errors import RefusedError
from keyturn_agent.ports import Answer
from keyturn_agent.recording import format_recording
from keyturn_agent.status import read_status
from keyturn_agent.store import FolderLock
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.entries import Degraded, Gap, Genesis, Heartbeat, Inventory, Shutdown, Usage, WorkloadStarted
from keyturn_protocol.ids import Origin
from keyturn_protocol.usage import EMPTY, fold
from tests.agent.fakes import FakeVerifier, refusal, unreachable
from tests.agent.hosts import START_US, Host
from tests.agent.samples import header, reading, recorded, steady


@pytest.fixture
def verifier() -> FakeVerifier:
    return FakeVerifier()


@pytest.fixture
def host(tmp_path: Path, verifier: FakeVerifier) -> Host:
    host = Host(tmp_path / "state", verifier)
    host.enroll()
    return host


def test_a_recording_becomes_a_receipted_log_with_its_true_sums(host: Host, verifier: FakeVerifier) -> None:
    assert host.run()
    entries = verifier.entries()
    usage = [e.body for e in entries if isinstance(e, Usage)]
    assert len(usage) == 6
    assert sum(u.energy_mj[0] or 0 for u in usage) == 60 * 300_000
    assert sum(u.tensor_mcycles[0] or 0 for u in usage) == 60 * 500
    assert sum(u.active_mcycles[0] or 0 for u in usage) == 60 * 800
    assert sum(u.to_us - u.from_us for u in usage) == 60_000_000
    assert {s.share_ppm for u in usage for s in u.workloads} == {1_000_000}
    (started,) = (e for e in entries if isinstance(e, WorkloadStarted))
    assert (started.body.id, started.body.declared_dtype) == ("run:w", "bf16")
    kinds = Counter(type(e).__name__ for e in entries)
    once = dict.fromkeys(("Genesis", "Inventory", "WorkloadStarted", "WorkloadEnded", "Shutdown"), 1)
    assert kinds == once | {"Usage": 6, "Heartbeat": 2}
    assert isinstance(entries[0], Genesis)
    assert entries[0].body.source == "replay"
    assert isinstance(entries[-1], Shutdown)
    assert not fold(Origin("x"), EMPTY, entries).gaps


def test_a_second_start_goes_on_in_the_same_log(host: Host, verifier: FakeVerifier) -> None:
    assert host.run()
    assert host.run()
    entries = verifier.entries()
    assert sum(isinstance(e, Inventory) for e in entries) == 2
    assert [e.seq for e in entries] == list(range(len(entries)))
    assert len(verifier.logs) == 1


def test_a_lost_driver_is_a_gap_with_a_cause_and_no_usage(host: Host, verifier: FakeVerifier) -> None:
    samples = steady(60)
    for second in range(20, 41):
        samples[second] = recorded(second * 1_000_000, None, error="driver_lost")
    assert host.run(format_recording(header(1, ("run:w",)), samples), checkpoint_s=10)
    entries = verifier.entries()
    usage = [e.body for e in entries if isinstance(e, Usage)]
    covered = [(u.from_us - START_US, u.to_us - START_US) for u in usage]
    lost = (19_000_000, 41_000_000)
    assert all(to <= lost[0] or start >= lost[1] for start, to in covered)
    assert sum(to - start for start, to in covered) == 60_000_000 - (lost[1] - lost[0])
    assert sum(u.energy_mj[0] or 0 for u in usage) == 300_000 * 38
    gaps = [(e.body.from_us - START_US, e.body.to_us - START_US, e.body.cause) for e in entries if isinstance(e, Gap)]
    assert gaps[-1] == (*lost, "driver_lost")
    assert len(gaps) > 2
    assert {gap[0] for gap in gaps} == {lost[0]}
    assert [e.body.cause for e in entries if isinstance(e, Degraded)] == ["driver_lost"]
    (derived,) = fold(Origin("x"), EMPTY, entries).gaps
    assert (derived.from_us - START_US, derived.to_us - START_US) == lost


def test_heartbeats_quote_the_checked_head_of_the_verifiers_log(host: Host, verifier: FakeVerifier) -> None:
    assert host.run()
    # The first run has fetched it before its end; a beat of a later one quotes it as soon as it is there.
    while not any(isinstance(e, Heartbeat) and e.body.verifier_checkpoint for e in verifier.entries()):
        host.run(loops=30)


def test_an_unreachable_verifier_loses_nothing(host: Host, verifier: FakeVerifier) -> None:
    verifier.interfere = unreachable
    assert not host.run(drain_s=0)
    before = read_status(host.folder)
    assert before.receipted == 1
    assert before.sealed > 5
    verifier.interfere = lambda _, answer: answer
    assert host.run()
    assert len(verifier.entries()) == read_status(host.folder).sealed
    assert len(verifier.logs) == 1


def test_a_lost_answer_is_asked_for_again(host: Host, verifier: FakeVerifier) -> None:
    verifier.interfere = lambda call, answer: unreachable(call, answer) if call == "segment" else answer
    assert not host.run(drain_s=1)
    verifier.interfere = lambda _, answer: answer
    assert host.run()
    status = read_status(host.folder)
    assert status.receipted == status.sealed == len(verifier.entries())


def forged(verifier: FakeVerifier) -> Callable[[str, Answer], Answer]:
    other = FakeVerifier()
    other.logs, other.joined = verifier.logs, verifier.joined

    def interfere(call: str, answer: Answer) -> Answer:
        if call != "segment" or answer.status != 200:
            return answer
        return Answer(200, "text/plain", None, other.receipt(b"any\n1\n" + b"A" * 43 + b"=\n"))

    return interfere


def test_a_receipt_by_another_key_is_not_kept(host: Host, verifier: FakeVerifier) -> None:
    receipts = sorted(host.folder.rglob("*.receipt"))
    verifier.interfere = forged(verifier)
    assert not host.run(drain_s=1)
    assert sorted(host.folder.rglob("*.receipt")) == receipts
    live = read_status(host.folder).live
    assert live is not None
    assert "not valid under the pinned key" in (live.last_error or "")


def test_a_folder_restored_from_a_backup_opens_the_next_incarnation(
    host: Host, verifier: FakeVerifier, tmp_path: Path
) -> None:
    assert host.run()
    shutil.copytree(host.folder, tmp_path / "backup")
    assert host.run()
    first = len(verifier.entries(1))
    shutil.rmtree(host.folder)
    shutil.copytree(tmp_path / "backup", host.folder)
    assert host.run()
    assert len(verifier.entries(1)) == first
    genesis = verifier.entries(2)[0]
    assert isinstance(genesis, Genesis)
    assert genesis.body.previous is not None
    assert genesis.body.previous.reason == "rollback"
    assert genesis.body.previous.size < first
    assert sum(isinstance(e, Inventory) for e in verifier.entries(2)) == 1
    assert all(log.head.frozen is None for log in verifier.logs.values())


def test_a_clone_leaves_the_log_to_the_host_that_went_on(host: Host, verifier: FakeVerifier, tmp_path: Path) -> None:
    assert host.run()
    clone = Host(tmp_path / "clone", verifier)
    shutil.copytree(host.folder, clone.folder)
    assert host.run()
    assert clone.run()
    assert read_status(clone.folder).incarnation == 2
    assert read_status(host.folder).incarnation == 1


def test_a_rejected_log_is_kept_and_followed_by_the_next(host: Host, verifier: FakeVerifier) -> None:
    refused: list[str] = []

    def interfere(call: str, answer: Answer) -> Answer:
        if call == "segment" and not refused:
            refused.append(call)
            return refusal(ProblemCode.LOG_FROZEN)
        return answer

    verifier.interfere = interfere
    assert host.run(loops=20)
    status = read_status(host.folder)
    assert (status.incarnation, status.incarnation_reason) == (2, "rejected")
    assert any((host.folder / "logs" / "1").glob("*.segment"))
    genesis = verifier.entries(2)[0]
    assert isinstance(genesis, Genesis)
    assert genesis.body.previous is not None
    assert genesis.body.previous.reason == "rejected"


def test_incarnations_do_not_follow_each_other_without_end(host: Host, verifier: FakeVerifier) -> None:
    verifier.interfere = lambda call, answer: refusal(ProblemCode.LOG_FROZEN) if call == "segment" else answer
    for _ in range(4):
        assert not host.run(drain_s=1)
    assert read_status(host.folder).incarnation == 2
    host.real_s += 601
    assert not host.run(drain_s=1)
    assert read_status(host.folder).incarnation == 3


def test_a_verifier_that_forgot_is_told_again(host: Host, verifier: FakeVerifier) -> None:
    assert host.run()
    (log,) = verifier.logs.values()
    # Restored to the state after the genesis.
    (origin,) = verifier.logs
    kept = log.lines[0]
    verifier.logs.clear()
    again = Host(host.folder, verifier)
    again.random = host.random
    segment = next((host.folder / "logs" / "1").glob("0-1.segment")).read_bytes()
    assert verifier.send_segment(segment).status == 200
    assert again.run()
    assert verifier.logs[origin].lines[0] == kept
    assert len(verifier.entries()) == read_status(host.folder).sealed


def test_damage_under_a_signed_head_opens_the_next_incarnation(host: Host, verifier: FakeVerifier) -> None:
    assert host.run()
    newest = max((host.folder / "logs" / "1").glob("*.segment"), key=lambda p: int(p.stem.split("-")[1]))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert host.run()
    status = read_status(host.folder)
    assert (status.incarnation, status.incarnation_reason) == (2, "damaged")
    genesis = verifier.entries(2)[0]
    assert isinstance(genesis, Genesis)
    assert genesis.body.previous is not None
    assert genesis.body.previous.size == len(verifier.entries(1))


def test_one_folder_one_process(host: Host) -> None:
    lock = FolderLock(host.folder)
    with pytest.raises(RefusedError, match="is in use by process"):
        host.run()
    lock.release()
    assert host.run()


def test_readings_without_chips_at_the_start_are_a_gap_from_the_start(host: Host, verifier: FakeVerifier) -> None:
    samples = [recorded(s * 1_000_000, None, error="no_driver") for s in range(5)]
    samples += [recorded(s * 1_000_000, reading(energy_mj=s * 7)) for s in range(5, 9)]
    assert host.run(format_recording(header(), samples))
    gap = next(e.body for e in verifier.entries() if isinstance(e, Gap))
    assert (gap.from_us - START_US, gap.to_us - START_US, gap.chips) == (0, 5_000_000, None)
    assert sum(e.body.energy_mj[0] or 0 for e in verifier.entries() if isinstance(e, Usage)) == 21
