"""The thread that keeps what leases add up to (:mod:`keyturn_verifier.snapshot`); of several replicas, one does.

It folds for itself, from what it kept before on and of committed leaves alone: nobody who asks waits for it, and
neither the lock of the verifier's log nor the fold that requests are decided by is held meanwhile.
"""

from typing import Final

from sqlalchemy import Connection, Engine, func, select

from keyturn_protocol.ids import Deployment
from keyturn_verifier import snapshot, translog
from keyturn_verifier.db.engine import is_postgres, reading, writing
from keyturn_verifier.db.switch_tables import lease_issued, lease_report, ledger_snapshot
from keyturn_verifier.passes import Passes
from keyturn_verifier.switch_state import SwitchState

TURN: Final = 0x6B65797475726E03
"""The advisory lock of whoever makes a pass on PostgreSQL: "keyturn" and a three."""
EVERY: Final = 10_000
"""So many leases and reports make a new snapshot worth it; more, where there are more accounts to write."""
LEAVES: Final = 2_048
"""Of the verifier's log, in one pass."""
INTERVAL_S: Final = 10.0


class SnapshotKeeper:
    """Makes passes. :meth:`step` may be called by anybody; :meth:`start` begins a thread that does."""

    def __init__(self, engine: Engine, deployment: Deployment) -> None:
        self._engine = engine
        self._own = SwitchState(deployment)
        self._mine = False
        """This process wrote one: another version's is not replaced at once any more, or two would go on doing so."""
        failed = "what leases add up to could not be kept: starts take longer"
        self._passes = Passes(self.step, INTERVAL_S, "snapshot", failed)

    def start(self) -> None:
        """Begin."""
        self._passes.start()

    def stop(self) -> None:
        """End after the pass that is under way. Blocks."""
        self._passes.stop()

    def step(self) -> bool:
        """Make one pass; returns whether there is more to do at once."""
        with reading(self._engine) as connection:
            size = translog.head(connection).size
            version, there = _there(connection, size)
            replacing = version not in (None, snapshot.VERSION) and not self._mine
            if not replacing and _rows(connection, there, size, EVERY) < EVERY:
                return False
            if is_postgres(connection):
                turn = connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({TURN})").scalar()
                if not turn:
                    return False
            # The own fold can begin with what is there, and not before it.
            begin = there if version == snapshot.VERSION else 0
            end = min(size, max(self._own.size, begin) + LEAVES)
            with self._own.caught_up(connection, end, locked=True) as switch:
                wanted = max(EVERY, sum(len(one.accounts) for one in switch.ledger.subjects.values()))
                worth = _rows(connection, there, end, wanted) >= wanted
                if not worth and not (replacing and end == size):
                    return end < size
                kept = self._own.kept(connection)
            body = snapshot.packed(snapshot.encode(kept))
            with writing(self._engine) as target:
                if is_postgres(target):
                    # What is lost in a crash is lost whole, and made again.
                    target.exec_driver_sql("SET LOCAL synchronous_commit = off")
                snapshot.store(target, kept.size, body)
            self._mine = True
            return end < size


def _there(connection: Connection, size: int) -> tuple[str | None, int]:
    """Version and size of what is stored; a size beyond the log's is as good as none."""
    query = select(ledger_snapshot.c.version, ledger_snapshot.c.size).where(ledger_snapshot.c.id == snapshot.ROW)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None, 0
    return (row.version, row.size) if row.size <= size else (row.version, 0)


def _rows(connection: Connection, start: int, end: int, most: int) -> int:
    """How many leases and reports leaves ``start`` … ``end - 1`` cover; nobody needs to know beyond ``most``."""
    found = 0
    for leaf in (lease_issued.c.leaf, lease_report.c.leaf):
        some = select(leaf).where(leaf >= start, leaf < end).limit(most).subquery()
        found += connection.execute(select(func.count()).select_from(some)).scalar_one()
    return found
