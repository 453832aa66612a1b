"""``keyturn-verifier root``: the verifier's own keys for a root."""

import argparse
import sys
from collections.abc import Callable

from keyturn_protocol.canonical import encode_record
from keyturn_verifier import config, keyfiles


def add_root(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    command: Callable[[object, str, str, object], argparse.ArgumentParser],
) -> None:
    """The parsers. ``command``: makes one with ``--state``."""
    parser = commands.add_parser("root", help="who the parties are", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    command(
        actions, "services", "print this verifier's keys as a root names them; makes lease.key if need be", _services
    )


def _services(options: argparse.Namespace) -> None:
    settings = config.load(options.state)
    services = keyfiles.with_lease(settings.state, settings.deployment).services()
    assert services is not None  # noqa: S101 -- the lease key was just made
    sys.stdout.write(encode_record(services).decode() + "\n")
