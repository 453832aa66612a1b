"""A bundle as one stream: the part of POSIX ustar that it needs, and nothing else of tar.

Regular files with short names only, `bundle.json` last: who has it has everything before it. One encoding for each
file, so that what this wouldn't have written is refused.

    512 bytes of header · the file's bytes · zeros up to a multiple of 512 · … · 1024 zeros
"""

import re
from dataclasses import dataclass
from typing import Final

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import BUNDLE_FILE_BYTES

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
NAME_BYTES: Final = 100
_NAME: Final = re.compile(rb"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*")
_SUM: Final = slice(148, 156)


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the stream."""

    path: str
    size: int

    @property
    def padding(self) -> int:
        """Zeros after the file's bytes."""
        return -self.size % BLOCK


def format_member(path: str, size: int) -> bytes:
    """The header of a file: mode 0644, owner 0, time 0, so that equal bundles are equal bytes."""
    name = path.encode("ascii", "replace")
    if len(name) > NAME_BYTES or not _NAME.fullmatch(name):
        raise ProtocolError(Code.BAD_BUNDLE, "not a path of a bundle", got=path)
    if not 0 <= size <= BUNDLE_FILE_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "file over its cap", expected=f"at most {BUNDLE_FILE_BYTES}", got=size)
    head = b"".join(
        (
            name.ljust(NAME_BYTES, b"\0"),
            b"0000644\0" + b"0000000\0" * 2,
            b"%011o\0" % size + b"%011o\0" % 0,
            b" " * 8 + b"0" + bytes(100),
            b"ustar\x0000" + bytes(64),
            b"0000000\0" * 2 + bytes(155),
        )
    ).ljust(BLOCK, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def parse_member(block: bytes) -> Member | None:
    """The file that a header announces, None for the zeros at the end.

    :raises ProtocolError: ``bad_bundle`` for what :func:`format_member` wouldn't have written.
    """
    if block == bytes(BLOCK):
        return None
    name, size = block[:NAME_BYTES].rstrip(b"\0"), block[124:135]
    if len(block) == BLOCK and _NAME.fullmatch(name) and re.fullmatch(rb"[0-7]{11}", size):
        path = name.decode("ascii")
        count = int(size, 8)
        if count <= BUNDLE_FILE_BYTES and format_member(path, count) == block:
            return Member(path, count)
    raise ProtocolError(Code.BAD_BUNDLE, "not a header of a bundle's tar stream", expected="plain ustar files")
