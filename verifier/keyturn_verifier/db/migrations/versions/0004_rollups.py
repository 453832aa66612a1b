"""Sums kept ready for reading, and the indexes that make and page through them.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


BY_BYTES = sa.String().with_variant(sa.String(collation="C"), "postgresql")
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def big(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), nullable=False)


def upgrade() -> None:
    op.add_column("segment", sa.Column("hours", sa.LargeBinary(), nullable=True))
    op.drop_index("ix_usage_gap_log_id", "usage_gap")
    op.create_index("usage_gap_by_log", "usage_gap", ["log_id", "id"])
    op.create_index("chip_listed_by_chip", "chip_listed", ["chip", "log_id"])
    op.create_index("workload_started_by_log", "workload_started", ["log_id", "workload"])
    op.create_table(
        "rollup_state",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        big("size"),
        big("built"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "rollup_place",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("organisation", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "rollup_chip",
        sa.Column("number", ID, autoincrement=False, nullable=False),
        sa.Column("chip", BY_BYTES, nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("chip"),
    )
    op.create_table(
        "rollup_day",
        *(big("log_id"), big("day_s")),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("log_id", "day_s"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rollup_log",
        sa.Column("log_id", ID, autoincrement=False, nullable=False),
        big("gap_id"),
        sa.PrimaryKeyConstraint("log_id"),
    )
    op.create_table(
        "rollup_gap",
        *(big("log_id"), big("from_us"), big("to_us"), big("gap_id")),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("log_id", "from_us", "to_us", "gap_id"),
    )
    op.create_table(
        "rollup_cell",
        big("level"),
        sa.Column("workload", BY_BYTES, nullable=False),
        *(big("from_s"), big("place")),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "workload", "from_s", "place"),
        sqlite_with_rowid=False,
    )
    op.create_index("rollup_cell_by_time", "rollup_cell", ["level", "from_s", "workload"])


def downgrade() -> None:
    raise NotImplementedError("evidence is not thrown away: there is no way back")
