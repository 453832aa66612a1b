"""An insider with SQL, on both databases: what `check`, an export and its audit say, and what the server does."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from keyturn_cli.auditing import Pins, run_audit
from keyturn_protocol.audit import Report
from keyturn_protocol.errors import ProtocolError
from keyturn_verifier.check import check
from keyturn_verifier.db.engine import reading
from keyturn_verifier.errors import VerifierError
from tests.faults import table
from tests.faults.tamper.database import HISTORIES, Edit, operators, unchecked
from tests.faults.tamper.database_site import Kept, make
from tests.faults.tamper.forgery import without_names
from tests.support.postgres import any_server
from tests.support.verifier import FolderReader, Verifier

OPERATORS = operators()
SAMPLE = [edit for at, edit in enumerate(OPERATORS) if edit in HISTORIES or at % 12 == 0]
"""What `make test` takes, on SQLite."""
_numbers = count()


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"] if table.LONG else ["SQLite"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Kept]]:
    folder = tmp_path_factory.mktemp("site")
    if request.param == "SQLite":
        yield request.param, make(folder, None)
        return
    with any_server() as server:
        yield request.param, make(folder, server)


def checked(verifier: Verifier, given: bytes | None = None) -> list[str]:
    with reading(verifier.engine) as connection:
        return [str(one) for one in check(connection, verifier.trust, given)]


def audited(verifier: Verifier, kept: Kept, out: Path, checkpoint: bytes | None = None) -> Report | str:
    """The report on an export under the pinned root, or why there is none."""
    try:
        bundle = FolderReader(verifier.export(out))
        pins = Pins(trust=verifier.trust, root_sha256=kept.root, checkpoint=checkpoint)
        return run_audit(bundle, pins, 1, lambda *_: None)
    except (VerifierError, ProtocolError, DBAPIError, KeyError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(scope="module")
def before(site: tuple[str, Kept], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What an audit says without any tampering: two nodes signed what they must not, and nothing else."""
    folder = tmp_path_factory.mktemp("before")
    with site[1].copy(folder, next(_numbers)) as verifier:
        assert checked(verifier, site[1].checkpoint) == []
        report = audited(verifier, site[1], folder / "bundle", site[1].checkpoint)
        assert isinstance(report, Report)
        assert [c.where.partition("/")[0] for c in report.contradictions] == ["evidence", "evidence"]
        return list(report.reasons)


@pytest.mark.parametrize("edit", OPERATORS if table.LONG else SAMPLE, ids=lambda e: e.name.replace(" ", "_"))
def test_an_edit(edit: Edit, site: tuple[str, Kept], before: list[str], tmp_path: Path) -> None:
    kind, kept = site
    with kept.copy(tmp_path, next(_numbers)) as verifier:
        # An engine of the insider's own: nothing of the verifier's holds it back.
        with (engine := create_engine(verifier.engine.url)).begin() as connection:
            unchecked(connection)
            edit.run(connection)
        engine.dispose()
        said = checked(verifier, kept.checkpoint)
        alone = checked(verifier)
        report = audited(verifier, kept, tmp_path / "bundle")
        if table.LONG and kind == "SQLite":
            served(verifier, kept)
    words = [_audit(report, before)]
    if edit.why_not is not None:
        assert (said, words) == ([], ["audit: as before"])
    else:
        assert said, f"{edit.name}: nobody found it; the audit said {words}"
        tables = sorted({line.partition(":")[0] for line in alone})
        words.insert(0, f"check names {', '.join(tables)}" if alone else "check names it with --checkpoint only")
    table.record_all(
        *("tamper", f"verifier ({kind}), SQL", edit.name),
        expected="found" if edit.why_not is None else f"no evidence: {edit.why_not}",
        seen=["; ".join(words)],
    )


def served(verifier: Verifier, kept: Kept) -> None:
    """The server goes on: it answers, or says that it can't now; it never breaks."""
    busy = kept.busy.copy()
    node = f"{busy.name.node_id}/1"
    asked = ["nodes", "logs", "usage", "workloads", "findings", "findings/groups", "maintenance", "bundle"]
    asked += [
        "usage/buckets?bucket=month&by=site",
        f"logs/{node}/head",
        f"logs/{node}/segments",
        f"logs/{node}/segments/0",
    ]
    asked += [f"logs/{node}/proof/inclusion?index=1&size=20", f"logs/{node}/proof/consistency?old_size=20&size=47"]
    with verifier:
        client = verifier.client
        replies = {path: client.get(f"/v1/{path}", kept.auditor) for path in asked}
        for path in ("checkpoint", "tile/0/000", "tile/1/000.p/1", "tile/entries/000"):
            replies[path] = client.get(f"/log/{path}", kept.auditor)
        for path in ("/metrics", "/readyz", "/healthz"):
            replies[path] = client.get(path)
        replies["segment"] = client.post(busy.segment(busy.usage(1)))
    for path, reply in replies.items():
        assert reply.status < 500 or (reply.status == 503 and "retry-after" in reply.headers), (path, reply)
    # What is damaged here is no reason for a node to leave its log.
    assert replies["segment"].status in (200, 409, 422, 429, 503) or replies["segment"].code in LEAVING, replies[
        "segment"
    ]


LEAVING = {"unknown_log", "bad_signature", "damaged_segment"}
"""What a node is told whose log, key or head somebody edited: it keeps its bytes and opens another."""


def _audit(report: Report | str, before: list[str]) -> str:
    if isinstance(report, str):
        return "no export: " + without_names(report).partition(":")[2].strip()[:80]
    new = [reason for reason in report.reasons if reason not in before]
    return f"audit: {without_names(new[0])[:100]}" if new else "audit: as before"
