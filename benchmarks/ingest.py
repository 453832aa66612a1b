"""Ingest on SQLite and on PostgreSQL: a batch by itself, and small segments over HTTP.

service    segments of 8-GPU hosts through queue, thread and transaction, against the same bytes through zstd, SHA-256,
           typed decode, one Ed25519 check and one plain durable write a batch. 256 entries and 6. Bar for the large
           ones: 0.5 on SQLite, 0.4 on PostgreSQL.
http       6-entry segments (a minute of a host) over HTTP, in CPU seconds of the serving process, against the same
           server doing nothing, plus SHA-256, typed decode, one verify, one sign, one group-committed insert.
           Bar: 0.7, and 50,000 hosts a core. Hosts a core = 60 x receipts a CPU second.

CPU of the PostgreSQL server itself is a fact beside the figure: it may be another machine's.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import psutil
import psycopg
import uvicorn
from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _host import Host
from _report import best_of, report

from keyturn_protocol.api import SEGMENT_TYPE, SEGMENTS
from keyturn_protocol.entries import Entry
from keyturn_protocol.keys import ed25519_public_key
from keyturn_protocol.segment import parse_segment
from keyturn_verifier import service
from keyturn_verifier.clock import wall_clock
from keyturn_verifier.server import bind
from tests.support.postgres import own_server
from tests.support.verifier import DEPLOYMENT, Database, Served, Verifier

HOSTS, ROUNDS = 32, 4
SMALL_BATCH = 256
SMALL_HOSTS, SMALL_ROUNDS, SMALL_ENTRIES, CONNECTIONS = 400, 12, 6, 64


@dataclass(frozen=True)
class Store:
    """Where a verifier keeps its data. ``server``: PostgreSQL's first process, if it is that."""

    name: str
    durability: str
    database: Database = lambda: None
    server: psutil.Process | None = None

    def cpu_s(self) -> float:
        """Of PostgreSQL's processes that are there now."""
        if self.server is None:
            return 0.0
        return sum(_cpu(process) for process in (self.server, *self.server.children()))


@contextlib.contextmanager
def stores() -> Iterator[list[Store]]:
    with own_server(durable=True) as server:
        pid = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
        yield [
            Store("SQLite", "WAL, synchronous=FULL"),
            Store("PostgreSQL", "fsync=on, synchronous_commit=on", server.database, psutil.Process(pid)),
        ]


@dataclass(frozen=True)
class Load:
    """Uploads by round; within a round one of each host."""

    hosts: list[Host]
    first: list[bytes]
    rounds: list[list[bytes]]


def make_load(hosts: int, rounds: int, entries: int) -> Load:
    made = [Host(seed, DEPLOYMENT) for seed in range(hosts)]
    first = [zstd.compress(h.segment(3)) for h in made]
    return Load(made, first, [[zstd.compress(h.segment(entries)) for h in made] for _ in range(rounds)])


def join(verifier: Verifier, load: Load) -> None:
    """Enrol every host: side by side, or the commits of hundreds take a minute before anything is measured."""
    token = verifier.join_token(len(load.hosts))

    def one(host: Host, frame: bytes) -> None:
        assert verifier.client.join_with(str(host.vkey), token).status == 200
        reply = verifier.client.post_raw(frame)
        assert reply.status == 200, reply

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(one, load.hosts, load.first))


def limit_of(frames: list[bytes], keys: list[bytes]) -> Callable[[Path], None]:
    """What no verifier can leave out: decompress, hash, decode, check one signature, write durably."""
    decoder = msgspec.json.Decoder(Entry)

    def work(out: Path) -> None:
        with out.open("wb") as file:
            for frame, key in zip(frames, keys, strict=True):
                data = zstd.decompress(frame)
                sha256(data).digest()
                head, _, _ = data.partition(b"\n\n")
                for line in head.split(b"\n"):
                    decoder.decode(line)
                segment = parse_segment(data)
                ed25519_public_key(key).verify(segment.note.signatures[0].signature, segment.note.text)
                file.write(frame)
            file.flush()
            os.fdatasync(file.fileno())

    return work


def service_alone(store: Store, load: Load, entries: int, bar: float | None) -> None:
    hosts = len(load.hosts)
    with tempfile.TemporaryDirectory() as folder, Verifier(Path(folder), db=store.database) as verifier:
        join(verifier, load)

        async def one(frames: list[bytes]) -> None:
            ingest = service.build(verifier.settings, verifier.engine, verifier.keys, wall_clock).ingest
            ingest.start(asyncio.get_running_loop())
            await asyncio.gather(*(ingest.intake.submit(frame, plain=False) for frame in frames))
            await asyncio.to_thread(ingest.stop)

        times = []
        for frames in load.rounds:
            start = time.perf_counter()
            asyncio.run(one(frames))
            times.append(time.perf_counter() - start)
        work = limit_of(load.rounds[0], [h.public_key for h in load.hosts])
        limit_s = best_of(3, lambda: work(Path(folder) / "limit"))
    report(
        f"ingest, service alone, {entries}-entry segments, {store.name}",
        seconds=min(times),
        limit_s=limit_s,
        bar=bar,
        durability=store.durability,
        segments=hosts,
        entries_a_s=round(hosts * entries / min(times)),
    )


