"""Auditing the verifier's own log: its leaves, its tree, its tiles."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keyturn_protocol.api import Trust
from keyturn_protocol.audit_log import Contradiction, listed
from keyturn_protocol.bundle import (
    VERIFIER_LOG,
    BundleReader,
    Manifest,
    check_trust,
)
from keyturn_protocol.checkpoint import Checkpoint, open_checkpoint
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.leaves import Enrolment, EnrolmentBody, Leaf, parse_leaf
from keyturn_protocol.merkle import Frontier, leaf_hash
from keyturn_protocol.tiles import ENTRIES, TILE_WIDTH, Tile, decode_bundle, decode_hashes, tiles_of


@dataclass(frozen=True, slots=True)
class VerifierLog:
    """The verifier's log as recomputed from its entry bundles."""

    checkpoint: Checkpoint | None
    leaves: tuple[Leaf, ...]
    contradictions: tuple[Contradiction, ...]

    def enrolments(self) -> dict[str, EnrolmentBody]:
        return {leaf.body.origin: leaf.body for leaf in self.leaves if isinstance(leaf, Enrolment)}


def audit_verifier_log(reader: BundleReader, manifest: Manifest, trust: Trust) -> VerifierLog:
    """Recompute the verifier's log from its entry bundles and hold checkpoint and tiles against it."""
    found: list[Contradiction] = []
    path = VERIFIER_LOG + "checkpoint"
    try:
        key, _ = check_trust(trust)
        checkpoint = open_checkpoint(listed(reader, manifest, path, found), key)
    except ProtocolError as error:
        return VerifierLog(None, (), (*found, Contradiction(path, str(error))))
    leaves: list[Leaf] = []
    hashes: list[Hash] = []
    for tile in tiles_of(checkpoint.size):
        path = VERIFIER_LOG + tile.path
        try:
            data = listed(reader, manifest, path, found)
            if tile.level == ENTRIES:
                for line in decode_bundle(data, tile.width):
                    leaf = parse_leaf(line)
                    if leaf.index != len(leaves):
                        raise ProtocolError(Code.BAD_TILE, "leaf out of order", expected=len(leaves), got=leaf.index)
                    leaves.append(leaf)
                    hashes.append(leaf_hash(line))
        except ProtocolError as error:
            found.append(Contradiction(path, f"leaf {len(leaves)}: {error}", len(leaves)))
            return VerifierLog(checkpoint, tuple(leaves), tuple(found))
    root = Frontier().extend(hashes).root()
    if root != checkpoint.root:
        found.append(Contradiction(VERIFIER_LOG + "checkpoint", "the leaves don't hash to the signed root"))
    found += _tiles(reader, hashes)
    return VerifierLog(checkpoint, tuple(leaves), tuple(found))


def _tiles(reader: BundleReader, leaves: Sequence[Hash]) -> Iterable[Contradiction]:
    """Hash tiles that differ from what the leaves give."""
    level, hashes = 0, list(leaves)
    while hashes:
        for first in range(0, len(hashes), TILE_WIDTH):
            expected = hashes[first : first + TILE_WIDTH]
            path = VERIFIER_LOG + Tile(level, first // TILE_WIDTH, len(expected)).path
            try:
                same = decode_hashes(reader.read(path), len(expected)) == expected
            except ProtocolError as error:
                yield Contradiction(path, str(error))
                continue
            if not same:
                yield Contradiction(path, "tile differs from what the leaves hash to")
        full = len(hashes) // TILE_WIDTH
        hashes = [Frontier().extend(hashes[i * TILE_WIDTH : (i + 1) * TILE_WIDTH]).root() for i in range(full)]
        level += 1
