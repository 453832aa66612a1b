"""Replicas on one PostgreSQL: they race, they die, the server dies; the log stays one."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import urllib3
from sqlalchemy import text

from keyturn_protocol.leaves import Enrolment, NodeCheckpoint, parse_leaf
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.errors import VerifierError
from tests.support.node import Client, Node, Reply
from tests.support.postgres import Postgres, own_server
from tests.support.verifier import DEPLOYMENT, Database, Served, Verifier, call
from tests.verifier.test_export import busy_node


@contextmanager
def replicas(folder: Path, database: Database, count: int = 2) -> Iterator[list[Verifier]]:
    """Verifiers that share a state directory and a database."""
    with ExitStack() as stack:
        yield [stack.enter_context(Verifier(folder, db=database)) for _ in range(count)]


@pytest.fixture
def pair(tmp_path: Path, postgres: Postgres) -> Iterator[list[Verifier]]:
    """Two replicas."""
    with replicas(tmp_path, postgres.database) as started:
        yield started


def at_once(*calls: "threading.Thread") -> None:
    for thread in calls:
        thread.start()
    for thread in calls:
        thread.join()


def everywhere(verifiers: list[Verifier], *segments: bytes) -> list[Reply]:
    """Post one segment, or one each, to every replica at the same moment."""
    answers: dict[int, Reply] = {}
    gate = threading.Barrier(len(verifiers))

    def post(number: int) -> None:
        gate.wait()
        answers[number] = verifiers[number].client.post(segments[number % len(segments)])

    at_once(*(threading.Thread(target=post, args=(number,)) for number in range(len(verifiers))))
    return [answers[number] for number in range(len(verifiers))]


def passes(verifier: Verifier, out: Path) -> bytes:
    """The audit passes, indices are dense, every segment has one leaf; returns the totals."""
    bundle = verifier.export(out)
    report = verifier.audit(bundle)
    assert report.outcome == "pass", report.reasons
    leaves = [parse_leaf(line) for line in verifier.leaves()]
    assert [leaf.index for leaf in leaves] == list(range(len(leaves)))
    assert sum(isinstance(leaf, NodeCheckpoint) for leaf in leaves) == verifier.count("segment")
    return (bundle / "totals.json").read_bytes()


def test_replicas_that_race_on_the_same_segments_give_the_same_receipts(pair: list[Verifier], tmp_path: Path) -> None:
    nodes = [pair[0].joined() for _ in range(3)]
    for node in nodes:
        receipts = set()
        for number in range(8):
            segment = node.first(usage=1) if number == 0 else node.segment(node.usage(2))
            answers = everywhere(pair, segment)
            assert [a.status for a in answers] == [200, 200], answers
            assert answers[0].body == answers[1].body
            receipts.add(answers[0].body)
        assert len(receipts) == 8
    passes(pair[1], tmp_path / "evidence")
    assert pair[0].count("segment") == 24


def test_a_replica_that_slept_never_answers_from_its_cache(pair: list[Verifier]) -> None:
    """The other one moved the log, and froze one, while this one remembers an older head."""
    node, forker = pair[0].enrolled(), pair[0].enrolled()
    second = node.segment(node.usage(1))
    receipt = pair[1].client.post(second).body
    third = node.segment(node.usage(1))
    assert pair[1].client.post(third).status == 200
    twin = forker.copy()
    assert pair[1].client.post(forker.segment(forker.usage(1))).status == 200
    assert pair[1].client.post(twin.segment(twin.shutdown())).code == "fork"

    assert pair[0].client.post(second).body == receipt
    behind = pair[0].client.post(node.range(1, 2))
    assert behind.code == "behind"
    assert f"\n{node.size}\n" in str(behind.problem.checkpoint)
    assert pair[0].client.post(node.segment(node.usage(1))).status == 200
    assert pair[0].client.post(forker.segment(forker.usage(1))).code == "log_frozen"


def test_the_last_use_of_a_token_is_one_hosts_whatever_the_replica(pair: list[Verifier], tmp_path: Path) -> None:
    for _ in range(4):
        token = pair[0].join_token(hosts=1)
        nodes = [Node.new(DEPLOYMENT) for _ in pair]
        for node in nodes:
            assert pair[0].client.join(node, token).status == 200
        answers = everywhere(pair, *(node.first() for node in nodes))
        assert sorted(a.status for a in answers) == [200, 403], answers
    passes(pair[0], tmp_path / "evidence")
    assert pair[0].count("log") == 4


def test_a_nodes_next_log_is_opened_once(pair: list[Verifier], tmp_path: Path) -> None:
    """One replica opens incarnation 2 while the other opens 3, or 2 with other bytes: never in the wrong order."""
    for _ in range(4):
        node = pair[0].enrolled()
        after = [node.next_incarnation(skip=skip) for skip in (0, 1)]
        firsts = [log.segment(log.genesis(previous=node.previous()), log.inventory()) for log in after]
        answers = everywhere(pair, *firsts)
        assert answers[1].status == 200
        assert answers[0].status in (200, 404)
    leaves = [parse_leaf(line) for line in pair[0].leaves()]
    opened: dict[str, int] = {}
    for leaf in leaves:
        if isinstance(leaf, Enrolment):
            assert opened.get(leaf.body.node_id, 0) < leaf.body.incarnation
            opened[leaf.body.node_id] = leaf.body.incarnation
    passes(pair[0], tmp_path / "evidence")


def test_overlapping_batches_never_deadlock(pair: list[Verifier], tmp_path: Path, postgres: Postgres) -> None:
    """Every log is sent to both replicas at once, in another order, in batches; new logs with shared tokens too."""
    tokens = [pair[0].join_token(hosts=50) for _ in range(3)]
    nodes = [Node.new(DEPLOYMENT, seed=seed) for seed in range(24)]
    for at, node in enumerate(nodes):
        assert pair[at % 2].client.join(node, tokens[at % 3]).status == 200
        busy_node(node)
    failures: list[Reply] = []

    def send(client: Client, order: list[Node], number: int) -> None:
        cuts = random.Random(number)
        for node in order:
            start = 0
            while start < node.size:
                end = min(start + 12, node.size)
                answer = client.post(node.range(start, end))
                if answer.status == 200:
                    start = end
                elif answer.status != 429:
                    failures.append(answer)
                    return
                time.sleep(cuts.random() / 1_000)

    threads = []
    for number in range(8):
        order = random.Random(number).sample(nodes, len(nodes))
        threads.append(threading.Thread(target=send, args=(Client(pair[number % 2].client.url), order, number)))
    at_once(*threads)

    assert not failures
    on_postgres = passes(pair[0], tmp_path / "evidence")
    with reading(pair[0].engine) as connection:
        deadlocks = connection.execute(
            text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        ).scalar()
    assert deadlocks == 0
    with Verifier(tmp_path / "file") as verifier:
        for node in nodes:
            verifier.client.join(node, verifier.join_token())
            assert verifier.client.post(node.range(0, node.size)).status == 200
        assert (verifier.export(tmp_path / "evidence-file") / "totals.json").read_bytes() == on_postgres


def test_any_replica_publishes_and_never_more_than_one_size_a_second(pair: list[Verifier]) -> None:
    stop = time.monotonic() + 3
    nodes = [verifier.enrolled() for verifier in pair]
    before = pair[0].dump_checkpoints()
    while time.monotonic() < stop:
        for verifier, node in zip(pair, nodes, strict=True):
            assert verifier.client.post(node.segment(node.usage(1))).status == 200
    made = pair[0].dump_checkpoints()[len(before) :]
    assert 1 <= len(made) <= 5


def test_a_rolled_back_transaction_on_a_replica_leaves_no_hole(pair: list[Verifier], tmp_path: Path) -> None:
    nodes = [pair[0].enrolled() for _ in range(2)]
    stop = threading.Event()

    def disturb() -> None:
        """Somebody ends the replicas' connections, as a failover or an operator does."""
        with writing(pair[0].engine) as connection:
            while not stop.is_set():
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%%tree_head%%'"
                )
                time.sleep(0.02)

    thread = threading.Thread(target=disturb)
    thread.start()
    seen = set()
    for number in range(60):
        node = nodes[number % 2]
        segment = node.segment(node.usage(1))
        while (answer := pair[number % 2].client.post(segment)).status != 200:
            seen.add(answer.code)
            time.sleep(0.01)
    stop.set()
    thread.join()
    assert seen <= {"overloaded", "unknown_outcome", "busy"}
    passes(pair[0], tmp_path / "evidence")


