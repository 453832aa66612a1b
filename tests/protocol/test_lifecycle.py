"""Who may start, stop, resume and widen a run, and which attempts must fail."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.lifecycle import Run, State, progress, started, state
from keyturn_protocol.policy import Above
from keyturn_protocol.root import Threshold
from keyturn_protocol.runs import Amend, Ancestor, Resume, Revoke
from tests.support.parties import (
    BEGIN,
    DAY,
    PEOPLE,
    SECOND,
    World,
    changed,
    narrowing,
    person,
    person_key,
    policy,
    public,
    root,
    scope,
    tier,
)


def at(world: World, later_s: int = 0, charged: int = 0) -> State:
    assert world.run is not None
    return state(world.run, world.now_us + later_s * SECOND, charged)


def the_run(world: World) -> Run:
    assert world.run is not None
    return world.run


def refused(why: Why, call: Callable[[], Any], world: World) -> None:
    """It is refused for this reason, and nothing changes."""
    before = world.run, world.authority, world.index
    with pytest.raises(Refused) as refusal:
        call()
    assert refusal.value.why is why, str(refusal.value)
    assert (world.run, world.authority, world.index) == before


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


SMALL = tier(name="small", above=Above(budget_tflop=10**9, chips=None, lineage_tflop=10**10))
LARGE = tier(name="very-large", above=Above(budget_tflop=10**11, chips=1024, lineage_tflop=10**12))


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


# Stopping


def test_one_veto_holder_suspends_and_all_hosts_stop_at_one_moment() -> None:
    world = World.begun().approved()
    world.run = started(the_run(world), world.now_us)
    assert at(world) is State.ACTIVE
    since = world.now_us
    world.suspend("office/ivy")
    assert at(world) is State.SUSPENDED
    assert the_run(world).stop_at_us == since + 1800 * SECOND
    assert the_run(world).epoch == 1


def test_sooner_than_the_notice_takes_a_second_organisation() -> None:
    world = World.begun().approved()
    since = world.now_us
    world.suspend("office/ivy", stop_at_us=since + 60 * SECOND)
    assert the_run(world).stop_at_us == since + 1800 * SECOND
    world.suspend("office/joe", stop_at_us=since + 90 * SECOND)
    assert the_run(world).stop_at_us == since + 1800 * SECOND
    world.suspend("operator-b/eve", stop_at_us=since + 300 * SECOND)
    assert the_run(world).stop_at_us == since + 300 * SECOND


def test_a_suspension_by_someone_without_a_veto() -> None:
    world = World.begun().approved()
    refused(Why.NOT_ENTITLED, lambda: world.suspend("lab-a/bob"), world)


def test_a_suspension_before_there_is_a_permit() -> None:
    world = World.begun()
    world.request()
    refused(Why.NO_PERMIT, world.suspend, world)


def test_only_its_signer_withdraws_a_suspension_and_only_before_it_took_effect() -> None:
    world = World.begun().approved()
    suspension = world.suspend("office/ivy")
    refused(Why.NOT_ENTITLED, lambda: world.withdraw("office/joe", subject=suspension), world)
    world.withdraw("office/ivy", subject=suspension)
    assert at(world) is State.APPROVED
    assert the_run(world).epoch == 1
    suspension = world.suspend("office/ivy")
    world.wait(1800)
    refused(Why.TOO_LATE, lambda: world.withdraw("office/ivy", subject=suspension), world)
    assert at(world) is State.SUSPENDED


def test_a_suspension_never_lapses_into_running() -> None:
    world = World.begun().approved()
    world.run = started(the_run(world), world.now_us)
    world.suspend()
    assert at(world, 90 * 86_400) is State.SUSPENDED
    assert at(world, 101 * 86_400) is State.EXPIRED


# Resuming


def test_resuming_takes_the_quorum_and_at_first_the_suspender() -> None:
    world = World.begun().approved()
    world.suspend("operator-b/eve")
    proposal = world.propose(Resume)
    world.agree(proposal, "lab-a/bob", "office/ivy")
    assert at(world) is State.SUSPENDED
    world.agree(proposal, "operator-b/fay")
    assert at(world) is State.APPROVED


TWO = tier(approve=Threshold(persons=2, organisations=2, minimum={"lab": 1, "regulator": 1}))


def test_after_72_hours_the_quorum_resumes_without_the_suspender_who_then_needs_another_party() -> None:
    world = World.begun(tiers=[TWO]).approved()
    world.suspend("operator-b/eve")
    early = world.propose(Resume)
    world.agree(early, "lab-a/bob", "office/ivy")
    assert at(world) is State.SUSPENDED
    world.wait(72 * 3600)
    world.agree(early, "office/ivy")
    assert at(world) is State.APPROVED
    refused(Why.OVERRULED, lambda: world.suspend("operator-b/fay"), world)
    world.suspend("office/ivy")
    assert at(world) is State.SUSPENDED


def test_a_resumption_that_is_played_back() -> None:
    world = World.begun().approved()
    world.suspend("office/ivy")
    statement = world.about(Resume, "lab-a/ada")
    proposal = world.say(statement, "lab-a/ada")
    world.agree(proposal, "lab-a/bob", "operator-b/eve", "office/ivy")
    world.suspend("office/ivy")
    refused(Why.STALE, lambda: world.say(statement, "lab-a/ada"), world)
    refused(Why.DECIDED, lambda: world.agree(proposal, "lab-a/bob"), world)


def test_a_new_suspension_voids_a_resumption_that_is_being_decided() -> None:
    world = World.begun().approved()
    world.suspend("office/ivy")
    proposal = world.propose(Resume)
    world.agree(proposal, "lab-a/bob", "operator-b/eve")
    world.suspend("operator-b/fay")
    refused(Why.DECIDED, lambda: world.agree(proposal, "office/ivy"), world)


def test_narrowing_again_and_again_keeps_no_run_stopped() -> None:
    """Else the suspender, who may narrow alone, would end every resumption that is being decided."""
    world = World.begun(tiers=[TWO]).approved()
    world.suspend("operator-b/eve")
    world.wait(72 * 3600)
    proposal = world.propose(Resume)
    world.agree(proposal, "lab-a/bob")
    the = the_run(world)
    world.propose(Amend, "operator-b/eve", scope=changed(the.scope, chips=the.scope.chips - 1), spec=dict(the.spec))
    world.agree(proposal, "office/ivy")
    assert at(world) is State.APPROVED
    assert the_run(world).scope.chips == the.scope.chips - 1


def test_what_one_person_does_alone_keeps_no_run_from_being_revoked() -> None:
    world = World.begun().approved()
    proposal = world.propose(Revoke, "office/ivy")
    world.agree(proposal, "lab-a/bob", "office/ivy")
    the = the_run(world)
    world.propose(Amend, "lab-a/ada", scope=the.scope, spec=dict(the.spec))
    call = world.suspend("operator-b/fay")
    world.withdraw("operator-b/fay", subject=call)
    world.agree(proposal, "operator-b/eve")
    assert at(world) is State.REVOKED


def test_a_narrowing_ends_what_would_widen_again() -> None:
    world = World.begun().approved()
    the = the_run(world)
    proposal = world.propose(Amend, scope=scope(budget_tflop=2 * 10**12), spec=dict(the.spec))
    world.propose(Amend, "office/ivy", scope=changed(the.scope, chips=the.scope.chips - 1), spec=dict(the.spec))
    refused(Why.DECIDED, lambda: world.agree(proposal, "lab-a/bob"), world)


def test_a_resumption_of_what_is_not_suspended() -> None:
    world = World.begun().approved()
    refused(Why.NOT_SUSPENDED, lambda: world.propose(Resume), world)


def test_the_requester_never_counts_for_a_proposal_either() -> None:
    world = World.begun().approved()
    world.suspend()
    proposal = world.propose(Resume)
    refused(Why.REQUESTER, lambda: world.agree(proposal, "lab-a/ada"), world)


def test_neither_a_veto_nor_denials_keep_a_run_stopped() -> None:
    """After 72 hours the quorum resumes without the suspender, whatever that party does meanwhile."""
    world = World.begun(tiers=[TWO]).approved()
    world.suspend("operator-b/eve")
    world.wait(71 * 3600)
    world.suspend("operator-b/fay")
    world.wait(3600)
    refused(Why.OVERRULED, lambda: world.suspend("operator-b/fay"), world)
    proposal = world.propose(Resume)
    refused(Why.NOT_ENTITLED, lambda: world.agree(proposal, "operator-b/eve", verdict="veto"), world)
    world.agree(proposal, "operator-b/eve", "operator-b/fay", verdict="deny")
    world.agree(proposal, "lab-a/bob", "office/ivy")
    assert at(world) is State.APPROVED


def test_a_veto_or_enough_denials_end_an_amendment() -> None:
    for who, verdict in ((["office/ivy"], "veto"), (["office/joe", "operator-b/fay"], "deny")):
        world = World.begun().approved()
        proposal = world.propose(Amend, scope=scope(budget_tflop=2 * 10**12), spec=dict(the_run(world).spec))
        world.agree(proposal, *who, verdict=verdict)
        refused(Why.DECIDED, partial(world.agree, proposal, "lab-a/bob"), world)


def test_an_amendment_on_a_key_that_turns_out_to_be_compromised_suspends_the_run() -> None:
    """The permit rests on other keys; what was widened since doesn't."""
    world = World.begun().approved()
    proposal = world.propose(Amend, scope=scope(budget_tflop=2 * 10**12), spec=dict(the_run(world).spec))
    world.agree(proposal, "lab-a/bob", "operator-b/eve", "office/joe")
    assert the_run(world).scope.budget_tflop == 2 * 10**12
    both = [person_key("joe's new key"), person_key("office/joe", compromised_since_us=BEGIN)]
    old = world.authority.roots[-1][1].root
    people = [changed(p, keys=both) if p.id == "office/joe" else p for p in old.persons]
    world.put_root(changed(old, version=2, previous=world.root_hash, root=world.root_hash, persons=people))
    assert at(world) is State.SUSPENDED


