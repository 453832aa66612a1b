"""The database against the bytes that it holds: what was signed is decided about once more, as when it came in.

Segments, receipts and leaves carry signatures; everything else in the database follows from them. Whoever can write to
it with SQL can change both, but has no key: :func:`check` names what no longer follows. What isn't checked, since no
evidence rests on it, is in :data:`UNCHECKED`.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Connection, Table, select
from sqlmodel import SQLModel

from keyturn_protocol.api import OperatorKey, Trust
from keyturn_protocol.audit_log import Quote
from keyturn_protocol.audit_rollback import quoted
from keyturn_protocol.bundle import check_trust
from keyturn_protocol.chips import chip_table
from keyturn_protocol.cosignature import parse_receipt, verify_cosignature
from keyturn_protocol.entries import Heartbeat
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.findings import Before, Finding, FindingCode, at_genesis, finding
from keyturn_protocol.ids import Deployment, parse_origin
from keyturn_protocol.keys import VerifierKey, node_id_of
from keyturn_protocol.leaves import Enrolment, EnrolmentBody, LeafBody, LogFrozen, LogFrozenBody, NodeCheckpoint
from keyturn_protocol.merkle import EMPTY_ROOT
from keyturn_protocol.receive import Accepted, Fork, FrozenReason, Head, Invalid, decide, new_head
from keyturn_protocol.segment import parse_segment
from keyturn_protocol.usage import Rows as UsageRows
from keyturn_protocol.usage import merge
from keyturn_verifier.check_snapshot import check_snapshot
from keyturn_verifier.check_statements import check_statements
from keyturn_verifier.check_tree import Tree, check_tree
from keyturn_verifier.db import tables
from keyturn_verifier.db.history import history
from keyturn_verifier.db.rows import Row, Rows, finding_row, placed
from keyturn_verifier.db.switch_tables import lease_report, lease_request
from keyturn_verifier.db.tables import evidence, join_token, log, pending_log, segment, segment_body
from keyturn_verifier.differences import Difference, as_bag, by_key, differs, plain
from keyturn_verifier.heads import head_values
from keyturn_verifier.problems import Refusal
from keyturn_verifier.rollup.check import check_sums
from keyturn_verifier.upload import decompress

UNCHECKED: Final = {
    "segment.hours": "which sums to bring up to date; the sums are checked themselves",
    "log.opened_us": "when a log was opened is in its enrolment's leaf; nothing reads this column",
    "evidence.received_us": "when a segment that froze a log came is in its leaf; nothing reads this column",
    "tree_checkpoint.time_us": "only says when the next checkpoint is due",
    "finding.id": "a number of its own, which nothing else names",
    "usage_gap.id": "a number of its own, which nothing else names",
    "join_token.id": "a number of its own; an announced node that names another is found",
    "join_token.created_us": "for people who list tokens",
    "join_token.expires_us": "decides who may join from now on, not what was",
    "join_token.revoked_us": "decides who may join from now on, not what was",
    "join_token.hosts": "decides who may join from now on; less than were used is found",
    "pending_log.expires_us": "decides until when an announced node may begin",
    "reader_token": "who may read: nothing that is read is evidence because of it",
    "finding_closing": "an operator's word about findings, which an audit doesn't hear",
    "maintenance_window": "an operator's word about findings, which an audit doesn't hear",
    "webhook_outbox": "messages that say where to look; no evidence",
    "rollup_state": "which sums there are: with another state others are made, and those are checked",
    "ledger_snapshot.version": "who folds by other rules doesn't read it, and makes another one",
    "alembic_version": "which migrations ran; another one is refused at start",
}
"""Columns and tables that no signed byte fixes, with the reason why it doesn't matter to evidence."""

_OF_A_LOG: Final[tuple[tuple[Table, str, tuple[str, ...], int | None], ...]] = (
    (tables.segment, "segments", ("log_id", "start", "end", "sha256", "frontier", "receipt"), 2),
    (tables.segment_body, "bodies", ("log_id", "start", "receipt_s", "body"), 3),
    (
        *(tables.usage_hour, "usage"),
        ("log_id", "chip", "hour_s", "workload", "inventory_seq", "basis", "time_us", "samples", *FIELDS),
        6,
    ),
    (tables.usage_gap, "gaps", ("log_id", "chip", "from_us", "to_us", "inventory_seq", "cause"), None),
    (tables.inventory, "inventories", ("log_id", "seq", "chips"), 2),
    (tables.chip_listed, "listed", ("log_id", "chip", "start", "boot_id", "mono_us", "time_us"), 3),
    (tables.workload_started, "started", ("log_id", "seq", "workload", "body"), 2),
    (tables.finding, "findings", ("log_id", "code", "severity", "seq", "from_us", "to_us", "detail"), None),
)
"""Table, its rows in :class:`Rows`, their columns, and how many of these are the key; None: rows have none."""
_OF_A_LEAF: Final = (
    (lease_request, "asked", ("log_id", "seq", "leaf", "time_us", "party", "run", "boot_id", "body")),
    (lease_report, "reported", ("log_id", "seq", "leaf", "time_us", "said_us", "body")),
)
"""The same for rows that name the leaf which covers them."""


