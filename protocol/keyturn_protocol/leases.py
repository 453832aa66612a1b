"""Leases: a budget cut into slices, of which no two hosts can spend the same TFLOP.

    used + outstanding <= budget                                      at every moment, whoever crashes

A slice counts as spent from the moment that it is granted until its host says that less was used; a host that never
says so has used it all. Chips are counted apart: a silent host gives its chips up at once, its slice only with its
report.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from keyturn_protocol.authority import Why, refuse

SILENT_US: Final = 300 * 1_000_000
"""A host that wasn't heard of for so long no longer counts towards the chips at once."""
_SECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Grant:
    """One lease, as the verifier accounts for it."""

    id: str
    """64 hex digits: the hash of the lease."""
    node: str
    sequence: int
    """Of this node under this permit: 0, 1, …; never used twice."""
    chips: tuple[str, ...]
    """UUIDs."""
    tflop: int
    issued_us: int
    expires_us: int
    heard_us: int
    used_tflop: int = 0
    closed: bool = False
    """The host reported for the last time: nothing more is charged to it."""

    @property
    def committed_tflop(self) -> int:
        """What it takes from the budget: the slice while it is open, what was used after that.

        A host that spent more than its slice (it stops at the next sample, not before) takes what it spent.
        """
        return self.used_tflop if self.closed else max(self.tflop, self.used_tflop)

    def holds_chips(self, at_us: int) -> bool:
        return not self.closed and at_us < self.expires_us and at_us - self.heard_us < SILENT_US


@dataclass(frozen=True, slots=True)
class Account:
    """What a permit, or an allowance, has given out."""

    budget_tflop: int
    chips: int
    """At once."""
    grants: Mapping[str, Grant] = field(default_factory=dict)

    @property
    def used_tflop(self) -> int:
        return sum(grant.used_tflop for grant in self.grants.values())

    @property
    def committed_tflop(self) -> int:
        return sum(grant.committed_tflop for grant in self.grants.values())

    @property
    def left_tflop(self) -> int:
        """What can still be granted."""
        return max(0, self.budget_tflop - self.committed_tflop)

    def last_of(self, node: str) -> Grant | None:
        """The newest lease of a node."""
        own = (grant for grant in self.grants.values() if grant.node == node)
        return max(own, key=lambda grant: grant.sequence, default=None)

    def chips_held(self, at_us: int, *, but: str = "") -> int:
        """Chips under leases of other hosts than ``but`` that were heard of lately."""
        return sum(len(g.chips) for g in self.grants.values() if g.node != but and g.holds_chips(at_us))


def slice_tflop(account: Account, *, rate_tflop_s: int, ttl_s: int, hosts: int) -> int:
    """How much one of ``hosts`` that share what is left may spend in ``ttl_s`` at its peak.

    :param rate_tflop_s: peak of its chips together, rounded up.
    """
    return min(rate_tflop_s * ttl_s, account.left_tflop // max(hosts, 1))


def grant(
    account: Account, lease: str, *, node: str, sequence: int, chips: Iterable[str], tflop: int, ttl_s: int, at_us: int
) -> Account:
    """The account after one more lease.

    :raises Refused: nothing left, too many chips, a chip that another host holds, a host that owes a report.
    """
    wanted = tuple(sorted(set(chips)))
    last = account.last_of(node)
    if lease in account.grants:
        raise refuse(Why.STALE, "this lease was issued before", got=lease)
    if sequence != (0 if last is None else last.sequence + 1):
        raise refuse(
            Why.STALE, "not the node's next lease", expected=0 if last is None else last.sequence + 1, got=sequence
        )
    if last is not None and not last.closed:
        raise refuse(Why.OWES_REPORT, "renewal takes the report of the lease before", got=last.id)
    if not wanted or tflop <= 0:
        raise refuse(Why.EXHAUSTED, "nothing to lease", got=f"{len(wanted)} chips, {tflop} TFLOP")
    if tflop > account.left_tflop:
        raise refuse(Why.EXHAUSTED, "more than is left", expected=f"<= {account.left_tflop} TFLOP", got=tflop)
    held = account.chips_held(at_us, but=node)
    if held + len(wanted) > account.chips:
        raise refuse(Why.TOO_MANY_CHIPS, "too many chips at once", expected=account.chips, got=held + len(wanted))
    new = Grant(lease, node, sequence, wanted, tflop, at_us, at_us + ttl_s * _SECOND, at_us)
    return replace(account, grants={**account.grants, lease: new})


def heard(account: Account, lease: str, *, used_tflop: int, final: bool, at_us: int) -> Account:
    """The account after a host's report of what a lease has used so far.

    :raises Refused: an unknown or closed lease, or less than it reported before: a state file from a backup.
    """
    old = account.grants.get(lease)
    if old is None:
        raise refuse(Why.UNKNOWN, "no such lease", got=lease)
    if old.closed:
        if final and used_tflop == old.used_tflop:
            return account  # the same last report again
        raise refuse(Why.OVER, "the lease is closed", expected=old.used_tflop, got=used_tflop)
    if used_tflop < old.used_tflop:
        raise refuse(Why.STALE, "less than was reported before", expected=f">= {old.used_tflop}", got=used_tflop)
    # A host that comes back after its chips went to another is charged, but gets them back only where there is room.
    back = old.holds_chips(at_us) or account.chips_held(at_us) + len(old.chips) <= account.chips
    heard_us = max(at_us, old.heard_us) if back else old.heard_us
    new = replace(old, used_tflop=used_tflop, closed=final, heard_us=heard_us)
    return replace(account, grants={**account.grants, lease: new})
