"""What may run without anybody's consent: so much in a window, of an organisation, and of a lineage.

Many small runs are one large one: what is free is counted by who runs it *and* by what it is part of, whoever runs
that. What hosts report counts from when they report it, which is later than when they used it; what they could still
use counts as used until then, or until their leases are a whole window over.

Diagnostics, tests of the hardware, are apart: so much a node and day.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, assert_never

from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.lease import AllowanceName, Lease, lease_subject
from keyturn_protocol.policy import Allowance

DAY_S: Final = 86_400
By = Literal["organisation", "lineage", "node"]
"""What is counted together; of a node: diagnostics."""
_SECOND: Final = 1_000_000
_HOUR_US: Final = 3_600 * _SECOND


@dataclass(slots=True)
class Spending:
    """What was spent by when, to the hour, and what may still be."""

    spent: list[tuple[int, int]] = field(default_factory=list)
    """(end of an hour, TFLOP), oldest first."""
    outstanding: dict[tuple[str, Origin], tuple[int, int]] = field(default_factory=dict)
    """Account → TFLOP that it may still spend, and until when its leases live."""

    def add(self, tflop: int, at_us: int) -> None:
        """Spent by ``at_us``, which counts as the end of its hour: for longer, never for less."""
        hour_us = -(-at_us // _HOUR_US) * _HOUR_US
        if self.spent and self.spent[-1][0] >= hour_us:
            self.spent[-1] = (self.spent[-1][0], self.spent[-1][1] + tflop)
        else:
            self.spent.append((hour_us, tflop))

    def within(self, window_s: int, at_us: int, *, but: tuple[str, Origin] | None = None) -> int:
        """TFLOP of the last ``window_s``, and what may still be spent.

        :param but: an account that only counts with what it spent.
        """
        return self.used(window_s, at_us) + self.outstanding_tflop(window_s, at_us, but=but)

    def used(self, window_s: int, at_us: int) -> int:
        """TFLOP of the last ``window_s`` that hosts have reported."""
        since_us, total = at_us - window_s * _SECOND, 0
        for hour_us, tflop in reversed(self.spent):
            if hour_us <= since_us:
                break
            total += tflop
        return total

    def outstanding_tflop(self, window_s: int, at_us: int, *, but: tuple[str, Origin] | None = None) -> int:
        """TFLOP of leases that nobody has reported on to their end: they may have been spent as well.

        :param but: an account that is left out.
        """
        since_us = at_us - window_s * _SECOND
        return sum(
            tflop
            for account, (tflop, expires_us) in self.outstanding.items()
            if account != but and expires_us > since_us
        )

    def put(self, account: tuple[str, Origin], tflop: int, expires_us: int) -> None:
        if tflop > 0:
            self.outstanding[account] = (tflop, expires_us)
        else:
            self.outstanding.pop(account, None)


def bound(allowance: Allowance, by: By) -> tuple[int, int]:
    """TFLOP that are free, and the seconds in which so many are."""
    match by:
        case "organisation":
            return allowance.organisation_tflop, allowance.window_s
        case "lineage":
            return allowance.lineage_tflop, allowance.window_s
        case "node":
            return allowance.diagnostics_tflop, DAY_S
        case _:
            assert_never(by)


class Free:
    """All that was taken of allowances."""

    def __init__(self) -> None:
        self.organisations: dict[str, Spending] = {}
        self.lineages: dict[str, Spending] = {}
        self.nodes: dict[str, Spending] = {}
        """Diagnostics."""
        self._names: dict[str, AllowanceName] = {}
        """Subject → what it is of."""

    def join(self, subject: str, name: AllowanceName, node_id: str) -> None:
        """Count a subject from now on."""
        self._names[subject] = name
        if name.lineage is None:
            self.nodes.setdefault(node_id, Spending())
        else:
            self.organisations.setdefault(name.organisation, Spending())
            self.lineages.setdefault(name.lineage, Spending())

    def settle(self, subject: str, origin: Origin, spent: int, outstanding: int, expires_us: int, at_us: int) -> None:
        """An account spent more, and may spend so much beyond; nothing happens for a run's."""
        name = self._names.get(subject)
        if name is None:
            return
        for spending in self._of(name, parse_origin(origin).node_id):
            if spent:
                spending.add(spent, at_us)
            spending.put((subject, origin), outstanding, expires_us)

    def available_tflop(self, lease: Lease, origin: Origin, allowance: Allowance, at_us: int) -> int:
        """How much a log may be allowed on top of what it has charged."""
        name = lease.allowance
        if name is None:
            raise ValueError("a lease of a run")
        node_id, account = parse_origin(origin).node_id, (lease_subject(lease), origin)
        taken: tuple[tuple[By, Spending | None], ...]
        if name.lineage is None:
            taken = (("node", self.nodes.get(node_id)),)
        else:
            organisation, lineage = self.organisations.get(name.organisation), self.lineages.get(name.lineage)
            taken = (("organisation", organisation), ("lineage", lineage))
        left = []
        for by, spending in taken:
            limit, window_s = bound(allowance, by)
            left.append(limit - (spending.within(window_s, at_us, but=account) if spending else 0))
        return max(0, min(left))

    def _of(self, name: AllowanceName, node_id: str) -> tuple[Spending, ...]:
        if name.lineage is None:
            return (self.nodes[node_id],)
        return self.organisations[name.organisation], self.lineages[name.lineage]
