"""The verifier's own log as it is stored: leaves, hashes, tiles, heads, and every checkpoint that was signed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from keyturn_protocol.api import Trust
from keyturn_protocol.audit_tree import VerifierLog, hold_against, rules
from keyturn_protocol.bundle import check_trust
from keyturn_protocol.checkpoint import Checkpoint, open_checkpoint
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.leaves import Leaf, parse_leaf
from keyturn_protocol.merkle import Frontier, leaf_hash, root_of
from keyturn_protocol.tiles import TILE_WIDTH
from keyturn_verifier.db.rows import Row
from keyturn_verifier.db.tables import tree_checkpoint, tree_head, tree_leaf, tree_node
from keyturn_verifier.differences import Difference, by_key, differs, plain

_LOG = "the verifier's log"


@dataclass(slots=True)
class Tree:
    """The leaves that could be read, up to the first that couldn't."""

    leaves: list[Leaf] = field(default_factory=list)
    hashes: list[Hash] = field(default_factory=list)
    damaged: bool = False

    def log(self, trust: Trust) -> VerifierLog:
        """The log as an auditor sees it."""
        head = Checkpoint(check_trust(trust)[0].name, len(self.hashes), Frontier().extend(self.hashes).root())
        return VerifierLog(head, tuple(self.leaves), tuple(self.hashes), (), whole=not self.damaged)


def check_tree(connection: Connection, trust: Trust, tree: Tree, given: bytes | None) -> Iterator[Difference]:
    """Fill ``tree`` with what is stored, and hold everything about it against the leaves' bytes.

    :param given: a checkpoint that was kept outside of the database.
    """
    yield from _leaves(connection, tree)
    if tree.damaged:
        return
    for contradiction in rules(tree.leaves, trust):
        yield Difference(tree_leaf.name, _LOG, contradiction.message)
    yield from _nodes(connection, tree)
    yield from _head(connection, tree)
    yield from _checkpoints(connection, trust, tree)
    if given is not None:
        key, _ = check_trust(trust)
        match hold_against(tree.log(trust), open_checkpoint(given, key)):
            case None:
                pass
            case str() as shorter:
                yield Difference(tree_leaf.name, _LOG, f"{shorter}: it went back")
            case rewritten:
                yield Difference(tree_leaf.name, _LOG, rewritten.message)


def _leaves(connection: Connection, tree: Tree) -> Iterator[Difference]:
    query = select(tree_leaf.c.index.label("at"), tree_leaf.c.hash, tree_leaf.c.data).order_by(tree_leaf.c.index)
    for row in connection.execute(query.execution_options(yield_per=1_000)):
        at = len(tree.leaves)
        data = bytes(row.data)
        try:
            leaf = parse_leaf(data)
        except ProtocolError as error:
            tree.damaged = True
            yield Difference(tree_leaf.name, _LOG, f"leaf {row.at}: {error}")
            return
        if not row.at == leaf.index == at:
            tree.damaged = True
            yield Difference(tree_leaf.name, _LOG, f"leaf {at}: there is row {row.at}, which says {leaf.index}")
            return
        digest = leaf_hash(data)
        if digest != bytes(row.hash):
            yield differs(tree_leaf, _LOG, "hash", digest, bytes(row.hash), f"leaf {at}")
        tree.leaves.append(leaf)
        tree.hashes.append(digest)


def _nodes(connection: Connection, tree: Tree) -> Iterator[Difference]:
    """The roots of full tiles."""
    expected: list[Row] = []
    level, hashes = 0, tree.hashes
    while len(hashes) >= TILE_WIDTH:
        level += 1
        full = len(hashes) // TILE_WIDTH
        hashes = [root_of(hashes[i * TILE_WIDTH : (i + 1) * TILE_WIDTH]) for i in range(full)]
        expected += [(level, i, bytes(digest)) for i, digest in enumerate(hashes)]
    stored = map(plain, connection.execute(select(tree_node.c.level, tree_node.c.index, tree_node.c.hash)))
    yield from by_key(tree_node, _LOG, ("level", "index", "hash"), 2, expected, stored)


def _head(connection: Connection, tree: Tree) -> Iterator[Difference]:
    frontier = Frontier().extend(tree.hashes)
    newest_us = tree.leaves[-1].time_us if tree.leaves else 0
    expected = [(1, frontier.size, frontier.to_bytes(), newest_us)]
    columns = (tree_head.c.id, tree_head.c.size, tree_head.c.frontier, tree_head.c.time_us)
    stored = map(plain, connection.execute(select(*columns)))
    yield from by_key(tree_head, _LOG, [column.name for column in columns], 1, expected, stored)


def _checkpoints(connection: Connection, trust: Trust, tree: Tree) -> Iterator[Difference]:
    """Every one that is stored was signed by this verifier, for this log."""
    key, _ = check_trust(trust)
    frontier = Frontier()
    query = select(tree_checkpoint.c.size, tree_checkpoint.c.note).order_by(tree_checkpoint.c.size)
    for row in connection.execute(query.execution_options(yield_per=1_000)):
        try:
            head = open_checkpoint(bytes(row.note), key)
        except ProtocolError as error:
            yield Difference(tree_checkpoint.name, _LOG, f"checkpoint of size {row.size}: {error}")
            continue
        if head.size != row.size:
            yield differs(tree_checkpoint, _LOG, "size", head.size, row.size)
        elif head.size > len(tree.hashes):
            yield Difference(tree_checkpoint.name, _LOG, f"{head.size} leaves were signed, {len(tree.hashes)} are here")
        else:
            frontier = frontier.extend(tree.hashes[frontier.size : head.size])
            if frontier.root() != head.root:
                what = f"the leaves don't hash to the root that was signed for {head.size} of them"
                yield Difference(tree_checkpoint.name, _LOG, what)
