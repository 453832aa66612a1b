"""What one party does to a run alone, suspending and narrowing, is never for good; each attempt by its name."""

import pytest

from keyturn_protocol.alone import holdouts
from keyturn_protocol.authority import Why
from keyturn_protocol.lifecycle import State, started
from keyturn_protocol.permit import open_permit_bundle, parse_permit_bundle
from keyturn_protocol.root import Threshold
from keyturn_protocol.runs import Amend, Resume, Revoke, Scope, Suspend, Withdraw
from tests.support.assembly import Assembly
from tests.support.outcomes import LARGE, SMALL, at, refused, the_run
from tests.support.parties import (
    BEGIN,
    DAY,
    NAME,
    PEOPLE,
    SECOND,
    World,
    changed,
    person,
    person_key,
    root,
    scope,
    tier,
)

HOUR = 3600
ALONE, NOTICE = 72 * HOUR, 1800
# A lab and a regulator decide; the operator has a veto and counts for nothing.
TWO = tier(approve=Threshold(persons=2, organisations=2, minimum={"lab": 1, "regulator": 1}))
QUORUM = ("lab-a/bob", "office/ivy")
EVE, FAY = "operator-b/eve", "operator-b/fay"


def active() -> World:
    world = World.begun(tiers=[TWO]).approved()
    world.run = started(the_run(world), world.now_us)
    return world


def wait_until(world: World, time_us: int) -> None:
    assert time_us >= world.now_us
    world.now_us = time_us


def amend(world: World, who: str, to: Scope) -> str:
    return world.propose(Amend, who, scope=to, spec=dict(the_run(world).spec))


def narrow(world: World, who: str = EVE, **changes: object) -> None:
    amend(world, who, changed(the_run(world).scope, **changes))


def soonest(world: World) -> int:
    return world.now_us + NOTICE * SECOND


# Suspending


def test_one_party_that_suspends_and_withdraws_in_turns_keeps_no_run_stopped() -> None:
    """Its time is up after 72 hours in all, whoever of its people signs."""
    world = active()
    since = world.now_us
    for who in (EVE, FAY, EVE):
        call = world.suspend(who, stop_at_us=world.now_us + ALONE * SECOND)
        world.wait(23 * HOUR)
        withdrawn = world.now_us
        world.withdraw(who, subject=call)
        world.now_us = withdrawn
    world.suspend(EVE)
    proposal = world.propose(Resume)
    world.agree(proposal, *QUORUM)
    assert at(world) is State.SUSPENDED
    # Every suspension but the last was withdrawn at the moment at which the next was made.
    wait_until(world, since + ALONE * SECOND)
    refused(Why.OVERRULED, lambda: world.suspend(FAY), world)
    world.agree(proposal, "office/ivy")
    assert at(world) is State.ACTIVE
    assert the_run(world).overruled == {"operator-b"}
    refused(Why.OVERRULED, lambda: world.suspend(EVE), world)


def test_a_party_whose_time_is_up_withdraws_and_can_not_suspend_again() -> None:
    world = active()
    world.suspend(EVE, stop_at_us=world.now_us + HOUR * SECOND)
    world.wait(HOUR)
    world.wait(ALONE)
    world.agree(world.propose(Resume), "lab-a/bob", EVE, "office/ivy")
    assert (at(world), the_run(world).overruled) == (State.ACTIVE, frozenset())
    resumed = world.log[-1].time_us
    refused(Why.OVERRULED, lambda: world.suspend(EVE), world)
    wait_until(world, resumed + ALONE * SECOND - 1)
    refused(Why.OVERRULED, lambda: world.suspend(FAY), world)
    wait_until(world, resumed + ALONE * SECOND)
    world.suspend(FAY)
    world.agree(world.propose(Resume), *QUORUM)
    assert at(world) is State.SUSPENDED


def test_agreeing_to_resume_begins_no_new_time() -> None:
    """Else a party would join every resumption and suspend again."""
    world = active()
    since = world.now_us
    world.suspend(EVE)
    world.wait(71 * HOUR)
    world.agree(world.propose(Resume), "lab-a/bob", EVE, "office/ivy")
    between = -world.log[-1].time_us
    assert at(world) is State.ACTIVE
    between += world.now_us
    world.suspend(FAY)
    proposal = world.propose(Resume)
    world.agree(proposal, *QUORUM)
    assert at(world) is State.SUSPENDED
    wait_until(world, since + between + ALONE * SECOND)
    world.agree(proposal, "office/ivy")
    assert at(world) is State.ACTIVE
    assert the_run(world).overruled == {"operator-b"}


