"""The start switch: a permit verified on a host, leases issued to many at once, a suspension that reaches everybody.

*permit*: a bundle with so many decisions, opened as a host does it (parsed, every signature verified, every state
computed again), and the states alone, as who has verified them once computes them again; both against checking the same
Ed25519 signatures alone. Bar at 30 decisions: 0.8.
*leases*: 16 clients of one server ask at once, each host for one lease after the other with a report in between; the
budget is held against what was granted. Limit: the same uploads and no leases. *together*: one group of 1,000 hosts,
none of which starts before all have asked; limit as before. *waiting*: 1,000 hosts wait for a run over HTTP, a
veto-holder suspends it, and all have the bundle: in seconds, so the bar is five.

Wall times, so a busy machine shows. Durability: SQLite WAL, synchronous=FULL; PostgreSQL with fsync off.
KEYTURN_BENCH_WAITING makes the last two smaller.
"""

import math
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import best_of, report, report_below

from keyturn_protocol.dsse import pae
from keyturn_protocol.keys import verify_ed25519
from keyturn_protocol.lease import Lease
from keyturn_protocol.permit import open_permit_bundle, parse_permit_bundle
from keyturn_protocol.root import Threshold
from keyturn_protocol.statements import parse_payload
from keyturn_protocol.switch import Switch, log_statement
from keyturn_verifier.server import allowed_connections
from tests.support.assembly import Assembly
from tests.support.office import Office
from tests.support.parties import NAME, PEOPLE, person, public, root, tier
from tests.support.postgres import own_server
from tests.support.starter import Starter
from tests.support.verifier import Database, Verifier

CLIENTS, TURNS = 16, 4
WAITING = int(os.environ.get("KEYTURN_BENCH_WAITING", "1000"))
BUDGET = 10**9
BAR_S = 5.0


