"""Pages of totals for the routes. One reader at a time: what is missing up to now is kept in memory."""

from typing import Any

from sqlalchemy import Engine

from keyturn_protocol.api import WorkloadTotal
from keyturn_protocol.api_read import Bucket, By
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.ids import GAP, UNATTRIBUTED
from keyturn_verifier.db.engine import reading
from keyturn_verifier.errors import stored
from keyturn_verifier.queries import Filter
from keyturn_verifier.rollup import apart, totals
from keyturn_verifier.rollup.silence import Silence
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.rollup.totals import BucketKey
from keyturn_verifier.rollup.view import View

WorkloadKey = tuple[bool, str]
"""Whether it is a pool, and its name."""
Found = tuple[list[Any], tuple[Any, ...] | None]
"""The items of a page, and the key of the last one if there may be more."""


class Totals:
    """Reads in a snapshot of its own. Not for two threads at once."""

    def __init__(self, engine: Engine, table: ChipTable, sources: Sources) -> None:
        self._engine = engine
        self._table = table
        self._sources = sources
        self._silence = Silence(sources, table)

    @stored
    def workloads(self, wanted: Filter, until_us: int, after: WorkloadKey | None, limit: int) -> Found:
        """Totals by workload, the pools last."""
        with reading(self._engine) as connection:
            view = View(connection, self._sources, self._silence, self._table)
            items: list[WorkloadTotal] = totals.workloads(view, wanted, until_us, after, limit)
        last = items[-1].workload if len(items) == limit else None
        return items, None if last is None else (last in (GAP, UNATTRIBUTED), last)

    @stored
    def buckets(
        self, wanted: Filter, bucket: Bucket, by: By, until_us: int, after: BucketKey | None, limit: int
    ) -> Found:
        """Usage by spans of time."""
        with reading(self._engine) as connection:
            view = View(connection, self._sources, self._silence, self._table)
            if by in ("node", "chip"):
                level = totals.LEVELS[bucket]
                part = (wanted, level, by, until_us, after, limit)
                page = apart.buckets(connection, view, self._sources, self._table, *part)
                return page.items, page.next
            items = totals.buckets(view, wanted, bucket, by, until_us, after, limit)
        last = items[-1] if len(items) == limit else None
        return items, None if last is None else (last.from_s, last.to_s, last.key)
