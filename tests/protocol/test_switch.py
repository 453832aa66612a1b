"""The fold over leaves: what is signed for real changes it, and what is refused changes nothing."""

from copy import copy
from typing import Any

import pytest

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.dsse import Envelope
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.lifecycle import State, state
from keyturn_protocol.runs import Decision, Request, Resume, Suspend, Withdraw
from keyturn_protocol.statements import Replacement, Statement, parse_payload
from keyturn_protocol.switch import Switch, log_statement
from tests.support.parties import (
    BEGIN,
    DAY,
    NAME,
    PEOPLE,
    SECOND,
    changed,
    envelope,
    narrowing,
    person,
    person_key,
    policy,
    root,
    scope,
)


class Parties:
    """A switch, and people who send it envelopes; a leaf each minute."""

    def __init__(self, **changes: Any) -> None:
        self.switch = Switch(NAME)
        self.now_us = BEGIN
        self.root = self.say(root(), "lab-a/ada", "operator-b/eve")
        self.policy = self.say(policy(self.root, **changes), "lab-a/ada", "office/ivy")

    def take(self, sent: Envelope) -> str:
        statement = parse_payload(sent.kind, sent.payload)
        index = self.switch.index + 1
        self.switch.take(log_statement(sent, statement, index, self.now_us, self.switch.authority))
        self.now_us += 60 * SECOND
        return sent.hash.hex()

    def say(self, statement: Statement, *signers: str) -> str:
        return self.take(envelope(statement, *signers))

    def common(self, **changes: Any) -> dict[str, Any]:
        fields = {"v": 1, "deployment": NAME, "root": self.root, "time_us": self.now_us, "policy": self.policy}
        return fields | changes

    def request(self, **changes: Any) -> Request:
        fields = {
            "requester": "lab-a/ada",
            "label": "aurora-2",
            "purpose": "a language model",
            "lineage": "aurora",
            "spec": {"image": None, "config": None, "argv": "3" * 64, "data": None},
            "scope": scope(),
            "ancestors": [],
            "nonce": "4" * 64,
        }
        return Request(**self.common(**fields | changes))

    def decision(self, subject: str, who: str, verdict: str = "approve", **changes: Any) -> Decision:
        reason = "" if verdict == "approve" else "no"
        fields = {"subject": subject, "person": who, "verdict": verdict, "narrowing": None, "reason": reason}
        return Decision(**self.common(**fields | changes))

    def approved(self) -> str:
        run = self.say(self.request(), "lab-a/ada")
        for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
            self.say(self.decision(run, who), who)
        return run

    def state(self, run: str) -> State:
        return state(self.switch.runs[run], self.now_us)


def refused(parties: Parties, why: Why | Code, statement: Statement, *signers: str) -> None:
    before = {name: copy(value) for name, value in vars(parties.switch).items()}
    with pytest.raises(ProtocolError) as found:
        parties.say(statement, *signers)
    assert why in (found.value.code, getattr(found.value, "why", None)), str(found.value)
    assert vars(parties.switch) == before


def test_a_run_is_approved_suspended_and_resumed() -> None:
    parties = Parties()
    run = parties.approved()
    assert parties.state(run) is State.APPROVED
    about = {"run": run, "reason": "because"}
    call = parties.say(Suspend(**parties.common(person="office/ivy", stop_at_us=None, **about)), "office/ivy")
    assert parties.state(run) is State.SUSPENDED
    resume = parties.say(Resume(**parties.common(person="lab-a/ada", after=[call], **about)), "lab-a/ada")
    assert parties.switch.run_of(resume) is parties.switch.run_of(call) is parties.switch.runs[run]
    for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
        parties.say(parties.decision(resume, who), who)
    assert parties.state(run) is State.APPROVED
    assert parties.switch.runs[run].epoch == 1


def test_a_replayed_decision_changes_no_mind_again() -> None:
    """Ivy approves, then denies; who has her first envelope can't make her approve once more."""
    parties = Parties()
    run = parties.say(parties.request(), "lab-a/ada")
    yes = envelope(parties.decision(run, "office/ivy"), "office/ivy")
    parties.take(yes)
    parties.say(parties.decision(run, "office/ivy", "deny"), "office/ivy")
    with pytest.raises(Refused) as found:
        parties.take(yes)
    assert found.value.why is Why.SAID_BEFORE
    assert parties.switch.runs[run].votes["office/ivy"].verdict == "deny"


def test_about_something_that_there_is_not() -> None:
    parties = Parties()
    refused(parties, Why.UNKNOWN, parties.decision("f" * 64, "office/ivy"), "office/ivy")
    unknown = Withdraw(**parties.common(subject="f" * 64, person="lab-a/ada", reason=""))
    refused(parties, Why.UNKNOWN, unknown, "lab-a/ada")


def test_for_another_deployment() -> None:
    parties = Parties()
    refused(parties, Code.BAD_STATEMENT, parties.request(deployment="kt.example.net"), "lab-a/ada")


def test_signed_by_a_key_that_the_root_does_not_have() -> None:
    parties = Parties()
    refused(parties, Code.UNKNOWN_KEY, parties.request(), "somebody")
    refused(parties, Code.UNKNOWN_KEY, parties.request(), "lab-a/ada", "somebody")


def test_a_new_policy_ends_what_is_pending_and_keeps_what_is_approved() -> None:
    parties = Parties()
    approved = parties.approved()
    pending = parties.say(parties.request(nonce="5" * 64), "lab-a/ada")
    parties.policy = parties.say(
        policy(parties.root, version=2, previous=parties.policy), "lab-a/ada", "operator-b/eve"
    )
    assert (parties.state(approved), parties.state(pending)) == (State.APPROVED, State.LAPSED)


def test_a_root_that_calls_keys_compromised_touches_every_run() -> None:
    parties = Parties()
    runs = [parties.approved()]
    parties.now_us += DAY
    keys = [person_key("office/ivy", compromised_since_us=BEGIN), person_key("ivy's new key")]
    people = [person(name, *(keys if name == "office/ivy" else ())) for name in sorted(PEOPLE)]
    new = root(version=2, previous=parties.root, root=parties.root, persons=people)
    parties.root = parties.say(new, "lab-a/ada", "operator-b/eve")
    assert [parties.state(run) for run in runs] == [State.SUSPENDED]


def test_a_replacement_is_an_operators_word() -> None:
    parties = Parties()
    said = Replacement(
        v=1, deployment=NAME, root=parties.root, time_us=0, old="0" * 32, new="1" * 32, reason="a new disk"
    )
    refused(parties, Why.NOT_ENTITLED, said, "lab-a/ada")
    refused(parties, Why.NOT_ENTITLED, said, "operator-b/eve", "lab-a/ada")
    refused(parties, Why.OTHER_ROOT, changed(said, root=None), "operator-b/eve")
    parties.say(said, "operator-b/eve", "operator-b/fay")


def test_a_narrowing_is_sorted_and_not_empty() -> None:
    parties = Parties()
    run = parties.say(parties.request(), "lab-a/ada")
    for sites in ([], ["b", "a"], ["a", "a"]):
        with pytest.raises(ProtocolError, match="sites is sorted"):
            parties.say(parties.decision(run, "office/ivy", narrowing=narrowing(sites=sites)), "office/ivy")


def test_leaves_are_taken_in_their_order() -> None:
    parties = Parties()
    said = parties.request()
    logged = log_statement(envelope(said, "lab-a/ada"), said, 1, parties.now_us, parties.switch.authority)
    with pytest.raises(ValueError, match="leaf 1 after leaf 1"):
        parties.switch.decide(logged)
