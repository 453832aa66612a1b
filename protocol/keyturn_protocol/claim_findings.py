"""Chips that two nodes list at once: one of them isn't theirs, or one host is metered twice.

Found from the times at which segments were received, so that a chip which moved is no finding: its old host listed it
up to the last receipt before the inventory without it, or before it fell silent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from keyturn_protocol.claims import LIVE_S, Naming
from keyturn_protocol.entry_log import Source
from keyturn_protocol.findings import Finding, FindingCode, finding
from keyturn_protocol.ids import LogName, NodeId

_SECOND = 1_000_000


class Span(NamedTuple):
    """A log listed a chip from one receipt to another, without a break."""

    start_s: int
    end_s: int
    log: LogName


@dataclass(slots=True)
class _Log:
    source: Source | None = None
    since_s: dict[str, int] = field(default_factory=dict)
    """Chips that it lists → since when."""
    heard_s: int = 0


@dataclass(slots=True)
class _Both:
    """Two logs listed these chips at once, from … to."""

    chips: set[str]
    from_s: int
    to_s: int


class Listings:
    """A fold over segments as they were received; order matters within one log alone."""

    def __init__(self) -> None:
        self._logs: dict[LogName, _Log] = {}
        self._spans: dict[str, list[Span]] = {}

    def received(self, name: LogName, receipt_s: int, naming: Naming | None) -> None:
        """A segment was receipted.

        :param naming: of that segment.
        """
        log = self._logs.setdefault(name, _Log())
        if naming is not None:
            log.source = naming.source or log.source
        if log.source == "replay":
            return
        if receipt_s - log.heard_s > LIVE_S:
            self._end(name, log, log.since_s)
            log.since_s = dict.fromkeys(log.since_s, receipt_s)
        if naming is not None and (naming.listed is not None or naming.retired):
            listed = naming.listed if naming.listed is not None and not naming.retired else frozenset()
            self._end(name, log, log.since_s.keys() - listed)
            log.since_s = {chip: log.since_s.get(chip, receipt_s) for chip in listed}
        log.heard_s = receipt_s

    def _end(self, name: LogName, log: _Log, chips: Iterable[str]) -> None:
        for chip in chips:
            self._spans.setdefault(chip, []).append(Span(log.since_s[chip], log.heard_s, name))

    def findings(self) -> list[Finding]:
        """One for each two logs, about the one of the node that listed the first of these chips later."""
        spans = {chip: list(of) for chip, of in self._spans.items()}
        for name, log in self._logs.items():
            for chip, since_s in log.since_s.items():
                spans.setdefault(chip, []).append(Span(since_s, log.heard_s, name))
        found: dict[tuple[LogName, LogName], _Both] = {}
        for chip, of in spans.items():
            if len({span.log.node_id for span in of}) < 2:
                continue
            first_s: dict[NodeId, int] = {}
            of.sort(key=lambda span: (span.start_s, span.end_s, span.log.origin))
            for span in of:
                first_s.setdefault(span.log.node_id, span.start_s)
            for one, other, from_s, to_s in _overlaps(of):
                later, earlier = sorted((one, other), key=lambda log: (first_s[log.node_id], log.node_id), reverse=True)
                both = found.setdefault((later, earlier), _Both(set(), from_s, to_s))
                both.chips.add(chip)
                both.from_s, both.to_s = min(both.from_s, from_s), max(both.to_s, to_s)
        return [_finding(later, earlier, both) for (later, earlier), both in found.items()]


def _overlaps(spans: Iterable[Span]) -> Iterator[tuple[LogName, LogName, int, int]]:
    """Logs of two nodes that listed one chip at once, and from when to when.

    :param spans: by their starts.
    """
    until_s: dict[LogName, int] = {}
    for start_s, end_s, log in spans:
        for other, other_end_s in until_s.items():
            if start_s < other_end_s and other.node_id != log.node_id:
                yield log, other, start_s, max(start_s, min(end_s, other_end_s))
        until_s[log] = max(end_s, until_s.get(log, 0))


def _finding(later: LogName, earlier: LogName, both: _Both) -> Finding:
    chip, more = min(both.chips), len(both.chips) - 1
    what = f"{chip}{f' and {more} more' if more else ''}"
    detail = f"lists {what} as its own, and so does node {earlier.node_id}, which did so first"
    times = {"from_us": both.from_s * _SECOND, "to_us": both.to_s * _SECOND}
    return finding(FindingCode.CHIP_CLAIMED, later.origin, detail, **times)
