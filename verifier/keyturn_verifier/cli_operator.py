"""``keyturn-verifier operator``: whose signatures count as an operator's."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from keyturn_protocol.canonical import fit_text
from keyturn_protocol.limits import TEXT_CHARS
from keyturn_protocol.public_keys import parse_public_key
from keyturn_verifier import config, operators
from keyturn_verifier.cli_json import json_too, print_json
from keyturn_verifier.clock import wall_clock
from keyturn_verifier.errors import UsageError

_KEY_BYTES = 16_384


def add_operator(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    command: Callable[[object, str, str, object], argparse.ArgumentParser],
) -> None:
    """The parsers. ``command``: makes one with ``--state``."""
    parser = commands.add_parser("operator", help="whose signatures count as an operator's", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = command(actions, "add", "let a key sign operators' statements; auditors need the new trust.json", _add)
    key = add.add_mutually_exclusive_group(required=True)
    key.add_argument("--key", metavar="TEXT", help="ed25519 … or ssh-ed25519 …, as keyturn key show prints it")
    key.add_argument("--key-file", type=Path, metavar="FILE", help="a .pub file")
    add.add_argument("--name", required=True, help="whose it is, for people")
    json_too(command(actions, "list", "list keys with their ids", _list))
    command(actions, "end", "let a key sign nothing any more", _end).add_argument("id", help="as listed")


def _add(options: argparse.Namespace) -> None:
    state = config.load(options.state).state
    if not options.name.strip() or options.name != fit_text(options.name):
        raise UsageError(f"--name: must be 1 to {TEXT_CHARS} characters on one line")
    made = operators.add(state, _text(options), options.name)
    print(parse_public_key(made.key).id)


def _text(options: argparse.Namespace) -> str:
    """The key's text; what follows it in a .pub file is a comment."""
    if options.key_file is None:
        return str(options.key)
    try:
        with options.key_file.open("rb") as file:
            words = file.read(_KEY_BYTES).decode("ascii", "replace").split()
    except OSError as error:
        raise UsageError(f"--key-file: {error}") from None
    return " ".join(words[:2])


def _list(options: argparse.Namespace) -> None:
    keys = operators.load(config.load(options.state).state)
    if options.json:
        rows = [(parse_public_key(one.key).id, one) for one in keys]
        return print_json([{"id": digest, "name": k.name, "key": k.key, "until_us": k.until_us} for digest, k in rows])
    for one in keys:
        ended = "" if one.until_us is None else f"  ended {_time(one.until_us)}"
        print(f"{parse_public_key(one.key).id}  {one.name}  {one.key}{ended}")


def _end(options: argparse.Namespace) -> None:
    operators.end(config.load(options.state).state, options.id, wall_clock())


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
