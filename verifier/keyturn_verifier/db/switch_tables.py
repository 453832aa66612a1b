"""The start switch: what nodes asked for and said about leases, which were issued, what commitments open to, messages
that are to be sent, and what leases add up to. Rows of the first three follow from signed bytes and are never edited;
the last is a cache.
"""

from typing import Final

from sqlalchemy import BigInteger, Index, Integer, Table, UniqueConstraint
from sqlmodel import Field, SQLModel

_ID: Final = BigInteger().with_variant(Integer(), "sqlite")


def _big(**options: object) -> int:
    return Field(sa_type=BigInteger, **options)  # type: ignore[call-overload,no-any-return]


class LeaseRequest(SQLModel, table=True):
    """A ``permit`` entry: a node asks for a lease."""

    __tablename__ = "lease_request"

    log_id: int = _big(primary_key=True, foreign_key="log.id")
    seq: int = _big(primary_key=True)
    leaf: int = _big()
    """The index of the ``node_checkpoint`` that covers it."""
    time_us: int = _big()
    """Of that leaf: since when the node waits."""
    party: str
    """A hash of what those who start together have in common: kind, run or lineage, group, how many."""
    run: str | None = None
    """The hash of the run's request; none for an allowance."""
    boot_id: str
    body: bytes
    """Of the entry, canonical JSON."""


class LeaseReport(SQLModel, table=True):
    """A ``lease`` entry: a node says what it has been charged."""

    __tablename__ = "lease_report"

    log_id: int = _big(primary_key=True, foreign_key="log.id")
    seq: int = _big(primary_key=True)
    leaf: int = _big(index=True)
    """The index of the ``node_checkpoint`` that covers it: it counts from there on."""
    time_us: int = _big()
    """Of that leaf."""
    said_us: int = _big()
    """Of the entry."""
    body: bytes
    """Of the entry, canonical JSON."""


class LeaseIssued(SQLModel, table=True):
    """A lease, by the index of its leaf; one at most for an entry that asks for one."""

    __tablename__ = "lease_issued"
    __table_args__ = (UniqueConstraint("log_id", "seq"),)

    leaf: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    sha256: bytes = Field(unique=True)
    """Of its text."""
    kind: str
    time_us: int = _big()
    log_id: int = _big(foreign_key="log.id")
    seq: int = _big()
    run: str | None = Field(default=None, index=True)
    """The hash of the run's request; none for an allowance."""
    note: bytes


class Opening(SQLModel, table=True):
    """A value that a commitment of a run opens to. Whoever has it may give it; nobody is believed."""

    __tablename__ = "opening"

    run: str = Field(primary_key=True)
    commitment: bytes = Field(primary_key=True)
    part: str = Field(primary_key=True)
    salt: bytes
    value: bytes
    """Canonical JSON."""


class WebhookMessage(SQLModel, table=True):
    """A message that was not delivered yet. No evidence rests on it."""

    __tablename__ = "webhook_outbox"

    id: int | None = Field(default=None, primary_key=True, sa_type=_ID)
    url: str
    message: str
    """Its id for the receiver, the same however often it is sent."""
    body: bytes
    created_us: int = _big()
    next_us: int = _big()
    """When it is sent (again)."""
    tries: int = _big()


class LedgerSnapshot(SQLModel, table=True):
    """What leases add up to at some size of the verifier's log: one row, written over. See
    :mod:`keyturn_verifier.snapshot`."""

    __tablename__ = "ledger_snapshot"

    id: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    version: str
    """Of the rules that it was folded by."""
    size: int = _big()
    """Leaves of the verifier's log that are in it."""
    body: bytes


def _table(model: type[SQLModel]) -> Table:
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    assert isinstance(table, Table)  # noqa: S101
    return table


lease_request = _table(LeaseRequest)
lease_report = _table(LeaseReport)
lease_issued = _table(LeaseIssued)
opening = _table(Opening)
webhook_outbox = _table(WebhookMessage)
ledger_snapshot = _table(LedgerSnapshot)

Index("lease_request_by_party", lease_request.c.party, lease_request.c.time_us)
Index("lease_request_by_run", lease_request.c.run, lease_request.c.time_us)
Index("webhook_outbox_by_time", webhook_outbox.c.url, webhook_outbox.c.next_us)