def test_only_the_time_in_force_counts() -> None:
    """A party that took back what was a mistake has the rest of its time left."""
    world = active()
    call, since = world.suspend(EVE), world.log[-1].time_us
    world.withdraw(EVE, subject=call)
    used = world.log[-1].time_us - since
    world.wait(60 * HOUR)
    world.suspend(EVE)
    again = world.log[-1].time_us
    proposal = world.propose(Resume)
    wait_until(world, again + ALONE * SECOND - used - 120 * SECOND)
    world.agree(proposal, *QUORUM)
    assert at(world) is State.SUSPENDED
    wait_until(world, again + ALONE * SECOND - used)
    world.agree(proposal, "office/ivy")
    assert at(world) is State.ACTIVE


def test_withdrawing_one_of_two_suspensions_stops_no_clock() -> None:
    world = active()
    since = world.now_us
    call = world.suspend(EVE, stop_at_us=since + ALONE * SECOND)
    world.suspend(FAY, stop_at_us=since + ALONE * SECOND)
    world.withdraw(EVE, subject=call)
    world.wait(10 * HOUR)
    world.suspend(EVE, stop_at_us=since + ALONE * SECOND)
    wait_until(world, since + ALONE * SECOND)
    world.agree(world.propose(Resume), *QUORUM)
    assert at(world) is State.ACTIVE


def test_a_stop_that_is_put_off_for_weeks() -> None:
    """Nothing would be leased until then, and each host would stop when its own lease ends."""
    world = active()
    refused(Why.BROKEN, lambda: world.suspend(EVE, stop_at_us=world.now_us + 90 * DAY), world)
    latest = world.now_us + ALONE * SECOND
    refused(Why.BROKEN, lambda: world.suspend(EVE, stop_at_us=latest + 1), world)
    world.suspend(EVE, stop_at_us=latest)
    assert the_run(world).stop_at_us == latest


def test_withdrawing_one_of_many_suspensions_ends_no_resumption() -> None:
    """Else a party would keep a heap of them, to end one resumption after the other."""
    world = active()
    since, calls = world.now_us, []
    while world.now_us < since + 60 * HOUR * SECOND:
        calls.append(world.suspend(EVE, stop_at_us=world.now_us + ALONE * SECOND))
        world.wait(8 * HOUR)
    world.withdraw(EVE, subject=calls[0])
    wait_until(world, since + ALONE * SECOND)
    proposal = world.propose(Resume)
    world.agree(proposal, "lab-a/bob")
    world.withdraw(EVE, subject=calls[1])
    assert at(world) is State.SUSPENDED
    world.agree(proposal, "office/ivy")
    assert at(world) is State.ACTIVE


def test_a_resumption_that_outlives_a_withdrawal_lifts_no_later_suspension() -> None:
    world = active()
    call = world.suspend(EVE)
    world.suspend(FAY)
    proposal = world.propose(Resume)
    world.agree(proposal, "lab-a/bob")
    world.withdraw(EVE, subject=call)
    assert proposal in the_run(world).proposals
    world.suspend("office/joe")
    refused(Why.DECIDED, lambda: world.agree(proposal, "office/ivy"), world)


def test_where_nothing_is_suspended_any_more_there_is_nothing_to_resume() -> None:
    world = active()
    call = world.suspend(EVE)
    proposal = world.propose(Resume)
    world.withdraw(EVE, subject=call)
    refused(Why.DECIDED, lambda: world.agree(proposal, "lab-a/bob"), world)


# Narrowing


