"""The start switch: which run a statement is about, requests for leases, leases, reports, openings; webhooks.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def big(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), nullable=False)


def text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.String(), nullable=False)


def data(name: str) -> "sa.Column[bytes]":
    return sa.Column(name, sa.LargeBinary(), nullable=False)


def upgrade() -> None:
    op.add_column("statement", sa.Column("run", sa.String(), nullable=True))
    op.create_index("ix_statement_run", "statement", ["run"])
    op.create_table(
        "lease_request",
        *(big("log_id"), big("seq"), big("leaf"), big("time_us"), text("party")),
        *(sa.Column("run", sa.String(), nullable=True), text("boot_id"), data("body")),
        sa.ForeignKeyConstraint(["log_id"], ["log.id"]),
        sa.PrimaryKeyConstraint("log_id", "seq"),
    )
    op.create_index("lease_request_by_party", "lease_request", ["party", "time_us"])
    op.create_index("lease_request_by_run", "lease_request", ["run", "time_us"])
    op.create_table(
        "lease_report",
        *(big("log_id"), big("seq"), big("leaf"), big("time_us"), big("said_us"), data("body")),
        sa.ForeignKeyConstraint(["log_id"], ["log.id"]),
        sa.PrimaryKeyConstraint("log_id", "seq"),
    )
    op.create_index("ix_lease_report_leaf", "lease_report", ["leaf"])
    op.create_table(
        "lease_issued",
        sa.Column("leaf", ID, autoincrement=False, nullable=False),
        *(data("sha256"), text("kind"), big("time_us"), big("log_id"), big("seq")),
        *(sa.Column("run", sa.String(), nullable=True), data("note")),
        sa.ForeignKeyConstraint(["log_id"], ["log.id"]),
        sa.PrimaryKeyConstraint("leaf"),
        sa.UniqueConstraint("sha256"),
        sa.UniqueConstraint("log_id", "seq"),
    )
    op.create_index("ix_lease_issued_run", "lease_issued", ["run"])
    op.create_table(
        "opening",
        *(text("run"), data("commitment"), text("part"), data("salt"), data("value")),
        sa.PrimaryKeyConstraint("run", "commitment", "part"),
    )
    op.create_table(
        "webhook_outbox",
        sa.Column("id", ID, nullable=False),
        *(text("url"), text("message"), data("body"), big("created_us"), big("next_us"), big("tries")),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("webhook_outbox_by_time", "webhook_outbox", ["url", "next_us"])


def downgrade() -> None:
    raise NotImplementedError("what people signed is not thrown away: there is no way back")
