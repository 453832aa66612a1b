"""The verifier whose database is tampered with: made once, and copied for each operator."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, make_url

from keyturn_protocol.entry_log import HeartbeatBody
from keyturn_protocol.leaves import ExportBody
from keyturn_protocol.openings import Opening, Openings
from keyturn_protocol.statements import Replacement
from keyturn_verifier import config, snapshot, translog
from keyturn_verifier.db.engine import writing
from keyturn_verifier.db.review_tables import finding_closing, maintenance_window
from keyturn_verifier.db.switch_tables import webhook_outbox
from keyturn_verifier.switch_state import SwitchState
from tests.support.node import Node
from tests.support.office import Office
from tests.support.postgres import Postgres
from tests.support.starter import Starter
from tests.support.verifier import DEPLOYMENT, Verifier
from tests.verifier.test_export import busy_node

NOW_US = 1_790_003_600_000_000

_SAID = {"reason": "known", "author": "reader-2"}
_CLOSING = {"code": "gap", "closed_us": NOW_US, "count": 1, "timeless": 0}
_MESSAGE = {
    **{"url": "https://hooks.example", "message": "m-1", "body": b"{}"},
    **{"created_us": NOW_US, "next_us": NOW_US, "tries": 0},
}
_WINDOW = {"site": None, "from_us": NOW_US, "to_us": NOW_US + 1, "created_us": NOW_US}


@dataclass
class Kept:
    """A verifier at rest."""

    folder: Path
    server: Postgres | None
    busy: Node
    """Goes on after the tampering."""
    checkpoint: bytes
    """That an auditor kept."""
    auditor: str
    operator: str
    root: str

    @contextmanager
    def copy(self, folder: Path, number: int) -> Iterator[Verifier]:
        """A copy of it, not serving yet."""
        shutil.copytree(self.folder, folder / "copy")
        if self.server is not None:
            settings = folder / "copy" / "state" / config.FILE
            base = make_url(config.load(self.folder / "state").db).database
            name = f"{base}_{number}"
            self.server._admin(f"CREATE DATABASE {name} TEMPLATE {base}")
            self.server._made.append(name)
            settings.write_text(settings.read_text().replace(f"/{base}", f"/{name}"))
        verifier = Verifier(folder / "copy", clock=lambda: NOW_US)
        try:
            yield verifier
        finally:
            verifier.engine.dispose()
            verifier._listener.close()
            shutil.rmtree(folder / "copy")
            if self.server is not None:
                self.server._admin(f"DROP DATABASE IF EXISTS {self.server._made.pop()} WITH (FORCE)")


def make(folder: Path, server: Postgres | None) -> Kept:
    """Something in every table, and in every column that can be anything."""
    with Verifier(folder, db=(lambda: None) if server is None else server.database, clock=lambda: NOW_US) as verifier:
        client = verifier.client
        gone = verifier.enrolled(usage=2, chips=2, seed=11)
        busy = busy_node(verifier.joined(seed=12))
        for end in range(20, busy.size, 27):
            assert client.post(busy.range(busy.sent, end)).status == 200
            busy.sent = end
        rolled = verifier.enrolled(usage=2, seed=13)
        after = rolled.next_incarnation()
        first = after.segment(after.genesis(previous=rolled.previous()), after.inventory(), after.usage(2))
        assert client.post(first).status == 200
        forker = verifier.enrolled(seed=14)
        twin = forker.copy()
        assert client.post(forker.segment(forker.usage(1))).status == 200
        assert client.post(twin.segment(twin.shutdown())).code == "fork"
        breaker = verifier.enrolled(seed=17)
        breaker.append_line(b"{}")
        assert client.post(breaker.segment()).code == "invalid_entries"
        root = _lease(verifier)
        verifier.joined(seed=15)
        verifier.joined(seed=16)
        auditor, operator = verifier.reader_token(), verifier.reader_token("operator")
        with writing(verifier.engine) as connection:
            # A full tile: what hash tiles above level 0 are made of.
            body = ExportBody(until_us=NOW_US, case=None, exporter="x", root_sha256=None, chip_table="x", left_out=[])
            translog.append(connection, [body] * 256, NOW_US)
            kept = translog.publish(connection, verifier.keys.log, NOW_US)
            connection.execute(insert(finding_closing).values(**_SAID, node_id=gone.name.node_id, **_CLOSING))
            connection.execute(insert(webhook_outbox).values(_MESSAGE))
            connection.execute(insert(maintenance_window).values(**_SAID, node_id=gone.name.node_id, **_WINDOW))
            size, switch = translog.head(connection).size, SwitchState(DEPLOYMENT)
            with switch.caught_up(connection, size):
                leases = snapshot.packed(snapshot.encode(switch.kept(connection)))
            snapshot.store(connection, size, leases)
        quote = HeartbeatBody(verifier_checkpoint=kept.decode())
        assert client.post(after.segment(after.append(quote), after.usage(1))).status == 200
    return Kept(folder, server, busy, kept, auditor, operator, root)


def _lease(verifier: Verifier) -> str:
    """Leases of a run and of the allowance, what hosts were charged, a node replaced, a suspension; returns the root's
    hash."""
    office = Office.opened(verifier)
    office.openings = Openings(
        v=1,
        parts={
            "argv": Opening(salt="5" * 64, value=["python", "train.py"]),
            "config": Opening(salt="6" * 64, value="sha256:" + "7" * 64),
        },
    )
    run = office.approved()
    assert office.give(run, office.openings).status == 204
    one, two, three = (Starter.enrolled(verifier, 50 + number) for number in range(3))
    leases = [host.leased(run) for host in (one, two)]
    leases.append(three.leased(None))
    for tflop, (host, lease) in enumerate(zip((one, two, three), leases, strict=True), 1):
        host.report(lease, tflop, "adopted")
    common: dict[str, Any] = {"v": 1, "deployment": DEPLOYMENT, "root": office.root, "time_us": NOW_US}
    for old, new in ((two, verifier.enrolled(seed=18)), (three, verifier.enrolled(seed=19))):
        said = Replacement(**common, old=old.node.name.node_id, new=new.name.node_id, reason="a new disk")
        office.ok(said, "operator-b/eve")
    office.suspend(run)
    assert office.root is not None
    return office.root
