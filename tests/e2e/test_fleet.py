"""The inference fleet through real agents and a real verifier: totals against a sum that uses no code of ours.

Every host is a `keyturn-agent` process that replays its part of the trace in simulated time: stored, signed,
uploaded and receipted as always. The bundle is exported and audited by the programs; then DuckDB adds up its
segment files, with the SQL of docs/audit-by-hand.md, and the trace itself.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.faults.table import LONG
from tests.support import by_hand, fleet
from tests.support.fleet import Host
from tests.support.node import Client
from tests.support.verifier import Served, call

pytestmark = pytest.mark.timeout(4 * 3600 if LONG else 300)

WINDOW = (350 * fleet.PERIOD_S, 450 * fleet.PERIOD_S)
"""Within it pods stop, pods start, one does both, one has holes, and one a cell without memory."""
SAMPLE = [Host(pods, *WINDOW) for pods in ((17,), (18,), (43,), (4, 29), (0, 33, 130))]


def hosts(trace: fleet.Pods) -> list[Host]:
    """The sample; in the long form every pod for the whole day, and eight chips with three pods each."""
    if not LONG:
        return SAMPLE
    groups = [(pod, pod + 40, pod + 80) for pod in range(17, 25)]
    return [Host((pod,)) for pod in sorted(trace)] + [Host(group) for group in groups]


@dataclass(frozen=True)
class Ran:
    """What the run left."""

    folder: Path
    hosts: Sequence[Host]
    client: Client
    token: str

    def read(self, path: str) -> list[dict[str, Any]]:
        """Every item of a list of the API."""
        items: list[dict[str, Any]] = []
        after = ""
        while True:
            reply = self.client.get(f"{path}limit=1000{after}", self.token)
            assert reply.status == 200, reply
            page = json.loads(reply.body)
            items += page["items"]
            if page["next"] is None:
                return items
            after = f"&after={page['next']}"


def agent(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyturn_agent", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def verifier(folder: Path) -> Iterator[Client]:
    served = Served(folder / "verifier")
    try:
        yield served.start()
    finally:
        assert served.terminate() == 0, served.log()


@pytest.fixture
def ran(tmp_path_factory: pytest.TempPathFactory, shared_traces: Path) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("fleet")
    state, token, reader = folder / "verifier", folder / "join.token", folder / "reader.token"
    trace = fleet.read_trace(shared_traces / fleet.TRACE)
    chosen = hosts(trace)
    assert call("init", "--state", state, "--deployment", "fleet.example").returncode == 0
    create = ("token", "create", "--state", state)
    joining = ("--organisation", "Example", "--site", "hall 1", "--hosts", len(chosen))
    token.write_text(call(*create, *map(str, joining)).stdout)
    reader.write_text(call(*create, "--role", "auditor").stdout)
    with verifier(folder) as client:

        def run(host: Host) -> None:
            place, recording = folder / host.name, folder / f"{host.name}.jsonl"
            recording.write_bytes(host.recording(trace))
            trust = ("--verifier", client.url, "--trust", state / "trust.json", "--token-file", token)
            agent("enroll", "--state", place, "--recording", recording, *trust)
            start = datetime.fromisoformat(fleet.START) + timedelta(seconds=host.from_s)
            agent("run", "--state", place, "--recording", recording, "--fast", "--start", start.isoformat())

        with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
            for done in [pool.submit(run, host) for host in chosen]:
                done.result()
        exported = call("export", "--state", state, "--out", folder / "evidence")
        assert exported.returncode == 0, exported.stderr
        yield Ran(folder, chosen, client, reader.read_text().strip())


def test_the_fleet(ran: Ran, shared_traces: Path) -> None:
    """One test, so that workers of one run don't run the fleet once each."""
    check_the_audit(ran)
    summed, printed = by_hand.recompute(ran.folder)
    assert printed == []
    check_what_is_hard(ran, summed)
    check_the_trace(ran, summed, shared_traces / fleet.TRACE)
    check_usage(ran, summed)
    check_workloads(ran, summed)
    check_buckets(ran, summed)


