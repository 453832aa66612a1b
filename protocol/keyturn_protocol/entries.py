"""The entries of a node's log: what one agent saw, a canonical JSON object each.

    {"body":{"reason":"stopped by the operator"},"boot_id":"0c6b…","boots":3,"mono_us":81000000,
     "prev":"1f3a…","seq":41,"time_us":1790000081000000,"type":"shutdown","v":1}      (one line)

``prev`` is the RFC 6962 leaf hash of the previous entry's bytes, and for ``seq`` 0 of the log's origin. The
types ``attestation``, ``permit`` and ``lease`` are reserved and refused until they are specified.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from keyturn_protocol.canonical import Decimal, Hex32, Int, Positive, Ppm, Record, Text, UInt, decode, encode_record
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import LogName, Origin, parse_origin, workload_id
from keyturn_protocol.keys import node_id_of, verify_ed25519
from keyturn_protocol.limits import CHIPS_PER_HOST, ENTRY_BYTES, KEY_ROLL_V1, MAX_TIME_US, NOTE_BYTES, USAGE_SPAN_US

Slug = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]{0,63}\Z")]
"""A lower-case word for programs: a cause, a data type, a field."""
Micros = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_US)]
"""A reading of a clock, in µs."""
BootId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
OriginText = Annotated[str, msgspec.Meta(max_length=255)]
Source = Literal["nvml", "amd", "ascend", "replay"]
ShareClass = Literal["exclusive", "mig", "shared"]
Column = Annotated[list[UInt | None], msgspec.Meta(max_length=CHIPS_PER_HOST)]
"""One value a chip, in the order of the last inventory; ``null`` is *not measured*."""

SUM_FIELDS: Final = (
    "energy_mj",
    "busy_us",
    "elapsed_mcycles",
    "active_mcycles",
    "tensor_mcycles",
    "hmma_mcycles",
    "imma_mcycles",
    "dmma_mcycles",
    "fp64_mcycles",
    "fp32_mcycles",
    "fp16_mcycles",
    "dram_busy_us",
    "nvlink_tx_kib",
    "nvlink_rx_kib",
    "pcie_tx_kib",
    "pcie_rx_kib",
    "throttled_us",
)
"""Fields that add up over time, in the order of the bits of a usage row's basis."""
MAX_FIELDS: Final = ("memory_mib_max", "clock_mhz_max")
"""Fields that fold by maximum; their bits follow those of :data:`SUM_FIELDS`."""
FIELDS: Final = SUM_FIELDS + MAX_FIELDS


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


class Chip(Record, frozen=True, kw_only=True):
    """One metered unit: a GPU, or one MIG instance of a GPU, which is then a unit beside its parent.

    ``name`` is the product name as the driver prints it; which row of the chip table it means is decided by
    whoever reads. ``sms`` and ``memory_mib`` of a MIG instance are its own. ``measured_by`` and
    ``not_measured`` say for each usage field by which method it comes, or why it doesn't.
    """

    uuid: Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"\A[!-~]+\Z")]
    name: Text
    role: Literal["gpu", "mig_parent", "mig_instance"]
    parent: Text | None
    sms: UInt | None
    memory_mib: UInt | None
    clock_max_mhz: UInt | None
    power_limit_mw: UInt | None
    pci_bus_id: Text | None
    nvlink_links: UInt | None
    fabric: Text | None
    measured_by: dict[Slug, Slug]
    not_measured: dict[Slug, Text]


class PciDevice(Record, frozen=True, kw_only=True):
    """A GPU-class function on the PCI bus, whether or not the driver shows it."""

    bus_id: Text
    vendor: UInt
    device: UInt
    driver: Text | None


class InventoryBody(Record, frozen=True, kw_only=True):
    """The host's chips; written at each start and change. ``pci`` is null where the bus could not be read."""

    chips: Annotated[list[Chip], msgspec.Meta(max_length=CHIPS_PER_HOST)]
    driver_version: Text | None
    nvml_version: Text | None
    cuda_version: Text | None
    gate: Literal["none", "observe", "compute_mode"]
    pci: list[PciDevice] | None


class Share(Record, frozen=True, kw_only=True):
    """The part of one chip's interval that one workload had, in parts per million."""

    chip: UInt
    id: str
    class_: ShareClass = msgspec.field(name="class")
    share_ppm: Ppm


