"""Key rolls and retirements: what the verifier accepts afterwards, and what a crash at any step leaves."""

from itertools import count
from pathlib import Path

import pytest

from keyturn_agent.clock import SimulatedClock
from keyturn_agent.errors import RefusedError, StoreError, UnreachableError, UsageError
from keyturn_agent.keyring import CREDENTIAL, Keyring
from keyturn_agent.last_words import finish_retirement, retire, roll_key
from keyturn_agent.signer import FileSigner
from keyturn_agent.status import read_status
from keyturn_agent.store import FolderLock, Store, read_enrolment
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.entries import Genesis, KeyRoll, Retired, Usage
from tests.agent.fakes import FakeVerifier, refusal, unreachable
from tests.agent.hosts import START_S, Host
from tests.agent.test_log import Crash, crash_at
from tests.support.descriptors import descriptors


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path / "state", FakeVerifier())
    host.enroll()
    assert host.run()
    return host


def roll(host: Host, patience_s: float = 20) -> str:
    return roll_key(host.folder, lambda _: host.verifier, host.random, patience_s, START_S)


def end(host: Host, chips: list[str] | None, patience_s: float = 20) -> None:
    retire(host.folder, chips, "sold", lambda _: host.verifier, host.random, patience_s, START_S)


def key(host: Host) -> bytes:
    return FileSigner.load(host.folder / "key").public_key


def test_after_a_roll_the_log_goes_on_under_the_new_key_only(host: Host) -> None:
    old = key(host)
    assert roll(host).endswith("/2")
    new = key(host)
    assert new != old
    assert not (host.folder / "key.next").exists()
    last, first = host.verifier.entries(1)[-1], host.verifier.entries(2)[0]
    assert isinstance(last, KeyRoll)
    assert isinstance(first, Genesis)
    assert last.body.next_public_key == first.body.public_key == new.hex()
    assert first.body.previous is not None
    assert (first.body.previous.reason, first.body.previous.size) == ("key_roll", len(host.verifier.entries(1)))
    assert host.run()
    assert any(isinstance(e, Usage) for e in host.verifier.entries(2))
    assert roll(host).endswith("/3")
    assert key(host) not in (old, new)
    assert host.run()
    status = read_status(host.folder)
    assert (status.incarnation, status.incarnation_reason) == (3, "key_roll")
    assert status.sealed == status.receipted == len(host.verifier.entries(3))


def test_without_a_verifier_nothing_is_rolled(host: Host) -> None:
    old = key(host)
    host.verifier.interfere = unreachable
    host.run(drain_s=0)
    with pytest.raises(UnreachableError, match="the key was not rolled"):
        roll(host, 0.2)
    assert (key(host), (host.folder / "key.next").exists()) == (old, False)
    assert read_status(host.folder).incarnation == 1


def test_nothing_is_signed_before_the_verifier_has_said_what_it_has(host: Host) -> None:
    """A folder that was rolled back can't know by itself that it was: all that it knows of is receipted."""
    size = len(host.verifier.entries())
    head = host.verifier.head
    busy = refusal(ProblemCode.OVERLOADED)
    for answer in (lambda _: unreachable("head", busy), lambda _: busy):
        host.verifier.head = answer  # type: ignore[method-assign]
        for word in (roll, lambda host: end(host, None), lambda host: end(host, ["GPU-0"])):
            with pytest.raises(UnreachableError, match=r"^(the key was not rolled|nothing was retired)"):
                word(host)
            assert read_status(host.folder).sealed == size
            assert not (host.folder / "logs" / "1" / "tail").read_bytes()
    host.verifier.head = head  # type: ignore[method-assign]
    # One that has lost this log says so, and gets all of it back first.
    host.verifier.logs.clear()
    assert roll(host).endswith("/2")
    assert len(host.verifier.entries(1)) == size + 1


