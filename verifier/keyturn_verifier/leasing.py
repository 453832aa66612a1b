"""Issuing leases: decided under the lock of the verifier's log, all of a group or none.

The same entry gets the same lease, always: a lease that was lost on its way is sent again, and nothing is granted
twice. What a lease may be is for :mod:`keyturn_protocol.lease_rules` and the ledger to say; this fills it in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from msgspec import structs
from sqlalchemy import Connection, Engine, insert

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.api_switch import LeaseRequest
from keyturn_protocol.authority import Refused, Why, refuse
from keyturn_protocol.charging import peak_tflop_s
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.claims import Claims
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Deployment, NodeId, Origin, parse_origin
from keyturn_protocol.lease import AllowanceName, Lease, format_lease, lease_hash, lease_subject, lease_text
from keyturn_protocol.lease_rules import limits_of
from keyturn_protocol.leases import SILENT_US, slice_tflop
from keyturn_protocol.leaves import LeaseBody
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.policy import Allowance
from keyturn_protocol.runs import Scope
from keyturn_protocol.switch import Switch
from keyturn_verifier import keyfiles, notify, translog
from keyturn_verifier.chip_claims import claims
from keyturn_verifier.clock import Clock
from keyturn_verifier.config import Config
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.db.switch_tables import lease_issued
from keyturn_verifier.lease_requests import (
    FRESH_US,
    Waiting,
    askers,
    asking,
    check_asked,
    issued,
    members,
    party,
    waiting,
)
from keyturn_verifier.problems import Refusal
from keyturn_verifier.switch_events import moved
from keyturn_verifier.switch_state import SwitchState

RENEW_S: Final = 600
_OF_OTHERS: Final = frozenset({Why.CHIP_CLAIMED, Why.CHIP_TAKEN})
"""Refusals that expect another's node or run."""


@dataclass(frozen=True, slots=True)
class _Granted:
    """A lease that is to be stored."""

    of: Waiting
    lease: Lease
    note: bytes


class Leaser:
    """Issues leases for one verifier; any thread may ask."""

    def __init__(
        self, config: Config, engine: Engine, keys: keyfiles.Keys, switch: SwitchState, table: ChipTable, clock: Clock
    ) -> None:
        self._config = config
        self._engine = engine
        self._keys = keys
        self._switch = switch
        self._table = table
        self._clock = clock

    def issue(self, request: LeaseRequest) -> bytes:
        """The lease for an entry, a signed note.

        :raises Refusal: ``not_found``, ``lease_refused``, ``waiting``; ``overloaded`` without the root's lease key.
        """
        with reading(self._engine) as connection:
            one = self._find(connection, request)
            there = issued(connection, one.log_id, one.asked.seq)
            if there is not None:
                return there
            head = translog.head(connection)
            # What is long to catch up with isn't caught up with under the lock.
            with _refusing(), self._switch.caught_up(connection, head.size) as switch:
                self._lease_key(switch)
                # Anybody may ask about an entry, again and again: what is refused takes no lock, nor do hosts of a
                # group that isn't complete. A switch that heard of more than this transaction sees can't tell.
                if switch.index < head.size:
                    time_us = max(self._clock(), head.time_us)
                    self._decision(connection, switch, [one], head.size, time_us).check(connection, one)
                    if (count := askers(connection, one.party)) < one.asked.body.hosts:
                        raise _too_few(count, one.asked.body.hosts)
        with writing(self._engine) as connection:
            head = translog.lock(connection)
            one = self._find(connection, request)
            there = issued(connection, one.log_id, one.asked.seq)
            if there is not None:
                return there
            time_us = max(self._clock(), head.time_us)
            group = party(connection, one.party, time_us - FRESH_US) if one.asked.body.hosts > 1 else [one]
            with _refusing(), self._switch.caught_up(connection, head.size, locked=True) as switch:
                key = self._lease_key(switch)
                decision = self._decision(connection, switch, [one, *group], head.size, time_us)
                leases = decision.of(connection, one, [each for each in group if _together(each, one)])
                first = decision.first(one)
            granted = [_Granted(of, lease, _signed(lease, key)) for of, lease in leases]
            self._store(connection, granted, first, head.size, time_us)
        return next(each.note for each in granted if each.of.log_id == one.log_id)

    def _decision(
        self, connection: Connection, switch: Switch, group: Sequence[Waiting], size: int, time_us: int
    ) -> "_Decision":
        claimed = claims(connection, [chip for each in group for chip in each.asked.body.chips])
        return _Decision(switch, self._config.deployment, self._table, claimed, size, time_us)

    def _find(self, connection: Connection, request: LeaseRequest) -> Waiting:
        found = None
        with suppress(ProtocolError):  # a text that no log is named by is no question for a database
            found = waiting(connection, parse_origin(request.origin).origin, request.seq)
        if found is None:
            what = f"no entry {request.seq} of {request.origin[:255]} that asks for a lease was received"
            raise Refusal(ProblemCode.NOT_FOUND, what)
        return found

    def _lease_key(self, switch: Switch) -> keyfiles.SigningKey:
        """The key that the root in force names: what another one signs, every host throws away, and it would count."""
        keys = keyfiles.current(self._config.state, self._config.deployment, self._keys)
        if keys.lease is None:
            raise Refusal(ProblemCode.OVERLOADED, "this server has no lease.key; its operator has to copy it here")
        standing = switch.standing
        if standing is not None and standing.root.services.lease_vkey != str(keys.lease.public):
            what = "this server's lease.key isn't the one that the root in force names; its operator has to replace it"
            raise Refusal(ProblemCode.OVERLOADED, what)
        return keys.lease

    def _store(
        self, connection: Connection, granted: Sequence[_Granted], first: Run | None, size: int, time_us: int
    ) -> None:
        rows = [
            {
                "leaf": size + at,
                "sha256": lease_hash(each.lease),
                "kind": each.of.asked.body.kind,
                "time_us": time_us,
                "log_id": each.of.log_id,
                "seq": each.of.asked.seq,
                "run": each.lease.run,
                "note": each.note,
            }
            for at, each in enumerate(granted)
        ]
        connection.execute(insert(lease_issued), rows)
        if first is not None:
            notify.queue(connection, self._config.webhooks, [moved(first, "active", size, time_us)], time_us)
        bodies = [LeaseBody(kind=each.of.asked.body.kind, sha256=lease_hash(each.lease).hex()) for each in granted]
        translog.append(connection, bodies, time_us)


