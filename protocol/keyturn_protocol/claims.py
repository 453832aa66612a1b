"""Whose a chip is, as far as logs say: first come, first served, for as long as who came first is there.

An inventory is a host's own word, and any host that is enrolled can list the chips of another, to have them under a
lease when their host asks for one. What it can't do is to have said so earlier: a host meters its chips from the day
on which it is enrolled. So a node that lists a chip now and was heard of lately *claims* it against every node that
named it later. A chip that moved is free once its old host lists it no more, is silent, has retired or was replaced.

A node that lists a chip again, after a pause or a reset, is as early as it was the first time. One that had a chip,
gave it away and lies about that later is earlier than who has it now: both stand in a finding, and an operator can say
that it was replaced. A replay measures nothing here, and claims nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from keyturn_protocol.authority import Why, refuse
from keyturn_protocol.entries import Entry, Genesis, Inventory, Retired
from keyturn_protocol.entry_log import Source
from keyturn_protocol.ids import LogName, NodeId

LIVE_S: Final = 1_800
"""After so long without a receipt nobody holds a chip for a node: six uploads of an agent that is left as it comes."""
_SECOND: Final = 1_000_000


class Naming(NamedTuple):
    """What a segment says about the chips of its host."""

    seq: int
    """Of an entry of it."""
    source: Source | None = None
    """Of its log, where its genesis is here."""
    named: frozenset[str] = frozenset()
    """Those that it lists, or retires by name."""
    listed: frozenset[str] | None = None
    """Those of its newest inventory."""
    retired: bool = False
    """The whole host."""


def naming_in(entries: Iterable[Entry]) -> Naming | None:
    """What the entries of one segment say; None if that is nothing."""
    about = [entry for entry in entries if isinstance(entry, Genesis | Inventory | Retired)]
    if not about:
        return None
    found = Naming(about[0].seq)
    for entry in about:
        match entry:
            case Genesis(body=genesis):
                found = found._replace(source=genesis.source)
            case Inventory(body=inventory):
                listed = frozenset(chip.uuid for chip in inventory.chips)
                found = found._replace(named=found.named | listed, listed=listed)
            case Retired(body=retired) if retired.chips is not None:
                found = found._replace(named=found.named.union(retired.chips))
            case Retired():
                found = found._replace(retired=True)
    return found


@dataclass(slots=True)
class _Log:
    source: Source | None = None
    first_s: dict[str, int] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()
    heard_s: int = 0
    retired: bool = False


class Claim(NamedTuple):
    """What a node has to say for itself about one chip. The earlier comes first; in one second, the lower id."""

    first_s: int
    """The receipt of the first segment of its logs that named the chip."""
    node: NodeId
    heard_s: int
    """The newest receipt of its newest log."""
    lists: bool
    """That log does, now, and the host hasn't retired."""


class Claims:
    """A fold over what the verifier's log says of nodes' logs; order matters within one log alone."""

    def __init__(self) -> None:
        self._logs: dict[NodeId, dict[int, _Log]] = {}
        """By incarnation."""
        self._named: dict[str, set[NodeId]] = {}

    def received(self, name: LogName, receipt_s: int, naming: Naming | None) -> None:
        """A segment of a log was receipted.

        :param naming: of that segment.
        """
        log = self._logs.setdefault(name.node_id, {}).setdefault(name.incarnation, _Log())
        log.heard_s = receipt_s
        if naming is None:
            return
        log.source = naming.source or log.source
        log.listed = log.listed if naming.listed is None else naming.listed
        log.retired |= naming.retired
        if log.source == "replay":
            return
        for chip in naming.named:
            log.first_s.setdefault(chip, receipt_s)
            self._named.setdefault(chip, set()).add(name.node_id)

    def of(self, chip: str) -> list[Claim]:
        """Every node that ever named a chip, the first one first."""
        return sorted(self._claim(chip, node) for node in self._named.get(chip, ()))

    def _claim(self, chip: str, node: NodeId) -> Claim:
        logs = self._logs[node]
        newest = logs[max(logs)]
        lists = chip in newest.listed and newest.source != "replay" and not newest.retired
        return Claim(
            min(log.first_s[chip] for log in logs.values() if chip in log.first_s), node, newest.heard_s, lists
        )


def check_claims(claims: Claims, node: NodeId, chips: Iterable[str], replaced: Mapping[str, str], time_us: int) -> None:
    """That no chip is another node's.

    :param node: that wants them.
    :param replaced: nodes that are gone → which one their host became.
    :raises Refused: ``chip_claimed``.
    """
    for chip in chips:
        for claim in claims.of(chip):
            if claim.node == node:
                break  # whoever comes after this one came later
            live = time_us - claim.heard_s * _SECOND <= LIVE_S * _SECOND
            if claim.lists and live and claim.node not in replaced:
                message = "another node named the chip first, lists it and is heard of"
                raise refuse(Why.CHIP_CLAIMED, message, expected=f"node {claim.node}", got=f"{chip} of node {node}")
