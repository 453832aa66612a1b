"""Lock (a) of a batch: the logs that it is about, by id; and whether they are still where the batch left them.

A head is cached, and another replica may have moved the log since. What is decided against an older head is not
written: it is decided again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, any_, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY

from keyturn_protocol.ids import NodeId
from keyturn_verifier.db.engine import is_postgres
from keyturn_verifier.db.tables import log
from keyturn_verifier.heads import Expected, Following, Known


@dataclass(frozen=True, slots=True)
class Locked:
    """What was found under the locks, which last until the transaction ends."""

    rows: dict[int, Any]
    newest: dict[NodeId, int]
    """The newest incarnation of every node that is to begin its next log."""

    def holds(self, against: Known | Expected) -> bool:
        """Whether a change may be written that was decided against this."""
        match against:
            case Known(log_id=log_id, head=head):
                row = self.rows.get(log_id)
                # Sizes only grow, unless a database was restored under a running replica: so the tree counts too.
                return (
                    row is not None
                    and (row.size, row.frozen) == (head.size, head.frozen)
                    and row.frontier == head.frontier.to_bytes()
                )
            case Expected(head=head, opening=Following() as following):
                row = self.rows.get(following.log_id)
                last = self.newest.get(head.name.node_id)
                return row is not None and row.size == following.size and last == following.incarnation
            case Expected():
                # An announced node's first log: whether another replica opened it too shows when it is inserted.
                return True


def lock_logs(connection: Connection, decided: Sequence[Known | Expected]) -> Locked:
    """Lock the logs that heads are of, and the logs that are followed, in the order of their ids."""
    ids: set[int] = set()
    nodes: set[NodeId] = set()
    for against in decided:
        match against:
            case Known(log_id=log_id):
                ids.add(log_id)
            case Expected(head=head, opening=Following() as following):
                ids.add(following.log_id)
                nodes.add(head.name.node_id)
            case Expected():
                pass
    rows = _rows(connection, ids) if ids else {}
    # After the lock: whoever opens a node's next log holds the lock on its last one.
    return Locked(rows, _newest(connection, nodes) if nodes else {})


def _rows(connection: Connection, ids: Iterable[int]) -> dict[int, Any]:
    wanted = sorted(ids)
    query = select(log.c.id, log.c.size, log.c.frontier, log.c.frozen).order_by(log.c.id).with_for_update()
    if is_postgres(connection):
        # One statement whatever their number, so that it stays prepared.
        query = query.where(log.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger))))
        return {row.id: row for row in connection.execute(query, {"ids": wanted}).all()}
    return {row.id: row for row in connection.execute(query.where(log.c.id.in_(wanted))).all()}


def _newest(connection: Connection, nodes: Iterable[NodeId]) -> dict[NodeId, int]:
    query = (
        select(log.c.node_id, func.max(log.c.incarnation).label("last"))
        .where(log.c.node_id.in_(sorted(nodes)))
        .group_by(log.c.node_id)
    )
    return {NodeId(row.node_id): row.last for row in connection.execute(query)}
