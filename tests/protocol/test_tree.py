"""The tree against RFC 9162's own recursion: roots, frontiers, proofs, and proofs from tiles."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_path,
    consistency_proof,
    inclusion_path,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from keyturn_protocol.tiles import (
    ENTRIES,
    MAX_LEVEL,
    TILE_WIDTH,
    Tile,
    encode_hashes,
    parse_tile_path,
    range_hash_from,
    tile_for,
    tiles_of,
)
from tests.support import naive_merkle

SMALL = 70
LEAVES = [leaf_hash(b"leaf %d" % i) for i in range(1100)]
EDGES = [255, 256, 257, 511, 512, 513, 1023, 1024, 1025]


def refused(check: object, *arguments: object) -> bool:
    assert callable(check)
    try:
        check(*arguments)
    except ProtocolError as error:
        return error.code is Code.BAD_PROOF
    return False


def test_hashes_are_those_of_the_rfc() -> None:
    assert leaf_hash(b"x") == sha256(b"\0x").digest() == naive_merkle.leaf(b"x")
    assert node_hash(bytes(32), bytes(32)) == sha256(b"\1" + bytes(64)).digest()
    assert EMPTY_ROOT == sha256().digest() == root_of([])


@pytest.mark.parametrize("size", [*range(SMALL + 1), *EDGES])
def test_root_and_frontier(size: int) -> None:
    leaves = LEAVES[:size]
    root = naive_merkle.root(leaves)
    assert root_of(leaves) == root
    whole = Frontier().extend(leaves)
    for split in range(size + 1) if size <= SMALL else EDGES:
        parts = Frontier().extend(leaves[:split]).extend(leaves[split:])
        assert parts == whole
        assert parts.root() == root
    assert Frontier.from_bytes(size, whole.to_bytes()) == whole
    assert len(whole.hashes) == size.bit_count()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 300), max_size=8))
def test_frontier_in_many_parts(parts: list[int]) -> None:
    edge, at = Frontier(), 0
    for count in parts:
        edge = edge.extend(LEAVES[at : at + count])
        at = min(at + count, len(LEAVES))
        assert edge.size == at
    assert edge.root() == root_of(LEAVES[:at])


@pytest.mark.parametrize("size", range(1, SMALL + 1))
def test_inclusion(size: int) -> None:
    root = naive_merkle.root(LEAVES[:size])
    for index in range(size):
        proof = inclusion_proof(LEAVES[:size], index)
        assert proof == naive_merkle.path(index, LEAVES[:size])
        verify_inclusion(index, size, LEAVES[index], proof, root)
        assert refused(verify_inclusion, index, size, LEAVES[size], proof, root)
        assert refused(verify_inclusion, index, size, LEAVES[index], proof, LEAVES[0] if size > 1 else LEAVES[1])
        assert refused(verify_inclusion, index, size, LEAVES[index], [*proof, LEAVES[0]], root)
        assert refused(verify_inclusion, index, size, LEAVES[index], [*proof, root], root)
        if proof:
            assert refused(verify_inclusion, index, size, LEAVES[index], proof[:-1], root)
            assert refused(verify_inclusion, index, size, LEAVES[index], proof[1:], root)
    for index in (-1, size, size + 1):
        assert refused(verify_inclusion, index, size, LEAVES[0], [], root)
        assert refused(inclusion_proof, LEAVES[:size], index)


@pytest.mark.parametrize("size", range(1, SMALL + 1))
def test_consistency(size: int) -> None:
    root = naive_merkle.root(LEAVES[:size])
    for old in range(1, size + 1):
        old_root = naive_merkle.root(LEAVES[:old])
        proof = consistency_proof(LEAVES[:size], old)
        assert proof == naive_merkle.proof(old, LEAVES[:size])
        verify_consistency(old, size, old_root, root, proof)
        assert refused(verify_consistency, old, size, old_root, LEAVES[-1], proof)
        assert refused(verify_consistency, old, size, LEAVES[-1], root, proof)
        assert refused(verify_consistency, old, size, old_root, root, [*proof, root])
        if proof:
            assert refused(verify_consistency, old, size, old_root, root, proof[:-1])
            assert refused(verify_consistency, old, size, old_root, root, proof[1:])
            assert refused(verify_consistency, size, old, root, old_root, proof)
    verify_consistency(0, size, EMPTY_ROOT, root, [])
    assert refused(verify_consistency, 0, size, EMPTY_ROOT, root, [root])
    assert refused(verify_consistency, 0, size, root, root, [])
    for old in (0, size + 1):
        assert refused(consistency_proof, LEAVES[:size], old)


sizes = st.integers(1, len(LEAVES)) | st.sampled_from(EDGES)


@settings(deadline=None, max_examples=300)
@given(sizes, st.data())
def test_damaged_proofs_fail(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    root, old_root = root_of(LEAVES[:size]), root_of(LEAVES[:old])
    inclusion, consistency = inclusion_proof(LEAVES[:size], index), consistency_proof(LEAVES[:size], old)
    verify_inclusion(index, size, LEAVES[index], inclusion, root)
    verify_consistency(old, size, old_root, root, consistency)

    def damage(proof: list[Hash]) -> list[Hash]:
        at = data.draw(st.integers(0, max(len(proof) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "drop", "repeat", "swap", "short", "long"]))
        if not proof or kind == "repeat":
            return [*proof[:at], LEAVES[0], *proof[at:]]
        one = proof[at]
        changes: dict[str, list[bytes]] = {
            "flip": [bytes([one[0] ^ 1 << data.draw(st.integers(0, 7))]) + one[1:]],
            "drop": [],
            "swap": [LEAVES[-1]],
            "short": [one[:31]],
            "long": [one + b"\0"],
        }
        return [*proof[:at], *map(Hash, changes[kind]), *proof[at + 1 :]]

    if (damaged := damage(inclusion)) != inclusion:
        assert refused(verify_inclusion, index, size, LEAVES[index], damaged, root)
    if (damaged := damage(consistency)) != consistency:
        assert refused(verify_consistency, old, size, old_root, root, damaged)
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        assert refused(verify_inclusion, other, size, LEAVES[index], inclusion, root)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, MAX_INT), st.data())
def test_proofs_of_huge_trees(size: int, data: st.DataObject) -> None:
    """A tree whose leaves are all one: its full subtrees have one hash a height, so 2^53 leaves are no work."""
    full = [leaf_hash(b"")]
    while len(full) < 54:
        full.append(node_hash(full[-1], full[-1]))

    def subtree(start: int, end: int) -> Hash:
        count = end - start
        if count & (count - 1) == 0:
            return full[count.bit_length() - 1]
        split = 1 << (count - 1).bit_length() - 1
        return node_hash(subtree(start, start + split), subtree(start + split, end))

    edge = Frontier(size, tuple(full[bit] for bit in range(53, -1, -1) if size >> bit & 1))
    root = subtree(0, size)
    assert edge.root() == root
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    proof = inclusion_path(index, size, subtree)
    verify_inclusion(index, size, full[0], proof, root)
    assert refused(verify_inclusion, index, size, full[0], [*proof, root], root)
    proof = consistency_path(old, size, subtree)
    verify_consistency(old, size, subtree(0, old), root, proof)
    assert refused(verify_consistency, old, size, subtree(0, old), root, [*proof, root])
    if size < MAX_INT:
        assert edge.extend([full[0]]).root() == subtree(0, size + 1)


@pytest.mark.parametrize("height", range(1, 6))
def test_a_proof_of_the_wrong_length_fails_though_its_hashes_fit(height: int) -> None:
    """An inner node must not pass for the root of a tree of another size."""
    size = 1 << height
    proof = inclusion_proof(LEAVES[:size], 0)
    for count in range(height):
        inner = root_of(LEAVES[: 1 << count])
        verify_inclusion(0, 1 << count, LEAVES[0], proof[:count], inner)
        assert refused(verify_inclusion, 0, size, LEAVES[0], proof[:count], inner)
        assert refused(verify_inclusion, 0, 1 << count, LEAVES[0], proof, root_of(LEAVES[:size]))
    longer = consistency_proof(LEAVES[: 2 * size], 1)
    verify_consistency(1, 2 * size, LEAVES[0], root_of(LEAVES[: 2 * size]), longer)
    assert refused(verify_consistency, 1, size, LEAVES[0], root_of(LEAVES[: 2 * size]), longer)
    assert refused(verify_consistency, 1, 2 * size, LEAVES[0], root_of(LEAVES[:size]), longer[:-1])


def test_a_proof_that_goes_above_the_root_fails_though_its_hashes_fit() -> None:
    """Nor may the root of a tree pass for a node of a taller one."""
    above = LEAVES[-1]
    assert refused(verify_inclusion, 0, 1, LEAVES[0], [above], node_hash(above, LEAVES[0]))
    proof = inclusion_proof(LEAVES[:3], 2)
    assert refused(verify_inclusion, 2, 3, LEAVES[2], [*proof, above], node_hash(above, root_of(LEAVES[:3])))
    proof = consistency_proof(LEAVES[:4], 3)
    old_root, root = root_of(LEAVES[:3]), root_of(LEAVES[:4])
    verify_consistency(3, 4, old_root, root, proof)
    assert refused(verify_consistency, 3, 4, node_hash(above, old_root), node_hash(above, root), [*proof, above])


def test_a_byte_moved_between_hashes() -> None:
    """31 and 33 bytes have the same node hash as 32 and 32."""
    root = node_hash(LEAVES[0], LEAVES[1])
    verify_inclusion(0, 2, LEAVES[0], [LEAVES[1]], root)
    assert refused(verify_inclusion, 0, 2, LEAVES[0][:31], [LEAVES[0][31:] + LEAVES[1]], root)
    assert refused(verify_inclusion, 1, 2, LEAVES[1][1:], [LEAVES[0] + LEAVES[1][:1]], root)
    verify_consistency(1, 2, LEAVES[0], root, [LEAVES[1]])
    assert refused(verify_consistency, 1, 2, LEAVES[0][:31], root, [LEAVES[0][31:] + LEAVES[1]])


def test_sizes_beyond_the_cap() -> None:
    assert refused(verify_inclusion, 0, MAX_INT + 1, LEAVES[0], [], LEAVES[0])
    assert refused(verify_consistency, 1, MAX_INT + 1, LEAVES[0], LEAVES[0], [])
    assert refused(verify_consistency, -1, 1, LEAVES[0], LEAVES[0], [])
    assert refused(verify_inclusion, 0, 2, LEAVES[0], [LEAVES[0]] * 65, LEAVES[0])
    assert refused(Frontier, -1)
    assert refused(Frontier, 3, (LEAVES[0],))
    assert refused(Frontier.from_bytes, 1, bytes(33))
    full = Frontier(MAX_INT, (LEAVES[0],) * 53)
    assert refused(full.extend, [LEAVES[0]])


# Tiles


def stored(size: int) -> dict[str, list[Hash]]:
    """All hash tiles of a tree, computed from C2SP tlog-tiles' formula: MTH of 256^level leaves each."""
    tiles: dict[str, list[Hash]] = {}
    level, row = 0, LEAVES[:size]
    while row:
        for index in range(-(-len(row) // TILE_WIDTH)):
            part = row[index * TILE_WIDTH : (index + 1) * TILE_WIDTH]
            tiles[Tile(level, index, len(part)).path] = part
        row = [
            Hash(naive_merkle.root(row[at : at + TILE_WIDTH])) for at in range(0, len(row) - TILE_WIDTH + 1, TILE_WIDTH)
        ]
        level += 1
    return tiles


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 700, 1024, 1100])
def test_tiles_of_a_tree(size: int) -> None:
    assert {tile.path for tile in tiles_of(size) if tile.level != ENTRIES} == stored(size).keys()
    bundles = [tile for tile in tiles_of(size) if tile.level == ENTRIES]
    assert sum(tile.width for tile in bundles) == size
    for tile in tiles_of(size):
        assert parse_tile_path(tile.path) == tile
        assert tile_for(tile.level, tile.start, size) == tile
        assert tile_for(tile.level, tile.start + tile.width - 1, size) == tile