def test_an_amendment_keeps_the_commitments_that_its_tier_verifies() -> None:
    world = World.begun(tiers=[tier(verified=["argv"])]).approved()
    without = {**the_run(world).spec, "argv": None}
    refused(Why.BROKEN, lambda: world.propose(Amend, scope=scope(), spec=without), world)


def test_the_progress_of_a_proposal() -> None:
    world = World.begun().approved()
    world.suspend()
    proposal = world.propose(Resume)
    world.agree(proposal, "lab-a/bob")
    count = progress(the_run(world), world.authority, world.index + 1, world.now_us, proposal)
    assert (count.persons, count.missing_classes) == (("lab-a/bob",), {"operator": 1, "regulator": 1})


def test_the_key_that_asked_never_counts_whoever_has_it_later() -> None:
    """Ada's key becomes Bob's in the next root."""
    world = World.begun()
    world.request()
    people = [person(name) for name in sorted(PEOPLE) if name not in ("lab-a/ada", "lab-a/bob")]
    people += [person("lab-a/ada", person_key("new")), person("lab-a/bob", person_key("lab-a/ada"))]
    old = world.authority.roots[-1][1].root
    people.sort(key=lambda one: one.id)
    world.put_root(changed(old, version=2, previous=world.root_hash, root=world.root_hash, persons=people))
    refused(Why.REQUESTER, lambda: world.decide("lab-a/bob", signer="lab-a/ada"), world)


