"""Partitions by month on PostgreSQL: made ahead, and never in the way of what comes in."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from keyturn_verifier.db.engine import reading
from keyturn_verifier.db.partitions import make_ahead
from tests.support.node import START_US
from tests.support.postgres import Postgres
from tests.support.verifier import Verifier


def partitions(engine: Engine, table: str) -> dict[str, int]:
    """The rows of each partition."""
    with reading(engine) as connection:
        names = connection.execute(
            text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:table AS regclass)"),
            {"table": table},
        ).scalars()
        return {
            name.removeprefix(f"{table}_"): connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one()  # noqa: S608
            for name in names.all()
        }


def at(year: int, month: int) -> int:
    return int(datetime(year, month, 15, tzinfo=UTC).timestamp()) * 1_000_000


def test_months_are_made_ahead_once(tmp_path: Path, postgres: Postgres) -> None:
    with Verifier(tmp_path, db=postgres.database, clock=lambda: at(2026, 11)) as verifier:
        wanted = {"other", "2026_10", "2026_11", "2026_12", "2027_01", "2027_02"}
        make_ahead(verifier.engine, at(2026, 11))  # or the replica itself did, after it began
        for table in ("segment_body", "usage_hour"):
            assert partitions(verifier.engine, table).keys() == wanted
        make_ahead(verifier.engine, at(2026, 12))
        make_ahead(verifier.engine, at(2026, 12))
        assert partitions(verifier.engine, "usage_hour").keys() == {*wanted, "2027_03"}


def test_rows_go_to_their_month_and_the_rest_is_kept_too(tmp_path: Path, postgres: Postgres) -> None:
    now = [START_US]
    with Verifier(tmp_path, db=postgres.database, clock=lambda: now[0]) as verifier:
        make_ahead(verifier.engine, now[0])
        node = verifier.enrolled(usage=2)
        month = f"{datetime.fromtimestamp(START_US // 1_000_000, UTC):%Y_%m}"
        assert partitions(verifier.engine, "segment_body")[month] == 1
        assert partitions(verifier.engine, "usage_hour")[month] == 1
        # Two years later, before anybody made the months of then.
        now[0] += 2 * 365 * 86_400 * 1_000_000
        node.time_us = now[0]
        assert verifier.client.post(node.segment(node.usage(1))).status == 200
        assert partitions(verifier.engine, "segment_body")["other"] == 1
        make_ahead(verifier.engine, now[0])
        assert partitions(verifier.engine, "segment_body")["other"] == 1
        assert verifier.audit(verifier.export(tmp_path / "evidence")).outcome == "pass"


def test_a_month_that_cannot_be_made_now_waits(
    tmp_path: Path, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    with Verifier(tmp_path, db=postgres.database, clock=lambda: at(2026, 11)) as verifier:
        make_ahead(verifier.engine, at(2026, 11))
        with verifier.engine.connect() as held:
            held.exec_driver_sql("LOCK TABLE usage_hour IN ACCESS SHARE MODE")
            make_ahead(verifier.engine, at(2026, 12))
            held.rollback()
        assert "no partition of usage_hour for 2027-03" in caplog.text
        assert "2027_03" in partitions(verifier.engine, "segment_body")
        make_ahead(verifier.engine, at(2026, 12))
        assert "2027_03" in partitions(verifier.engine, "usage_hour")
