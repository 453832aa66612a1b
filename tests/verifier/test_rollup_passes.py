"""Passes that bring sums up to date: several at once, begun again with another chip table, cut short; and plans."""

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from keyturn_protocol.chips import ChipTable, chip_table
from keyturn_verifier.db.engine import is_postgres, reading, writing
from keyturn_verifier.queries import EVERYTHING, Filter
from keyturn_verifier.rollup import feed
from keyturn_verifier.rollup.check import check_sums
from keyturn_verifier.rollup.keeper import Keeper
from keyturn_verifier.rollup.reader import Totals
from keyturn_verifier.rollup.sources import Sources
from tests.support import naive_totals
from tests.support.node import START_US
from tests.support.verifier import DAY_US, Database, Verifier

NOW_US = START_US + 3 * DAY_US
QUIET: dict[str, Any] = {"rollup_interval_ms": 10**9, "clock": lambda: NOW_US}
OTHER = dataclasses.replace(chip_table(), version="2", chips=chip_table().chips[:1], _found={})
"""A chip table that knows less: totals differ."""


def keeper(verifier: Verifier, table: ChipTable | None = None) -> Keeper:
    return Keeper(verifier.engine, table or chip_table(), 1, Sources())


def settle(verifier: Verifier, table: ChipTable | None = None) -> None:
    """Passes until there is nothing to do."""
    one = keeper(verifier, table)
    while one.step():
        pass


def load(verifier: Verifier, nodes: int = 2) -> None:
    for seed in range(nodes):
        node = verifier.joined(seed=seed)
        node.genesis()
        node.inventory(2)
        node.started("slurm:1")
        for _ in range(3):
            node.usage(4, span_us=1_000_000_000)
            assert verifier.client.post(node.segment()).status == 200


def same(verifier: Verifier, table: ChipTable | None = None) -> None:
    """The page of everything, by a process that just began, equals the slow way."""
    table = table or chip_table()
    items, _ = Totals(verifier.engine, table, Sources()).workloads(EVERYTHING, NOW_US, None, 1_000)
    with reading(verifier.engine) as connection:
        assert items == naive_totals.workloads(connection, EVERYTHING, NOW_US, table)


def stored(verifier: Verifier) -> feed.State | None:
    with reading(verifier.engine) as connection:
        return feed.load(connection)


def test_passes_at_once_while_segments_come_in_count_nothing_twice(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, **QUIET) as verifier:
        stop = threading.Event()
        failed: list[BaseException] = []

        def go() -> None:
            one = keeper(verifier)
            while not stop.is_set():
                try:
                    one.step()
                except BaseException as error:
                    failed.append(error)
                    return

        threads = [threading.Thread(target=go) for _ in range(3)]
        for thread in threads:
            thread.start()
        load(verifier, 3)
        stop.set()
        for thread in threads:
            thread.join()
        assert failed == []
        same(verifier)
        settle(verifier)
        same(verifier)
        state = stored(verifier)
        assert state is not None
        assert (state.size, state.built) == (len(verifier.leaves()), feed.ALL_LOGS)


def test_another_chip_table_makes_them_again(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, **QUIET) as verifier:
        load(verifier)
        settle(verifier)
        # A replica with another table reads what rows say, and doesn't touch what isn't its own.
        same(verifier, OTHER)
        same(verifier)
        first = keeper(verifier)
        first.step()
        settle(verifier, OTHER)
        same(verifier, OTHER)
        same(verifier)
        taken = stored(verifier)
        assert not first.step()  # the one that was started later keeps them
        assert stored(verifier) == taken


def test_segments_of_an_older_version_say_no_hours(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, **QUIET) as verifier:
        load(verifier)
        settle(verifier)
        node = verifier.enrolled(chips=2, usage=5)
        settle(verifier)
        node.usage(5)
        assert verifier.client.post(node.segment()).status == 200
        with writing(verifier.engine) as connection:
            connection.execute(text("UPDATE segment SET hours = NULL WHERE start > 2"))
        same(verifier)
        settle(verifier)
        same(verifier)


