"""The one write transaction of ingest: a batch of decided segments, all or nothing.

Lock order, the same everywhere, so that no two transactions wait for each other:

(a) logs by id; a change whose log has moved since it was decided is left out, and decided again;
(b) tokens by id, new logs by origin, evidence, heads, segments, usage by key, findings: all under (a), or nobody's;
(c) last, the verifier's log, where all replicas meet until the commit.

On SQLite ``BEGIN IMMEDIATE`` takes the only lock there is before (a).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from keyturn_protocol.cosignature import Cosignature, cosignature_line, ed25519_message
from keyturn_protocol.findings import Before, Finding, FindingCode, at_genesis, finding
from keyturn_protocol.leaves import EnrolmentBody, LogFrozenBody
from keyturn_protocol.receive import Accepted, Fork, FrozenReason, Head, Invalid
from keyturn_protocol.segment import Segment
from keyturn_verifier import translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.db.engine import is_postgres, writing
from keyturn_verifier.db.locks import lock_logs
from keyturn_verifier.db.rows import Rows, finding_row, placed
from keyturn_verifier.db.statements import Statements
from keyturn_verifier.db.tables import evidence, log
from keyturn_verifier.enrolment import Joining, lock_tokens, token_refusal, use_token
from keyturn_verifier.errors import StaleHead
from keyturn_verifier.heads import Expected, Known, head_values
from keyturn_verifier.keyfiles import SigningKey
from keyturn_verifier.problems import Refusal
from keyturn_verifier.rollback import Shown, lost, shown_receipt
from keyturn_verifier.upload import Upload


@dataclass(frozen=True, slots=True)
class Change:
    """A decision that writes, with what it was decided against."""

    upload: Upload
    against: Known | Expected
    decision: Accepted | Fork | Invalid
    shown: bytes | None = None
    """A header that may hold a receipt for this very segment: see :mod:`keyturn_verifier.rollback`."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is durable for a change: the log's new head, with its receipt if the segment was accepted."""

    known: Known


@dataclass(frozen=True, slots=True)
class Moved:
    """Nothing was written for a change: its log is not where it was decided. Decide again."""


