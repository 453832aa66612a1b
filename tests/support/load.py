"""Load on a verifier: hosts that send whether it keeps up or not, one that floods, clients that dawdle, readers.

Open loop: an upload is due at its moment, whatever became of those before it. A host whose last upload has no receipt
yet sends the same bytes again, over a connection of its own, as hosts do that have lost patience.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psutil
from backports import zstd

from keyturn_protocol.api import SEGMENT_TYPE
from tests.support.node import Node

Headers = dict[str, str]
CONNECTIONS = 1_500
"""Most uploads that wait for an answer at one time; beyond it the network would drop connections."""


@dataclass
class Seen:
    """What clients saw. ``wrong``: what no client may ever see."""

    statuses: Counter[int] = field(default_factory=Counter)
    receipts: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    """(origin, start, end) → the receipt that was handed out."""
    wrong: list[str] = field(default_factory=list)
    readings: Counter[str] = field(default_factory=Counter)
    rss: list[int] = field(default_factory=list)
    queued: int = 0
    """The most bytes that waited in the server."""
    offered: int = 0
    """Uploads that were due, as far as this client got."""
    held: int = 0
    """Of these: while all connections waited."""

    def note(self, status: int, headers: Headers, what: str) -> None:
        self.statuses[status] += 1
        again = headers.get("retry-after", "")
        if status in (429, 503) and not (again.isdigit() and int(again) > 0):
            self.wrong.append(f"{what}: {status} without retry-after")
        if status >= 500 and status != 503:
            self.wrong.append(f"{what}: {status}")


class Wire:
    """Raw HTTP/1.1 over kept connections."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(self, head: str, body: bytes = b"") -> tuple[int, Headers, bytes]:
        """One exchange; raises OSError or EOFError where the connection ended before the answer did."""
        reader, writer, raw = await self._ask(
            f"{head}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        first, *lines = raw.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        content = await reader.readexactly(int(headers["content-length"])) if "content-length" in headers else b""
        if headers.get("connection") == "close" or "content-length" not in headers:
            if "content-length" not in headers:
                content = await reader.read()
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(first.split()[1]), headers, content

    async def _ask(self, message: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """Send, and wait for the head of the answer."""
        while True:
            kept = bool(self._idle)
            reader, writer = self._idle.pop() if kept else await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(message)
                return reader, writer, await reader.readuntil(b"\r\n\r\n")
            except (OSError, EOFError):
                writer.close()
                if not kept:  # else it had ended while it was idle
                    raise

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


class Host:
    """A host that meters a minute at a time."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.upload: tuple[int, int, bytes] | None = None
        """Start, end and frame of what has no receipt yet."""
        self.receipts = 0

    def due(self) -> tuple[int, int, bytes]:
        if self.upload is None:
            start = self.node.sent
            self.node.usage(2, span_us=30_000_000)
            self.upload = (start, self.node.size, zstd.compress(self.node.segment()))
        return self.upload


class Load:
    """Everything that is sent to one server."""

    def __init__(self, port: int, hosts: Sequence[Node], process: psutil.Process, token: str) -> None:
        self.seen = Seen()
        self.hosts = [Host(node) for node in hosts]
        self._wire = Wire(port)
        self._process = process
        self._token = token
        self._waiting = 0

    async def send(self, host: Host) -> None:
        start, end, frame = upload = host.due()
        self._waiting += 1
        try:
            receipt = await self._post(frame, host.node.origin)
        finally:
            self._waiting -= 1
        if receipt is None:
            return
        self._keep(host.node.origin, start, end, receipt)
        if host.upload is upload:
            host.upload = None
            host.receipts += 1

    def _keep(self, origin: str, start: int, end: int, receipt: bytes) -> None:
        if self.seen.receipts.setdefault((origin, start, end), receipt) != receipt:
            self.seen.wrong.append(f"{origin}: two receipts for {start}-{end}")

    async def _post(self, frame: bytes, what: str) -> bytes | None:
        """The receipt, or None where the answer is to come back later."""
        try:
            status, headers, content = await self._wire.request(
                f"POST /v1/segments HTTP/1.1\r\nContent-Type: {SEGMENT_TYPE}", frame
            )
        except (OSError, EOFError) as error:
            self.seen.wrong.append(f"{what}: no answer: {error!r}")
            return None
        self.seen.note(status, headers, what)
        if status not in (200, 409, 429, 503):
            self.seen.wrong.append(f"{what}: {status} {content[:200]!r}")
        return content if status == 200 else None

    # -- how hosts send

    async def closed_loop(self, seconds: float, workers: int = 32) -> float:
        """Receipts a second where every host waits for its answer: what the server and this client sustain."""
        until = time.monotonic() + seconds
        before = len(self.seen.receipts)

        async def worker(mine: Sequence[Host]) -> None:
            for host in itertools.cycle(mine):
                if time.monotonic() >= until:
                    return
                await self.send(host)

        await asyncio.gather(*(worker(self.hosts[at::workers]) for at in range(min(workers, len(self.hosts)))))
        return (len(self.seen.receipts) - before) / seconds

    async def open_loop(self, rate: float, seconds: float) -> None:
        """``rate`` uploads a second, from host after host; fewer where this client can't keep up either."""
        began = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        for at, host in enumerate(itertools.cycle(self.hosts)):
            due = began + at / rate
            if max(due, time.monotonic()) > began + seconds:
                break
            self.seen.offered += 1
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._waiting >= CONNECTIONS:
                self.seen.held += 1
                continue
            task = asyncio.create_task(self.send(host))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def settle(self, seconds: float) -> None:
        """Every host goes on until its last upload has a receipt."""
        async with asyncio.timeout(seconds):
            for host in self.hosts:
                while True:
                    await self.send(host)
                    if host.upload is None:
                        break
                    await asyncio.sleep(0.2)

    # -- who else is there

    async def flood(self, node: Node, segments: Sequence[bytes]) -> None:
        """One host that sends its backlog on many connections, again and again, never twice the same bytes."""
        frames = [(at, zstd.compress(data, level)) for level in range(1, 9) for at, data in enumerate(segments)]
        sizes = list(itertools.accumulate((_entries(data) for data in segments), initial=node.sent))

        async def one(number: int) -> None:
            while True:
                at, frame = frames[number % len(frames)]
                receipt = await self._post(frame, "flood")
                if receipt is not None:
                    self._keep(node.origin, sizes[at], sizes[at + 1], receipt)
                number += 1
                await asyncio.sleep(0.01)

        await asyncio.gather(*(one(number) for number in range(16)))

    async def dawdle(self) -> None:
        """A client that sends a byte now and then, until it is told to leave; then it comes again."""
        while True:
            with contextlib.suppress(OSError, EOFError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._wire.port)
                writer.write(f"POST /v1/segments HTTP/1.1\r\nContent-Type: {SEGMENT_TYPE}\r\nHost: x\r\n".encode())
                writer.write(b"Content-Length: 100000\r\n\r\n")
                answer = asyncio.create_task(reader.readline())
                while not answer.done():
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.wait([answer], timeout=0.5)
                self.seen.readings[f"dawdler told {answer.result().decode().strip() or 'nothing'}"] += 1
                writer.close()

    async def read(self, path: str) -> None:
        """An auditor who asks again and again."""
        while True:
            authorization = f"\r\nAuthorization: Bearer {self._token}"
            status, headers, content = await self._wire.request(
                f"GET {path} HTTP/1.1{authorization}\r\nConnection: close"
            )
            self.seen.note(status, headers, path)
            self.seen.readings[f"{path} {status}"] += 1
            if path == "/v1/bundle" and status == 200 and b"bundle.json" not in content:
                self.seen.wrong.append("a bundle without its end")
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def watch(self) -> None:
        """Health, memory and the queue, all the while."""
        while True:
            status, _, _ = await self._wire.request("GET /healthz HTTP/1.1")
            self.seen.readings[f"/healthz {status}"] += 1
            _, _, metrics = await self._wire.request("GET /metrics HTTP/1.1")
            (line,) = (line for line in metrics.decode().splitlines() if line.startswith("keyturn_queue_bytes "))
            self.seen.queued = max(self.seen.queued, int(float(line.split()[1])))
            self.seen.rss.append(self._process.memory_info().rss)
            await asyncio.sleep(0.5)

    async def during(self, work: Awaitable[None], others: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """``work`` to its end, with everybody else beside it; an error of theirs is raised."""
        running = [asyncio.ensure_future(other()) for other in others]
        main = asyncio.ensure_future(work)
        done, _ = await asyncio.wait([main, *running], return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        if main not in done:
            main.cancel()
        results = await asyncio.gather(main, *running, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    def close(self) -> None:
        self._wire.close()


def backlog(node: Node, count: int) -> Iterator[bytes]:
    """Segments of almost 4 MiB, the next ones of a log with many chips."""
    for _ in range(count):
        start = node.size
        while sum(len(line) + 1 for line in node.lines[start:]) < 4_000_000 and node.size - start < 250:
            node.usage(1)
        yield node.segment()


def _entries(segment: bytes) -> int:
    return segment.partition(b"\n\n")[0].count(b"\n") + 1
