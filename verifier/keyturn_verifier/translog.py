"""The verifier's own log: dense leaves, a tree, checkpoints and tiles.

:func:`append` is the last thing that a write transaction does, and every writer of leaves calls it: the head row
is locked by then, so that indices are dense and a rolled back transaction leaves no hole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Select, func, insert, select, update

from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.leaves import LeafBody, format_leaf
from keyturn_protocol.merkle import Frontier, leaf_hash, root_of
from keyturn_protocol.tiles import ENTRIES, MAX_LEVEL, TILE_HEIGHT, TILE_WIDTH, Tile, encode_bundle, encode_hashes
from keyturn_verifier.db.statements import many_leaves
from keyturn_verifier.db.tables import tree_checkpoint, tree_head, tree_leaf, tree_node
from keyturn_verifier.errors import DamagedError
from keyturn_verifier.keyfiles import SigningKey

HEAD: Final = 1
"""The id of the one row of ``tree_head``."""
# Made once: SQLAlchemy takes longer to put a statement together than a database to run these.
_READ: Final = select(tree_head.c.size, tree_head.c.frontier, tree_head.c.time_us).where(tree_head.c.id == HEAD)
_LOCK: Final = _READ.with_for_update()
_MOVE: Final = update(tree_head).where(tree_head.c.id == HEAD)
_NEWEST: Final = (
    select(tree_checkpoint.c.size, tree_checkpoint.c.time_us).order_by(tree_checkpoint.c.size.desc()).limit(1)
)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest committed state of the log, published or not."""

    frontier: Frontier
    time_us: int

    @property
    def size(self) -> int:
        return self.frontier.size


def create(connection: Connection, body: LeafBody, now_us: int) -> None:
    """Begin the log with its first leaf."""
    connection.execute(insert(tree_head).values(id=HEAD, size=0, frontier=b"", time_us=0))
    append(connection, [body], now_us)


def head(connection: Connection) -> Head:
    """The newest committed state. Another transaction may move it at once, unless :func:`lock` was called."""
    return _head(connection, _READ)


def lock(connection: Connection) -> Head:
    """The newest state, which can't move until the transaction ends: the last lock that any transaction takes."""
    return _head(connection, _LOCK)


def _head(connection: Connection, query: Select[tuple[int, bytes, int]]) -> Head:
    row = connection.execute(query).one_or_none()
    if row is None:
        raise DamagedError("the verifier's log has no head")
    try:
        return Head(Frontier.from_bytes(row.size, row.frontier), row.time_us)
    except ProtocolError as error:
        raise DamagedError(f"the head of the verifier's log: {error}") from None


def newest_us(connection: Connection) -> int:
    """The time of the newest committed leaf, without waiting for anybody."""
    return _head(connection, _READ).time_us


def append(connection: Connection, bodies: Sequence[LeafBody], now_us: int) -> Head:
    """Append leaves with the next indices; call it last, since everybody waits for this lock until the commit.

    :param now_us: the leaves' time; raised to the newest leaf's, since times never go back.
    """
    old = lock(connection) if bodies else head(connection)
    if not bodies:
        return old
    time_us = max(now_us, old.time_us)
    leaves = [format_leaf(old.size + i, time_us, body) for i, body in enumerate(bodies)]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    new = Head(old.frontier.extend(hashes), time_us)
    rows = [(old.size + i, digest, leaf) for i, (digest, leaf) in enumerate(zip(hashes, leaves, strict=True))]
    many_leaves(connection.engine).run(connection, rows)
    _complete_tiles(connection, old.size, new.size)
    connection.execute(_MOVE, {"size": new.size, "frontier": new.frontier.to_bytes(), "time_us": time_us})
    return new


def _complete_tiles(connection: Connection, old_size: int, new_size: int) -> None:
    """Store the root of every tile that became full: one read of 256 hashes for 256 leaves."""
    for level in range(1, MAX_LEVEL + 1):
        first, last = old_size >> TILE_HEIGHT * level, new_size >> TILE_HEIGHT * level
        if first == last:
            return
        for index in range(first, last):
            below = _hashes(connection, level - 1, index * TILE_WIDTH, TILE_WIDTH)
            connection.execute(insert(tree_node).values(level=level, index=index, hash=root_of(below)))


def _hashes(connection: Connection, level: int, start: int, count: int) -> list[Hash]:
    if level == 0:
        column, where = tree_leaf.c.index, tree_leaf.c.index.between(start, start + count - 1)
        query = select(tree_leaf.c.hash).where(where).order_by(column)
    else:
        column = tree_node.c.index
        query = (
            select(tree_node.c.hash)
            .where(tree_node.c.level == level, column.between(start, start + count - 1))
            .order_by(column)
        )
    return [Hash(value) for value in connection.execute(query).scalars()]


def leaves(connection: Connection, start: int, count: int) -> list[bytes]:
    """The bytes of leaves ``start`` … ``start + count - 1``."""
    query = (
        select(tree_leaf.c.data).where(tree_leaf.c.index.between(start, start + count - 1)).order_by(tree_leaf.c.index)
    )
    return list(connection.execute(query).scalars())


def publish(connection: Connection, key: SigningKey, now_us: int) -> bytes:
    """Sign the newest state unless its size is signed already; in a write transaction. Returns the note.

    The leaves are committed before, or with, the checkpoint that covers them. Ed25519 is deterministic, so even a
    signature that was made twice is the same bytes.
    """
    newest = lock(connection)
    note = connection.execute(select(tree_checkpoint.c.note).where(tree_checkpoint.c.size == newest.size)).scalar()
    if note is not None:
        return bytes(note)
    checkpoint = Checkpoint(key.public.name, newest.size, newest.frontier.root())
    signed = checkpoint.signed(key.public, key.sign(checkpoint.to_text())).to_bytes()
    connection.execute(insert(tree_checkpoint).values(size=newest.size, note=signed, time_us=now_us))
    return signed


def publish_after(connection: Connection, now_us: int, interval_us: int) -> bool | None:
    """Whether to publish now: None if everything is published, False if any replica did so within the interval."""
    size = head(connection).size
    newest = connection.execute(_NEWEST).one_or_none()
    if newest is None:
        return True
    if newest.size == size:
        return None
    # A replica whose clock runs ahead must not keep the others waiting.
    return not 0 <= now_us - newest.time_us < interval_us


def published_size(connection: Connection) -> int:
    """The size of the newest checkpoint, 0 if there is none."""
    return connection.execute(select(func.max(tree_checkpoint.c.size))).scalar() or 0


def newest_checkpoint(connection: Connection) -> bytes | None:
    """The newest signed checkpoint."""
    query = select(tree_checkpoint.c.note).order_by(tree_checkpoint.c.size.desc()).limit(1)
    return connection.execute(query).scalar()


def read_tile(connection: Connection, tile: Tile) -> bytes | None:
    """A tile's bytes, or None where the newest checkpoint doesn't cover all of it."""
    count = published_size(connection) >> TILE_HEIGHT * max(tile.level, 0)
    if tile.level > MAX_LEVEL or tile.start + tile.width > count:
        return None
    if tile.level == ENTRIES:
        return encode_bundle(leaves(connection, tile.start, tile.width))
    return encode_hashes(_hashes(connection, tile.level, tile.start, tile.width))
