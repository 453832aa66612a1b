"""Reading small files that a person named, and keeping those that are for this program alone."""

import tempfile
from pathlib import Path

from keyturn_cli.errors import CliError, Exit


def read_capped(path: Path, limit: int, what: str) -> bytes:
    """A file's bytes; one that can't be read or is over ``limit`` is a matter of usage.

    :param what: the option that named it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CliError(f"{what} {path}: {error.strerror or error}", exit=Exit.USAGE) from None
    if len(data) > limit:
        raise CliError(f"{what} {path}: too large (expected at most {limit} bytes)", exit=Exit.USAGE)
    return data


def keep_private(path: Path, data: bytes) -> None:
    """Put a file in place, whole, in a folder that is for nobody else.

    :raises OSError: it can't be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
        out.write(data)
    Path(out.name).replace(path)
