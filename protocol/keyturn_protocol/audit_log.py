"""Auditing one node's log: files, signatures, tree, chain and receipts, from its first byte."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple

from keyturn_protocol.api import Trust
from keyturn_protocol.audit_leases import BundleLeases, Gathered, Gathering, survivor_findings
from keyturn_protocol.audit_locate import locate
from keyturn_protocol.bundle import (
    BundleReader,
    LogRef,
    Manifest,
    check_trust,
    log_folder,
    parse_segment_name,
    receipt_path,
)
from keyturn_protocol.charging import Charge
from keyturn_protocol.chips import chip_table
from keyturn_protocol.cosignature import parse_receipt, verify_cosignature
from keyturn_protocol.digest import digest
from keyturn_protocol.entries import Genesis, Heartbeat, Inventory, WorkloadStarted, parse_entry
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.findings import Finding, FindingCode, finding
from keyturn_protocol.ids import Hash, LogName, parse_origin
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.leaves import LogFrozenBody, NodeCheckpointBody
from keyturn_protocol.merkle import Frontier
from keyturn_protocol.segment import ChainState, EntryError, Segment, parse_segment, start_of, verify_head
from keyturn_protocol.totals import Listed, Moment, listed_in
from keyturn_protocol.usage import EMPTY, FoldState, Gap, Rows, merge

QUOTES: Final = 1_024
"""Checkpoints of the verifier's log that one log's audit keeps: all of half a day, then evenly thinned."""


class Quote(NamedTuple):
    """What a heartbeat quotes: unverified."""

    seq: int
    time_us: int
    note: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Evidence that contradicts evidence, or a signature. ``where`` is a file; ``seq`` the entry, if one is named."""

    where: str
    message: str
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What :func:`audit_log` needs besides the reader: all of it small and picklable."""

    ref: LogRef
    segments: tuple[str, ...]
    files: Mapping[str, str]
    """The manifest's hashes of the files in this log's folder."""
    trust: Trust
    logged: frozenset[NodeCheckpointBody] | None
    """What the verifier's log holds of this log; None if that log is damaged itself, and shows nothing."""
    frozen: tuple[LogFrozenBody, ...]
    followed_at: frozenset[int] = frozenset()
    """Receipted sizes at which the node's next logs were opened."""


@dataclass(frozen=True, slots=True)
class LogResult:
    """What one log says, up to the first contradiction in it."""

    ref: LogRef
    frontier: Frontier
    at_frozen: Mapping[int, Hash]
    """The root at each size for which the verifier's log says that the log was frozen."""
    chain: ChainState
    fold: FoldState
    rows: Rows
    gaps: tuple[Gap, ...]
    chips: Mapping[tuple[str, int, str], Chip]
    started: Mapping[tuple[str, str], Sequence[WorkloadStartedBody]]
    genesis: Genesis | None
    at_followed: Mapping[int, tuple[str, int]]
    """At each size at which the node's next log was opened: root, and time of the last entry (µs)."""
    listed: Listed
    """From which entry on this log owes a chip's time."""
    receipt_s: int | None
    """When the verifier received the last segment, as its receipt says."""
    quotes: tuple[Quote, ...]
    """Checkpoints of the verifier's log that heartbeats quote, in order."""
    gathered: Gathered
    """What it says about leases."""
    findings: tuple[Finding, ...]
    contradictions: tuple[Contradiction, ...]

    @property
    def size(self) -> int:
        """Entries that were verified."""
        return self.frontier.size


class _Stop(Exception):
    """Ends the audit of one log at its first contradiction."""

    def __init__(self, contradiction: Contradiction) -> None:
        self.contradiction = contradiction


@dataclass(slots=True)
class _Quotes:
    """The quotes of one log, each different from the one before; over the cap every other one goes."""

    kept: list[Quote] = field(default_factory=list)
    every: int = 1
    seen: int = 0
    last: str | None = None

    def add(self, quote: Quote) -> None:
        if quote.note == self.last:
            return
        self.last = quote.note
        if self.seen % self.every == 0:
            self.kept.append(quote)
        self.seen += 1
        if len(self.kept) > QUOTES:
            del self.kept[1::2]
            self.every *= 2


