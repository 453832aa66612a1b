"""Liveness, readiness, metrics, and the share of one log."""

import re
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from keyturn_protocol.ids import Origin
from keyturn_verifier import doctor, translog
from keyturn_verifier.config import Limits
from keyturn_verifier.db.engine import writing
from keyturn_verifier.rates import Rates
from keyturn_verifier.routes import health
from tests.support.office import Office
from tests.support.parties import DAY
from tests.support.verifier import Verifier


def metrics(verifier: Verifier) -> dict[str, float]:
    answer = verifier.client.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    for line in lines:
        assert re.fullmatch(r"# (HELP|TYPE) .+|[a-z_]+(\{[a-z]+=\"[a-z_]+\"\})? [0-9.e+]+", line), line
    return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line[0] != "#"}


def test_metrics_count_what_happens(verifier: Verifier) -> None:
    before = metrics(verifier)
    node = verifier.enrolled(usage=2)
    verifier.client.post(node.segment(node.usage(1)))
    verifier.client.post_raw(b"nonsense")
    verifier.client.get("/v1/nodes", "nobody")
    after = metrics(verifier)
    grown = {name: value - before[name] for name, value in after.items() if value != before[name]}
    assert grown["keyturn_receipts_total"] == grown["keyturn_batches_total"] == 2
    assert grown["keyturn_received_bytes_total"] > 100
    assert grown['keyturn_refusals_total{code="bad_segment"}'] == 1
    assert grown['keyturn_refusals_total{code="unauthorized"}'] == 1
    assert after["keyturn_queue_bytes"] == 0 < after["keyturn_queue_limit_bytes"]


def test_ready_while_the_database_can_be_written(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_S", 0.0)
    before = verifier.dump()
    assert verifier.client.get("/readyz").body == b'{"status":"ready"}'
    assert verifier.dump() == before
    with writing(verifier.engine) as connection:
        connection.execute(text("ALTER TABLE tree_head RENAME TO elsewhere"))
    answer = verifier.client.get("/readyz")
    assert (answer.status, answer.code) == (503, "overloaded")
    assert verifier.client.get("/healthz").status == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_load_balancer_may_ask_for_the_head_alone(verifier: Verifier, path: str) -> None:
    asked = verifier.client.request("HEAD", path)
    assert (asked.status, asked.body) == (200, b"")
    assert asked.headers["content-length"] == str(len(verifier.client.get(path).body))


def test_the_head_of_readyz_says_no_too(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_S", 0.0)
    with writing(verifier.engine) as connection:
        connection.execute(text("ALTER TABLE tree_head RENAME TO elsewhere"))
    asked = verifier.client.request("HEAD", "/readyz")
    assert (asked.status, asked.body) == (503, b"")


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/v1/nodes", "/log/checkpoint"])
def test_nothing_else_is_asked_for_by_its_head(verifier: Verifier, path: str) -> None:
    assert verifier.client.request("HEAD", path).status == 405


def test_not_ready_when_publishing_lags(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_S", 0.0)

    def fails(*_: object) -> bytes:
        raise DBAPIError("publish", None, Exception("the disk is full"))

    monkeypatch.setattr(translog, "publish", fails)
    monkeypatch.setattr(verifier.service.config.limits.__class__, "publish_lag_s", -1, raising=False)
    verifier.enrolled(usage=1)
    assert "not published" in verifier.client.get("/readyz").problem.detail
    assert metrics(verifier)["keyturn_unpublished_leaves"] > 0
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("left_us", "level", "warned"),
    [(31 * DAY, "ok", False), (29 * DAY, "warn", True), (-DAY, "fail", True)],
    ids=["far", "soon", "over"],
)
def test_an_operator_hears_of_a_root_that_ends(
    verifier: Verifier, now: list[int], monkeypatch: pytest.MonkeyPatch, left_us: int, level: str, warned: bool
) -> None:
    """The server is ready all the same: what runs goes on, and only enrolment ends with the root."""
    monkeypatch.setattr(health, "PROBE_S", 0.0)
    name = "keyturn_root_expires_timestamp_seconds"
    assert name not in metrics(verifier), "there is no root yet"
    office, expires_us = Office(verifier), now[0] + left_us
    monkeypatch.setattr(office, "make_root", partial(office.make_root, expires_us=expires_us))
    office.install()
    assert metrics(verifier)[name] == expires_us / 1_000_000
    ready = verifier.client.get("/readyz")
    assert (ready.status, b"root version 1 expire" in ready.body) == (200, warned)
    (line,) = [one for one in doctor.examine(verifier.settings, verifier.clock) if one.about == "root"]
    assert line.level == level
    assert line.text.startswith("version 1 expires in 31 days" if level == "ok" else "root version 1 expire")


def test_one_log_has_its_share_and_no_other_pays_for_it() -> None:
    now = [0.0]
    rates = Rates(Limits(log_requests_per_minute=6, log_bytes_per_minute=600), lambda: now[0])
    one, other = Origin("a/node/1/1"), Origin("a/node/2/1")
    assert [rates.take(one, 1) for _ in range(6)] == [None] * 6
    refusal = rates.take(one, 1)
    assert refusal is not None
    assert (refusal.code, refusal.retry_after_s) == ("busy", 10)
    assert rates.take(other, 1) is None
    now[0] += refusal.retry_after_s
    assert rates.take(one, 1) is None
    assert rates.take(one, 1) is not None


def test_bytes_have_a_share_too_and_a_large_segment_passes_once() -> None:
    now = [0.0]
    rates = Rates(Limits(log_requests_per_minute=1_000, log_bytes_per_minute=600), lambda: now[0])
    log = Origin("a/node/1/1")
    assert rates.take(log, 1_200) is None
    refusal = rates.take(log, 1)
    assert refusal is not None
    now[0] += refusal.retry_after_s
    assert rates.take(log, 1) is None


def test_a_log_over_its_share_waits(tmp_path: Path) -> None:
    with Verifier(tmp_path, log_requests_per_minute=3) as verifier:
        node, other = verifier.enrolled(), verifier.enrolled()
        for _ in range(2):
            assert verifier.client.post(node.segment(node.usage(1))).status == 200
        segment = node.segment(node.usage(1))
        answer = verifier.client.post(segment)
        assert (answer.status, answer.code) == (429, "busy")
        assert 1 <= int(answer.headers["retry-after"]) <= 21
        assert verifier.client.post(other.segment(other.usage(1))).status == 200


def test_the_folder_is_left_as_it_was(tmp_path: Path) -> None:
    with Verifier(tmp_path) as verifier:
        names = {p.name for p in verifier.state.iterdir()}
        assert verifier.client.get("/readyz").status == 200
        assert {p.name for p in verifier.state.iterdir()} == names
