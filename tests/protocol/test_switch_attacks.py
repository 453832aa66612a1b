"""Attacks on what is signed, each by its name, through real signatures and the fold that everybody uses."""

import base64
from copy import copy
from itertools import count
from typing import Any

import pytest

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.dsse import Envelope, parse_envelope
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.lifecycle import State
from keyturn_protocol.limits import (
    ASKED_BYTES,
    ASKED_LEAST_BYTES,
    ENVELOPE_BYTES,
    PENDING,
    PERSONS,
    SAID_BYTES,
    SIGNED_BYTES,
    STATEMENT_BYTES,
)
from keyturn_protocol.permit import open_permit_bundle, parse_permit_bundle
from keyturn_protocol.root import CLASSES, Party, Threshold, Thresholds
from keyturn_protocol.runs import Suspend, Withdraw
from keyturn_protocol.statements import Statement, format_statement, parse_payload, parse_statement
from tests.support.assembly import Assembly
from tests.support.hosts import Key
from tests.support.parties import (
    BEGIN,
    DAY,
    NAME,
    PEOPLE,
    SECOND,
    changed,
    envelope,
    person,
    person_key,
    policy,
    root,
    scope,
    tier,
)
from tests.support.ssh_signer import SshKey


def refused(hall: Assembly, why: Why | Code, statement: Statement, *signers: str) -> None:
    """It is refused for this reason, and nothing changes."""
    before = {name: copy(value) for name, value in vars(hall.switch).items() if isinstance(value, dict | set)}
    with pytest.raises(ProtocolError) as found:
        hall.say(statement, *signers)
    assert why in (found.value.code, getattr(found.value, "why", None)), str(found.value)
    assert {name: value for name, value in vars(hall.switch).items() if name in before} == before


def why(hall: Assembly, statement: Statement, signer: str) -> Why | None:
    """Why it is refused; None if it was taken."""
    try:
        hall.say(statement, signer)
    except Refused as refusal:
        return refusal.why
    return None


def asked(**changes: object) -> tuple[Assembly, str]:
    hall = Assembly(**changes)  # type: ignore[arg-type]
    return hall, hall.say(hall.request(), "lab-a/ada")


# Who counts


def test_one_key_in_two_wrappers() -> None:
    """Raw and as SSH prints it: one point, so one key, wherever it stands in a root."""
    ssh = SshKey("ssh-ed25519")
    raw = f"ed25519 {base64.b64encode(ssh.point).decode()}"
    for texts in ((raw, ssh.text), (ssh.text, raw)):
        people = [
            person(name, changed(person_key(name), key=text))
            for name, text in zip(("lab-a/ada", "office/ivy"), texts, strict=True)
        ]
        with pytest.raises(ProtocolError, match="one key is listed twice"):
            format_statement(root(persons=people))


def test_one_key_under_two_key_ids() -> None:
    """An id that isn't the key's own finds no key; its own a second time isn't an envelope."""
    hall, run = asked()
    sent = envelope(hall.decision(run, "office/ivy"), "office/ivy")
    ((key_id, signature),) = sent.signatures.items()
    with pytest.raises(ProtocolError) as found:
        hall.take(Envelope(sent.kind, sent.payload, {key_id: signature, "ab" * 32: signature}))
    assert found.value.code is Code.UNKNOWN_KEY
    twice = sent.to_record()
    twice = changed(twice, signatures=[*twice.signatures, *twice.signatures])
    with pytest.raises(ProtocolError, match="one for each key"):
        parse_envelope(encode_record(twice))


def test_two_keys_of_one_person() -> None:
    """Both sign, one after the other and together: one approval at most."""
    people = [person(name) for name in sorted(PEOPLE) if name != "office/ivy"]
    people.append(person("office/ivy", person_key("office/ivy"), person_key("ivy's other key")))
    hall, run = asked(of=root(persons=sorted(people, key=lambda one: one.id)))
    hall.say(hall.decision(run, "office/ivy"), "office/ivy")
    hall.say(hall.decision(run, "office/ivy", time_us=1), "ivy's other key")
    refused(hall, Why.OTHER_SIGNER, hall.decision(run, "office/ivy", time_us=2), "office/ivy", "ivy's other key")
    hall.say(hall.decision(run, "operator-b/eve"), "operator-b/eve")
    assert hall.state(run) is State.PENDING


