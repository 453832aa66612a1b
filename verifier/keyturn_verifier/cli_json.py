"""Lists of ``keyturn-verifier`` for programs: with ``--json`` one array on stdout, of the same as people are shown."""

import argparse
from collections.abc import Sequence

import msgspec


def json_too(parser: argparse.ArgumentParser) -> None:
    """Let a command print JSON."""
    parser.add_argument("--json", action="store_true", help="print one JSON array, for programs")


def print_json(items: Sequence[object]) -> None:
    """Dataclasses, structs or plain values; times stay whole microseconds (UTC)."""
    print(msgspec.json.encode(items).decode(), flush=True)
