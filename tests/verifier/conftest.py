"""Fixtures of the verifier's tests. What can differ between the databases runs on both of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_verifier.clock import wall_clock
from tests.faults.table import LONG
from tests.support.office import Office
from tests.support.parties import BEGIN
from tests.support.postgres import Postgres, any_server
from tests.support.verifier import Database, Verifier

ON_BOTH = {
    *("test_batches", "test_export", "test_join", "test_receipt_table", "test_schema", "test_log"),
    *("test_rollup", "test_rollup_passes", "test_buckets", "test_bundle_stream", "test_logs_api", "test_review"),
    *("test_check", "test_statements", "test_webhooks"),
    *("test_switch", "test_switch_wait", "test_switch_leases", "test_switch_claims", "test_switch_check"),
    "test_snapshot",
}
"""Modules whose tests run on SQLite and on PostgreSQL; the others run on SQLite."""
IF_LONG = {"test_switch_crash", "test_switch_sequences"}
"""Those that run on both where there is time for it."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database" in metafunc.fixturenames:
        both = metafunc.module.__name__.rpartition(".")[2] in (ON_BOTH | IF_LONG if LONG else ON_BOTH)
        metafunc.parametrize("database", ["sqlite", "postgres"] if both else ["sqlite"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    with any_server() as server:
        yield server


@pytest.fixture(scope="session")
def database(request: pytest.FixtureRequest) -> Database:
    """Makes the databases of verifiers: the URL of a new one, or None for a file inside of the state directory."""
    if request.param == "sqlite":
        return lambda: None
    server: Postgres = request.getfixturevalue("postgres")
    return server.database


@pytest.fixture
def now() -> list[int]:
    """The verifier's time in microseconds, for a test that moves it."""
    return [BEGIN]


@pytest.fixture
def verifier(tmp_path: Path, database: Database, request: pytest.FixtureRequest) -> Iterator[Verifier]:
    """A new verifier, serving; by the time of ``now`` for a test that has it."""
    now: list[int] | None = request.getfixturevalue("now") if "now" in request.fixturenames else None
    clock = wall_clock if now is None else lambda: now[0]
    with Verifier(tmp_path, db=database, clock=clock) as started:
        yield started


@pytest.fixture
def office(verifier: Verifier) -> Office:
    """A root and a policy in force, and people who sign."""
    return Office.opened(verifier)
