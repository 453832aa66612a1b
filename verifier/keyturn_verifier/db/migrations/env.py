"""Alembic's entry: runs the migrations on the connection that :mod:`keyturn_verifier.db.schema` hands over."""

from alembic import context
from sqlmodel import SQLModel

import keyturn_verifier.db.review_tables
import keyturn_verifier.db.rollup_tables
import keyturn_verifier.db.statement_tables
import keyturn_verifier.db.switch_tables
import keyturn_verifier.db.tables  # noqa: F401  (registers the tables)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