def test_a_requester_who_left_the_root_still_excludes_its_colleagues() -> None:
    two = Threshold(persons=2, organisations=2, minimum={"operator": 1, "regulator": 1})
    world = World.begun(tiers=[tier(approve=two, colleagues=False)])
    world.request()
    people = [person(name) for name in sorted(PEOPLE) if name != "lab-a/ada"]
    old = world.authority.roots[-1][1].root
    world.put_root(
        changed(old, version=2, previous=world.root_hash, root=world.root_hash, persons=people),
        "office/ivy",
        "operator-b/eve",
    )
    refused(Why.REQUESTER, lambda: world.decide("lab-a/bob"), world)


# Changing and ending


def test_narrowing_later_takes_one_veto_holder_or_the_requester() -> None:
    world = World.begun().approved()
    less = scope(budget_tflop=10**10, chips=8)
    spec = dict(the_run(world).spec)
    refused(Why.NOT_ENTITLED, lambda: world.propose(Amend, "lab-a/bob", scope=less, spec=spec), world)
    world.propose(Amend, "office/ivy", scope=less, spec=spec)
    assert the_run(world).scope == less
    world.propose(Amend, "lab-a/ada", scope=scope(budget_tflop=10**9, chips=8), spec=spec)
    assert the_run(world).scope.budget_tflop == 10**9


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": scope(budget_tflop=2 * 10**12)},
        {"scope": scope(chips=20_000)},
        {"scope": scope(not_after_us=BEGIN + 200 * DAY)},
        {"spec": {"image": "9" * 64, "config": "2" * 64, "argv": "3" * 64, "data": None}},
    ],
)
def test_widening_takes_the_quorum(changes: dict[str, Any]) -> None:
    world = World.begun().approved()
    old = the_run(world).scope, the_run(world).spec
    fields: dict[str, Any] = {"scope": the_run(world).scope, "spec": dict(the_run(world).spec)} | changes
    proposal = world.propose(Amend, **fields)
    world.agree(proposal, "lab-a/bob", "operator-b/eve")
    assert (the_run(world).scope, the_run(world).spec) == old
    world.agree(proposal, "office/joe")
    assert (the_run(world).scope, the_run(world).spec) == (fields["scope"], fields["spec"])


