"""What an audit says about leases: whatever a verifier granted that it must not, and what hosts made of theirs."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from keyturn_protocol.audit import Report, audit, open_manifest, tasks
from keyturn_protocol.audit_log import audit_log
from keyturn_protocol.audit_tree import audit_verifier_log
from keyturn_protocol.chips import chip_table
from keyturn_protocol.claims import LIVE_S
from keyturn_protocol.entry_log import RetiredBody
from keyturn_protocol.findings import FindingCode, Severity
from keyturn_protocol.lease import AllowanceName
from keyturn_protocol.lease_accounts import CHIP_TFLOP_S
from keyturn_protocol.lifecycle import State
from keyturn_protocol.statements import Replacement
from tests.support.bundles import Bundle
from tests.support.hosts import Key
from tests.support.leased_site import LeasedSite
from tests.support.metered import Metered, tflop
from tests.support.parties import BEGIN, DAY, changed, root, tier
from tests.support.people import OPERATORS, replaces

ROW = 8
"""TFLOP of ten busy seconds come to less than 10^4."""


def codes(report: Report) -> list[str]:
    return [one.code for one in report.findings if one.code.startswith("lease_")]


def refused(site: LeasedSite, why: str, bundle: Bundle | None = None) -> None:
    report = site.audit(bundle)
    assert report.outcome == "contradicted"
    assert any(why in reason for reason in report.reasons), report.reasons


def passes(site: LeasedSite, *findings: str) -> Report:
    report = site.audit()
    assert (report.outcome, report.reasons) == ("pass", ())
    assert codes(report) == sorted(findings)
    return report


def pickled(value: Any) -> Any:
    """As another process gets it."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301


