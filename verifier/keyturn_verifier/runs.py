"""Runs as people look at them: computed from the switch, when they are asked for."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, select

from keyturn_protocol.api import FindingItem
from keyturn_protocol.api_switch import (
    EVENTS,
    EndedItem,
    LeaseItem,
    Missing,
    ProposalItem,
    RunEvent,
    RunItem,
    RunView,
    Signed,
    SuspensionItem,
)
from keyturn_protocol.canonical import parse
from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.entry_switch import WORDS, Checked, PermitBody
from keyturn_protocol.ids import Origin
from keyturn_protocol.lease import lease_subject, parse_lease
from keyturn_protocol.lease_accounts import Account
from keyturn_protocol.lifecycle import Run, State, progress
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.quorum import tally
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import Decision, Request
from keyturn_protocol.statement_base import kind_of
from keyturn_protocol.statements import parse_payload
from keyturn_protocol.switch import Switch
from keyturn_protocol.values import SPEC_PARTS, SpecPart
from keyturn_verifier.db.statement_tables import statement
from keyturn_verifier.db.switch_tables import lease_issued, lease_request
from keyturn_verifier.db.tables import log
from keyturn_verifier.errors import stored

_SECOND: Final = 1_000_000
_AT_ONCE: Final = 500
"""Leases in one query."""


def item(switch: Switch, run: Run, index: int, at_us: int) -> RunItem:
    """A run in a list. ``index``: of its request's leaf."""
    return RunItem(**_fields(switch, run, index, at_us))


def view(
    switch: Switch,
    run: Run,
    index: int,
    at_us: int,
    checked: dict[SpecPart, Checked],
    events: list[RunEvent],
    findings: Iterable[FindingItem],
) -> RunView:
    """All of a run on one screen."""
    standing = switch.authority.standing_at(switch.index + 1)
    signed = progress(run, switch.authority, switch.index + 1, at_us)
    decided = run.permit is not None or run.ended is not None
    lacking = tally(run.tier.approve, () if decided else signed.persons, standing)
    counting = {vote.person for vote in run.permit.votes} if run.permit is not None else set(signed.persons)
    stop = run.policy.stop
    return RunView(
        **_fields(switch, run, index, at_us),
        purpose=run.request.purpose,
        policy=run.request.policy,
        policy_version=run.policy.version,
        scope=run.scope,
        spec=dict(run.spec),
        verified=list(run.tier.verified),
        checked=checked,
        signed=list(_signed(run, standing, counting)),
        missing=Missing(
            persons=0 if decided else lacking.missing_persons,
            organisations=0 if decided else lacking.missing_organisations,
            classes={} if decided else dict(lacking.missing_classes),
            text="nothing" if decided else str(lacking),
        ),
        veto=list(run.tier.veto),
        permit_index=None if run.permit is None else run.permit.index,
        permit_us=None if run.permit is None else run.permit.time_us,
        started_us=run.started_us,
        epoch=run.epoch,
        suspensions=[
            SuspensionItem(
                sha256=call.hash,
                person=call.person,
                party=call.party,
                organisation=call.organisation,
                time_us=call.time_us,
                stop_at_us=call.alone_us,
            )
            for call in run.calls
        ],
        after=list(run.after),
        ended=None
        if run.ended is None
        else EndedItem(time_us=run.ended.time_us, sha256=run.ended.hash, why=run.ended.why),
        committed_tflop=_shown(switch.ledger.committed_tflop(run.hash)),
        left_tflop=max(0, run.scope.budget_tflop - switch.ledger.committed_tflop(run.hash)),
        leases=_open_leases(switch, run.hash, at_us),
        leased_chips=switch.ledger.chips_held(run.hash, at_us),
        notice_s=stop.notice_s,
        worst_stop_s=stop.notice_s + run.tier.lease_s,
        events=events,
        findings=list(findings),
    )


def _shown(tflop: int) -> int:
    """A host may report any number; no other run is hidden because one doesn't fit."""
    return min(tflop, MAX_INT)


def _fields(switch: Switch, run: Run, index: int, at_us: int) -> dict[str, Any]:
    """What a list shows of a run."""
    now = switch.state_of(run, at_us)
    waiting = run.permit is not None and run.started_us is None and run.ended is None
    return {
        "run": run.hash,
        "index": index,
        "time_us": run.time_us,
        "label": run.request.label,
        "lineage": run.request.lineage,
        "requester": run.request.requester,
        "tier": run.tier.name,
        "state": now,
        "budget_tflop": run.scope.budget_tflop,
        "charged_tflop": _shown(switch.ledger.charged_tflop(run.hash)),
        "chips": run.scope.chips,
        "decide_by_us": run.time_us + run.tier.decide_s * _SECOND if now is State.PENDING else None,
        "start_by_us": run.permit.start_by_us if waiting and run.permit is not None else None,
        "stop_at_us": run.stop_at_us,
        "proposals": [
            ProposalItem(
                sha256=digest,
                kind=kind_of(proposal.statement),  # type: ignore[arg-type]
                person=proposal.statement.person,
                time_us=proposal.time_us,
                decide_by_us=proposal.time_us + proposal.tier.decide_s * _SECOND,
                tier=proposal.tier.name,
            )
            for digest, proposal in run.proposals.items()
        ],
    }