def check(
    connection: Connection, trust: Trust, given: bytes | None = None, operators: Sequence[OperatorKey] = ()
) -> Iterator[Difference]:
    """Everything that is stored and differs from what the signed bytes give; in one read transaction.

    :param given: a checkpoint of the verifier's log that was kept outside of the database.
    :param operators: whose statements count.
    :raises ProtocolError: ``given`` isn't one of this verifier's.
    """
    tree = Tree()
    yield from check_tree(connection, trust, tree, given)
    said = _said(tree)
    quotes: dict[str, list[Quote]] = {}
    times: dict[tuple[str, int], int] = {}
    ids: set[int] = set()
    for row in connection.execute(select(log).order_by(log.c.id)).all():
        ids.add(row.id)
        yield from _log(connection, row, trust, said.get(row.origin), quotes, times)
    for origin in sorted(said.keys() - {row.origin for row in connection.execute(select(log.c.origin))}):
        yield Difference(log.name, origin, "row is missing: the log was enrolled")
    yield from _strays(connection, ids)
    yield from _evidence(connection, tree)
    yield from _tokens(connection, trust, tree)
    yield from check_statements(connection, trust, operators, tree)
    yield from check_sums(connection, chip_table())
    yield from check_snapshot(connection, Deployment(trust.deployment))
    found, _ = quoted(tree.log(trust), quotes, trust)
    yield from (Difference(tables.tree_leaf.name, one.origin, one.detail) for one in found)


@dataclass(slots=True)
class _Said:
    """What the verifier's log says about one log."""

    enrolment: EnrolmentBody
    before: tuple[EnrolmentBody, int, str] | None
    """The node's log before: its enrolment, and the size and root of it that were receipted at this one's."""
    receipts: list[LeafBody] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """Index and time of the leaf of each of these."""
    frozen: LogFrozenBody | None = None


def _said(tree: Tree) -> dict[str, _Said]:
    said: dict[str, _Said] = {}
    newest: dict[str, EnrolmentBody] = {}
    heads: dict[str, tuple[int, str]] = {}
    for leaf in tree.leaves:
        match leaf:
            case Enrolment(body=body):
                before = newest.get(body.node_id)
                size, root = (
                    (0, EMPTY_ROOT.hex()) if before is None else heads.get(before.origin, (0, EMPTY_ROOT.hex()))
                )
                said.setdefault(body.origin, _Said(body, None if before is None else (before, size, root)))
                newest[body.node_id] = body
            case NodeCheckpoint(body=head) if head.origin in said:
                said[head.origin].receipts.append(head)
                said[head.origin].places.append((leaf.index, leaf.time_us))
                heads[head.origin] = (head.size, head.root)
            case LogFrozen(body=stopped) if stopped.origin in said:
                said[stopped.origin].frozen = stopped
            case _:
                pass
    return said