def send_until(
    stop: threading.Event, clients: list[Client], node: Node, receipts: dict[tuple[str, int], bytes]
) -> None:
    """Send as an agent does: a segment without an answer is sent again, to whichever replica is there."""
    pick = random.Random(node.origin)
    while not stop.is_set():
        if node.sent == node.size:
            node.usage(2)
        try:
            answer = pick.choice(clients).post(node.range(node.sent, node.size))
        except urllib3.exceptions.HTTPError:
            time.sleep(0.01)
            continue
        if answer.status == 200:
            receipts[node.origin, node.size] = answer.body
            node.sent = node.size
        else:
            assert answer.status in (429, 503), answer
            time.sleep(0.01)


def test_kill_9_of_replicas_and_crashes_of_postgres_lose_nothing_that_was_receipted(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with own_server() as server:
        url = server.database()
        made = call("init", "--state", folder, "--deployment", DEPLOYMENT, "--db", url)
        assert made.returncode == 0, made.stderr
        line = ("token", "create", "--state", folder, "--organisation", "Acme", "--site", "fra1", "--hosts", "4")
        token = call(*line).stdout.strip()
        served = [Served(folder, name) for name in ("one", "two")]
        clients = [one.start() for one in served]
        nodes = [Node.new(DEPLOYMENT) for _ in range(4)]
        receipts: dict[tuple[str, int], bytes] = {}
        for node in nodes:
            assert clients[0].join(node, token).status == 200
            node.genesis()
            node.inventory(2)
        stop = threading.Event()
        threads = [threading.Thread(target=send_until, args=(stop, clients, node, receipts)) for node in nodes]
        for thread in threads:
            thread.start()
        for turn in range(4):
            seen = len(receipts)
            while len(receipts) < seen + 30:
                time.sleep(0.001)
            time.sleep(random.random() / 20)
            if turn % 2:
                server.stop("immediate")
                server.start()
            else:
                served[turn // 2].kill()
                clients[turn // 2] = served[turn // 2].start()
        seen = len(receipts)
        while len(receipts) < seen + 30:
            time.sleep(0.001)
        stop.set()
        for thread in threads:
            thread.join()
        assert [one.terminate() for one in served] == [0, 0]

        verifier = Verifier(tmp_path)
        dump = verifier.dump()
        ids = {row[1]: row[0] for row in dump["log"]}
        stored = {(row[0], row[2]): row[5] for row in dump["segment"]}
        assert all(stored[ids[origin], end] == receipt for (origin, end), receipt in receipts.items())
        passes(verifier, tmp_path / "evidence")
        verifier.engine.dispose()


def test_a_database_of_other_keys_is_refused(tmp_path: Path, postgres: Postgres) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        made = call("init", "--state", folder, "--deployment", DEPLOYMENT, "--db", postgres.database())
        assert made.returncode == 0, made.stderr
    (folders[1] / "verifier.toml").write_text((folders[0] / "verifier.toml").read_text())
    refused = call("token", "list", "--state", folders[1])
    assert refused.returncode == 1
    assert "other keys" in refused.stderr


def test_a_database_that_is_not_empty_is_refused_and_nothing_is_left(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.database()
    assert call("init", "--state", tmp_path / "one", "--deployment", DEPLOYMENT, "--db", url).returncode == 0
    again = call("init", "--state", tmp_path / "two", "--deployment", DEPLOYMENT, "--db", url)
    assert again.returncode == 1
    assert "not empty" in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_wrong_password_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(VerifierError) as refused:
        Verifier(tmp_path, db=lambda: "postgresql+pg8000://user:secret@host/x")
    assert "secret" not in str(refused.value)
