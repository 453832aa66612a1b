"""What is said about one run fits into a permit bundle, whoever says how much; and nobody's word takes the room in
which another, or a colleague, stops the run."""

from collections.abc import Callable
from itertools import count

import pytest

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.dsse import Envelope
from keyturn_protocol.lifecycle import State, started
from keyturn_protocol.limits import (
    ABOUT_BYTES,
    AUTHORITY_BYTES,
    MAX_INT,
    MAX_TIME_US,
    NOTE_BYTES,
    PERMIT_BUNDLE_BYTES,
    REQUESTER_BYTES,
    SIGNED_BYTES,
    STATEMENT_BYTES,
    TEXT_CHARS,
    VETO_BYTES,
)
from keyturn_protocol.permit import PermitBundle, Said
from keyturn_protocol.public_keys import PublicKey, wire_string
from keyturn_protocol.runs import Amend, Decision, Revoke, Suspend
from keyturn_protocol.sshsig import SshSignature
from keyturn_protocol.statement_base import kind_of
from keyturn_protocol.statements import format_statement
from tests.support.outcomes import at, refused, the_run
from tests.support.parties import DAY, PEOPLE, World, changed, person, root, scope

EVE, FAY, SEVEN = "operator-b/eve", "operator-b/fay", tuple(f"operator-b/p{at}" for at in range(7))
WORDY = "\N{GRINNING FACE}" * TEXT_CHARS
SHARE = ABOUT_BYTES // 3


def active() -> World:
    """A run of lab-a, with an office and an operator of seven persons more."""
    world = World.begun(of=root(persons=[person(name) for name in sorted({*PEOPLE, *SEVEN})])).approved()
    world.run = started(the_run(world), world.now_us)
    return world


def talk(world: World, who: str) -> None:
    """Say something about a revocation, over and over, until it is too much."""
    subject = next(iter(the_run(world).proposals))
    until_too_much(lambda turn: world.decide(who, "approve" if turn % 2 else "deny", subject=subject, reason=WORDY))


def suspend(world: World, who: str) -> None:
    """Suspend the run, as often as one may."""
    until_too_much(lambda _: world.suspend(who, reason=WORDY))


def until_too_much(say: Callable[[int], object]) -> str:
    """Say it again and again, until it is refused."""

    def on_and_on() -> None:
        for turn in count():
            say(turn)

    with pytest.raises(Refused) as refusal:
        on_and_on()
    assert refusal.value.why is Why.TOO_MUCH
    return str(refusal.value)


def kept(world: World, party: str) -> int:
    """Of what a party said about the run, the bytes in a bundle."""
    said = [one for one in world.log if getattr(one.statement, "person", "").startswith(f"{party}/")]
    return sum(one.kept_bytes for one in said)


def test_seven_persons_of_one_party_fill_no_permit_bundle() -> None:
    world = active()
    subject = world.propose(Revoke)
    for who in SEVEN:
        talk(world, who)
        suspend(world, who)
    assert SHARE * 0.4 < kept(world, "operator-b") <= SHARE
    # It took nobody else's room.
    world.decide("office/ivy", subject=subject, reason=WORDY)
    world.decide("lab-a/bob", subject=subject, reason=WORDY)


def test_what_a_party_says_keeps_none_of_it_from_stopping_the_run() -> None:
    """Neither talk, nor a colleague's late suspension, nor one that is a microsecond sooner, over and over."""
    world = active()
    revocation = world.propose(Revoke)
    for who in SEVEN:
        talk(world, who)
    refused(Why.TOO_MUCH, lambda: world.decide(EVE, subject=revocation), world)
    world.decide(EVE, "deny", subject=revocation)
    refused(Why.TOO_MUCH, lambda: world.decide(EVE, "deny", subject=revocation), world)
    late_us = world.now_us + DAY
    world.suspend(SEVEN[0], stop_at_us=late_us)
    refused(Why.TOO_MUCH, lambda: world.suspend(SEVEN[1], stop_at_us=late_us - 1), world)
    world.suspend(EVE)
    refused(Why.TOO_MUCH, lambda: world.suspend(SEVEN[1]), world)
    world.suspend(FAY, stop_at_us=world.now_us)
    refused(Why.TOO_MUCH, lambda: world.suspend(SEVEN[1], stop_at_us=world.now_us), world)
    amendment = world.propose(Amend, scope=scope(budget_tflop=10**13), spec=dict(the_run(world).spec))
    world.decide(FAY, "veto", subject=amendment, reason=WORDY)
    assert amendment not in the_run(world).proposals


