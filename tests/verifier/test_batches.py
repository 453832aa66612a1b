"""Batches: what is bad in one doesn't harm the rest, and back-pressure says when to come back."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from backports import zstd
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from keyturn_protocol import api, receive
from keyturn_protocol.receive import Decision, Head, History
from keyturn_protocol.segment import Segment
from keyturn_verifier.ingest import Ingest
from tests.support.node import Node, Reply
from tests.support.verifier import Database, Verifier


def closed(raw: socket.socket, line: bytes = b"") -> bool:
    """Whether the server closes a connection without a word, while it is sent ``line`` over and over."""
    try:
        for _ in range(100_000 if line else 0):
            raw.sendall(line)
        return raw.recv(100) == b""
    except ConnectionError:
        return True


class Posting:
    """Segments that are posted side by side."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._threads: list[threading.Thread] = []
        self.answers: dict[int, Reply] = {}

    def send(self, segment: bytes) -> None:
        number = len(self._threads)

        def post() -> None:
            self.answers[number] = self._verifier.client.post(segment)

        self._threads.append(threading.Thread(target=post))
        self._threads[-1].start()

    def join(self) -> list[Reply]:
        for thread in self._threads:
            thread.join()
        return [self.answers[i] for i in range(len(self._threads))]


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    while not true():
        time.sleep(0.002)


