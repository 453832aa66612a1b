"""Permit bundles: what a verifier can't invent, and what it can't take back from who has seen it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as changed

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.lease import parse_lease
from keyturn_protocol.lifecycle import State, state
from keyturn_protocol.permit import (
    Opened,
    PermitBundle,
    Said,
    check_mark,
    check_versions,
    mark,
    open_permit_bundle,
    parse_permit_bundle,
    versions,
)
from keyturn_protocol.statements import Replacement
from tests.support.assembly import Assembly, lease_note
from tests.support.hosts import Key
from tests.support.parties import DAY, NAME, SECOND, envelope, policy, root


def opened(data: bytes, pinned: str, deployment: str = NAME) -> Opened:
    return open_permit_bundle(parse_permit_bundle(data), pinned, deployment)


def refused(bundle: PermitBundle, pinned: str, why: str) -> None:
    with pytest.raises(ProtocolError) as found:
        open_permit_bundle(parse_permit_bundle(bundle.to_bytes()), pinned, NAME)
    assert found.value.code is Code.BAD_PERMIT
    assert why in str(found.value)


def next_root(hall: Assembly, **changes: Any) -> str:
    hall.root = hall.say(
        root(
            version=hall.switch.authority.roots[-1][1].root.version + 1, previous=hall.root, root=hall.root, **changes
        ),
        "lab-a/ada",
        "operator-b/eve",
    )
    return hall.root


def next_policy(hall: Assembly) -> str:
    version = hall.switch.authority.policies[-1][2].version + 1
    said = policy(hall.root, version=version, previous=hall.policy)
    hall.policy = hall.say(said, "lab-a/ada", "operator-b/eve")
    return hall.policy


def test_a_bundle_proves_what_the_switch_says() -> None:
    hall = Assembly()
    first = hall.root
    run, other = hall.approved(), hall.say(hall.request(nonce="6" * 64), "lab-a/ada")
    hall.start(run)
    hall.suspend(run)
    hall.decision(other, "lab-a/bob")
    hall.resume(run, "lab-a/bob", "operator-b/eve", "office/ivy")
    next_root(hall)
    data = hall.bundle(run)
    found = opened(data, first)
    assert parse_permit_bundle(data).to_bytes() == data
    assert found.run == hall.switch.runs[run]
    assert found.authority == hall.switch.authority
    assert found.standing.hash == hall.root
    assert found.run is not None
    assert state(found.run, hall.now_us) is State.ACTIVE
    assert opened(hall.bundle(), hall.root).run is None


def test_a_run_that_started_in_time_is_heard_of_after_its_last_day_to_start() -> None:
    hall = Assembly()
    run = hall.approved()
    hall.start(run)
    hall.now_us += 31 * DAY
    hall.suspend(run)
    found = opened(hall.bundle(run), hall.root)
    assert found.run is not None
    assert state(found.run, hall.now_us) is State.SUSPENDED


def test_any_version_of_the_root_may_be_the_pinned_one() -> None:
    hall = Assembly()
    pinned = [hall.root, next_root(hall), next_root(hall)]
    run = hall.say(hall.request(), "lab-a/ada")
    for digest in pinned:
        assert opened(hall.bundle(run), digest).standing.hash == pinned[-1]


def test_another_root_than_the_pinned_one() -> None:
    hall = Assembly()
    refused(parse_permit_bundle(hall.bundle()), "0" * 64, "not under the root that is pinned")


def test_for_another_deployment() -> None:
    hall = Assembly()
    with pytest.raises(ProtocolError, match="another deployment"):
        opened(hall.bundle(), hall.root, "kt.example.net")
    other = replace(parse_permit_bundle(hall.bundle()), deployment="kt.example.net")
    refused(other, hall.root, "another deployment")


def test_a_verifier_that_puts_its_own_root_before_everything() -> None:
    """Its own parties, its own keys, the same names: nothing of it leads to the pinned hash."""
    forged = Assembly()
    true = Assembly(of=root(time_us=1))
    run = forged.approved()
    refused(parse_permit_bundle(forged.bundle(run)), true.root, "not under the root that is pinned")


def test_a_root_replaced_without_the_old_threshold() -> None:
    hall = Assembly()
    coup = root(version=2, previous=hall.root, root=hall.root)
    bundle = parse_permit_bundle(hall.bundle())
    for signers, why in (
        (("lab-a/ada", "lab-a/bob"), "organisation"),
        (("lab-a/ada",), "too few"),
        (("x",), "may not"),
    ):
        said = Said(envelope(coup, *signers), bundle.index + 1, bundle.time_us)
        refused(replace(bundle, statements=(*bundle.statements, said)), hall.root, why)


def _approved() -> tuple[Assembly, str, PermitBundle]:
    hall = Assembly()
    run = hall.approved()
    hall.start(run)
    return hall, run, parse_permit_bundle(hall.bundle(run))


def _without(bundle: PermitBundle, *at: int) -> PermitBundle:
    return replace(bundle, statements=tuple(one for i, one in enumerate(bundle.statements) if i not in at))


def _forged(bundle: PermitBundle, at: int) -> PermitBundle:
    one = bundle.statements[at]
    signatures = {
        key_id: bytes([signature[0] ^ 1]) + signature[1:] for key_id, signature in one.envelope.signatures.items()
    }
    said = list(bundle.statements)
    said[at] = changed(one, envelope=changed(one.envelope, signatures=signatures))
    return replace(bundle, statements=tuple(said))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda b: _without(b, 0), "there is no root yet"),
        (lambda b: _without(b, 1), "there is no policy yet"),
        (lambda b: _without(b, 2), "no such request"),
        (lambda b: _without(b, 3), "a lease without a permit"),
        (lambda b: _without(b, 2, 3, 4, 5), "a lease of no run"),
        (lambda b: replace(_without(b, 2, 3, 4, 5), start=None), "the run's request isn't in it"),
        (lambda b: _forged(b, 0), "does not verify"),
        (lambda b: _forged(b, 5), "does not verify"),
        (lambda b: replace(b, run=None), "not about this run"),
        (lambda b: replace(b, run="0" * 64), "not about this run"),
        (lambda b: replace(b, statements=(*b.statements[:3], b.statements[5], *b.statements[4:])), "order"),
        (lambda b: replace(b, start=replace(b.start, index=4)), "are in their order"),
        (lambda b: replace(b, start=replace(b.start, time_us=0)), "are in their order"),
        (lambda b: replace(b, start=replace(b.start, time_us=b.start.time_us + 31 * DAY)), "expired"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bundle_that_is_not_whole(change: Callable[[PermitBundle], PermitBundle], why: str) -> None:
    hall, _, bundle = _approved()
    with pytest.raises(ProtocolError) as found:
        open_permit_bundle(parse_permit_bundle(change(bundle).to_bytes()), hall.root, NAME)
    assert found.value.code is Code.BAD_PERMIT
    assert why in str(found.value)


def test_a_verifier_that_invents_a_permit() -> None:
    """It has every key but those of people: an approval by itself, one of another run, one said before."""
    hall = Assembly()
    run, other = (hall.say(hall.request(nonce=nonce * 64), "lab-a/ada") for nonce in "67")
    for who in ("lab-a/bob", "operator-b/eve"):
        hall.say(hall.decision(run, who), who)
    elsewhere = hall.say(hall.decision(other, "office/ivy"), "office/ivy")
    bundle = parse_permit_bundle(hall.bundle(run))
    decision = hall.decision(run, "office/ivy")
    moved = next(one for one in hall.said if one.envelope.hash.hex() == elsewhere)
    for sent, why in (
        (envelope(decision, "service log"), "may not sign this"),
        (envelope(decision, "lab-a/bob"), "signed by another"),
        (moved.envelope, "no such request"),
        (bundle.statements[-1].envelope, "said before"),
    ):
        said = Said(sent, bundle.index + 1, bundle.time_us)
        refused(replace(bundle, statements=(*bundle.statements, said)), hall.root, why)


def test_a_replacement_has_no_place_in_it() -> None:
    hall, _, bundle = _approved()
    said = Replacement(v=1, deployment=NAME, root=hall.root, time_us=0, old="0" * 32, new="1" * 32, reason="a new disk")
    one = Said(envelope(said, "operator-b/eve"), bundle.index + 1, bundle.time_us)
    refused(replace(bundle, statements=(*bundle.statements, one)), hall.root, "not about this run")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"key": Key("service log")}, "verify"),
        ({"run": "0" * 64}, "a lease of another run"),
        ({"deployment": "kt.example.net"}, "another deployment"),
    ],
)
def test_a_first_lease_that_is_none(changes: dict[str, Any], why: str) -> None:
    hall, run, bundle = _approved()
    assert bundle.start is not None
    fields = {"run": run} | changes
    note = lease_note(hall.root, hall.policy, fields.pop("run"), hall.now_us, **fields)
    refused(replace(bundle, start=replace(bundle.start, lease=parse_lease(note))), hall.root, why)


# What was seen before


def test_an_older_root_or_policy_is_served() -> None:
    hall = Assembly()
    old = opened(hall.bundle(), hall.root)
    next_root(hall)
    next_policy(hall)
    new = opened(hall.bundle(), hall.root)
    check_versions(new.authority, versions(old.authority))
    check_versions(new.authority, versions(new.authority))
    kept = versions(new.authority)
    for what, bundle in (("root", hall.said[:2]), ("policy", hall.said[:3])):
        older = open_permit_bundle(PermitBundle(NAME, None, tuple(bundle)), old.standing.hash, NAME)
        with pytest.raises(Refused, match=f"an older {what} than one seen before") as found:
            check_versions(older.authority, kept)
        assert found.value.why is Why.VERSION


def test_another_root_of_the_same_version_is_served() -> None:
    """Parties who sign two second versions: who saw the one doesn't take the other."""
    hall, other = Assembly(), Assembly()
    next_root(hall)
    next_root(other, expires_us=hall.now_us + DAY)
    kept = versions(hall.switch.authority)
    with pytest.raises(Refused, match="another root of version 2"):
        check_versions(other.switch.authority, kept)


