"""``keyturn-agent key-roll`` and ``keyturn-agent retire``."""

import argparse
import time
import uuid
from pathlib import Path
from typing import Any, Final

from keyturn_agent import control
from keyturn_agent.cli_config import add_config, config_of
from keyturn_agent.client import HttpVerifier
from keyturn_agent.clock import SystemRandom
from keyturn_agent.errors import RefusedError, UsageError
from keyturn_agent.last_words import retire, roll_key
from keyturn_agent.ports import Verifier
from keyturn_agent.switch import lease_files
from keyturn_protocol.limits import TEXT_CHARS

_PATIENCE_S: Final = 90.0
"""For a running agent, which waits for receipts up to :data:`~keyturn_agent.operator.RECEIPT_S` at each step."""


def add_last_words(commands: Any, state: argparse.ArgumentParser) -> None:
    """The two commands: a running agent is asked, else it is done here."""
    roll = commands.add_parser("key-roll", parents=[state], help="let a new key sign this host's log")
    add_config(roll)
    roll.set_defaults(command=_key_roll)
    end = commands.add_parser("retire", parents=[state], help="say that chips, or this host, won't report any more")
    end.add_argument("--chips", metavar="UUID,…", help="only these; without it the host is retired and its log ends")
    end.add_argument("--reason", required=True, metavar="TEXT", help="what readers of the log are told")
    add_config(end)
    end.set_defaults(command=_retire)


def _key_roll(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)

    def verifier_at(url: str) -> Verifier:
        return HttpVerifier(url, config.timeout_s, config.proxy, config.ca_file)

    if control.runs(arguments.state):
        reply = control.ask(arguments.state, control.KeyRollRequest(id=str(uuid.uuid4())), _PATIENCE_S)
        print(reply.detail)
        return 0
    _no_run(arguments.state)
    origin = roll_key(arguments.state, verifier_at, SystemRandom(), config.timeout_s, int(time.time()))
    print(f"the key was rolled; the log goes on as {origin}")
    return 0


def _retire(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    chips = None if arguments.chips is None else [chip for chip in arguments.chips.split(",") if chip]
    if chips == []:
        raise UsageError("no_chip", "--chips: must name a chip")
    reason = arguments.reason.strip()
    if not reason or len(reason) > TEXT_CHARS or not reason.isprintable():
        raise UsageError("bad_reason", f"--reason: must be text of up to {TEXT_CHARS} characters")

    if control.runs(arguments.state):
        request = control.RetireRequest(
            id=str(uuid.uuid4()), chips=None if chips is None else sorted(set(chips)), reason=reason
        )
        print(control.ask(arguments.state, request, _PATIENCE_S).detail)
        return 0

    def verifier_at(url: str) -> Verifier:
        return HttpVerifier(url, config.timeout_s, config.proxy, config.ca_file)

    if chips is None:
        _no_run(arguments.state)
    retire(arguments.state, chips, reason, verifier_at, SystemRandom(), config.timeout_s, int(time.time()))
    print("this host is retired; its log has ended" if chips is None else f"retired {', '.join(sorted(set(chips)))}")
    return 0


def _no_run(state: Path) -> None:
    """That nothing runs under a lease in the log that is to end: only the running agent knows what that has used.

    :raises RefusedError: ``leased``.
    """
    if jobs := lease_files.load(state).jobs:
        raise RefusedError(
            "leased",
            f"{len(jobs)} command(s) run under a lease in this log",
            hint="start keyturn-agent run, then again",
        )