def _log(
    connection: Connection,
    row: Any,
    trust: Trust,
    said: _Said | None,
    quotes: dict[str, list[Quote]],
    times: dict[tuple[str, int], int],
) -> Iterator[Difference]:
    """One log: replay its segments through the receipt table, and compare every row that this gives."""
    if said is None:
        yield Difference(log.name, row.origin, "row that nothing gives: the log was never enrolled")
        return
    body = said.enrolment
    for name, wanted in {
        **{name: getattr(body, name) for name in ("node_id", "incarnation", "organisation", "site")},
        "public_key": bytes.fromhex(body.public_key),
    }.items():
        if getattr(row, name) != wanted:
            yield differs(log, row.origin, name, wanted, getattr(row, name))
    _, key = check_trust(trust)
    replayed = _Replay(row.id, new_head(parse_origin(row.origin), bytes.fromhex(body.public_key)), times)
    stopped = yield from replayed.run(connection, key, said)
    if stopped:
        return
    quotes[row.origin] = replayed.quotes
    frozen = yield from _frozen(connection, row.id, said.frozen, replayed)
    values = head_values(replace(replayed.head, frozen=frozen)) | {"receipt_s": replayed.receipt_s}
    for name, wanted in values.items():
        if getattr(row, name) != wanted:
            yield differs(log, row.origin, name, wanted, getattr(row, name))
    if replayed.rows.leaves != said.receipts:
        at = _first_difference(replayed.rows.leaves, said.receipts)
        yield Difference(segment.name, row.origin, f"the verifier's log has other receipts, from number {at} on")
    for table, attribute, names, keys in _OF_A_LOG:
        expected: Iterable[Row] = [row[: len(names)] for row in getattr(replayed.rows, attribute)]
        query = select(*(table.c[name] for name in names)).where(table.c.log_id == row.id)
        stored = [plain(found) for found in connection.execute(query)]
        if table is tables.finding:
            # What the verifier noted about itself follows from no segment.
            stored = [found for found in stored if found[1] != FindingCode.VERIFIER_ROLLBACK]
        if keys is None:
            yield from as_bag(table, row.origin, names, map(plain, expected), stored)
        else:
            yield from by_key(table, row.origin, names, keys, map(plain, expected), stored)
    for table, attribute, names in _OF_A_LEAF if len(said.places) == len(replayed.rows.leaves) else ():
        query = select(*(table.c[name] for name in names)).where(table.c.log_id == row.id)
        expected = placed(getattr(replayed.rows, attribute), said.places)
        yield from by_key(table, row.origin, names, 2, expected, map(plain, connection.execute(query)))


@dataclass(slots=True)
class _Replay:
    """A log as its segments give it."""

    log_id: int
    head: Head
    times: dict[tuple[str, int], int]
    """The time of the last entry, by log and size: of this log and those before it."""
    rows: Rows = field(default_factory=Rows)
    receipt_s: int | None = None
    quotes: list[Quote] = field(default_factory=list)

    def run(self, connection: Connection, key: VerifierKey, said: _Said) -> Generator[Difference, None, bool]:
        """Decide about every segment again. Returns whether one was refused, so that nothing after it can be said."""
        origin = self.head.name.origin
        usage: UsageRows = {}
        for stored in connection.execute(_segments(self.log_id).execution_options(yield_per=64)):
            where = f"the segment that begins with entry {stored.start}"
            try:
                if stored.body is None:
                    raise _Refused("its bytes are not there")
                data = decompress(bytes(stored.body))
                part = parse_segment(data)
                if (part.origin, part.start) != (origin, self.head.size):
                    raise _Refused(f"expected {origin} from {self.head.size} on, got {part.origin} from {part.start}")
                decision = decide(self.head, part, data, history(connection, self.log_id))
                if not isinstance(decision, Accepted):
                    raise _Refused(getattr(decision, "detail", type(decision).__name__))
                receipt = bytes(stored.receipt)
                self.receipt_s = verify_cosignature(part.note.text, parse_receipt(receipt), key)
            except (ProtocolError, Refusal, _Refused) as error:
                yield Difference(segment.name, origin, f"{where}: {error}")
                return True
            self.rows.add(self.log_id, decision, bytes(stored.body), self.receipt_s, receipt)
            merge(usage, decision.rows)
            found = list(decision.findings)
            if decision.genesis is not None and said.before is not None:
                enrolment, size, root = said.before
                before = Before(enrolment.incarnation, size, root, self.times.get((enrolment.origin, size)))
                found += at_genesis(origin, decision.genesis, self.head.name.incarnation, before)
            self.times[origin, part.end] = decision.head.chain.time_us
            self.note(found)
            self.quotes += [
                Quote(e.seq, e.time_us, e.body.verifier_checkpoint)
                for e in decision.events
                if isinstance(e, Heartbeat) and e.body.verifier_checkpoint is not None
            ]
            self.head = replace(decision.head, receipt=receipt)
        self.rows.usage = [(self.log_id, *key_[1:], *values) for key_, values in usage.items()]
        return False

    def note(self, found: Iterable[Finding]) -> None:
        self.rows.findings += [finding_row(self.log_id, one) for one in found]


class _Refused(Exception):
    """A stored segment isn't the log's next one."""


def _segments(log_id: int) -> Any:
    return (
        select(segment.c.start, segment.c.receipt, segment_body.c.body)
        .join(
            segment_body,
            (segment_body.c.log_id == segment.c.log_id) & (segment_body.c.start == segment.c.start),
            isouter=True,
        )
        .where(segment.c.log_id == log_id)
        .order_by(segment.c.start)
    )


