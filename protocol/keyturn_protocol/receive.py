"""The receipt table: what a verifier answers to a segment. Pure; the shell around it stores and signs.

0   unparsable, over a limit, unknown origin       refused before this module is asked
2   bad signature                                  Refused(bad_signature)
3   frozen log                                     Refused(log_frozen)
4   end <= known size: same range and bytes        Stored: the stored receipt
    another root was signed for that size          Fork: both heads are kept, the log is frozen
    else                                           Behind: the known head
5   start != known size                            Behind
6   entries don't hash to the signed root          Refused(damaged_segment): nothing is frozen
7   they do, but break the chain or the format     Invalid: kept, the log is frozen
8   the next segment                               Accepted
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.digest import digest
from keyturn_protocol.entries import Entry, Genesis, Inventory, WorkloadStarted
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.findings import Finding
from keyturn_protocol.ids import Hash, LogName
from keyturn_protocol.merkle import Frontier
from keyturn_protocol.note import Note
from keyturn_protocol.segment import ChainState, EntryError, Segment, node_key, start_of, verify_head
from keyturn_protocol.usage import EMPTY, FoldState, Gap, Rows

FrozenReason = Literal["fork", "invalid_entries"]


@dataclass(frozen=True, slots=True)
class Head:
    """All that a verifier must remember of a log to decide about its next segment."""

    name: LogName
    public_key: bytes
    frontier: Frontier
    chain: ChainState
    fold: FoldState
    note: Note | None
    """The newest checkpoint, with the node's own signature; None at size 0."""
    receipt: bytes | None
    """The receipt line for ``note``."""
    frozen: FrozenReason | None

    @property
    def size(self) -> int:
        return self.frontier.size

    def cosigned(self) -> bytes | None:
        """The newest checkpoint with the node's signature and the receipt: what ``behind`` answers with."""
        return None if self.note is None or self.receipt is None else self.note.to_bytes() + self.receipt


def new_head(name: LogName, public_key: bytes) -> Head:
    """The head of a log that is enrolled or expected and has no entries yet."""
    return Head(name, public_key, Frontier(), start_of(name.origin), EMPTY, None, None, None)


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """What history holds for an exact range: SHA-256 of the decoded bytes, and the receipt."""

    sha256: bytes
    receipt: bytes


@dataclass(frozen=True, slots=True)
class History:
    """Look-ups in what is stored of one log; asked only for segments at or below the known size."""

    segment: Callable[[int, int], StoredSegment | None]
    root_at: Callable[[int], Hash]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The next segment. Store it with everything here in one transaction, then release the receipt."""

    segment: Segment
    sha256: bytes
    head: Head
    """After the segment; its ``receipt`` is None until the shell has signed one."""
    events: tuple[Entry, ...]
    """The entries besides usage, which is all in ``rows``: a batch of segments must not hold every column."""
    rows: Rows
    gaps: tuple[Gap, ...]
    findings: tuple[Finding, ...]

    @property
    def inventories(self) -> list[Inventory]:
        return [e for e in self.events if isinstance(e, Inventory)]

    @property
    def workloads(self) -> list[WorkloadStarted]:
        return [e for e in self.events if isinstance(e, WorkloadStarted)]

    @property
    def genesis(self) -> Genesis | None:
        return next((e for e in self.events if isinstance(e, Genesis)), None)


@dataclass(frozen=True, slots=True)
class Stored:
    """Received before, byte for byte."""

    receipt: bytes


@dataclass(frozen=True, slots=True)
class Behind:
    """The segment doesn't follow the known head. ``checkpoint`` is the cosigned head, None at size 0."""

    size: int
    checkpoint: bytes | None


@dataclass(frozen=True, slots=True)
class Fork:
    """The node signed another root for a size that is known: keep the segment, freeze the log."""

    segment: Segment
    known_root: Hash
    detail: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """The node signed entries that break the format or the chain: keep the segment, freeze the log."""

    segment: Segment
    seq: int
    detail: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is stored."""

    code: ProblemCode
    detail: str


Decision = Accepted | Stored | Behind | Fork | Invalid | Refused


def decide(head: Head, segment: Segment, data: bytes, history: History) -> Decision:
    """Decide about one parsed segment of the log that ``head`` is about; the first row that matches wins.

    :param data: the decoded bytes that ``segment`` was parsed from.
    """
    try:
        verify_head(segment, node_key(head.name.origin, head.public_key))
    except ProtocolError as error:
        return Refused(ProblemCode.BAD_SIGNATURE, str(error))
    if head.frozen is not None:
        return Refused(ProblemCode.LOG_FROZEN, f"log is frozen: {head.frozen}")
    if segment.end <= head.size:
        return _known(head, segment, data, history)
    if segment.start != head.size:
        return Behind(head.size, head.cosigned())
    hashes = segment.leaf_hashes()
    frontier = head.frontier.extend(hashes)
    if frontier.root() != segment.checkpoint.root:
        return Refused(
            ProblemCode.DAMAGED_SEGMENT,
            f"entries {segment.start} … {segment.end - 1} don't hash to the signed root "
            f"(expected {segment.checkpoint.root.hex()}, got {frontier.root().hex()})",
        )
    if head.chain.closed is not None:
        return Refused(ProblemCode.LOG_CLOSED, f"log has ended: {head.chain.closed}")
    try:
        found = digest(head.name, head.public_key, head.chain, head.fold, segment.lines, hashes)
    except EntryError as error:
        return Invalid(segment, error.seq, str(error))
    return Accepted(
        segment=segment,
        sha256=sha256(data).digest(),
        head=Head(head.name, head.public_key, frontier, found.chain, found.fold, segment.note, None, head.frozen),
        events=found.events,
        rows=found.rows,
        gaps=found.gaps,
        findings=found.findings,
    )


def _known(head: Head, segment: Segment, data: bytes, history: History) -> Decision:
    """Row 4: a segment that ends at or below the known size."""
    stored = history.segment(segment.start, segment.end)
    if stored is not None and stored.sha256 == sha256(data).digest():
        return Stored(stored.receipt)
    root = history.root_at(segment.end)
    if root != segment.checkpoint.root:
        return Fork(
            segment,
            root,
            f"two signed heads of size {segment.end} (known {root.hex()}, got {segment.checkpoint.root.hex()})",
        )
    return Behind(head.size, head.cosigned())