def test_a_pass_that_fails_leaves_nothing(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("cut short")

    with Verifier(tmp_path, db=database, **QUIET) as verifier:
        load(verifier)
        settle(verifier)
        before = stored(verifier)
        node = verifier.enrolled(usage=9)
        assert node.size
        with monkeypatch.context() as patch:
            patch.setattr("keyturn_verifier.rollup.keeper._write", fails)
            with pytest.raises(RuntimeError, match="cut short"):
                keeper(verifier).step()
        assert stored(verifier) == before
        same(verifier)
        settle(verifier)
        same(verifier)


@contextmanager
def statements(verifier: Verifier) -> Iterator[list[tuple[str, Any]]]:
    """Every SELECT that runs, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("SELECT") and "pg_" not in statement:
            seen.append((statement, parameters))

    event.listen(verifier.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(verifier.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("by", ["workload", "organisation", "node", "chip"])
def test_no_page_reads_a_table_of_rows_from_end_to_end(tmp_path: Path, database: Database, by: Any) -> None:
    large = ("usage_hour", "rollup_cell", "rollup_day", "usage_gap", "workload_started", "segment", "tree_leaf")
    hour = NOW_US // 3_600_000_000 * 3_600
    with Verifier(tmp_path, db=database, **QUIET) as verifier:
        load(verifier)
        settle(verifier)
        node = verifier.enrolled(usage=3)
        assert node.size
        totals = verifier.service.totals
        with statements(verifier) as seen:
            totals.buckets(Filter(hour - 5 * 86_400, hour), "day", by, NOW_US, None, 5)
            totals.workloads(Filter(hour - 5 * 86_400, hour - 3_600), NOW_US, None, 5)
            totals.workloads(Filter(workload="slurm:1"), NOW_US, (False, "a"), 5)
        assert len(seen) > 10
        with verifier.engine.connect() as connection:
            if is_postgres(verifier.engine):
                # There is hardly a row here: the question is whether an index serves, not whether it pays.
                connection.exec_driver_sql("SET enable_seqscan = off")
            for statement, parameters in seen:
                verb = "EXPLAIN " if is_postgres(verifier.engine) else "EXPLAIN QUERY PLAN "
                rows = connection.exec_driver_sql(verb + statement, parameters).all()
                plan = "\n".join(str(row[-1]) for row in rows)
                if any(f'"{name}"' in statement or f" {name}" in statement for name in large):
                    scans = [line for line in plan.splitlines() if line.strip(" ->").startswith(("SCAN", "Seq Scan"))]
                    assert [line for line in scans if "json_each" not in line and "SCAN k" not in line] == [], statement


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("UPDATE rollup_cell SET body = (SELECT max(body) FROM rollup_cell)", "rollup_cell"),
        ("UPDATE rollup_cell SET body = CAST('nonsense' AS {bytes})", "rollup_cell"),
        ("DELETE FROM rollup_cell WHERE level = 2", "rollup_cell"),
        ("DELETE FROM rollup_day", "rollup_day"),
        ("UPDATE rollup_log SET gap_id = 0", "rollup_cell"),
        ("UPDATE rollup_place SET organisation = 'Nobody'", "rollup_cell"),
        ("UPDATE rollup_chip SET chip = 'GPU-other' WHERE number = 0", "rollup_cell"),
        ("UPDATE rollup_state SET size = size + 100", "rollup_state"),
    ],
)
def test_changed_sums_are_found(tmp_path: Path, database: Database, change: str, table: str) -> None:
    with Verifier(tmp_path, db=database, **QUIET) as verifier:
        load(verifier)
        node = verifier.enrolled(usage=3)
        node.heartbeat(5_000_000_000)
        node.usage(2)
        assert verifier.client.post(node.segment()).status == 200
        settle(verifier)
        node.usage(9)
        assert verifier.client.post(node.segment()).status == 200
        with reading(verifier.engine) as connection:
            assert list(check_sums(connection, chip_table())) == []
        kind = "bytea" if is_postgres(verifier.engine) else "blob"
        with writing(verifier.engine) as connection:
            connection.execute(text(change.format(bytes=kind)))
        with reading(verifier.engine) as connection:
            assert {one.table for one in check_sums(connection, chip_table())} >= {table}
