"""What a state folder says about its host; can be asked while the agent runs, and without it."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from keyturn_agent import files
from keyturn_agent.enrolment import Enrolment
from keyturn_agent.errors import RefusedError, StoreError
from keyturn_agent.live import LiveChip
from keyturn_agent.log_files import Opened
from keyturn_agent.spool import Spool
from keyturn_agent.store import holder, read_enrolment
from keyturn_agent.switch.entitlement import check_allowance, newest_root
from keyturn_agent.words import count
from keyturn_protocol.canonical import Decimal, Record, UInt, decode, encode
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_log import Source
from keyturn_protocol.entry_switch import LeaseKind
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Deployment, LogName, NodeId
from keyturn_protocol.segment import node_key


class LiveLease(Record, frozen=True, kw_only=True):
    """A lease that is held, and what is left of it. ``stop_in_s``: until the run stops, as things stand, or null."""

    job: str
    phase: str
    kind: LeaseKind
    run: str | None
    lineage: str | None
    lease: str
    chips: list[str]
    upto_tflop: UInt
    charged_flop: Decimal
    stop_in_s: UInt | None
    stop_why: str | None


class LiveGate(Record, frozen=True, kw_only=True):
    """The gate as it answered last; null fields where it doesn't. ``chips``: their states by uuid.

    ``driver``: what it does by its own word, ``none`` until that is known; ``expected``: what ``switch.gate`` says.
    """

    driver: str
    expected: str
    answers: bool
    released: str | None
    trouble: str | None
    chips: dict[str, str]


class Live(Record, frozen=True, kw_only=True):
    """``status.json``: what the running agent last said. It may be old; ``time_us`` says how old (log time)."""

    v: Literal[1]
    time_us: UInt
    origin: str
    size: UInt
    sealed: UInt
    chips: list[str]
    unreadable: list[UInt]
    workloads: list[str]
    last_error: str | None
    rows: list[LiveChip]
    unattributed: dict[str, UInt]
    paused_until_us: UInt | None
    gate: LiveGate | None
    leases: list[LiveLease]


class Status(Record, frozen=True, kw_only=True):
    """The answer of ``keyturn-agent status --json``. Sizes are in entries.

    ``no_allowance``: why nothing runs here without a permit; null where it does, or where nobody can say.
    """

    node_id: str
    origin: str
    incarnation: UInt
    incarnation_reason: str
    verifier: str
    source: Source
    trust_sha256: str
    root_sha256: str | None
    no_allowance: str | None
    running_pid: UInt | None
    sealed: UInt
    receipted: UInt
    spool_segments: UInt
    spool_bytes: UInt
    live: Live | None


def write_live(folder: Path, live: Live) -> None:
    """Say how it is going. Not durable: nothing depends on it."""
    with files.doing(f"writing {folder}/status.json"):
        files.publish(folder / "status.json", encode(live))


class _Listed(Record, frozen=True, kw_only=True):
    """``chips.json``: the chips that were listed and not retired; if it is lost, those that went stay owed."""

    v: Literal[1]
    chips: list[Chip]


def write_listed(folder: Path, shown: Sequence[Chip], retired: Collection[str] = ()) -> None:
    """Keep the chips of the inventory for the next start, and those of before that nobody retired."""
    uuids = {chip.uuid for chip in shown}
    away = [
        chip for chip in read_listed(folder) if chip.uuid not in uuids and not {chip.uuid, chip.parent} & set(retired)
    ]
    with files.doing(f"writing {folder}/chips.json"):
        files.publish(folder / "chips.json", encode(_Listed(v=1, chips=[*shown, *away])))


def read_listed(folder: Path) -> list[Chip]:
    """The chips that were ever listed and not retired, or none where that isn't known any more."""
    try:
        listed: _Listed = decode((folder / "chips.json").read_bytes(), _Listed, limit=8 * 1024 * 1024)
    except (OSError, ProtocolError):
        return []
    return listed.chips


def mark_retired(folder: Path) -> None:
    """Leave the mark by which a service manager knows that there is nothing to start."""
    with files.doing(f"writing {folder}/retired"):
        files.replace(folder / "retired", b"")


