"""The life of a log itself: how it begins, what it missed, its clocks, and how it ends."""

from typing import Annotated, Literal

import msgspec

from keyturn_protocol.canonical import Hex32, Int, Positive, Record, Text, UInt
from keyturn_protocol.errors import bad_entry
from keyturn_protocol.ids import LogName, Origin, parse_origin
from keyturn_protocol.keys import node_id_of, verify_ed25519
from keyturn_protocol.limits import KEY_ROLL_V1, NOTE_BYTES
from keyturn_protocol.values import Micros, OriginText, Slug

Source = Literal["nvml", "amd", "ascend", "replay"]


class Previous(Record, frozen=True, kw_only=True):
    """Where the log before this incarnation ended, as far as the host knows."""

    origin: OriginText
    size: UInt
    root: Hex32
    reason: Literal["rejected", "rollback", "damaged", "key_roll", "reinstalled"]


class GenesisBody(Record, frozen=True, kw_only=True):
    """What this log is written by. ``public_key`` is the log's; for incarnation 1 it gives the node id."""

    agent_version: Text
    agent_sha256: Hex32
    source: Source
    public_key: Hex32
    trust_sha256: Hex32 | None
    root_sha256: Hex32 | None
    previous: Previous | None


class GapBody(Record, frozen=True, kw_only=True):
    """Why nothing was measured from … to. It explains; how long a gap was comes from the missing usage.

    ``chips`` null means the whole host.
    """

    chips: list[UInt] | None
    from_us: Micros
    to_us: Micros
    cause: Slug
    detail: Text | None


class HeartbeatBody(Record, frozen=True, kw_only=True):
    """A sign of life; quotes the newest checkpoint of the verifier's log that the agent has checked."""

    verifier_checkpoint: Annotated[str, msgspec.Meta(max_length=NOTE_BYTES)] | None


class ClockStepBody(Record, frozen=True, kw_only=True):
    """The wall clock moved against CLOCK_BOOTTIME by ``step_us``."""

    before_us: Micros
    after_us: Micros
    step_us: Int


class DegradedBody(Record, frozen=True, kw_only=True):
    """The agent does less than it should from here on, and why."""

    cause: Slug
    interval_us: Micros | None
    detail: Text | None


class RecoveredBody(Record, frozen=True, kw_only=True):
    """A torn tail was dropped at start: ``bytes`` of it, which had this SHA-256."""

    bytes: UInt
    sha256: Hex32


class PausedBody(Record, frozen=True, kw_only=True):
    """The source is closed for at most ``for_us``; what isn't measured meanwhile is a gap."""

    for_us: Micros
    reason: Text


class KeyRollBody(Record, frozen=True, kw_only=True):
    """The last entry of a log: the key of the next incarnation, and its signature over :func:`key_roll_message`."""

    next_incarnation: Positive
    next_public_key: Hex32
    next_signature: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{128}\Z")]


class ShutdownBody(Record, frozen=True, kw_only=True):
    reason: Text


class RetiredBody(Record, frozen=True, kw_only=True):
    """Chips (by uuid) that won't report any more; null retires the host and ends the log."""

    chips: list[Text] | None
    reason: Text


def key_roll_message(origin: Origin, seq: int, old_key: bytes, new_key: bytes) -> bytes:
    """What the next key signs to take over: tag, origin, seq and both keys, a line each."""
    return KEY_ROLL_V1 + f"{origin}\n{seq}\n{old_key.hex()}\n{new_key.hex()}\n".encode()


def check_genesis(name: LogName, public_key: bytes, body: GenesisBody) -> None:
    """That a genesis entry belongs to its log: key, node id, and where the log before it ended.

    :raises ProtocolError: ``bad_entry``.
    """
    if body.public_key != public_key.hex():
        raise bad_entry("genesis names another key than the log's", expected=public_key.hex(), got=body.public_key)
    if (name.incarnation == 1) != (body.previous is None):
        raise bad_entry("only the first incarnation has nothing before it", got=f"incarnation {name.incarnation}")
    if name.incarnation == 1:
        if node_id_of(public_key) != name.node_id:
            raise bad_entry("node id of another key", expected=node_id_of(public_key), got=name.node_id)
    elif body.previous is not None:
        before = parse_origin(body.previous.origin)
        if (before.deployment, before.node_id) != (name.deployment, name.node_id) or not (
            before.incarnation < name.incarnation
        ):
            raise bad_entry("genesis follows a log of another node or a later one", got=body.previous.origin)


def check_key_roll(origin: Origin, public_key: bytes, seq: int, body: KeyRollBody) -> None:
    """That the next key agreed to take over, and follows this incarnation.

    :raises ProtocolError: ``bad_entry``, ``bad_key`` or ``bad_signature``.
    """
    name = parse_origin(origin)
    if body.next_incarnation != name.incarnation + 1:
        raise bad_entry("key roll to a wrong incarnation", expected=name.incarnation + 1, got=body.next_incarnation)
    new_key = bytes.fromhex(body.next_public_key)
    message = key_roll_message(origin, seq, public_key, new_key)
    verify_ed25519(new_key, bytes.fromhex(body.next_signature), message)
