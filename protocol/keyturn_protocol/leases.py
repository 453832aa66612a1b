"""The ledger of leases: a budget cut into slices, of which no two hosts can spend the same TFLOP.

    sum over nodes of max(charged, as far as it counts; caps of open leases)  <=  budget       whoever crashes

A lease caps what a log charges to its subject *in all*. So a report that is lost, late or sent twice loses nothing,
and a lease that is played back allows nothing new. What a host could still spend counts as spent until its own log
says otherwise: by its first word on a newer lease, which closes the older ones, or by its last word on any. Expiry
alone frees chips and no TFLOP: a host that never reports has used it all.

Accounts are of logs, not of nodes: a node that leaves its log for a new one begins at nothing there, and what the old
one could still spend is written off. Everything here is a fold over leaves of the verifier's log, in their order; no
step costs more for how many there were.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from keyturn_protocol.allowance import Free
from keyturn_protocol.authority import Why, refuse
from keyturn_protocol.entry_switch import LeaseBody, PermitBody
from keyturn_protocol.holds import Holds
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.lease import Lease, lease_subject
from keyturn_protocol.lease_accounts import TERA, Account, Grant, Subject
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.policy import Allowance
from keyturn_protocol.runs import Scope

SILENT_US: Final = 300 * 1_000_000
"""A host that wasn't heard of for so long no longer counts towards the chips at once."""
_SECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A ``permit`` entry that a checkpoint of its log covers, and what the verifier knows about the node."""

    origin: Origin
    seq: int
    boot_id: str
    body: PermitBody
    organisation: str
    site: str
    listed: frozenset[str]
    """Chips of the inventory that the entry follows, by uuid."""
    index: int
    """Leaf of the checkpoint."""


class Irregular(NamedTuple):
    """What is wrong with a report. ``code`` is a finding's."""

    code: Literal["lease_unknown", "lease_rollback", "lease_overrun"]
    detail: str


