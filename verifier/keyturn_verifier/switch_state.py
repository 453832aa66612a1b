"""This process's fold of the start switch: the leaves of the verifier's log so far, caught up when it is asked.

Under the lock of the verifier's log everything that is committed is exactly the leaves before its size, so a writer
that catches up there decides about the next leaf with all that any replica said before. Nothing is put in here before
it is committed: a transaction that fails leaves nothing to undo.

It begins with what is kept of leases (:mod:`keyturn_verifier.snapshot`), if there is any.
"""

import heapq
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Connection, Row, Select, select

from keyturn_protocol.canonical import parse
from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.entry_switch import LeaseBody, PermitBody
from keyturn_protocol.findings import Finding, FindingCode, finding
from keyturn_protocol.ids import Deployment, Origin
from keyturn_protocol.lease import parse_lease
from keyturn_protocol.leases import Asked
from keyturn_protocol.ledger_state import ledger_of, ledger_state
from keyturn_protocol.lifecycle import State
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Root
from keyturn_protocol.runs import Amend, Decision, Request, Resume, Revoke, Suspend, Withdraw
from keyturn_protocol.statement_base import Statement
from keyturn_protocol.statements import Replacement, parse_payload
from keyturn_protocol.switch import Switch, log_statement
from keyturn_verifier import snapshot
from keyturn_verifier.db.statement_tables import statement
from keyturn_verifier.db.switch_tables import lease_issued, lease_report, lease_request
from keyturn_verifier.db.tables import log
from keyturn_verifier.errors import stored

_LEASES: Final = (
    select(
        *(lease_issued.c.leaf, lease_issued.c.sha256, lease_issued.c.time_us, lease_issued.c.seq, lease_issued.c.note),
        *(lease_request.c.body, lease_request.c.boot_id, lease_request.c.leaf.label("asked_leaf")),
        *(log.c.origin, log.c.organisation, log.c.site),
    )
    .join(
        lease_request,
        (lease_request.c.log_id == lease_issued.c.log_id) & (lease_request.c.seq == lease_issued.c.seq),
    )
    .join(log, log.c.id == lease_issued.c.log_id)
)
_REPORTS: Final = select(
    *(lease_report.c.leaf, lease_report.c.seq, lease_report.c.time_us, lease_report.c.said_us),
    *(lease_report.c.body, log.c.origin),
).join(log, log.c.id == lease_report.c.log_id)


IRREGULAR: Final = 1_000
"""So many findings about leases are kept of one log, the first ones: a host can write as many as it likes, and an audit
has them all."""
_LEAVES: Final = 4_096
"""Whose rows are in memory at one time."""


class Counts(NamedTuple):
    """How many there are, in the log of this verifier."""

    runs: Mapping[State, int]
    leases_open: int
    """Logs that may spend now, of each subject."""
    leases_issued: int
    statements: Mapping[str, int]
    """By kind."""