class TestHonest:
    def test_a_run_under_leases_is_recomputed(self) -> None:
        site = LeasedSite()
        hosts = [site.host(name) for name in "ab"]
        total = 0
        for host in hosts:
            first = site.leased(host, 10**5)
            host.works().say(first)
            second = site.leased(host, 2 * 10**5)
            total += tflop(host.works().say(second, "final"))
            site.receive(host)
        (run,) = passes(site).runs
        assert (run.state, run.budget_tflop, run.epoch) == (State.ACTIVE, 10**6, 0)
        assert run.charged_tflop == run.committed_tflop == total > 0
        assert run.recomputed_flop == sum(host.charged(site.run) for host in hosts)

    def test_a_run_that_used_its_budget_up(self) -> None:
        site = LeasedSite(budget_tflop=ROW)
        host = site.host("a")
        lease = site.leased(host, ROW)
        host.works().say(lease, "final")
        site.receive(host)
        report = site.audit()
        assert (report.outcome, report.runs[0].state) == ("pass", State.EXHAUSTED)
        assert codes(report) == ["lease_overrun"]

    def test_work_under_the_allowance(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        name = AllowanceName(kind="allowance", organisation="acme", lineage="aurora")
        host.ask_allowance(host.uuids, "aurora")
        site.receive(host)
        lease = site.issue(host, 10**5, allowance=name)
        host.say(lease, "adopted")
        host.works().say(lease, "final")
        site.receive(host)
        passes(site)

    def test_a_chip_that_another_node_lists_too_is_its_own_hosts(self) -> None:
        site = LeasedSite()
        owner, squatter = site.host("a"), site.host("b")
        site.receive(squatter.listing(owner.uuids))
        site.leased(owner, 10)
        passes(site)

    @pytest.mark.parametrize("how", ["lists_it_no_more", "retired", "replaced", "silent"])
    def test_a_chip_that_moved(self, how: str) -> None:
        site = LeasedSite()
        old, new = site.host("a"), site.host("b")
        match how:
            case "lists_it_no_more":
                site.receive(old.listing([]))
            case "retired":
                site.receive(old.add(RetiredBody(chips=None, reason="sold")))
            case "replaced":
                replaced(site, old, new)
            case _:
                site.now_s += LIVE_S + 1
        new.uuids = old.uuids
        site.receive(new.listing(old.uuids))
        site.leased(new, 10)
        passes(site)

    def test_a_log_that_is_left_out_leaves_open_what_it_asked_for(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        site.leased(host, 10)
        report = site.audit(site.export({host.origin: "lost"}))
        assert report.outcome == "undecided"
        assert report.runs[0].committed_tflop == 10

    def test_what_workers_hand_over_is_picklable(self) -> None:
        site = LeasedSite()
        site.leased(site.host("a"), 10)
        bundle = site.export()
        manifest = open_manifest(bundle)
        log = audit_verifier_log(bundle, manifest, bundle.trust)
        (task,) = tasks(manifest, log, bundle.trust)
        found = audit_log(bundle, pickled(task))
        assert found.gathered.words
        assert pickled(found).gathered == found.gathered


def replaced(site: LeasedSite, old: Metered, new: Metered) -> None:
    """An operator says that a host became another node."""
    ids = {"old": old.name.node_id, "new": new.name.node_id}
    said = Replacement(v=1, deployment=site.name, root=site.hall.root, time_us=0, reason="a new disk", **ids)
    site.hall.say(said, "operator-b/eve")
    site.catch_up()


def asked(site: LeasedSite, seed: str = "a") -> Metered:
    """A host that asked for a lease of the run, received."""
    host = site.host(seed)
    host.ask(host.uuids, run=site.run)
    site.receive(host)
    return host


class TestVerifier:
    """Whose leases aren't what the switch lets it grant."""

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"upto_tflop": 10**6 + 1}, "exhausted: more than is left"),
            ({"nonce": "ab" * 32}, "answers no permit entry"),
            ({"boot_id": "00000000-0000-4000-8000-000000000000"}, "stale: answers for another boot"),
            ({"chips": ["GPU-other"]}, "stale: answers for another chips"),
            ({"epoch": 1}, "stale: of another epoch"),
            ({"root": "ab" * 32}, "other_root"),
            ({"policy": "ab" * 32}, "other_policy"),
            ({"run": "ab" * 32}, "unknown: no such request"),
            ({"dtypes": ["bf16"]}, "broken: other data types"),
            ({"ttl_s": 48 * 3600 + 1}, "broken: lives longer"),
            ({"sequence": 1}, "stale: not the log's next lease"),
            ({"charged_tflop": 1}, "stale: not what was charged"),
            # Expired before it was logged, it would take no chips, and nothing of an allowance.
            ({"time_us": BEGIN}, "stale: of another time"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_lease_that_it_must_not_grant(self, changes: dict[str, Any], why: str) -> None:
        site = LeasedSite()
        site.issue(asked(site), 10, **changes)
        refused(site, why)

    @pytest.mark.parametrize(
        ("scoped", "why"),
        [
            ({"sites": ["fra1"]}, "site: at another site"),
            ({"chip_uuids": ["GPU-other"]}, "site: a chip that the permit doesn't name"),
            ({"not_before_us": BEGIN + 30 * DAY}, "window: before its window"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_lease_outside_of_the_scope(self, scoped: dict[str, Any], why: str) -> None:
        site = LeasedSite(**scoped)
        site.issue(asked(site), 10)
        refused(site, why)

    @pytest.mark.parametrize(
        ("asks", "why"),
        [({"verified": ["argv"]}, "unverified: the host has to check"), ({"assurance": 1}, "assurance: evidence")],
        ids=["verified", "assurance"],
    )
    def test_a_lease_to_a_host_that_the_tier_does_not_take(self, asks: dict[str, Any], why: str) -> None:
        site = LeasedSite(tiers=[tier(**asks)])
        site.issue(asked(site), 10)
        refused(site, why)

    def test_the_budget_leased_twice(self) -> None:
        site = LeasedSite(budget_tflop=100)
        site.leased(site.host("a"), 60)
        site.issue(asked(site, "b"), 41)
        refused(site, "exhausted: more than is left")

    def test_a_chip_of_another_node_for_who_lists_it_too(self) -> None:
        """Its host has never asked for a lease; it was there first, and is heard of."""
        site = LeasedSite()
        owner, squatter = site.host("a"), site.host("b")
        squatter.uuids = owner.uuids
        site.receive(squatter.listing(owner.uuids))
        site.leased(squatter, 10)
        ids = (owner.name.node_id, owner.uuids[0], squatter.name.node_id)
        refused(
            site,
            "chip_claimed: another node named the chip first, lists it and is heard of (expected node {}, "
            "got {} of node {})".format(*ids),
        )

    def test_a_chip_of_another_node_for_who_goes_on_under_its_next_log(self) -> None:
        site = LeasedSite()
        owner, squatter = site.host("a"), site.host("b")
        squatter.uuids = owner.uuids
        site.receive(squatter.listing(owner.uuids))
        site.now_s += LIVE_S + 1
        site.leased(squatter, 10)
        passes(site)
        site.receive(owner.usage())
        site.leased(squatter, 20)
        refused(site, "chip_claimed: another node named the chip first")

    def test_one_chip_in_two_leases(self) -> None:
        """Its first node was silent meanwhile: it waits until the lease that another one got is over."""
        site = LeasedSite()
        owner, other = site.host("a"), site.host("b")
        other.uuids = owner.uuids
        site.receive(other.listing(owner.uuids))
        site.now_s += LIVE_S + 1
        site.leased(other, 10)
        site.leased(owner, 10)
        refused(site, "chip_taken: under another lease")

    def test_a_lease_without_a_permit(self) -> None:
        site = LeasedSite()
        run = site.hall.say(site.hall.request(nonce="7" * 64), "lab-a/ada")
        site.catch_up()
        host = site.host("a")
        host.ask(host.uuids, run=run)
        site.receive(host)
        site.issue(host, 10, run=run)
        refused(site, "no_permit: not approved yet")

    def test_a_lease_after_a_suspension(self) -> None:
        """Hidden from the host, or ignored: the leaf is there, as its party was told."""
        site = LeasedSite()
        host = site.host("a")
        site.leased(host, 10)
        site.hall.suspend(site.run)
        site.catch_up()
        site.leased(host, 20, epoch=1)
        refused(site, "suspended: the run is to stop")

    def test_the_allowance_granted_again_and_again_by_leases_of_long_ago(self) -> None:
        site = LeasedSite()
        name = AllowanceName(kind="allowance", organisation="acme", lineage="aurora")
        for seed in "ab":
            host = site.host(seed)
            host.ask_allowance(host.uuids, "aurora")
            site.receive(host)
            site.issue(
                host, site.hall.switch.authority.policies[-1][2].allowance.lineage_tflop, allowance=name, time_us=1
            )
        refused(site, "stale: of another time")

    @pytest.mark.parametrize("kind", ["allowance", "diagnostics"])
    @pytest.mark.parametrize("invented", ["initech", "Acme", "\N{CYRILLIC SMALL LETTER A}cme"], ids=ascii)
    def test_an_allowance_of_an_organisation_that_is_not_in_the_root(self, invented: str, kind: Any) -> None:
        """By the very name for which the host was enrolled: who makes join tokens says any."""
        site = LeasedSite()
        host = site.host("a", organisation=invented)
        lineage = "aurora" if kind == "allowance" else None
        host.ask_allowance(host.uuids, lineage)
        site.receive(host)
        site.issue(host, 10, allowance=AllowanceName(kind=kind, organisation=invented, lineage=lineage))
        refused(
            site,
            f"organisation: the host isn't of an organisation in the root in force, root version 1 "
            f"(expected acme, hosting or state, got {invented!a})",
        )

    def test_an_allowance_of_an_organisation_that_left_the_root(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        hall, before = site.hall, site.hall.root
        parties = [changed(party, organisation="globex") if party.id == "lab-a" else party for party in root().parties]
        standing = hall.switch.standing
        assert standing is not None
        made = changed(standing.root, parties=parties, version=2, previous=before, root=before)
        hall.say(made, "lab-a/ada", "operator-b/eve")
        site.catch_up()
        host.ask_allowance(host.uuids, "aurora")
        site.receive(host)
        site.issue(host, 10, allowance=AllowanceName(kind="allowance", organisation="acme", lineage="aurora"))
        refused(site, "organisation: the host isn't of an organisation in the root in force, root version 2")

    @pytest.mark.parametrize("kind", ["run", "allowance", "diagnostics"])
    def test_a_lease_for_a_node_that_was_replaced(self, kind: Any) -> None:
        site = LeasedSite()
        host, new = site.host("a"), site.host("b")
        lease = site.leased(host, 10)
        host.say(lease, "final")
        site.receive(host)
        replaced(site, host, new)
        passes(site)
        if kind == "run":
            site.leased(host, 20)
        else:
            lineage = "aurora" if kind == "allowance" else None
            host.ask_allowance(host.uuids, lineage)
            site.receive(host)
            site.issue(host, 10, allowance=AllowanceName(kind=kind, organisation="acme", lineage=lineage))
        old_id, new_id = host.name.node_id, new.name.node_id
        refused(site, f"replaced: another node is what this host became (expected {new_id}, got {old_id})")

    def test_a_renewal_for_a_node_that_was_replaced(self) -> None:
        site = LeasedSite()
        host, new = site.host("a"), site.host("b")
        site.leased(host, 10)
        replaced(site, host, new)
        site.leased(host, 20)
        refused(site, "replaced: another node is what this host became")

    def test_a_lease_for_a_node_that_was_replaced_before_there_was_a_root(self) -> None:
        """To who pinned the operators of then: nobody else can say whether they could."""
        hosts: list[Metered] = []

        def before(site: LeasedSite) -> None:
            hosts.extend(site.host(seed) for seed in "ab")
            site.say(replaces(hosts[0].name.node_id, hosts[1].name.node_id))

        site = LeasedSite(before=before)
        site.leased(hosts[0], 10)
        bundle = site.export()
        report = audit(bundle, bundle.trust, chip_table(), operators=OPERATORS, root_sha256=site.hall.root)
        assert any("replaced: another node is what this host became" in reason for reason in report.reasons)
        assert (report.outcome, site.audit(bundle).outcome) == ("contradicted", "undecided")

    def test_a_lease_by_another_key(self) -> None:
        site = LeasedSite()
        site.issue(asked(site), 10, key=Key("mallory"))
        refused(site, "verify")

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda site, bundle, path: bundle.drop(path), "file is missing"),
            (lambda site, bundle, path: bundle.drop(path).rehashed(), "lease of leaf"),
            (lambda site, bundle, path: bundle.flip(path, 30).rehashed(), "lease of leaf"),
            (lambda site, bundle, path: bundle.put(path, bundle.files[path] + b"x").rehashed(), "lease of leaf"),
        ],
        ids=["dropped", "dropped_from_the_manifest", "altered", "longer"],
    )
    def test_a_lease_that_is_not_there_as_logged(
        self, change: Callable[[LeasedSite, Bundle, str], Bundle], why: str
    ) -> None:
        site = LeasedSite()
        digest = site.leased(site.host("a"), 10)
        bundle = site.export()
        refused(site, why, change(site, bundle, site.lease_file(digest)))


class TestHosts:
    """Who say something else than their logs come to, or do what no lease allows."""

    def test_less_than_the_log_comes_to(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        lease = site.leased(host, 10**5)
        host.works().say(lease, "final", flop=5)
        site.receive(host)
        report = passes(site, FindingCode.LEASE_UNDERCHARGED)
        (found,) = [one for one in report.findings if one.code is FindingCode.LEASE_UNDERCHARGED]
        assert str(host.charged(site.run)) in found.detail
        assert report.runs[0].recomputed_flop == host.charged(site.run)

    def test_less_than_before(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        lease = site.leased(host, 10**5)
        host.works().say(lease, flop=90 * 10**12 * 1000)
        host.works().say(lease, flop=80 * 10**12 * 1000)
        site.receive(host)
        passes(site, FindingCode.LEASE_ROLLBACK)

    def test_more_than_it_was_allowed(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        lease = site.leased(host, 1)
        host.works().say(lease)
        site.receive(host)
        passes(site, FindingCode.LEASE_OVERRUN)

    def test_one_huge_report_uses_no_run_up(self) -> None:
        site = LeasedSite()
        host, other = site.host("a"), site.host("b")
        lease = site.leased(host, 10**5)
        host.say(lease, flop=10**70)
        site.receive(host)
        site.leased(other, 5 * 10**5)
        report = passes(site, FindingCode.LEASE_OVERRUN)
        (run,) = report.runs
        assert run.state is State.ACTIVE
        # What one chip can do between the leaves of its lease and of its report, and what the other one may.
        counts = 2 * CHIP_TFLOP_S
        assert (run.charged_tflop, run.committed_tflop) == (counts, counts + 5 * 10**5)
        (found,) = [one for one in report.findings if one.code is FindingCode.LEASE_OVERRUN]
        assert found.detail.endswith(f"; {counts} TFLOP of it count: no chips do more in that time")

    def test_a_lease_for_who_said_more_than_its_chips_can_have_done(self) -> None:
        site = LeasedSite(budget_tflop=10**9)
        host = site.host("a")
        lease = site.leased(host, 10)
        host.say(lease, flop=10**20)
        site.receive(host)
        site.leased(host, 2 * 10**8)
        refused(site, "TFLOP more are reported than its chips can have done")

    @pytest.mark.parametrize("other", [True, False], ids=["for_another_run", "for_the_same"])
    def test_a_nonce_said_twice_puts_no_verifier_in_the_wrong(self, other: bool) -> None:
        site = LeasedSite()
        second = site.hall.approved() if other else site.run
        site.catch_up()
        host = site.host("a")
        for run in (site.run, second):
            host.nonces = 0
            host.ask(host.uuids, run=run)
        site.receive(host)
        if other:
            site.issue(host, 10, ttl_s=1)
            site.now_s += 2
            site.issue(host, 10, run=second)
        else:
            site.issue(host, 10)
            site.issue(host, 20)
        passes(site)

    def test_a_lease_of_another_node(self) -> None:
        site = LeasedSite()
        host, thief = site.host("a"), site.host("b")
        lease = site.leased(host, 10**5)
        thief.leases = host.leases
        thief.say(lease, "adopted")
        thief.works().say(lease)
        site.receive(thief)
        passes(site, FindingCode.LEASE_UNKNOWN, FindingCode.LEASE_UNKNOWN)

    def test_a_lease_that_the_verifier_kept_out_of_its_log(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        host.lease(host.uuids, run=site.run)
        site.receive(host.works())
        report = passes(site, FindingCode.LEASE_UNKNOWN)
        (found,) = [one for one in report.findings if one.code is FindingCode.LEASE_UNKNOWN]
        (run,) = report.runs
        # Nobody but the host has the note, so who made it is for people to find out; it stands on top.
        assert (found.severity, found.origin) == (Severity.HIGH, host.origin)
        assert (run.charged_tflop, run.committed_tflop, run.recomputed_flop) == (0, 0, 0)

    def test_a_workload_that_goes_on_after_the_end(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        lease = site.leased(host, 10**5)
        host.works().say(lease, "final")
        site.receive(host.works())
        passes(site, FindingCode.LEASE_SURVIVORS)
