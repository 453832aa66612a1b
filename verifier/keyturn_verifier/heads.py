"""Heads of logs: what the next segment of each is decided against. Cached; always a state that was committed."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import Connection, select

from keyturn_protocol.canonical import encode_record, parse
from keyturn_protocol.ids import Deployment, Hash, LogName, Origin
from keyturn_protocol.merkle import Frontier
from keyturn_protocol.note import parse_note
from keyturn_protocol.receive import FrozenReason, Head, new_head
from keyturn_protocol.segment import ChainState
from keyturn_protocol.usage import FoldState
from keyturn_verifier.db.tables import log
from keyturn_verifier.enrolment import Joining, pending
from keyturn_verifier.errors import stored

HEAD_COLUMNS = (
    log.c.id,
    log.c.origin,
    log.c.node_id,
    log.c.incarnation,
    log.c.public_key,
    log.c.size,
    log.c.frontier,
    log.c.chain,
    log.c.fold,
    log.c.note,
    log.c.receipt,
    log.c.frozen,
)


@dataclass(frozen=True, slots=True)
class Following:
    """A log that follows the node's newest earlier one."""

    log_id: int
    incarnation: int
    """Of the earlier log."""
    size: int
    root: Hash
    time_us: int
    """Of its last entry."""
    organisation: str
    site: str


@dataclass(frozen=True, slots=True)
class Known:
    """A log that is open here, or was."""

    log_id: int
    head: Head


@dataclass(frozen=True, slots=True)
class Expected:
    """A log that a valid genesis segment would open."""

    head: Head
    opening: Joining | Following


def head_of(row: Any, name: LogName) -> Head:
    """A head out of its row of :data:`HEAD_COLUMNS`."""
    return Head(
        name=name,
        public_key=row.public_key,
        frontier=Frontier.from_bytes(row.size, row.frontier),
        chain=parse(row.chain, ChainState),
        fold=parse(row.fold, FoldState),
        note=None if row.note is None else parse_note(row.note),
        receipt=row.receipt,
        frozen=cast(FrozenReason | None, row.frozen),
    )


def head_values(head: Head) -> dict[str, object]:
    """The columns that change with every segment."""
    return {
        "size": head.size,
        "frontier": head.frontier.to_bytes(),
        "chain": encode_record(head.chain),
        "fold": encode_record(head.fold),
        "note": None if head.note is None else head.note.to_bytes(),
        "receipt": head.receipt,
        "frozen": head.frozen,
    }


class Heads:
    """A bounded cache in front of the ``log`` table. Used by the batching thread alone, but for :meth:`peek`.

    Another replica may have moved a log since: an entry is good enough to accept a segment on, because the
    transaction looks again under the log's lock, and for nothing else.
    """

    def __init__(self, deployment: Deployment, capacity: int) -> None:
        self._deployment = deployment
        self._capacity = capacity
        self._cache: OrderedDict[Origin, Known] = OrderedDict()

    @stored
    def load(
        self, connection: Connection, names: Iterable[LogName], now_us: int, *, stored: bool = False
    ) -> dict[Origin, Known | Expected | None]:
        """The heads of logs; None for a log that is neither open nor expected here. One SELECT for all misses.

        :param stored: as they are stored now, whatever is cached.
        """
        found: dict[Origin, Known | Expected | None] = {}
        missing: dict[Origin, LogName] = {}
        for name in names:
            origin = name.origin
            known = None if stored else self._cache.get(origin)
            if known is not None:
                self._cache.move_to_end(origin)
                found[origin] = known
            elif name.deployment != self._deployment:
                found[origin] = None
            else:
                missing[origin] = name
        if missing:
            for row in connection.execute(select(*HEAD_COLUMNS).where(log.c.origin.in_(list(missing)))):
                name = missing.pop(row.origin)
                known = Known(row.id, head_of(row, name))
                self.put(name.origin, known)
                found[name.origin] = known
        for origin, name in missing.items():
            found[origin] = expected(connection, name, now_us)
        return found

    def put(self, origin: Origin, known: Known) -> None:
        """Remember a committed head."""
        self._cache[origin] = known
        self._cache.move_to_end(origin)
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)

    def peek(self, origin: str) -> Head | None:
        """What is cached of a log, if anything is. Any thread may ask."""
        known = self._cache.get(Origin(origin))
        return None if known is None else known.head

    def forget(self, origins: Iterable[Origin]) -> None:
        """Read these again next time."""
        for origin in origins:
            self._cache.pop(origin, None)


def expected(connection: Connection, name: LogName, now_us: int) -> Expected | None:
    """Whether a log may be opened here: an announced node's first, or the next of a node that is enrolled.

    The next incarnation's key is the current one, unless the log before ended by naming another.
    """
    if name.incarnation == 1:
        joining = pending(connection, name.origin, now_us)
        return None if joining is None else Expected(new_head(name, joining[0]), joining[1])
    row = connection.execute(
        select(
            *(log.c.id, log.c.incarnation, log.c.public_key, log.c.size, log.c.frontier, log.c.chain),
            *(log.c.organisation, log.c.site),
        )
        .where(log.c.node_id == name.node_id)
        .order_by(log.c.incarnation.desc())
        .limit(1)
    ).one_or_none()
    if row is None or row.incarnation >= name.incarnation:
        return None
    chain: ChainState = parse(row.chain, ChainState)
    key = row.public_key if chain.next_key is None else bytes.fromhex(chain.next_key)
    root = Frontier.from_bytes(row.size, row.frontier).root()
    following = Following(row.id, row.incarnation, row.size, root, chain.time_us, row.organisation, row.site)
    return Expected(new_head(name, key), following)


State = Literal["open", "frozen", "closed"]


def state_of(frozen: str | None, chain: ChainState) -> tuple[State, str | None]:
    """How a log is listed, and why."""
    if frozen is not None:
        return "frozen", frozen
    return ("open", None) if chain.closed is None else ("closed", chain.closed)
