"""The few ways in which the agent writes files, each with what survives a crash."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keyturn_agent.errors import DamagedError, NoSpaceError, StoreError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
TEMPORARY = ".tmp"
"""Ending of a file that isn't whole yet; left over ones mean nothing and may be removed."""


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNREADABLE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})
"""What a disk or a file system says of bytes that it can't give back any more."""
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
"""What stands in a file's place isn't that file, or nothing does."""
_READS = 3
_READ_AGAIN_S = 0.2


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what was being done when the disk failed.

    :raises StoreError: for every OSError inside; :class:`NoSpaceError` where the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpaceError("disk_full", f"{what}: {error}") from error
        raise StoreError("disk", f"{what}: {error}") from error


def read(path: Path) -> bytes:
    """The bytes of a file that a log stands on. A disk that fails once is asked again.

    :raises DamagedError: the file isn't there, or the disk can't read it, now and a moment later.
    :raises StoreError: it can't be read for another reason, which says nothing about the bytes.
    """
    for again in reversed(range(_READS)):
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno in _UNREADABLE and again:
                time.sleep(_READ_AGAIN_S)
                continue
            if error.errno in _UNREADABLE | GONE:
                raise DamagedError("damaged", f"{path}: {error}") from error
            raise StoreError("disk", f"reading {path}: {error}") from error
    raise AssertionError("unreachable")


def close(fd: int) -> None:
    """Let go of a file. What was to survive was synced before; an error here says nothing about it."""
    with suppress(OSError):
        os.close(fd)


def fsync_folder(folder: Path) -> None:
    """After this, renames and new names in ``folder`` survive."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``; the system may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _write_temporary(path: Path, data: bytes) -> Path:
    temporary = path.with_name(path.name + TEMPORARY)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
    try:
        write_all(fd, data)
        # After this fsync the bytes survive, under a name that nobody reads.
        os.fsync(fd)
    finally:
        close(fd)
    return temporary


def replace(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: a crash leaves the old content or the new, whole."""
    temporary = _write_temporary(path, data)
    temporary.rename(path)
    # After this fsync the new content survives under its name.
    fsync_folder(path.parent)


def create(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, which must not exist: a crash leaves nothing or the whole.

    :raises FileExistsError: and what is there stays as it is.
    """
    temporary = _write_temporary(path, data)
    try:
        # A link, unlike a rename, fails where something is already (the O_EXCL of whole files).
        path.hardlink_to(temporary)
    finally:
        temporary.unlink()
    # After this fsync the file survives.
    fsync_folder(path.parent)


def publish(path: Path, data: bytes) -> None:
    """Like :func:`replace` but without waiting for the disk: for what may be lost. On a full disk it is lost."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
        try:
            write_all(fd, data)
        finally:
            close(fd)
        temporary.rename(path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
