"""The gate, as the agent talks to it: one line and one answer over its socket (docs/gate.md).

The gate is a program of its own with formats of its own; what is said here is what its page says.
"""

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from keyturn_agent.errors import RefusedError, UnreachableError

SOCKET: Final = Path("/run/keyturn-gate.sock")
NOTICES: Final = Path("/run/keyturn-gate")
_ANSWER_BYTES: Final = 4 * 1024 * 1024
_PATIENCE_S: Final = 20.0
"""Longer than the gate gives the driver to open a chip."""


@dataclass(frozen=True, slots=True)
class Target:
    """The processes of a run; see the gate's ``Target``."""

    pid: int
    start: int
    cgroup: str | None
    session: int | None


@dataclass(frozen=True, slots=True)
class Grant:
    """What the gate is to hold, and until when (CLOCK_BOOTTIME)."""

    job: str
    lease: str
    subject: str
    boot_id: str
    chips: Sequence[str]
    stop_at_us: int
    grace_s: int
    kill_s: int
    signal: int | None
    why: str
    target: Target | None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at the gate."""

    seq: int
    boot_id: str
    boot_us: int
    time_us: int
    kind: str
    job: str | None
    detail: str


class GateChip(msgspec.Struct, frozen=True, kw_only=True):
    """A chip as the gate sees it."""

    uuid: str
    state: str
    contexts: int
    detail: str | None


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """Root's way out."""

    reason: str
    time_us: int


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A grant that goes on."""

    job: str
    lease: str
    stop_at_us: int
    phase: str
    processes: int


class GateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the gate stands, with what happened since it was asked last. Fields that it adds later are read over."""

    driver: Literal["observe", "compute_mode"]
    boot_id: str
    seq: int
    released: Released | None
    trouble: str | None
    chips: list[GateChip]
    grants: list[Held]
    events: list[Event]


class GateLink:
    """The other end of the gate's socket. Every call may take seconds."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path

    def grant(self, grant: Grant) -> None:
        """:raises RefusedError: with the gate's code. :raises UnreachableError: there is no gate."""
        target = None if grant.target is None else _fields(grant.target)
        self._ask({"verb": "grant", **_fields(grant), "chips": list(grant.chips), "target": target})

    def stop(self, job: str, why: str) -> None:
        """Stop what is left of a grant; one that the gate doesn't know is over."""
        try:
            self._ask({"verb": "stop", "job": job, "why": why})
        except RefusedError as error:
            if error.code != "no_grant":
                raise

    def status(self, after: int, patience_s: float = _PATIENCE_S) -> GateStatus:
        """How it stands. ``after``: events up to this one are known.

        :raises RefusedError: with the gate's code. :raises UnreachableError: there is no gate, or none of ours.
        """
        data = self._ask({"verb": "status", "after": after}, patience_s)
        try:
            return msgspec.json.decode(data, type=GateStatus)
        except msgspec.MsgspecError as error:
            raise UnreachableError("bad_gate", f"the gate's answer is not one: {error}") from None

    def _ask(self, request: Mapping[str, Any], patience_s: float = _PATIENCE_S) -> bytes:
        data = self._exchange(json.dumps({"v": 1, **request}).encode() + b"\n", patience_s)
        try:
            answer = msgspec.json.decode(data)
            if answer["ok"] is True:
                return data
            raise RefusedError(str(answer["code"]), f"the gate refuses: {answer['detail']}")
        except (msgspec.MsgspecError, KeyError, TypeError, RecursionError) as error:
            raise UnreachableError("bad_gate", f"the gate's answer is not one: {error}") from None

    def _exchange(self, line: bytes, patience_s: float) -> bytes:
        deadline = time.monotonic() + patience_s
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
                connection.settimeout(patience_s)
                connection.connect(str(self._path))
                connection.sendall(line)
                data = b""
                while not data.endswith(b"\n"):
                    part = connection.recv(65_536)
                    data += part
                    if not part or len(data) > _ANSWER_BYTES or time.monotonic() > deadline:
                        raise UnreachableError("no_gate", f"the gate at {self._path} gave no answer")
                return data
        except OSError as error:
            raise UnreachableError("no_gate", f"no gate at {self._path}: {error}") from None


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