def test_small_steps_do_not_dodge_a_tier() -> None:
    one = Threshold(persons=1, organisations=1, minimum={"operator": 1})
    world = World.begun(tiers=[changed(SMALL, approve=one, veto=["operator"]), LARGE])
    world.request(scope=scope(budget_tflop=10**11, chips=8))
    world.decide("operator-b/eve")
    proposal = world.propose(Amend, scope=scope(budget_tflop=10**11 + 1, chips=8), spec=dict(the_run(world).spec))
    world.agree(proposal, "operator-b/eve")
    assert the_run(world).tier.name == "small"
    world.agree(proposal, "lab-a/bob", "office/ivy")
    assert the_run(world).tier.name == "very-large"
    assert the_run(world).scope.budget_tflop == 10**11 + 1


def test_revoking_for_good_takes_the_quorum() -> None:
    world = World.begun().approved()
    proposal = world.propose(Revoke, "office/ivy")
    world.agree(proposal, "lab-a/bob", "office/ivy")
    assert at(world) is State.APPROVED
    world.agree(proposal, "operator-b/eve")
    assert at(world) is State.REVOKED
    refused(Why.OVER, world.suspend, world)


def test_what_nobody_signs_is_derived() -> None:
    world = World.begun().approved()
    assert at(world, 30 * 86_400) is State.EXPIRED
    world.run = started(the_run(world), world.now_us)
    assert at(world, 30 * 86_400) is State.ACTIVE
    assert at(world, charged=10**12 - 1) is State.ACTIVE
    assert at(world, charged=10**12) is State.EXHAUSTED
    assert at(world, 101 * 86_400) is State.EXPIRED


def test_a_run_is_completed_by_its_requester() -> None:
    world = World.begun().approved()
    world.run = started(the_run(world), world.now_us)
    world.withdraw("lab-a/ada")
    assert at(world) is State.COMPLETED


def test_a_request_under_a_policy_that_is_replaced_lapses() -> None:
    world = World.begun()
    world.request()
    world.decide("lab-a/bob")
    world.put_policy(policy(world.root_hash, version=2, previous=world.policy_hash))
    assert at(world) is State.LAPSED


# Roots


