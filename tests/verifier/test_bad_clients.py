"""Clients that are slow, greedy, broken or too many: each gets an answer or its end, and nobody else notices."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from backports import zstd

from keyturn_protocol.api import SEGMENT_TYPE, ProblemCode
from keyturn_verifier.problems import Refusal
from tests.support.verifier import Verifier, environment


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Verifier]:
    """A verifier with little patience."""
    with Verifier(tmp_path, head_timeout_s=1, body_timeout_s=1, connections=40) as started:
        yield started
        assert started.client.get("/healthz").status == 200


@contextmanager
def connection(verifier: Verifier) -> Iterator[socket.socket]:
    host, _, port = verifier.client.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as opened:
        yield opened


def until_closed(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    got = b""
    try:
        while part := client.recv(65_536):
            got += part
    except ConnectionResetError:
        pass
    return got


def problems(answers: bytes) -> list[str]:
    """The statuses of answers, each of them a problem of ours if it is none of success."""
    found = []
    while answers:
        head, _, rest = answers.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        status = lines[0].split()[1].decode()
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        size = int(headers.get(b"content-length", b"0"))
        body, answers = rest[:size], rest[size:]
        if status >= "300":
            assert headers[b"content-type"] == b"application/problem+json", head
            assert json.loads(body)["status"] == int(status)
        if status == "503":
            assert int(headers[b"retry-after"]) > 0
        found.append(status)
    return found


def post(path: str, *headers: str, chunked: bool = False) -> bytes:
    more = ("Transfer-Encoding: chunked", *headers) if chunked else headers
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {SEGMENT_TYPE}", *more, "", ""]).encode()


def trickle(client: socket.socket, data: bytes) -> None:
    """A piece at a time, until the server has had enough."""
    try:
        for _ in range(200):
            client.sendall(data)
            time.sleep(0.05)
    except (BrokenPipeError, ConnectionResetError):
        return
    raise AssertionError("the server never had enough")


def flood(client: socket.socket, data: bytes) -> int:
    """As fast as it goes, until the server has had enough; returns the bytes that were sent, 64 MiB at most."""
    sent = 0
    try:
        while sent < 64 * 1024 * 1024:
            client.sendall(data)
            sent += len(data)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return sent


def test_a_head_that_never_ends(strict: Verifier) -> None:
    with connection(strict) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        trickle(client, b"x: y\r\n")
    with connection(strict) as silent:
        assert until_closed(silent) == b""


def test_a_head_that_is_too_large(strict: Verifier) -> None:
    with connection(strict) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert flood(client, b"x: " + b"y" * 1_000 + b"\r\n") < 32 * 1024 * 1024


def test_a_body_that_never_ends(strict: Verifier) -> None:
    with connection(strict) as client:
        client.sendall(post("/v1/segments", "Content-Length: 1000") + b"x")
        assert problems(until_closed(client)) == ["408"]


@pytest.mark.parametrize(("path", "status"), [("/nowhere", "404"), ("/v1/nodes", "405")])
def test_a_body_that_nobody_reads(tmp_path: Path, path: str, status: str) -> None:
    """The answer comes at once; the rest of the body may not come for ever."""
    # Patient with heads, so that nothing but the body's own end can end it.
    with Verifier(tmp_path, head_timeout_s=60, body_timeout_s=1) as patient, connection(patient) as client:
        client.sendall(post(path, chunked=True) + b"1\r\nx\r\n")
        answer = client.recv(65_536)
        assert problems(answer) == [status]
        trickle(client, b"1\r\nx\r\n")


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b"1;" + b"e" * 10_000 + b"\r\nx\r\n"),
        (b"0\r\n", b"trailer: " + b"t" * 10_000 + b"\r\n"),
        (b"0\r\ntrailer: ", b"t" * 10_000),
    ],
    ids=["chunk extensions", "trailers", "one trailer"],
)
def test_what_is_sent_around_a_body(tmp_path: Path, start: bytes, more: bytes) -> None:
    """However fast it comes: it counts although it is no content."""
    with Verifier(tmp_path) as verifier:
        with connection(verifier) as client:
            client.sendall(post("/v1/segments", chunked=True) + start)
            assert flood(client, more) < 32 * 1024 * 1024
        assert verifier.client.get("/healthz").status == 200


@pytest.mark.parametrize("size", [b"FFFFFFFFFFFFFFFFF", b"-1", b"0x10", b"1 1", b"", b"1" * 1_000, b"\xff"])
def test_an_absurd_chunk_size(strict: Verifier, size: bytes) -> None:
    with connection(strict) as client:
        client.sendall(post("/v1/segments", chunked=True) + size + b"\r\nx\r\n")
        assert problems(until_closed(client)) == ["400"]


def test_a_chunk_that_is_larger_than_any_segment(strict: Verifier) -> None:
    with connection(strict) as client:
        client.sendall(post("/v1/segments", chunked=True) + b"7FFFFFFFFFFFFFFF\r\nx")
        assert problems(until_closed(client)) == ["408"]


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, identity",),
        ("Content-Length: +5",),
        ("Content-Length: -5",),
        ("Content-Length: 99999999999999999999999",),
        ("Content Length: 5",),
    ],
)
def test_a_message_of_two_lengths_or_none(strict: Verifier, headers: tuple[str, ...]) -> None:
    """What two readers could understand in two ways is refused: nothing behind it is taken for a request."""
    with connection(strict) as client:
        client.sendall(post("/v1/segments", *headers) + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert problems(until_closed(client)) == ["400"]


@pytest.mark.parametrize(
    "line", [b"GET /%zz\xff HTTP/1.1", b"GET http://[ HTTP/1.1", b"GET / HTTP/9.9", b"PRI * HTTP/2.0", b"\0"]
)
def test_a_request_line_that_is_none(strict: Verifier, line: bytes) -> None:
    with connection(strict) as client:
        client.sendall(line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        (status,) = problems(until_closed(client))
        assert status in ("400", "404", "405")


def test_pipelined_requests_are_answered_in_order(strict: Verifier) -> None:
    node = strict.joined()
    first, second = (zstd.compress(node.first(usage=2)), zstd.compress(node.segment(node.usage(2))))
    uploads = b"".join(post("/v1/segments", f"Content-Length: {len(body)}") + body for body in (first, second))
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connection(strict) as client:
        client.sendall(uploads + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 200 + last)
        assert problems(until_closed(client)) == ["200"] * 202 + ["404"]


def test_a_client_that_says_no_more_but_listens(strict: Verifier) -> None:
    """Half-closed: whether it is answered or not, what it sent is stored once, and its receipt is to be had."""
    node = strict.joined()
    body = zstd.compress(node.first(usage=2))
    with connection(strict) as client:
        client.sendall(post("/v1/segments", f"Content-Length: {len(body)}") + body)
        client.shutdown(socket.SHUT_WR)
        assert problems(until_closed(client)) in (["200"], [])
    assert strict.client.post_raw(body).status == 200
    assert strict.count("segment") == 1


def test_expect_continue(strict: Verifier) -> None:
    node = strict.joined()
    body = zstd.compress(node.first(usage=2))
    with connection(strict) as client:
        client.sendall(
            post("/v1/segments", "Expect: 100-continue", f"Content-Length: {len(body)}", "Connection: close")
        )
        assert client.recv(1_000).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert problems(until_closed(client)) == ["200"]
    with connection(strict) as client:
        client.sendall(post("/v1/segments", "Expect: 100-continue", "Content-Length: 999999999"))
        assert problems(until_closed(client)) == ["413"]


def test_a_bomb_in_a_content_encoding(strict: Verifier) -> None:
    """Nothing is decompressed that isn't a segment: compression is a part of the type."""
    for encoding in ("gzip", "zstd", "gzip, zstd", "br", "deflate"):
        reply = strict.client.request(
            "POST", "/v1/segments", b"x" * 1_000, content_type=SEGMENT_TYPE, content_encoding=encoding
        )
        assert (reply.status, reply.code) == (415, "unsupported_type")


