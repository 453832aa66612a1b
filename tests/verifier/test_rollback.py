"""A database that goes back to an older state: what was receipted comes back, with the receipts that it had."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from keyturn_protocol.findings import FindingCode
from keyturn_verifier import queries
from keyturn_verifier.db.engine import reading
from tests.support.node import Node
from tests.support.postgres import own_server
from tests.support.verifier import Verifier

Site = tuple[Callable[[], Verifier], Callable[[], object], Callable[[], None]]
"""How to start a verifier, to keep a snapshot of its database, and to put that back."""


@contextmanager
def on_file(folder: Path) -> Iterator[Site]:
    """On SQLite."""
    file, kept = folder / "state" / "verifier.db", folder / "kept.db"

    def restore() -> None:
        for path in file.parent.glob("verifier.db*"):
            path.unlink()
        shutil.copyfile(kept, file)

    yield lambda: Verifier(folder), lambda: shutil.copyfile(file, kept), restore


@contextmanager
def on_server(folder: Path) -> Iterator[Site]:
    """On PostgreSQL, with the server's whole disk."""
    with own_server() as server:

        def keep() -> None:
            server.stop()
            server.copy_to(folder)
            server.start()

        def restore() -> None:
            server.stop("immediate")
            server.restore_from(folder)
            server.start()

        yield lambda: Verifier(folder, db=server.database), keep, restore


def rollbacks(verifier: Verifier) -> list[str]:
    with reading(verifier.engine) as connection:
        found = queries._stored_findings(connection, queries.origins(connection))
        return [f.detail for f in found if f.code is FindingCode.VERIFIER_ROLLBACK]


def leaf_receipts(verifier: Verifier) -> list[bytes]:
    return [bytes(row[5]) for row in sorted(verifier.dump()["segment"])]  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", [on_file, on_server], ids=["sqlite", "postgres"])
def test_what_a_restored_database_lost_comes_back_with_its_receipts(
    tmp_path: Path, kind: Callable[[Path], AbstractContextManager[Site]]
) -> None:
    sent: list[tuple[bytes, bytes]] = []

    def send(verifier: Verifier, node: Node, shown: bytes | None = None) -> None:
        segment = node.segment(node.usage(2))
        sent.append((segment, verifier.client.post(segment, shown=shown).body))

    with kind(tmp_path) as (start, keep, restore):
        with start() as verifier:
            node = verifier.enrolled()
            send(verifier, node)
        keep()
        with start() as verifier:
            for _ in range(3):
                send(verifier, node)
        restore()
        with start() as verifier:
            assert rollbacks(verifier) == []
            behind = verifier.client.post(node.segment(node.usage(1)))
            assert behind.code == "behind"
            for segment, receipt in sent[1:]:
                answer = verifier.client.post(segment, shown=receipt)
                assert (answer.status, answer.body) == (200, receipt)
            assert verifier.client.post(node.range(10, node.size)).status == 200
            assert [r for _, r in sent] == leaf_receipts(verifier)[1:5]
            (found,) = rollbacks(verifier)
            assert found == "the verifier had receipted 6 entries and then knew 4: its database went back"
            report = verifier.audit(verifier.export(tmp_path / "evidence"))
            assert report.outcome == "pass", report.reasons


def test_only_our_own_receipt_for_this_very_segment_counts(tmp_path: Path) -> None:
    with Verifier(tmp_path / "one") as verifier, Verifier(tmp_path / "other") as other:
        node = verifier.enrolled(seed=5)
        twin = other.enrolled(seed=5)
        foreign = other.client.post(twin.segment(twin.usage(1))).body
        first = node.segment(node.usage(1))
        answer = verifier.client.post(first, shown=foreign)
        assert answer.status == 200
        assert answer.body != foreign
        second = node.segment(node.usage(1))
        later = verifier.client.post(second, shown=answer.body)
        assert later.status == 200
        assert later.body != answer.body
        for nonsense in (b"", b"x" * 100, b"\xff"):
            assert verifier.client.post(node.segment(node.usage(1)), shown=nonsense).status == 200
        assert rollbacks(verifier) == []