def test_a_suspension_that_was_seen_is_dropped() -> None:
    """And everything else that a reader of an earlier bundle knows better."""
    hall, run, before = _approved()
    hall.suspend(run)
    seen = parse_permit_bundle(hall.bundle(run))
    marks = [mark(seen, run=True), mark(seen, run=False)]
    hall.resume(run, "lab-a/bob", "operator-b/eve", "office/ivy")
    next_policy(hall)
    later = parse_permit_bundle(hall.bundle(run))
    for bundle in (seen, later):
        check_mark(bundle, marks[0], run=True)
        check_mark(bundle, marks[1], run=False)
    assert seen.start is not None
    moved = changed(seen.statements[3], time_us=seen.statements[3].time_us + SECOND)
    for less in (
        before,
        _without(seen, 3),
        replace(seen, start=None),
        replace(seen, statements=(*seen.statements[:3], moved, *seen.statements[4:])),
    ):
        with pytest.raises(ProtocolError, match="not what was seen before of the run") as found:
            check_mark(less, marks[0], run=True)
        assert found.value.code is Code.BAD_PERMIT
    with pytest.raises(ProtocolError, match="roots and policies"):
        check_mark(_without(seen, 1), marks[1], run=False)


def test_signatures_may_be_exchanged_for_other_good_ones() -> None:
    """What counts is what was said: another signature on a policy is the same history."""
    hall, _, bundle = _approved()
    kept = mark(bundle, run=False)
    said = list(bundle.statements)
    said[1] = changed(said[1], envelope=envelope(policy(hall.root), "lab-a/bob", "operator-b/fay"))
    check_mark(replace(bundle, statements=tuple(said)), kept, run=False)