def test_who_suspends_and_withdraws_without_end_is_left_suspended() -> None:
    world = active()
    until_too_much(lambda _: world.withdraw(EVE, subject=world.suspend(EVE, reason=WORDY), reason=WORDY))
    assert at(world) is State.SUSPENDED
    assert kept(world, "operator-b") < SHARE / 2 + 2 * VETO_BYTES


def test_who_asked_ends_its_run_however_much_its_party_said() -> None:
    world = active()
    world.propose(Revoke)
    for who in ("lab-a/ada", "lab-a/bob"):
        if who != the_run(world).request.requester:
            talk(world, who)
    world.withdraw("lab-a/ada", reason=WORDY)
    assert at(world) is State.COMPLETED


def test_parties_that_come_and_go_have_no_more_than_all_of_it_together() -> None:
    """Each root has three others, whose shares are of the same size."""
    world = active()
    run = the_run(world)
    world.run = changed(run, said={"gone/long-ago": ABOUT_BYTES + REQUESTER_BYTES - 10_000})
    world.propose(Revoke)
    talk(world, "office/ivy")
    refused(Why.TOO_MUCH, lambda: world.suspend(EVE, reason=WORDY), world)


GENERATOR = (
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
"""Of P-256: a point like any other."""
LARGEST = PublicKey("sk-ecdsa-sha2-nistp256@openssh.com", bytes.fromhex(GENERATOR), application="ssh:" + "a" * 251)
"""No key that may sign makes larger signatures."""


@pytest.mark.parametrize("kind", [Decision, Suspend, Revoke])
def test_a_statement_takes_no_more_of_a_bundle_than_it_counts(kind: type[Decision | Suspend | Revoke]) -> None:
    world = active()
    if kind is Decision:
        world.decide("office/ivy", subject=world.propose(Revoke), reason=WORDY)
    else:
        world.propose(kind, EVE, reason=WORDY)
    logged = world.log[-1]
    wire = b"".join(map(wire_string, (LARGEST.algorithm.encode(), bytes(72)))) + bytes(5)
    signature = SshSignature(LARGEST.blob, b"sha512", wire).to_bytes()
    sent = Envelope(kind_of(logged.statement), format_statement(logged.statement), {LARGEST.id: signature})
    one = Said(sent, MAX_INT, MAX_TIME_US)
    one_more = len(bundle(one, one)) - len(bundle(one))
    assert logged.kept_bytes - SIGNED_BYTES / 4 < one_more <= logged.kept_bytes
    assert kind is not Decision or one_more <= VETO_BYTES


def bundle(*said: Said) -> bytes:
    return PermitBundle("kt.example", "4" * 64, said).to_bytes()


def test_roots_and_policies_leave_room_for_runs_and_policies_for_a_root() -> None:
    world = World.begun()

    def amend(turn: int) -> None:
        last = world.authority.policies[-1][2]
        world.put_policy(changed(last, version=turn + 2, previous=world.policy_hash, name=WORDY))

    assert "roots and policies are more than a permit bundle holds of them" in until_too_much(amend)
    assert AUTHORITY_BYTES * 0.49 < sum(one.kept_bytes for one in world.log) <= AUTHORITY_BYTES / 2
    world.put_root(root(version=2, previous=world.root_hash, root=world.root_hash))


def test_all_that_may_be_in_a_bundle_fits_into_one() -> None:
    """Of the largest request, denied by the largest veto, or ended by its requester; and the largest lease, in which
    every byte is escaped."""
    request = veto = STATEMENT_BYTES * 4 // 3 + 4 + SIGNED_BYTES
    parties = ABOUT_BYTES + REQUESTER_BYTES
    assert AUTHORITY_BYTES + parties + request + veto + VETO_BYTES + 2 * NOTE_BYTES + 4096 < PERMIT_BUNDLE_BYTES
