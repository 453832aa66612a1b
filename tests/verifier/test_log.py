"""The verifier's own log as C2SP tiles: recomputed from what is served, and its leaves dense."""

import pytest

from keyturn_protocol.checkpoint import Checkpoint, open_checkpoint
from keyturn_protocol.ids import Hash
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.leaves import InitBody, NodeCheckpointBody, parse_leaf
from keyturn_protocol.merkle import (
    consistency_path,
    inclusion_path,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from keyturn_protocol.tiles import (
    ENTRIES,
    Tile,
    decode_bundle,
    decode_hashes,
    parse_tile_path,
    range_hash_from,
    tiles_of,
)
from keyturn_verifier import state, translog
from keyturn_verifier.db.engine import reading, writing
from tests.support.verifier import DEPLOYMENT, Verifier


def body(at: int) -> NodeCheckpointBody:
    return NodeCheckpointBody(
        origin=f"{DEPLOYMENT}/node/{'0' * 32}/1",
        start=at,
        size=at + 1,
        root="00" * 32,
        segment_sha256="11" * 32,
        receipt_s=at,
    )


def grow(verifier: Verifier, size: int) -> Checkpoint:
    """Append leaves up to ``size`` and publish."""
    with writing(verifier.engine) as connection:
        have = translog.head(connection).size
        translog.append(connection, [body(at) for at in range(have, size)], verifier.clock())
        note = translog.publish(connection, verifier.keys.log, verifier.clock())
    return open_checkpoint(note, parse_vkey(verifier.trust.log_vkey))


def served(verifier: Verifier) -> Checkpoint:
    answer = verifier.client.get("/log/checkpoint")
    assert answer.status == 200
    return open_checkpoint(answer.body, parse_vkey(verifier.trust.log_vkey))


def fetch(verifier: Verifier, tile: Tile) -> bytes:
    """A tile; entry bundles with a reader's token, and for no shared cache."""
    entries = tile.level == ENTRIES
    answer = verifier.client.get(f"/log/{tile.path}", verifier.reader_token() if entries else None)
    assert answer.status == 200, tile.path
    assert ("no-store" if entries else "immutable") in answer.headers["cache-control"]
    return answer.body


def test_the_log_begins_with_the_verifiers_keys(verifier: Verifier) -> None:
    checkpoint = served(verifier)
    assert (checkpoint.origin, checkpoint.size) == (f"{DEPLOYMENT}/log", 1)
    (leaf,) = decode_bundle(fetch(verifier, Tile(ENTRIES, 0, 1)), 1)
    first = parse_leaf(leaf).body
    assert isinstance(first, InitBody)
    assert (first.log_vkey, first.receipt_vkey) == (verifier.trust.log_vkey, verifier.trust.receipt_vkey)


@pytest.mark.parametrize("sizes", [(2, 255, 256), (3, 257, 600), (511, 513), (65_600,)])
def test_tiles_recompute_to_the_checkpoint(verifier: Verifier, sizes: tuple[int, ...]) -> None:
    before: Checkpoint | None = None
    for size in sizes:
        checkpoint = grow(verifier, size)
        assert checkpoint == served(verifier)
        lines: list[bytes] = []
        hashes: list[Hash] = []
        for tile in tiles_of(size):
            data = fetch(verifier, tile)
            if tile.level == ENTRIES:
                lines += decode_bundle(data, tile.width)
            elif tile.level == 0:
                hashes += decode_hashes(data, tile.width)
        assert [leaf_hash(line) for line in lines] == hashes
        assert [parse_leaf(line).index for line in lines] == list(range(size))
        assert root_of(hashes) == checkpoint.root
        ranges = range_hash_from(lambda tile: decode_hashes(fetch(verifier, tile), tile.width), size)
        for index in (0, size // 2, size - 1):
            verify_inclusion(index, size, hashes[index], inclusion_path(index, size, ranges), checkpoint.root)
        if before is not None:
            proof = consistency_path(before.size, size, ranges)
            verify_consistency(before.size, size, before.root, checkpoint.root, proof)
        before = checkpoint


def test_partial_tiles_of_older_sizes_stay(verifier: Verifier) -> None:
    grow(verifier, 300)
    for path in ("tile/0/000.p/17", "tile/entries/001.p/3", "tile/0/001.p/44", "tile/1/000.p/1"):
        assert fetch(verifier, parse_tile_path(path))


@pytest.mark.parametrize(
    "path", ["tile/0/001.p/45", "tile/0/002", "tile/1/000", "tile/1/000.p/2", "tile/entries/001", "tile/2/000.p/1"]
)
def test_beyond_the_checkpoint_there_is_nothing(verifier: Verifier, path: str) -> None:
    grow(verifier, 300)
    answer = verifier.client.get(f"/log/{path}", verifier.reader_token())
    assert (answer.status, answer.code) == (404, "not_found")
    assert "immutable" not in answer.headers["cache-control"]


def test_leaves_that_are_not_published_yet_are_not_served(verifier: Verifier) -> None:
    with writing(verifier.engine) as connection:
        translog.append(connection, [body(1)], verifier.clock())
    assert verifier.client.get("/log/tile/0/000.p/2").status == 404


def test_receipts_are_published_soon_and_at_the_end(verifier: Verifier) -> None:
    node = verifier.enrolled()
    while served(verifier).size < 3:
        pass
    verifier.client.post(node.segment(node.usage(1)))
    verifier.__exit__()
    with state.opened(verifier.settings) as engine, reading(engine) as connection:
        assert translog.published_size(connection) == 4


def test_a_size_is_signed_once(verifier: Verifier) -> None:
    first = grow(verifier, 5)
    assert grow(verifier, 5) == first
    assert [row[0] for row in verifier.dump_checkpoints()] == [1, 5]


def test_a_rolled_back_transaction_leaves_no_hole(verifier: Verifier) -> None:
    def fail() -> None:
        with writing(verifier.engine) as connection:
            translog.append(connection, [body(1), body(2)], verifier.clock())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    grow(verifier, 4)
    assert [parse_leaf(leaf).index for leaf in verifier.leaves()] == [0, 1, 2, 3]
