"""The first schema.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "join_token",
        sa.Column("id", ID, nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("organisation", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("hosts", sa.BigInteger(), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_table(
        "log",
        sa.Column("id", ID, nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("incarnation", sa.BigInteger(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("organisation", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("opened_us", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("chain", sa.LargeBinary(), nullable=False),
        sa.Column("fold", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=True),
        sa.Column("receipt", sa.LargeBinary(), nullable=True),
        sa.Column("frozen", sa.String(), nullable=True),
        sa.Column("receipt_s", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("node_id", "incarnation"),
        sa.UniqueConstraint("origin"),
    )
    op.create_table(
        "reader_token",
        sa.Column("id", ID, nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_table(
        "tree_checkpoint",
        sa.Column("size", ID, autoincrement=False, nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("size"),
    )
    op.create_table(
        "tree_head",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "tree_leaf",
        sa.Column("index", ID, autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("index"),
    )
    op.create_table(
        "tree_node",
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "index"),
    )
    op.create_table(
        "evidence",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("sha256"),
    )
    with op.batch_alter_table("evidence", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_evidence_log_id"), ["log_id"], unique=False)

    op.create_table(
        "finding",
        sa.Column("id", ID, nullable=False),
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("severity", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("from_us", sa.BigInteger(), nullable=True),
        sa.Column("to_us", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("finding", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_finding_log_id"), ["log_id"], unique=False)

    op.create_table(
        "chip_listed",
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("chip", sa.String(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("mono_us", sa.BigInteger(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "chip", "start"),
    )
    op.create_table(
        "inventory",
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("chips", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "seq"),
    )
    op.create_table(
        "pending_log",
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("token_id", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["token_id"],
            ["join_token.id"],
        ),
        sa.PrimaryKeyConstraint("origin"),
    )
    with op.batch_alter_table("pending_log", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pending_log_expires_us"), ["expires_us"], unique=False)
        batch_op.create_index(batch_op.f("ix_pending_log_token_id"), ["token_id"], unique=False)

    op.create_table(
        "segment",
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("end", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("receipt", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "start"),
    )
    op.create_table(
        "segment_body",
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("receipt_s", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "start", "receipt_s"),
        postgresql_partition_by="RANGE (receipt_s)",
    )
    op.create_table(
        "usage_gap",
        sa.Column("id", ID, nullable=False),
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("chip", sa.String(), nullable=False),
        sa.Column("from_us", sa.BigInteger(), nullable=False),
        sa.Column("to_us", sa.BigInteger(), nullable=False),
        sa.Column("inventory_seq", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("usage_gap", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_usage_gap_log_id"), ["log_id"], unique=False)

    op.create_table(
        "usage_hour",
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("chip", sa.String(), nullable=False),
        sa.Column("hour_s", sa.BigInteger(), nullable=False),
        sa.Column("workload", sa.String(), nullable=False),
        sa.Column("inventory_seq", sa.BigInteger(), nullable=False),
        sa.Column("basis", sa.BigInteger(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True),
        sa.Column("busy_us", sa.BigInteger(), nullable=True),
        sa.Column("elapsed_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("active_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("tensor_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("hmma_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("imma_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("dmma_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("fp64_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("fp32_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("fp16_mcycles", sa.BigInteger(), nullable=True),
        sa.Column("dram_busy_us", sa.BigInteger(), nullable=True),
        sa.Column("nvlink_tx_kib", sa.BigInteger(), nullable=True),
        sa.Column("nvlink_rx_kib", sa.BigInteger(), nullable=True),
        sa.Column("pcie_tx_kib", sa.BigInteger(), nullable=True),
        sa.Column("pcie_rx_kib", sa.BigInteger(), nullable=True),
        sa.Column("throttled_us", sa.BigInteger(), nullable=True),
        sa.Column("memory_mib_max", sa.BigInteger(), nullable=True),
        sa.Column("clock_mhz_max", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "chip", "hour_s", "workload", "inventory_seq", "basis"),
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (hour_s)",
    )
    with op.batch_alter_table("usage_hour", schema=None) as batch_op:
        batch_op.create_index("usage_hour_by_workload", ["workload", "hour_s"], unique=False)

    op.create_table(
        "workload_started",
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("workload", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["log.id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "seq"),
    )
    with op.batch_alter_table("workload_started", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_workload_started_workload"), ["workload"], unique=False)

    if op.get_context().dialect.name == "postgresql":
        # What falls into no month: an hour long ago, or a month that nobody made in time.
        op.execute("CREATE TABLE segment_body_other PARTITION OF segment_body DEFAULT")
        op.execute("CREATE TABLE usage_hour_other PARTITION OF usage_hour DEFAULT")
        # Bodies are compressed already.
        op.execute("ALTER TABLE segment_body ALTER COLUMN body SET STORAGE EXTERNAL")


def downgrade() -> None:
    raise NotImplementedError("evidence is not thrown away: there is no way back")
