"""Kill -9 of a serving verifier while people say things and hosts ask for leases, over and over: whatever was answered
is there, what wasn't is there or not and can be sent again, and no budget is given out twice.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import urllib3

from keyturn_protocol.audit import audit
from keyturn_protocol.chips import chip_table
from keyturn_protocol.runs import Resume
from keyturn_protocol.statements import Statement
from tests.faults.table import LONG
from tests.support.node import Client, Reply
from tests.support.office import APPROVERS, Office
from tests.support.parties import envelope
from tests.support.starter import Starter, hash_in
from tests.support.verifier import Database, FolderReader, Served, Verifier, call

ROUNDS = 30 if LONG else 1
ANSWERS = 20
"""So many are awaited before each kill."""
HOSTS, BUDGET = 3, 1_000
JSON = "application/json"


@dataclass
class Heard:
    """What clients were answered, by threads of all of them."""

    statements: dict[bytes, bytes] = field(default_factory=dict)
    """Envelope → the item that it got."""
    leases: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """Entry → the lease that it got."""
    unanswered: int = 0
    failures: list[object] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def count(self) -> int:
        return len(self.statements) + len(self.leases)


class Person:
    """Asks for runs, has them approved, suspends and resumes them, one statement after the other."""

    def __init__(self, office: Office, heard: Heard) -> None:
        self.office, self.heard = office, heard
        self.pending: bytes | None = None

    def work(self, client: Client) -> None:
        if self.pending is not None:
            self.send(client, self.pending)
        while not self.heard.stop.is_set():
            made = self.office.make_request()
            run = self.say(client, made, "lab-a/ada")
            for who in APPROVERS:
                self.say(client, self.office.make_decision(run, who), who)
            stop = self.say(client, self.office.make_suspension(run), "office/ivy")
            fields = {"run": run, "person": "lab-a/ada", "after": [stop], "reason": "because"}
            proposal = self.say(client, Resume(**self.office.common(**fields)), "lab-a/ada")
            for who in APPROVERS:
                self.say(client, self.office.make_decision(proposal, who), who)

    def say(self, client: Client, statement: Statement, who: str) -> str:
        sent = envelope(statement, who)
        self.send(client, sent.to_bytes())
        return sent.hash.hex()

    def send(self, client: Client, data: bytes) -> None:
        """Kept until it is answered."""
        self.pending = data
        answer = client.request("POST", "/v1/statements", data, content_type=JSON)
        assert answer.status == 200, answer
        self.heard.statements[data] = answer.body
        self.pending = None


class Renting:
    """A host that asks, reports and asks again, and sends again what wasn't answered."""

    def __init__(self, host: Starter, run: str, heard: Heard) -> None:
        self.host, self.run, self.heard = host, run, heard
        self.asked: int | None = None

    def work(self, client: Client) -> None:
        while not self.heard.stop.is_set():
            self.upload(client)
            if self.asked is None:
                self.host.node.append(self.host.wants(self.run))
                self.asked = self.host.node.size - 1
                self.upload(client)
            answer = self.host.get(self.asked, client)
            if answer.status == 200:
                self.heard.leases[self.host.node.origin, self.asked] = answer.body
                lease = self.host.opened(answer)
                used = random.randint(0, max(0, min(2, lease.upto_tflop - lease.charged_tflop)))
                event = random.choice(["adopted", "adopted", "adopted", "final"])
                self.host.node.append(self.host.says(lease, lease.charged_tflop + used, event))
            else:
                assert (answer.status, answer.code) == (422, "lease_refused"), answer
                assert answer.problem.detail.startswith("exhausted: "), answer
                time.sleep(0.01)
            self.asked = None

    def upload(self, client: Client) -> None:
        node = self.host.node
        if node.sent < node.size:
            answer = client.post(node.range(node.sent, node.size))
            assert answer.status == 200, answer
            node.sent = node.size


def until_it_is_gone(heard: Heard, work: Callable[[Client], None], client: Client) -> None:
    try:
        work(client)
    except urllib3.exceptions.HTTPError:
        heard.unanswered += 1
    except BaseException as error:
        heard.failures.append(error)
        raise


@pytest.mark.timeout(900)
def test_kill_9_in_a_loop_loses_no_statement_and_no_lease(tmp_path: Path, database: Database) -> None:
    # This one doesn't serve: it has the keys and the database of the one that does.
    site = Verifier(tmp_path, db=database)
    served, heard = Served(site.state), Heard()
    site.client = served.start()
    office = Office.opened(site)
    run = office.approved(scope=office.scope(budget_tflop=BUDGET, chips=64))
    hosts = [Starter.enrolled(site, number) for number in range(HOSTS)]
    workers = [Renting(host, run, heard) for host in hosts]
    people = [Person(office, heard) for _ in range(2)]
    client = site.client
    for _ in range(ROUNDS):
        heard.stop.clear()
        jobs = [*(one.work for one in workers), *(one.work for one in people)]
        threads = [threading.Thread(target=until_it_is_gone, args=(heard, job, client)) for job in jobs]
        for thread in threads:
            thread.start()
        before = heard.count
        while heard.count < before + ANSWERS and not heard.failures:
            time.sleep(0.001)
        time.sleep(random.random() / 20)
        served.kill()
        heard.stop.set()
        for thread in threads:
            thread.join()
        assert heard.failures == []
        client = served.start()
        site.client = client
        assert office.view(run).committed_tflop <= BUDGET
    assert heard.unanswered >= ROUNDS

    # What was answered is answered alike; what wasn't can be sent again.
    for data, item in heard.statements.items():
        answer = client.request("POST", "/v1/statements", data, content_type=JSON)
        assert (answer.status, answer.body) == (200, item)
    for (origin, seq), note in heard.leases.items():
        host = next(one for one in hosts if one.node.origin == origin)
        assert replied(host.get(seq, client)) == note
    for person in people:
        if person.pending is not None:
            person.send(client, person.pending)
    for worker in workers:
        worker.upload(client)
    seen = office.view(run)
    assert served.terminate() == 0

    assert seen.committed_tflop <= BUDGET
    done = call("check", "--state", site.state)
    assert (done.returncode, done.stdout) == (0, ""), done
    bundle = site.export(tmp_path / "evidence")
    report = audit(FolderReader(bundle), None, chip_table(), root_sha256=office.root)
    assert (report.outcome, report.reasons) == ("pass", ())
    total = next(one for one in report.runs if one.hash == run)
    assert (total.charged_tflop, total.committed_tflop) == (seen.charged_tflop, seen.committed_tflop)
    for note in heard.leases.values():
        assert (bundle / "leases" / f"{hash_in(Reply(200, note, {}))}.lease").read_bytes() == note
    site.engine.dispose()


def replied(answer: Reply) -> bytes:
    assert answer.status == 200, answer
    return answer.body
