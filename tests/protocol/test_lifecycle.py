"""Who may stop, resume, widen and end a run that was approved, and which attempts must fail."""

from functools import partial
from typing import Any

import pytest

from keyturn_protocol.authority import Why
from keyturn_protocol.lifecycle import State, progress, started
from keyturn_protocol.root import Threshold
from keyturn_protocol.runs import Amend, Resume, Revoke
from tests.support.outcomes import LARGE, SMALL, at, refused, the_run
from tests.support.parties import (
    BEGIN,
    DAY,
    PEOPLE,
    SECOND,
    World,
    changed,
    person,
    person_key,
    policy,
    scope,
    tier,
)

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
