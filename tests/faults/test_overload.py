"""Twice as much as a verifier sustains: no receipt is lost, nobody is starved, and all who can't be served are told.

`make faults` runs ten minutes of it on each database; `make test` a few seconds. KEYTURN_OVERLOAD_S sets the seconds.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psutil
import pytest

from keyturn_cli.auditing import Pins, run_audit
from keyturn_cli.reader import FolderReader
from keyturn_protocol.bundle import parse_trust, receipt_path, segment_path
from keyturn_protocol.ids import Deployment, Origin, parse_origin
from tests.faults.table import LONG, record
from tests.support.load import Load, backlog
from tests.support.node import Node
from tests.support.postgres import any_server
from tests.support.verifier import Served, call

SECONDS = float(os.environ.get("KEYTURN_OVERLOAD_S", "600" if LONG else "3"))
HOSTS = 200 if LONG else 20
QUEUE_BYTES = 4 * 1024 * 1024
RSS_BYTES = 700 * 1024 * 1024
LISTED_BYTES = 2_000
"""Memory that a bundle takes for each segment while it is sent: its manifest lists all files (1.1 kB were measured, and
as much again for the text). Nothing else may grow with what is stored.
"""
pytestmark = pytest.mark.timeout(SECONDS * 3 + 900)


@pytest.fixture(params=["sqlite", "postgres"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The state folder of a new verifier with a short queue."""
    if request.param == "sqlite":
        yield initialised(tmp_path / "state")
        return
    with any_server() as server:
        yield initialised(tmp_path / "state", "--db", server.database())


def initialised(folder: Path, *more: str) -> Path:
    made = call("init", "--state", folder, "--deployment", "a.example", *more)
    assert made.returncode == 0, made.stderr
    with (folder / "verifier.toml").open("a") as file:
        file.write(f"\n[limits]\nqueue_bytes = {QUEUE_BYTES}\nbody_timeout_s = 3\n")
    return folder


def test_twice_the_sustainable_rate(state: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    create = ("token", "create", "--state", state)
    join = call(*create, "--organisation", "A", "--site", "s", "--hosts", str(HOSTS + 1)).stdout.strip()
    reader = call(*create, "--role", "auditor").stdout.strip()
    nodes = [Node.new(Deployment("a.example")) for _ in range(HOSTS + 1)]
    served = Served(state)
    client = served.start()
    try:
        for node in nodes:
            assert client.join(node, join).status == 200
            assert client.post(node.first(chips=64 if node is nodes[-1] else 2)).status == 200
        *ordinary, flooder = nodes
        port = int(client.url.rpartition(":")[2])
        load = Load(port, ordinary, psutil.Process(served.process.pid), reader)
        segments = list(backlog(flooder, 8 if LONG else 2))
        flooder.sent = flooder.size - sum(s.partition(b"\n\n")[0].count(b"\n") + 1 for s in segments)
        rate, before = asyncio.run(overload(load, flooder, segments))
    except BaseException:
        served.kill()
        raise
    status = served.terminate()
    seen = load.seen
    assert status == 0, served.log()
    assert seen.wrong == []
    # It was overload: uploads were refused, or sent again before the first was answered. Nobody was starved.
    assert sum(seen.statuses.values()) > len(seen.receipts), seen.statuses
    mean = sum(before.values()) / len(before)
    assert min(before.values()) * 4 >= mean or mean < 8, before
    assert seen.readings["/healthz 200"] > 0
    assert not [what for what in seen.readings if what.startswith("/healthz") and what != "/healthz 200"]
    assert seen.queued <= QUEUE_BYTES
    check_receipts(state, tmp_path / "evidence", load)
    database = "PostgreSQL" if "postgres" in request.node.name else "SQLite"
    held = (
        f"{len(seen.receipts)} receipts, {seen.held} held back, {min(before.values())} to {max(before.values())} a host"
    )
    offered = f"then {seen.offered / SECONDS:.0f}/s for {SECONDS:.0f} s"
    print(f"\n{database}: {rate:.0f}/s sustained, {offered}: {dict(seen.statuses)}, {held}")
    print(f"rss {max(seen.rss) >> 20} MiB, queue {seen.queued} bytes, {dict(seen.readings)}")
    assert max(seen.rss) < RSS_BYTES
    if LONG:
        third = len(seen.rss) // 3
        listed = LISTED_BYTES * len(seen.receipts) // 3
        assert median(seen.rss[-third:]) <= median(seen.rss[third : 2 * third]) * 1.15 + listed
    record(
        "faults", f"verifier ({database})", "twice the sustainable load, a flooding host, dawdling clients, readers",
        expected="every receipt kept; refusals say when to come back; nobody starves",
        seen="all receipts exported, audit: pass; 200, 409, 429 and 503 only",
    )  # fmt: skip


async def overload(load: Load, flooder: Node, segments: list[bytes]) -> tuple[float, dict[Origin, int]]:
    """Returns the sustained rate, and how many receipts each ordinary host got under the load."""
    rate = await load.closed_loop(min(max(SECONDS / 10, 2), 15))
    for host in load.hosts:
        host.receipts = 0
    others = [
        *(lambda: load.flood(flooder, segments), load.watch),
        *([load.dawdle] * 5),
        *(
            lambda: load.read("/v1/workloads"),
            lambda: load.read("/v1/usage?limit=500"),
            lambda: load.read("/v1/bundle"),
        ),
    ]
    await load.during(load.open_loop(2 * rate, SECONDS), others)
    before = {host.node.origin: host.receipts for host in load.hosts}
    # When the load is gone everybody is served again.
    await load.settle(120)
    load.close()
    return rate, before


def check_receipts(state: Path, out: Path, load: Load) -> None:
    """Every receipt that was handed out is in the export, byte for byte, and the export passes an audit."""
    exported = call("export", "--state", state, "--out", out)
    assert exported.returncode == 0, exported.stderr
    for (origin, start, end), receipt in load.seen.receipts.items():
        assert (out / receipt_path(segment_path(parse_origin(origin), start, end))).read_bytes() == receipt
    pins = Pins(trust=parse_trust((state / "trust.json").read_bytes()))
    report = run_audit(FolderReader(str(out)), pins, 1, lambda *_: None)
    assert report.outcome == "pass", report.reasons
