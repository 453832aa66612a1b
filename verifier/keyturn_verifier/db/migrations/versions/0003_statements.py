"""Statements by people, and the replacements among them.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "statement",
        sa.Column("leaf", ID, autoincrement=False, nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("leaf"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_table(
        "node_replacement",
        sa.Column("leaf", ID, autoincrement=False, nullable=False),
        sa.Column("old", sa.String(), nullable=False),
        sa.Column("new", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["leaf"], ["statement.leaf"]),
        sa.PrimaryKeyConstraint("leaf"),
        sa.UniqueConstraint("new"),
        sa.UniqueConstraint("old"),
    )


def downgrade() -> None:
    raise NotImplementedError("what people signed is not thrown away: there is no way back")
