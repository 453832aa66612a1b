"""The Merkle tree of RFC 6962 / RFC 9162: compact frontier, inclusion and consistency proofs.

hash of a leaf  SHA-256(0x00 || bytes)
hash of a node  SHA-256(0x01 || left || right)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.limits import LEAF_PREFIX, MAX_INT, NODE_PREFIX, PROOF_HASHES

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = Hash(sha256(b"").digest())
"""The root of a tree without leaves (RFC 9162 §2.1.1)."""


def leaf_hash(data: bytes) -> Hash:
    """RFC 9162 §2.1.1: the hash of one leaf's bytes."""
    return Hash(sha256(LEAF_PREFIX + data).digest())


def node_hash(left: bytes, right: bytes) -> Hash:
    """RFC 9162 §2.1.1: the hash of an inner node."""
    return Hash(sha256(NODE_PREFIX + left + right).digest())


@dataclass(frozen=True, slots=True)
class Frontier:
    """The right edge of a tree: the roots of its maximal full subtrees, the largest first.

    ``hashes`` has one hash for each bit set in ``size``. Appending k leaves to n costs O(k + log n), and the
    frontier is all that is needed to go on appending.
    """

    size: int = 0
    hashes: tuple[Hash, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_INT or len(self.hashes) != self.size.bit_count():
            raise ProtocolError(
                Code.BAD_PROOF,
                "frontier that doesn't fit its size",
                expected=f"{max(self.size, 0).bit_count()} hashes",
                got=len(self.hashes),
            )

    def extend(self, leaves: Iterable[bytes]) -> "Frontier":
        """The frontier after appending ``leaves``, an iterable of leaf hashes."""
        size, edge = self.size, list(self.hashes)
        for leaf in leaves:
            node = Hash(leaf)
            # Each trailing one bit of the size is a full subtree of the same height as the carry.
            low = size
            while low & 1:
                node = Hash(sha256(NODE_PREFIX + edge.pop() + node).digest())
                low >>= 1
            edge.append(node)
            size += 1
        return Frontier(size, tuple(edge))

    def root(self) -> Hash:
        """The root of the tree of ``size`` leaves (RFC 9162 §2.1.1)."""
        if not self.hashes:
            return EMPTY_ROOT
        node = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            node = node_hash(left, node)
        return node

    def to_bytes(self) -> bytes:
        """The hashes, joined; with the size beside it this is the whole state."""
        return b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> "Frontier":
        """The inverse of :meth:`to_bytes`."""
        if len(data) % HASH_BYTES:
            raise ProtocolError(Code.BAD_PROOF, "frontier is not a whole number of hashes", got=len(data))
        return cls(size, tuple(Hash(data[i : i + HASH_BYTES]) for i in range(0, len(data), HASH_BYTES)))


def root_of(leaves: Iterable[bytes]) -> Hash:
    """The root over all leaf hashes."""
    return Frontier().extend(leaves).root()


RangeHash = Callable[[int, int], Hash]
"""``(start, end)`` of a subtree of the recursive definition → its root."""


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[Hash]:
    """RFC 9162 §2.1.3.1: PATH(index, D[len(leaves)]) over leaf hashes."""
    return inclusion_path(index, len(leaves), _over(leaves))


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[Hash]:
    """RFC 9162 §2.1.4.1: PROOF(old_size, D[len(leaves)]) over leaf hashes."""
    return consistency_path(old_size, len(leaves), _over(leaves))


def _over(leaves: Sequence[bytes]) -> RangeHash:
    return lambda start, end: root_of(leaves[start:end])


def inclusion_path(index: int, size: int, range_hash: RangeHash) -> list[Hash]:
    """The inclusion proof with subtree roots from ``range_hash``, so that tiles can answer too."""
    if not 0 <= index < size:
        raise ProtocolError(Code.BAD_PROOF, "leaf outside of the tree", expected=f"0 … {size - 1}", got=index)
    path: list[Hash] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            path.append(range_hash(split, end))
            end = split
        else:
            path.append(range_hash(start, split))
            start = split
    return path[::-1]


def consistency_path(old_size: int, size: int, range_hash: RangeHash) -> list[Hash]:
    """The consistency proof with subtree roots from ``range_hash``."""
    if not 0 < old_size <= size:
        raise ProtocolError(Code.BAD_PROOF, "no proof between these sizes", expected=f"1 … {size}", got=old_size)
    path: list[Hash] = []
    start, end, whole = 0, size, True
    while old_size != end:
        split = start + _split(end - start)
        if old_size <= split:
            path.append(range_hash(split, end))
            end = split
        else:
            path.append(range_hash(start, split))
            start, whole = split, False
    if not whole:
        path.append(range_hash(start, end))
    return path[::-1]


def _split(count: int) -> int:
    """The largest power of two smaller than ``count``."""
    return 1 << (count - 1).bit_length() - 1


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 §2.1.3.2; returns nothing or raises.

    :param leaf: the leaf's hash.
    :raises ProtocolError: ``bad_proof``; also for a proof of the wrong length.
    """
    if not 0 <= index < size <= MAX_INT:
        raise ProtocolError(Code.BAD_PROOF, "leaf outside of the tree", expected=f"0 … {size - 1}", got=index)
    _check_hashes([leaf, root, *proof])
    fn, sn, node = index, size - 1, Hash(leaf)
    for step in proof:
        if sn == 0:
            raise ProtocolError(Code.BAD_PROOF, "inclusion proof is too long", got=len(proof))
        if fn & 1 or fn == sn:
            node = node_hash(step, node)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            node = node_hash(node, step)
        fn >>= 1
        sn >>= 1
    if sn:
        raise ProtocolError(Code.BAD_PROOF, "inclusion proof is too short", got=len(proof))
    if node != root:
        raise ProtocolError(Code.BAD_PROOF, "inclusion proof gives another root", expected=root.hex(), got=node.hex())


def verify_consistency(old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162 §2.1.4.2; returns nothing or raises.

    The empty tree is consistent with every tree and takes an empty proof; its root must be :data:`EMPTY_ROOT`.

    :raises ProtocolError: ``bad_proof``; also for a proof of the wrong length.
    """
    if not 0 <= old_size <= size <= MAX_INT:
        raise ProtocolError(Code.BAD_PROOF, "tree sizes in the wrong order", expected=f"0 … {size}", got=old_size)
    if old_size in (0, size):
        if proof:
            raise ProtocolError(Code.BAD_PROOF, "consistency proof is too long", expected=0, got=len(proof))
        known = EMPTY_ROOT if old_size == 0 else root
        if old_root != known:
            raise ProtocolError(Code.BAD_PROOF, "two roots for one size", expected=known.hex(), got=old_root.hex())
        if size == 0 and root != EMPTY_ROOT:
            raise ProtocolError(Code.BAD_PROOF, "an empty tree with a root of its own", expected=EMPTY_ROOT.hex())
        if old_size < size:
            _check_hashes([root])
        return
    _check_hashes([old_root, root, *proof])
    path = [Hash(h) for h in proof]
    if old_size & (old_size - 1) == 0:
        path.insert(0, Hash(old_root))
    if not path:
        raise ProtocolError(Code.BAD_PROOF, "consistency proof is too short", got=len(proof))
    fn, sn = old_size - 1, size - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    fr = sr = path[0]
    for step in path[1:]:
        if sn == 0:
            raise ProtocolError(Code.BAD_PROOF, "consistency proof is too long", got=len(proof))
        if fn & 1 or fn == sn:
            fr, sr = node_hash(step, fr), node_hash(step, sr)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            sr = node_hash(sr, step)
        fn >>= 1
        sn >>= 1
    if sn:
        raise ProtocolError(Code.BAD_PROOF, "consistency proof is too short", got=len(proof))
    if fr != old_root:
        raise ProtocolError(Code.BAD_PROOF, "proof gives another old root", expected=old_root.hex(), got=fr.hex())
    if sr != root:
        raise ProtocolError(Code.BAD_PROOF, "proof gives another root", expected=root.hex(), got=sr.hex())


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > PROOF_HASHES + 2:
        raise ProtocolError(Code.BAD_PROOF, "proof over its cap", expected=f"at most {PROOF_HASHES} hashes")
    for value in hashes:
        if len(value) != HASH_BYTES:
            raise ProtocolError(Code.BAD_PROOF, "not a SHA-256 hash", expected=f"{HASH_BYTES} bytes", got=len(value))
