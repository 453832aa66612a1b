"""Reads the agent's configuration: a TOML file, with what the command line says on top.

Every mistake is an error that names the key: an unknown table or key, a wrong type, a number out of range.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from keyturn_agent.config import Config, Key, check_number, is_text, key_of, names
from keyturn_agent.errors import StoreError, UsageError

DEFAULT_FILE: Final = Path("/etc/keyturn/agent.toml")
DIRECT: Final = "direct"
_FILE_BYTES: Final = 64 * 1024


def load_config(path: Path | None, flags: Mapping[str, int | str | None], default: Path = DEFAULT_FILE) -> Config:
    """The configuration of a run.

    :param path: the file that was asked for; None takes ``default`` where it exists.
    :param flags: fields of :class:`Config` from the command line, which override the file; None is *not given*.
    :raises UsageError: ``no_config`` or ``bad_setting``.
    """
    if path is None and not default.exists():
        values: dict[str, Any] = {}
    else:
        values = read_file(default if path is None else path)
    values.update({name: value for name, value in flags.items() if value is not None})
    return Config(**values)


def read_file(path: Path) -> dict[str, Any]:
    """The fields that a file sets.

    :raises StoreError: the disk can't read it now.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
        if len(data) > _FILE_BYTES:
            raise UsageError("bad_setting", f"{path}: over {_FILE_BYTES} bytes")
        document = tomllib.loads(data.decode())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UsageError("no_config", f"reading the configuration: {error}") from error
    except OSError as error:
        raise StoreError("disk", f"reading the configuration: {error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError("bad_setting", f"{path}: not TOML: {error}") from error
    return parse(document)


def parse(document: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`Config` out of a TOML document.

    :raises UsageError: ``bad_setting``, one line that begins with the key.
    """
    known = {key_of(name).name: name for name in names()}
    tables = {key.partition(".")[0] for key in known}
    values: dict[str, Any] = {}
    for table, content in document.items():
        if table not in tables:
            raise _unknown(table, tables, "table" if isinstance(content, dict) else "key")
        if not isinstance(content, dict):
            raise UsageError("bad_setting", f"{table}: must be a table (got {_shown(content)})")
        for last, value in content.items():
            key = f"{table}.{last}"
            if key not in known:
                raise _unknown(key, {each for each in known if each.startswith(f"{table}.")}, "key")
            name = known[key]
            values[name] = _text(key, value) if is_text(name) else _number(key_of(name), value)
    return values


def _number(key: Key, value: object) -> int:
    # A bool is an int to Python; it isn't one to an operator.
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError("bad_setting", f"{key.name}: must be a whole number (got {_shown(value)})")
    check_number(key, value * key.scale)
    return value * key.scale


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise UsageError("bad_setting", f"{key}: must be text (got {_shown(value)})")
    if key == "upload.proxy":
        check_proxy(key, value)
    elif key == "metrics.listen":
        listen_address(value)
    elif key == "switch.gate" and value not in ("observe", "compute_mode"):
        raise UsageError("bad_setting", f"{key}: must be observe or compute_mode (got {value})")
    elif key == "metrics.textfile" and not value.endswith(".prom"):
        raise UsageError("bad_setting", f"{key}: must end in .prom (got {value})")
    return value


def check_proxy(key: str, value: str) -> None:
    """:raises UsageError: not a proxy's URL. The URL isn't quoted: it may hold a password."""
    parts = urlsplit(value)
    if value != DIRECT and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/")):
        raise UsageError("bad_setting", f"{key}: must be a URL such as http://proxy.example.org:3128, or {DIRECT!r}")


def listen_address(value: str) -> tuple[str, int]:
    """Host and port out of ``127.0.0.1:9464`` or ``[::1]:9464``.

    :raises UsageError: ``bad_setting``.
    """
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError("bad_setting", f"metrics.listen: must be HOST:PORT (got {value})")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _unknown(name: str, known: set[str], what: str) -> UsageError:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else "known: " + ", ".join(sorted(known))
    return UsageError("bad_setting", f"{name}: unknown {what}", hint=hint)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
