"""Evidence bundles: the auditor passes them, also while the server takes segments, and nothing is overwritten."""

import random
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Update, update

from keyturn_protocol.bundle import parse_manifest
from keyturn_protocol.entry_usage import Share
from keyturn_protocol.usage import totals_json
from keyturn_verifier import export, queries
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.db.tables import segment, segment_body
from keyturn_verifier.errors import UsageError, VerifierError
from keyturn_verifier.export_totals import TotalsFile
from tests.support.node import Client, Node
from tests.support.verifier import Database, Verifier, call


def busy_node(node: Node, chips: int = 2) -> Node:
    """A log with shares, gaps, changes of inventory, unread fields and an hour's end; nothing of it sent."""
    shared = [
        Share(chip=0, id="slurm:1", class_="shared", share_ppm=333_333),
        Share(chip=0, id="slurm:2", class_="shared", share_ppm=333_333),
    ]
    node.genesis()
    node.inventory(chips)
    node.started("slurm:1")
    for part in range(6):
        node.usage(5, span_us=119_000_000)
        node.usage(3, shares=shared, null=["tensor_mcycles"] if part % 2 else [])
        node.heartbeat(after_us=7_000_000)
        node.usage(2, workload=None)
        if part == 3:
            node.inventory(chips, first=1)
    node.shutdown()
    return node


def test_an_export_passes_the_audit(verifier: Verifier, tmp_path: Path) -> None:
    for _ in range(3):
        node = busy_node(verifier.joined())
        for end in range(10, node.size, 17):
            assert verifier.client.post(node.range(node.sent, end)).status == 200
            node.sent = end
    rolled = verifier.enrolled(usage=2)
    after = rolled.next_incarnation()
    verifier.client.post(after.segment(after.genesis(previous=rolled.previous()), after.inventory(), after.usage(3)))

    bundle = verifier.export(tmp_path / "evidence", "case 7")

    report = verifier.audit(bundle)
    assert report.outcome == "pass", report.reasons
    assert (report.logs, report.logs_verified, report.case) == (5, 5, "case 7")
    assert "trust.json" not in {p.name for p in bundle.rglob("*")}
    shown = {f.code for f in report.findings}
    assert {"gap", "new_incarnation"} <= shown


def test_an_empty_verifier_exports_too(verifier: Verifier, tmp_path: Path) -> None:
    assert verifier.audit(verifier.export(tmp_path / "evidence")).outcome == "pass"


def test_the_verifier_and_the_auditor_find_and_sum_the_same(tmp_path: Path, database: Database) -> None:
    from keyturn_protocol.chips import chip_table
    from keyturn_verifier import queries
    from keyturn_verifier.db.engine import reading

    now = [1_790_000_100_000_000]
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        node = busy_node(verifier.joined())
        verifier.client.post(node.segment())
        gone = verifier.enrolled(usage=4)
        after = gone.next_incarnation(skip=1)
        after.time_us += 60_000_000
        verifier.client.post(after.segment(after.genesis(previous=gone.previous()), after.inventory(3)))
        forker = verifier.enrolled()
        twin = forker.copy()
        verifier.client.post(forker.segment(forker.usage(1)))
        verifier.client.post(twin.segment(twin.shutdown()))
        breaker = verifier.enrolled()
        breaker.append_line(b"{}")
        verifier.client.post(breaker.segment())
        now[0] = node.time_us + 1_000_000_000

        report = verifier.audit(verifier.export(tmp_path / "evidence"))
        with reading(verifier.engine) as connection:
            findings = queries.findings(connection, now[0], chip_table())
        totals, _ = verifier.service.totals.workloads(queries.EVERYTHING, now[0], None, 1_000)

    assert report.outcome == "contradicted"  # a fork and signed nonsense
    assert list(report.findings) == findings
    assert list(report.workloads) == totals