def _signed(run: Run, standing: Standing, counting: Collection[str]) -> Iterator[Signed]:
    for person, vote in sorted(run.votes.items()):
        # Whoever has left the root since is shown by name alone.
        party = standing.party_of(person) if person in standing.persons else None
        yield Signed(
            person=person,
            party=person.partition("/")[0],
            organisation=None if party is None else party.organisation,
            class_=None if party is None else party.class_,
            verdict=vote.verdict,
            narrows=vote.narrowing is not None,
            time_us=vote.time_us,
            sha256=vote.hash,
            counts=person in counting,
        )


def _open_leases(switch: Switch, subject: str, at_us: int) -> int:
    """Logs that may spend now."""
    found = switch.ledger.subjects.get(subject)
    return 0 if found is None else sum(one.expires_us > at_us for one in found.accounts.values())


@stored
def lease_rows(connection: Connection, after: int, limit: int, run: str | None) -> Sequence[Any]:
    """Leases in the order of their leaves, as they are stored."""
    query = select(lease_issued, log.c.origin).join(log, log.c.id == lease_issued.c.log_id)
    query = query.where(lease_issued.c.leaf > after).order_by(lease_issued.c.leaf).limit(limit)
    return connection.execute(query if run is None else query.where(lease_issued.c.run == run)).all()


def leases_of(connection: Connection, run: str, leases: Collection[str]) -> set[str]:
    """Which of some leases are of a run, by their hashes."""
    found: set[str] = set()
    hashes = [bytes.fromhex(lease) for lease in sorted(leases)]
    for at in range(0, len(hashes), _AT_ONCE):
        query = select(lease_issued.c.sha256).where(lease_issued.c.sha256.in_(hashes[at : at + _AT_ONCE]))
        found |= {bytes(h).hex() for h in connection.execute(query.where(lease_issued.c.run == run)).scalars()}
    return found


def held(accounts: Mapping[Origin, Account], at_us: int) -> list[str]:
    """Hashes of the leases of a run under which hosts may spend now."""
    return sorted(one.hash for account in accounts.values() for one in account.open if one.expires_us > at_us)


@stored
def checked(connection: Connection, leases: Sequence[str]) -> dict[SpecPart, Checked]:
    """What hosts said of the parts of the spec when they asked for these leases, the weakest word of each."""
    found: dict[SpecPart, Checked] = {}
    together = (lease_request.c.log_id == lease_issued.c.log_id) & (lease_request.c.seq == lease_issued.c.seq)
    query = select(lease_request.c.body).join(lease_issued, together)
    for at in range(0, len(leases), _AT_ONCE):
        hashes = [bytes.fromhex(lease) for lease in leases[at : at + _AT_ONCE]]
        for body in connection.execute(query.where(lease_issued.c.sha256.in_(hashes))).scalars():
            said: PermitBody = parse(body, PermitBody)
            for part in SPEC_PARTS:
                found[part] = max(getattr(said.spec, part), found.get(part, WORDS[0]), key=WORDS.index)
    return found


@stored
def lease_item(switch: Switch, row: Any, at_us: int) -> LeaseItem:
    """A lease in a list."""
    lease = parse_lease(row.note).lease
    account = switch.ledger.account(lease_subject(lease), Origin(row.origin))
    sha256 = row.sha256.hex()
    expires_us = lease.time_us + lease.ttl_s * _SECOND
    return LeaseItem(
        sha256=sha256,
        index=row.leaf,
        time_us=row.time_us,
        kind=row.kind,
        run=lease.run,
        organisation=None if lease.allowance is None else lease.allowance.organisation,
        lineage=None if lease.allowance is None else lease.allowance.lineage,
        node_id=lease.node_id,
        sequence=lease.sequence,
        chips=len(lease.chips),
        upto_tflop=lease.upto_tflop,
        charged_tflop=_shown(account.charged_tflop),
        expires_us=expires_us,
        heard_us=account.heard_us,
        open=at_us < expires_us and any(grant.hash == sha256 for grant in account.open),
    )


@stored
def events(connection: Connection, run: str) -> list[RunEvent]:
    """The newest statements about a run, the oldest of them first."""
    query = select(statement).where(statement.c.run == run).order_by(statement.c.leaf.desc()).limit(EVENTS)
    return [_event(row) for row in reversed(connection.execute(query).all())]


def _event(row: Any) -> RunEvent:
    said = parse_payload(row.kind, parse_envelope(row.envelope).payload)
    person = said.requester if isinstance(said, Request) else getattr(said, "person", "")
    verdict = said.verdict if isinstance(said, Decision) else None
    return RunEvent(
        index=row.leaf, time_us=row.time_us, kind=row.kind, sha256=row.sha256.hex(), person=person, verdict=verdict
    )
