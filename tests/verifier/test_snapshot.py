"""A verifier that begins with what is kept of leases is as one that read all of them; what doesn't fit isn't used."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import select, update

from keyturn_protocol.audit import audit
from keyturn_protocol.canonical import parse
from keyturn_protocol.chips import chip_table
from keyturn_protocol.lease import Lease
from keyturn_protocol.ledger_state import ledger_state
from keyturn_verifier import snapshot, snapshot_keeper, translog
from keyturn_verifier.check import check
from keyturn_verifier.db.engine import is_postgres, reading, writing
from keyturn_verifier.db.switch_tables import ledger_snapshot
from keyturn_verifier.snapshot import Kept
from keyturn_verifier.snapshot_keeper import SnapshotKeeper
from keyturn_verifier.switch_state import SwitchState
from tests.support.office import APPROVERS, Office
from tests.support.parties import BEGIN, SECOND
from tests.support.postgres import Postgres
from tests.support.starter import Starter
from tests.support.verifier import DEPLOYMENT, Database, FolderReader, Verifier


class Site:
    """Runs, an allowance and hosts; some of what they say is wrong."""

    def __init__(self, verifier: Verifier, now: list[int]) -> None:
        self.verifier, self.now = verifier, now
        self.office = Office.opened(verifier)
        self.runs = [self.office.approved(), self.office.approved()]
        self.hosts = [Starter.enrolled(verifier, number) for number in range(3)]
        self.leases: list[Lease] = []

    def work(self, tflop: int) -> None:
        """Every host has a lease of its own kind, and says something right and something wrong of it."""
        for host, run in zip(self.hosts, [*self.runs, None], strict=True):
            self.now[0] += 60 * SECOND
            lease = host.leased(run)
            self.leases.append(lease)
            charged = lease.charged_tflop + tflop
            # More than a run's lease allows is more than these chips can have done by the next one.
            most = charged if run else lease.upto_tflop + 1
            for amount, event in ((charged, "adopted"), (charged - 1, "report"), (most, "report")):
                host.report(lease, amount, event)
            host.report(self.leases[0], charged)


@pytest.fixture
def now() -> list[int]:
    return [BEGIN]


@pytest.fixture
def site(tmp_path: Path, database: Database, now: list[int]) -> Iterator[Site]:
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        yield Site(verifier, now)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any lease or report is worth a snapshot; servers leave it to the test when there is one."""
    monkeypatch.setattr(snapshot_keeper, "EVERY", 1)
    monkeypatch.setattr(snapshot_keeper, "INTERVAL_S", 10.0**6)


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The leaf of every lease and report that is folded from now on."""
    found: list[int] = []

    def watched(real: Callable[[SwitchState, Any], None]) -> Callable[[SwitchState, Any], None]:
        def take(self: SwitchState, row: Any) -> None:
            found.append(row.leaf)
            real(self, row)

        return take

    for name in ("_lease", "_report"):
        monkeypatch.setattr(SwitchState, name, watched(getattr(SwitchState, name)))
    return found


def keep(verifier: Verifier) -> Kept:
    """Passes of a keeper that just began, until there is nothing to do; what is stored then."""
    keeper = SnapshotKeeper(verifier.engine, DEPLOYMENT)
    while keeper.step():
        pass
    found = stored(verifier)
    assert found is not None
    return found


def stored(verifier: Verifier) -> Kept | None:
    with reading(verifier.engine) as connection:
        row = connection.execute(select(ledger_snapshot)).one_or_none()
    return None if row is None else parse(snapshot.unpacked(row.body), Kept)


def everything(verifier: Verifier, state: SwitchState) -> dict[str, Any]:
    """All that a fold can be asked for."""
    with reading(verifier.engine) as connection:
        size = translog.head(connection).size
        with state.caught_up(connection, size) as switch:
            return {
                "size": (state.size, switch.index),
                "authority": switch.authority,
                "runs": switch.runs,
                "subjects": switch.ledger.subjects,
                "ledger": ledger_state(switch.ledger),
                "findings": state.findings(),
                "counts": state.counts(verifier.clock()),
                "requests": state.requests(-1),
                "news": [state.news(run) for run in (None, *switch.runs)],
                "kept": state.kept(connection),
            }


def same(verifier: Verifier) -> None:
    """Who begins now knows what one who read everything knows, and the server that was there all the time."""
    expected = everything(verifier, SwitchState(DEPLOYMENT, resume=False))
    for state in (SwitchState(DEPLOYMENT), verifier.service.switch):
        for name, found in everything(verifier, state).items():
            assert found == expected[name], name


def test_who_begins_with_what_is_kept_knows_what_the_others_know(site: Site, folded: list[int]) -> None:
    verifier, office = site.verifier, site.office
    site.work(10)
    kept = keep(verifier)
    assert kept.irregular
    assert len(kept.first) == len(site.runs)
    assert kept.leases == len(site.leases)
    same(verifier)
    site.work(20)
    office.suspend(site.runs[0])
    office.resume(site.runs[0], *APPROVERS)
    third = office.approved()
    Starter.enrolled(verifier, 7).leased(third)
    same(verifier)
    folded.clear()
    everything(verifier, SwitchState(DEPLOYMENT))
    assert folded
    assert min(folded) >= kept.size
    # And once more from there, by a keeper that began with the one before.
    folded.clear()
    assert keep(verifier).size > kept.size
    assert min(folded) >= kept.size
    same(verifier)


def test_a_server_that_begins_with_it_answers_as_the_other(site: Site, tmp_path: Path, folded: list[int]) -> None:
    verifier, office = site.verifier, site.office
    site.work(10)
    keep(verifier)
    site.work(20)
    folded.clear()
    with Verifier(tmp_path, clock=verifier.clock) as again:
        token = verifier.reader_token()
        paths = ["leases", "findings", "runs", *(f"runs/{run}" for run in site.runs)]
        for path in paths:
            one, two = (each.client.get(f"/v1/{path}", token) for each in (verifier, again))
            assert (one.status, one.body) == (two.status, two.body), path
            assert one.status == 200
        for run in site.runs:
            assert verifier.client.get(f"/v1/runs/{run}/permit").body == again.client.get(f"/v1/runs/{run}/permit").body
        # It leases as well: what the other has given out counts.
        seq = site.hosts[0].ask(site.runs[0], client=again.client)
        lease = site.hosts[0].opened(site.hosts[0].get(seq, again.client))
        site.hosts[0].report(lease, lease.charged_tflop + 1, "adopted")
        assert office.view(site.runs[0]).charged_tflop == lease.charged_tflop + 1
        assert min(folded) > 0
    assert checked(verifier) == []
    report = audit(
        FolderReader(verifier.export(tmp_path / "out")), verifier.trust, chip_table(), root_sha256=office.root
    )
    assert report.contradictions == ()


def checked(verifier: Verifier) -> list[str]:
    with reading(verifier.engine) as connection:
        return [str(one) for one in check(connection, verifier.trust)]


def put(verifier: Verifier, **values: Any) -> None:
    """What SQL does to it."""
    with writing(verifier.engine) as connection:
        connection.execute(update(ledger_snapshot).values(**values))


UNFIT: dict[str, Callable[[Any, Kept], dict[str, Any]]] = {
    "another version": lambda row, kept: {"version": "0/0"},
    "its end is missing": lambda row, kept: {"body": row.body[:-9]},
    "a flipped bit": lambda row, kept: {"body": flipped(row.body)},
    "no snapshot": lambda row, kept: {"body": snapshot.packed(b"{}")},
    "beyond the log": lambda row, kept: {"size": row.size + 1_000},
    "another size": lambda row, kept: {"size": row.size - 1},
    "no size": lambda row, kept: {"size": 0},
    "another history": lambda row, kept: body_of(structs.replace(kept, last="00" * 32)),
    "another deployment": lambda row, kept: body_of(structs.replace(kept, deployment="other.example.org")),
    "a lease without a run": lambda row, kept: body_of(structs.replace(kept, first={"41" * 32: (9, BEGIN)})),
    "a lease before the permit": lambda row, kept: body_of(
        structs.replace(kept, first=dict.fromkeys(kept.first, (3, BEGIN)))
    ),
    "a log that is none": lambda row, kept: body_of(
        structs.replace(kept, ledger=structs.replace(kept.ledger, logs={"x": []}))
    ),
}


def body_of(kept: Kept) -> dict[str, bytes]:
    return {"body": snapshot.packed(snapshot.encode(kept))}


def flipped(body: bytes) -> bytes:
    at = len(body) // 2
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def test_what_does_not_fit_is_said_and_everything_is_read_again(
    site: Site, folded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    site.work(10)
    kept = keep(site.verifier)
    same(site.verifier)
    with reading(site.verifier.engine) as connection:
        row = connection.execute(select(ledger_snapshot)).one()
    for name, change in UNFIT.items():
        right = {"version": row.version, "size": row.size, "body": bytes(row.body)}
        put(site.verifier, **right)
        caplog.clear()
        everything(site.verifier, SwitchState(DEPLOYMENT))
        assert caplog.text == ""
        put(site.verifier, **change(row, kept))
        folded.clear()
        same(site.verifier)
        assert len(folded) == 2 * (len(site.leases) * 5), name
        assert "all of them are read again" in caplog.text, name


def test_who_sees_less_than_it_holds_reads_everything(site: Site) -> None:
    """A request whose transaction began before the snapshot's did."""
    site.work(10)
    kept = keep(site.verifier)
    with reading(site.verifier.engine) as connection:
        states = [SwitchState(DEPLOYMENT, resume=resume) for resume in (True, False)]
        seen = []
        for state in states:
            with state.caught_up(connection, kept.size - 3):
                seen.append(state.kept(connection))
    assert seen[0] == seen[1]
    assert seen[0].size == kept.size - 3