def read_status(folder: Path) -> Status:
    """Look at a state folder without touching it.

    :raises UsageError: it is not one.
    :raises StoreError: it can't be read.
    """
    enrolment, _ = read_enrolment(folder)
    with files.doing(f"asking who holds {folder}"):
        running_pid = holder(folder)
    try:
        incarnation = max(int(p.name) for p in (folder / "logs").iterdir() if p.name.isdigit())
        place = folder / "logs" / str(incarnation)
        opened: Opened = decode((place / "opened").read_bytes(), Opened)
        name = LogName(Deployment(enrolment.deployment), NodeId(enrolment.node_id), incarnation)
        spool = Spool(place, node_key(name.origin, bytes.fromhex(enrolment.public_key)))
        segments, size = spool.waiting()
    except (OSError, ValueError, ProtocolError) as error:
        raise StoreError("bad_state", f"reading {folder}/logs: {error}") from error
    return Status(
        node_id=enrolment.node_id,
        origin=name.origin,
        incarnation=incarnation,
        incarnation_reason=opened.reason,
        verifier=enrolment.verifier,
        source=enrolment.source,
        trust_sha256=enrolment.trust_sha256,
        root_sha256=enrolment.root_sha256,
        no_allowance=_no_allowance(folder, enrolment),
        running_pid=running_pid,
        sealed=spool.end,
        receipted=spool.receipted,
        spool_segments=segments,
        spool_bytes=size,
        live=read_live(folder),
    )


def _no_allowance(folder: Path, enrolment: Enrolment) -> str | None:
    try:
        standing = newest_root(folder, enrolment)
        if standing is not None:
            check_allowance(standing, enrolment.organisation)
    except RefusedError as error:
        return str(error).removeprefix("no allowance: ")
    except StoreError:
        return None  # doctor names what is damaged
    return None


def describe(status: Status) -> str:
    """The status for a person, a line a fact."""
    live = status.live
    none = [] if status.no_allowance is None else [f"allowance  none: {status.no_allowance}"]
    lines = [
        f"node       {status.node_id}",
        f"log        {status.origin}",
        f"opened     {status.incarnation_reason}",
        f"verifier   {status.verifier}",
        f"source     {status.source}",
        f"agent      {'not running' if status.running_pid is None else f'running, process {status.running_pid}'}",
        f"sealed     {status.sealed} entries",
        f"receipted  {status.receipted} entries",
        f"waiting    {status.spool_segments} segments, {status.spool_bytes} bytes",
        *none,
    ]
    if live is not None:
        lines.append(f"chips      {len(live.chips)}, of which {len(live.unreadable)} cannot be read")
        lines += [f"           {chip}" for chip in live.chips]
        lines += [f"nobody's   {many} x {reason}" for reason, many in sorted(live.unattributed.items())]
        if live.paused_until_us is not None:
            lines.append(f"paused     until {datetime.fromtimestamp(live.paused_until_us // 10**6, UTC).isoformat()}")
        lines += _gate(live.gate) if live.gate is not None else []
        for lease in live.leases:
            lines += _lease(lease)
        lines.append(f"last error {live.last_error or 'none'}")
    return "\n".join(lines)


def _gate(gate: LiveGate) -> list[str]:
    """What the gate holds, with what stands in its way first."""
    known = gate.driver != "none"
    lines = [f"gate       {gate.driver if known else 'not known'}{'' if gate.answers else ', and it does not answer'}"]
    if gate.driver != gate.expected:
        lines.append(f"           {'MISMATCH: ' if known else ''}switch.gate says {gate.expected}")
    if gate.released is not None:
        lines.append(f"           RELEASED by root: {gate.released}")
    if gate.trouble is not None:
        lines.append(f"           {gate.trouble}")
    return lines + [f"           {uuid} {state}" for uuid, state in sorted(gate.chips.items())]


def _lease(lease: LiveLease) -> list[str]:
    """A lease in two lines: of what and how far; when it stops, and why."""
    of = lease.run[:16] if lease.run is not None else lease.lineage or "diagnostics"
    charged = int(lease.charged_flop)
    percent = charged * 100 // max(1, lease.upto_tflop * 10**12)
    lines = [
        f"lease      {lease.lease[:16]} of {lease.kind} {of}, {count(len(lease.chips), 'chip')}, {lease.phase}",
        f"           charged {charged:.3g} of {lease.upto_tflop * 10**12:.3g} FLOP ({percent} %, high end)",
    ]
    if lease.stop_in_s is not None:
        lines.append(f"           stops in {lease.stop_in_s} s at the latest, as things stand: {lease.stop_why}")
    return lines


def read_live(folder: Path) -> Live | None:
    """What the agent last said of itself, if it is there."""
    try:
        live: Live = decode((folder / "status.json").read_bytes(), Live, limit=1024 * 1024)
    except (OSError, ProtocolError):
        return None
    return live
