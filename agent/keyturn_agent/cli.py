"""``keyturn-agent``: enrol a host, run the agent, ask how it is. The only module that ends the process."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from keyturn_agent import __version__
from keyturn_agent.cli_config import add_config, add_settings, config_of, courier_of
from keyturn_agent.cli_exec import add_exec, lessee_of
from keyturn_agent.cli_last_words import add_last_words
from keyturn_agent.cli_source import (
    add_label,
    add_nvml,
    add_replay,
    add_source,
    check_source,
    make_source,
    stop_on_signals,
)
from keyturn_agent.cli_values import natural
from keyturn_agent.cli_verbs import add_verbs
from keyturn_agent.client import HttpVerifier
from keyturn_agent.clock import SimulatedClock, SystemClock, SystemRandom, sane
from keyturn_agent.daemon import Daemon
from keyturn_agent.enroll import enroll
from keyturn_agent.enrolment import Pinned, check_url, format_enrolment, pinned_by_root, read_trust
from keyturn_agent.errors import AgentError, RefusedError, UnreachableError, UsageError
from keyturn_agent.last_words import finish_retirement
from keyturn_agent.patience import PatientVerifier
from keyturn_agent.ports import Clock, Verifier
from keyturn_agent.recording import read_recording
from keyturn_agent.replace import make_node, node_argument, read_statement
from keyturn_agent.status import describe, read_status
from keyturn_agent.store import Store, read_enrolment
from keyturn_agent.switch.entitlement import check_allowance
from keyturn_agent.switch.pin import Pin, deployment_of, root_argument
from keyturn_agent.watch import Watch
from keyturn_protocol.canonical import encode
from keyturn_protocol.errors import ProtocolError

FINE: Final = 0
REJECTED: Final = 1
USAGE: Final = 2
UNDECIDED: Final = 3
INTERRUPTED: Final = 130
"""As shells have it of a program that Ctrl-C ended."""
TOKEN_ENV: Final = "KEYTURN_JOIN_TOKEN"  # noqa: S105 -- the name of a variable


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 fine, 1 rejected, 2 usage, 3 could not decide, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="keyturn-agent: %(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    for level, name in ((logging.WARNING, "warning"), (logging.INFO, "info"), (logging.ERROR, "error")):
        logging.addLevelName(level, name)
    # What it warns of, with a trace, is said by whoever made the request.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        status: int = arguments.command(arguments)
    except AgentError as error:
        _complain(str(error), error.hint)
        return REJECTED if isinstance(error, RefusedError) else USAGE if isinstance(error, UsageError) else UNDECIDED
    except ProtocolError as error:
        _complain(str(error), None)
        return UNDECIDED
    except BrokenPipeError:
        # Whoever read our results has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except OSError as error:
        # What no module expected to fail; never a trace of ours.
        _complain(str(error), None)
        return UNDECIDED
    except KeyboardInterrupt:
        _complain("interrupted", None)
        return INTERRUPTED
    return status


def _complain(message: str, hint: str | None) -> None:
    print(f"keyturn-agent: error: {message}", file=sys.stderr)
    if hint is not None:
        print(f"keyturn-agent: hint: {hint}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyturn-agent", description="Meters the GPUs of this host into a signed, append-only log."
    )
    parser.add_argument("--version", action="version", version=f"keyturn-agent {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more on stderr")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    state = argparse.ArgumentParser(add_help=False)
    state.add_argument("--state", type=Path, required=True, metavar="DIR", help="the state folder of this host")

    join = commands.add_parser("enroll", parents=[state], help="enrol this host with a verifier, once")
    join.add_argument("--verifier", required=True, metavar="URL")
    anchor = join.add_mutually_exclusive_group(required=True)
    anchor.add_argument(
        "--root", metavar="sha256:HEX", help="the root, out of band: it says which keys the verifier has"
    )
    anchor.add_argument("--trust", type=Path, metavar="FILE", help="the verifier's keys, out of band, without a root")
    token = join.add_mutually_exclusive_group()
    token.add_argument("--token", help=f"join token; others on this host may see it, better: {TOKEN_ENV}")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds the join token")
    join.add_argument("--replaces", metavar="NODE", help="the node that this host was before it was set up again")
    join.add_argument("--statement", type=Path, metavar="FILE", help="an operator's signature under --replaces")
    add_source(join)
    add_config(join)
    join.add_argument(
        "--wait", type=natural, default=30, metavar="SECONDS", help="for a verifier that doesn't answer yet; 30"
    )
    join.add_argument("--json", action="store_true", help="result as JSON")
    join.set_defaults(command=_enroll)

    run = commands.add_parser("run", parents=[state], help="run the agent")
    add_source(run)
    add_label(run)
    add_nvml(run)
    add_replay(run)
    add_settings(run)
    run.set_defaults(command=_run)

    add_last_words(commands, state)
    ask = commands.add_parser("status", parents=[state], help="how this host's log is doing")
    ask.add_argument("--json", action="store_true", help="result as JSON")
    ask.set_defaults(command=_status)
    add_verbs(commands, state)
    add_exec(commands)
    return parser


def _token(arguments: argparse.Namespace) -> str:
    """The join token, from where it was given; it is never printed."""
    token = arguments.token
    if token is None and arguments.token_file is not None:
        try:
            token = arguments.token_file.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError("no_token", f"--token-file: {error}") from None
    if token is None:
        token = os.environ.get(TOKEN_ENV)
    if token is None or not token.strip():
        raise UsageError("no_token", f"a join token is needed: {TOKEN_ENV}, --token-file or --token")
    if len(token) > 256 or not token.strip().isascii():
        raise UsageError("no_token", "the join token is not one (expected up to 256 ASCII characters)")
    return str(token).strip()


def _enroll(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    url = check_url(arguments.verifier)
    verifier = PatientVerifier(HttpVerifier(url, config.timeout_s, config.proxy, config.ca_file), arguments.wait)
    pin, pinned = _anchor(arguments, verifier)
    if arguments.statement is not None and arguments.replaces is None:
        raise UsageError("no_node", "--statement goes with --replaces NODE")
    statement = None
    if arguments.replaces is not None:
        old = node_argument(arguments.replaces)
        new = make_node(arguments.state)
        if arguments.statement is None:
            return _to_sign(arguments, pinned.deployment, old, new)
        root = None if pin is None else pin.authority.standing.hash
        statement = read_statement(arguments.statement, pinned, old, new, root)
    token = _token(arguments)
    if arguments.recording is not None:
        read_recording(arguments.recording)
    enrolment = enroll(
        arguments.state,
        url,
        token,
        pinned,
        arguments.source,
        verifier=verifier,
        clock=sane(SystemClock()),
        random=SystemRandom(),
        patience_s=config.timeout_s,
        statement=statement,
        pin=pin,
    )
    if arguments.json:
        print(format_enrolment(enrolment).decode())
    else:
        print(f"enrolled {enrolment.deployment}/node/{enrolment.node_id}/1")
        print(f"organisation {enrolment.organisation}, site {enrolment.site}")
    if pin is not None:
        try:
            check_allowance(pin.authority.standing, enrolment.organisation)
        except RefusedError as error:
            print(f"keyturn-agent: hint: {error}; {error.hint}", file=sys.stderr)
    return FINE


def _anchor(arguments: argparse.Namespace, verifier: Verifier) -> tuple[Pin | None, Pinned]:
    """What the verifier's keys rest on: a root, whose statements the verifier may serve, or a trust file."""
    if arguments.root is None:
        return None, read_trust(arguments.trust)
    root_sha256 = root_argument(arguments.root)
    answer = verifier.authority()
    if answer.status == 404:
        raise RefusedError(
            "no_root", "the verifier has no root yet", hint="keyturn-verifier root install FILE, or --trust"
        )
    if answer.status != 200:
        raise UnreachableError("authority", f"the verifier answered with HTTP {answer.status}; try again")
    try:
        pin = Pin.first(arguments.state, deployment_of(answer.body), root_sha256, answer.body)
    except ProtocolError as error:
        raise RefusedError("bad_root", f"what the verifier serves is not under that root: {error}") from None
    standing = pin.authority.standing
    if standing.root.expires_us <= SystemClock().now().time_us:
        raise RefusedError("expired_root", f"root {standing.root.version} has expired: no host is enrolled under it")
    return pin, pinned_by_root(standing, root_sha256)