def test_a_same_named_group_in_another_organisation() -> None:
    """A party that calls itself as another does, of the same class: its people are its own."""
    parties = [*root().parties, Party(id="office-2", organisation="shell", class_="regulator", name="Office")]
    parties.sort(key=lambda party: party.id)
    people = sorted([*root().persons, person("office-2/ivy")], key=lambda one: one.id)
    hall, run = asked(of=root(parties=parties, persons=people))
    refused(hall, Why.OTHER_SIGNER, hall.decision(run, "office/ivy"), "office-2/ivy")
    same = [changed(party, organisation="acme") if party.id == "office-2" else party for party in parties]
    hall, run = asked(of=root(parties=same, persons=people))
    for who in ("lab-a/bob", "office-2/ivy", "operator-b/eve"):
        hall.say(hall.decision(run, who), who)
    assert hall.state(run) is State.PENDING  # three persons, every class, two organisations


def test_a_look_alike_name() -> None:
    """Cyrillic, full width, a hyphen that isn't one, a trailing space: no person's name, whatever it looks like."""
    hall, run = asked()
    good = format_statement(hall.decision(run, "office/ivy"))
    look_alikes = (
        "office/\u0456vy",
        "office/ivy ",
        "\uff4fffice/ivy",
        "office/i\u200bvy",
        "office\u2215ivy",
        "Office/ivy",
    )
    for name in look_alikes:
        payload = good.replace(b"office/ivy", name.encode())
        with pytest.raises(ProtocolError):
            parse_payload("decision", payload)


def test_the_requester_approves_by_every_name() -> None:
    two = Threshold(persons=2, organisations=2, minimum={"operator": 1})
    hall, run = asked(tiers=[tier(colleagues=False, approve=two)])
    refused(hall, Why.REQUESTER, hall.decision(run, "lab-a/ada"), "lab-a/ada")
    refused(hall, Why.REQUESTER, hall.decision(run, "lab-a/bob"), "lab-a/bob")
    refused(hall, Why.OTHER_SIGNER, hall.decision(run, "operator-b/eve"), "lab-a/ada")


# What was signed


def test_an_edit_after_the_first_signature() -> None:
    """A policy goes round to be signed; whoever has it last changes it."""
    hall = Assembly()
    said = changed(hall.switch.authority.policies[-1][2], version=2, previous=hall.policy)
    first = envelope(said, "lab-a/ada")
    edited = format_statement(changed(said, tiers=[tier(veto=["operator"])]))
    second = envelope(changed(said, tiers=[tier(veto=["operator"])]), "operator-b/eve")
    with pytest.raises(ProtocolError) as found:
        hall.take(Envelope("policy", edited, {**first.signatures, **second.signatures}))
    assert found.value.code is Code.BAD_SIGNATURE


def test_a_decision_signed_as_another_kind() -> None:
    """The kind is signed too: an approval is no withdrawal."""
    hall, run = asked()
    sent = envelope(hall.decision(run, "office/ivy"), "office/ivy")
    with pytest.raises(ProtocolError):
        parse_statement(Envelope("withdraw", sent.payload, sent.signatures).to_bytes())


def test_a_decision_for_another_request() -> None:
    hall, run = asked()
    other = hall.say(hall.request(nonce="5" * 64), "lab-a/ada")
    for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
        hall.say(hall.decision(other, who), who)
    assert (hall.state(other), hall.state(run)) == (State.APPROVED, State.PENDING)


def test_a_decision_for_another_policy_root_or_deployment() -> None:
    hall, run = asked()
    for changes, why in (
        ({"policy": "f" * 64}, Why.OTHER_POLICY),
        ({"root": "f" * 64}, Why.OTHER_ROOT),
        ({"root": None}, Why.OTHER_ROOT),
        ({"deployment": "kt.example.net"}, Code.BAD_STATEMENT),
    ):
        refused(hall, why, hall.decision(run, "office/ivy", **changes), "office/ivy")


def test_a_replayed_resume() -> None:
    hall = Assembly()
    run = hall.approved()
    hall.suspend(run)
    hall.resume(run, "lab-a/bob", "operator-b/eve", "office/ivy")
    replayed = [said.envelope for said in hall.said[-4:]]
    hall.now_us += 1
    hall.suspend(run)
    for sent in replayed:
        with pytest.raises(Refused) as found:
            hall.take(sent)
        assert found.value.why is Why.SAID_BEFORE
    assert hall.state(run) is State.SUSPENDED


