"""What an audit says about the start switch: whatever a verifier took that it must not, or keeps from the auditor."""

from typing import Any

import pytest

from keyturn_protocol import asking as asking_rules
from keyturn_protocol.audit import Report, audit
from keyturn_protocol.bundle import lease_path, statement_path
from keyturn_protocol.chips import chip_table
from keyturn_protocol.lease import parse_lease
from keyturn_protocol.leaves import StatementBody
from keyturn_protocol.limits import ASKED_LEAST_BYTES
from keyturn_protocol.permit import Said, Start
from keyturn_protocol.root import Services
from keyturn_protocol.runs import Suspend, Withdraw
from keyturn_protocol.statements import Replacement
from tests.protocol.test_links import World as Nodes
from tests.protocol.test_links import X
from tests.support.assembly import STARTER, Assembly, lease_note
from tests.support.bundles import Bundle, Site
from tests.support.hosts import Key
from tests.support.leasing import asking
from tests.support.parties import DAY, NAME, PEOPLE, envelope, person, person_key, policy, root, service
from tests.support.people import OPERATORS, replaces


def services(site: Site) -> Services:
    return Services(log_vkey=str(site.log_vkey), receipt_vkey=str(site.receipt_vkey), lease_vkey=service("lease", 1))


def begun(**changes: Any) -> tuple[Site, Assembly]:
    """A verifier that has taken nothing yet, and parties whose root names its keys."""
    site = Site(NAME)
    return site, Assembly(of=root(services=services(site)), **changes)


def taken(site: Site, hall: Assembly) -> None:
    """The verifier takes all that was said and leased in the hall, each in its order and at its time."""
    events: list[Said | Start] = sorted([*hall.said, *hall.starts.values()], key=lambda one: one.index)
    for one in events:
        site.now_s = one.time_us // 1_000_000 - 1
        if isinstance(one, Said):
            site.say(one.envelope.to_bytes())
        else:
            site.now_s -= 1
            lease_after_asking(site, one.lease.to_bytes())


def lease_after_asking(site: Site, note: bytes) -> str:
    """A host asks for exactly this lease, and the verifier issues it, whether or not it should."""
    lease = parse_lease(note).lease
    host = site.enrol(STARTER).genesis().inventory(named=lease.chips)
    site.receive(host.add(asking(lease)))
    return site.lease(note)


def check(bundle: Bundle, pinned: str | None, *, trust: bool = False) -> Report:
    return audit(bundle, bundle.trust if trust else None, chip_table(), operators=OPERATORS, root_sha256=pinned)


def refused(bundle: Bundle, pinned: str, why: str) -> None:
    report = check(bundle, pinned)
    assert report.outcome == "contradicted"
    assert any(why in reason for reason in report.reasons), report.reasons


def whole() -> tuple[Site, Assembly, str]:
    site, hall = begun()
    run = hall.approved()
    hall.start(run)
    hall.suspend(run)
    hall.resume(run, "lab-a/bob", "operator-b/eve", "office/ivy")
    return site, hall, run


def test_a_pinned_root_alone_pins_everything() -> None:
    site, hall, _ = whole()
    taken(site, hall)
    report = check(site.export(), hall.root)
    assert (report.outcome, report.reasons) == ("pass", ())
    assert check(site.export(), hall.root, trust=True).outcome == "pass"


def test_what_was_said_under_a_root_is_good_for_nothing_without_it() -> None:
    site, hall, _ = whole()
    taken(site, hall)
    report = check(site.export(), None, trust=True)
    assert report.outcome == "undecided"
    assert any("under a root: it is not pinned" in reason for reason in report.reasons)


def test_another_root_than_the_pinned_one() -> None:
    site, hall, _ = whole()
    taken(site, hall)
    report = check(site.export(), "ab" * 32, trust=True)
    assert report.outcome == "contradicted"
    assert any("no root in the verifier's log has the pinned hash" in reason for reason in report.reasons)


def test_a_root_that_names_other_keys_than_the_verifiers() -> None:
    site = Site(NAME)
    hall = Assembly()
    taken(site, hall)
    report = check(site.export(), hall.root, trust=True)
    assert report.outcome == "contradicted"
    assert any("a root of other services" in reason for reason in report.reasons)


