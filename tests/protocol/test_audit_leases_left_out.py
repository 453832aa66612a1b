"""Leases of nodes whose logs aren't in the bundle: what their verifier can't have granted, and what it can have."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol.audit import Report
from keyturn_protocol.claims import LIVE_S
from keyturn_protocol.lease import AllowanceName
from keyturn_protocol.lease_accounts import TERA
from keyturn_protocol.statements import Replacement
from tests.support.leased_site import LeasedSite
from tests.support.metered import Metered
from tests.support.parties import BEGIN, DAY, tier

FREE = AllowanceName(kind="allowance", organisation="acme", lineage="aurora")
FREE_TFLOP = 10**9
"""What the policy allows in a window."""
FREE_UNIT = FREE_TFLOP // 100


def without(site: LeasedSite, *hosts: Metered) -> Report:
    return site.audit(site.export({host.origin: "lost" for host in hosts}))


def refused(site: LeasedSite, why: str, *hosts: Metered) -> None:
    """Whether the log is there or not."""
    for report in (site.audit(), without(site, *hosts)):
        assert report.outcome == "contradicted"
        assert any(why in reason for reason in report.reasons), report.reasons


def undecided(site: LeasedSite, *hosts: Metered) -> None:
    report = without(site, *hosts)
    assert (report.outcome, report.contradictions) == ("undecided", ())


def asked(site: LeasedSite, seed: str = "a", chips: int = 1) -> Metered:
    host = site.host(seed, chips)
    host.ask(host.uuids, run=site.run)
    site.receive(host)
    return host


def next_log(site: LeasedSite, host: Metered, seed: str) -> Metered:
    """The node's next log, with the chips of its last one."""
    number = host.name.incarnation + 1
    site.enrol(seed, number, host.name.node_id, organisation="acme")
    new = Metered(seed, incarnation=number, node=host.name.node_id)
    new.uuids = host.uuids
    site.receive(new.genesis(host.previous("rejected"), source="nvml").listing(new.uuids))
    return new


def said(host: Metered, lease: str, event: str = "report", tflop: int = 0) -> Metered:
    host.say(lease, event, flop=tflop * TERA)
    return host