def check_the_audit(ran: Ran) -> None:
    program = [sys.executable, "-m", "keyturn_cli", "audit", "evidence", "--trust", "verifier/trust.json"]
    done = subprocess.run(program, cwd=ran.folder, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"INTEGRITY     PASS  {len(ran.hosts)} of {len(ran.hosts)} logs" in done.stdout


def check_usage(ran: Ran, summed: duckdb.DuckDBPyConnection) -> None:
    """What the API answers is the sum of the bundle, by workload, chip, hour and field."""
    result = summed.execute("FROM mine ORDER BY log, chip, hour_s, workload, inventory_seq, basis")
    names = [column[0] for column in result.description]
    ours = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    assert ours
    order = names[:6]
    assert sorted(ran.read("/v1/usage?"), key=lambda row: [row[name] for name in order]) == ours


def check_workloads(ran: Ran, summed: duckdb.DuckDBPyConnection) -> None:
    ours = summed.execute("""
        SELECT workload, count(DISTINCT chip), sum(time_us)::BIGINT, max(hour_s) + 3600
        FROM mine WHERE workload <> 'gap' GROUP BY workload ORDER BY workload
    """).fetchall()
    items = ran.read("/v1/workloads?")
    theirs = [(one["workload"], one["chips"], one["time_us"], one["to_s"]) for one in items if one["workload"] != "gap"]
    assert sorted(theirs) == ours
    # The trace has no energy: not measured, and not zero.
    assert {one["energy_mj"] for one in items} == {None}
    # No time vanishes: what wasn't measured is in the pool of gaps, from the window's begin to its end.
    assert sum(one["time_us"] for one in items) == sum(host.to_s - host.from_s for host in ran.hosts) * 1_000_000


def check_buckets(ran: Ran, summed: duckdb.DuckDBPyConnection) -> None:
    ours = summed.execute("""
        SELECT hour_s, workload, sum(time_us)::BIGINT FROM mine WHERE workload <> 'gap' GROUP BY ALL ORDER BY ALL
    """).fetchall()
    first, last = ours[0][0], ours[-1][0] + 3600
    items = ran.read(f"/v1/usage/buckets?bucket=hour&by=workload&from={first}&to={last}&")
    theirs = [(one["from_s"], one["key"], one["time_us"]) for one in items if one["key"] != "gap"]
    assert sorted(theirs) == ours


def check_the_trace(ran: Ran, summed: duckdb.DuckDBPyConnection, trace: Path) -> None:
    """From the compressed file of the trace to hourly totals, past all of our code: nothing is rounded on the way.

    A span lies between two rows of a pod that follow on each other; what is cut at an hour is cut in proportion.
    """
    pods = [host.pods[0] for host in ran.hosts if len(host.pods) == 1]
    first, last = ran.hosts[0].from_s, ran.hosts[0].to_s
    query = f"""
        CREATE OR REPLACE TABLE expected AS
        WITH row AS (
            SELECT t_s::BIGINT AS t, pod::INTEGER AS pod, (gpu_util_percent::DECIMAL(9, 2) * 10000)::BIGINT AS busy_ppm,
                   memory_used_bytes::BIGINT // 1048576 AS mib
            FROM read_csv('{trace}', all_varchar = true)
            WHERE t_s::BIGINT BETWEEN {first} AND {last} AND list_contains({pods}, pod::INTEGER)
        ), span AS (
            SELECT now.pod, before.t AS start, now.t AS stop, now.busy_ppm,
                   CASE WHEN before.mib IS NULL OR now.mib IS NULL THEN NULL ELSE greatest(before.mib, now.mib) END
                   AS mib
            FROM row AS now JOIN row AS before ON now.pod = before.pod AND now.t = before.t + {fleet.PERIOD_S}
        ), piece AS (
            SELECT pod, hour * 3600 AS hour, busy_ppm, mib,
                   least(stop, (hour + 1) * 3600) - greatest(start, hour * 3600) AS seconds
            FROM (SELECT *, unnest(range(start // 3600, (stop - 1) // 3600 + 1)) AS hour FROM span)
        )
        SELECT printf('k8s:00000000-0000-4000-8000-%012x', pod) AS workload,
               epoch(TIMESTAMPTZ '{fleet.START}')::BIGINT + hour AS hour_s, mib IS NULL AS no_memory,
               sum(seconds)::BIGINT * 1000000 AS time_us, count(*) AS samples,
               sum(busy_ppm * seconds)::BIGINT AS busy_us, max(mib) AS memory_mib_max
        FROM piece GROUP BY ALL
    """  # noqa: S608 -- numbers and a path of ours
    summed.execute(query)
    ours = "SELECT workload, hour_s, memory_mib_max IS NULL, time_us, samples, busy_us, memory_mib_max FROM mine"
    of_one = f"{ours} WHERE workload LIKE 'k8s:00000000-0000-4000-8000-%' ORDER BY ALL"
    assert summed.execute(of_one).fetchall() == summed.execute("FROM expected ORDER BY ALL").fetchall()
    assert len(summed.execute("SELECT DISTINCT workload FROM expected").fetchall()) > len(pods) * 9 // 10


def check_what_is_hard(ran: Ran, summed: duckdb.DuckDBPyConnection) -> None:
    """The sums above would be equal for nothing: holes, late starts, empty cells and shared chips are there."""

    def count(what: str) -> int:
        found = summed.execute(f"SELECT count(*) FROM {what}").fetchone()  # noqa: S608 -- words of ours
        return int(found[0]) if found is not None else 0

    assert count("gap WHERE cause = 'no_row_in_the_trace'")
    assert count("mine WHERE memory_mib_max IS NULL AND workload <> 'gap'")
    assert count("mine WHERE basis >> 30 = 1 AND workload = 'unattributed'")
    assert count("mine WHERE energy_mj IS NOT NULL OR clock_mhz_max IS NOT NULL") == 0
    assert count("(SELECT DISTINCT chip FROM mine)") <= len(ran.hosts)
