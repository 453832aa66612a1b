"""The receipt table, row by row, from the agent's side."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_agent.ports import Answer
from keyturn_agent.uploader import (
    STRIKES,
    Ended,
    Keys,
    Outcome,
    Progress,
    Receipted,
    Resume,
    Retry,
    RolledBack,
    judge,
)
from keyturn_protocol.api import STATUS, ProblemCode
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.ids import Hash
from keyturn_protocol.merkle import EMPTY_ROOT
from keyturn_protocol.segment import node_key
from tests.agent.fakes import FakeVerifier, raw, refusal
from tests.agent.logs import Recorder, name_of

SIGNER = Recorder()
ORIGIN = name_of(SIGNER).origin
NODE = node_key(ORIGIN, SIGNER.public_key)
VERIFIER = FakeVerifier()
KEYS = Keys(NODE, VERIFIER.pinned.receipt_key)
ROOTS = {size: Hash(bytes([size]) * 32) for size in (1, 5, 9)}
SENT = Checkpoint(ORIGIN, 9, ROOTS[9]).to_text()


def ask(answer: Answer) -> Outcome:
    return judge(answer, SENT, KEYS, ROOTS.get, 9)


def plain(status: int, body: bytes = b"") -> Answer:
    return Answer(status, "text/plain", None, body)


def head(size: int, root: bytes, *, signer: Recorder = SIGNER, receipt: bool = True) -> str:
    checkpoint = Checkpoint(ORIGIN, size, Hash(root))
    note = checkpoint.signed(node_key(ORIGIN, signer.public_key), signer.sign(checkpoint.to_text()))
    line = VERIFIER.receipt(checkpoint.to_text()) if receipt else b""
    return (note.to_bytes() + line).decode()


def test_200_with_a_receipt_over_what_was_sent() -> None:
    assert ask(plain(200, VERIFIER.receipt(SENT, 7))) == Receipted(7, VERIFIER.receipt(SENT, 7))


OTHER = FakeVerifier()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"thank you\n",
        VERIFIER.receipt(Checkpoint(ORIGIN, 5, ROOTS[5]).to_text()),
        VERIFIER.receipt(SENT) * 2,
        VERIFIER.receipt(SENT)[:-1],
        OTHER.receipt(SENT),
        head(9, ROOTS[9]).encode(),
    ],
    ids=["empty", "text", "older head", "two lines", "no newline", "another verifier's key", "a whole note"],
)
def test_200_with_anything_else_is_a_loud_failure(body: bytes) -> None:
    outcome = ask(plain(200, body))
    assert isinstance(outcome, Retry)
    assert outcome.alarm


def test_409_with_our_own_head_resumes_after_it() -> None:
    outcome = ask(refusal(ProblemCode.BEHIND, head(5, ROOTS[5])))
    assert outcome == Resume(5, VERIFIER.receipt(Checkpoint(ORIGIN, 5, ROOTS[5]).to_text()))
    assert ask(refusal(ProblemCode.BEHIND, head(5, ROOTS[5], receipt=False))) == Resume(5, None)


def test_409_with_our_head_and_a_forged_receipt_keeps_no_receipt() -> None:
    text = head(5, ROOTS[5], receipt=False) + OTHER.receipt(Checkpoint(ORIGIN, 5, ROOTS[5]).to_text()).decode()
    assert ask(refusal(ProblemCode.BEHIND, text)) == Resume(5, None)


def test_409_of_an_empty_log_starts_over() -> None:
    assert ask(refusal(ProblemCode.BEHIND)) == Resume(0, None)


@pytest.mark.parametrize(("size", "root"), [(12, b"x" * 32), (5, b"x" * 32), (7, b"x" * 32)])
def test_409_with_our_signature_over_a_head_that_we_lack_leaves_the_log(size: int, root: bytes) -> None:
    assert isinstance(ask(refusal(ProblemCode.BEHIND, head(size, root))), RolledBack)


@pytest.mark.parametrize(
    "checkpoint",
    [
        "",
        "nonsense",
        head(12, b"x" * 32, signer=Recorder(Ed25519PrivateKey.generate())),
        head(12, b"x" * 32).replace("\n12\n", "\n13\n"),
        head(12, b"x" * 32).replace("/1\n12", "/2\n12"),
    ],
    ids=["empty", "nonsense", "another key", "another size", "another log"],
)
def test_409_with_what_we_did_not_sign_is_ignored(checkpoint: str) -> None:
    outcome = ask(refusal(ProblemCode.BEHIND, checkpoint))
    assert isinstance(outcome, Retry)
    assert outcome.alarm


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_waited_for(status: int) -> None:
    assert isinstance(ask(plain(status)), Retry)


def test_retry_after_is_heeded_within_reason() -> None:
    assert ask(refusal(ProblemCode.OVERLOADED, None, 17)) == Retry("overloaded: overloaded in a test", 17, alarm=False)
    outcome = ask(refusal(ProblemCode.OVERLOADED, None, 10**8))
    assert isinstance(outcome, Retry)
    assert outcome.after_s == 3600


ENDING = [
    code for code, status in STATUS.items() if 400 <= status < 500 and status not in (408, 429) and code != "behind"
]


@pytest.mark.parametrize("code", ENDING)
def test_any_other_refusal_ends_the_log(code: ProblemCode) -> None:
    outcome = ask(refusal(code))
    assert isinstance(outcome, Ended)
    progress = Progress(5)
    needed = 0
    while True:
        progress, needed = progress.after(outcome, 9), needed + 1
        if progress.is_final(outcome):
            break
    at_once = code in (ProblemCode.FORK, ProblemCode.LOG_FROZEN, ProblemCode.LOG_CLOSED, ProblemCode.INVALID_ENTRIES)
    assert needed == (1 if at_once else STRIKES)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404, 407, 418, 422])
def test_what_does_not_come_from_a_verifier_ends_nothing(status: int) -> None:
    assert isinstance(ask(Answer(status, "text/html", None, b"<html>sign in")), Retry)
    lying = refusal(ProblemCode.LOG_FROZEN)
    if status != lying.status:
        assert isinstance(ask(Answer(status, lying.content_type, None, lying.body)), Retry)


def test_backoff_grows_is_bounded_and_is_spread() -> None:
    progress, waits = Progress(0), []
    for _ in range(40):
        progress = progress.after(Retry("", 0, alarm=False), 9)
        waits.append(progress.wait_s(0))
    assert waits == sorted(waits)
    assert waits[0] == 2.5
    assert waits[-1] == 450
    assert progress.wait_s(999_999) > 899
    assert progress.after(Receipted(1, b""), 9) == Progress(9)
    assert Progress(0).wait_s(0) == 0


def test_going_back_and_forth_slows_down() -> None:
    progress = Progress(9).after(Resume(5, None), 9)
    assert progress == Progress(5, 1)
    assert progress.after(Resume(5, None), 9).failures == 2
    assert progress.after(Resume(7, None), 9).failures == 0


def test_the_keys_are_of_their_kind() -> None:
    assert raw(VERIFIER.receipt_key) == KEYS.receipt.public_key
    assert ROOTS[1] != EMPTY_ROOT
