"""Who may start a run: the quorum, tiers, narrowings and keys, and which attempts must fail."""

from typing import Any

import pytest

from keyturn_protocol.authority import Why
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.lifecycle import State, progress
from keyturn_protocol.root import Threshold
from keyturn_protocol.runs import Ancestor, Resume
from tests.support.outcomes import LARGE, SMALL, at, refused, the_run
from tests.support.parties import (
    BEGIN,
    DAY,
    PEOPLE,
    World,
    changed,
    narrowing,
    person,
    person_key,
    policy,
    root,
    scope,
    tier,
)

# Starting


def test_the_quorum_approves_and_not_one_person_fewer() -> None:
    world = World.begun()
    world.request()
    for who in ("lab-a/bob", "operator-b/eve"):
        world.decide(who)
        assert at(world) is State.PENDING
    missing = progress(the_run(world), world.authority, world.index + 1, world.now_us)
    assert missing.missing_classes == {"regulator": 1}
    world.decide("office/ivy")
    assert at(world) is State.APPROVED
    permit = the_run(world).permit
    assert permit is not None
    assert [vote.person for vote in permit.votes] == ["lab-a/bob", "office/ivy", "operator-b/eve"]


def test_many_of_one_class_are_no_quorum() -> None:
    world = World.begun()
    world.request()
    for who in ("lab-a/bob", "operator-b/eve", "operator-b/fay"):
        world.decide(who)
    assert at(world) is State.PENDING


def test_three_persons_of_two_organisations_are_no_quorum_of_three() -> None:
    parties = [changed(p, organisation="hosting") if p.id == "office" else p for p in root().parties]
    of = root(parties=parties)
    loose = tier(approve=Threshold(persons=3, organisations=2, minimum={"lab": 1, "operator": 1, "regulator": 1}))
    world = World.begun(of=of, tiers=[loose])
    with pytest.raises(ProtocolError, match=r"can never approve: .* 1 more organisation"):
        world.put_policy(policy(world.root_hash, version=2, previous=world.policy_hash))


def test_the_requester_approves() -> None:
    world = World.begun()
    world.request()
    refused(Why.REQUESTER, lambda: world.decide("lab-a/ada"), world)


def test_a_colleague_of_the_requester_where_policy_excludes_them() -> None:
    three = Threshold(persons=2, organisations=2, minimum={"operator": 1, "regulator": 1})
    world = World.begun(tiers=[tier(approve=three, colleagues=False)])
    world.request()
    refused(Why.REQUESTER, lambda: world.decide("lab-a/bob"), world)
    world.decide("operator-b/eve")
    world.decide("office/ivy")
    assert at(world) is State.APPROVED


def test_a_person_counts_once_whatever_it_signs_and_with_how_many_keys() -> None:
    people = [person(name) for name in sorted(PEOPLE) if name != "lab-a/bob"]
    people.append(person("lab-a/bob", person_key("lab-a/bob"), person_key("bob's other key")))
    world = World.begun(of=root(persons=sorted(people, key=lambda p: p.id)))
    world.request()
    world.decide("lab-a/bob")
    world.decide("lab-a/bob", signer="bob's other key")
    assert progress(the_run(world), world.authority, world.index + 1, world.now_us).persons == ("lab-a/bob",)


def test_a_decision_signed_by_another() -> None:
    world = World.begun()
    world.request()
    refused(Why.OTHER_SIGNER, lambda: world.decide("office/ivy", signer="lab-a/ada"), world)
    refused(Why.OTHER_SIGNER, lambda: world.decide("office/ivy", signer="nobody's key"), world)
    refused(Why.NOT_A_PERSON, lambda: world.decide("office/zoe", signer="office/ivy"), world)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"subject": "f" * 64}, Why.DECIDED),
        ({"policy": "f" * 64}, Why.OTHER_POLICY),
        ({"root": "f" * 64}, Why.OTHER_ROOT),
        ({"root": None}, Why.OTHER_ROOT),
    ],
)
def test_a_decision_for_another_request_policy_or_root(changes: dict[str, Any], why: Why) -> None:
    world = World.begun()
    world.request()
    refused(why, lambda: world.decide("office/ivy", **changes), world)


