"""Work without a lease is a finding of its own.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "UPDATE finding SET code = 'unleased', severity = 'high' "
        "WHERE code = 'degraded' AND detail IN ('would_refuse', 'survivors')"
    )


def downgrade() -> None:
    raise NotImplementedError("a database keeps its newest schema: there is no way back")
