"""The database: tables, connections, and the one write transaction of ingest."""