def test_a_roll_without_its_receipt_keeps_the_old_key_and_the_agent_finishes_it(host: Host) -> None:
    old = key(host)
    before = len(host.verifier.entries(1))
    host.verifier.interfere = lambda call, answer: unreachable(call, answer) if call == "segment" else answer
    real = host.verifier._receive
    host.verifier._receive = lambda data: refusal(ProblemCode.OVERLOADED)  # type: ignore[method-assign]
    with pytest.raises(UnreachableError, match="not receipted yet"):
        roll(host, 0.5)
    assert key(host) == old
    assert (host.folder / "key.next").exists()
    assert read_status(host.folder).incarnation == 2
    assert len(host.verifier.entries(1)) == before
    host.verifier._receive = real  # type: ignore[method-assign]
    host.verifier.interfere = lambda _, answer: answer
    assert host.run(checkpoint_s=10)
    assert isinstance(host.verifier.entries(1)[-1], KeyRoll)
    assert any(isinstance(e, Usage) for e in host.verifier.entries(2))
    # The receipt came while the agent ran, or at its end: with the next start the old key is gone at the latest.
    assert host.run()
    assert key(host) != old
    assert not (host.folder / "key.next").exists()


def test_a_roll_that_the_verifier_refuses_leaves_the_old_key_in_charge(host: Host) -> None:
    old = key(host)
    real = host.verifier._receive
    host.verifier._receive = lambda data: (  # type: ignore[method-assign]
        refusal(ProblemCode.LOG_FROZEN) if b'"type":"key_roll"' in data else real(data)
    )
    with pytest.raises(RefusedError):
        roll(host)
    host.real_s += 10_000
    assert host.run(loops=3)
    status = read_status(host.folder)
    assert (status.incarnation, status.incarnation_reason) == (3, "rejected")
    genesis = host.verifier.entries(3)[0]
    assert isinstance(genesis, Genesis)
    assert genesis.body.public_key == old.hex() == key(host).hex()


def test_a_crash_at_any_step_of_a_roll_is_made_good_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in count(1):
        host = Host(tmp_path / str(number), FakeVerifier())
        host.enroll()
        host.run()
        old, ended = key(host), True
        with crash_at(monkeypatch, number, half=False):
            try:
                roll(host, 0.3)
            except (Crash, UnreachableError, StoreError):
                ended = False
        assert host.run(checkpoint_s=10)
        rolled = read_status(host.folder).incarnation == 2
        if not rolled:
            # Cut short before the log's last entry: the old key goes on, and a roll can be begun again.
            assert key(host) == old
            assert roll(host).endswith("/2")
        assert host.run()
        assert key(host) != old
        assert not (host.folder / "key.next").exists()
        assert len(host.verifier.entries(2)) == read_status(host.folder).receipted
        assert all(log.head.frozen is None for log in host.verifier.logs.values())
        if ended:
            assert number > 15
            return


def test_chips_that_are_retired_are_named_and_the_agent_goes_on(host: Host) -> None:
    end(host, ["GPU-0", "GPU-0"])
    last = host.verifier.entries()[-1]
    assert isinstance(last, Retired)
    assert (last.body.chips, last.body.reason) == (["GPU-0"], "sold")
    with pytest.raises(UsageError, match="--chips: not a chip of this host: GPU-7"):
        end(host, ["GPU-7"])
    assert host.run()


def test_a_host_that_is_retired_writes_no_more(host: Host) -> None:
    end(host, None)
    last = host.verifier.entries()[-1]
    assert isinstance(last, Retired)
    assert last.body.chips is None
    for attempt in (host.run, lambda: roll(host)):
        with pytest.raises(RefusedError, match="this host was retired"):
            attempt()
    # Asked for again, it says the same and adds nothing.
    end(host, None)
    assert host.verifier.entries()[-1] == last


