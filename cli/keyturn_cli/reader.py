"""Reading a bundle from a folder that someone else made.

A path is followed element by element without following links, so that nothing outside of the folder is read;
what isn't a regular file, or is over the cap of its kind, is refused.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from keyturn_protocol.bundle import MANIFEST, TOTALS, VERIFIER_LOG
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import BUNDLE_FILE_BYTES, ENTRY_BYTES, MANIFEST_BYTES, NOTE_BYTES, SEGMENT_BYTES
from keyturn_protocol.tiles import TILE_WIDTH

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
DEPTH: Final = 12
"""Elements of a path: the deepest in a bundle is a tile's, with 9."""


@dataclass(frozen=True, slots=True)
class FolderReader:
    """A :class:`~keyturn_protocol.bundle.BundleReader` over a folder; picklable."""

    root: str

    def paths(self) -> Iterator[str]:
        """Every file below the folder.

        :raises ProtocolError: ``bad_bundle`` for links, devices and names that aren't UTF-8.
        """
        pending = [""]
        while pending:
            folder = pending.pop()
            if folder.count("/") > DEPTH:
                raise _bad("folders nested too deeply", folder)
            try:
                with os.scandir(os.path.join(self.root, folder)) as found:  # noqa: PTH118
                    entries = sorted(found, key=lambda e: e.name)
            except OSError as error:
                raise _bad(f"can't read a folder: {error.strerror}", folder or ".") from None
            for entry in entries:
                path = folder + entry.name
                if not entry.name.isprintable() or not _is_utf8(entry.name):
                    raise _bad("a name that is not printable", ascii(path))
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    pending.append(path + "/")
                elif stat.S_ISREG(mode):
                    yield path
                else:
                    raise _bad("neither a file nor a folder", path)

    def read(self, path: str) -> bytes:
        """One file's bytes.

        :raises ProtocolError: ``bad_bundle`` if it isn't there, isn't a file, or is reached by a link;
            ``too_large`` over its cap.
        """
        parts = path.split("/")
        if len(parts) > DEPTH or any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise _bad("not a path of a bundle", path)
        opened: list[int] = []
        try:
            opened.append(os.open(self.root, _FOLDER))
            for part in parts[:-1]:
                opened.append(os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=opened[-1]))
            opened.append(os.open(parts[-1], _FILE, dir_fd=opened[-1]))
            return _read(opened[-1], path)
        except OSError as error:
            raise _bad(f"can't read {path}: {error.strerror}") from None
        finally:
            for descriptor in reversed(opened):
                os.close(descriptor)


def _read(descriptor: int, path: str) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _bad("not a regular file", path)
    cap = cap_of(path)
    parts, size = list[bytes](), 0
    while part := os.read(descriptor, min(1 << 20, cap + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > cap:
            raise ProtocolError(Code.TOO_LARGE, "file over its cap", expected=f"at most {cap} bytes", got=path)
    return b"".join(parts)


def cap_of(path: str) -> int:
    """The most bytes that a file of this kind can have."""
    if path == MANIFEST:
        return MANIFEST_BYTES
    if path.endswith(".segment"):
        return SEGMENT_BYTES
    if path.startswith(VERIFIER_LOG):
        return TILE_WIDTH * (ENTRY_BYTES + 2)
    return BUNDLE_FILE_BYTES if path == TOTALS else NOTE_BYTES


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _bad(message: str, path: str | None = None) -> ProtocolError:
    return ProtocolError(Code.BAD_BUNDLE, message, got=path)