class SwitchState:
    """The switch, and at which leaf there was news of what. Any thread may ask."""

    def __init__(self, deployment: Deployment, *, resume: bool = True) -> None:
        """
        :param resume: whether to begin with what is kept of leases.
        """
        self._deployment = deployment
        self._resume = resume
        # Taken after the lock of the verifier's log, where both are; nobody takes that one under this one.
        self._lock = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        self._switch = Switch(self._deployment)
        self._size = 0
        self._news: dict[str, int] = {}
        self._authority = -1
        self._requests: list[tuple[int, str]] = []
        self._irregular: list[tuple[str, Finding]] = []
        self._statements: Counter[str] = Counter()
        self._leases = 0
        self._first: dict[str, int] = {}
        """Run → the leaf of its first lease."""
        self._irregular_of: Counter[Origin] = Counter()

    @property
    def size(self) -> int:
        """How many leaves are in it."""
        with self._lock:
            return self._size

    @contextmanager
    def caught_up(self, connection: Connection, size: int, *, locked: bool = False) -> Iterator[Switch]:
        """The switch with all leaves before ``size``, perhaps some after it; nobody moves it meanwhile.

        :param size: of the verifier's log, as ``connection`` sees it.
        :param locked: under the lock of the verifier's log: then there are no others.
        :raises DamagedError: what is stored can't be folded.
        """
        with self._lock:
            if locked and size < self._size:
                self._begin()  # a database that was restored under a running server
            if size > self._size:
                try:
                    self._catch_up(connection, size)
                except BaseException:
                    self._begin()
                    raise
            yield self._switch

    def news(self, run: str | None) -> int:
        """The last leaf that says something about a run, or about everybody: a root or a policy; -1: there is none."""
        with self._lock:
            return max(self._authority, -1 if run is None else self._news.get(run, -1))

    def findings(self) -> list[tuple[str, Finding]]:
        """What was wrong with what nodes said about their leases: the hash of the lease, and the finding."""
        with self._lock:
            return list(self._irregular)

    def counts(self, at_us: int) -> "Counts":
        """How much there is of everything, at the last leaf that this process caught up with."""
        with self._lock:
            accounts = (one for subject in self._switch.ledger.subjects.values() for one in subject.accounts.values())
            return Counts(
                Counter(self._switch.state_of(run, at_us) for run in self._switch.runs.values()),
                sum(one.expires_us > at_us for one in accounts),
                self._leases,
                Counter(self._statements),
            )

    def requests(self, after: int) -> list[tuple[int, str]]:
        """Leaf and hash of every request whose leaf is after one."""
        with self._lock:
            return self._requests[bisect_right(self._requests, after, key=lambda one: one[0]) :]

    def requested(self, run: str) -> int:
        """The leaf of a request that the switch has."""
        return next(leaf for leaf, digest in reversed(self.requests(-1)) if digest == run)

    def kept(self, connection: Connection) -> snapshot.Kept:
        """What leases made of it.

        :param connection: sees the last leaf that is in it.
        :raises LookupError: it doesn't.
        """
        with self._lock:
            runs = self._switch.runs
            return snapshot.Kept(
                deployment=self._deployment,
                size=self._size,
                last=snapshot.last_of(connection, self._size),
                index=self._switch.index,
                ledger=ledger_state(self._switch.ledger),
                leases=self._leases,
                first={run: (leaf, runs[run].started_us or 0) for run, leaf in self._first.items()},
                irregular=list(self._irregular),
                irregular_of=dict(self._irregular_of),
            )

    @stored
    def _catch_up(self, connection: Connection, size: int) -> None:
        if not self._size and self._resume and (kept := snapshot.load(connection, self._deployment, size)) is not None:
            try:
                self._go_on_from(kept, connection)
            except snapshot.DAMAGED as error:
                snapshot.unused(error)
                self._begin()
        for start in range(self._size, size, _LEAVES):
            end = min(size, start + _LEAVES)
            _take(
                (_rows(connection, select(statement), statement.c.leaf, start, end), self._statement),
                (_rows(connection, _LEASES, lease_issued.c.leaf, start, end), self._lease),
                (_rows(connection, _REPORTS, lease_report.c.leaf, start, end, lease_report.c.seq), self._report),
            )
            self._size = end

    def _go_on_from(self, kept: snapshot.Kept, connection: Connection) -> None:
        """Statements, and of leases the first of each run alone; the rest is in what is kept."""
        firsts = sorted(_First(leaf, time_us, run) for run, (leaf, time_us) in kept.first.items())
        _take(
            (_rows(connection, select(statement), statement.c.leaf, 0, kept.size), self._statement),
            (firsts, self._begun),
        )
        self._switch.ledger, self._switch.index = ledger_of(kept.ledger), kept.index
        self._leases = kept.leases
        self._irregular, self._irregular_of = list(kept.irregular), Counter(kept.irregular_of)
        self._size = kept.size

    def _begun(self, first: "_First") -> None:
        self._switch.begin(first.run, first.leaf, first.time_us)
        self._first[first.run] = self._news[first.run] = first.leaf

    def _statement(self, row: Any) -> None:
        self._statements[row.kind] += 1
        envelope = parse_envelope(row.envelope)
        said = parse_payload(envelope.kind, envelope.payload)
        if isinstance(said, Replacement) and self._switch.standing is None:
            self._switch.replace(said)  # signed by keys of the trust file
            return
        logged = log_statement(envelope, said, row.leaf, row.time_us, self._switch.authority)
        self._switch.take(logged)
        if isinstance(logged.statement, Root | Policy):
            self._authority = logged.index
        elif (run := run_about(self._switch, logged.hash, logged.statement)) is not None:
            self._news[run] = logged.index
            if run == logged.hash:
                self._requests.append((logged.index, run))

    def _lease(self, row: Any) -> None:
        """Whether it was signed and might be granted is for whoever issued it, and for ``check``."""
        lease = parse_lease(row.note).lease
        body: PermitBody = parse(row.body, PermitBody)
        origin = Origin(row.origin)
        asked = Asked(origin, row.seq, row.boot_id, body, row.organisation, row.site, frozenset(), row.asked_leaf)
        first = lease.run is not None and self._switch.run_of(lease.run).started_us is None
        self._leases += 1
        self._switch.grant(lease, row.sha256.hex(), asked, row.leaf, row.time_us)
        if first and lease.run is not None:
            self._first[lease.run] = self._news[lease.run] = row.leaf

    def _report(self, row: Any) -> None:
        body: LeaseBody = parse(row.body, LeaseBody)
        origin = Origin(row.origin)
        for code, detail in self._switch.report(origin, row.seq, body, row.leaf, row.time_us):
            self._irregular_of[origin] += 1
            if self._irregular_of[origin] > IRREGULAR:
                return
            at_us = row.said_us
            found = finding(FindingCode(code), row.origin, detail, seq=row.seq, from_us=at_us, to_us=at_us)
            self._irregular.append((body.lease, found))


class _First(NamedTuple):
    """A run's first lease."""

    leaf: int
    time_us: int
    run: str


def _rows(
    connection: Connection, query: "Select[Any]", leaf: "Column[int]", start: int, end: int, *then: "Column[int]"
) -> "Sequence[Row[Any]]":
    """Rows of leaves ``start`` … ``end - 1`` in their order."""
    return connection.execute(query.where(leaf >= start, leaf < end).order_by(leaf, *then)).all()


def _take(*parts: "tuple[Sequence[Any], Callable[[Any], None]]") -> None:
    """Hand rows of all parts to who takes them, in the order of their leaves."""
    rows = ([(row, take) for row in found] for found, take in parts)
    for row, take in heapq.merge(*rows, key=lambda one: one[0].leaf):
        take(row)


def run_about(switch: Switch, digest: str, said: Statement) -> str | None:
    """The hash of the run that a statement is about; None for one that is about no single run.

    :raises Refused: ``unknown``.
    """
    match said:
        case Request():
            return digest
        case Decision() | Withdraw():
            return switch.run_of(said.subject).hash
        case Suspend() | Resume() | Revoke() | Amend():
            return switch.run_of(said.run).hash
        case _:
            return None
