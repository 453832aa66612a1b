"""The fold over leaves: what is signed for real changes it, and what is refused changes nothing."""

from copy import copy

import pytest

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.lifecycle import State
from keyturn_protocol.runs import Withdraw
from keyturn_protocol.statements import Replacement, Statement
from keyturn_protocol.switch import log_statement
from tests.support.assembly import Assembly
from tests.support.parties import (
    BEGIN,
    DAY,
    NAME,
    PEOPLE,
    changed,
    envelope,
    narrowing,
    person,
    person_key,
    policy,
    root,
)


def refused(hall: Assembly, why: Why | Code, statement: Statement, *signers: str) -> None:
    before = {name: copy(value) for name, value in vars(hall.switch).items() if name != "ledger"}
    with pytest.raises(ProtocolError) as found:
        hall.say(statement, *signers)
    assert why in (found.value.code, getattr(found.value, "why", None)), str(found.value)
    assert {name: vars(hall.switch)[name] for name in before} == before


def test_a_run_is_approved_suspended_and_resumed() -> None:
    hall = Assembly()
    run = hall.approved()
    assert hall.state(run) is State.APPROVED
    hall.start(run)
    call = hall.suspend(run)
    assert hall.state(run) is State.SUSPENDED
    resume = hall.resume(run, "lab-a/bob", "operator-b/eve", "office/ivy")
    assert hall.switch.run_of(resume) is hall.switch.run_of(call) is hall.switch.runs[run]
    assert hall.state(run) is State.ACTIVE
    assert hall.switch.runs[run].epoch == 1


def test_a_replayed_decision_changes_no_mind_again() -> None:
    """Ivy approves, then denies; who has her first envelope can't make her approve once more."""
    hall = Assembly()
    run = hall.say(hall.request(), "lab-a/ada")
    yes = envelope(hall.decision(run, "office/ivy"), "office/ivy")
    hall.take(yes)
    hall.say(hall.decision(run, "office/ivy", "deny"), "office/ivy")
    with pytest.raises(Refused) as found:
        hall.take(yes)
    assert found.value.why is Why.SAID_BEFORE
    assert hall.switch.runs[run].votes["office/ivy"].verdict == "deny"


def test_about_something_that_there_is_not() -> None:
    hall = Assembly()
    refused(hall, Why.UNKNOWN, hall.decision("f" * 64, "office/ivy"), "office/ivy")
    unknown = Withdraw(**hall.common(subject="f" * 64, person="lab-a/ada", reason=""))
    refused(hall, Why.UNKNOWN, unknown, "lab-a/ada")


def test_for_another_deployment() -> None:
    hall = Assembly()
    refused(hall, Code.BAD_STATEMENT, hall.request(deployment="kt.example.net"), "lab-a/ada")


def test_signed_by_a_key_that_the_root_does_not_have() -> None:
    hall = Assembly()
    refused(hall, Code.UNKNOWN_KEY, hall.request(), "somebody")
    refused(hall, Code.UNKNOWN_KEY, hall.request(), "lab-a/ada", "somebody")


def test_a_new_policy_ends_what_is_pending_and_keeps_what_is_approved() -> None:
    hall = Assembly()
    approved = hall.approved()
    pending = hall.say(hall.request(nonce="5" * 64), "lab-a/ada")
    hall.policy = hall.say(policy(hall.root, version=2, previous=hall.policy), "lab-a/ada", "operator-b/eve")
    assert (hall.state(approved), hall.state(pending)) == (State.APPROVED, State.LAPSED)


def test_a_root_that_calls_keys_compromised_touches_every_run() -> None:
    hall = Assembly()
    runs = [hall.approved()]
    hall.now_us += DAY
    keys = [person_key("office/ivy", compromised_since_us=BEGIN), person_key("ivy's new key")]
    people = [person(name, *(keys if name == "office/ivy" else ())) for name in sorted(PEOPLE)]
    new = root(version=2, previous=hall.root, root=hall.root, persons=people)
    hall.root = hall.say(new, "lab-a/ada", "operator-b/eve")
    assert [hall.state(run) for run in runs] == [State.SUSPENDED]


def test_a_replacement_is_an_operators_word() -> None:
    hall = Assembly()
    said = Replacement(v=1, deployment=NAME, root=hall.root, time_us=0, old="0" * 32, new="1" * 32, reason="a new disk")
    refused(hall, Why.NOT_ENTITLED, said, "lab-a/ada")
    refused(hall, Why.NOT_ENTITLED, said, "operator-b/eve", "lab-a/ada")
    refused(hall, Why.OTHER_ROOT, changed(said, root=None), "operator-b/eve")
    hall.say(said, "operator-b/eve", "operator-b/fay")


def test_a_narrowing_is_sorted_and_not_empty() -> None:
    hall = Assembly()
    run = hall.say(hall.request(), "lab-a/ada")
    for sites in ([], ["b", "a"], ["a", "a"]):
        with pytest.raises(ProtocolError, match="sites is sorted"):
            hall.say(hall.decision(run, "office/ivy", narrowing=narrowing(sites=sites)), "office/ivy")


def test_leaves_are_taken_in_their_order() -> None:
    hall = Assembly()
    said = hall.request()
    logged = log_statement(envelope(said, "lab-a/ada"), said, 1, hall.now_us, hall.switch.authority)
    with pytest.raises(ValueError, match="leaf 1 after leaf 1"):
        hall.switch.decide(logged)