def test_a_decision_after_its_deadline() -> None:
    world = World.begun()
    world.request()
    world.decide("lab-a/bob")
    world.decide("operator-b/eve")
    world.wait(7 * 86_400)
    assert at(world) is State.LAPSED
    refused(Why.OVER, lambda: world.decide("office/ivy"), world)


def test_the_last_word_of_a_person_counts() -> None:
    world = World.begun()
    world.request()
    world.decide("office/ivy")
    world.decide("office/ivy", "deny")
    world.decide("lab-a/bob")
    world.decide("operator-b/eve")
    assert at(world) is State.PENDING
    world.decide("office/ivy")
    assert at(world) is State.APPROVED


def test_a_veto_is_final() -> None:
    world = World.begun()
    world.request()
    world.decide("office/ivy", "veto")
    assert at(world) is State.DENIED
    refused(Why.OVER, lambda: world.decide("office/ivy"), world)


def test_a_veto_by_someone_without_one() -> None:
    world = World.begun()
    world.request()
    refused(Why.NOT_ENTITLED, lambda: world.decide("lab-a/bob", "veto"), world)


def test_who_says_no_says_why() -> None:
    world = World.begun()
    world.request()
    with pytest.raises(ProtocolError, match="says why"):
        world.decide("office/ivy", "deny", reason="")


def test_enough_denials_end_a_request() -> None:
    world = World.begun()
    world.request()
    world.decide("lab-a/bob", "deny")
    assert at(world) is State.PENDING
    world.decide("office/joe", "deny")
    assert at(world) is State.DENIED


def test_silence_never_approves() -> None:
    world = World.begun()
    world.request()
    assert at(world, 7 * 86_400 - 60) is State.PENDING
    assert at(world, 7 * 86_400) is State.LAPSED


def test_a_request_that_is_withdrawn() -> None:
    world = World.begun()
    world.request()
    refused(Why.NOT_ENTITLED, lambda: world.withdraw("lab-a/bob"), world)
    world.withdraw("lab-a/ada")
    assert at(world) is State.WITHDRAWN


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"policy": "f" * 64}, Why.OTHER_POLICY),
        ({"root": "f" * 64}, Why.OTHER_ROOT),
        ({"requester": "office/ivy", "signer": "office/ivy"}, Why.NOT_ENTITLED),
        ({"signer": "office/ivy"}, Why.OTHER_SIGNER),
        ({"scope": scope(not_after_us=BEGIN + 1)}, Why.TOO_LATE),
    ],
)
def test_a_request_that_breaks_a_rule(changes: dict[str, Any], why: Why) -> None:
    world = World.begun()
    refused(why, lambda: world.request(**changes), world)


def test_a_part_that_the_tier_verifies_needs_a_commitment() -> None:
    world = World.begun(tiers=[tier(verified=["argv", "data"])])
    refused(Why.BROKEN, world.request, world)


# Tiers


@pytest.mark.parametrize(
    ("changes", "ancestors", "name"),
    [
        ({"budget_tflop": 10**8, "chips": 8}, [], "small"),
        ({"budget_tflop": 10**11, "chips": 1024}, [], "small"),
        ({"budget_tflop": 10**11 + 1, "chips": 8}, [], "very-large"),
        ({"budget_tflop": 10**8, "chips": 1025}, [], "very-large"),
        ({"budget_tflop": 10**8, "chips": 8}, [10**12], "very-large"),
        ({"budget_tflop": 10**8, "chips": 8}, [10**11, None], "very-large"),
        ({"budget_tflop": 10**8, "chips": 8}, [10**12 - 10**8], "small"),
    ],
)
def test_the_tier_is_that_of_budget_chips_and_lineage(
    changes: dict[str, int], ancestors: list[int | None], name: str
) -> None:
    world = World.begun(tiers=[SMALL, LARGE])
    listed = [Ancestor(run=str(i), tflop=tflop, basis="") for i, tflop in enumerate(ancestors)]
    world.request(scope=scope(**changes), ancestors=listed)
    assert the_run(world).tier.name == name


def test_a_narrowing_does_not_lower_the_tier() -> None:
    world = World.begun(tiers=[SMALL, LARGE])
    world.request()
    world.decide("office/ivy", narrowing=narrowing(budget_tflop=1, chips=1))
    assert the_run(world).tier.name == "very-large"


# Narrowing