class UsageBody(Record, frozen=True, kw_only=True):
    """Raw integrals of every chip over one interval, as columns.

    The interval starts at ``from_us`` (UTC) and ``mono_from_us`` (CLOCK_BOOTTIME), is ``to_us - from_us`` long
    on CLOCK_BOOTTIME, and lies in one UTC hour. ``samples`` 0 means that a chip wasn't read at all: its other
    columns are null then. Units are in the names; a ``_mcycles`` is 10^6 SM cycles, mean per SM.
    """

    from_us: Micros
    to_us: Micros
    mono_from_us: Micros
    samples: Annotated[list[UInt], msgspec.Meta(max_length=CHIPS_PER_HOST)]
    workloads: list[Share]
    energy_mj: Column
    busy_us: Column
    elapsed_mcycles: Column
    active_mcycles: Column
    tensor_mcycles: Column
    hmma_mcycles: Column
    imma_mcycles: Column
    dmma_mcycles: Column
    fp64_mcycles: Column
    fp32_mcycles: Column
    fp16_mcycles: Column
    dram_busy_us: Column
    nvlink_tx_kib: Column
    nvlink_rx_kib: Column
    pcie_tx_kib: Column
    pcie_rx_kib: Column
    throttled_us: Column
    memory_mib_max: Column
    clock_mhz_max: Column


class Parent(Record, frozen=True, kw_only=True):
    """What a workload starts from: another workload's output, or an outside model with its own interval.

    ``flop_high`` null means unbounded.
    """

    workload: str | None
    output_sha256: Hex32 | None
    flop_low: Decimal | None
    flop_high: Decimal | None
    basis: Text | None


class WorkloadStartedBody(Record, frozen=True, kw_only=True):
    """A workload was seen or declared. ``declared_dtype`` is the operator's word, checked by no counter."""

    id: str
    class_: ShareClass = msgspec.field(name="class")
    chips: list[UInt]
    declared_dtype: Slug | None
    name_commitment: Hex32 | None
    parents: list[Parent]


class WorkloadEndedBody(Record, frozen=True, kw_only=True):
    """``output_sha256`` commits to what the workload produced, so that children can cite it."""

    id: str
    output_sha256: Hex32 | None
    reason: Text | None


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
)

ENTRY_OF_BODY: Final[dict[type, Any]] = {kind.__annotations__["body"]: kind for kind in get_args(Entry)}
"""The entry type that carries a body type."""

columns_of: Final[Callable[[UsageBody], tuple[list[int | None], ...]]] = attrgetter(*FIELDS)
"""The columns of a usage body in the order of :data:`FIELDS`."""


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


def _bad(message: str, **details: object) -> ProtocolError:
    return ProtocolError(Code.BAD_ENTRY, message, **details)


def check_entry(entry: Entry, like: UsageBody | None = None) -> None:
    """The rules of each type that its shape doesn't express.

    :param like: a usage body that has passed; shares equal to its shares aren't checked again.
    :raises ProtocolError: ``bad_entry`` or ``bad_identifier``.
    """
    match entry:
        case Usage(body=body):
            _check_usage(body, entry.mono_us, like)
        case Inventory(body=body):
            _check_inventory(body)
        case WorkloadStarted(body=started):
            workload_id(started.id)
            if started.chips != sorted(set(started.chips)):
                raise _bad("chips are distinct and in order", got=started.chips)
            for parent in started.parents:
                _check_parent(parent)
        case WorkloadEnded(body=ended):
            workload_id(ended.id)
        case Gap(body=gap):
            if gap.to_us < gap.from_us:
                raise _bad("gap that ends before it begins", expected=f">= {gap.from_us}", got=gap.to_us)
            if gap.chips is not None and gap.chips != sorted(set(gap.chips)):
                raise _bad("chips are distinct and in order", got=gap.chips)
        case ClockStep(body=step):
            if step.after_us - step.before_us != step.step_us:
                raise _bad("step that isn't after - before", expected=step.after_us - step.before_us, got=step.step_us)
        case Retired(body=retired):
            if retired.chips is not None and retired.chips != sorted(set(retired.chips)):
                raise _bad("chips are distinct and in order", got=retired.chips)
        case Genesis(body=genesis):
            if genesis.previous is not None:
                parse_origin(genesis.previous.origin)
        case _:
            pass


def _check_parent(parent: Parent) -> None:
    if parent.workload is not None:
        workload_id(parent.workload)
    if parent.flop_low is not None and parent.flop_high is not None and int(parent.flop_low) > int(parent.flop_high):
        raise _bad("parent with low above high", expected=f"<= {parent.flop_high}", got=parent.flop_low)


