"""``exec`` on the command line, and the part of ``run`` that answers it."""

import argparse
import hashlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from keyturn_agent.cli_values import natural, positive
from keyturn_agent.client import HttpVerifier
from keyturn_agent.config import Config
from keyturn_agent.courier import Courier
from keyturn_agent.errors import UsageError
from keyturn_agent.ports import Clock
from keyturn_agent.store import Store
from keyturn_agent.switch.asking import Ask, line, to_agent
from keyturn_agent.switch.door import Door
from keyturn_agent.switch.errands import Threads
from keyturn_agent.switch.exec import Command, execute
from keyturn_agent.switch.gate_word import expected_of
from keyturn_agent.switch.gatelink import SOCKET as GATE_SOCKET
from keyturn_agent.switch.gatelink import GateLink
from keyturn_agent.switch.lessee import Lessee
from keyturn_agent.switch.pin import Pin
from keyturn_protocol.canonical import Text
from keyturn_protocol.entry_switch import LeaseKind, Lineage
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import OPENINGS_BYTES, TEXT_CHARS
from keyturn_protocol.openings import Openings, parse_openings
from keyturn_protocol.values import ChipUuid, SpecPart

if TYPE_CHECKING:
    from argparse import _SubParsersAction

logger = logging.getLogger(__name__)

EXEC_SOCKET: Final = Path("/run/keyturn-agent/exec.sock")
SOCKET_ENV: Final = "KEYTURN_EXEC_SOCKET"
_NAME: Final = f"a name, at most {TEXT_CHARS} characters and none that control"
_SHOWN: Final = 80
_SIGNALS: Final = 64
"""Linux has so many."""


def lessee_of(config: Config, store: Store, clock: Clock, courier: Courier) -> Lessee | None:
    """Who answers ``exec``, where the configuration says that somebody does.

    :raises UsageError: ``no_pin``: leases stand on a root.
    """
    if config.exec_socket is None:
        if config.gate is not None:
            logger.warning("switch.gate: no gate is asked without switch.exec_socket, and the log says none")
        return None
    enrolment = store.enrolment
    if enrolment.root_sha256 is None:
        raise UsageError(
            "no_pin", "switch.exec_socket: this host has pinned no root", hint="keyturn-agent enroll … --root sha256:…"
        )
    pin = Pin.load(store.folder, enrolment.deployment, enrolment.root_sha256)
    verifier = HttpVerifier(enrolment.verifier, config.timeout_s, config.proxy, config.ca_file)
    gate = (
        None
        if config.gate is None
        else GateLink(GATE_SOCKET if config.gate_socket is None else Path(config.gate_socket))
    )
    door, expected = Door(Path(config.exec_socket)), expected_of(config)
    return Lessee(
        store, pin, clock, verifier, Threads(), door, gate, expected, config.report_s, config.interval_us, courier.hurry
    )


