"""What is kept of leases against all of them, folded once more from nothing. Part of ``keyturn-verifier check``."""

from collections.abc import Iterator

from backports import zstd
from sqlalchemy import Connection, select

from keyturn_protocol.ids import Deployment
from keyturn_verifier import snapshot, translog
from keyturn_verifier.db.switch_tables import ledger_snapshot
from keyturn_verifier.differences import Difference
from keyturn_verifier.errors import DamagedError
from keyturn_verifier.switch_state import SwitchState


def check_snapshot(connection: Connection, deployment: Deployment) -> Iterator[Difference]:
    """What it says that leases don't. One of another version is nobody's word: it isn't read, and is made again."""
    name = ledger_snapshot.name
    for row in connection.execute(select(ledger_snapshot)).all():
        if row.id != snapshot.ROW:
            yield Difference(name, f"id {row.id}", "row that nobody wrote")
            continue
        if row.version != snapshot.VERSION:
            continue
        try:
            size = translog.head(connection).size
            if not 0 < row.size <= size:
                yield Difference(name, "size", f"expected at most {size}, got {row.size}")
                continue
            fold = SwitchState(deployment, resume=False)
            with fold.caught_up(connection, row.size):
                expected = snapshot.encode(fold.kept(connection))
        except (DamagedError, LookupError) as error:
            yield Difference(name, f"of {row.size} leaves", f"can't be made once more: {error}")
            continue
        try:
            body = snapshot.unpacked(row.body)
        except zstd.ZstdError as error:
            yield Difference(name, f"of {row.size} leaves", f"can't be read: {error}")
            continue
        if body != expected:
            yield Difference(name, f"of {row.size} leaves", "differs from what leases and reports add up to")