def test_an_export_that_names_an_older_root() -> None:
    site, hall, _ = whole()
    taken(site, hall)
    site.root_sha256 = None
    refused(site.export(), hall.root, "the export names another root")


def test_a_dropped_veto() -> None:
    """It was logged, as its party was told; the run went on as if it hadn't been."""
    site, hall = begun()
    run = hall.say(hall.request(), "lab-a/ada")
    for who in ("lab-a/bob", "operator-b/eve"):
        hall.say(hall.decision(run, who), who)
    taken(site, hall)
    veto = site.say(envelope(hall.decision(run, "office/joe", "veto"), "office/joe").to_bytes())
    site.say(envelope(hall.decision(run, "office/ivy"), "office/ivy").to_bytes())
    bundle = site.export()
    refused(bundle, hall.root, "over: the run is denied")
    refused(bundle.drop(statement_path(veto)), hall.root, "file is missing")
    refused(bundle.drop(statement_path(veto)).rehashed(), hall.root, f"{statement_path(veto)}: statement of leaf")


def test_more_requests_than_one_person_may_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier took one more; none of them is pending."""
    site, hall = begun()
    monkeypatch.setattr(asking_rules, "ASKED_BYTES", 3 * ASKED_LEAST_BYTES)
    for at in range(3):
        run = hall.say(hall.request(nonce=f"{at:064x}"), "lab-a/ada")
        hall.say(Withdraw(**hall.common(subject=run, person="lab-a/ada", reason="")), "lab-a/ada")
    taken(site, hall)
    assert check(site.export(), hall.root).outcome == "pass"
    site.say(envelope(hall.request(nonce="f" * 64), "lab-a/ada").to_bytes())
    refused(site.export(), hall.root, "asked for too much within 24 h")


def test_a_suspension_that_was_ignored() -> None:
    site, hall, run = whole()
    taken(site, hall)
    suspended = site.say(envelope(_suspension(hall, run), "office/ivy").to_bytes())
    bundle = site.export()
    assert check(bundle, hall.root).outcome == "pass"
    refused(bundle.drop(statement_path(suspended)).rehashed(), hall.root, "statement of leaf")


def _suspension(hall: Assembly, run: str) -> Suspend:
    return Suspend(**hall.common(run=run, person="office/ivy", stop_at_us=None, reason="because"))


def test_an_invented_permit() -> None:
    """Two of three approve, and the verifier signs the third itself, or leases without it."""
    site, hall = begun()
    run = hall.say(hall.request(), "lab-a/ada")
    for who in ("lab-a/bob", "operator-b/eve"):
        hall.say(hall.decision(run, who), who)
    taken(site, hall)
    forged = envelope(hall.decision(run, "office/ivy"), "service log")
    site.say(forged.to_bytes())
    lease_after_asking(site, lease_note(hall.root, hall.policy, run, hall.now_us))
    report = check(site.export(), hall.root)
    assert report.outcome == "contradicted"
    reasons = " ".join(report.reasons)
    assert "signed by a key that may not sign this" in reasons
    assert "no_permit: not approved yet" in reasons


def test_a_lease_for_a_run_that_nobody_asked_for_or_by_another_key() -> None:
    site, hall = begun()
    run = hall.approved()
    taken(site, hall)
    lease_after_asking(site, lease_note(hall.root, hall.policy, "0" * 64, hall.now_us))
    digest = site.lease(lease_note(hall.root, hall.policy, run, hall.now_us, key=Key("service log")))
    bundle = site.export()
    refused(bundle, hall.root, "no such request")
    refused(bundle, hall.root, "verify")
    refused(bundle.drop(lease_path(digest)).rehashed(), hall.root, "lease of leaf")


def test_a_decision_that_is_logged_twice() -> None:
    site, hall, _ = whole()
    taken(site, hall)
    site.say(hall.said[3].envelope.to_bytes())
    refused(site.export(), hall.root, "said_before")


def test_a_root_that_the_old_parties_did_not_sign() -> None:
    site, hall, _ = whole()
    taken(site, hall)
    people = [person(name, person_key("mallory " + name)) for name in sorted(PEOPLE)]
    coup = root(services=services(site), version=2, previous=hall.root, root=hall.root, persons=people)
    site.say(envelope(coup, "mallory lab-a/ada", "mallory office/ivy").to_bytes())
    site.root_sha256 = hall.root
    refused(site.export(), hall.root, "threshold: too few signed")


def test_a_policy_that_too_few_signed() -> None:
    site, hall, _ = whole()
    taken(site, hall)
    site.say(envelope(policy(hall.root, version=2, previous=hall.policy), "lab-a/ada", "lab-a/bob").to_bytes())
    refused(site.export(), hall.root, "threshold: too few signed")


def test_a_key_that_is_compromised_suspends_the_runs_that_rested_on_it() -> None:
    """And a verifier that leases one of them all the same is found."""
    site, hall = begun()
    run = hall.approved()
    keys = [person_key("office/ivy", compromised_since_us=0), person_key("ivy's new key")]
    people = [person(name, *(keys if name == "office/ivy" else ())) for name in sorted(PEOPLE)]
    new = root(services=services(site), version=2, previous=hall.root, root=hall.root, persons=people)
    first, hall.root = hall.root, hall.say(new, "lab-a/ada", "operator-b/eve")
    taken(site, hall)
    assert check(site.export(), first).outcome == "pass"
    lease_after_asking(site, lease_note(hall.root, hall.policy, run, hall.now_us, epoch=1))
    refused(site.export(), first, "suspended")


def test_a_run_that_started_in_time_is_spoken_of_after_its_last_day_to_start() -> None:
    site, hall = begun()
    run = hall.approved()
    hall.start(run)
    hall.now_us += 31 * DAY
    hall.suspend(run)
    taken(site, hall)
    assert check(site.export(), hall.root).outcome == "pass"


@pytest.mark.parametrize(
    ("signers", "why"),
    [
        (("operator-b/eve",), None),
        (("operator-b/eve", "operator-b/fay"), None),
        (("lab-a/ada",), "not_entitled: not a person of an operator"),
        (("operator-b/eve", "office/ivy"), "not_entitled: not a person of an operator"),
        (("anna",), "signed by a key that may not sign this"),
    ],
)
def test_a_host_is_replaced_by_an_operator_of_the_root(signers: tuple[str, ...], why: str | None) -> None:
    nodes = Nodes()
    new = nodes.again().inventory(named=[X])
    nodes.receive(new)
    site = nodes.site
    hall = Assembly(of=root(services=services(site)))
    hall.now_us = site.now_s * 1_000_000
    for said in hall.said:
        site.say(said.envelope.to_bytes())
    said_by = Replacement(
        v=1,
        deployment=NAME,
        root=hall.root,
        time_us=0,
        old=nodes.old.name.node_id,
        new=new.name.node_id,
        reason="new disk",
    )
    site.say(envelope(said_by, *signers).to_bytes())
    report = check(site.export(), hall.root)
    if why is None:
        assert (report.outcome, len(report.links)) == ("pass", 1)
        unpinned = check(site.export(), None, trust=True)
        assert (unpinned.outcome, unpinned.links) == ("undecided", ())
    else:
        refused(site.export(), hall.root, why)
        assert report.links == ()


def test_an_operators_key_of_the_trust_file_counts_only_before_there_is_a_root() -> None:
    nodes = Nodes()
    new = nodes.again().inventory(named=[X])
    nodes.receive(new)
    site = nodes.site
    ids = (nodes.old.name.node_id, new.name.node_id)
    hall = Assembly(of=root(services=services(site)))
    for said in hall.said:
        site.say(said.envelope.to_bytes())
    site.say(replaces(*ids))
    refused(site.export(), hall.root, "may not sign this")


def test_a_statement_under_a_root_that_there_is_not_yet() -> None:
    site, hall = begun()
    run = hall.request()
    site.say(envelope(run, "lab-a/ada").to_bytes())
    site.leaf(StatementBody(kind="policy", sha256="00" * 32))
    refused(site.export(), hall.root, "statement under another root")
