"""The entries of a node's log: what one agent saw, a canonical JSON object each.

    {"body":{"reason":"stopped by the operator"},"boot_id":"0c6b…","boots":3,"mono_us":81000000,
     "prev":"1f3a…","seq":41,"time_us":1790000081000000,"type":"shutdown","v":1}      (one line)

``prev`` is the RFC 6962 leaf hash of the previous entry's bytes, and for ``seq`` 0 of the log's origin. Bodies are in
the modules ``entry_*``, by what they are about.

The type ``attestation`` is reserved and refused until it is specified. ``permit`` and ``lease`` were, up to 0.1: a
reader from before them refuses a log that holds one (ADR 0008), so verifiers are upgraded before hosts.
"""

from typing import Any, Final, Literal, get_args

from keyturn_protocol.canonical import Hex32, Record, UInt, decode, encode_record
from keyturn_protocol.entry_inventory import InventoryBody, check_inventory
from keyturn_protocol.entry_log import (
    ClockStepBody,
    DegradedBody,
    GapBody,
    GenesisBody,
    HeartbeatBody,
    KeyRollBody,
    PausedBody,
    RecoveredBody,
    RetiredBody,
    ShutdownBody,
)
from keyturn_protocol.entry_switch import LeaseBody, PermitBody, check_lease, check_permit
from keyturn_protocol.entry_usage import UsageBody, check_usage
from keyturn_protocol.entry_workloads import WorkloadEndedBody, WorkloadStartedBody, check_parent
from keyturn_protocol.errors import bad_entry
from keyturn_protocol.ids import parse_origin, workload_id
from keyturn_protocol.limits import ENTRY_BYTES
from keyturn_protocol.values import BootId, Micros


class _Entry(Record, frozen=True, kw_only=True, tag_field="type"):
    v: Literal[1]
    seq: UInt
    prev: Hex32
    boot_id: BootId
    boots: UInt
    mono_us: Micros
    time_us: Micros


class Genesis(_Entry, frozen=True, kw_only=True, tag="genesis"):
    body: GenesisBody


class Inventory(_Entry, frozen=True, kw_only=True, tag="inventory"):
    body: InventoryBody


class Usage(_Entry, frozen=True, kw_only=True, tag="usage"):
    body: UsageBody


class WorkloadStarted(_Entry, frozen=True, kw_only=True, tag="workload_started"):
    body: WorkloadStartedBody


class WorkloadEnded(_Entry, frozen=True, kw_only=True, tag="workload_ended"):
    body: WorkloadEndedBody


class Gap(_Entry, frozen=True, kw_only=True, tag="gap"):
    body: GapBody


class Heartbeat(_Entry, frozen=True, kw_only=True, tag="heartbeat"):
    body: HeartbeatBody


class ClockStep(_Entry, frozen=True, kw_only=True, tag="clock_step"):
    body: ClockStepBody


class Degraded(_Entry, frozen=True, kw_only=True, tag="degraded"):
    body: DegradedBody


class Recovered(_Entry, frozen=True, kw_only=True, tag="recovered"):
    body: RecoveredBody


class Paused(_Entry, frozen=True, kw_only=True, tag="paused"):
    body: PausedBody


class KeyRoll(_Entry, frozen=True, kw_only=True, tag="key_roll"):
    body: KeyRollBody


class Shutdown(_Entry, frozen=True, kw_only=True, tag="shutdown"):
    body: ShutdownBody


class Retired(_Entry, frozen=True, kw_only=True, tag="retired"):
    body: RetiredBody


class Permit(_Entry, frozen=True, kw_only=True, tag="permit"):
    body: PermitBody


class Lease(_Entry, frozen=True, kw_only=True, tag="lease"):
    body: LeaseBody


Entry = (
    Genesis
    | Inventory
    | Usage
    | WorkloadStarted
    | WorkloadEnded
    | Gap
    | Heartbeat
    | ClockStep
    | Degraded
    | Recovered
    | Paused
    | KeyRoll
    | Shutdown
    | Retired
    | Permit
    | Lease
)
Body = (
    GenesisBody
    | InventoryBody
    | UsageBody
    | WorkloadStartedBody
    | WorkloadEndedBody
    | GapBody
    | HeartbeatBody
    | ClockStepBody
    | DegradedBody
    | RecoveredBody
    | PausedBody
    | KeyRollBody
    | ShutdownBody
    | RetiredBody
    | PermitBody
    | LeaseBody
)
ENTRY_OF_BODY: Final[dict[type, Any]] = {kind.__annotations__["body"]: kind for kind in get_args(Entry)}
"""The entry type that carries a body type."""


def parse_entry(line: bytes) -> Entry:
    """Parse and check one entry, given without its newline.

    :raises ProtocolError: ``too_large``, ``not_canonical`` or ``bad_entry``.
    """
    entry: Entry = decode(line, Entry, limit=ENTRY_BYTES)
    check_entry(entry)
    return entry


def format_entry(entry: Entry) -> bytes:
    """The bytes of an entry, without newline; refuses what :func:`parse_entry` would refuse.

    :raises ProtocolError: as :func:`parse_entry`.
    """
    line = encode_record(entry)
    parse_entry(line)
    return line


def check_entry(entry: Entry, like: UsageBody | None = None) -> None:
    """The rules of each type that its shape doesn't express.

    :param like: a usage body that has passed; shares equal to its shares aren't checked again.
    :raises ProtocolError: ``bad_entry`` or ``bad_identifier``.
    """
    match entry:
        case Usage(body=body):
            check_usage(body, entry.mono_us, like)
        case Inventory(body=body):
            check_inventory(body)
        case WorkloadStarted(body=started):
            workload_id(started.id)
            if started.chips != sorted(set(started.chips)):
                raise bad_entry("chips are distinct and in order", got=started.chips)
            for parent in started.parents:
                check_parent(parent)
        case WorkloadEnded(body=ended):
            workload_id(ended.id)
        case Gap(body=gap):
            if gap.to_us < gap.from_us:
                raise bad_entry("gap that ends before it begins", expected=f">= {gap.from_us}", got=gap.to_us)
            if gap.chips is not None and gap.chips != sorted(set(gap.chips)):
                raise bad_entry("chips are distinct and in order", got=gap.chips)
        case ClockStep(body=step):
            if step.after_us - step.before_us != step.step_us:
                raise bad_entry(
                    "step that isn't after - before", expected=step.after_us - step.before_us, got=step.step_us
                )
        case Retired(body=retired):
            if retired.chips is not None and retired.chips != sorted(set(retired.chips)):
                raise bad_entry("chips are distinct and in order", got=retired.chips)
        case Permit(body=permit):
            check_permit(permit)
        case Lease(body=lease):
            check_lease(lease, entry.mono_us)
        case Genesis(body=genesis):
            if genesis.previous is not None:
                parse_origin(genesis.previous.origin)
        case _:
            pass
