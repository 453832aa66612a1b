"""The log of transparency-dev/tessera: real C2SP checkpoints, hash tiles and entry bundles, sizes 0 to 15.

Its public key isn't published with it, so the signatures on the checkpoints are parsed but can't be verified.
"""

from pathlib import Path

import pytest

from keyturn_protocol.checkpoint import Checkpoint, parse_checkpoint
from keyturn_protocol.merkle import (
    Frontier,
    consistency_path,
    inclusion_path,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from keyturn_protocol.note import parse_note
from keyturn_protocol.tiles import (
    ENTRIES,
    Tile,
    decode_bundle,
    decode_hashes,
    encode_bundle,
    encode_hashes,
    parse_tile_path,
    range_hash_from,
    tile_for,
)
from tests.support import naive_merkle

LAST = 15


@pytest.fixture(scope="module")
def log(shared_vectors: Path) -> Path:
    return shared_vectors / "tlog" / "log"


@pytest.fixture(scope="module")
def entries(log: Path) -> list[bytes]:
    return decode_bundle((log / Tile(ENTRIES, 0, LAST).path).read_bytes(), LAST)


def checkpoint(log: Path, size: int) -> Checkpoint:
    return parse_checkpoint(parse_note((log / f"checkpoint.{size}").read_bytes()).text)


def test_every_file_parses_and_re_encodes(log: Path) -> None:
    seen = 0
    for path in sorted(p for p in log.rglob("*") if p.is_file() and ".state" not in p.parts):
        data, name = path.read_bytes(), str(path.relative_to(log))
        if name.startswith("checkpoint"):
            note = parse_note(data)
            assert note.to_bytes() == data
            assert parse_checkpoint(note.text).to_text() == note.text
            assert [len(s.signature) for s in note.signatures] == [64]
        else:
            tile = parse_tile_path(name)
            assert tile.path == name
            if tile.level == ENTRIES:
                assert encode_bundle(decode_bundle(data, tile.width)) == data
            else:
                assert encode_hashes(decode_hashes(data, tile.width)) == data
        seen += 1
    assert seen >= 3 * LAST


@pytest.mark.parametrize("size", range(LAST + 1))
def test_entries_give_the_tiles_and_the_roots(log: Path, entries: list[bytes], size: int) -> None:
    head = checkpoint(log, size)
    assert head.size == size
    assert head.origin == "example.com/log/testdata"
    leaves = [leaf_hash(entry) for entry in entries[:size]]
    assert root_of(leaves) == head.root == naive_merkle.root([naive_merkle.leaf(e) for e in entries[:size]])
    assert Frontier().extend(leaves[: size // 2]).extend(leaves[size // 2 :]).root() == head.root
    if size:
        assert encode_bundle(entries[:size]) == (log / Tile(ENTRIES, 0, size).path).read_bytes()
        assert encode_hashes(leaves) == (log / Tile(0, 0, size).path).read_bytes()


def test_newest_checkpoint_is_that_of_the_last_size(log: Path) -> None:
    assert (log / "checkpoint").read_bytes() == (log / f"checkpoint.{LAST}").read_bytes()


@pytest.mark.parametrize("size", range(1, LAST + 1))
def test_proofs_from_tiles_verify_against_the_checkpoints(log: Path, entries: list[bytes], size: int) -> None:
    read = {tile: decode_hashes((log / tile.path).read_bytes(), tile.width) for tile in [tile_for(0, 0, size)]}
    subtree = range_hash_from(lambda tile: read[tile], size)
    head = checkpoint(log, size)
    for index in range(size):
        proof = inclusion_path(index, size, subtree)
        verify_inclusion(index, size, leaf_hash(entries[index]), proof, head.root)
    for old in range(1, size + 1):
        proof = consistency_path(old, size, subtree)
        verify_consistency(old, size, checkpoint(log, old).root, head.root, proof)