@dataclass(slots=True)
class _Log:
    """The running state of one log's audit."""

    task: Task
    name: LogName
    frontier: Frontier
    chain: ChainState
    leases: Gathering
    fold: FoldState = EMPTY
    rows: Rows = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    chips: dict[tuple[str, int, str], Chip] = field(default_factory=dict)
    started: dict[tuple[str, str], list[WorkloadStartedBody]] = field(default_factory=dict)
    genesis: Genesis | None = None
    at_followed: dict[int, tuple[str, int]] = field(default_factory=dict)
    listed: dict[str, Moment] = field(default_factory=dict)
    receipt_s: int | None = None
    quotes: _Quotes = field(default_factory=_Quotes)
    findings: list[Finding] = field(default_factory=list)
    contradictions: list[Contradiction] = field(default_factory=list)
    roots: dict[int, Hash] = field(default_factory=dict)
    at_frozen: dict[int, Hash] = field(default_factory=dict)


def audit_log(reader: BundleReader, task: Task) -> LogResult:
    """Verify one log from its first byte: files, signatures, tree, chain, receipts; and fold its usage."""
    name = parse_origin(task.ref.origin)
    leases = Gathering(Charge(chip_table(), BundleLeases(reader)))
    log = _Log(task, name, Frontier(), start_of(name.origin), leases)
    try:
        for path in task.segments:
            _segment(reader, log, path)
        _ends(log)
    except _Stop as stop:
        log.contradictions.append(stop.contradiction)
    return LogResult(
        ref=task.ref,
        frontier=log.frontier,
        at_frozen=log.at_frozen,
        chain=log.chain,
        fold=log.fold,
        rows=log.rows,
        gaps=tuple(log.gaps),
        chips=log.chips,
        started=log.started,
        genesis=log.genesis,
        at_followed=log.at_followed,
        listed=log.listed,
        receipt_s=log.receipt_s,
        quotes=tuple(log.quotes.kept),
        gathered=log.leases.gathered(),
        findings=(*log.findings, *survivor_findings(name.origin, [*log.leases.charge.survivors.values()])),
        contradictions=tuple(log.contradictions),
    )


def _segment(reader: BundleReader, log: _Log, path: str) -> None:
    """One segment and its receipt."""
    try:
        start, end = parse_segment_name(path.rpartition("/")[2])
        data = reader.read(path)
    except ProtocolError as error:
        raise _Stop(Contradiction(path, str(error))) from None
    if start != log.frontier.size:
        raise _Stop(Contradiction(path, f"entries {log.frontier.size} … {start - 1} are missing", log.frontier.size))
    key = parse_vkey(log.task.ref.vkey)
    try:
        segment = parse_segment(data)
        if (segment.origin, segment.start, segment.end) != (log.name.origin, start, end):
            raise ProtocolError(
                Code.BAD_SEGMENT,
                "segment is not the one that its name says",
                expected=f"{log.name.origin} {start} … {end}",
                got=f"{segment.origin} {segment.start} … {segment.end}",
            )
        verify_head(segment, key)
        hashes = segment.leaf_hashes()
        frontier = log.frontier.extend(hashes)
        if frontier.root() != segment.checkpoint.root:
            raise ProtocolError(
                Code.WRONG_ROOT,
                f"entries {start} … {end - 1} don't hash to the signed root",
                expected=segment.checkpoint.root.hex(),
                got=frontier.root().hex(),
            )
        found = digest(log.name, key.public_key, log.chain, log.fold, segment.lines, hashes, log.leases.charge)
    except EntryError as error:
        raise _Stop(Contradiction(path, str(error), error.seq)) from None
    except ProtocolError as error:
        after = _next_link(reader, log.task, path)
        raise _Stop(Contradiction(path, *locate(data, end, log.chain.prev, log.frontier, error, after))) from None
    file_sha256 = sha256(data).hexdigest()
    if file_sha256 != log.task.files[path]:
        log.contradictions.append(Contradiction(path, "file differs from its hash in the manifest"))
    for body in log.task.frozen:
        if start < body.size <= end:
            log.at_frozen[body.size] = log.frontier.extend(hashes[: body.size - start]).root()
    log.findings += found.findings
    log.frontier, log.chain, log.fold = frontier, found.chain, found.fold
    log.roots[end] = segment.checkpoint.root
    if end in log.task.followed_at:
        log.at_followed[end] = (segment.checkpoint.root.hex(), found.chain.time_us)
    merge(log.rows, found.rows)
    log.gaps += found.gaps
    log.leases.take(found.events, found.charged)
    log.listed = {**listed_in(found.events), **log.listed}
    for entry in found.events:
        match entry:
            case Inventory():
                log.chips |= {(log.name.origin, entry.seq, chip.uuid): chip for chip in entry.body.chips}
            case WorkloadStarted():
                log.started.setdefault((log.name.origin, entry.body.id), []).append(entry.body)
            case Genesis():
                log.genesis = entry
            case Heartbeat() if entry.body.verifier_checkpoint is not None:
                log.quotes.add(Quote(entry.seq, entry.time_us, entry.body.verifier_checkpoint))
            case _:
                pass
    _receipt(reader, log, segment, path, file_sha256)


