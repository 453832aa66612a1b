"""What ``keyturn-agent exec`` and the running agent say to each other: JSON lines over a socket of this host.

    exec → {"type":"ask",…}              with the files that the run is started from as open descriptors
         ← {"type":"told","text":"…"}    any number of times: what is waited for
         ← {"type":"leased",…}           the stub may be started
    stub → {"type":"begin","token":"…"}  from inside the run's cgroup or session
         ← {"type":"go","look":true}     the chips are open: it becomes the command
    stub → {"type":"begun"}              it has, and is held: what the kernel says that it is can be looked at
         ← {"type":"go","look":false}    it goes on
    stub → {"type":"ended","status":127} it couldn't become the command
         ← {"type":"stop",…}             to exec: when the run stops, and why
    exec → {"type":"ended","status":0}
         ← {"type":"over",…}             what was charged
    exec → {"type":"attach","job":"…"}   to an agent that was started again: as if it had asked this one

or ``{"type":"refused",…}`` at any point, which is the last word. Who is at the other end the kernel says.
"""

from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.canonical import Decimal, Hex32, Positive, Record, Text, UInt, decode, encode
from keyturn_protocol.entry_switch import LeaseKind, Lineage, SpecChecks
from keyturn_protocol.limits import ARGUMENTS, CHIPS_PER_HOST, OPENINGS_BYTES
from keyturn_protocol.openings import DigestText, Openings
from keyturn_protocol.values import ChipUuid, SpecPart

LINE_BYTES: Final = OPENINGS_BYTES + 4 * 1024 * 1024
"""Openings, and a command line as long as the kernel takes it."""
FILES: Final = 4
"""Descriptors with one line."""

Job = Hex32


class Ask(Record, frozen=True, kw_only=True, tag_field="type", tag="ask"):
    """A command to be started. ``files`` are the parts whose files come with the line, in their order.

    ``chips`` null: every chip of this host that nobody else has. ``told``: digests that nobody can compute here.
    """

    v: Literal[1]
    kind: LeaseKind
    run: Hex32 | None
    lineage: Lineage | None
    group: Text
    hosts: Positive
    chips: Annotated[list[ChipUuid], msgspec.Meta(min_length=1, max_length=CHIPS_PER_HOST)] | None
    argv: Annotated[list[str], msgspec.Meta(min_length=1, max_length=ARGUMENTS)]
    openings: Openings | None
    files: Annotated[list[SpecPart], msgspec.Meta(max_length=FILES)]
    told: dict[SpecPart, DigestText]
    signal: Annotated[int, msgspec.Meta(ge=1, le=64)] | None


class Begin(Record, frozen=True, kw_only=True, tag_field="type", tag="begin"):
    """The process that becomes the command says that it is in place."""

    token: Hex32


class Begun(Record, frozen=True, kw_only=True, tag_field="type", tag="begun"):
    """The process has become the command, of which nothing has run yet."""


class Attach(Record, frozen=True, kw_only=True, tag_field="type", tag="attach"):
    """The one that started a job is back: it was another agent, or none, meanwhile."""

    job: Job


class Ended(Record, frozen=True, kw_only=True, tag_field="type", tag="ended"):
    """The command has ended. ``status`` as a shell has it: 128 and more for a signal."""

    status: Annotated[int, msgspec.Meta(ge=0, le=255)]


class Told(Record, frozen=True, kw_only=True, tag_field="type", tag="told"):
    """What is going on, for the person who waits."""

    text: Text


class Leased(Record, frozen=True, kw_only=True, tag_field="type", tag="leased"):
    """There is a lease. ``token`` is for the stub; ``notice`` is where the gate's notice will be, null without one."""

    job: Job
    token: Hex32
    lease: Hex32
    chips: list[ChipUuid]
    spec: SpecChecks
    notice: Text | None


class Go(Record, frozen=True, kw_only=True, tag_field="type", tag="go"):
    """The chips are open. ``look``: the agent wants to see what it becomes."""

    look: bool


class Stopping(Record, frozen=True, kw_only=True, tag_field="type", tag="stop"):
    """The run stops in ``in_ms``; less than a moment ago, it is about to. ``enforced``: the gate sees to it.

    ``kill_s``: so long after SIGTERM comes SIGKILL.
    """

    in_ms: UInt
    kill_s: UInt
    enforced: bool
    why: Text


class Over(Record, frozen=True, kw_only=True, tag_field="type", tag="over"):
    """The last report of the lease is written."""

    charged_flop: Decimal
    detail: Text


class Refused(Record, frozen=True, kw_only=True, tag_field="type", tag="refused"):
    """The command isn't started, or can't go on. ``retry``: the answer may be another one later."""

    code: Text
    detail: Text
    hint: Text | None
    retry: bool


ToAgent = Ask | Begin | Begun | Attach | Ended
ToExec = Told | Leased | Go | Stopping | Over | Refused


def line(message: ToAgent | ToExec) -> bytes:
    """A message with its newline."""
    return encode(message) + b"\n"


def to_agent(data: bytes) -> ToAgent:
    """:raises ProtocolError: ``not_canonical``, ``too_large``."""
    message: ToAgent = decode(data, ToAgent, limit=LINE_BYTES)
    return message


def to_exec(data: bytes) -> ToExec:
    """:raises ProtocolError: ``not_canonical``, ``too_large``."""
    message: ToExec = decode(data, ToExec, limit=LINE_BYTES)
    return message


__all__ = [
    "FILES",
    "LINE_BYTES",
    "Ask",
    "Attach",
    "Begin",
    "Begun",
    "Ended",
    "Go",
    "Leased",
    "Over",
    "Refused",
    "Stopping",
    "ToAgent",
    "ToExec",
    "Told",
    "line",
    "to_agent",
    "to_exec",
]