def _to_sign(arguments: argparse.Namespace, deployment: str, old: str, new: str) -> int:
    """What an operator has to sign before this host can be enrolled as the one that it was."""
    if arguments.json:
        print(encode({"deployment": deployment, "new": new, "old": old, "signed": False}).decode())
        return UNDECIDED
    print(f"an operator has to sign that this node, {new}, replaces {old}:")
    print(f"  keyturn replace {old} {new} --deployment {deployment} --reason TEXT --key FILE --out statement.json")
    print("and then, here, the same command again with --statement statement.json")
    return UNDECIDED


def _run(arguments: argparse.Namespace) -> int:
    simulated = arguments.fast or arguments.speed is not None
    check_source(arguments)
    config = config_of(arguments)
    recording = None if arguments.recording is None else read_recording(arguments.recording)
    enrolment, _ = read_enrolment(arguments.state)
    if enrolment.source != arguments.source:
        raise UsageError("wrong_source", f"--source: this host is enrolled with {enrolment.source}")
    random = SystemRandom()

    def make_clock(newest_us: int) -> Clock:
        if not simulated:
            return SystemClock()
        start_us = time.time_ns() // 1000 if arguments.start is None else arguments.start
        # Simulated time doesn't go back either.
        return SimulatedClock(max(start_us, newest_us), random.uuid4(), arguments.speed)

    def verifier_at(url: str) -> Verifier:
        return HttpVerifier(url, config.timeout_s, config.proxy, config.ca_file)

    watch = Watch.of(config, lambda: int(time.time()))
    try:
        store, clock = Store.open(arguments.state, make_clock, int(time.time()))
    except RefusedError as error:
        if error.code == "retired":
            finish_retirement(arguments.state, verifier_at, random, config.timeout_s, int(time.time()))
        raise
    try:
        courier = courier_of(config, store.pinned, verifier_at(store.enrolment.verifier), random)
        stop = stop_on_signals()
        lessee = None if simulated else lessee_of(config, store, clock, courier)
        if arguments.on_lease and lessee is None:
            raise UsageError(
                "bad_flag", "--on-lease: nothing is leased here; switch.exec_socket says where exec is heard"
            )
        plays = (lambda: lessee.running) if arguments.on_lease and lessee is not None else (lambda: True)
        source = make_source(arguments, recording, clock, plays)
        receipted = Daemon(store, source, clock, courier, stop, config, lambda: int(time.time()), watch, lessee).run()
        return FINE if receipted or stop.requested else UNDECIDED
    finally:
        watch.close()
        store.close()


def _status(arguments: argparse.Namespace) -> int:
    status = read_status(arguments.state)
    print(encode(status).decode() if arguments.json else describe(status))
    return FINE