def test_a_root_replaced_without_the_old_threshold() -> None:
    """By the new parties alone, by one old party, and by a root that lowers the threshold to do so."""
    hall = Assembly()
    people = [person(name, person_key("new " + name)) for name in sorted(PEOPLE)]
    one = Threshold(persons=1, organisations=1, minimum={})
    coup = root(
        version=2, previous=hall.root, root=hall.root, persons=people, thresholds=Thresholds(root=one, policy=one)
    )
    refused(hall, Why.THRESHOLD, coup, "new lab-a/ada", "new office/ivy", "new operator-b/eve")
    refused(hall, Why.THRESHOLD, coup, "new lab-a/ada", "lab-a/ada")
    refused(hall, Why.THRESHOLD, coup, "lab-a/ada", "office/ivy")
    hall.say(coup, "lab-a/ada", "office/ivy", "new lab-a/ada")


# Too much


def test_ten_thousand_decisions_on_one_request() -> None:
    """One person says so much and no more; nobody else is kept from deciding."""
    hall, run = asked()
    taken = 0
    for at in range(10_000):
        said = hall.decision(run, "lab-a/bob", "approve" if at % 2 else "deny", time_us=BEGIN + at)
        taken += why(hall, said, "lab-a/bob") is None
    size = len(format_statement(hall.decision(run, "lab-a/bob")))
    assert SAID_BYTES * 0.99 < taken * (size * 4 / 3 + SIGNED_BYTES) < SAID_BYTES * 1.01
    assert len(hall.switch.runs[run].votes) == 1
    opened = open_permit_bundle(parse_permit_bundle(hall.bundle(run)), hall.root, NAME)
    assert opened.run == hall.switch.runs[run]
    hall.say(hall.decision(run, "office/ivy", "veto"), "office/ivy")
    assert hall.state(run) is State.DENIED


def test_a_root_of_a_thousand_persons_who_all_decide() -> None:
    """As many as a root can have; it verifies, and opens as one bundle."""
    parties = [Party(id=f"p{at}", organisation=f"o{at}", class_=kind, name="") for at, kind in enumerate(CLASSES)]
    people = sorted(f"p{at % 4}/n{at:04}" for at in range(PERSONS))
    one = Threshold(persons=1, organisations=1, minimum={})
    everybody = Threshold(persons=PERSONS - 1, organisations=4, minimum={"regulator": 1})
    hall = Assembly.__new__(Assembly)
    hall.begin()
    of = root(parties=parties, persons=[person(name) for name in people], thresholds=Thresholds(root=one, policy=one))
    hall.root = hall.say(of, people[0])
    hall.policy = hall.say(policy(hall.root, tiers=[tier(approve=everybody)]), people[0])
    run = hall.say(hall.request(requester=people[0]), people[0])
    for name in people[1:]:
        assert hall.state(run) is State.PENDING
        hall.say(hall.decision(run, name), name)
    assert hall.state(run) is State.APPROVED
    opened = open_permit_bundle(parse_permit_bundle(hall.bundle(run)), hall.root, NAME)
    assert opened.run == hall.switch.runs[run]


def test_requests_without_end() -> None:
    hall = Assembly()
    for at in range(PENDING):
        hall.say(hall.request(nonce=f"{at:064x}"), "lab-a/ada")
    refused(hall, Why.TOO_MUCH, hall.request(nonce="f" * 64), "lab-a/ada")
    hall.say(hall.request(nonce="f" * 64, requester="lab-a/bob"), "lab-a/bob")
    hall.say(
        Withdraw(**hall.common(subject=hall.said[2].envelope.hash.hex(), person="lab-a/ada", reason="")), "lab-a/ada"
    )
    hall.say(hall.request(nonce="e" * 64), "lab-a/ada")


def withdrawn(hall: Assembly, at: int, **changes: Any) -> Why | None:
    """Somebody asks for a run and takes it back, within two seconds; returns why it is refused."""
    said = hall.request(nonce=f"{at:064x}", **changes)
    if refusal := why(hall, said, said.requester):
        return refusal
    hall.now_us -= 59 * SECOND
    subject = hall.said[-1].envelope.hash.hex()
    hall.say(Withdraw(**hall.common(subject=subject, person=said.requester, reason="")), said.requester)
    hall.now_us -= 59 * SECOND
    return None


def test_requests_that_are_withdrawn_at_once() -> None:
    """So many in a day, although none of them is pending; what is over is no work for the next root either."""
    hall = Assembly()
    begin_us = hall.now_us
    taken = next(at for at in count() if withdrawn(hall, at))
    assert taken == ASKED_BYTES // ASKED_LEAST_BYTES
    assert hall.switch.open_runs == frozenset()
    refused(hall, Why.TOO_MUCH, hall.request(nonce="e" * 64), "lab-a/ada")
    other = hall.say(hall.request(nonce="f" * 64, requester="lab-a/bob"), "lab-a/bob")
    assert hall.switch.open_runs == {other}
    hall.now_us = begin_us + DAY - 1
    refused(hall, Why.TOO_MUCH, hall.request(nonce="e" * 64), "lab-a/ada")
    hall.now_us = begin_us + DAY
    hall.say(hall.request(nonce="e" * 64), "lab-a/ada")
    hall.now_us = begin_us + DAY + SECOND  # the second one was two seconds after the first
    refused(hall, Why.TOO_MUCH, hall.request(nonce="d" * 64), "lab-a/ada")


