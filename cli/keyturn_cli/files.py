"""Reading small files that a person named."""

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