def _next_link(reader: BundleReader, task: Task, path: str) -> str | None:
    """What the segment after ``path`` says its first entry links to; None if there is none that can be read."""
    rest = task.segments[task.segments.index(path) + 1 :]
    try:
        return parse_entry(reader.read(rest[0]).partition(b"\n")[0]).prev if rest else None
    except ProtocolError:
        return None


def _receipt(reader: BundleReader, log: _Log, segment: Segment, path: str, file_sha256: str) -> None:
    """The receipt beside a segment: by the pinned key, and in the verifier's log."""
    where = receipt_path(path)
    try:
        data = reader.read(where)
        _, key = check_trust(log.task.trust)
        time_s = verify_cosignature(segment.note.text, parse_receipt(data), key)
    except ProtocolError as error:
        log.contradictions.append(
            Contradiction(where, f"receipt of entries {segment.start} … {segment.end - 1}: {error}")
        )
        return
    log.receipt_s = time_s
    if sha256(data).hexdigest() != log.task.files.get(where):
        log.contradictions.append(Contradiction(where, "file differs from its hash in the manifest"))
    body = NodeCheckpointBody(
        origin=segment.origin,
        start=segment.start,
        size=segment.end,
        root=segment.checkpoint.root.hex(),
        segment_sha256=file_sha256,
        receipt_s=time_s,
    )
    if log.task.logged is not None and body not in log.task.logged:
        detail = f"receipt of size {segment.end} is not in the verifier's log"
        log.findings.append(finding(FindingCode.UNLOGGED_RECEIPT, segment.origin, detail, seq=segment.end - 1))
        log.contradictions.append(Contradiction(where, detail))


def _ends(log: _Log) -> None:
    """The log reaches as far as the manifest and the verifier's log say, and no further."""
    where = log_folder(log.name)
    logged = log.task.logged or frozenset()
    receipted = max((body.size for body in logged), default=0)
    if log.frontier.size != log.task.ref.size:
        message = f"log has {log.frontier.size} entries where the manifest says {log.task.ref.size}"
        log.contradictions.append(Contradiction(where, message, log.frontier.size))
    if log.frontier.size < receipted:
        message = f"log has {log.frontier.size} entries where the verifier receipted {receipted}"
        log.contradictions.append(Contradiction(where, message, log.frontier.size))
    for body in sorted(logged, key=lambda body: body.size):
        root = log.roots.get(body.size)
        if body.size <= log.frontier.size and (root is None or root.hex() != body.root):
            message = f"the verifier's log has another segment ending at {body.size}"
            log.contradictions.append(Contradiction(where, message, body.size - 1))


def listed(reader: BundleReader, manifest: Manifest, path: str, found: list[Contradiction]) -> bytes:
    """A file's bytes; notes it if they aren't those that the manifest lists."""
    data = reader.read(path)
    if sha256(data).hexdigest() != manifest.files.get(path):
        found.append(Contradiction(path, "file differs from its hash in the manifest"))
    return data
