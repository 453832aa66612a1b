"""SHA-256 of open files, as openings name it; a file may be as large as an image is."""

import os
from hashlib import sha256
from typing import Final

from keyturn_agent.errors import RefusedError

_CHUNK: Final = 1024 * 1024


def digest_of(fd: int, what: str) -> str:
    """``sha256:<hex>`` of a regular file from its beginning; the descriptor is closed.

    :param what: for the message.
    :raises RefusedError: ``bad_file``: not a file that ends, or it can't be read.
    """
    try:
        if not os.path.isfile(f"/proc/self/fd/{fd}"):  # noqa: PTH113 -- of a descriptor
            raise RefusedError("bad_file", f"{what}: not a regular file")
        found = sha256()
        at = 0
        while chunk := os.pread(fd, _CHUNK, at):
            found.update(chunk)
            at += len(chunk)
    except OSError as error:
        raise RefusedError("bad_file", f"{what}: {error}") from None
    finally:
        os.close(fd)
    return f"sha256:{found.hexdigest()}"
