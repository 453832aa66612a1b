"""Replicas on PostgreSQL that get the same at the same moment: segments, forked heads, a log's first segment.

Whoever is first, there is one receipt for each size, byte for byte the same from everybody, and one line of evidence
for a fork however often it is shown.
"""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_protocol.findings import FindingCode
from tests.faults.after import check
from tests.faults.table import LONG, record
from tests.support.node import Node, Reply
from tests.support.postgres import Postgres, any_server
from tests.support.verifier import Verifier

ROUNDS = 60 if LONG else 8
FORKS = 12 if LONG else 3


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with any_server() as server:
        yield server


@pytest.fixture
def pair(tmp_path: Path, postgres: Postgres) -> Iterator[list[Verifier]]:
    with Verifier(tmp_path, db=postgres.database) as one, Verifier(tmp_path, db=postgres.database) as two:
        yield [one, two]


def at_once(*posts: tuple[Verifier, bytes]) -> list[Reply]:
    """Each segment to its verifier, all let go together. One that is told to come again does so."""
    answers: dict[int, Reply] = {}
    gate = threading.Barrier(len(posts))

    def post(number: int) -> None:
        verifier, segment = posts[number]
        gate.wait(30)
        answers[number] = verifier.client.post(segment)
        while answers[number].status in (429, 503):
            answers[number] = verifier.client.post(segment)

    threads = [threading.Thread(target=post, args=(number,)) for number in range(len(posts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(len(posts))]


def test_the_same_segments_at_once_have_one_receipt_each(pair: list[Verifier], tmp_path: Path) -> None:
    """Also cut in other places: what one replica has taken, the other one is behind on, and never has another head."""
    dice = random.Random(11)
    nodes = [pair[0].joined() for _ in range(3)]
    given: dict[tuple[str, int], bytes] = {}
    for first, node in enumerate(nodes):
        node.genesis()
        node.inventory(first=first)
    for number in range(ROUNDS):
        for node in nodes:
            node.usage(dice.randint(2, 4))
            whole = node.range(node.sent, node.size)
            first_part = node.range(node.sent, node.size - 1)
            other = first_part if number and dice.random() < 0.5 else whole
            order = dice.sample(pair, 2)
            answers = at_once((order[0], whole), (order[1], other), (order[1], whole))
            for answer, end in zip(answers, (node.size, node.size - (other is first_part), node.size), strict=True):
                if answer.status == 200:
                    assert given.setdefault((node.origin, end), answer.body) == answer.body
                else:
                    assert answer.code == "behind", answer
            # From wherever the two of them left it, as an agent goes on.
            head = pair[0].client.head(node)
            known = int(head.body.split(b"\n")[1])
            if known < node.size:
                answer = pair[1].client.post(node.range(known, node.size))
                assert answer.status == 200, answer
                given[node.origin, node.size] = answer.body
            node.sent = node.size
    after = check(pair[1], tmp_path / "out", given=given)
    assert after.report.entries == sum(node.size for node in nodes)
    record("faults", "verifier (PostgreSQL)", "two replicas, the same segments at once",
           expected="one receipt a size, the same bytes", seen=after.seen)  # fmt: skip


def test_two_heads_of_one_size_at_once_are_one_fork(pair: list[Verifier], tmp_path: Path) -> None:
    given: dict[tuple[str, int], bytes] = {}
    for number in range(FORKS):
        node = pair[0].enrolled()
        twin = node.copy()
        honest, forged = node.segment(node.usage(1)), twin.segment(twin.shutdown())
        order = pair if number % 2 else pair[::-1]
        answers = at_once((order[0], honest), (order[1], forged), (order[1], honest), (order[0], forged))
        codes = [200 if answer.status == 200 else answer.code for answer in answers]
        # One of the two was first, and then, sooner or later, the other one was seen.
        assert set(codes) <= {200, "fork", "log_frozen"}, codes
        assert {200, "fork"} <= set(codes), codes
        receipts = {answer.body for answer in answers if answer.status == 200}
        assert len(receipts) == 1
        won = node if codes[0] == 200 or codes[2] == 200 else twin
        given[node.origin, won.size] = receipts.pop()
        again = at_once((pair[0], honest), (pair[1], forged))
        assert [answer.code for answer in again] == ["log_frozen", "log_frozen"]
    assert pair[0].count("evidence") == FORKS
    after = check(pair[1], tmp_path / "out", given=given, expect={FindingCode.FORK}, contradicted=True)
    forks = [one.origin for one in after.report.findings if one.code is FindingCode.FORK]
    assert len(forks) == len(set(forks)) == FORKS
    record("faults", "verifier (PostgreSQL)", "two replicas, a forked head to each at once",
           expected="one head, one fork, once", seen=after.seen)  # fmt: skip


def test_a_nodes_first_segment_at_once(pair: list[Verifier], tmp_path: Path) -> None:
    given: dict[tuple[str, int], bytes] = {}
    token = pair[0].join_token(hosts=FORKS)
    for _ in range(FORKS):
        node = Node.new(pair[0].settings.deployment)
        assert pair[0].client.join(node, token).status == 200
        first = node.first()
        answers = at_once(*((verifier, first) for verifier in (*pair, *pair)))
        assert [answer.status for answer in answers] == [200] * 4, answers
        (receipt,) = {answer.body for answer in answers}
        given[node.origin, node.size] = receipt
    assert pair[0].count("log") == FORKS
    check(pair[0], tmp_path / "out", given=given)
