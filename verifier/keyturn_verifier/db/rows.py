"""What a segment adds to the tables: the same rows when it is stored and when what is stored is checked."""

from dataclasses import dataclass, field

from keyturn_protocol.canonical import encode, encode_record
from keyturn_protocol.findings import Finding
from keyturn_protocol.leaves import LeafBody, NodeCheckpointBody
from keyturn_protocol.receive import Accepted
from keyturn_protocol.totals import listed_in
from keyturn_verifier.db.hours import pack_hours

Row = tuple[object, ...]


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


def finding_row(log_id: int, found: Finding) -> Row:
    """A finding as it is stored."""
    return (log_id, found.code, found.severity, found.seq, found.from_us, found.to_us, found.detail)