class Ledger:
    """Every account. :meth:`check` changes nothing; :meth:`grant` and :meth:`report` can't fail."""

    def __init__(self) -> None:
        self.subjects: dict[str, Subject] = {}
        self.free = Free()
        """What organisations, lineages and nodes took of the allowance."""
        self._open: dict[str, tuple[str, Origin]] = {}
        """Open lease → its subject and log."""
        self._chips: dict[str, tuple[str, Origin]] = {}
        """Chip → who leased it last."""
        self._holds: dict[str, Holds] = {}
        self._logs: dict[str, dict[Origin, set[str]]] = {}
        """Node → its logs with open leases → their subjects."""

    def account(self, subject: str, origin: Origin) -> Account:
        """An account as it is; an empty one if there is none."""
        found = self.subjects.get(subject)
        return (found.accounts.get(origin) if found else None) or Account()

    def accounts(self, subject: str) -> Mapping[Origin, Account]:
        """By log."""
        found = self.subjects.get(subject)
        return found.accounts if found else {}

    def charged_tflop(self, subject: str) -> int:
        """What counts as charged by all logs, as far as they said so; and what was written off."""
        found = self.subjects.get(subject)
        return found.charged_tflop if found else 0

    def committed_tflop(self, subject: str) -> int:
        """What is charged or may still be, under leases that are out."""
        found = self.subjects.get(subject)
        return found.committed_tflop if found else 0

    def chips_held(self, subject: str, at_us: int, *, but: str = "") -> int:
        """Chips of hosts that have a lease and were heard of lately; for an allowance, of the whole organisation.

        :param but: a log that doesn't count.
        """
        holds = self._holds.get(held_by(subject))
        return holds.held(at_us, but=f"{subject} {but}") if holds else 0

    def available_tflop(self, lease: Lease, origin: Origin, limits: Scope | Allowance, at_us: int) -> int:
        """How much a log may be allowed on top of what it has charged.

        :param lease: says of what; its cap and sequence don't matter.
        :param limits: the scope of the run, or the allowance of the policy in force.
        """
        subject = lease_subject(lease)
        own = self.account(subject, origin)
        if isinstance(limits, Scope):
            others = self.committed_tflop(subject) - own.committed_tflop
            return max(0, limits.budget_tflop - others - own.charged_tflop)
        return self.free.available_tflop(lease, origin, limits, at_us)

    def check(self, lease: Lease, asked: Asked, limits: Scope | Allowance, at_us: int) -> None:
        """Whether a lease can be granted.

        :param limits: as in :meth:`available_tflop`.
        :raises Refused: ``stale``, ``owes_report``, ``chip_taken``, ``too_many_chips``, ``exhausted``.
        """
        subject, origin = lease_subject(lease), asked.origin
        own = self.account(subject, origin)
        if lease.sequence != own.sequence:
            raise refuse(Why.STALE, "not the log's next lease", expected=own.sequence, got=lease.sequence)
        if lease.charged_tflop != own.charged_tflop:
            raise refuse(Why.STALE, "not what was charged", expected=own.charged_tflop, got=lease.charged_tflop)
        if asked.seq <= max(own.asked_seq, own.final_seq):
            raise refuse(Why.STALE, "asked for before its last lease or last word", got=f"entry {asked.seq}")
        if any(grant.adopted and grant.boot_id != lease.boot_id for grant in own.open):
            raise refuse(Why.OWES_REPORT, "no last word on the lease of an earlier boot", got=own.open[0].hash)
        if (more := own.unbelieved_tflop(at_us)) > 0:
            what = f"{more} TFLOP more are reported than its chips can have done"
            raise refuse(Why.EXHAUSTED, what, expected=f"<= {own.charged_tflop - more} TFLOP", got=own.charged_tflop)
        for chip in lease.chips:
            self._check_chip(chip, subject, origin, at_us)
        held = self.chips_held(subject, at_us, but=origin)
        diagnostics = lease.allowance is not None and lease.allowance.kind == "diagnostics"
        if not diagnostics and held + len(lease.chips) > limits.chips:
            raise refuse(Why.TOO_MANY_CHIPS, "too many at once", expected=limits.chips, got=held + len(lease.chips))
        left = min(self.available_tflop(lease, origin, limits, at_us), MAX_INT - own.charged_tflop)
        if lease.upto_tflop - own.charged_tflop > left:
            expected = f"<= {own.charged_tflop + left} TFLOP"
            raise refuse(Why.EXHAUSTED, "more than is left", expected=expected, got=lease.upto_tflop)

    def _check_chip(self, chip: str, subject: str, origin: Origin, at_us: int) -> None:
        holder = self._chips.get(chip)
        if holder is None or holder == (subject, origin) or _left_behind(holder[1], origin):
            return
        if any(chip in grant.chips and at_us < grant.expires_us for grant in self.account(*holder).open):
            raise refuse(Why.CHIP_TAKEN, "under another lease", expected=f"{holder[0]} of {holder[1]}", got=chip)

    def grant(self, lease: Lease, lease_hash: str, asked: Asked, limits: Scope | Allowance, at_us: int) -> None:
        """Account for a lease that :meth:`check` let pass, or that a verifier logged although it didn't."""
        subject, origin = lease_subject(lease), asked.origin
        name = parse_origin(origin)
        logs = self._logs.setdefault(name.node_id, {})
        for old in [log for log in logs if _left_behind(log, origin)]:
            for left in logs.pop(old):
                self._write_off(left, old, at_us)
        account = self._opened(subject, origin)
        before = _sums(account)
        account.settle(at_us)
        # What wasn't adopted until this entry never will be: the host takes only what its newest entry asked for.
        kept = tuple(grant for grant in account.open if grant.adopted)
        for grant in account.open:
            if not grant.adopted:
                self._open.pop(grant.hash, None)
        expires_us = lease.time_us + lease.ttl_s * _SECOND
        new = Grant(lease_hash, lease.sequence, lease.boot_id, tuple(lease.chips), lease.upto_tflop, expires_us)
        account.hold((*kept, new))
        account.sequence, account.asked_seq = lease.sequence + 1, asked.seq
        account.heard_us = at_us
        self._open[lease_hash] = (subject, origin)
        self._chips.update(dict.fromkeys(lease.chips, (subject, origin)))
        logs.setdefault(origin, set()).add(subject)
        if lease.allowance is not None:
            self.free.join(subject, lease.allowance, name.node_id)
        holds = self._holds.setdefault(held_by(subject), Holds())
        holds.limit = limits.chips
        self._settle(subject, origin, account, before, at_us)

    def report(self, origin: Origin, seq: int, body: LeaseBody, at_us: int) -> tuple[Irregular, ...]:
        """Account for a ``lease`` entry, when a checkpoint that covers it is logged; says what is wrong with it.

        :param seq: of the entry.
        :param at_us: time of the leaf.
        """
        subject, log = self._open.get(body.lease, ("", Origin("")))
        if log != origin:
            return (Irregular("lease_unknown", f"not an open lease of this log: {body.lease}"),)
        account = self._opened(subject, origin)
        before = _sums(account)
        (grant,) = (one for one in account.open if one.hash == body.lease)
        charged, found = int(body.charged_flop), []
        if charged < account.charged_flop:
            found.append(Irregular("lease_rollback", f"{charged} FLOP charged, {account.charged_flop} before"))
        # A renewal may cap lower than what was charged by then: only what was added since is more than allowed.
        allowed = max(account.cap_tflop, -(-account.charged_flop // TERA))
        account.settle(at_us, charged)
        if -(-charged // TERA) > allowed:
            detail = f"{charged} FLOP charged, {allowed} TFLOP allowed"
            if account.counted_flop < charged:
                detail += f"; {account.spent_tflop} TFLOP of it count: no chips do more in that time"
            found.append(Irregular("lease_overrun", detail))
        if body.event == "final":
            closed = account.open
            account.hold(())
            account.final_seq, account.written_off_tflop = seq, 0
            self._logs[parse_origin(origin).node_id].get(origin, set()).discard(subject)
        else:
            closed = tuple(one for one in account.open if one.sequence < grant.sequence)
            if closed or not grant.adopted:
                later = tuple(one for one in account.open if one.sequence > grant.sequence)
                account.hold((replace(grant, adopted=True), *later))
        for one in closed:
            self._open.pop(one.hash, None)
        # A host that comes back after its chips went to another is charged, but gets them back only if there is room.
        back = at_us - account.heard_us < SILENT_US or self._has_room(subject, account.chips, at_us)
        account.heard_us = max(at_us, account.heard_us) if back else account.heard_us
        self._settle(subject, origin, account, before, at_us)
        return tuple(found)

    def _has_room(self, subject: str, chips: int, at_us: int) -> bool:
        return self._holds[held_by(subject)].room(at_us) >= chips

    def _opened(self, subject: str, origin: Origin) -> Account:
        return self.subjects.setdefault(subject, Subject()).accounts.setdefault(origin, Account())

    def _write_off(self, subject: str, origin: Origin, at_us: int) -> None:
        """A node left this log with leases open: it can have used all of them, and will hardly say."""
        account = self._opened(subject, origin)
        before = _sums(account)
        account.settle(at_us)
        account.written_off_tflop = account.committed_tflop
        account.heard_us = 0
        self._settle(subject, origin, account, before, at_us)

    def _settle(self, subject: str, origin: Origin, account: Account, before: "_Sums", at_us: int) -> None:
        """Sums after an account changed."""
        sums, after = self.subjects[subject], _sums(account)
        sums.charged_tflop += after.counted - before.counted
        sums.committed_tflop += after.committed - before.committed
        until_us = min(account.expires_us, account.heard_us + SILENT_US)
        self._holds[held_by(subject)].put(f"{subject} {origin}", account.chips, until_us, at_us)
        spent, left = after.spent - before.spent, after.committed - after.spent
        self.free.settle(subject, origin, spent, left, account.expires_us, at_us)


class _Sums(NamedTuple):
    spent: int
    counted: int
    committed: int


def _sums(account: Account) -> _Sums:
    return _Sums(account.spent_tflop, account.counted_tflop, account.committed_tflop)


def held_by(subject: str) -> str:
    """Whose chips at once are counted together: a run's, or all of an organisation's under its allowance."""
    return subject.rpartition("/")[0] if subject.startswith("allowance/") else subject


def _left_behind(log: Origin, by: Origin) -> bool:
    """Whether ``by`` is a later log of the same node."""
    if log == by:
        return False
    old, new = parse_origin(log), parse_origin(by)
    return old.node_id == new.node_id and old.incarnation < new.incarnation


def slice_tflop(
    ledger: Ledger,
    lease: Lease,
    origin: Origin,
    limits: Scope | Allowance,
    *,
    rate_tflop_s: int,
    hosts: int,
    at_us: int,
) -> int:
    """How much to allow a log on top of what it has charged: what its chips can do in the lease's time, but no more
    than its share of what is left. So a host that is ahead of the others gets less at its next renewal.

    :param lease: without a cap yet.
    :param rate_tflop_s: peak of its chips together, rounded up.
    :param hosts: that share what nobody has charged yet, this one included.
    """
    available = ledger.available_tflop(lease, origin, limits, at_us)
    if isinstance(limits, Scope):
        uncharged = max(0, limits.budget_tflop - ledger.charged_tflop(lease_subject(lease)))
        available = min(available, uncharged // max(hosts, 1))
    return min(rate_tflop_s * lease.ttl_s, available)