def test_large_requests_that_are_withdrawn_at_once() -> None:
    """Bytes count: of the largest ones as many as may be pending."""
    hall = Assembly()
    large = scope(chip_uuids=[f"GPU-{at:056}" for at in range(4_096)], chips=4_096)
    taken = next(at for at in count() if withdrawn(hall, at, scope=large))
    size = len(format_statement(hall.request(scope=large)))
    assert size > STATEMENT_BYTES * 0.9
    assert taken == ASKED_BYTES // size


def test_a_run_that_nobody_decided_in_time_is_open_until_its_requester_asks_again() -> None:
    hall, run = asked()
    kept = hall.approved("3" * 64)
    assert hall.switch.open_runs == {run, kept}
    hall.now_us += 8 * DAY
    assert hall.state(run) is State.LAPSED
    other = hall.say(hall.request(nonce="f" * 64), "lab-a/ada")
    assert hall.switch.open_runs == {kept, other}


def test_suspensions_without_end() -> None:
    """Each is taken until there are more than anybody needs; all the while the run is suspended."""
    hall = Assembly()
    run = hall.approved()
    for at in count():
        said = Suspend(**hall.common(run=run, person="office/ivy", stop_at_us=None, reason=f"reason {at}"))
        if why(hall, said, "office/ivy"):
            break
    assert at == 64
    assert hall.state(run) is State.SUSPENDED
    hall.suspend(run, "operator-b/eve")


def test_events_without_end_leave_a_run_that_can_be_revoked() -> None:
    """Four veto-holders suspend and withdraw, 1,200 events; a proposal answers the last 1,024 of them."""
    hall = Assembly()
    run = hall.approved()
    for at in range(600):
        who = ("office/ivy", "office/joe", "operator-b/eve", "operator-b/fay")[at % 4]
        call = hall.say(Suspend(**hall.common(run=run, person=who, stop_at_us=None, reason=str(at))), who)
        hall.now_us -= 60_000_000
        hall.say(Withdraw(**hall.common(subject=call, person=who, reason="")), who)
        hall.now_us -= 60_000_000
    hall.suspend(run)
    assert len(hall.switch.runs[run].after) == 1_024
    hall.resume(run, "lab-a/bob", "operator-b/eve", "office/joe")
    assert hall.state(run) is State.APPROVED


def test_huge_statements() -> None:
    """A cap before anything is parsed, and inside of it every list and text has one of its own."""
    hall, run = asked()
    with pytest.raises(ProtocolError) as found:
        parse_statement(b" " * (ENVELOPE_BYTES + 1))
    assert found.value.code is Code.TOO_LARGE
    with pytest.raises(ProtocolError) as found:
        parse_payload("decision", b" " * (STATEMENT_BYTES + 1))
    assert found.value.code is Code.TOO_LARGE
    many = [f"GPU-{at:04}" for at in range(4_097)]
    for said in (
        hall.request(scope=scope(chip_uuids=many)),
        hall.request(label="x" * 1_025),
        hall.decision(run, "office/ivy", reason="x" * 1_025),
    ):
        with pytest.raises(ProtocolError) as found:
            format_statement(said)
        assert found.value.code is Code.NOT_CANONICAL
    hall.say(hall.request(scope=scope(chip_uuids=many[:4_096]), nonce="9" * 64), "lab-a/ada")


def test_a_bundle_that_is_opened_is_never_half_believed() -> None:
    """One bad signature among many good ones: nothing comes out of it."""
    hall = Assembly()
    run = hall.approved()
    bundle = parse_permit_bundle(hall.bundle(run))
    last = bundle.statements[-1]
    forged = changed_envelope(last.envelope, Key("mallory"))
    said = (*bundle.statements[:-1], type(last)(forged, last.index, last.time_us))
    with pytest.raises(ProtocolError):
        open_permit_bundle(type(bundle)(NAME, run, said), hall.root, NAME)


def changed_envelope(sent: Envelope, key: Key) -> Envelope:
    """The same under the signer's key id, signed by another."""
    return Envelope(sent.kind, sent.payload, {key_id: key.sign(b"anything") for key_id in sent.signatures})