def _check_inventory(body: InventoryBody) -> None:
    uuids = {chip.uuid for chip in body.chips}
    if len(uuids) != len(body.chips):
        raise _bad("one chip is listed twice")
    divided = {chip.uuid for chip in body.chips if chip.role == "mig_parent"}
    # A parent's own work is counted in its instances: one without any would count for nothing.
    if childless := divided - {chip.parent for chip in body.chips}:
        raise _bad("a MIG parent without instances is a whole GPU", got=min(childless))
    for chip in body.chips:
        if (chip.role == "mig_instance") != (chip.parent is not None):
            raise _bad("a MIG instance, and nothing else, has a parent", got=chip.role)
        if chip.parent is not None and chip.parent not in divided:
            raise _bad("the parent of a MIG instance is listed beside it", expected="a mig_parent", got=chip.parent)
        if chip.sms == 0:
            raise _bad("a chip without SMs computes nothing and is none", got=chip.uuid)
        for field in (*chip.measured_by, *chip.not_measured):
            if field not in FIELDS:
                raise _bad("not a usage field", expected="a column of usage", got=field)
        if both := chip.measured_by.keys() & chip.not_measured.keys():
            raise _bad("a field is either measured or not", got=", ".join(sorted(both)))


def _check_usage(body: UsageBody, mono_us: int, like: UsageBody | None) -> None:
    span = body.to_us - body.from_us
    if not 0 < span <= USAGE_SPAN_US or body.from_us // USAGE_SPAN_US != (body.to_us - 1) // USAGE_SPAN_US:
        raise _bad("usage interval is not inside one UTC hour", got=f"{body.from_us} … {body.to_us}")
    if body.mono_from_us + span > mono_us:
        raise _bad("usage interval ends after its entry", expected=f"<= {mono_us}", got=body.mono_from_us + span)
    chips = len(body.samples)
    columns = columns_of(body)
    if {*map(len, columns)} != {chips}:
        field, column = next((f, c) for f, c in zip(FIELDS, columns, strict=True) if len(c) != chips)
        raise _bad(f"{field}: one value a chip", expected=chips, got=len(column))
    if 0 in body.samples:
        for chip, samples in enumerate(body.samples):
            if samples == 0 and any(column[chip] is not None for column in columns):
                raise _bad("a chip without samples has no values", got=f"chip {chip}")
    elif like is not None and len(like.samples) == chips and like.workloads == body.workloads:
        return
    check_shares(body.workloads, body.samples)


def check_shares(shares: Sequence[Share], samples: Sequence[int]) -> None:
    """The rules of a usage entry's shares.

    :param samples: of each chip.
    :raises ProtocolError: ``bad_entry`` or ``bad_identifier``.
    """
    last, total = (-1, ""), 0
    for share in shares:
        workload_id(share.id)
        here = (share.chip, share.id)
        if here <= last:
            raise _bad("shares are sorted by chip and workload, each once", got=f"{share.chip} {share.id}")
        total = total + share.share_ppm if share.chip == last[0] else share.share_ppm
        if total > 1_000_000:
            raise _bad("shares of one chip exceed the whole", expected="<= 1000000 ppm", got=total)
        if share.chip >= len(samples):
            raise _bad("share of a chip that isn't there", expected=f"< {len(samples)}", got=share.chip)
        if samples[share.chip] == 0:
            raise _bad("share of a chip without samples", got=f"chip {share.chip}")
        last = here


def key_roll_message(origin: Origin, seq: int, old_key: bytes, new_key: bytes) -> bytes:
    """What the next key signs to take over: tag, origin, seq and both keys, a line each."""
    return KEY_ROLL_V1 + f"{origin}\n{seq}\n{old_key.hex()}\n{new_key.hex()}\n".encode()


def check_genesis(name: LogName, public_key: bytes, body: GenesisBody) -> None:
    """That a genesis entry belongs to its log: key, node id, and where the log before it ended.

    :raises ProtocolError: ``bad_entry``.
    """
    if body.public_key != public_key.hex():
        raise _bad("genesis names another key than the log's", expected=public_key.hex(), got=body.public_key)
    if (name.incarnation == 1) != (body.previous is None):
        raise _bad("only the first incarnation has nothing before it", got=f"incarnation {name.incarnation}")
    if name.incarnation == 1:
        if node_id_of(public_key) != name.node_id:
            raise _bad("node id of another key", expected=node_id_of(public_key), got=name.node_id)
    elif body.previous is not None:
        before = parse_origin(body.previous.origin)
        if (before.deployment, before.node_id) != (name.deployment, name.node_id) or not (
            before.incarnation < name.incarnation
        ):
            raise _bad("genesis follows a log of another node or a later one", got=body.previous.origin)


def check_key_roll(origin: Origin, public_key: bytes, entry: KeyRoll) -> None:
    """That the next key agreed to take over, and follows this incarnation.

    :raises ProtocolError: ``bad_entry``, ``bad_key`` or ``bad_signature``.
    """
    name = parse_origin(origin)
    if entry.body.next_incarnation != name.incarnation + 1:
        raise _bad("key roll to a wrong incarnation", expected=name.incarnation + 1, got=entry.body.next_incarnation)
    new_key = bytes.fromhex(entry.body.next_public_key)
    message = key_roll_message(origin, entry.seq, public_key, new_key)
    verify_ed25519(new_key, bytes.fromhex(entry.body.next_signature), message)