def permit(decisions: int) -> None:
    extra = [f"lab-a/p{number:03d}" for number in range(decisions)]
    whole = root(persons=[person(name) for name in sorted([*PEOPLE, *extra])])
    approve = Threshold(persons=decisions, organisations=1, minimum={"lab": 1})
    hall = Assembly(of=whole, tiers=[tier(approve=approve)])
    run = hall.say(hall.request(), "lab-a/ada")
    for name in extra:
        hall.say(hall.decision(run, name), name)
    data = hall.bundle(run)
    keys = {public(name).id: public(name).point for name in [*PEOPLE, *extra]}
    signed = [
        (keys[key_id], signature, pae(one.envelope.kind, one.envelope.payload))
        for one in parse_permit_bundle(data).statements
        for key_id, signature in one.envelope.signatures.items()
    ]

    def bare() -> None:
        for key, signature, message in signed:
            verify_ed25519(key, signature, message)

    opened = open_permit_bundle(parse_permit_bundle(data), hall.root, NAME)
    logged = [
        log_statement(
            one.envelope,
            parse_payload(one.envelope.kind, one.envelope.payload),
            one.index,
            one.time_us,
            opened.authority,
        )
        for one in opened.bundle.statements
    ]

    def again() -> None:
        switch = Switch(NAME)
        for one in logged:
            switch.take(one)
        assert switch.runs[run].permit is not None

    whole_s = limit_s = state_s = math.inf
    for _ in range(20):  # in turns: what else the machine does meets all three
        limit_s = min(limit_s, best_of(1, bare))
        whole_s = min(whole_s, best_of(1, lambda: open_permit_bundle(parse_permit_bundle(data), hall.root, NAME)))
        state_s = min(state_s, best_of(1, again))
    bar = 0.8 if decisions == 30 else None
    for what, seconds in (("permit verified", whole_s), ("state recomputed", state_s)):
        more = {"signatures": len(signed), "ms": round(seconds * 1_000, 2), "bundle_kib": len(data) // 1024}
        report(f"{what}, {decisions} decisions", seconds=seconds, limit_s=limit_s, bar=bar, **more)


def leases(name: str, database: Database, durability: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Verifier(Path(folder), db=database) as verifier:
        office = Office.opened(verifier)
        run = office.approved(scope=office.scope(budget_tflop=BUDGET, chips=1024))
        hosts = [Starter.enrolled(verifier, number) for number in range(CLIENTS)]
        granted = [0] * CLIENTS

        def work(at: int, *, leased: bool) -> None:
            host = hosts[at]
            for turn in range(TURNS):
                seq = host.ask(run)
                answer = host.get(seq) if leased else None
                if answer is not None and answer.status == 200:
                    granted[at] += 1
                    host.report(host.opened(answer), turn + 1, "adopted")
                elif not leased:
                    host.node.heartbeat()
                    host.send()

        def together(*, leased: bool) -> float:
            threads = [threading.Thread(target=work, args=(at,), kwargs={"leased": leased}) for at in range(CLIENTS)]
            start = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return time.perf_counter() - start

        limit_s = together(leased=False)
        seconds = together(leased=True)
        seen = office.view(run)
        assert seen.committed_tflop <= BUDGET, seen
        rate = round(sum(granted) / seconds, 1)
        more = {"clients": CLIENTS, "leases": sum(granted), "leases_a_s": rate, "durability": durability}
        committed = {"committed_tflop": seen.committed_tflop, "budget_tflop": BUDGET}
        report(f"leases, {name}", seconds=seconds, limit_s=limit_s, bar=None, **more, **committed)


def together(name: str, database: Database, durability: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Verifier(Path(folder), db=database) as verifier:
        office = Office.opened(verifier)
        run = office.approved(scope=office.scope(budget_tflop=10**12, chips=WAITING))
        hosts = [Starter.enrolled(verifier, number, chips=1) for number in range(WAITING)]
        leases: list[Lease] = []

        def beat(mine: Sequence[Starter]) -> None:
            for host in mine:
                host.node.heartbeat()
                host.send()

        def ask(mine: Sequence[Starter]) -> None:
            seqs = [host.ask(run, hosts=WAITING) for host in mine]
            for host, seq in zip(mine, seqs, strict=True):
                while (answer := host.get(seq)).status != 200:
                    assert answer.code == "waiting", answer
                    time.sleep(0.05)
                leases.append(host.opened(answer))

        limit_s, seconds = (_side_by_side(work, [hosts[at::CLIENTS] for at in range(CLIENTS)]) for work in (beat, ask))
        seen = office.view(run)
        assert len(leases) == WAITING
        assert sum(lease.upto_tflop for lease in leases) == seen.committed_tflop <= 10**12, seen
        more = {"clients": CLIENTS, "leases_a_s": round(WAITING / seconds, 1), "durability": durability}
        report(f"{WAITING} hosts start together, {name}", seconds=seconds, limit_s=limit_s, bar=None, **more)


def _side_by_side(work: Callable[[Sequence[Starter]], None], shares: Sequence[Sequence[Starter]]) -> float:
    with ThreadPoolExecutor(len(shares)) as pool:
        start = time.perf_counter()
        list(pool.map(work, shares))
        return time.perf_counter() - start


def waiting(name: str, database: Database, durability: str) -> None:
    allowed_connections(2 * WAITING)
    with tempfile.TemporaryDirectory() as folder, Verifier(Path(folder), db=database) as verifier, ExitStack() as stack:
        office = Office.opened(verifier)
        run = office.approved()
        at = parse_permit_bundle(verifier.client.get(f"/v1/runs/{run}/permit").body).index
        place = urlsplit(verifier.client.url)
        asked = f"GET /v1/runs/{run}/permit?after={at}&wait_s=60 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        hosts = []
        start = time.perf_counter()
        for _ in range(WAITING):
            hosts.append(stack.enter_context(socket.create_connection((place.hostname, place.port))))
            hosts[-1].sendall(asked.encode())
        while verifier.service.watch.waiting < WAITING:
            time.sleep(0.005)
        asked_s, threads = time.perf_counter() - start, threading.active_count()
        start = time.perf_counter()
        office.suspend(run)
        size = 0
        for host in hosts:
            while part := host.recv(65_536):
                size += len(part)
        seconds, what = time.perf_counter() - start, f"a suspension reaches {WAITING} hosts, {name}"
        more = {"asked_s": round(asked_s, 3), "threads": threads, "kib": size // 1024, "durability": durability}
        report_below(what, seconds, "s", bar=BAR_S, **more, built=verifier.service.permits.built)


def main() -> None:
    for decisions in (3, 30, 300):
        permit(decisions)
    leases("SQLite", lambda: None, "WAL, synchronous=FULL")
    together("SQLite", lambda: None, "WAL, synchronous=FULL")
    waiting("SQLite", lambda: None, "WAL, synchronous=FULL")
    with own_server() as server:
        leases("PostgreSQL", server.database, "fsync=off")
        together("PostgreSQL", server.database, "fsync=off")
        waiting("PostgreSQL", server.database, "fsync=off")


if __name__ == "__main__":
    main()