def test_scopes_compose_by_minimum_and_intersection() -> None:
    world = World.begun()
    world.request(scope=scope(sites=["fra1", "fra2", "iad1"]))
    world.decide("lab-a/bob", narrowing=narrowing(budget_tflop=5 * 10**11, sites=["fra1", "fra2"]))
    world.decide("operator-b/eve", narrowing=narrowing(chips=8192, sites=["fra2", "iad1"], dtypes=["bf16"]))
    world.decide("office/ivy", narrowing=narrowing(budget_tflop=6 * 10**11, not_after_us=BEGIN + 50 * DAY))
    assert the_run(world).scope == scope(
        budget_tflop=5 * 10**11, chips=8192, sites=["fra2"], dtypes=["bf16"], not_after_us=BEGIN + 50 * DAY
    )


def test_scopes_that_leave_nothing_deny() -> None:
    world = World.begun()
    world.request(scope=scope(sites=["fra1", "fra2"]))
    world.decide("lab-a/bob", narrowing=narrowing(sites=["fra1"]))
    world.decide("operator-b/eve", narrowing=narrowing(sites=["fra2"]))
    world.decide("office/ivy")
    assert at(world) is State.DENIED


@pytest.mark.parametrize(
    "changes",
    [
        {"budget_tflop": 10**12 + 1},
        {"chips": 16_385},
        {"sites": ["fra1", "iad1"]},
        {"dtypes": ["bf16", "fp16"]},
        {"not_before_us": BEGIN - 1},
        {"not_after_us": BEGIN + 100 * DAY + 1},
    ],
)
def test_a_narrowing_that_widens(changes: dict[str, Any]) -> None:
    world = World.begun()
    world.request(scope=scope(sites=["fra1"]))
    refused(Why.WIDENS, lambda: world.decide("office/ivy", narrowing=narrowing(**changes)), world)


# Keys


def replaced(world: World, **keys: Any) -> None:
    """The next root, in which ivy's key is another or has another validity."""
    old = world.authority.roots[-1][1].root
    people = [changed(p, keys=[keys["ivy"]]) if p.id == "office/ivy" else p for p in old.persons]
    new = changed(old, version=old.version + 1, previous=world.root_hash, root=world.root_hash, persons=people)
    world.put_root(new)


def test_a_key_that_is_revoked_between_decision_and_issuance() -> None:
    world = World.begun()
    world.request()
    world.decide("office/ivy")
    replaced(world, ivy=person_key("office/ivy", valid_until_us=world.now_us))
    world.decide("lab-a/bob")
    world.decide("operator-b/eve")
    assert at(world) is State.PENDING


def test_a_key_that_was_compromised_before_its_decision() -> None:
    world = World.begun()
    world.request()
    world.decide("office/ivy")
    replaced(world, ivy=person_key("office/ivy", compromised_since_us=BEGIN))
    world.decide("lab-a/bob")
    world.decide("operator-b/eve")
    assert at(world) is State.PENDING
    refused(Why.KEY_NOT_VALID, lambda: world.decide("office/ivy"), world)


def test_a_key_that_was_compromised_only_later_carries_what_it_signed_before() -> None:
    world = World.begun()
    world.request()
    world.decide("office/ivy")
    replaced(world, ivy=person_key("office/ivy", compromised_since_us=world.now_us))
    world.decide("lab-a/bob")
    world.decide("operator-b/eve")
    assert at(world) is State.APPROVED


def test_a_permit_on_a_key_that_turns_out_to_be_compromised_is_suspended() -> None:
    world = World.begun().approved()
    epoch = the_run(world).epoch
    replaced(world, ivy=person_key("ivy's new key", valid_from_us=BEGIN))
    assert at(world) is State.APPROVED  # a rolled key alone takes nothing away
    old = world.authority.roots[-1][1].root
    both = [person_key("ivy's new key"), person_key("office/ivy", compromised_since_us=BEGIN)]
    people = [changed(p, keys=both) if p.id == "office/ivy" else p for p in old.persons]
    world.put_root(changed(old, version=3, previous=world.root_hash, root=world.root_hash, persons=people))
    assert at(world) is State.SUSPENDED
    assert the_run(world).epoch == epoch + 1
    proposal = world.propose(Resume, "lab-a/ada")
    for who, signer in (("lab-a/bob", None), ("operator-b/eve", None), ("office/ivy", "ivy's new key")):
        world.decide(who, subject=proposal, signer=signer)
    assert at(world) is State.APPROVED
