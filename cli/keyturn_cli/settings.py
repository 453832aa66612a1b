"""What a person's commands begin with, from a small file, so that it isn't typed every time.

    verifier = "https://keyturn.example.org"
    root = "sha256:5f0c…"                     # pinned out of band
    key = "~/.ssh/id_ed25519.pub"
    token_file = "reader.token"               # beside this file

``KEYTURN_CONFIG`` names it; else ``~/.config/keyturn/config.toml``, where it exists. What is on the command line or in
the environment goes first.
"""

import re
import tomllib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped

VARIABLE: Final = "KEYTURN_CONFIG"
_BYTES: Final = 65_536
_FILES: Final = frozenset({"key", "token_file"})
ROOT: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
"""How a root is pinned."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Each is the option of its name; None: not set."""

    verifier: str | None = None
    root: str | None = None
    key: Path | None = None
    token_file: Path | None = None


current: ContextVar[Settings] = ContextVar("settings", default=Settings())  # noqa: B039 -- frozen
"""Of this call of the program."""


def load(environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    :raises CliError: the file that is named isn't there, or holds anything else than settings.
    """
    named = environment.get(VARIABLE)
    home = Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    path = Path(named) if named else home / "keyturn" / "config.toml"
    if not named and not path.exists():
        return Settings()
    try:
        text = read_capped(path, _BYTES, VARIABLE if named else "settings").decode()
        return _checked(tomllib.loads(text), path)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CliError(f"{path}: not TOML: {error}", exit=Exit.USAGE) from None


def _checked(table: Mapping[str, Any], path: Path) -> Settings:
    known = [field.name for field in fields(Settings)]
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise CliError(f"{path}: {name}: unknown (expected {', '.join(known)})", exit=Exit.USAGE)
        if not isinstance(value, str) or not value:
            raise CliError(f"{path}: {name}: must be text (got {value!r})", exit=Exit.USAGE)
        if name == "root" and not ROOT.fullmatch(value):
            raise CliError(f"{path}: root: must be sha256: and 64 lower-case hex digits (got {value})", exit=Exit.USAGE)
        found[name] = path.parent / Path(value).expanduser() if name in _FILES else value
    return Settings(**found)


def defaults(command: Any, settings: Settings) -> dict[str, Any]:
    """Click's ``default_map``: the settings, for each command below ``command`` that has an option of their name."""
    children: Mapping[str, Any] = getattr(command, "commands", {})
    if children:
        return {name: defaults(child, settings) for name, child in children.items()}
    set_ = {"verifier": settings.verifier, "root": settings.root, "key": settings.key}
    names = {parameter.name for parameter in command.params}
    return {name: str(value) for name, value in set_.items() if value is not None and name in names}