def test_the_example_of_the_specification() -> None:
    """C2SP tlog-tiles: the tiles of a tree of 70,000 leaves."""
    widths: dict[int, list[int]] = {}
    for tile in tiles_of(70_000):
        widths.setdefault(tile.level, []).append(tile.width)
    assert widths == {
        ENTRIES: [256] * 273 + [112],
        0: [256] * 273 + [112],
        1: [256, 17],
        2: [1],
    }


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 513, 700, 1024, 1100])
def test_proofs_from_tiles(size: int) -> None:
    tiles = stored(size)
    subtree = range_hash_from(lambda tile: tiles[tile.path], size)
    root = root_of(LEAVES[:size])
    some = sorted({0, 1, size // 3, size // 2, size - 2, size - 1, 255, 256, 511, 512} & {*range(size)})
    for index in some:
        proof = inclusion_path(index, size, subtree)
        assert proof == inclusion_proof(LEAVES[:size], index)
        verify_inclusion(index, size, LEAVES[index], proof, root)
    for old in [index + 1 for index in some]:
        assert consistency_path(old, size, subtree) == consistency_proof(LEAVES[:size], old)
    assert subtree(0, size) == root


@settings(deadline=None, max_examples=100)
@given(sizes, st.data())
def test_proofs_from_tiles_at_random(size: int, data: st.DataObject) -> None:
    read: list[Tile] = []
    tiles = stored(size)

    def tile(of: Tile) -> list[Hash]:
        read.append(of)
        return tiles[of.path]

    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    subtree = range_hash_from(tile, size)
    assert inclusion_path(index, size, subtree) == naive_merkle.path(index, LEAVES[:size])
    assert consistency_path(old, size, subtree) == naive_merkle.proof(old, LEAVES[:size])
    assert {*read} <= {*tiles_of(size)}


def test_a_tile_that_is_too_short_is_refused() -> None:
    """Otherwise the hash of nothing would stand in for what is missing."""
    subtree = range_hash_from(lambda tile: LEAVES[: tile.width - 1], 5)
    with pytest.raises(ProtocolError) as error:
        inclusion_path(0, 5, subtree)
    assert error.value.code is Code.BAD_TILE


def test_hashes_outside_of_the_tree() -> None:
    for level, index in [(0, 5), (0, -1), (1, 0), (ENTRIES, 5)]:
        with pytest.raises(ProtocolError) as error:
            tile_for(level, index, 5)
        assert error.value.code is Code.BAD_TILE
    assert tile_for(MAX_LEVEL, 0, MAX_INT).width == 31
    assert encode_hashes(LEAVES[:2]) == LEAVES[0] + LEAVES[1]