def test_an_export_while_segments_come_in(verifier: Verifier, tmp_path: Path) -> None:
    nodes = [verifier.enrolled() for _ in range(4)]
    stop = threading.Event()
    sent: list[int] = []

    def load(node: Node) -> None:
        client = Client(verifier.client.url)
        while not stop.is_set():
            node.usage(2)
            assert client.post(node.segment()).status == 200
            sent.append(1)

    threads = [threading.Thread(target=load, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    bundles = []
    for number in range(5):
        seen = len(sent)
        while len(sent) < seen + 8:
            pass
        bundles.append(verifier.export(tmp_path / f"evidence-{number}"))
    stop.set()
    for thread in threads:
        thread.join()

    sizes = []
    for bundle in bundles:
        report = verifier.audit(bundle)
        assert report.outcome == "pass", report.reasons
        sizes.append(report.entries)
    assert sizes == sorted(set(sizes))


def test_what_comes_in_after_the_exports_leaf_is_not_in_the_bundle(
    verifier: Verifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = verifier.enrolled(usage=3)
    real = export._mark

    def mark(*arguments: Any) -> object:
        made = real(*arguments)
        assert verifier.client.post(node.segment(node.usage(2))).status == 200
        return made

    monkeypatch.setattr(export, "_mark", mark)
    report = verifier.audit(verifier.export(tmp_path / "evidence"))
    assert (report.outcome, report.entries) == ("pass", 5), report.reasons
    assert verifier.client.head(node).body.startswith(f"{node.origin}\n7\n".encode())


def test_an_export_never_overwrites(verifier: Verifier, tmp_path: Path) -> None:
    target = tmp_path / "evidence"
    target.mkdir()
    with pytest.raises(VerifierError, match="there already"):
        verifier.export(target)
    assert list(target.iterdir()) == []
    assert call("export", "--state", verifier.state, "--out", target).returncode == 1


def test_a_case_that_is_too_long_is_refused_before_anything_is_written(verifier: Verifier, tmp_path: Path) -> None:
    leaves = len(verifier.leaves())
    with pytest.raises(UsageError):
        verifier.export(tmp_path / "evidence", "x" * 1_025)
    assert len(verifier.leaves()) == leaves


@pytest.mark.parametrize(
    "damage", [update(segment_body).values(body=b"\0"), update(segment).values(sha256=bytes(32))], ids=["body", "hash"]
)
def test_damage_on_the_disk_is_found_by_the_export_and_leaves_no_folder(
    verifier: Verifier, tmp_path: Path, damage: Update
) -> None:
    verifier.enrolled()
    with writing(verifier.engine) as connection:
        connection.execute(damage)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(VerifierError, match="damaged"):
        verifier.export(tmp_path / "evidence")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_manifest_lists_every_file(verifier: Verifier, tmp_path: Path) -> None:
    verifier.enrolled(usage=1)
    bundle = verifier.export(tmp_path / "evidence")
    manifest = parse_manifest((bundle / "bundle.json").read_bytes())
    files = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert files == {*manifest.files, "bundle.json"}
    assert manifest.export_index == len(verifier.leaves()) - 1


def totals(verifier: Verifier, node: Node, cuts: list[int], out: Path) -> bytes:
    """``totals.json`` after sending ``node``'s entries cut like this."""
    twin = node.copy()
    start = 0
    for end in [*cuts, node.size]:
        if end > start:
            answer = verifier.client.post(twin.range(start, end))
            assert answer.status == 200, answer
            start = end
    return (verifier.export(out) / "totals.json").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, bytes]]:
    """A log, and its totals when it is sent in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    with Verifier(folder) as verifier:
        node = busy_node(verifier.joined(seed=7))
        yield node, totals(verifier, node, [], folder / "evidence")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, 70), max_size=12))
def test_any_partition_into_segments_gives_the_same_totals(
    whole: tuple[Node, bytes], tmp_path_factory: pytest.TempPathFactory, cuts: set[int], database: Database
) -> None:
    node, expected = whole
    folder = tmp_path_factory.mktemp("part")
    with Verifier(folder, db=database) as verifier:
        verifier.joined(seed=7)
        assert totals(verifier, node, sorted(c for c in cuts if c < node.size), folder / "evidence") == expected


def test_any_interleaving_with_other_logs_gives_the_same_totals(tmp_path: Path, database: Database) -> None:
    """Batches differ, totals don't: four logs sent side by side, cut at random, twice."""
    results = []
    for attempt in range(2):
        with Verifier(tmp_path / str(attempt), db=database) as verifier:
            nodes = [busy_node(verifier.joined(seed=seed)) for seed in range(4)]

            def send(node: Node, number: int) -> None:
                client, random_ = Client(verifier.client.url), random.Random(number)
                while node.sent < node.size:
                    end = min(node.sent + random_.randint(1, 15), node.size)
                    assert client.post(node.range(node.sent, end)).status == 200
                    node.sent = end

            threads = [threading.Thread(target=send, args=(node, 100 * attempt + at)) for at, node in enumerate(nodes)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            results.append((verifier.export(tmp_path / f"evidence-{attempt}") / "totals.json").read_bytes())
    assert results[0] == results[1]


def test_totals_are_written_as_they_are_read(verifier: Verifier) -> None:
    for seed in (3, 1, 2):
        node = busy_node(verifier.joined(seed=seed))
        for end in range(10, node.size, 40):
            assert verifier.client.post(node.range(node.sent, end)).status == 200
            node.sent = end
    with reading(verifier.engine) as connection:
        names = queries.origins(connection)
        expected = totals_json(queries.usage_rows(connection, names), queries.stored_gaps(connection, names))
        with TotalsFile(connection) as file:
            assert b"".join(file.chunks()) == expected
            assert (file.size, file.sha256) == (len(expected), sha256(expected).hexdigest())
            assert b'"gaps":[{' in expected
        with pytest.raises(VerifierError, match="larger than 1000 bytes"):
            TotalsFile(connection, most_bytes=1_000)
