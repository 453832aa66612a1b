"""``keyturn-verifier root``: the verifier's own keys for a root, and the first root, which nobody else can take."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from keyturn_protocol.canonical import encode_record
from keyturn_protocol.limits import ENVELOPE_BYTES
from keyturn_protocol.root import Root
from keyturn_verifier import config, keyfiles, state, taking
from keyturn_verifier.cli_db import db_too, settings_of
from keyturn_verifier.clock import wall_clock
from keyturn_verifier.errors import UsageError, VerifierError
from keyturn_verifier.problems import Refusal
from keyturn_verifier.switch_state import SwitchState


def add_root(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    command: Callable[[object, str, str, object], argparse.ArgumentParser],
) -> None:
    """The parsers. ``command``: makes one with ``--state``."""
    parser = commands.add_parser("root", help="who the parties are: the first root", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    command(
        actions, "services", "print this verifier's keys as a root names them; makes lease.key if need be", _services
    )
    text = "put the first root in force; later ones are sent as statements"
    install = db_too(command(actions, "install", text, _install))
    install.add_argument("file", type=Path, metavar="FILE", help="version 1, signed by as many as it asks for")


def _services(options: argparse.Namespace) -> None:
    settings = config.load(options.state)
    services = keyfiles.with_lease(settings.state, settings.deployment).services()
    assert services is not None  # noqa: S101 -- the lease key was just made
    sys.stdout.write(encode_record(services).decode() + "\n")


def _install(options: argparse.Namespace) -> None:
    settings = settings_of(options)
    try:
        with options.file.open("rb") as file:
            data = file.read(ENVELOPE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{options.file}: {error.strerror}") from None
    engine = state.open_database(settings)
    try:
        said = taking.opened(data, settings)
        if not isinstance(said.statement, Root) or said.statement.version != 1:
            raise UsageError(
                f"{options.file}: not the first version of a root", hint="send later ones with keyturn statement send"
            )
        keys = keyfiles.load(settings.state, settings.deployment)
        switch = SwitchState(settings.deployment)
        item = taking.Taker(settings, engine, keys, switch, wall_clock, first=True).take(said)
    except Refusal as refusal:
        raise VerifierError(f"{options.file}: {refusal.detail}") from None
    finally:
        engine.dispose()
    print(f"sha256:{item.sha256}")