def add_exec(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """The parser of ``exec``."""
    parser = commands.add_parser("exec", help="start a command under a lease, and stop it when that ends")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", metavar="RUN", help="the hash of its request: runs under its permit")
    what.add_argument("--lineage", metavar="NAME", help="runs under the allowance, counted for this lineage")
    what.add_argument("--diagnostics", action="store_true", help="a test of the hardware, under this node's allowance")
    parser.add_argument(
        "--hosts", type=positive, default=1, metavar="N", help="hosts of the group: all get leases or none"
    )
    parser.add_argument("--group", default="0", metavar="NAME", help="which hosts belong together; 0")
    parser.add_argument("--chips", metavar="UUID,…", help="these chips; default: all that nobody has")
    parser.add_argument("--openings", type=Path, metavar="FILE", help="what the commitments of the request open to")
    image = parser.add_mutually_exclusive_group()
    image.add_argument("--image", type=Path, metavar="FILE", help="the image, to be hashed here: verified")
    image.add_argument("--image-digest", metavar="sha256:HEX", help="the image by its digest: declared")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the run's configuration, to be hashed here")
    parser.add_argument("--data-manifest", type=Path, metavar="FILE", help="the list of its data, to be hashed here")
    parser.add_argument("--signal", metavar="SIG", help="sent to the command when its stop is announced, such as USR1")
    parser.add_argument("--obey", action="store_true", help="stop the command also where the gate only observes")
    parser.add_argument("--wait", type=natural, metavar="SECONDS", help="for a lease, at most; default: for ever")
    parser.add_argument("--socket", type=Path, metavar="PATH", help=f"of the agent; {SOCKET_ENV}, else {EXEC_SOCKET}")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD …", help="the command")
    parser.set_defaults(command=_exec)


def _exec(arguments: argparse.Namespace) -> int:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise UsageError("no_command", "exec: a command is needed, after --")
    named: dict[SpecPart, Path | None] = {
        "image": arguments.image,
        "config": arguments.config,
        "data": arguments.data_manifest,
    }
    files = {part: path for part, path in named.items() if path is not None}
    told: dict[SpecPart, str] = {} if arguments.image_digest is None else {"image": _digest(arguments.image_digest)}
    kind: LeaseKind = (
        "run" if arguments.run is not None else "allowance" if arguments.lineage is not None else "diagnostics"
    )
    ask = Ask(
        v=1,
        kind=kind,
        run=None if arguments.run is None else _hash(arguments.run),
        lineage=None if arguments.lineage is None else _is("--lineage", arguments.lineage, Lineage, _NAME),
        group=_is("--group", arguments.group, Text, _NAME),
        hosts=arguments.hosts,
        chips=None if arguments.chips is None else _chips(arguments.chips),
        argv=[_utf8(f"argument {i} of the command", text) for i, text in enumerate(argv)],
        openings=None if arguments.openings is None else _openings(arguments.openings),
        files=list(files),
        told=told,
        signal=None if arguments.signal is None else _signal(arguments.signal),
    )
    try:
        # All of it, as the agent is going to read it: what it wouldn't take isn't asked.
        to_agent(line(ask).removesuffix(b"\n"))
    except ProtocolError as error:
        raise UsageError("bad_flag", f"exec: {error}") from None
    socket = arguments.socket or Path(os.environ.get(SOCKET_ENV, EXEC_SOCKET))
    return execute(Command(socket, ask, files, argv, arguments.wait, arguments.obey))


def _hash(text: str) -> str:
    digest = text.removeprefix("sha256:")
    if len(digest) != 2 * hashlib.sha256().digest_size or set(digest) - set("0123456789abcdef"):
        raise UsageError(
            "bad_flag",
            f"--run: expected the hash of a request, 64 hex digits (got {text!a})",
            # No host has a token, with which it could look for a shorter one.
            hint="keyturn show RUN has it in full",
        )
    return digest


def _digest(text: str) -> str:
    kind, _, digest = text.partition(":")
    if kind != "sha256" or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise UsageError("bad_flag", f"--image-digest: expected sha256: and 64 hex digits (got {text!a})")
    return text


def _signal(text: str) -> int:
    """Its number: some signals, such as the real-time ones, have no name here."""
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if text.isascii() and text.isdigit():
        # Longer numbers aren't read at all: Python refuses those of thousands of digits.
        number = int(text) if len(text) < 9 else 0
    else:
        number = int(signal.Signals.__members__.get(name, 0))
    if not 1 <= number <= _SIGNALS:
        raise UsageError("bad_flag", f"--signal: expected a name such as USR1, or 1 to {_SIGNALS} (got {text!a})")
    return number


def _is(flag: str, text: str, kind: Any, expected: str) -> str:
    """Text of a flag, as what it stands for on the wire."""
    try:
        return str(msgspec.convert(_utf8(flag, text), kind))
    except msgspec.ValidationError:
        raise UsageError("bad_flag", f"{flag}: expected {expected} (got {ascii(text)[:_SHOWN]})") from None


def _utf8(what: str, text: str) -> str:
    """What the operating system hands over is bytes; requests and logs are text."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError("bad_flag", f"{what}: must be UTF-8 (got {ascii(text)[:_SHOWN]})")
    return text


def _chips(text: str) -> list[str]:
    return sorted(
        {_is("--chips", uuid, ChipUuid, "UUIDs of chips, with commas between them") for uuid in text.split(",")}
    )


def _openings(path: Path) -> Openings:
    try:
        with path.open("rb") as file:
            return parse_openings(file.read(OPENINGS_BYTES + 1))
    except (OSError, ProtocolError) as error:
        raise UsageError("bad_openings", f"--openings: {error}") from None
