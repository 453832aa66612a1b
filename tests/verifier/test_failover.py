"""Two PostgreSQL servers, the first killed: what was receipted is on the second one if COMMIT waited for it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_verifier.db import durability
from keyturn_verifier.db.engine import reading
from keyturn_verifier.routes import health
from tests.support.node import Node
from tests.support.postgres import STANDBY, Server, own_server, standby_of
from tests.support.verifier import Verifier, call
from tests.verifier.test_rollback import leaf_receipts, rollbacks


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A server and its standby."""
    with own_server() as primary, standby_of(primary) as standby:
        wait_for(primary, "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'")
        yield primary, standby


def wait_for(server: Server, statement: str) -> None:
    deadline = time.monotonic() + 60
    while not server.execute(statement):
        assert time.monotonic() < deadline, statement
        time.sleep(0.05)


def move_to(verifier: Verifier, standby: Server) -> None:
    """Point the state directory at the other server."""
    file = verifier.state / "verifier.toml"
    file.write_text(file.read_text().replace(verifier.settings.db, standby.url_of(verifier.settings.db)))


def post(verifier: Verifier, node: Node, count: int) -> list[tuple[bytes, bytes]]:
    sent = []
    for _ in range(count):
        segment = node.segment(node.usage(2))
        answer = verifier.client.post(segment)
        assert answer.status == 200, answer
        sent.append((segment, answer.body))
    return sent


def test_with_a_synchronous_standby_every_receipt_survives(tmp_path: Path, pair: tuple[Server, Server]) -> None:
    primary, standby = pair
    primary.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
    primary.execute("SELECT pg_reload_conf()")
    wait_for(primary, "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'")
    with Verifier(tmp_path, db=primary.database) as verifier:
        with reading(verifier.engine) as connection:
            assert durability.caution(connection) is None
        node = verifier.enrolled()
        sent = post(verifier, node, 12)
        primary.stop("immediate")
        assert verifier.client.post(node.segment(node.usage(1))).status == 503
    standby.promote()
    move_to(verifier, standby)
    with Verifier(tmp_path) as verifier:
        assert leaf_receipts(verifier)[1:] == [receipt for _, receipt in sent]
        assert verifier.client.post(node.range(node.size - 1, node.size)).status == 200
        assert rollbacks(verifier) == []
        report = verifier.audit(verifier.export(tmp_path / "evidence"))
        assert report.outcome == "pass", report.reasons


def test_with_an_asynchronous_one_a_lost_tail_is_sent_again_and_found(
    tmp_path: Path, pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_S", 0.0)
    primary, standby = pair
    with Verifier(tmp_path, db=primary.database) as verifier:
        assert b"receipts can outrun the database" in verifier.client.get("/readyz").body
        said = call("doctor", "--state", verifier.state)
        assert said.returncode == 0
        assert "warn  receipts: no synchronous standby" in said.stdout
        node = verifier.enrolled()
        kept = post(verifier, node, 2)
        wait_for(
            primary,
            "SELECT 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()",
        )
        standby.stop()
        lost = post(verifier, node, 3)
        primary.stop("immediate")
    standby.start()
    standby.promote()
    move_to(verifier, standby)
    with Verifier(tmp_path) as verifier:
        assert leaf_receipts(verifier)[1:] == [receipt for _, receipt in kept]
        for segment, receipt in lost:
            answer = verifier.client.post(segment, shown=receipt)
            assert (answer.status, answer.body) == (200, receipt)
        assert len(rollbacks(verifier)) == 1
        report = verifier.audit(verifier.export(tmp_path / "evidence"))
        assert report.outcome == "pass", report.reasons