def _frozen(
    connection: Connection, log_id: int, leaf: LogFrozenBody | None, replayed: _Replay
) -> Generator[Difference, None, FrozenReason | None]:
    """The evidence for which a log was frozen shows it. Returns why it is frozen."""
    if leaf is None:
        return None
    query = select(evidence).where(evidence.c.sha256 == bytes.fromhex(leaf.evidence_sha256))
    row = connection.execute(query).one_or_none()
    where = leaf.origin
    if row is None:
        yield Difference(evidence.name, where, f"row is missing: sha256 {leaf.evidence_sha256}")
        return leaf.reason
    for name, wanted in (("log_id", log_id), ("reason", leaf.reason)):
        if getattr(row, name) != wanted:
            yield differs(evidence, where, name, wanted, getattr(row, name))
    try:
        data = decompress(bytes(row.body))
        part = parse_segment(data)
    except (ProtocolError, Refusal) as error:
        yield Difference(evidence.name, where, f"body: {error}")
        return leaf.reason
    if sha256(data).hexdigest() != leaf.evidence_sha256:
        yield Difference(evidence.name, where, "body: not what its hash says")
        return leaf.reason
    match decide(replayed.head, part, data, history(connection, log_id)):
        case Fork():
            detail = f"the node also signed {part.checkpoint.root.hex()} for size {part.end}"
            replayed.note([finding(FindingCode.FORK, part.origin, detail, seq=part.end - 1)])
        case Invalid(detail=why):
            detail = f"signed entries {part.start} … {part.end - 1} break the format or the chain: {why}"
            replayed.note([finding(FindingCode.INVALID_ENTRIES, part.origin, detail, seq=part.end - 1)])
        case _:
            yield Difference(evidence.name, where, "body: shows nothing against this log")
    return leaf.reason


def _strays(connection: Connection, ids: set[int]) -> Iterator[Difference]:
    """Rows of logs that aren't there, in any table."""
    for table in SQLModel.metadata.sorted_tables:
        if "log_id" in table.c:
            found = set(connection.execute(select(table.c.log_id).distinct()).scalars())
            for log_id in sorted(found - ids):
                yield Difference(table.name, f"log_id {log_id}", "rows of a log that isn't there")
    joined = (segment.c.log_id == segment_body.c.log_id) & (segment.c.start == segment_body.c.start)
    query = select(segment_body.c.log_id, segment_body.c.start).join(segment, joined, isouter=True)
    for row in connection.execute(query.where(segment.c.start.is_(None))):
        yield Difference(segment_body.name, f"log_id {row.log_id}", f"bytes of no segment: start {row.start}")


def _evidence(connection: Connection, tree: Tree) -> Iterator[Difference]:
    named = {bytes.fromhex(leaf.body.evidence_sha256) for leaf in tree.leaves if isinstance(leaf, LogFrozen)}
    for digest in connection.execute(select(evidence.c.sha256)).scalars():
        if bytes(digest) not in named:
            yield Difference(evidence.name, f"sha256 {bytes(digest).hex()}", "row that nothing gives")


def _tokens(connection: Connection, trust: Trust, tree: Tree) -> Iterator[Difference]:
    """Join tokens against the enrolments that used them, and announced nodes against their own names."""
    used: dict[bytes, list[EnrolmentBody]] = {}
    for leaf in tree.leaves:
        if isinstance(leaf, Enrolment) and leaf.body.token_sha256 is not None:
            used.setdefault(bytes.fromhex(leaf.body.token_sha256), []).append(leaf.body)
    for row in connection.execute(select(join_token)):
        enrolled = used.pop(bytes(row.sha256), [])
        where = f"token {row.id}"
        if row.uses != len(enrolled):
            yield differs(join_token, where, "uses", len(enrolled), row.uses)
        if row.hosts < row.uses:
            yield Difference(join_token.name, where, f"good for {row.hosts} hosts, and used by {row.uses}")
        for name in ("organisation", "site"):
            for wanted in {getattr(body, name) for body in enrolled} - {getattr(row, name)}:
                yield differs(join_token, where, name, wanted, getattr(row, name))
    for digest, enrolled in used.items():
        yield Difference(join_token.name, enrolled[0].origin, f"row is missing: enrolled with token {digest.hex()}")
    tokens = set(connection.execute(select(join_token.c.id)).scalars())
    for row in connection.execute(select(pending_log.c.origin, pending_log.c.public_key, pending_log.c.token_id)):
        if row.token_id not in tokens:
            yield Difference(pending_log.name, row.origin, f"announced with token {row.token_id}, which isn't there")
        try:
            whose = parse_origin(row.origin)
            right = (whose.deployment, whose.node_id) == (trust.deployment, node_id_of(bytes(row.public_key)))
        except ProtocolError:
            right = False
        if not right:
            yield Difference(pending_log.name, row.origin, "announced under a key that isn't this node's")


def _first_difference(one: list[LeafBody], other: list[LeafBody]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
