"""What a segment adds to the tables: the same rows when it is stored and when what is stored is checked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from keyturn_protocol.canonical import encode, encode_record
from keyturn_protocol.entries import Entry, Lease, Permit
from keyturn_protocol.entry_switch import PermitBody
from keyturn_protocol.findings import Finding
from keyturn_protocol.leaves import LeafBody, NodeCheckpointBody
from keyturn_protocol.receive import Accepted
from keyturn_protocol.totals import listed_in
from keyturn_verifier.db.hours import pack_hours

Row = tuple[object, ...]


class Covered(NamedTuple):
    """A row that is to name the leaf which covers its entry: the one at a place in the batch's leaves."""

    log_id: int
    seq: int
    at: int
    values: Row


@dataclass(slots=True)
class Rows:
    """What a batch adds, gathered so that each table is written once; the order of the columns is that of
    :class:`~keyturn_verifier.db.statements.Statements`.
    """

    moved: list[Row] = field(default_factory=list)
    segments: list[Row] = field(default_factory=list)
    bodies: list[Row] = field(default_factory=list)
    usage: list[Row] = field(default_factory=list)
    gaps: list[Row] = field(default_factory=list)
    inventories: list[Row] = field(default_factory=list)
    listed: list[Row] = field(default_factory=list)
    started: list[Row] = field(default_factory=list)
    findings: list[Row] = field(default_factory=list)
    asked: list[Covered] = field(default_factory=list)
    reported: list[Covered] = field(default_factory=list)
    leaves: list[LeafBody] = field(default_factory=list)
    newest_s: int = 0
    """The newest receipt's time: one that was shown may be from a clock that was ahead."""

    def add(self, log_id: int, accepted: Accepted, frame: bytes, receipt_s: int, receipt: bytes) -> None:
        """Everything of an accepted segment but its findings and the move of its log's head."""
        segment = accepted.segment
        self.newest_s = max(self.newest_s, receipt_s)
        frontier = accepted.head.frontier.to_bytes()
        hours = pack_hours(key.hour_s for key in accepted.rows)
        self.segments.append((log_id, segment.start, segment.end, accepted.sha256, frontier, receipt, hours))
        self.bodies.append((log_id, segment.start, receipt_s, frame))
        self.usage += [(log_id, *key[1:], *values) for key, values in accepted.rows.items()]
        self.gaps += [(log_id, g.chip, g.from_us, g.to_us, g.inventory_seq, g.cause) for g in accepted.gaps]
        self.inventories += [(log_id, e.seq, encode(e.body.chips)) for e in accepted.inventories]
        listed = listed_in(accepted.events)
        self.listed += [(log_id, chip, segment.start, *moment) for chip, moment in listed.items()]
        self.started += [(log_id, e.seq, e.body.id, encode_record(e.body)) for e in accepted.workloads]
        self._switch(log_id, accepted.events)
        self.leaves.append(
            NodeCheckpointBody(
                origin=segment.origin,
                start=segment.start,
                size=segment.end,
                root=segment.checkpoint.root.hex(),
                segment_sha256=accepted.sha256.hex(),
                receipt_s=receipt_s,
            )
        )

    def _switch(self, log_id: int, events: Iterable[Entry]) -> None:
        """What a node says to the start switch; the next leaf covers it."""
        at = len(self.leaves)
        for entry in events:
            match entry:
                case Permit(body=asks):
                    values = (party_of(asks), asks.run, entry.boot_id, encode_record(asks))
                    self.asked.append(Covered(log_id, entry.seq, at, values))
                case Lease(body=says):
                    self.reported.append(Covered(log_id, entry.seq, at, (entry.time_us, encode_record(says))))
                case _:
                    pass


def party_of(asks: PermitBody) -> str:
    """What those who start together, or not at all, have in common."""
    return sha256(encode([asks.kind, asks.run, asks.lineage, asks.group, asks.hosts])).hexdigest()


def placed(rows: Iterable[Covered], leaves: Sequence[tuple[int, int]]) -> list[Row]:
    """Rows with the index and the time of the leaf at their place."""
    return [(row.log_id, row.seq, *leaves[row.at], *row.values) for row in rows]


def finding_row(log_id: int, found: Finding) -> Row:
    """A finding as it is stored."""
    return (log_id, found.code, found.severity, found.seq, found.from_us, found.to_us, found.detail)
