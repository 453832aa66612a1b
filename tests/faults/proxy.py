"""A proxy between a host and its verifier that does to one request what networks and middle boxes do.

It speaks just enough HTTP/1.1 to know where a request and an answer end, closes after each exchange, and hands the
request that `fault` picks to it. All others pass as they are.
"""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Fault = Callable[["Exchange"], None]


class Cut(Exception):
    """Close the connection here."""


@dataclass
class Exchange:
    """One request, whole, and the way to the verifier and back."""

    head: bytes
    body: bytes
    client: socket.socket
    proxy: "Proxy"
    answers: list[bytes] = field(default_factory=list)

    @property
    def request(self) -> bytes:
        """The request as it is forwarded: the only one of its connection."""
        return self.head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + self.body

    @property
    def is_upload(self) -> bool:
        return self.head.startswith(b"POST /v1/segments ")

    def forward(self, request: bytes | None = None) -> bytes:
        """What the verifier answers to the request, or to other bytes, whole. A part of it ends with its sender."""
        with socket.create_connection(self.proxy.upstream, timeout=30) as upstream:
            data = self.request if request is None else request
            upstream.sendall(data)
            if len(data) < len(self.request):
                upstream.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := upstream.recv(65_536):
                answer += chunk
        self.answers.append(answer)
        return answer

    def reply(self, answer: bytes) -> None:
        self.client.sendall(answer)

    def gone(self, seconds: float) -> None:
        """Wait until the client gives up, at most so long."""
        self.client.settimeout(seconds)
        with contextlib.suppress(OSError):
            self.client.recv(1)


def answer(status: int, body: bytes, *headers: str, kind: str = "text/html") -> bytes:
    """An answer that isn't the verifier's."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


class Proxy(socketserver.ThreadingTCPServer):
    """Use it as a context; `url` is where hosts go. `hits`: uploads that a fault was done to."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname
        assert parts.port
        self.upstream = (parts.hostname, parts.port)
        self.faults: list[Fault] = []
        """Done to the next uploads, one each."""
        self.hits = 0
        self.kept: list[bytes] = []
        """What a fault has kept for later."""
        self.errors: list[Exception] = []
        self._picking = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def next_uploads(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)

    def pick(self, exchange: Exchange) -> Fault | None:
        with self._picking:
            if not exchange.is_upload or not self.faults:
                return None
            self.hits += 1
            return self.faults.pop(0)


class _Handler(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        client: socket.socket = self.request
        client.settimeout(30)
        try:
            exchange = self._read(client)
            if exchange is None:
                return
            fault = self.server.pick(exchange)
            if fault is None:
                exchange.reply(exchange.forward())
            else:
                fault(exchange)
        except (Cut, ConnectionError, TimeoutError):
            pass  # what was meant to happen, or a client that had enough
        except Exception as error:
            self.server.errors.append(error)

    def _read(self, client: socket.socket) -> Exchange | None:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = client.recv(65_536)
            if not chunk:
                return None
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        while len(body) < length:
            chunk = client.recv(65_536)
            if not chunk:
                return None
            body += chunk
        return Exchange(head + b"\r\n\r\n", body, client, self.server)
