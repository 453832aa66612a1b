"""``keyturn-gate``: serve, ask how it stands, and root's way out. The only module that ends the process."""

import argparse
import logging
import os
import pwd
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from keyturn_gate import __version__, host
from keyturn_gate.driver import Driver, Observe
from keyturn_gate.errors import GateError
from keyturn_gate.gate import Gate
from keyturn_gate.keeper import Keeper
from keyturn_gate.locker import Locker
from keyturn_gate.messages import Lock, Release, Standing, Status, standing_of, understood
from keyturn_gate.server import Server, ask, listen
from keyturn_gate.systemd import Manager, listener_of

FINE: Final = 0
REJECTED: Final = 1
USAGE: Final = 2
UNDECIDED: Final = 3
INTERRUPTED: Final = 130
"""As shells have it of a program that Ctrl-C ended."""

SOCKET: Final = Path("/run/keyturn-gate.sock")
_STATE: Final = Path("/var/lib/keyturn-gate")
_NOTICES: Final = Path("/run/keyturn-gate")
_AGENT: Final = "keyturn-agent"
_FIRST_PASS_S: Final = 10.0
_PATIENCE_S: Final = 15.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 fine, 1 refused, 2 usage, 3 could not decide, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="keyturn-gate: %(levelname)s: %(message)s", stream=sys.stderr)
    for level, name in ((logging.WARNING, "warning"), (logging.INFO, "info"), (logging.ERROR, "error")):
        logging.addLevelName(level, name)
    try:
        status: int = arguments.command(arguments)
    except GateError as error:
        print(f"keyturn-gate: error: {error}", file=sys.stderr)
        return {"no_gate": UNDECIDED, "usage": USAGE}.get(error.code, REJECTED)
    except OSError as error:
        print(f"keyturn-gate: error: {error}", file=sys.stderr)
        return UNDECIDED
    except KeyboardInterrupt:
        print("keyturn-gate: error: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyturn-gate", description="Opens chips for a lease, and stops what is over."
    )
    parser.add_argument("--version", action="version", version=f"keyturn-gate {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="the service itself")
    serve.add_argument("--driver", choices=["observe", "compute-mode"], default="observe", help="observe locks nothing")
    serve.add_argument("--socket", type=Path, metavar="PATH", help="listen there, where no service manager does")
    serve.add_argument("--agent", default=_AGENT, metavar="USER", help=f"who is heard besides root; {_AGENT}")
    serve.add_argument("--state", type=Path, default=_STATE, metavar="DIR", help=str(_STATE))
    serve.add_argument("--notices", type=Path, default=_NOTICES, metavar="DIR", help=str(_NOTICES))
    serve.set_defaults(command=_serve)

    status = commands.add_parser("status", help="chips, grants, what happened")
    status.add_argument("--json", action="store_true", help="result as JSON")
    status.set_defaults(command=_status)
    release = commands.add_parser(
        "release", help="root's way out: open every chip, stop nothing, until lock or a reboot"
    )
    release.add_argument("--reason", required=True, help="is kept, and signed into the host's log by the agent")
    release.set_defaults(command=_release)
    lock = commands.add_parser("lock", help="the end of a release")
    lock.set_defaults(command=_lock)
    for each in (status, release, lock):
        each.add_argument("--socket", type=Path, default=SOCKET, metavar="PATH", help=str(SOCKET))
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    manager = Manager(os.environ)
    agent = _user(arguments.agent)
    keeper = Keeper(arguments.state)
    driver = _driver(arguments.driver)
    listener = listener_of(os.environ)
    if listener is None:
        if arguments.socket is None:
            raise GateError("usage", "no socket from a service manager; --socket PATH listens on one")
        listener = listen(arguments.socket, agent[1] if os.geteuid() == 0 else None)
    locker = Locker(driver, keeper, lambda: server.wake())
    gate = Gate(keeper, locker, driver.kind, arguments.notices, host.boottime_us, host.wall_us)
    server = Server(listener, gate, frozenset({agent[0]}))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    first = locker.kick()
    locker.start()
    # Whoever starts after this service finds the chips locked, if the driver is there.
    deadline = time.monotonic() + _FIRST_PASS_S
    while locker.done < first and time.monotonic() < deadline:
        time.sleep(0.01)
    manager.say(f"READY=1\nSTATUS={driver.kind}, {_count(len(locker.chips), 'chip')}")
    server.serve(manager.alive)
    # Grants, modes and runs stay as they are: the next start goes on from the file.
    manager.say("STOPPING=1")
    locker.stop(1.0)
    return FINE


def _driver(name: str) -> Driver:
    if name == "observe":
        return Observe()
    # Loads the binding, which observing doesn't need.
    from keyturn_gate.compute_mode import ComputeMode

    return ComputeMode()


def _user(name: str) -> tuple[int, int]:
    """uid and gid of an account, given by name or number."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        if name.isdigit():
            return int(name), int(name)
        # Not a wrong command line, after which nothing is tried again: where accounts come from may be there later.
        raise GateError("no_account", f"--agent: no account {name}") from None
    return entry.pw_uid, entry.pw_gid


def _asked(path: Path, request: msgspec.Struct) -> bytes:
    return ask(path, msgspec.json.encode(request), _PATIENCE_S)


def _status(arguments: argparse.Namespace) -> int:
    data = _asked(arguments.socket, Status(v=1, after=0))
    standing = standing_of(data)
    print(data.decode().strip() if arguments.json else describe(standing))
    return FINE


def _release(arguments: argparse.Namespace) -> int:
    understood(_asked(arguments.socket, Release(v=1, reason=arguments.reason)))
    print("released: every chip is open and nothing is stopped, until keyturn-gate lock or the next boot")
    return FINE


def _lock(arguments: argparse.Namespace) -> int:
    understood(_asked(arguments.socket, Lock(v=1)))
    print("locked: chips open for a lease again, and for nothing else")
    return FINE


def describe(standing: Standing) -> str:
    """How it stands, for a person, a line a fact."""
    lines = [f"driver     {standing.driver}"]
    if standing.released is not None:
        lines.append(
            f"RELEASED   since {_utc(standing.released.time_us)}, by user {standing.released.uid}: "
            f"{standing.released.reason}"
        )
    if standing.trouble is not None:
        lines.append(f"trouble    {standing.trouble}")
    for chip in standing.chips:
        detail = "" if chip.detail is None else f" ({chip.detail})"
        lines.append(f"chip       {chip.uuid} {chip.state}, {_count(chip.contexts, 'process', 'processes')}{detail}")
    for grant in standing.grants:
        left_s = (grant.stop_at_us - standing.now_us) // 1_000_000
        lines.append(f"grant      {grant.job[:16]} {grant.phase}, stops in {left_s} s: {grant.why}")
        held, running = _count(len(grant.chips), "chip"), _count(grant.processes, "process", "processes")
        lines.append(f"           {grant.subject}, {held}, {running}")
    lines += [f"{_utc(event.time_us)} {event.kind} {event.detail}" for event in standing.events[-20:]]
    return "\n".join(lines)


def _count(value: int, one: str, many: str | None = None) -> str:
    return f"{value} {one if value == 1 else many or one + 's'}"


def _utc(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).isoformat()
