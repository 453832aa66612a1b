"""Random people and hosts at a real verifier and at the pure fold: each step is taken by both or refused by both, for
the same reason; and after it both say the same of every run and every TFLOP.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from keyturn_protocol.api import FindingItem
from keyturn_protocol.audit import audit
from keyturn_protocol.authority import Refused
from keyturn_protocol.chips import chip_table
from keyturn_protocol.claims import Claims, naming_in
from keyturn_protocol.entries import parse_entry
from keyturn_protocol.entry_switch import LeaseBody, PermitBody
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.lease import AllowanceName, Lease, lease_subject
from keyturn_protocol.leases import Asked
from keyturn_protocol.ledger_state import ledger_state
from keyturn_protocol.lifecycle import Run, State
from keyturn_protocol.permit import open_permit_bundle, parse_permit_bundle
from keyturn_protocol.runs import Amend, Resume, Revoke
from keyturn_protocol.statements import Statement
from keyturn_protocol.switch import Switch, log_statement
from keyturn_verifier import snapshot, translog
from keyturn_verifier.check import check
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.switch_state import SwitchState
from tests.faults.table import LONG
from tests.support.node import Reply, chip
from tests.support.office import APPROVERS, BOARD, Office
from tests.support.parties import DAY, PEOPLE, SECOND, changed, envelope, narrowing, person, person_key
from tests.support.starter import Starter, hash_of
from tests.support.verifier import DEPLOYMENT, FolderReader, Verifier
from tests.verifier.test_read import every

HOSTS, STEPS, SEEDS = 3, 200, 2
LONG_STEPS, LONG_SEEDS = 1_000, 6
JUNK = "9" * 64
READY = (State.APPROVED, State.ACTIVE)


class Twins:
    """A verifier, and a switch that is told of the same leaves; ``outcomes`` has what became of every step."""

    def __init__(self, verifier: Verifier, now: list[int], dice: random.Random) -> None:
        self.verifier, self.now, self.dice = verifier, now, dice
        self.fold = Switch(DEPLOYMENT)
        self.office = office = Office(verifier)
        self.outcomes: dict[str, int] = {}
        self.sent: list[bytes] = []
        self.root, self.roots, self.policies = office.make_root(), 1, 0
        office.install()
        first = envelope(self.root, *BOARD)
        self.fold.take(log_statement(first, self.root, self.size() - 1, now[0], self.fold.authority))
        self.claims = Claims()
        self.hosts = [Starter.enrolled(verifier, number) for number in range(HOSTS)]
        self.listed = {host.node.origin: frozenset(host.uuids) for host in self.hosts}
        for host in self.hosts:
            self.heard(host, 0)
        self.leases: list[Lease] = []
        self.subjects: list[str] = [JUNK]
        self.new_policy(good=True)

    def size(self) -> int:
        with reading(self.verifier.engine) as connection:
            return translog.head(connection).size

    def heard(self, host: Starter, since: int) -> None:
        """A segment of a host was received: its entries from one on."""
        said = naming_in(map(parse_entry, host.node.lines[since:]))
        self.claims.received(host.node.name, self.now[0] // SECOND, said)

    def counted(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def say(self, statement: Statement, *signers: str) -> str | None:
        """Both get it; returns its hash if they take it."""
        sent, index = envelope(statement, *signers), self.size()
        expected: str | None = None
        logged = change = None
        try:
            logged = log_statement(sent, statement, index, self.now[0], self.fold.authority)
            change = self.fold.decide(logged)
        except Refused as error:
            expected = str(error.why)
        except ProtocolError as error:
            signature = error.code in (Code.UNKNOWN_KEY, Code.BAD_SIGNATURE, Code.BAD_SSHSIG)
            expected = "bad_signature" if signature else "bad_statement"
        answer = self.office.post(sent.to_bytes())
        self.counted(expected or "taken")
        if logged is not None and change is not None:
            assert answer.status == 200, (statement, answer)
            assert self.size() == index + 1
            self.fold.apply(logged, change)
            self.sent.append(sent.to_bytes())
            return logged.hash
        # Said before is no mistake: whoever sent it may have lost the answer.
        assert (answer.status == 200) == (expected == "said_before"), (statement, answer)
        assert expected == "said_before" or said_by(answer) == expected, (statement, answer)
        assert self.size() == index
        return None

    def again(self) -> None:
        """What was said before is answered as before, and is no second leaf."""
        data, index = self.dice.choice(self.sent), self.size()
        assert self.office.post(data).status == 200
        assert self.size() == index
        self.counted("again")

    def keep(self) -> None:
        """What leases add up to is kept; whoever begins with it knows what the others know."""
        with reading(self.verifier.engine) as connection:
            size = translog.head(connection).size
            last = SwitchState(DEPLOYMENT)
            with last.caught_up(connection, size) as switch:
                assert (switch.authority, switch.runs) == (self.fold.authority, self.fold.runs)
                assert ledger_state(switch.ledger) == ledger_state(self.fold.ledger)
                kept = last.kept(connection)
        with writing(self.verifier.engine) as connection:
            snapshot.store(connection, kept.size, snapshot.packed(snapshot.encode(kept)))
        self.counted("kept")

    # People.

    def anybody(self, likely: tuple[str, ...] = APPROVERS) -> str:
        return self.dice.choice(likely if self.dice.random() < 0.6 else tuple(PEOPLE))

    def signer(self, who: str) -> str:
        return who if self.dice.random() < 0.95 else self.anybody()

    def a_run(self) -> Run | None:
        runs = list(self.fold.runs.values())[-4:]
        return self.dice.choice(runs) if runs else None

    def new_policy(self, *, good: bool = False) -> None:
        before = self.office.policy or None
        version = self.policies + (1 if good or self.dice.random() < 0.8 else 2)
        made = self.office.make_policy(version=version, previous=before, time_us=self.now[0])
        taken = self.say(made, *(BOARD if good or self.dice.random() < 0.8 else BOARD[:1]))
        if taken is not None:
            self.office.policy, self.policies = taken, version

    def new_root(self) -> None:
        """Now and then somebody's key turns out to be known to others."""
        people = self.root.persons
        if self.dice.random() < 0.3:
            who = self.dice.choice(["lab-a/bob", "operator-b/fay", "office/joe"])
            lost = person(who, person_key(who, compromised_since_us=self.now[0] - DAY))
            people = [lost if one.id == who else one for one in people]
        fields = {"version": self.roots + 1, "previous": self.office.root, "root": self.office.root}
        made = changed(self.root, **fields, persons=people, time_us=self.now[0])
        taken = self.say(made, *(BOARD if self.dice.random() < 0.8 else BOARD[1:]))
        if taken is not None:
            self.office.root, self.root, self.roots = taken, made, self.roots + 1

    def request(self) -> None:
        dice, who = self.dice, self.anybody(("lab-a/ada", "lab-a/bob"))
        span_us = dice.choice([DAY, 20 * DAY, 90 * DAY])
        scope = self.office.scope(
            budget_tflop=dice.choice([2, 900, 10**6, 10**11]),
            chips=dice.choice([1, 2, 4, 64]),
            sites=dice.choice([None, None, ["fra1"], ["ams1"]]),
            not_before_us=self.now[0] + dice.choice([-DAY, -DAY, 3600 * SECOND]),
            not_after_us=self.now[0] + span_us,
        )
        taken = self.say(self.office.make_request(who, scope=scope), self.signer(who))
        if taken is not None:
            self.subjects.append(taken)
            if dice.random() < 0.7:
                for one in APPROVERS:
                    self.decide(taken, one)

    def decide(self, subject: str | None = None, who: str | None = None) -> None:
        dice = self.dice
        subject, fixed = subject or dice.choice(self.subjects[-6:]), who is not None
        who = who or self.anybody()
        verdict = "approve" if fixed else dice.choices(["approve", "deny", "veto"], [12, 2, 1])[0]
        narrower = {"chips": dice.choice([1, 8, 10**6])}
        fields = {"narrowing": narrowing(**narrower)} if verdict == "approve" and dice.random() < 0.1 else {}
        made = self.office.make_decision(subject, who, verdict, policy=self.policy_of(subject), **fields)
        self.say(made, who if fixed else self.signer(who))

    def policy_of(self, subject: str) -> str:
        try:
            policy = self.fold.run_of(subject).request.policy
        except Refused:
            return self.office.policy
        return policy if self.dice.random() < 0.95 else self.office.policy

    def suspend(self) -> None:
        if (run := self.a_run()) is None:
            return
        who = self.anybody(("office/ivy", "operator-b/eve"))
        at_us = self.dice.choice([None, None, self.now[0] + 3600 * SECOND])
        made = self.office.make_suspension(run.hash, who, stop_at_us=at_us, policy=self.policy_of(run.hash))
        if (taken := self.say(made, self.signer(who))) is not None:
            self.subjects.append(taken)

    def propose(self) -> None:
        if (run := self.a_run()) is None:
            return
        kind = self.dice.choices([Resume, Revoke, Amend], [8, 1, 3])[0]
        after = list(run.after) if self.dice.random() < 0.9 else [JUNK]
        who = self.anybody(("lab-a/ada",))
        fields: dict[str, Any] = {"run": run.hash, "person": who, "after": after, "reason": "because"}
        if kind is Amend:
            budget = run.scope.budget_tflop * self.dice.choice([1, 2])
            fields |= {"scope": changed(run.scope, budget_tflop=budget), "spec": run.request.spec}
        made = kind(**self.office.common(policy=self.policy_of(run.hash), **fields))
        if (taken := self.say(made, self.signer(who))) is not None:
            self.subjects.append(taken)
            if self.dice.random() < 0.7:
                for one in APPROVERS:
                    self.decide(taken, one)

    def withdraw(self) -> None:
        subject, who = self.dice.choice(self.subjects[-6:]), self.anybody(("lab-a/ada", "office/ivy"))
        made = self.office.make_withdrawal(subject, who)
        self.say(changed(made, policy=self.policy_of(subject)), self.signer(who))

    # Hosts.

    def upload(self, host: Starter, *bodies: LeaseBody | PermitBody) -> int:
        """Entries in one segment: the leaf of its checkpoint. What they say of leases counts from there on."""
        host.node.time_us = max(host.node.time_us, self.now[0])
        index, first = self.size(), host.node.size
        for body in bodies:
            host.node.append(body)
        host.send()
        assert self.size() == index + 1
        self.heard(host, first)
        for seq, body in enumerate(bodies, first):
            if isinstance(body, LeaseBody):
                for one in self.fold.report(host.node.origin, seq, body, index, self.now[0]):
                    self.counted(one.code)
        return index

    def list_chips(self) -> None:
        """Its own, those of all, those of another one, or none: chips move, and hosts lie."""
        host, other = self.dice.choice(self.hosts), self.dice.choice(self.hosts)
        first, chips = self.dice.choice([*[(host.first, 2)] * 4, *[(0, 2 * HOSTS)] * 4, (other.first, 2), (0, 0)])
        before = host.node.size
        host.node.time_us = max(host.node.time_us, self.now[0])
        host.node.inventory(chips, first=first)
        host.send()
        self.heard(host, before)
        self.listed[host.node.origin] = frozenset(chip(at).uuid for at in range(first, first + chips))
        self.counted("listed")

    def alive(self) -> None:
        """Everybody is heard of."""
        for host in self.hosts:
            before = host.node.size
            host.node.time_us = max(host.node.time_us, self.now[0])
            host.node.heartbeat()
            host.send()
            self.heard(host, before)

    def report(self) -> None:
        host = self.dice.choice(self.hosts)
        if body := self.word(host, final=self.dice.random() < 0.15):
            self.upload(host, body)

    def word(self, host: Starter, *, final: bool = False) -> LeaseBody | None:
        """About one of the newest leases, mostly one of its own."""
        own = [one for one in self.leases[-9:] if one.node_id == host.node.name.node_id]
        found = own if self.dice.random() < 0.9 else self.leases[-9:]
        if not found:
            return None
        lease, dice = found[-1], self.dice
        charged = self.fold.ledger.account(lease_subject(lease), host.node.origin).charged_tflop
        more = dice.randint(0, max(0, lease.upto_tflop - charged))
        tflop = dice.choice([charged, charged + more // 4, charged + more // 4, lease.upto_tflop, more // 8])
        return host.says(
            lease, tflop + (dice.random() < 0.05), "final" if final else dice.choice(["adopted", "report"])
        )

    def ask(self) -> None:
        host = self.dice.choice(self.hosts)
        ready = [run for run in self.fold.runs.values() if self.fold.state_of(run, self.now[0]) in READY]
        run = self.dice.choice(ready) if ready and self.dice.random() < 0.8 else self.a_run()
        digest = None if run is None or self.dice.random() < 0.15 else run.hash
        changes: dict[str, Any] = {"lineage": "other"} if digest is None and self.dice.random() < 0.3 else {}
        there = [other.uuids for other in self.hosts if self.listed[host.node.origin].issuperset(other.uuids)]
        changes["chips"] = self.dice.choice(there or [host.uuids])
        if self.dice.random() < 0.05:
            changes = {"chips": self.dice.choice(self.hosts).uuids}
        body, words = host.wants(digest, **changes), [self.word(host)]
        index = self.upload(host, *(word for word in words if word is not None), body)
        asked = Asked(
            *(host.node.origin, host.node.size - 1, host.node.boot_id, body, "acme", "fra1"),
            *(self.listed[host.node.origin], index),
        )
        self.lease(host, asked)

    def lease(self, host: Starter, asked: Asked) -> None:
        index, expected = self.size(), None
        try:
            self.fold.check_lease(self.draft(asked, index), asked, self.claims, index, self.now[0])
        except Refused as error:
            expected = str(error.why)
        answer = host.get(asked.seq)
        if answer.status == 200:
            assert expected is None, (expected, answer)
            lease = host.opened(answer)
            self.fold.check_lease(lease, asked, self.claims, index, self.now[0])
            self.fold.grant(lease, hash_of(lease), asked, index, self.now[0])
            self.leases.append(lease)
            assert self.size() == index + 1
            self.counted("leased")
            return
        assert self.size() == index
        why = said_by(answer)
        if expected is None and asked.body.run is not None:
            # There is something, and less of it than a TFLOP for each host.
            left = self.fold.run_of(asked.body.run).scope.budget_tflop - self.fold.ledger.charged_tflop(asked.body.run)
            assert left < HOSTS
            expected = "exhausted"
        assert why == expected, answer
        self.counted(f"lease {why}")

    def draft(self, asked: Asked, index: int) -> Lease:
        """The least that an entry could be given."""
        body, authority = asked.body, self.fold.authority
        run = None if body.run is None else self.fold.run_of(body.run)
        policy_hash, policy = authority.policy_at(index)
        least = Lease(
            v=1,
            deployment=DEPLOYMENT,
            root=authority.standing_at(index).hash,
            policy=policy_hash if run is None else run.request.policy,
            run=body.run,
            allowance=AllowanceName(kind="allowance", organisation="acme", lineage=body.lineage) if not run else None,
            node_id=asked.origin.rsplit("/", 2)[-2],
            boot_id=asked.boot_id,
            nonce=body.nonce,
            sequence=0,
            chips=body.chips,
            dtypes=run.scope.dtypes if run else [],
            charged_tflop=0,
            upto_tflop=1,
            ttl_s=run.tier.lease_s if run else policy.allowance.lease_s,
            epoch=run.epoch if run else 0,
            time_us=self.now[0],
            renew_s=1,
        )
        own = self.fold.ledger.account(lease_subject(least), asked.origin)
        charged = own.charged_tflop
        return structs.replace(least, sequence=own.sequence, charged_tflop=charged, upto_tflop=charged + 1)

    # Comparing.

    def compare(self) -> None:
        """Of one run what people are shown; and everything that the verifier has in mind."""
        if (run := self.a_run()) is not None:
            self.compare_view(run)
        with reading(self.verifier.engine) as connection:
            size = translog.head(connection).size
            with self.verifier.service.switch.caught_up(connection, size) as theirs:
                assert theirs.authority == self.fold.authority
                assert theirs.runs == self.fold.runs
                assert theirs.ledger.subjects == self.fold.ledger.subjects

    def compare_view(self, run: Run) -> None:
        view, ledger, at_us = self.office.view(run.hash), self.fold.ledger, self.now[0]
        accounts = ledger.subjects[run.hash].accounts.values() if run.hash in ledger.subjects else ()
        committed = ledger.committed_tflop(run.hash)
        shown = (
            *(view.state, view.scope, view.epoch, view.after, view.stop_at_us, view.started_us, view.permit_index),
            *(view.charged_tflop, view.committed_tflop, view.left_tflop, view.leases, view.leased_chips),
            *({one.person: one.verdict for one in view.signed}, {one.sha256 for one in view.suspensions}),
            *({one.sha256 for one in view.proposals}, None if view.ended is None else view.ended.sha256),
        )
        assert shown == (
            *(self.fold.state_of(run, at_us), run.scope, run.epoch, list(run.after), run.stop_at_us, run.started_us),
            *(None if run.permit is None else run.permit.index, ledger.charged_tflop(run.hash), committed),
            *(max(0, run.scope.budget_tflop - committed), sum(one.expires_us > at_us for one in accounts)),
            ledger.chips_held(run.hash, at_us),
            *({who: vote.verdict for who, vote in run.votes.items()}, {call.hash for call in run.calls}),
            *(set(run.proposals), None if run.ended is None else run.ended.hash),
        )

    def compare_all(self, out: Path) -> None:
        """At the end: the bundle that hosts get of each run, the tables, and what an auditor computes."""
        for run in self.fold.runs.values():
            self.compare_view(run)
            data = self.verifier.client.get(f"/v1/runs/{run.hash}/permit").body
            opened = open_permit_bundle(parse_permit_bundle(data), self.office.root or "", DEPLOYMENT)
            assert opened.run == run
        with reading(self.verifier.engine) as connection:
            assert [str(found) for found in check(connection, self.verifier.trust)] == []
        bundle = FolderReader(self.verifier.export(out))
        report = audit(bundle, self.verifier.trust, chip_table(), root_sha256=self.office.root)
        assert report.contradictions == ()
        token = self.verifier.reader_token()
        shown = [
            f for f in every(self.verifier.client, "/v1/findings", token, FindingItem, 500) if f.code == "chip_claimed"
        ]
        found = [f for f in report.findings if f.code == "chip_claimed"]
        assert [(f.origin, f.from_us, f.to_us, f.detail) for f in shown] == [
            (f.origin, f.from_us, f.to_us, f.detail) for f in found
        ]
        ledger = self.fold.ledger
        for total in report.runs:
            run, expected = self.fold.runs[total.hash], ledger.committed_tflop(total.hash)
            assert (total.charged_tflop, total.committed_tflop) == (ledger.charged_tflop(total.hash), expected)
            assert (total.state, total.epoch) == (self.fold.state_of(run, self.now[0]), run.epoch)
        assert {total.hash for total in report.runs} == set(self.fold.runs)


def said_by(answer: Reply) -> str:
    """Why a refusal refuses."""
    if answer.status == 422:
        assert answer.code in ("statement_refused", "lease_refused")
        return answer.problem.detail.partition(": ")[0]
    assert answer.status in (400, 403), answer
    return answer.code


@pytest.mark.parametrize("seed", range(LONG_SEEDS if LONG else SEEDS))
@pytest.mark.timeout(900)
def test_a_verifier_and_the_fold_say_the_same_after_every_step(
    verifier: Verifier, now: list[int], tmp_path: Path, seed: int
) -> None:
    dice, starts = random.Random(seed), random.Random(seed)
    twins = Twins(verifier, now, dice)
    steps: list[tuple[Callable[[], None], int]] = [
        *((twins.request, 6), (twins.decide, 12), (twins.suspend, 3), (twins.propose, 5), (twins.withdraw, 2)),
        *((twins.new_policy, 1), (twins.new_root, 1), (twins.again, 2), (twins.ask, 14), (twins.report, 8)),
        *((twins.list_chips, 3), (twins.alive, 4)),
    ]
    for _ in range(LONG_STEPS if LONG else STEPS):
        now[0] += dice.choices([0, SECOND, 60 * SECOND, 400 * SECOND, DAY // 2], [4, 4, 4, 2, 1])[0]
        dice.choices([step for step, _ in steps], [weight for _, weight in steps])[0]()
        if starts.random() < 0.05:
            twins.keep()
        twins.compare()
    twins.compare_all(tmp_path / "out")
    # That all of this was about something.
    print(twins.outcomes)
    assert min(twins.outcomes.get(name, 0) for name in ("taken", "leased", "again")) > 5, twins.outcomes
    assert twins.outcomes.get("lease chip_claimed"), twins.outcomes
    assert len(twins.outcomes) > 12, twins.outcomes
