"""Monthly partitions on PostgreSQL, made ahead by whoever serves: bodies by receipt, usage by hour.

segment_body_2026_11    receipts of November 2026 (UTC): dropped or moved to an archive as a whole
usage_hour_2026_11      hours of November 2026
…_other                 all else: hours long ago, or a month that nobody made in time
"""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from keyturn_verifier.db.engine import is_postgres, writing
from keyturn_verifier.db.schema import MIGRATION_LOCK
from keyturn_verifier.errors import OutcomeUnknown

log = logging.getLogger(__name__)

_COLUMNS: Final = {"segment_body": "receipt_s", "usage_hour": "hour_s"}
_BACK, _AHEAD = 1, 3
"""Months before this one, for backlogs, and after it."""


def make_ahead(engine: Engine, now_us: int) -> None:
    """Make the partitions of this month and those around it that are not there; on SQLite there are none.

    What can't be made now is logged and left for the next time: rows go to ``…_other`` meanwhile.
    """
    if not is_postgres(engine):
        return
    for table, column in _COLUMNS.items():
        for first in _months(now_us // 1_000_000):
            try:
                with writing(engine) as connection:
                    _make(connection, table, column, first)
            except (DBAPIError, OutcomeUnknown) as error:
                log.warning("no partition of %s for %s: %s", table, first.strftime("%Y-%m"), error)


def _make(connection: Connection, table: str, column: str, first: datetime) -> None:
    name = f"{table}_{first:%Y_%m}"
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    if connection.exec_driver_sql(f"SELECT to_regclass('{name}')").scalar() is not None:
        return
    start, end = int(first.timestamp()), int(_next(first).timestamp())
    # In the order in which ingest locks tables. Everybody waits while this one does, so it doesn't wait for long.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '500ms'")
    connection.exec_driver_sql("LOCK TABLE log IN SHARE ROW EXCLUSIVE MODE")
    connection.exec_driver_sql(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    there = f"SELECT 1 FROM {table}_other WHERE {column} >= {start} AND {column} < {end} LIMIT 1"  # noqa: S608
    if connection.exec_driver_sql(there).first() is not None:
        return  # it came too late: this month stays where it began
    connection.exec_driver_sql(f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES FROM ({start}) TO ({end})")


def _months(now_s: int) -> Iterator[datetime]:
    """The first moments of the months around ``now_s``."""
    month = datetime.fromtimestamp(now_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    at = month.year * 12 + month.month - 1
    for number in range(at - _BACK, at + _AHEAD + 1):
        yield month.replace(year=number // 12, month=number % 12 + 1)


def _next(first: datetime) -> datetime:
    return first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
