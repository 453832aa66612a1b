"""From a number back to what it rests on: the logs, segments and entries of a bundle that speak of a subject."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from keyturn_protocol.bundle import BundleReader, LogRef, Manifest, log_folder, parse_segment_name
from keyturn_protocol.entries import Entry, Inventory, Usage, WorkloadEnded, WorkloadStarted, parse_entry
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.segment import parse_segment


@dataclass(slots=True)
class Piece:
    """One segment's entries about the subject."""

    path: str
    seqs: list[int] = field(default_factory=list)


@dataclass(slots=True)
class LogTrace:
    """One log's part in it."""

    ref: LogRef
    workloads: set[str] = field(default_factory=set)
    chips: set[str] = field(default_factory=set)
    pieces: list[Piece] = field(default_factory=list)

    @property
    def entries(self) -> int:
        return sum(len(piece.seqs) for piece in self.pieces)


def trace(reader: BundleReader, manifest: Manifest, subject: str) -> Iterator[LogTrace]:
    """The logs that speak of a subject: a workload's id, a chip's, a node's, or a log's origin."""
    for ref in manifest.logs:
        name = parse_origin(ref.origin)
        whole = subject in (ref.origin, name.node_id)
        found = LogTrace(ref)
        paths = [p for p in manifest.files if p.startswith(log_folder(name)) and p.endswith(".segment")]
        listed: list[str] = []
        for path in sorted(paths, key=lambda p: parse_segment_name(p.rpartition("/")[2])):
            piece = Piece(path)
            for line in parse_segment(reader.read(path)).lines:
                entry = parse_entry(line)
                if isinstance(entry, Inventory):
                    listed = [chip.uuid for chip in entry.body.chips]
                workloads, chips = _about(entry, listed, subject)
                if whole or subject in workloads or subject in chips:
                    piece.seqs.append(entry.seq)
                    found.workloads |= workloads
                    found.chips |= chips
            if piece.seqs:
                found.pieces.append(piece)
        if found.pieces:
            yield found


def _about(entry: Entry, listed: list[str], subject: str) -> tuple[set[str], set[str]]:
    """The workloads and chips that an entry speaks of; only the subject's own where it is one of them."""
    match entry:
        case Inventory():
            return set(), {subject} & set(listed) or (set() if ":" in subject else set(listed))
        case Usage(body=body):
            shares = [s for s in body.workloads if s.chip < len(listed)]
            own = [s for s in shares if subject in (s.id, listed[s.chip])]
            if own or subject in listed:
                return {s.id for s in own}, {listed[s.chip] for s in own} | ({subject} & set(listed))
            return {s.id for s in shares}, set(listed)
        case WorkloadStarted(body=body) | WorkloadEnded(body=body):
            return {body.id}, set()
        case _:
            return set(), set()