@contextmanager
def one_batch(verifier: Verifier, batches: list[int]) -> Iterator[Posting]:
    """What is sent in this block waits behind the write lock and then goes as one batch."""
    blocker = verifier.joined()
    posting = Posting(verifier)
    batches.clear()
    with verifier.write_lock():
        posting.send(blocker.first())
        until(lambda: len(batches) == 1)
        yield posting
        # Whatever was sent is in the queue when its bytes are counted.
        ingest = verifier.service.ingest
        until(lambda: len(ingest.intake) == len(posting._threads) - 1 or len(posting.answers) > 0)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each group had that was decided."""
    sizes: list[int] = []
    real = Ingest._batch

    def counted(self: Ingest, group: Sequence[object]) -> None:
        sizes.append(len(group))
        real(self, group)  # type: ignore[arg-type]

    monkeypatch.setattr(Ingest, "_batch", counted)
    return sizes


def test_good_and_bad_in_one_batch(verifier: Verifier, batches: list[int]) -> None:
    good = [verifier.enrolled() for _ in range(4)]
    forker, breaker, damaged, late = (verifier.enrolled() for _ in range(4))
    twin = forker.copy()
    verifier.client.post(forker.segment(forker.usage(1)))
    breaker.append_line(b'{"not":"an entry"}')
    late.usage(2)
    with one_batch(verifier, batches) as posting:
        posting.send(good[0].segment(good[0].usage(1)))
        posting.send(twin.segment(twin.shutdown()))
        posting.send(good[1].segment(good[1].usage(1)))
        posting.send(breaker.segment())
        posting.send(damaged.segment(damaged.usage(1)).replace(b'"boots":1', b'"boots":2', 1))
        posting.send(good[2].segment(good[2].usage(1)))
        posting.send(late.range(3, 4))
        posting.send(Node.new().first())
        posting.send(good[3].segment(good[3].usage(1)))
        posting.send(b"nonsense")
    answers = posting.join()

    assert batches == [1, 9]
    assert [a.status if a.status == 200 else a.code for a in answers] == [
        200,
        200,
        "fork",
        200,
        "invalid_entries",
        "damaged_segment",
        200,
        "behind",
        "unknown_log",
        200,
        "bad_segment",
    ]
    sizes = {row[1]: row[8] for row in verifier.dump()["log"]}
    assert [sizes[node.origin] for node in good] == [3] * 4


def test_two_segments_of_one_log_are_never_in_one_batch(verifier: Verifier, batches: list[int]) -> None:
    node = verifier.enrolled()
    first, second = node.segment(node.usage(1)), node.segment(node.usage(1))
    with one_batch(verifier, batches) as posting:
        posting.send(first)
        until(lambda: len(verifier.service.ingest.intake) == 1)
        posting.send(second)
    answers = posting.join()

    assert answers[1].status == 200
    assert (answers[2].status, answers[2].code) == (429, "busy")
    assert int(answers[2].headers["retry-after"]) > 0
    assert verifier.client.post(second).status == 200


def test_one_segment_that_crashes_the_batch_is_alone_in_that(
    verifier: Verifier, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [verifier.enrolled() for _ in range(3)]
    real = receive.decide

    def decide(head: Head, segment: Segment, data: bytes, history: History) -> Decision:
        if segment.name.node_id == nodes[1].name.node_id:
            raise RuntimeError("a bug")
        return real(head, segment, data, history)

    monkeypatch.setattr("keyturn_verifier.ingest.decide", decide)
    with one_batch(verifier, batches) as posting:
        for node in nodes:
            posting.send(node.segment(node.usage(1)))
    answers = posting.join()

    assert [a.status for a in answers] == [200, 200, 500, 200]
    monkeypatch.setattr("keyturn_verifier.ingest.decide", real)
    assert verifier.client.post(nodes[1].range(2, 3)).status == 200


def test_a_full_queue_says_when_to_come_back(tmp_path: Path, batches: list[int], database: Database) -> None:
    with Verifier(tmp_path, db=database, queue_bytes=4_000) as verifier:
        nodes = [verifier.enrolled() for _ in range(12)]
        with one_batch(verifier, batches) as posting:
            for node in nodes:
                posting.send(node.segment(node.usage(2)))
            until(lambda: len(posting.answers) + len(verifier.service.ingest.intake) == len(nodes))
        answers = posting.join()
        refused = [a for a in answers if a.status != 200]
        assert refused
        assert {(a.status, a.code) for a in refused} == {(503, "overloaded")}
        assert all(int(a.headers["retry-after"]) > 0 for a in refused)
        # Nothing is lost by it: everybody comes again.
        for node in nodes:
            assert verifier.client.post(node.range(2, 4)).status == 200


def test_an_unknown_outcome_of_commit_is_503_and_the_retry_finds_out(verifier: Verifier) -> None:
    node = verifier.enrolled()
    segment = node.segment(node.usage(1))
    before = verifier.dump()

    def fail(connection: Connection) -> None:
        if connection.get_execution_options().get("keyturn_write"):
            raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    event.listen(verifier.engine, "commit", fail)
    answer = verifier.client.post(segment)
    event.remove(verifier.engine, "commit", fail)

    assert (answer.status, answer.code) == (503, "unknown_outcome")
    assert int(answer.headers["retry-after"]) > 0
    assert verifier.dump() == before
    assert verifier.client.post(segment).status == 200


def test_a_commit_that_did_happen_is_met_as_already_stored(verifier: Verifier) -> None:
    """The answer was lost on the way, as after an unknown outcome: the same bytes get the stored receipt."""
    node = verifier.enrolled()
    segment = node.segment(node.usage(1))
    receipt = verifier.client.post(segment).body
    verifier.service.ingest._heads.forget([node.origin])
    assert verifier.client.post(segment).body == receipt


def test_a_head_that_moved_elsewhere_is_decided_again(verifier: Verifier) -> None:
    """What another writer stored since the head was cached: the batch is dropped and decided anew."""
    node = verifier.enrolled()
    heads = verifier.service.ingest._heads
    stale = heads._cache[node.origin]
    first = node.segment(node.usage(1))
    receipt = verifier.client.post(first)
    heads.put(node.origin, stale)

    again = verifier.client.post(first)

    assert again.status in (200, 429)
    assert verifier.client.post(first).body == receipt.body
    assert verifier.count("segment") == 2


def test_a_client_that_goes_away_doesnt_lose_its_segment(verifier: Verifier) -> None:

    node = verifier.enrolled()
    body = zstd.compress(node.segment(node.usage(1)))
    address = urlsplit(verifier.client.url)
    with verifier.write_lock(), socket.create_connection((address.hostname, address.port)) as raw:
        head = f"POST {api.SEGMENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: {api.SEGMENT_TYPE}\r\n"
        raw.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: verifier.service.ingest.intake.budget.used > 0)
    until(lambda: verifier.count("segment") == 2)
    assert verifier.client.post(node.segment(node.usage(1))).status == 200


def test_a_slow_body_is_cut_and_nobody_waits_for_it(tmp_path: Path, database: Database) -> None:

    with Verifier(tmp_path, db=database, body_timeout_s=1) as verifier:
        address = urlsplit(verifier.client.url)
        with socket.create_connection((address.hostname, address.port)) as raw:
            head = f"POST {api.SEGMENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: {api.SEGMENT_TYPE}\r\n"
            raw.sendall(f"{head}content-length: 1000\r\n\r\nabc".encode())
            assert verifier.enrolled().size == 2
            raw.settimeout(30)
            answer = raw.recv(4_096)
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_sends_no_request_is_closed(tmp_path: Path, database: Database) -> None:

    with Verifier(tmp_path, db=database, head_timeout_s=1) as verifier:
        address = urlsplit(verifier.client.url)
        with socket.create_connection((address.hostname, address.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nhost:")
            raw.settimeout(30)
            assert closed(raw)


def test_a_head_without_an_end_is_cut(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, head_bytes=10_000) as verifier:
        address = urlsplit(verifier.client.url)
        with socket.create_connection((address.hostname, address.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n")
            raw.settimeout(30)
            assert closed(raw, b"x: " + b"y" * 1_000 + b"\r\n")


def test_more_connections_than_allowed_are_closed(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, connections=3) as verifier:
        address = urlsplit(verifier.client.url)
        held = [socket.create_connection((address.hostname, address.port)) for _ in range(3)]
        with socket.create_connection((address.hostname, address.port)) as one_more:
            one_more.settimeout(30)
            assert closed(one_more)
        for raw in held:
            raw.close()


def test_every_byte_that_was_taken_is_given_back(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, queue_bytes=6_000) as verifier:
        node = verifier.enrolled()
        for body in (b"x" * 5_000, b"x" * 7_000, zstd.compress(node.segment(node.usage(1)))):
            verifier.client.post_raw(body)
        verifier.client.request("POST", "/v1/join", b"x" * 4_000)
        verifier.client.request("POST", "/v1/join", b"x" * 5_000)
        until(lambda: verifier.service.ingest.intake.budget.used == 0)
        assert verifier.client.post(node.segment(node.usage(1))).status == 200