def serve_idle(ready: Connection) -> None:
    """The same server around an application that does nothing."""
    listener = bind("127.0.0.1", 0)
    settings = uvicorn.Config(
        _Idle(), loop="uvloop", http="httptools", ws="none", lifespan="off", log_config=None, access_log=False
    )

    async def run() -> None:
        ready.send(listener.getsockname()[1])
        await uvicorn.Server(settings).serve([listener])

    asyncio.run(run())


class _Idle:
    """Reads a body and answers with a receipt's worth of bytes."""

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"120")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 120})


@contextlib.contextmanager
def idle() -> Iterator[tuple[int, psutil.Process]]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_idle, args=(there,))
    process.start()
    try:
        yield here.recv(), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """``keyturn-verifier serve`` as operators run it."""
    verifier = Served(folder / "state")
    client = verifier.start()
    try:
        client.get("/healthz")
        yield int(client.url.rpartition(":")[2]), psutil.Process(verifier.process.pid)
    finally:
        verifier.terminate()


async def _send(port: int, rounds: list[list[bytes]]) -> None:
    """Every connection has hosts of its own and sends their segments in order."""

    async def connection(mine: list[list[bytes]]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for frames in mine:
            for body in frames:
                head = f"POST {SEGMENTS} HTTP/1.1\r\nHost: x\r\nContent-Type: {SEGMENT_TYPE}\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                assert b" 200 " in answer.partition(b"\r\n")[0], answer
                size = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(size)
        writer.close()

    await asyncio.gather(*(connection([frames[i::CONNECTIONS] for frames in rounds]) for i in range(CONNECTIONS)))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def over_http(store: Store, load: Load) -> None:
    count = SMALL_HOSTS * SMALL_ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        with Verifier(Path(folder), db=store.database) as verifier:
            join(verifier, load)
        with served(Path(folder)) as (port, process):
            cpu, start, database_s = _cpu(process), time.perf_counter(), store.cpu_s()
            asyncio.run(_send(port, load.rounds))
            wall_s, ours_s = time.perf_counter() - start, _cpu(process) - cpu
            database_s = store.cpu_s() - database_s
        with idle() as (port, process):
            cpu = _cpu(process)
            asyncio.run(_send(port, load.rounds))
            idle_s = _cpu(process) - cpu
        frames = [frame for frames in load.rounds for frame in frames]
        keys = [h.public_key for h in load.hosts] * SMALL_ROUNDS
        least_s = _least(_sqlite(Path(folder)) if store.server is None else _postgres(store), frames, keys)
    report(
        f"receipts over HTTP, {store.name}",
        seconds=ours_s,
        limit_s=idle_s + least_s,
        bar=0.7,
        durability=store.durability,
        segments=count,
        entries=SMALL_ENTRIES,
        receipts_a_cpu_s=round(count / ours_s),
        hosts_a_core=round(60 * count / ours_s),
        hosts_bar=50_000,
        us_a_receipt=round(ours_s / count * 1e6),
        us_idle_server=round(idle_s / count * 1e6),
        us_least_work=round(least_s / count * 1e6),
        us_database_server=round(database_s / count * 1e6),
        wall_s=round(wall_s, 2),
    )


Insert = Callable[[list[bytes]], None]
"""Stores frames in one transaction."""


def _sqlite(folder: Path) -> Insert:
    store = sqlite3.connect(folder / "limit.db", isolation_level=None)
    for line in (
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL",
        "CREATE TABLE s (id INTEGER PRIMARY KEY, b BLOB)",
    ):
        store.execute(line)

    def insert(batch: list[bytes]) -> None:
        store.execute("BEGIN IMMEDIATE")
        store.executemany("INSERT INTO s (b) VALUES (?)", [(frame,) for frame in batch])
        store.execute("COMMIT")

    return insert


def _postgres(store: Store) -> Insert:
    connection = psycopg.connect(store.database() or "", autocommit=True)
    connection.execute("CREATE TABLE s (id BIGSERIAL PRIMARY KEY, b BYTEA)")

    def insert(batch: list[bytes]) -> None:
        with connection.cursor() as cursor, cursor.copy("COPY s (b) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["bytea"])
            for frame in batch:
                copy.write_row((frame,))

    return insert


def _least(insert: Insert, frames: list[bytes], keys: list[bytes]) -> float:
    """CPU seconds of hash, decode, verify, sign and a group-committed insert for every frame."""
    decoder, signer = msgspec.json.Decoder(Entry), Ed25519PrivateKey.generate()
    start = time.process_time()
    for first in range(0, len(frames), CONNECTIONS):
        batch = frames[first : first + CONNECTIONS]
        for frame, key in zip(batch, keys[first : first + CONNECTIONS], strict=True):
            data = zstd.decompress(frame)
            sha256(data).digest()
            for line in data.partition(b"\n\n")[0].split(b"\n"):
                decoder.decode(line)
            segment = parse_segment(data)
            ed25519_public_key(key).verify(segment.note.signatures[0].signature, segment.note.text)
            signer.sign(segment.note.text)
        insert(batch)
    return time.process_time() - start


def main() -> None:
    large = make_load(HOSTS, ROUNDS, 256)
    small = make_load(SMALL_BATCH, ROUNDS, SMALL_ENTRIES)
    http = make_load(SMALL_HOSTS, SMALL_ROUNDS, SMALL_ENTRIES)
    with stores() as found:
        for store in found:
            service_alone(store, large, 256, 0.5 if store.server is None else 0.4)
            service_alone(store, small, SMALL_ENTRIES, None)
            over_http(store, http)


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as the server and its limit run
    main()