def test_more_connections_than_there_may_be(tmp_path: Path) -> None:
    """Those over the limit are told so and when to come back; those far over it are cut; the others are served."""
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = request.replace(b"Host", b"Connection: close\r\nHost")
    with Verifier(tmp_path, connections=40) as verifier, ExitStack() as stack:
        served = stack.enter_context(connection(verifier))
        served.sendall(request)
        assert served.recv(4_096).startswith(b"HTTP/1.1 200 ")
        held = [stack.enter_context(connection(verifier)) for _ in range(60)]

        def answered() -> bytes:
            try:
                with connection(verifier) as client:
                    client.sendall(last)
                    return until_closed(client)
            except (BrokenPipeError, ConnectionResetError):
                return b""

        answers = [answered() for _ in range(20)]
        assert {*map(tuple, map(problems, answers))} <= {("503",), ()}
        assert any(answers)
        crowd = [stack.enter_context(connection(verifier)) for _ in range(440)]
        assert sum(until_closed(client) == b"" for client in crowd[:100]) == 100
        served.sendall(last)
        assert until_closed(served).endswith(b'{"status":"ok"}')
        for client in [*held, *crowd]:
            client.close()
        while b" 200 " not in answered():
            time.sleep(0.05)


@pytest.mark.parametrize(("files", "connections"), [(700, 188), (64, 64), (4_096, 1_000)])
def test_connections_leave_room_for_other_open_files(files: int, connections: int) -> None:
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (min({files}, 128), {files}))\n"
        "from keyturn_verifier.server import allowed_connections\n"
        "print(allowed_connections(1_000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    allowed, soft = map(int, done.stdout.split())
    assert allowed == connections
    assert soft == min(files, 1_512)


HANDLED_BY = {
    "/v1/statements": "keyturn_verifier.taking.opened",
    f"/v1/runs/{'0' * 64}/openings": "keyturn_verifier.routes.openings.parse_openings",
    "/v1/leases": "keyturn_verifier.routes.leases.decode",
    "/v1/join": "keyturn_verifier.routes.join.decode",
    "/v1/findings/close": "keyturn_verifier.routes.review.parse",
    "/v1/maintenance": "keyturn_verifier.routes.review.parse",
}
"""Routes that take a body, and what they do with it first, in a thread."""


@pytest.mark.parametrize("path", HANDLED_BY)
def test_a_body_is_in_the_budget_until_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Else any number of them could wait for a thread, each with all that a client sent."""
    handled, go_on = threading.Event(), threading.Event()

    def hold(*_: object, **__: object) -> None:
        handled.set()
        go_on.wait()
        raise Refusal(ProblemCode.BAD_REQUEST, "held")

    monkeypatch.setattr(HANDLED_BY[path], hold)
    body = b"x" * 3_000
    with Verifier(tmp_path, queue_bytes=4_000) as verifier, ThreadPoolExecutor(1) as pool:
        budget, bearer = verifier.service.ingest.intake.budget, f"Bearer {verifier.reader_token('admin')}"
        answer = pool.submit(verifier.client.request, "POST", path, body, authorization=bearer)
        try:
            assert handled.wait(60)
            assert budget.used == len(body)
            assert verifier.client.request("POST", "/v1/statements", body).code == "overloaded"
        finally:
            go_on.set()
        assert answer.result().code == "bad_request"
        while budget.used:
            time.sleep(0.005)
