"""TOML that people write, as typed values, with errors that name the key."""

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped

T = TypeVar("T")
_BYTES: Final = 1024 * 1024


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file's table; its decimals exactly as they are written.

    :param what: the argument that named the file.
    :raises CliError: it can't be read, or isn't TOML.
    """
    try:
        return tomllib.loads(read_capped(path, _BYTES, what).decode(), parse_float=Decimal)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CliError(f"{path}: not TOML: {error}", exit=Exit.USAGE) from None


def convert(table: Mapping[str, Any], kind: type[T], where: str = "") -> T:
    """A table as ``kind``.

    :param where: what the table is of, for the message.
    :raises CliError: which key is wrong, and how: ``thresholds.root.persons: expected `int`, got `str```.
    """
    try:
        return msgspec.convert(table, kind, strict=True)
    except msgspec.ValidationError as error:
        what, at, key = str(error).rpartition(" - at `$")
        what = what if at else str(error)
        parts = [where, key.rstrip("`").removeprefix("."), what[:1].lower() + what[1:]]
        raise CliError(": ".join(part for part in parts if part), exit=Exit.USAGE) from None
