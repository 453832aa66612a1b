"""One person says far too much about one run, over HTTP from several clients: what that costs is bounded, nobody else
is kept from deciding, and an audit of all of it passes."""

import threading
from collections import Counter
from pathlib import Path

import pytest

from keyturn_protocol import saying
from keyturn_protocol.api import Problem
from keyturn_protocol.audit import audit
from keyturn_protocol.canonical import decode
from keyturn_protocol.chips import chip_table
from keyturn_protocol.limits import SAID_BYTES, SIGNED_BYTES
from keyturn_protocol.permit import parse_permit_bundle
from keyturn_protocol.statements import format_statement
from tests.faults.table import LONG
from tests.support.office import Office
from tests.support.parties import envelope
from tests.support.verifier import Database, FolderReader, Verifier

DECISIONS = 10_000 if LONG else 240
MAY_SAY = SAID_BYTES if LONG else 40_000
CLIENTS = 4
JSON = "application/json"


@pytest.mark.timeout(1800)
def test_ten_thousand_decisions_on_one_request(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saying, "SAID_BYTES", MAY_SAY)
    with Verifier(tmp_path / "v", db=database) as verifier:
        office = Office.opened(verifier)
        run = office.request()
        verdicts = ("approve", "deny")
        said = [office.make_decision(run, "lab-a/bob", verdicts[at % 2], time_us=at) for at in range(DECISIONS)]
        sent = [envelope(one, "lab-a/bob").to_bytes() for one in said]
        answers: Counter[tuple[int, str]] = Counter()
        lock = threading.Lock()

        def flood(mine: list[bytes]) -> None:
            for data in mine:
                reply = verifier.client.request("POST", "/v1/statements", data, content_type=JSON)
                why = "" if reply.status == 200 else decode(reply.body, Problem).detail.partition(":")[0]
                with lock:
                    answers[reply.status, why] += 1

        threads = [threading.Thread(target=flood, args=(sent[at::CLIENTS],)) for at in range(CLIENTS)]
        for thread in threads:
            thread.start()
        office.decide(run, "operator-b/eve")  # in the middle of it
        for thread in threads:
            thread.join()

        assert set(answers) <= {(200, ""), (422, "too_much")}, answers
        sizes = [len(format_statement(one)) * 4 // 3 + SIGNED_BYTES for one in said]
        # One denial more than that, where an approval was the last word.
        assert MAY_SAY / max(sizes) - 1 <= answers[200, ""] <= MAY_SAY / min(sizes) + 1, answers
        bundle = parse_permit_bundle(verifier.client.get(f"/v1/runs/{run}/permit").body)
        # A root, a policy, the request, what is heard of the other one, and no more than one may say.
        assert len(bundle.statements) == 4 + answers[200, ""]
        assert office.view(run).state == "pending"
        office.decide(run, "office/ivy", verdict="veto")
        assert office.view(run).state == "denied"
        report = audit(FolderReader(verifier.export(tmp_path / "bundle")), None, chip_table(), root_sha256=office.root)
        assert (report.outcome, report.reasons) == ("pass", ())
