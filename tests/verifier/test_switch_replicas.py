"""Two replicas on one PostgreSQL: whoever they are asked by at the same moment, there is one permit and one budget."""

import threading
from collections.abc import Callable
from pathlib import Path

from keyturn_protocol.audit import audit
from keyturn_protocol.chips import chip_table
from keyturn_verifier.check import check
from keyturn_verifier.db.engine import reading
from tests.support.node import Client, Reply
from tests.support.office import APPROVERS, Office
from tests.support.parties import envelope
from tests.support.postgres import Postgres
from tests.support.starter import Starter
from tests.support.verifier import FolderReader, Verifier

BUDGET = 1_000
HOSTS = 6


def at_once(jobs: "list[Callable[[], None]]") -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_decisions_and_leases_at_two_replicas_at_once(tmp_path: Path, postgres: Postgres) -> None:
    with Verifier(tmp_path, db=postgres.database) as one, Verifier(tmp_path) as two:
        office = Office.opened(one)
        run = office.request(scope=office.scope(budget_tflop=BUDGET, chips=64))
        clients = [one.client, two.client]
        answers: list[Reply] = []

        def post(client: Client, data: bytes) -> None:
            answers.append(client.request("POST", "/v1/statements", data, content_type="application/json"))

        decisions = [envelope(office.make_decision(run, who), who).to_bytes() for who in APPROVERS]
        at_once([lambda c=c, d=d: post(c, d) for d in decisions * 2 for c in clients])  # type: ignore[misc]
        assert [answer.status for answer in answers] == [200] * 12
        assert one.count("statement") == 3 + len(APPROVERS)
        assert office.view(run).state == "approved"

        hosts = [Starter.enrolled(one, number) for number in range(HOSTS)]
        replies: list[Reply] = []

        def lease(host: Starter, client: Client) -> None:
            for turn in range(4):
                seq = host.ask(run, client=client)
                # Both replicas are asked for the same entry: it is one lease.
                got = [host.get(seq, each) for each in (client, clients[turn % 2])]
                replies.extend(got)
                assert len({answer.body for answer in got if answer.status == 200}) <= 1
                if got[0].status == 200:
                    host.report(host.opened(got[0]), 10 * (turn + 1), "adopted")

        at_once([lambda h=h, c=clients[at % 2]: lease(h, c) for at, h in enumerate(hosts)])  # type: ignore[misc]
        assert {answer.status for answer in replies} <= {200, 422}
        assert any(answer.status == 200 for answer in replies)
        seen = office.view(run)
        assert seen.committed_tflop <= BUDGET
        with reading(two.engine) as connection:
            assert [str(found) for found in check(connection, two.trust)] == []
        report = audit(FolderReader(one.export(tmp_path / "out")), one.trust, chip_table(), root_sha256=office.root)
        assert report.contradictions == ()
        (total,) = report.runs
        assert (total.committed_tflop, total.charged_tflop) == (seen.committed_tflop, seen.charged_tflop)
