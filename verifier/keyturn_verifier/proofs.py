"""Proofs about logs, from what is stored: of the verifier's own from its tiles, of a node's from its segments.

Every stored segment has the frontier after it, which holds the roots of all full subtrees that end there. A proof of
a log of n entries so takes at most log²(n) look-ups, and reads the entries of few segments.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, select

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.api_read import ConsistencyProof, InclusionProof
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.merkle import Frontier, RangeHash, consistency_path, inclusion_path, node_hash
from keyturn_protocol.segment import parse_segment
from keyturn_protocol.tiles import Tile, decode_hashes, range_hash_from
from keyturn_verifier import translog
from keyturn_verifier.db.tables import segment, segment_body
from keyturn_verifier.errors import stored
from keyturn_verifier.problems import Refusal
from keyturn_verifier.upload import decompress


@stored
def inclusion(origin: str, index: int, size: int, newest: int, ranges: RangeHash) -> InclusionProof:
    """That entry ``index`` is in the tree of ``size``.

    :raises Refusal: ``bad_request``: there is no such tree or entry.
    """
    _within(size, newest)
    try:
        hashes = inclusion_path(index, size, ranges)
    except ProtocolError as error:
        raise Refusal(ProblemCode.BAD_REQUEST, str(error)) from None
    return InclusionProof(
        origin=origin,
        index=index,
        size=size,
        leaf_hash=ranges(index, index + 1).hex(),
        root=ranges(0, size).hex(),
        hashes=[value.hex() for value in hashes],
    )


@stored
def consistency(origin: str, old_size: int, size: int, newest: int, ranges: RangeHash) -> ConsistencyProof:
    """That the tree of ``size`` begins with that of ``old_size``.

    :raises Refusal: ``bad_request``: there are no such trees.
    """
    _within(size, newest)
    try:
        hashes = consistency_path(old_size, size, ranges)
    except ProtocolError as error:
        raise Refusal(ProblemCode.BAD_REQUEST, str(error)) from None
    return ConsistencyProof(
        origin=origin,
        old_size=old_size,
        size=size,
        old_root=ranges(0, old_size).hex(),
        root=ranges(0, size).hex(),
        hashes=[value.hex() for value in hashes],
    )


def _within(size: int, newest: int) -> None:
    if not 0 < size <= newest:
        raise Refusal(ProblemCode.BAD_REQUEST, f"size: must be 1 … {newest} (got {size})")


def of_verifier(connection: Connection, size: int) -> RangeHash:
    """Subtree roots of the verifier's log, whose newest checkpoint has ``size`` leaves."""

    def read(tile: Tile) -> list[Hash]:
        data = translog.read_tile(connection, tile)
        if data is None:
            raise Refusal(ProblemCode.NOT_FOUND, "the newest checkpoint does not cover this")
        return decode_hashes(data, tile.width)

    cached: dict[Tile, list[Hash]] = {}
    tiles = range_hash_from(lambda tile: cached.get(tile) or cached.setdefault(tile, read(tile)), size)
    return _ragged(tiles)


def of_node(connection: Connection, log_id: int) -> RangeHash:
    """Subtree roots of a node's log."""
    frontiers: dict[int, Frontier] = {}
    leaves: dict[int, list[Hash]] = {}

    def hashes(start: int) -> list[Hash]:
        if start not in leaves:
            query = select(segment_body.c.body).where(segment_body.c.log_id == log_id, segment_body.c.start == start)
            body = connection.execute(query).scalar_one()
            leaves[start] = parse_segment(decompress(body)).leaf_hashes()
        return leaves[start]

    def holding(size: int) -> list[Any]:
        """The segment that holds entry ``size - 1``, and the one before it."""
        query = (
            select(segment.c.start, segment.c.end, segment.c.frontier)
            .where(segment.c.log_id == log_id, segment.c.start < size)
            .order_by(segment.c.start.desc())
            .limit(2)
        )
        return list(connection.execute(query))

    def frontier(size: int) -> Frontier:
        if size not in frontiers:
            rows = holding(size)
            if rows[0].end == size:
                frontiers[size] = Frontier.from_bytes(size, rows[0].frontier)
            else:
                before = Frontier.from_bytes(rows[1].end, rows[1].frontier) if len(rows) == 2 else Frontier()
                frontiers[size] = before.extend(hashes(rows[0].start)[: size - rows[0].start])
        return frontiers[size]

    def full(start: int, end: int) -> Hash:
        """The root of a full subtree; a left one is the last in the frontier where it ends."""
        count = end - start
        if not start // count & 1:
            return frontier(end).hashes[-1]
        if count == 1:
            row = holding(end)[0]
            first: int = row.start
            return hashes(first)[start - first]
        middle = start + count // 2
        return node_hash(full(start, middle), full(middle, end))

    return _ragged(full)


def _ragged(full: Callable[[int, int], Hash]) -> RangeHash:
    """Roots of any subtree of the recursive definition, the right edge included, from those of full ones."""

    def subtree(start: int, end: int) -> Hash:
        count = end - start
        if not count & (count - 1) and not start % count:
            return full(start, end)
        split = 1 << (count - 1).bit_length() - 1
        return node_hash(subtree(start, start + split), subtree(start + split, end))

    return subtree