def test_every_flipped_bit_is_seen() -> None:
    data = b"".join(b"%d " % number for number in range(400))
    body = snapshot.packed(data)
    for at in range(8 * len(body)):
        damaged = bytearray(body)
        damaged[at // 8] ^= 1 << at % 8
        try:
            assert snapshot.unpacked(bytes(damaged)) == data
        except snapshot.DAMAGED:
            continue


def test_check_holds_it_against_everything(site: Site) -> None:
    site.work(10)
    kept = keep(site.verifier)
    site.work(20)
    assert checked(site.verifier) == []
    with reading(site.verifier.engine) as connection:
        row = connection.execute(select(ledger_snapshot)).one()
    right = {"id": row.id, "version": row.version, "size": row.size, "body": bytes(row.body)}
    ledger, (subject, accounts) = kept.ledger, next(iter(kept.ledger.accounts.items()))
    spent = {origin: structs.replace(one, charged_flop="0") for origin, one in accounts.items()}
    changes: dict[str, dict[str, Any]] = {
        "charged": body_of(
            structs.replace(kept, ledger=structs.replace(ledger, accounts=ledger.accounts | {subject: spent}))
        ),
        "chips": body_of(structs.replace(kept, ledger=structs.replace(ledger, chips={}))),
        "leases": body_of(structs.replace(kept, leases=kept.leases + 1)),
        "first": body_of(structs.replace(kept, first={})),
        "index": body_of(structs.replace(kept, index=kept.index - 1)),
        "irregular": body_of(structs.replace(kept, irregular=kept.irregular[1:])),
        "irregular_of": body_of(structs.replace(kept, irregular_of={})),
        "last": body_of(structs.replace(kept, last="00" * 32)),
        "size": {"size": row.size - 1},
        "beyond": {"size": row.size + 10**6},
        "none": {"size": 0},
        "id": {"id": row.id + 1},
        "bytes": {"body": flipped(bytes(row.body))},
    }
    for name, change in changes.items():
        put(site.verifier, **right | change)
        found = checked(site.verifier)
        assert [line.partition(":")[0] for line in found] == ["ledger_snapshot"], (name, found)
    # Nobody reads another version's.
    put(site.verifier, **right | changes["charged"] | {"version": "0/0"})
    assert checked(site.verifier) == []


class TestKeeping:
    """When it is written, and by whom."""

    def test_only_when_it_is_worth_it(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        keeper = SnapshotKeeper(site.verifier.engine, DEPLOYMENT)
        assert not keeper.step()
        assert stored(site.verifier) is None, "no lease yet"
        site.work(10)
        rows = 5 * len(site.leases)
        monkeypatch.setattr(snapshot_keeper, "EVERY", rows + 1)
        assert not keeper.step()
        assert stored(site.verifier) is None
        monkeypatch.setattr(snapshot_keeper, "EVERY", rows)
        keeper.step()
        first = stored(site.verifier)
        assert first is not None
        assert not keeper.step()
        site.hosts[0].report(site.leases[0], 1)
        keeper.step()
        assert stored(site.verifier) == first
        site.work(10)
        keeper.step()
        second = stored(site.verifier)
        assert second is not None
        assert second.size > first.size

    def test_a_long_history_in_many_passes(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        site.work(10)
        monkeypatch.setattr(snapshot_keeper, "LEAVES", 3)
        keeper = SnapshotKeeper(site.verifier.engine, DEPLOYMENT)
        sizes = set()
        while keeper.step():
            kept = stored(site.verifier)
            sizes |= {kept.size} if kept is not None else set()
            same(site.verifier)
            assert checked(site.verifier) == []
        assert len(sizes) > 3

    def test_another_versions_is_replaced_once_and_then_both_wait(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.work(10)
        keep(site.verifier)
        monkeypatch.setattr(snapshot_keeper, "EVERY", 10**6)
        put(site.verifier, version="0/0")
        keeper = SnapshotKeeper(site.verifier.engine, DEPLOYMENT)
        keeper.step()
        with reading(site.verifier.engine) as connection:
            assert connection.execute(select(ledger_snapshot.c.version)).scalar_one() == snapshot.VERSION
        put(site.verifier, version="0/0")
        assert not keeper.step()
        with reading(site.verifier.engine) as connection:
            assert connection.execute(select(ledger_snapshot.c.version)).scalar_one() == "0/0"

    def test_a_pass_that_fails_leaves_the_one_before(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        site.work(10)
        before = keep(site.verifier)
        site.work(20)
        real = snapshot.store

        def fails(*arguments: Any) -> None:
            real(*arguments)
            raise RuntimeError("cut short")

        keeper = SnapshotKeeper(site.verifier.engine, DEPLOYMENT)
        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "store", fails)
            with pytest.raises(RuntimeError, match="cut short"):
                keeper.step()
        assert stored(site.verifier) == before
        same(site.verifier)
        keeper.step()
        after = stored(site.verifier)
        assert after is not None
        assert after.size > before.size
        same(site.verifier)

    def test_nobody_else_waits(self, site: Site) -> None:
        """A pass waits for no lock that a request holds, and the other way round."""
        site.work(10)
        if not is_postgres(site.verifier.engine):
            return  # one writer at a time is what SQLite has
        with site.verifier.write_lock():
            keep(site.verifier)


def test_a_replica_that_begins_while_the_other_writes(tmp_path: Path, postgres: Postgres, now: list[int]) -> None:
    clock = lambda: now[0]  # noqa: E731
    with Verifier(tmp_path, db=postgres.database, clock=clock) as one:
        site = Site(one, now)
        site.work(1)
        stop, failed = threading.Event(), list[BaseException]()
        written: set[int] = set()

        def go() -> None:
            keeper = SnapshotKeeper(one.engine, DEPLOYMENT)
            try:
                while not stop.is_set():
                    keeper.step()
                    kept = stored(one)
                    written.update(() if kept is None else {kept.size})
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=go) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(3):
                site.work(turn + 2)
                same(one)
                two = Verifier(tmp_path, clock=clock)
                with two:
                    views = [each.client.get("/v1/leases", one.reader_token()) for each in (one, two)]
                    assert views[0].body == views[1].body
                    seq = site.hosts[0].ask(site.runs[0], client=two.client)
                    assert site.hosts[0].get(seq, two.client).status == 200
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failed == []
        assert len(written) > 1
        assert checked(one) == []
