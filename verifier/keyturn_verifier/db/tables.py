"""The tables. What another module calls a column is what it is called here.

Integers that count something are BIGINT. ``log_id`` stands for an origin wherever rows are many. Bytes that are
verified elsewhere (entries, notes, leaves) are stored as they are and never edited.
"""

from typing import Final

from sqlalchemy import BigInteger, Index, Integer, Table, UniqueConstraint
from sqlmodel import Field, SQLModel

from keyturn_verifier.db.tree_tables import tree_checkpoint as tree_checkpoint
from keyturn_verifier.db.tree_tables import tree_head as tree_head
from keyturn_verifier.db.tree_tables import tree_leaf as tree_leaf
from keyturn_verifier.db.tree_tables import tree_node as tree_node

_ID: Final = BigInteger().with_variant(Integer(), "sqlite")


def _big(**options: object) -> int:
    return Field(sa_type=BigInteger, **options)  # type: ignore[call-overload,no-any-return]


def _some(**options: object) -> int | None:
    return Field(default=None, sa_type=BigInteger, **options)  # type: ignore[call-overload,no-any-return]


def _key(**options: object) -> int | None:
    return Field(default=None, primary_key=True, sa_type=_ID, **options)  # type: ignore[call-overload,no-any-return]


class Log(SQLModel, table=True):
    """A node's log and all that :class:`keyturn_protocol.receive.Head` needs of it."""

    __tablename__ = "log"
    __table_args__ = (UniqueConstraint("node_id", "incarnation"),)

    id: int | None = _key()
    origin: str = Field(unique=True)
    node_id: str
    incarnation: int = _big()
    public_key: bytes
    organisation: str
    site: str
    opened_us: int = _big()
    size: int = _big()
    frontier: bytes
    chain: bytes
    """Canonical JSON of ``ChainState``."""
    fold: bytes
    """Canonical JSON of ``FoldState``."""
    note: bytes | None = None
    receipt: bytes | None = None
    frozen: str | None = None
    receipt_s: int | None = _some()


class PendingLog(SQLModel, table=True):
    """A node that was announced with a join token and has not sent its genesis yet."""

    __tablename__ = "pending_log"

    origin: str = Field(primary_key=True)
    public_key: bytes
    token_id: int = _big(foreign_key="join_token.id", index=True)
    expires_us: int = _big(index=True)


class Segment(SQLModel, table=True):
    """A receipted segment: entries ``start`` … ``end - 1``."""

    __tablename__ = "segment"

    log_id: int = _big(primary_key=True, foreign_key="log.id")
    start: int = _big(primary_key=True)
    end: int = _big()
    sha256: bytes
    """Of the decoded bytes."""
    frontier: bytes
    """Of the tree of ``end`` entries."""
    receipt: bytes
    hours: bytes | None = None
    """The UTC hours of its usage rows: POSIX seconds, 8 bytes each. None: written before this was kept."""


class SegmentBody(SQLModel, table=True):
    """A segment's bytes, apart from what is kept for ever; on PostgreSQL a partition for each month of receipts."""

    __tablename__ = "segment_body"
    __table_args__ = ({"postgresql_partition_by": "RANGE (receipt_s)"},)

    log_id: int = _big(primary_key=True, foreign_key="log.id")
    start: int = _big(primary_key=True)
    receipt_s: int = _big(primary_key=True)
    """The receipt's time."""
    body: bytes
    """One zstd frame of the decoded bytes."""


class UsageHour(SQLModel, table=True):
    """Raw integer integrals; see :mod:`keyturn_protocol.usage`. A field in the basis is NULL.

    On PostgreSQL a partition for each month of hours.
    """

    __tablename__ = "usage_hour"
    __table_args__ = ({"sqlite_with_rowid": False, "postgresql_partition_by": "RANGE (hour_s)"},)

    log_id: int = _big(primary_key=True, foreign_key="log.id")
    chip: str = Field(primary_key=True)
    hour_s: int = _big(primary_key=True)
    workload: str = Field(primary_key=True)
    inventory_seq: int = _big(primary_key=True)
    basis: int = _big(primary_key=True)
    time_us: int = _big()
    samples: int = _big()
    energy_mj: int | None = _some()
    busy_us: int | None = _some()
    elapsed_mcycles: int | None = _some()
    active_mcycles: int | None = _some()
    tensor_mcycles: int | None = _some()
    hmma_mcycles: int | None = _some()
    imma_mcycles: int | None = _some()
    dmma_mcycles: int | None = _some()
    fp64_mcycles: int | None = _some()
    fp32_mcycles: int | None = _some()
    fp16_mcycles: int | None = _some()
    dram_busy_us: int | None = _some()
    nvlink_tx_kib: int | None = _some()
    nvlink_rx_kib: int | None = _some()
    pcie_tx_kib: int | None = _some()
    pcie_rx_kib: int | None = _some()
    throttled_us: int | None = _some()
    memory_mib_max: int | None = _some()
    clock_mhz_max: int | None = _some()