class Committer:
    """Writes batches to one database with one receipt key."""

    def __init__(self, engine: Engine, receipt_key: SigningKey, clock: Clock) -> None:
        self._engine = engine
        self._key = receipt_key
        self._clock = clock
        self._statements = Statements(engine)

    def commit(self, changes: Sequence[Change]) -> list[Written | Moved | Refusal]:
        """Write ``changes``, at most one a node, in one transaction; the answers in the same order.

        When this returns, every receipt in it is durable and may be released.

        :raises OutcomeUnknown: COMMIT failed; the batch may or may not be there.
        """
        with writing(self._engine) as connection:
            locked = lock_logs(connection, [change.against for change in changes])
            # No receipt is older than the one before it of its log, whatever the wall clock does: that one's leaf is
            # committed and seen here, under the log's lock. Nor is it newer than its own leaf: see `append`.
            now_us = max(self._clock(), translog.newest_us(connection))
            rows = Rows()
            held = [change for change in changes if locked.holds(change.against)]
            lock_tokens(connection, [t.token_id for change in held if (t := _joining(change)) is not None])
            answers = {id(change): self._one(connection, change, rows, now_us) for change in _by_log(held)}
            self._write(connection, rows)
            time_us = max(now_us, rows.newest_s * 1_000_000)
            if rows.asked or rows.reported:
                self._place(connection, rows, time_us)
            translog.append(connection, rows.leaves, time_us)
        return [answers.get(id(change), Moved()) for change in changes]

    def _one(self, connection: Connection, change: Change, rows: Rows, now_us: int) -> Written | Moved | Refusal:
        """Open the log if need be, and gather what the change adds."""
        against = change.against
        findings: list[Finding] = []
        receipt_s: int | None = None
        if isinstance(against, Expected):
            opened = self._open(connection, against, change, rows, now_us, findings)
            if isinstance(opened, Refusal | Moved):
                return opened
            log_id = opened
        else:
            log_id = against.log_id
        match change.decision:
            case Accepted() as accepted:
                shown = shown_receipt(change.shown, accepted.segment, self._key.public)
                head, receipt_s = self._accepted(log_id, change.upload, accepted, rows, now_us, shown)
                findings += accepted.findings
                if shown is not None:
                    findings += lost(connection, log_id, accepted.segment, shown, now_us)
            case Fork(segment=segment):
                detail = f"the node also signed {segment.checkpoint.root.hex()} for size {segment.end}"
                findings.append(finding(FindingCode.FORK, segment.origin, detail, seq=segment.end - 1))
                head = self._frozen(connection, log_id, change, "fork", rows, now_us)
            case Invalid(segment=segment, detail=why):
                detail = f"signed entries {segment.start} … {segment.end - 1} break the format or the chain: {why}"
                findings.append(finding(FindingCode.INVALID_ENTRIES, segment.origin, detail, seq=segment.end - 1))
                head = self._frozen(connection, log_id, change, "invalid_entries", rows, now_us)
            case _:
                assert_never(change.decision)
        values = head_values(head)
        rows.moved.append((*values.values(), receipt_s, log_id, against.head.size))
        rows.findings += [finding_row(log_id, f) for f in findings]
        return Written(Known(log_id, head))

    def _open(
        self,
        connection: Connection,
        against: Expected,
        change: Change,
        rows: Rows,
        now_us: int,
        findings: list[Finding],
    ) -> int | Moved | Refusal:
        """Enrol a log: use up its token, or follow the node's earlier log."""
        name, opening = against.head.name, against.opening
        if isinstance(opening, Joining):
            refusal = token_refusal(connection, opening, now_us)
            if refusal is not None:
                # Used up by another replica for this very node, perhaps, while the lock on the token was waited for.
                there = connection.execute(select(log.c.id).where(log.c.origin == name.origin)).first()
                return refusal if there is None else Moved()
        genesis = change.decision.genesis if isinstance(change.decision, Accepted) else None
        make = postgresql.insert if is_postgres(connection) else sqlite.insert
        row = make(log).values(
            origin=name.origin,
            node_id=name.node_id,
            incarnation=name.incarnation,
            public_key=against.head.public_key,
            organisation=opening.organisation,
            site=opening.site,
            opened_us=now_us,
            **head_values(against.head),
        )
        # Waits for another replica that is opening the same log, and then finds it there.
        log_id = connection.execute(row.on_conflict_do_nothing().returning(log.c.id)).scalar()
        if log_id is None:
            return Moved()
        if isinstance(opening, Joining):
            use_token(connection, name, opening)
        rows.leaves.append(
            EnrolmentBody(
                origin=name.origin,
                node_id=name.node_id,
                incarnation=name.incarnation,
                public_key=against.head.public_key.hex(),
                organisation=opening.organisation,
                site=opening.site,
                token_sha256=opening.token_sha256.hex() if isinstance(opening, Joining) else None,
            )
        )
        if genesis is not None and not isinstance(opening, Joining):
            before = Before(opening.incarnation, opening.size, opening.root.hex(), opening.time_us)
            findings += at_genesis(name.origin, genesis, name.incarnation, before)
        return int(log_id)

    def _accepted(
        self, log_id: int, upload: Upload, accepted: Accepted, rows: Rows, now_us: int, shown: Shown | None
    ) -> tuple[Head, int]:
        """Sign the receipt, inside the transaction that makes it true; unless there is one already. With its time."""
        receipt_s, receipt = self._receipt(accepted.segment, now_us) if shown is None else (shown.time_s, shown.receipt)
        rows.add(log_id, accepted, upload.frame, receipt_s, receipt)
        return replace(accepted.head, receipt=receipt), receipt_s

    def _receipt(self, segment: Segment, now_us: int) -> tuple[int, bytes]:
        """A new receipt and its time."""
        receipt_s = now_us // 1_000_000
        signature = self._key.sign(ed25519_message(segment.note.text, receipt_s))
        return receipt_s, cosignature_line(self._key.public, Cosignature(receipt_s, signature)).to_bytes()

    def _frozen(
        self, connection: Connection, log_id: int, change: Change, reason: FrozenReason, rows: Rows, now_us: int
    ) -> Head:
        """Keep what the node must not have signed, and take nothing more from it."""
        segment, digest = change.upload.segment, change.upload.sha256
        connection.execute(
            insert(evidence).values(
                sha256=digest, log_id=log_id, reason=reason, body=change.upload.frame, received_us=now_us
            )
        )
        rows.leaves.append(
            LogFrozenBody(
                origin=segment.origin,
                reason=reason,
                size=segment.end,
                signed_root=segment.checkpoint.root.hex(),
                evidence_sha256=digest.hex(),
            )
        )
        return replace(change.against.head, frozen=reason)

    def _write(self, connection: Connection, rows: Rows) -> None:
        run = self._statements
        if run.move.run(connection, rows.moved) != len(rows.moved):
            raise StaleHead("a log moved under its lock")
        run.segments.run(connection, rows.segments)
        run.bodies.run(connection, rows.bodies)
        run.usage.run(connection, sorted(rows.usage, key=lambda row: row[:6]))
        run.gaps.run(connection, rows.gaps)
        run.inventories.run(connection, rows.inventories)
        run.listed.run(connection, rows.listed)
        run.started.run(connection, rows.started)
        run.findings.run(connection, rows.findings)

    def _place(self, connection: Connection, rows: Rows, time_us: int) -> None:
        """Rows that name their leaf: its index is known under the last lock."""
        head = translog.lock(connection)
        leaves = [(head.size + at, max(time_us, head.time_us)) for at in range(len(rows.leaves))]
        self._statements.asked.run(connection, placed(rows.asked, leaves))
        self._statements.reported.run(connection, placed(rows.reported, leaves))


def _joining(change: Change) -> Joining | None:
    against = change.against
    return against.opening if isinstance(against, Expected) and isinstance(against.opening, Joining) else None


def _by_log(changes: Sequence[Change]) -> list[Change]:
    """Logs in the order of their ids, then the ones that are yet to be opened, by origin."""
    return sorted(
        changes,
        key=lambda c: (0, c.against.log_id, "") if isinstance(c.against, Known) else (1, 0, c.against.head.name.origin),
    )
