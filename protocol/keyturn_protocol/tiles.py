"""C2SP tlog-tiles: a log as static files, and proofs from them.

tile/0/x001/x234/067        256 leaf hashes, leaves 256*1234067 …
tile/1/000.p/17             17 roots of full level-0 tiles
tile/entries/000.p/17       17 entries, each after its length in 16 bits
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.limits import ENTRY_BYTES, MAX_INT
from keyturn_protocol.merkle import HASH_BYTES, RangeHash, node_hash, root_of

TILE_WIDTH: Final = 256
TILE_HEIGHT: Final = 8
ENTRIES: Final = -1
"""The "level" of entry bundles."""
MAX_LEVEL: Final = 6
"""One hash of level 7 would need 2^56 leaves, more than 2^53-1."""

_LENGTH: Final = struct.Struct(">H")
_PATH: Final = re.compile(
    r"tile/(?P<level>entries|[0-9]|[1-5][0-9]|6[0-3])"
    r"/(?P<n>(?:x[0-9]{3}/){0,4}[0-9]{3})"
    r"(?:\.p/(?P<w>[1-9][0-9]{0,2}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Tile:
    """The coordinates of a tile: its level (:data:`ENTRIES` for a bundle), index, and width 1 … 256."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """Its path below the log's prefix."""
        text = f"{self.index:03d}"
        text = text.zfill(-(-len(text) // 3) * 3)
        groups = [text[i : i + 3] for i in range(0, len(text), 3)]
        name = "/".join(["x" + g for g in groups[:-1]] + groups[-1:])
        level = "entries" if self.level == ENTRIES else str(self.level)
        return f"tile/{level}/{name}" + ("" if self.width == TILE_WIDTH else f".p/{self.width}")

    @property
    def start(self) -> int:
        """Index of its first hash within its level."""
        return self.index * TILE_WIDTH


def parse_tile_path(path: str) -> Tile:
    """Parse a tile's path; ``parse_tile_path(x).path == x`` for everything that it accepts."""
    match = _PATH.fullmatch(path)
    if match is not None:
        level = ENTRIES if match["level"] == "entries" else int(match["level"])
        index = int(match["n"].replace("x", "").replace("/", ""))
        tile = Tile(level, index, int(match["w"] or TILE_WIDTH))
        if index * TILE_WIDTH <= MAX_INT and tile.width <= TILE_WIDTH and tile.path == path:
            return tile
    raise ProtocolError(Code.BAD_TILE, "not the path of a tile", expected="tile/<L>/<N>[.p/<W>]", got=path)


def tiles_of(size: int) -> Iterator[Tile]:
    """All hash tiles and entry bundles of a tree of ``size`` leaves, partial ones included."""
    for level in [ENTRIES, *range(MAX_LEVEL + 1)]:
        count = size >> (TILE_HEIGHT * max(level, 0))
        for index in range(count // TILE_WIDTH):
            yield Tile(level, index)
        if count % TILE_WIDTH:
            yield Tile(level, count // TILE_WIDTH, count % TILE_WIDTH)


def tile_for(level: int, index: int, size: int) -> Tile:
    """The tile that holds hash ``index`` of ``level`` in a tree of ``size`` leaves, with its width there."""
    count = size >> (TILE_HEIGHT * max(level, 0))
    if not 0 <= index < count:
        raise ProtocolError(Code.BAD_TILE, "hash outside of the tree", expected=f"0 … {count - 1}", got=index)
    number = index // TILE_WIDTH
    return Tile(level, number, min(TILE_WIDTH, count - number * TILE_WIDTH))


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """An entry bundle: each entry after its length as a big-endian u16."""
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > ENTRY_BYTES:
            raise ProtocolError(Code.TOO_LARGE, "entry over its cap", expected=f"<= {ENTRY_BYTES}", got=len(entry))
        parts += (_LENGTH.pack(len(entry)), entry)
    return b"".join(parts)


def decode_bundle(data: bytes, count: int) -> list[bytes]:
    """The entries of a bundle, which must be exactly ``count``."""
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) < count:
        if at + _LENGTH.size > len(data):
            break
        size = _LENGTH.unpack_from(data, at)[0]
        at += _LENGTH.size
        if at + size > len(data):
            raise ProtocolError(Code.BAD_TILE, "entry bundle is cut", expected=f"{size} bytes", got=len(data) - at)
        entries.append(data[at : at + size])
        at += size
    if at != len(data) or len(entries) != count:
        raise ProtocolError(
            Code.BAD_TILE, "entry bundle of the wrong length", expected=f"{count} entries", got=len(entries)
        )
    return entries


def encode_hashes(hashes: Sequence[bytes]) -> bytes:
    """A hash tile: 1 … 256 hashes, joined."""
    return b"".join(hashes)


def decode_hashes(data: bytes, count: int) -> list[Hash]:
    """The hashes of a tile, which must be exactly ``count``."""
    if len(data) != count * HASH_BYTES:
        raise ProtocolError(Code.BAD_TILE, "tile of the wrong length", expected=count * HASH_BYTES, got=len(data))
    return [Hash(data[i : i + HASH_BYTES]) for i in range(0, len(data), HASH_BYTES)]


def range_hash_from(read: Callable[[Tile], Sequence[Hash]], size: int) -> RangeHash:
    """Subtree roots from tiles, for :func:`~keyturn_protocol.merkle.inclusion_path` and its sister.

    :param read: the hashes of one tile of a tree of ``size`` leaves.
    """

    def subtree(start: int, end: int) -> Hash:
        count = end - start
        if count & (count - 1) or start % count:
            # The ragged right edge: left subtree is full, the right one is smaller.
            split = 1 << (count - 1).bit_length() - 1
            return node_hash(subtree(start, start + split), subtree(start + split, end))
        level = min((count.bit_length() - 1) // TILE_HEIGHT, MAX_LEVEL)
        unit = 1 << (TILE_HEIGHT * level)
        first, n = start // unit, count // unit
        tile = tile_for(level, first, size)
        hashes = read(tile)
        if len(hashes) != tile.width:
            raise ProtocolError(Code.BAD_TILE, f"{tile.path}: wrong width", expected=tile.width, got=len(hashes))
        return root_of(hashes[first - tile.start : first - tile.start + n])

    return subtree