@pytest.mark.parametrize("who", [EVE, "lab-a/ada"])
def test_a_narrowing_that_ends_a_run_sooner_than_a_suspension_would(who: str) -> None:
    world = active()
    refused(Why.BROKEN, lambda: narrow(world, who, not_after_us=BEGIN + 1), world)
    refused(Why.BROKEN, lambda: narrow(world, who, not_after_us=soonest(world) - 1), world)
    narrow(world, who, not_after_us=soonest(world))
    assert at(world) is State.ACTIVE
    # What ends sooner by itself may be narrowed otherwise.
    world.wait(NOTICE // 2)
    narrow(world, who, chips=8)
    assert at(world, NOTICE) is State.EXPIRED


def test_a_party_that_was_overruled_may_not_narrow_alone() -> None:
    world = active()
    world.suspend(EVE)
    world.wait(ALONE)
    world.agree(world.propose(Resume), *QUORUM)
    refused(Why.OVERRULED, lambda: narrow(world, FAY, chips=8), world)
    narrow(world, "office/ivy", chips=8)


def test_one_veto_holder_narrows_a_run_to_its_end() -> None:
    """Its window is over half an hour later. For 72 hours that is its own matter; then the quorum undoes it, and
    neither a veto, nor denials, nor doing it again keep the run ended."""
    world = active()
    whole = the_run(world).scope
    narrow(world, not_after_us=soonest(world))
    world.wait(NOTICE)
    assert at(world) is State.EXPIRED
    proposal = amend(world, "lab-a/ada", whole)
    refused(Why.NOT_ENTITLED, lambda: world.agree(proposal, EVE, verdict="veto"), world)
    world.agree(proposal, EVE, FAY, verdict="deny")
    world.agree(proposal, *QUORUM)
    assert holdouts(the_run(world), the_run(world).proposals[proposal].statement, (), world.now_us) == {"operator-b"}
    assert at(world) is State.EXPIRED
    world.wait(ALONE)
    refused(Why.OVER, lambda: narrow(world, FAY, chips=1), world)
    world.agree(proposal, "office/ivy")
    assert (at(world), the_run(world).scope) == (State.ACTIVE, whole)
    assert the_run(world).overruled == {"operator-b"}
    refused(Why.OVERRULED, lambda: narrow(world, FAY, not_after_us=soonest(world)), world)
    refused(Why.OVERRULED, lambda: world.suspend(EVE), world)


def test_one_veto_holder_narrows_a_budget_to_nothing() -> None:
    world = active()
    whole = the_run(world).scope
    narrow(world, budget_tflop=1)
    assert at(world, charged=10**6) is State.EXHAUSTED
    world.wait(ALONE)
    world.agree(amend(world, "lab-a/ada", whole), *QUORUM)
    assert at(world, charged=10**6) is State.ACTIVE


def test_with_the_narrower_it_is_undone_at_once_and_its_time_does_not_begin_anew() -> None:
    world = active()
    whole = the_run(world).scope
    narrow(world, chips=8)
    since = world.log[-1].time_us
    world.wait(71 * HOUR)
    world.agree(amend(world, "lab-a/ada", whole), "lab-a/bob", EVE, "office/ivy")
    assert (the_run(world).scope, the_run(world).overruled) == (whole, frozenset())
    between = world.now_us - world.log[-1].time_us
    narrow(world, chips=4)
    proposal = amend(world, "lab-a/ada", whole)
    world.agree(proposal, *QUORUM)
    assert the_run(world).scope.chips == 4
    wait_until(world, since + between + ALONE * SECOND)
    world.agree(proposal, "office/ivy")
    assert (the_run(world).scope, the_run(world).overruled) == (whole, frozenset({"operator-b"}))


def test_a_party_that_agreed_when_its_time_was_up_does_not_narrow_again_at_once() -> None:
    world = active()
    whole = the_run(world).scope
    narrow(world, chips=8)
    world.wait(ALONE)
    world.agree(amend(world, "lab-a/ada", whole), "lab-a/bob", EVE, "office/ivy")
    refused(Why.OVERRULED, lambda: narrow(world, FAY, chips=4), world)
    world.wait(ALONE)
    narrow(world, FAY, chips=4)
    assert the_run(world).scope.chips == 4


def test_what_one_party_does_again_and_again_keeps_no_narrowing_from_being_undone() -> None:
    world = active()
    whole = the_run(world).scope
    narrow(world, chips=100)
    fresh = amend(world, "lab-a/ada", whole)
    narrow(world, chips=99)
    refused(Why.DECIDED, lambda: world.agree(fresh, "lab-a/bob"), world)
    world.wait(ALONE)
    proposal = amend(world, "lab-a/ada", whole)
    world.agree(proposal, "lab-a/bob")
    for chips in (98, 97):
        narrow(world, FAY, chips=chips)
        world.withdraw(EVE, subject=world.suspend(EVE))
    world.agree(proposal, "office/ivy")
    assert (at(world), the_run(world).scope) == (State.ACTIVE, whole)


def test_a_narrowing_by_another_party_ends_what_would_undo_the_first() -> None:
    world = active()
    whole = the_run(world).scope
    narrow(world, chips=100)
    world.wait(ALONE)
    proposal = amend(world, "lab-a/ada", whole)
    narrow(world, "office/joe", sites=["fra1"])
    refused(Why.DECIDED, lambda: world.agree(proposal, "lab-a/bob"), world)


def test_undoing_one_narrowing_overrules_nobody_who_narrowed_something_else() -> None:
    world = active()
    whole = the_run(world).scope
    narrow(world, EVE, sites=["fra1"])
    narrow(world, "lab-a/ada", chips=8)
    world.agree(amend(world, "lab-a/ada", changed(whole, sites=["fra1"])), *QUORUM)
    assert the_run(world).scope == changed(whole, sites=["fra1"])
    assert the_run(world).overruled == frozenset()


@pytest.mark.parametrize("since_s", [0, ALONE])
def test_undoing_one_narrowing_overrules_nobody_who_narrowed_the_same_less(since_s: int) -> None:
    """Whose own narrowing stands was undone nothing: it stays as it was, and keeps its say."""
    world = active()
    whole = the_run(world).scope
    narrow(world, EVE, chips=100)
    narrow(world, "lab-a/ada", chips=8)
    narrow(world, FAY, sites=["fra1"])
    world.wait(since_s)
    proposal = amend(world, "lab-a/ada", changed(whole, chips=100, sites=["fra1"]))
    world.agree(proposal, *QUORUM)
    assert (the_run(world).scope.chips, the_run(world).overruled) == (100, frozenset())
    world.suspend(EVE)


def test_undoing_more_than_another_party_narrowed_undoes_that_too() -> None:
    world = active()
    whole = the_run(world).scope
    narrow(world, EVE, chips=100)
    narrow(world, "lab-a/ada", chips=8)
    proposal = amend(world, "lab-a/ada", changed(whole, chips=101))
    world.agree(proposal, *QUORUM)
    assert the_run(world).scope.chips == 8
    world.wait(ALONE)
    world.agree(proposal, "office/ivy")
    assert (the_run(world).scope.chips, the_run(world).overruled) == (101, frozenset({"operator-b"}))


def test_more_than_the_quorum_allowed_still_has_vetoes() -> None:
    world = active()
    whole = the_run(world).scope
    narrow(world, chips=100)
    world.wait(ALONE)
    proposal = amend(world, "lab-a/ada", changed(whole, budget_tflop=whole.budget_tflop + 1))
    world.agree(proposal, EVE, verdict="veto")
    refused(Why.DECIDED, lambda: world.agree(proposal, *QUORUM), world)
    assert the_run(world).scope.chips == 100


def test_asking_for_a_little_more_gets_around_no_narrower() -> None:
    """A quorum that is quick leaves no time for a veto: what is fresh takes the narrower's consent here too."""
    world = active()
    more = changed(the_run(world).scope, budget_tflop=the_run(world).scope.budget_tflop + 1)
    narrow(world, chips=8)
    proposal = amend(world, "lab-a/ada", more)
    world.agree(proposal, *QUORUM)
    assert the_run(world).scope.chips == 8
    world.agree(proposal, FAY)
    assert (the_run(world).scope, the_run(world).overruled) == (more, frozenset())


def test_more_where_nobody_narrowed_takes_no_narrowers_consent() -> None:
    world = active()
    narrow(world, chips=8)
    more = changed(the_run(world).scope, budget_tflop=the_run(world).scope.budget_tflop + 1)
    world.agree(amend(world, "lab-a/ada", more), *QUORUM)
    assert the_run(world).scope == more


# Over, and widened again


def test_a_run_whose_window_is_over_is_widened_by_the_quorum_and_nothing_else() -> None:
    world = active()
    spec = dict(the_run(world).spec)
    world.wait(101 * 86_400)
    assert at(world) is State.EXPIRED
    for kind, fields in ((Suspend, {}), (Revoke, {}), (Resume, {}), (Withdraw, {})):
        refused(Why.OVER, lambda k=kind, f=fields: world.say(world.about(k, "lab-a/ada", **f), "lab-a/ada"), world)  # type: ignore[misc]
    refused(Why.OVER, lambda: narrow(world, "lab-a/ada", chips=1), world)
    longer = scope(not_after_us=BEGIN + 200 * DAY)
    proposal = world.propose(Amend, scope=longer, spec=spec)
    world.agree(proposal, "lab-a/bob")
    assert at(world) is State.EXPIRED
    world.withdraw("lab-a/ada", subject=proposal)
    refused(Why.OVER, lambda: world.agree(proposal, "office/ivy"), world)
    world.agree(world.propose(Amend, scope=longer, spec=spec), *QUORUM)
    assert at(world) is State.ACTIVE


def test_what_is_over_is_widened_under_no_policy_that_was_replaced() -> None:
    """Else every run that ever was is a way around each stricter policy, for good. What was allowed is given back."""
    world = active()
    whole, spec = the_run(world).scope, dict(the_run(world).spec)
    narrow(world, EVE, not_after_us=soonest(world))
    world.wait(NOTICE)
    longer = changed(whole, not_after_us=whole.not_after_us + DAY)
    before, undo = amend(world, "lab-a/ada", longer), amend(world, "lab-a/ada", whole)
    world.agree(before, "lab-a/bob")
    world.put_policy(changed(world.authority.policies[-1][2], version=2, previous=world.policy_hash))
    refused(Why.OVER, lambda: world.agree(before, "office/ivy"), world)
    refused(Why.OVER, lambda: world.propose(Amend, scope=longer, spec=spec), world)
    world.agree(undo, "lab-a/bob", EVE, "office/ivy")
    assert (at(world), the_run(world).scope) == (State.ACTIVE, whole)


def test_widening_what_is_over_dodges_no_tier() -> None:
    one = Threshold(persons=1, organisations=1, minimum={"operator": 1})
    world = World.begun(tiers=[changed(SMALL, approve=one, veto=["operator"]), LARGE])
    world.request(scope=scope(budget_tflop=10**11, chips=8))
    world.decide(EVE)
    world.run = started(the_run(world), world.now_us)
    world.wait(101 * 86_400)
    more = scope(budget_tflop=10**11 + 1, chips=8, not_after_us=BEGIN + 200 * DAY)
    proposal = amend(world, "lab-a/ada", more)
    world.agree(proposal, EVE)
    assert at(world) is State.EXPIRED
    world.agree(proposal, "lab-a/bob", "office/ivy")
    assert (at(world), the_run(world).tier.name) == (State.ACTIVE, "very-large")


def test_a_run_that_never_started_in_time_is_over() -> None:
    world = World.begun(tiers=[TWO]).approved()
    world.wait(31 * 86_400)
    assert at(world) is State.EXPIRED
    refused(Why.OVER, lambda: amend(world, "lab-a/ada", scope(not_after_us=BEGIN + 200 * DAY)), world)


def test_a_key_that_is_compromised_while_the_window_is_over() -> None:
    """The run is held to it when it is widened again; and its bundle, opened, says the same."""
    hall = Assembly(tiers=[TWO])
    run = hall.approved()
    hall.start(run)
    whole = hall.switch.runs[run].scope
    hall.amend(run, scope=changed(whole, not_after_us=hall.now_us + DAY))
    hall.now_us += 2 * DAY
    second = changed(hall.switch.authority.policies[-1][2], version=2, previous=hall.policy)
    hall.say(second, "lab-a/ada", "operator-b/eve")
    keys = [person_key("office/ivy", compromised_since_us=BEGIN), person_key("ivy's new key")]
    people = [person(name, *(keys if name == "office/ivy" else ())) for name in sorted(PEOPLE)]
    hall.root = hall.say(
        root(version=2, previous=hall.root, root=hall.root, persons=people), "lab-a/ada", "operator-b/eve"
    )
    assert hall.state(run) is State.EXPIRED
    the = hall.switch.runs[run]
    fields = {"scope": whole, "spec": dict(the.spec)}
    said = Amend(**hall.common(run=run, person="lab-a/ada", after=list(the.after), reason="because", **fields))
    proposal = hall.say(said, "lab-a/ada")
    for who in ("lab-a/bob", "office/joe"):
        hall.say(hall.decision(proposal, who), who)
    assert hall.state(run) is State.SUSPENDED
    opened = open_permit_bundle(parse_permit_bundle(hall.bundle(run)), hall.root, NAME)
    assert opened.run == hall.switch.runs[run]
