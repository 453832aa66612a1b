"""Hosts that were set up again: what an operator's replacement of one node by another changes.

    old ─── replaced by ──► new            signed by an operator, one leaf of the verifier's log

A replacement is a claim about the past of a machine; it measures nothing. What the old node's chips owe ends where the
new node's log lists or retires them by name, and only if everything that the verifier received of the old node came
before everything that it received of the new one. Verifier and auditor decide all of it here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from keyturn_protocol.entry_log import Source
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.findings import Finding, FindingCode, finding
from keyturn_protocol.ids import LogName, NodeId
from keyturn_protocol.statements import Replacement
from keyturn_protocol.totals import HOST, Listed, Moment, Takeover


@dataclass(frozen=True, slots=True)
class Link:
    """A replacement that was taken: ``sha256`` is the statement's hash, ``index`` and ``time_us`` its leaf's."""

    old: NodeId
    new: NodeId
    reason: str
    sha256: str
    index: int
    time_us: int


class Links:
    """The replacements of one deployment, in the order of their leaves."""

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self.by_old: dict[NodeId, Link] = {}
        self.by_new: dict[NodeId, Link] = {}
        for link in links:
            self.add(link)

    def __iter__(self) -> Iterator[Link]:
        return iter(self.by_old.values())

    def add(self, link: Link) -> None:
        self.by_old[link.old], self.by_new[link.new] = link, link

    def admit(self, wanted: Replacement, *, enrolled: bool) -> None:
        """That a replacement may join those that are there.

        :param enrolled: whether the old node is, before the replacement's leaf.
        :raises ProtocolError: ``bad_statement``.
        """
        old, new = NodeId(wanted.old), NodeId(wanted.new)
        if not enrolled:
            raise ProtocolError(Code.BAD_STATEMENT, "the replaced node was never enrolled here", got=old)
        if (known := self.by_old.get(old)) is not None:
            raise ProtocolError(
                Code.BAD_STATEMENT, "the node is replaced already", expected=f"{old} by {known.new}", got=f"by {new}"
            )
        if (known := self.by_new.get(new)) is not None:
            raise ProtocolError(
                Code.BAD_STATEMENT, "the node replaces another already", expected=f"{known.old} by {new}", got=old
            )
        if old in (link.new for link in self.after(new)):
            raise ProtocolError(Code.BAD_STATEMENT, "nodes would replace each other in a circle", got=f"{old}, {new}")

    def after(self, node: NodeId) -> Iterator[Link]:
        """The links from ``node`` on, nearest first. They never lead back, or :meth:`admit` was not asked."""
        while (link := self.by_old.get(node)) is not None:
            yield link
            node = link.new


class Received(NamedTuple):
    """When the verifier received of a node: the receipt of its first segment, and its newest; POSIX seconds."""

    first_s: int
    last_s: int


@dataclass(frozen=True, slots=True)
class NodeLogs:
    """What links need of one node."""

    received: Received
    named: Listed
    """Chips that its logs list or retire by name: see :func:`named`."""


def named(logs: Iterable[tuple[Source | None, Listed]]) -> Listed:
    """Chips that a node's logs, the oldest first, list or retire by name; the first of them counts.

    A whole host that retires speaks for the chips that it had, not for those of another node. A replay takes over
    nothing.
    """
    found: dict[str, Moment] = {}
    for source, listed in logs:
        if source != "replay":
            for chip, moment in listed.items():
                if chip != HOST:
                    found.setdefault(chip, moment)
    return found


def in_order(old: Received, new: Received) -> bool:
    """Whether a node began after another had ended, as the verifier saw it."""
    return new.first_s >= old.last_s


def takeovers(links: Links, nodes: Mapping[NodeId, NodeLogs]) -> dict[NodeId, dict[str, Takeover]]:
    """For each replaced node, what took over its chips: the nearest node counts.

    :param nodes: every node of a link that is enrolled and whose logs are at hand. A chain ends where one is missing,
        or where the order of receipts doesn't bear it out.
    """
    found: dict[NodeId, dict[str, Takeover]] = {}
    for old in links.by_old:
        taken: dict[str, Takeover] = {}
        for link in links.after(old):
            before, after = nodes.get(link.old), nodes.get(link.new)
            if before is None or after is None or not in_order(before.received, after.received):
                break
            for chip, moment in after.named.items():
                taken.setdefault(chip, Takeover(moment, after.received.first_s * 1_000_000))
        found[old] = taken
    return found


def link_findings(links: Links, nodes: Mapping[NodeId, NodeLogs], newest: Mapping[NodeId, LogName]) -> list[Finding]:
    """Every replacement, and every replaced node that went on reporting.

    :param newest: each node's newest enrolled log; a node that isn't enrolled has none.
    """
    found = []
    for link in links:
        old = newest.get(link.old)
        if old is None:
            continue
        detail = f"replaced by {link.new}: {link.reason}"
        found.append(finding(FindingCode.REPLACED, old.origin, detail, from_us=link.time_us, to_us=link.time_us))
        before, after = nodes.get(link.old), nodes.get(link.new)
        if before is not None and after is not None and not in_order(before.received, after.received):
            detail = f"reported on after {link.new}, which replaces it, had begun; nothing is taken over from it"
            times = {"from_us": after.received.first_s * 1_000_000, "to_us": before.received.last_s * 1_000_000}
            found.append(finding(FindingCode.REPLACED_ACTIVE, old.origin, detail, **times))
    return found