class TestInvented:
    """Nothing of this needs the log."""

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"upto_tflop": 10**6 + 1}, "exhausted: more than is left"),
            ({"epoch": 1}, "stale: of another epoch"),
            ({"root": "ab" * 32}, "other_root"),
            ({"policy": "ab" * 32}, "other_policy"),
            ({"run": "ab" * 32}, "unknown: no such request"),
            ({"dtypes": ["bf16"]}, "broken: other data types"),
            ({"ttl_s": 48 * 3600 + 1}, "broken: lives longer"),
            ({"sequence": 1}, "stale: not the log's next lease"),
            ({"charged_tflop": 1}, "stale: not what was charged"),
            ({"time_us": BEGIN}, "stale: of another time"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_of_what_nobody_allowed(self, changes: dict[str, Any], why: str) -> None:
        site = LeasedSite()
        host = asked(site)
        site.issue(host, 10, **changes)
        refused(site, why, host)

    @pytest.mark.parametrize(
        ("scoped", "why"),
        [
            ({"sites": ["fra1"]}, "site: at another site"),
            ({"chip_uuids": ["GPU-other"]}, "site: a chip that the permit doesn't name"),
            ({"not_before_us": BEGIN + 30 * DAY}, "window: before its window"),
            ({"chips": 1}, "too_many_chips: too many at once"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_outside_of_the_scope(self, scoped: dict[str, Any], why: str) -> None:
        site = LeasedSite(**scoped)
        host = asked(site, chips=2)
        site.issue(host, 10)
        refused(site, why, host)

    def test_without_a_permit(self) -> None:
        site = LeasedSite()
        run = site.hall.say(site.hall.request(nonce="7" * 64), "lab-a/ada")
        site.catch_up()
        host = site.host("a")
        site.leased(host, 10, run=run)
        refused(site, "no_permit: not approved yet", host)

    def test_of_a_run_that_is_suspended(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        site.leased(host, 10)
        site.hall.suspend(site.run)
        site.catch_up()
        site.leased(host, 20, epoch=1)
        refused(site, "suspended: the run is to stop", host)

    def test_for_a_node_that_was_replaced(self) -> None:
        site = LeasedSite()
        host, new = site.host("a"), site.host("b")
        ids = {"old": host.name.node_id, "new": new.name.node_id}
        gone = Replacement(v=1, deployment=site.name, root=site.hall.root, time_us=0, reason="a new disk", **ids)
        site.hall.say(gone, "operator-b/eve")
        site.catch_up()
        site.leased(host, 10)
        refused(site, "replaced: another node is what this host became", host)

    @pytest.mark.parametrize("invented", ["hosting", "initech"])
    def test_of_the_allowance_of_others(self, invented: str) -> None:
        site = LeasedSite()
        host = site.host("a")
        host.ask_allowance(host.uuids, "aurora")
        site.receive(host)
        site.issue(host, 10, allowance=AllowanceName(kind="allowance", organisation=invented, lineage="aurora"))
        refused(site, "stale: answers for another organisation than asked", host)

    def test_of_more_than_the_allowance(self) -> None:
        site = LeasedSite()
        hosts = [site.host(seed) for seed in "ab"]
        for host in hosts:
            host.ask_allowance(host.uuids, "aurora")
            site.receive(host)
        for host in hosts:
            site.issue(host, FREE_TFLOP // 2 + 1, allowance=FREE)
        refused(site, "exhausted: more than is left", *hosts)

    def test_the_budget_twice(self) -> None:
        """The one that is left out takes it first, or second, or both are left out."""
        site = LeasedSite(budget_tflop=100)
        hosts = [asked(site, "a"), asked(site, "b")]
        site.issue(hosts[0], 60)
        site.issue(hosts[1], 41)
        for out in (hosts[:1], hosts[1:], hosts):
            refused(site, "exhausted: more than is left", *out)

    def test_the_budget_twice_by_what_leases_say_was_charged(self) -> None:
        site = LeasedSite(budget_tflop=100)
        host, other = site.host("a"), site.host("b")
        host.say(site.leased(host, 50), flop=50 * TERA)
        site.leased(host, 60)
        host.say(site.leased(host, 70), "final", flop=60 * TERA)
        site.receive(host)
        site.leased(other, 41)
        undecided(site, host)  # up to 70 TFLOP were leased, and 50 charged for sure
        other.say(site.leased(other, 51), "adopted")
        refused(site, "exhausted: more than is left", host)

    def test_that_take_back_what_was_charged(self) -> None:
        site = LeasedSite()
        host = site.host("a")
        for charged in (0, 40, 39):
            site.leased(host, 100, charged_tflop=charged)
        refused(site, "stale: not what was charged", host)

    def test_that_say_more_was_charged_before_anybody_could_say_so(self) -> None:
        site = LeasedSite()
        host = asked(site)
        host.ask(host.uuids, run=site.run)
        site.receive(host)
        site.issue(host, 10, nonce=f"{1:064x}")
        site.issue(host, 100, charged_tflop=5)
        refused(site, "stale: not what was charged", host)

    def test_chips_at_once(self) -> None:
        site = LeasedSite(chips=3)
        hosts = [asked(site, seed, chips=2) for seed in "ab"]
        for host in hosts:
            site.issue(host, 10)
        refused(site, "too_many_chips: too many at once", hosts[0])

    def test_of_a_log_of_which_nothing_was_received(self) -> None:
        site = LeasedSite()
        site.enrol("a", organisation="acme")
        host = Metered("a")
        host.uuids = ["GPU-a0"]
        site.issue(host, 10)
        report = without(site, host)
        assert report.outcome == "contradicted"
        assert "a log that can't have asked so often" in report.reasons[0]
        assert "(expected > 2 entries, got 0)" in report.reasons[0]

    def test_more_than_the_log_has_entries(self) -> None:
        site = LeasedSite()
        host = asked(site)
        site.issue(host, 10)
        undecided(site, host)
        site.issue(host, 20)
        report = without(site, host)
        assert report.outcome == "contradicted"
        assert "lease 2 of a log that can't have asked so often" in report.reasons[0]

    def test_for_a_node_whose_open_log_is_here(self) -> None:
        site = LeasedSite()
        old = site.host("a")
        site.leased(old, 10)
        new = next_log(site, old, "a")
        site.leased(new, 10)
        undecided(site, old)
        site.issue(old, 20, sequence=1)
        refused(site, "answers no permit entry", old)

    def test_for_what_an_earlier_log_asked_for(self) -> None:
        """Its node has left it: nobody writes down there what the lease is used for."""
        site = LeasedSite()
        old = asked(site)
        next_log(site, old, "a")
        site.issue(old, 10)
        assert "answers no permit entry" in site.audit().reasons[0]


class TestHonest:
    """What only the log could tell is held against nobody."""

    @pytest.mark.parametrize("changes", [{"nonce": "ab" * 32}, {"boot_id": "00000000-0000-4000-8000-000000000000"}])
    def test_what_it_asked_for(self, changes: dict[str, Any]) -> None:
        site = LeasedSite()
        host = asked(site)
        site.issue(host, 10, **changes)
        undecided(site, host)

    def test_what_it_had_checked(self) -> None:
        site = LeasedSite(tiers=[tier(verified=["argv"])])
        host = asked(site)
        site.issue(host, 10)
        undecided(site, host)

    def test_budget_and_chips_that_it_gave_back(self) -> None:
        site = LeasedSite(budget_tflop=100, chips=1)
        host, other = site.host("a"), site.host("b")
        host.say(site.leased(host, 100), "final", flop=5 * TERA)
        site.receive(host)
        site.leased(other, 95)
        assert site.audit().outcome == "pass"
        undecided(site, host)

    def test_the_allowance_that_it_gave_back(self) -> None:
        site = LeasedSite()
        hosts = [site.host(seed) for seed in "ab"]
        for host in hosts:
            host.ask_allowance(host.uuids, "aurora")
            site.receive(host)
            host.say(site.issue(host, FREE_TFLOP, allowance=FREE), "final", flop=0)
            site.receive(host)
        assert site.audit().outcome == "pass"
        undecided(site, hosts[0])

    def test_a_chip_that_it_named_first(self) -> None:
        """In a log that is left out; another node did before this one's next log."""
        site = LeasedSite()
        owner, other = site.host("a"), site.host("b")
        other.uuids = owner.uuids
        site.receive(other.listing(owner.uuids))
        new = next_log(site, owner, "a")
        site.leased(new, 10)
        assert site.audit().outcome == "pass"
        undecided(site, owner)

    def test_a_nonce_that_it_said_in_both_of_its_logs(self) -> None:
        site = LeasedSite()
        old = asked(site)
        new = next_log(site, old, "a")
        new.reboot().ask(new.uuids, run=site.run)
        site.receive(new)
        site.issue(new, 10)
        assert site.audit().outcome == "pass"
        undecided(site, new)

    def test_the_rest_of_a_log_that_its_node_left(self) -> None:
        """All that it had open counts as used when the next one gets a lease, until it says otherwise after all."""
        site = LeasedSite(budget_tflop=100)
        old, other = site.host("a"), site.host("b")
        lease = site.leased(old, 60)
        new = next_log(site, old, "a")
        site.leased(new, 10)
        old.say(lease, "final", flop=TERA)
        site.receive(old)
        site.leased(other, 89)
        assert site.audit().outcome == "pass"
        undecided(site, old)

    def test_chips_of_who_was_silent_while_it_had_them_unseen(self) -> None:
        """Back, and without room: what it says counts, and its chips don't, though the log that has them is missing."""
        site = LeasedSite(chips=1)
        back, unseen, last = (site.host(seed) for seed in "abc")
        lease = site.leased(back, 10)
        site.now_s += 301
        first = site.leased(unseen, 10)
        site.receive(said(unseen, first))
        site.receive(said(back, lease))
        site.receive(said(unseen, first, "final"))
        site.leased(last, 10)
        assert site.audit().outcome == "pass"
        undecided(site, unseen)


class Honest:
    """A site whose verifier grants what an audit of everything passes, and takes back the rest."""

    def __init__(self) -> None:
        self.site = LeasedSite(budget_tflop=100, chips=3)
        self.logs = {seed: [self.site.host(seed, chips)] for seed, chips in (("a", 1), ("b", 2), ("c", 1))}

    @property
    def all(self) -> list[Metered]:
        return [log for logs in self.logs.values() for log in logs]

    def ask(self, seed: str, tflop: int, *, free: bool, boot: bool) -> None:
        """For so much more than its host has charged."""
        host = self.logs[seed][-1]
        if boot:
            host.reboot()
        if free:
            host.ask_allowance(host.uuids, "aurora")
        else:
            host.ask(host.uuids, run=self.site.run)
        self.site.receive(host)
        leaves, leases, issued = self.site.leaves[:], dict(host.leases), dict(host.issued)
        allowance = FREE if free else None
        upto = host.account(subject(free, self.site.run))[1] + tflop * (FREE_UNIT if free else 1)
        digest = self.site.issue(host, upto, allowance=allowance)
        granted = self.site.leaves[:]
        passed = self.site.audit().outcome == "pass"
        self.site.leaves = granted
        if not passed:
            self.site.leaves, host.leases, host.issued = leaves, leases, issued
            del self.site.files[self.site.lease_file(digest)]

    def say(self, seed: str, event: str, tflop: int, log: int, which: int) -> None:
        """So much more charged than before, about its newest lease or the one before."""
        host = self.logs[seed][max(0, len(self.logs[seed]) - 1 - log)]
        if not host.leases:
            return
        lease = list(host.leases)[max(0, len(host.leases) - 1 - which)]
        free = host.leases[lease].allowance is not None
        charged = host.account(subject(free, self.site.run))[1]
        self.site.receive(said(host, lease, event, charged + tflop * (FREE_UNIT if free else 1)))


def subject(free: bool, run: str) -> str:
    return "allowance/allowance/acme/aurora" if free else run


SEEDS = st.sampled_from("abc")
ONE_IN_FOUR = st.sampled_from([False, False, False, True])
ASKS = st.tuples(st.just("ask"), SEEDS, st.sampled_from([1, 20, 50, 90, 100]), ONE_IN_FOUR, ONE_IN_FOUR)
EVENTS = st.sampled_from(["adopted", "report", "final"])
SAYS = st.tuples(st.just("say"), SEEDS, EVENTS, st.sampled_from([0, 1, 20, 110]), ONE_IN_FOUR, ONE_IN_FOUR)
STEPS = st.one_of(
    *(ASKS, ASKS, SAYS, SAYS),
    st.tuples(st.just("wait"), st.sampled_from([200, 301, LIVE_S + 1, 3601])),
    st.tuples(st.just("lists"), SEEDS, SEEDS),
    st.tuples(st.just("log"), SEEDS),
)


def played(steps: Iterable[tuple[Any, ...]]) -> Honest:
    made = Honest()
    for step in steps:
        match step:
            case ("ask", seed, tflop, free, boot):
                made.ask(seed, tflop, free=free, boot=boot)
            case ("say", seed, event, tflop, old_log, old_lease):
                made.say(seed, event, tflop, int(old_log), int(old_lease))
            case ("wait", seconds):
                made.site.now_s += seconds
            case ("lists", seed, other):
                host = made.logs[seed][-1]
                host.uuids = sorted({f"GPU-{seed}0", *made.logs[other][-1].uuids})[:2]
                made.site.receive(host.listing(host.uuids))
            case (_, seed):
                made.logs[seed].append(next_log(made.site, made.logs[seed][-1], seed))
    return made


@settings(deadline=None, max_examples=25)
@given(st.lists(STEPS, min_size=4, max_size=24), st.data())
def test_no_honest_verifier_is_contradicted_whatever_is_left_out(steps: list[Any], data: st.DataObject) -> None:
    made = played(steps)
    subset = data.draw(st.lists(st.sampled_from(made.all), unique=True, min_size=1))
    for out in ([log] for log in made.all):
        undecided(made.site, *out)
    undecided(made.site, *subset)
    undecided(made.site, *made.all)