@pytest.mark.parametrize("again", ["retire", "start"])
def test_a_crash_at_any_step_of_a_retirement_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """By the same command, or by the agent's start where the log has ended."""
    for number in count(1):
        host = Host(tmp_path / str(number), FakeVerifier())
        host.enroll()
        ended, open_files = True, descriptors()
        with crash_at(monkeypatch, number, half=False):
            try:
                end(host, None)
            except Crash:
                ended = False
        assert descriptors() == open_files, "what failed lets go of its files"
        if again == "retire" or not finish(host):
            end(host, None)
        assert isinstance(host.verifier.entries()[-1], Retired)
        status = read_status(host.folder)
        assert status.sealed == status.receipted == len(host.verifier.entries())
        assert not (host.folder / "logs" / "1" / "tail").read_bytes(), "entries that no head covers"
        assert (host.folder / "retired").exists()
        if ended:
            assert number > 8
            return


def test_a_crash_at_any_step_of_retiring_chips_has_the_log_say_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in count(1):
        host = Host(tmp_path / str(number), FakeVerifier())
        host.enroll()
        ended = True
        with crash_at(monkeypatch, number, half=False):
            try:
                end(host, ["GPU-0"])
            except Crash:
                ended = False
        if not ended:
            end(host, ["GPU-0"])
        assert sum(isinstance(entry, Retired) for entry in host.verifier.entries()) == 1, f"cut short at {number}"
        if ended:
            assert number > 8
            return


def test_a_chip_that_was_listed_again_is_retired_again(host: Host) -> None:
    end(host, ["GPU-0"])
    assert host.run()
    end(host, ["GPU-0"])
    assert sum(isinstance(entry, Retired) for entry in host.verifier.entries()) == 2


def finish(host: Host) -> bool:
    """What the agent's start does with a log that has ended; returns whether this one has."""
    try:
        store, _ = Store.open(host.folder, lambda _: SimulatedClock(START_S * 10**6, host.random.uuid4()), START_S)
    except RefusedError:
        finish_retirement(host.folder, lambda _: host.verifier, host.random, 20, START_S)
        return True
    store.close()
    return False


def test_a_retirement_without_a_receipt_is_sent_again(host: Host) -> None:
    size = len(host.verifier.entries())
    real = host.verifier._receive
    host.verifier._receive = lambda data: refusal(ProblemCode.OVERLOADED)  # type: ignore[method-assign]
    with pytest.raises(UnreachableError):
        end(host, None, 0.5)
    assert len(host.verifier.entries()) == size
    host.verifier._receive = real  # type: ignore[method-assign]
    end(host, None)
    assert isinstance(host.verifier.entries()[-1], Retired)


def test_while_the_agent_runs_nothing_is_rolled_or_retired(host: Host) -> None:
    lock = FolderLock(host.folder)
    with pytest.raises(RefusedError, match="is in use by process"):
        roll(host)
    with pytest.raises(RefusedError, match="is in use by process"):
        end(host, None)
    lock.release()


def test_a_sealed_key_comes_from_the_service_manager(host: Host, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (host.folder / "key").rename(credentials / CREDENTIAL)
    enrolment, _ = read_enrolment(host.folder)
    given = Keyring(host.folder, enrolment, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert given.signer(1).public_key.hex() == enrolment.public_key
    assert given.sealed
    # Given by an access control list, whose mask looks like a group's permission; never to everybody.
    (credentials / CREDENTIAL).chmod(0o440)
    assert given.signer(1).public_key.hex() == enrolment.public_key
    (credentials / CREDENTIAL).chmod(0o404)
    with pytest.raises(StoreError, match="others may read"):
        given.signer(1)
    (credentials / CREDENTIAL).chmod(0o400)
    with pytest.raises(StoreError, match="no key was given as the credential"):
        Keyring(host.folder, enrolment, {}).signer(1)
    (credentials / CREDENTIAL).unlink()
    FileSigner.generate().save(credentials / CREDENTIAL)
    with pytest.raises(StoreError):
        Keyring(host.folder, enrolment, {"CREDENTIALS_DIRECTORY": str(credentials)}).signer(1)


def test_another_key_in_the_folder_is_refused(host: Host) -> None:
    (host.folder / "key").unlink()
    FileSigner.generate().save(host.folder / "key")
    with pytest.raises(StoreError, match="is not the key of this log"):
        host.run()
