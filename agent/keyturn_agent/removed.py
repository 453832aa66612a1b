"""What is left of segments that were removed: the size and root of each of their heads, a line each.

    512 8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4

A verifier that was restored from an old backup may come back with one of these heads. The line says that it is
ours, so that a host that only tidied up isn't taken for one that was rolled back.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from keyturn_agent import files
from keyturn_protocol.ids import Hash

NAME: Final = "removed"
_LINE: Final = re.compile(rb"([1-9][0-9]{0,15}) ([0-9a-f]{64})\n")
_LINE_BYTES: Final = 16 + 1 + 64 + 1


def removed_end(folder: Path) -> int:
    """Everything up to this size was removed, or may be; 0 if nothing was.

    :raises OSError: the file is there and can't be read.
    """
    try:
        fd = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(fd).st_size
        # The last whole line; after a crash a torn one may follow it, whose segments are all still there.
        lines = _LINE.findall(os.pread(fd, 2 * _LINE_BYTES, max(0, size - 2 * _LINE_BYTES)))
    finally:
        os.close(fd)
    return int(lines[-1][0]) if lines else 0


def removed_root(folder: Path, size: int) -> Hash | None:
    """The root of our removed head of this size; None if there was none."""
    try:
        with (folder / NAME).open("rb") as file:
            for line in file:
                match = _LINE.fullmatch(line)
                if match is not None and int(match[1]) == size:
                    return Hash(bytes.fromhex(match[2].decode()))
    except FileNotFoundError:
        pass
    return None


def remember(folder: Path, heads: Sequence[tuple[int, Hash]]) -> None:
    """Add heads, in order of size; when this returns they survive, and their segments may go."""
    new = not (folder / NAME).exists()
    fd = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, files.PRIVATE_FILE)
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, 2 * _LINE_BYTES, max(0, size - 2 * _LINE_BYTES))
        size -= len(tail) - (tail.rfind(b"\n") + 1)
        os.ftruncate(fd, size)
        os.lseek(fd, size, os.SEEK_SET)
        files.write_all(fd, b"".join(f"{end} {root.hex()}\n".encode() for end, root in heads))
        # After this fsync the roots survive.
        os.fsync(fd)
    finally:
        os.close(fd)
    if new:
        files.fsync_folder(folder)
