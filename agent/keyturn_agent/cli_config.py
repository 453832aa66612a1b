"""The configuration as the command line has it: ``--config``, and the flags that override single keys."""

import argparse
import time
from pathlib import Path
from typing import Final

from keyturn_agent.cli_values import natural, positive
from keyturn_agent.config import Config
from keyturn_agent.courier import Courier
from keyturn_agent.enrolment import Pinned
from keyturn_agent.ports import Random, Verifier
from keyturn_agent.retention import Retention
from keyturn_agent.settings import DEFAULT_FILE, load_config

_SECOND: Final = 1_000_000


def add_config(parser: argparse.ArgumentParser) -> None:
    """``--config`` and ``--timeout``, for every command that talks to the verifier."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"settings in TOML; {DEFAULT_FILE} where it exists")
    parser.add_argument("--timeout", type=positive, metavar="SECONDS", help="of one exchange; 30")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags of ``run`` that override the file."""
    add_config(parser)
    parser.add_argument("--interval", type=positive, metavar="SECONDS", help="of a usage entry; 10")
    parser.add_argument("--checkpoint-every", type=positive, metavar="SECONDS", help="300")
    parser.add_argument("--heartbeat-every", type=positive, metavar="SECONDS", help="60")
    parser.add_argument("--jitter", type=natural, metavar="SECONDS", help="before each upload; 30, 0 in simulated time")
    parser.add_argument(
        "--drain", type=natural, metavar="SECONDS", help="wait for receipts at the end; 30, 1 when stopped"
    )
    parser.add_argument("--incarnation-every", type=natural, metavar="SECONDS", help=argparse.SUPPRESS)


def config_of(arguments: argparse.Namespace) -> Config:
    """The file with the flags on top; of a command that took :func:`add_config` or :func:`add_settings`.

    :raises UsageError: ``no_config`` or ``bad_setting``.
    """
    given = vars(arguments)
    # Nothing knocks at once where time is simulated: a test doesn't wait.
    simulated = bool(given.get("fast")) or given.get("speed") is not None
    jitter_s = given.get("jitter")
    return load_config(
        arguments.config,
        {
            "interval_us": _us(given.get("interval")),
            "checkpoint_us": _us(given.get("checkpoint_every")),
            "heartbeat_us": _us(given.get("heartbeat_every")),
            "jitter_s": 0 if jitter_s is None and simulated else jitter_s,
            "timeout_s": arguments.timeout,
            "drain_s": given.get("drain"),
            "stop_s": given.get("drain"),
            "incarnation_s": given.get("incarnation_every"),
        },
    )


def courier_of(config: Config, pinned: Pinned, verifier: Verifier, random: Random) -> Courier:
    """The courier that a configuration describes."""
    retention = Retention(config.keep_s, config.keep_bytes, lambda: int(time.time()))
    return Courier(verifier, pinned.receipt_key, pinned.log_key, random, config.jitter_s, retention)


def _us(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * _SECOND