class UsageGap(SQLModel, table=True):
    """Time of one chip that no usage entry covers, inside of a log."""

    __tablename__ = "usage_gap"

    id: int | None = _key()
    log_id: int = _big(foreign_key="log.id")
    chip: str
    from_us: int = _big()
    to_us: int = _big()
    inventory_seq: int = _big()
    cause: str | None = None


class InventoryEntry(SQLModel, table=True):
    """The chips of an inventory entry, as canonical JSON."""

    __tablename__ = "inventory"

    log_id: int = _big(primary_key=True, foreign_key="log.id")
    seq: int = _big(primary_key=True)
    chips: bytes


class ChipListed(SQLModel, table=True):
    """The first entry of a segment that lists a chip or retires it. An empty ``chip`` is the whole host.

    From the first one of a log on, an earlier log of its node owes the chip's time no more.
    """

    __tablename__ = "chip_listed"

    log_id: int = _big(primary_key=True, foreign_key="log.id")
    chip: str = Field(primary_key=True)
    start: int = _big(primary_key=True)
    boot_id: str
    mono_us: int = _big()
    time_us: int = _big()


class StartedEntry(SQLModel, table=True):
    """The body of a ``workload_started`` entry, as canonical JSON."""

    __tablename__ = "workload_started"

    log_id: int = _big(primary_key=True, foreign_key="log.id")
    seq: int = _big(primary_key=True)
    workload: str = Field(index=True)
    body: bytes


class StoredFinding(SQLModel, table=True):
    """A finding that rests on entries; those that rest on totals are made when they are read."""

    __tablename__ = "finding"

    id: int | None = _key()
    log_id: int = _big(foreign_key="log.id", index=True)
    code: str
    severity: str
    seq: int | None = _some()
    from_us: int | None = _some()
    to_us: int | None = _some()
    detail: str


class Evidence(SQLModel, table=True):
    """A segment that froze a log."""

    __tablename__ = "evidence"

    sha256: bytes = Field(primary_key=True)
    log_id: int = _big(foreign_key="log.id", index=True)
    reason: str
    body: bytes
    received_us: int = _big()


class JoinToken(SQLModel, table=True):
    """A right to enrol ``hosts`` nodes."""

    __tablename__ = "join_token"

    id: int | None = _key()
    sha256: bytes = Field(unique=True)
    organisation: str
    site: str
    hosts: int = _big()
    uses: int = _big()
    created_us: int = _big()
    expires_us: int = _big()
    revoked_us: int | None = _some()


class ReaderToken(SQLModel, table=True):
    """A right to read, for a role."""

    __tablename__ = "reader_token"

    id: int | None = _key()
    sha256: bytes = Field(unique=True)
    role: str
    created_us: int = _big()
    expires_us: int = _big()
    revoked_us: int | None = _some()


def _table(model: type[SQLModel]) -> Table:
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    assert isinstance(table, Table)  # noqa: S101
    return table


log = _table(Log)
pending_log = _table(PendingLog)
segment = _table(Segment)
segment_body = _table(SegmentBody)
usage_hour = _table(UsageHour)
usage_gap = _table(UsageGap)
inventory = _table(InventoryEntry)
chip_listed = _table(ChipListed)
workload_started = _table(StartedEntry)
finding = _table(StoredFinding)
evidence = _table(Evidence)
join_token = _table(JoinToken)
reader_token = _table(ReaderToken)

Index("usage_hour_by_workload", usage_hour.c.workload, usage_hour.c.hour_s)
Index("usage_gap_by_log", usage_gap.c.log_id, usage_gap.c.id)
Index("chip_listed_by_chip", chip_listed.c.chip, chip_listed.c.log_id)
Index("workload_started_by_log", workload_started.c.log_id, workload_started.c.workload)
