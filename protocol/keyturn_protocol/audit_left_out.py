"""Leases of logs that aren't in the bundle: what an audit can hold against them without a word of the log.

The verifier's log says which log of a node was open and how long it was. What its entries said nobody can see: what it
asked for, what its host checked, which chips it listed, and what it reported, which frees what a lease holds. So what
such a log has taken is counted here as the least that it can be:

    up to its next checkpoint    what the lease allows, and its chips: nobody has said anything else
    after that                   what was charged when its next lease was issued, as that lease says, and no chips

An honest verifier counts no less than that at any leaf, so that it never grants more than is left here.
"""

from collections.abc import Set
from typing import Final

from keyturn_protocol.entry_switch import LeaseBody, PermitBody, SpecChecks
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Origin
from keyturn_protocol.lease import Lease, lease_subject
from keyturn_protocol.lease_accounts import TERA
from keyturn_protocol.leases import Asked, Irregular, Ledger, held_by
from keyturn_protocol.leaves import EnrolmentBody, NodeCheckpoint
from keyturn_protocol.policy import Allowance
from keyturn_protocol.runs import Scope

_CHECKED: Final = SpecChecks(argv="verified", config="verified", data="verified", image="verified")
_BEFORE: Final = 2
"""Entries that come before the first one that asks for a lease: the genesis, and an inventory with its chips."""


class Least(Ledger):
    """The least that was taken, where the reports of some logs are missing.

    Of an allowance, what these logs charged isn't counted at all: from when on it is, only their reports say.
    """

    def __init__(self, missing: Set[str]) -> None:
        super().__init__()
        self._missing = missing
        self._unheard: dict[Origin, dict[str, str]] = {}
        """Log → its leases by subject, of which its host can't have said anything yet."""
        self._groups: set[str] = set()
        """Whose chips at once aren't all known."""

    def told(self, lease: Lease, origin: Origin) -> None:
        """Take what a lease of a missing log says was charged: what its verifier had in reports by then."""
        subject = lease_subject(lease)
        account = self.account(subject, origin)
        more = lease.charged_tflop - account.charged_tflop
        if more <= 0 or not account.sequence or subject in self._unheard.get(origin, {}):
            return  # to be refused, if it isn't the same
        account.charged_flop = account.counted_flop = lease.charged_tflop * TERA
        self.subjects[subject].charged_tflop += more
        self.subjects[subject].committed_tflop += more

    def heard(self, origin: Origin, index: int, at_us: int) -> None:
        """A checkpoint of a missing log: any of its leases can be over from here on, and its chips free."""
        for subject, digest in self._unheard.pop(origin, {}).items():
            charged = str(self.account(subject, origin).charged_flop)
            last = LeaseBody(charged_flop=charged, event="final", gaps=[], lease=digest, reason="for all that is known")
            super().report(origin, index, last, at_us)

    def grant(self, lease: Lease, lease_hash: str, asked: Asked, limits: Scope | Allowance, at_us: int) -> None:
        super().grant(lease, lease_hash, asked, limits, at_us)
        if asked.origin in self._missing:
            subject = lease_subject(lease)
            self._unheard.setdefault(asked.origin, {})[subject] = lease_hash
            self._groups.add(held_by(subject))

    def report(self, origin: Origin, seq: int, body: LeaseBody, at_us: int) -> tuple[Irregular, ...]:
        return () if origin in self._missing else super().report(origin, seq, body, at_us)

    def _has_room(self, subject: str, chips: int, at_us: int) -> bool:
        # Chips that are held unseen may leave none.
        return held_by(subject) not in self._groups and super()._has_room(subject, chips, at_us)


class LeftOut:
    """Logs that aren't in the bundle."""

    def __init__(self, origins: Set[str]) -> None:
        self.ledger = Least(origins)
        """Of all logs, those that are in the bundle included."""
        self._origins = origins
        self._sizes: dict[Origin, int] = {}
        self._leases: dict[Origin, int] = {}

    def __contains__(self, origin: Origin) -> bool:
        return origin in self._origins

    def checkpoint(self, leaf: NodeCheckpoint) -> None:
        """A checkpoint of such a log."""
        origin = Origin(leaf.body.origin)
        self._sizes[origin] = leaf.body.size
        self.ledger.heard(origin, leaf.index, leaf.time_us)

    def asked(self, lease: Lease, enrolment: EnrolmentBody, index: int) -> Asked:
        """The entry that a lease of such a log must have answered, as good for its verifier as it can have been.

        :param enrolment: of the log.
        :param index: of the lease's leaf.
        :raises ProtocolError: ``bad_lease``: the log can hold no such entry.
        """
        origin = Origin(enrolment.origin)
        size, leases = self._sizes.get(origin, 0), self._leases.get(origin, 0)
        if size <= _BEFORE + leases:
            message = f"lease {leases + 1} of a log that can't have asked so often by an earlier leaf"
            raise ProtocolError(Code.BAD_LEASE, message, expected=f"> {_BEFORE + leases} entries", got=size)
        self._leases[origin] = leases + 1
        self.ledger.told(lease, origin)
        body = PermitBody(
            chips=lease.chips,
            group="",
            hosts=1,
            kind="run" if lease.allowance is None else lease.allowance.kind,
            lineage=None if lease.allowance is None else lease.allowance.lineage,
            nonce=lease.nonce,
            run=lease.run,
            spec=_CHECKED,
        )
        listed = frozenset(lease.chips)
        return Asked(origin, index, lease.boot_id, body, enrolment.organisation, enrolment.site, listed, index)