def test_a_root_is_replaced_by_the_thresholds_of_both() -> None:
    world = World.begun()
    old = world.authority.roots[-1][1].root
    new = changed(old, version=2, previous=world.root_hash, root=world.root_hash)
    refused(Why.THRESHOLD, lambda: world.put_root(new, "lab-a/ada", "lab-a/bob"), world)
    strangers = [person("lab-a/max"), person("office/kim")]
    taken = changed(new, persons=strangers)
    refused(Why.THRESHOLD, lambda: world.put_root(taken, "lab-a/max", "office/kim"), world)
    refused(Why.THRESHOLD, lambda: world.put_root(taken, "lab-a/ada", "office/ivy"), world)
    world.put_root(taken, "lab-a/ada", "office/ivy", "lab-a/max", "office/kim")


@pytest.mark.parametrize("version", [1, 3])
def test_an_older_root_or_a_gap_between_two(version: int) -> None:
    world = World.begun()
    old = world.authority.roots[-1][1].root
    previous = None if version == 1 else world.root_hash
    refused(
        Why.VERSION,
        lambda: world.put_root(changed(old, version=version, previous=previous, root=previous, time_us=1)),
        world,
    )


def test_one_key_twice_in_a_root() -> None:
    twice = [person("lab-a/ada"), person("lab-a/bob", person_key("lab-a/ada"))]
    with pytest.raises(ProtocolError, match="one key is listed twice"):
        World.begun(of=root(persons=twice))
    assert public("lab-a/ada").id == public("lab-a/ada").id


# Policies


def broken(*tiers: Any, **changes: Any) -> str:
    world = World()
    world.put_root(root())
    with pytest.raises(ProtocolError) as error:
        world.put_policy(policy(world.root_hash, tiers=list(tiers) or [tier()], **changes))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"approve": Threshold(persons=7, organisations=3, minimum={"lab": 1})}, "can never approve"),
        ({"approve": Threshold(persons=3, organisations=3, minimum={"lab": 2})}, "can never approve"),
        ({"approve": Threshold(persons=3, organisations=3, minimum={"third-party": 1})}, "1 third-party"),
        ({"approve": Threshold(persons=3, organisations=3, minimum={})}, "no class whose consent"),
        ({"approve": Threshold(persons=2, organisations=3, minimum={"lab": 1})}, "3 organisations, but only 2"),
        ({"approve": Threshold(persons=1, organisations=1, minimum={"lab": 1, "operator": 1})}, "2 persons by class"),
        ({"veto": []}, "nobody can suspend"),
        ({"veto": ["third-party"]}, "nobody can suspend"),
        ({"veto": ["third-party"], "deny": 6}, "can never refuse"),
        ({"watchers": ["office"]}, "no watcher of office"),
        ({"above": Above(budget_tflop=None, chips=None, lineage_tflop=None)}, "no size"),
        ({"verified": ["image", "argv"]}, "verified is sorted"),
    ],
)
def test_a_policy_that_cannot_approve_or_cannot_refuse(changes: dict[str, Any], said: str) -> None:
    assert said in broken(tier(**changes))


@pytest.mark.parametrize(
    ("upper", "said"),
    [
        (LARGE, None),
        (changed(LARGE, above=SMALL.above), "must be above that of tier small"),
        (changed(LARGE, veto=["operator"]), "takes a veto away"),
        (changed(LARGE, approve=Threshold(persons=2, organisations=2, minimum={"lab": 1})), "less consent"),
        (changed(LARGE, name="small"), "two tiers of one name"),
    ],
)
def test_a_larger_run_never_needs_less(upper: Any, said: str | None) -> None:
    if said is None:
        World.begun(tiers=[SMALL, upper])
    else:
        assert said in broken(SMALL, upper)


@pytest.mark.parametrize("field", ["persons", "organisations"])
def test_a_zero_threshold_has_no_form(field: str) -> None:
    from keyturn_protocol.canonical import decode, encode

    good = {"persons": 1, "organisations": 1, "minimum": {"lab": 1}}
    decode(encode(good), Threshold)
    for bad in ({**good, field: 0}, {k: v for k, v in good.items() if k != field}, {**good, "minimum": {"lab": 0}}):
        with pytest.raises(ProtocolError):
            decode(encode(bad), Threshold)
