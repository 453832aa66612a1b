"""Enrolment: whole or not at all, and again after any crash."""

import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest

from keyturn_agent.enrolment import check_url, parse_trust
from keyturn_agent.errors import RefusedError, StoreError, UnreachableError, UsageError
from keyturn_agent.identity import code_sha256
from keyturn_agent.ports import Answer
from keyturn_agent.signer import FileSigner
from keyturn_agent.store import read_enrolment
from keyturn_protocol.api import ProblemCode, Trust
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.entries import Genesis
from tests.agent.fakes import FakeVerifier, refusal, unreachable
from tests.agent.hosts import Host


@pytest.fixture
def verifier() -> FakeVerifier:
    return FakeVerifier()


@pytest.fixture
def host(tmp_path: Path, verifier: FakeVerifier) -> Host:
    return Host(tmp_path / "state", verifier)


def test_enrolment_ends_with_a_receipt_for_the_genesis(host: Host, verifier: FakeVerifier) -> None:
    host.enroll()
    (genesis,) = verifier.entries()
    assert isinstance(genesis, Genesis)
    assert genesis.body.trust_sha256 == verifier.pinned.sha256
    assert genesis.body.agent_sha256 == code_sha256()
    assert (genesis.body.source, genesis.body.root_sha256, genesis.body.previous) == ("replay", None, None)
    assert (host.folder / "logs" / "1" / "0-1.receipt").exists()
    assert read_enrolment(host.folder)[0].organisation == "acme"


def test_state_is_for_nobody_else(host: Host) -> None:
    host.enroll()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [host.folder, *host.folder.rglob("*")]}
    assert all(not mode & 0o077 for mode in modes.values()), modes
    (host.folder / "key").chmod(0o640)
    with pytest.raises(StoreError, match="others may read the key"):
        host.run()


def test_the_token_is_nowhere_in_the_state(host: Host) -> None:
    host.enroll()
    assert all(b"join-me" not in path.read_bytes() for path in host.folder.rglob("*") if path.is_file())


def test_a_bad_token_leaves_nothing(host: Host) -> None:
    with pytest.raises(RefusedError, match="refuses to enrol"):
        host.enroll(token="wrong")
    assert not host.folder.exists()
    host.enroll()


def test_enrolling_again_changes_nothing(host: Host, verifier: FakeVerifier) -> None:
    host.enroll()
    before = {path: path.read_bytes() for path in host.folder.rglob("*") if path.is_file()}
    calls = len(verifier.calls)
    host.enroll(token="any")
    assert {path: path.read_bytes() for path in host.folder.rglob("*") if path.is_file()} == before
    assert "segment" not in verifier.calls[calls:]


def test_another_verifier_or_trust_is_refused(host: Host) -> None:
    host.enroll()
    with pytest.raises(RefusedError, match="another verifier"):
        host.enroll(url="https://elsewhere.example.org")
    host.verifier = FakeVerifier()
    with pytest.raises(RefusedError, match="another trust file"):
        host.enroll()


def test_a_lost_first_receipt_is_had_by_enrolling_again(host: Host, verifier: FakeVerifier) -> None:
    verifier.interfere = lambda call, answer: unreachable(call, answer) if call == "segment" else answer
    with pytest.raises(UnreachableError, match="no receipt for the first segment yet"):
        host.enroll(patience_s=0.5)
    # The token is used up by now.
    verifier.interfere = lambda call, answer: refusal(ProblemCode.TOKEN_USED) if call == "join" else answer
    host.enroll()
    assert len(verifier.logs) == 1
    assert len(verifier.entries()) == 1


class Crash(BaseException):
    """The process is gone."""


def test_a_crash_at_any_step_can_be_gone_over_again(
    tmp_path: Path, verifier: FakeVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0
    while True:
        number += 1
        host = Host(tmp_path / str(number), verifier)
        left = [number]

        def fsync(fd: int, left: list[int] = left) -> None:
            # The courier's thread writes the receipt alone; test_log and test_cli crash on that.
            left[0] -= threading.current_thread() is threading.main_thread()
            if not left[0]:
                raise Crash

        ended = False
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            verifier.interfere = unreachable if number % 2 else lambda _, answer: answer
            try:
                host.enroll(patience_s=0.05)
                ended = True
            except Crash:
                pass
            except UnreachableError:
                ended = number > 25
        verifier.interfere = lambda _, answer: answer
        host.enroll()
        assert host.run()
        if ended:
            break
    assert number > 8
    assert all(log.head.frozen is None for log in verifier.logs.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deployment": "Not A Name"}, "not the name of a deployment"),
        ({"deployment": "other.example.org"}, "expected an ED25519 key called other.example.org/log"),
        ({"log_vkey": "nonsense"}, "not a vkey"),
        ({"log_vkey": None}, "called test.example.org/log"),
        ({"receipt_vkey": ""}, "not a vkey"),
    ],
)
def test_a_trust_file_is_checked(verifier: FakeVerifier, change: dict[str, str | None], message: str) -> None:
    trust: Trust = decode(verifier.pinned.data, Trust)
    values = {name: trust.receipt_vkey if value is None else value for name, value in change.items()}
    data = encode(msgspec.structs.replace(trust, **values))
    with pytest.raises(UsageError, match=message):
        parse_trust(data, "trust.json")


def test_a_trust_file_is_canonical(verifier: FakeVerifier) -> None:
    with pytest.raises(UsageError, match="not canonical"):
        parse_trust(verifier.pinned.data + b"\n", "trust.json")


@pytest.mark.parametrize(
    "url", ["", "verifier", "ftp://verifier", "https://", "https://me:secret@verifier", "https://verifier?x=1"]
)
def test_a_url_is_checked_and_holds_no_secret(url: str) -> None:
    with pytest.raises(UsageError):
        check_url(url)
    assert check_url("https://verifier.example.org/keyturn/") == "https://verifier.example.org/keyturn"


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    FileSigner.generate().save(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(StoreError):
        FileSigner.generate().save(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert before.hex() not in repr(FileSigner.load(tmp_path / "key"))


def test_a_join_that_is_answered_for_another_log_is_refused(host: Host, verifier: FakeVerifier) -> None:
    def interfere(call: str, answer: Answer) -> Answer:
        if call != "join":
            return answer
        return Answer(200, answer.content_type, None, answer.body.replace(b"test.example", b"evil.example"))

    verifier.interfere = interfere
    with pytest.raises(RefusedError, match="for another log"):
        host.enroll()
    assert not host.folder.exists()