def _too_few(there: int, hosts: int) -> Refusal:
    what = f"{Why.NOT_YET}: {there} of {hosts} hosts of this group have asked; ask again"
    return Refusal(ProblemCode.WAITING, what)


def _together(one: Waiting, other: Waiting) -> bool:
    """An allowance is an organisation's own; hosts of one run may be anybody's."""
    return one.asked.body.kind == "run" or one.asked.organisation == other.asked.organisation


@dataclass(frozen=True, slots=True)
class _Decision:
    """Who gets which lease as the next leaves, all at one moment."""

    switch: Switch
    deployment: Deployment
    table: ChipTable
    claims: Claims
    index: int
    time_us: int

    def of(self, connection: Connection, one: Waiting, group: Sequence[Waiting]) -> list[tuple[Waiting, Lease]]:
        """The lease of ``one``, and those of all others of its group that can have one.

        :raises Refused: ``one`` gets none.
        :raises Refusal: ``waiting``: too few of its group can have one now.
        """
        hosts = one.asked.body.hosts
        self.check(connection, one)
        chosen = [one]
        taken = set(one.asked.body.chips)
        for other in group:
            if other.log_id == one.log_id or not taken.isdisjoint(other.asked.body.chips):
                continue
            try:
                self.check(connection, other)
            except Refused:
                continue  # it hears of it when it asks
            chosen.append(other)
            taken.update(other.asked.body.chips)
        together = {parse_origin(each.asked.origin).node_id for each in chosen}
        if len(together) < hosts:
            # Who has begun already is there: of a group that began, one may come late, or again.
            together |= self._begun(connection, one)
        if len(together) < hosts:
            raise _too_few(len(together), hosts)
        chosen = self._with_room(chosen, min(hosts, len(chosen)))
        return sorted(self._sized(connection, chosen), key=lambda pair: (pair[0].asked.index, pair[0].log_id))

    def _begun(self, connection: Connection, one: Waiting) -> set[NodeId]:
        """Nodes of a group that are on a lease which they got with it."""
        subject = lease_subject(self._draft(one))
        of_group = members(connection, one.party) & self._live(subject)
        accounts = {origin: self.switch.ledger.account(subject, origin) for origin in of_group}
        return {
            parse_origin(origin).node_id
            for origin, account in accounts.items()
            if any(grant.adopted for grant in account.open)
        }

    def first(self, one: Waiting) -> Run | None:
        """The run that starts with this lease."""
        run = None if one.asked.body.run is None else self.switch.run_of(one.asked.body.run)
        return run if run is not None and run.started_us is None else None

    def check(self, connection: Connection, one: Waiting) -> None:
        """Whether an entry can have a lease at all.

        :raises Refused: why not.
        """
        check_asked(connection, one, self.time_us)
        asked, draft = one.asked, self._draft(one)
        least = structs.replace(draft, upto_tflop=draft.charged_tflop + 1)
        self.switch.check_lease(least, asked, self.claims, self.index, self.time_us)
        peak_tflop_s(one.chips, draft.dtypes, self.table)

    def _draft(self, one: Waiting) -> Lease:
        """The lease but for its cap."""
        asked, body = one.asked, one.asked.body
        authority = self.switch.authority
        run = None if body.run is None else self.switch.run_of(body.run)
        allowance = None
        if body.kind != "run":
            allowance = AllowanceName(kind=body.kind, organisation=asked.organisation, lineage=body.lineage)
        policy, ttl_s = authority.policy_at(self.index)[0], 0
        if run is None:
            ttl_s = authority.policy_at(self.index)[1].allowance.lease_s
        else:
            policy, ttl_s = run.request.policy, run.tier.lease_s
        lease = Lease(
            v=1,
            deployment=self.deployment,
            root=authority.standing_at(self.index).hash,
            policy=policy,
            run=body.run,
            allowance=allowance,
            node_id=parse_origin(asked.origin).node_id,
            boot_id=asked.boot_id,
            nonce=body.nonce,
            sequence=0,
            chips=body.chips,
            dtypes=[] if run is None else run.scope.dtypes,
            charged_tflop=0,
            upto_tflop=1,
            ttl_s=ttl_s,
            epoch=0 if run is None else run.epoch,
            time_us=self.time_us,
            renew_s=max(1, min(RENEW_S, ttl_s // 3)),
        )
        account = self.switch.ledger.account(lease_subject(lease), asked.origin)
        return structs.replace(lease, sequence=account.sequence, charged_tflop=account.charged_tflop)

    def _with_room(self, chosen: list[Waiting], hosts: int) -> list[Waiting]:
        """As many as may hold chips at once, at least ``hosts`` of them.

        :raises Refused: ``too_many_chips``.
        """
        if chosen[0].asked.body.kind == "diagnostics":
            return chosen
        limits = self._limits(chosen[0])
        subject = lease_subject(self._draft(chosen[0]))
        held = self.switch.ledger.chips_held(subject, self.time_us)
        mine = {
            w.log_id: held - self.switch.ledger.chips_held(subject, self.time_us, but=w.asked.origin) for w in chosen
        }

        def wanted() -> int:
            return held + sum(len(w.asked.body.chips) - mine[w.log_id] for w in chosen)

        while len(chosen) > hosts and wanted() > limits.chips:
            chosen = chosen[:-1]
        if wanted() > limits.chips:
            raise refuse(Why.TOO_MANY_CHIPS, "too many at once", expected=limits.chips, got=wanted())
        return chosen

    def _sized(self, connection: Connection, chosen: Sequence[Waiting]) -> Iterator[tuple[Waiting, Lease]]:
        """Each with a cap: whichever of them is granted first, there is as much left for the others.

        :raises Refused: ``exhausted``.
        """
        limits = self._limits(chosen[0])
        drafts = [(one, self._draft(one)) for one in chosen]
        subject = lease_subject(drafts[0][1])
        least = min(self._available(one, draft, limits) for one, draft in drafts)
        peaks = {one.log_id: peak_tflop_s(one.chips, draft.dtypes, self.table) for one, draft in drafts}
        sharing = self._live(subject) | {one.asked.origin for one in chosen}
        sizes = [self._size(one, draft, limits, peaks[one.log_id], len(sharing)) for one, draft in drafts]
        if any(size < peaks[one.log_id] * draft.ttl_s for size, (one, draft) in zip(sizes, drafts, strict=True)):
            # It is the budget that is short: whoever asked and got nothing so far has a share too.
            sharing |= self._hungry(connection, chosen[0].asked.body.run)
            sizes = [self._size(one, draft, limits, peaks[one.log_id], len(sharing)) for one, draft in drafts]
        for (one, draft), size in zip(drafts, sizes, strict=True):
            size = min(size, least // len(chosen))
            if size <= 0:
                raise refuse(Why.EXHAUSTED, "too little is left for so many hosts", got=f"{least} TFLOP")
            yield one, structs.replace(draft, upto_tflop=draft.charged_tflop + size)

    def _available(self, one: Waiting, draft: Lease, limits: Scope | Allowance) -> int:
        return self.switch.ledger.available_tflop(draft, one.asked.origin, limits, self.time_us)

    def _size(self, one: Waiting, draft: Lease, limits: Scope | Allowance, rate_tflop_s: int, hosts: int) -> int:
        ledger, origin, at_us = self.switch.ledger, one.asked.origin, self.time_us
        return slice_tflop(ledger, draft, origin, limits, rate_tflop_s=rate_tflop_s, hosts=hosts, at_us=at_us)

    def _hungry(self, connection: Connection, run: str | None) -> set[Origin]:
        """Hosts that asked for a lease of this run lately, some of them in vain."""
        return set() if run is None else asking(connection, run, self.time_us - FRESH_US)

    def _limits(self, one: Waiting) -> Scope | Allowance:
        run = None if one.asked.body.run is None else self.switch.run_of(one.asked.body.run)
        return limits_of(self.switch.authority, run, self.index)

    def _live(self, subject: str) -> set[Origin]:
        """Logs that have a lease and were heard of lately."""
        found = self.switch.ledger.subjects.get(subject)
        return {
            origin
            for origin, account in ({} if found is None else found.accounts).items()
            if account.open and self.time_us < min(account.expires_us, account.heard_us + SILENT_US)
        }


def _signed(lease: Lease, key: keyfiles.SigningKey) -> bytes:
    return format_lease(lease, key.public, key.sign(lease_text(lease)))


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except Refused as error:
        text = str(error)
        if error.why in _OF_OTHERS:
            # Auditors are told. Who asks may be anybody's host: by a node's id it gets that one's leases, and by a
            # run's hash its permit (docs/adr/0011).
            text = f"{text.partition(' (')[0]} (got {error.got})"
        raise Refusal(ProblemCode.LEASE_REFUSED, f"{error.why}: {text}") from None
