"""Auditing the verifier's own log: its leaves, its tree, its tiles."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

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
from keyturn_protocol.ids import Hash, parse_origin
from keyturn_protocol.keys import ed25519_public_key
from keyturn_protocol.leaves import (
    Enrolment,
    EnrolmentBody,
    Export,
    Init,
    Leaf,
    Lease,
    LogFrozen,
    NodeCheckpoint,
    Statement,
    parse_leaf,
)
from keyturn_protocol.merkle import Frontier, leaf_hash
from keyturn_protocol.tiles import ENTRIES, TILE_WIDTH, Tile, decode_bundle, decode_hashes, tiles_of


@dataclass(frozen=True, slots=True)
class VerifierLog:
    """The verifier's log as recomputed from its entry bundles."""

    checkpoint: Checkpoint | None
    leaves: tuple[Leaf, ...]
    hashes: tuple[Hash, ...]
    """The leaf hashes of ``leaves``."""
    contradictions: tuple[Contradiction, ...]
    whole: bool
    """All leaves are here, and hash to the signed root: what isn't among them isn't in the log."""

    def enrolments(self) -> dict[str, EnrolmentBody]:
        """The first enrolment of each log; a second one is a contradiction."""
        found: dict[str, EnrolmentBody] = {}
        for leaf in self.leaves:
            if isinstance(leaf, Enrolment):
                found.setdefault(leaf.body.origin, leaf.body)
        return found

    def followed(self) -> dict[str, tuple[EnrolmentBody, int]]:
        """For each log that is not its node's first here: the newest one before it, and how much of that was
        receipted when it was opened.
        """
        found: dict[str, tuple[EnrolmentBody, int]] = {}
        newest: dict[str, EnrolmentBody] = {}
        sizes: dict[str, int] = {}
        for leaf in self.leaves:
            match leaf:
                case Enrolment(body=body):
                    if (before := newest.get(body.node_id)) is not None and before.incarnation < body.incarnation:
                        found.setdefault(body.origin, (before, sizes.get(before.origin, 0)))
                    newest[body.node_id] = body
                case NodeCheckpoint(body=head):
                    sizes[head.origin] = head.size
                case _:
                    pass
        return found


def audit_verifier_log(reader: BundleReader, manifest: Manifest, trust: Trust) -> VerifierLog:
    """Recompute the verifier's log from its entry bundles and hold checkpoint and tiles against it."""
    found: list[Contradiction] = []
    path = VERIFIER_LOG + "checkpoint"
    try:
        key, _ = check_trust(trust)
        checkpoint = open_checkpoint(listed(reader, manifest, path, found), key)
    except ProtocolError as error:
        return VerifierLog(None, (), (), (*found, Contradiction(path, str(error))), whole=False)
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
            return VerifierLog(checkpoint, tuple(leaves), tuple(hashes), tuple(found), whole=False)
    root = Frontier().extend(hashes).root()
    if root != checkpoint.root:
        found.append(Contradiction(VERIFIER_LOG + "checkpoint", "the leaves don't hash to the signed root"))
    found += _tiles(reader, hashes)
    found += rules(leaves, trust)
    return VerifierLog(checkpoint, tuple(leaves), tuple(hashes), tuple(found), whole=root == checkpoint.root)


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


def rules(leaves: Sequence[Leaf], trust: Trust) -> Iterable[Contradiction]:
    """What a verifier that follows the receipt table can't write, whatever it signs."""
    keys: dict[str, str] = {}
    sizes: dict[str, int] = {}
    frozen: set[str] = set()
    said: set[str] = set()
    newest_us = 0
    for leaf in leaves:
        message = None if leaf.time_us >= newest_us else "time went back"
        newest_us = max(newest_us, leaf.time_us)
        match leaf:
            case Init(body=init):
                claimed = (init.deployment, init.log_vkey, init.receipt_vkey)
                if leaf.index or claimed != (trust.deployment, trust.log_vkey, trust.receipt_vkey):
                    message = "a second beginning" if leaf.index else "the log did not begin with the pinned keys"
            case Enrolment(body=node):
                if node.origin in keys:
                    message = f"{node.origin} is enrolled again"
                keys.setdefault(node.origin, node.public_key)
                message = message or _misnamed(node, trust)
            case NodeCheckpoint(body=head):
                if head.origin not in keys or head.origin in frozen:
                    message = f"{head.origin} was not {'open' if head.origin in keys else 'enrolled'} here"
                elif head.start != sizes.get(head.origin, 0) or head.size <= head.start:
                    message = f"{head.origin}: entries {head.start} … {head.size - 1} don't follow what was receipted"
                elif head.receipt_s * 1_000_000 > leaf.time_us:
                    message = f"{head.origin}: a receipt from after its own leaf"
                sizes[head.origin] = head.size
            case LogFrozen(body=stopped):
                if stopped.origin not in keys:
                    message = f"{stopped.origin} was not enrolled here"
                frozen.add(stopped.origin)
            case Statement(body=statement):
                if statement.sha256 in said:
                    message = f"statement {statement.sha256} is there again"
                said.add(statement.sha256)
            case Lease(body=lease):
                if lease.sha256 in said:
                    message = f"lease {lease.sha256} is there again"
                said.add(lease.sha256)
            case Export(body=export):
                if export.until_us != leaf.time_us:
                    message = "an export that counts silence up to another moment than its own"
            case _:
                assert_never(leaf)
        if message is not None or (leaf.index == 0 and not isinstance(leaf, Init)):
            yield Contradiction(VERIFIER_LOG, f"leaf {leaf.index}: {message or 'the first is not init'}", leaf.index)


def _misnamed(node: EnrolmentBody, trust: Trust) -> str | None:
    """Why an enrolment's names don't fit together."""
    try:
        name = parse_origin(node.origin)
        ed25519_public_key(bytes.fromhex(node.public_key))
    except ProtocolError as error:
        return str(error)
    if (name.deployment, name.node_id, name.incarnation) != (trust.deployment, node.node_id, node.incarnation):
        return f"{node.origin} is enrolled under other names"
    return None


def hold_against(log: VerifierLog, seen: Checkpoint) -> Contradiction | str | None:
    """Hold the bundle's copy of the log against a checkpoint of it that the auditor got elsewhere.

    :param seen: its signature was checked, with the key that ``log`` was checked with.
    :returns: a contradiction if the log was rewritten; why it can't be decided; or None if ``log`` contains ``seen``.
    """
    where = VERIFIER_LOG + "checkpoint"
    if log.checkpoint is None or len(log.hashes) != log.checkpoint.size:
        return "the verifier's log could not be read, so nothing can be said about the given checkpoint"
    if seen.size > log.checkpoint.size:
        return f"the given checkpoint has {seen.size} leaves, the bundle's log only {log.checkpoint.size}"
    root = Frontier().extend(log.hashes[: seen.size]).root()
    if root == seen.root:
        return None
    return Contradiction(
        where,
        f"the verifier signed another log: its first {seen.size} leaves hash to {root.hex()} here "
        f"and to {seen.root.hex()} in the given checkpoint",
    )
