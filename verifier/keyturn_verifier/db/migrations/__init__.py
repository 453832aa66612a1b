"""Schema migrations (alembic), from the first table on."""
