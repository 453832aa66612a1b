"""A node for tests: makes keys, entries and segments with the protocol package, and speaks to a verifier.

node = Node.new("keyturn.example.org")
client.join(node, token)
receipt = client.post(node.segment(node.genesis(), node.inventory(chips=2), *node.usage(6)))
"""

import base64
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import urllib3
from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_protocol import api
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.entries import ENTRY_OF_BODY, Body, Entry, Genesis, Usage, WorkloadStarted, format_entry
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_log import (
    GenesisBody,
    HeartbeatBody,
    KeyRollBody,
    Previous,
    ShutdownBody,
    Source,
    key_roll_message,
)
from keyturn_protocol.entry_usage import FIELDS, MAX_FIELDS, Share, ShareClass, UsageBody
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.ids import Deployment, LogName, Origin
from keyturn_protocol.keys import VerifierKey, node_id_of
from keyturn_protocol.merkle import Frontier, leaf_hash
from keyturn_protocol.note import parse_note
from keyturn_protocol.segment import format_segment, node_key

START_US = 1_790_000_000_000_000
"""When a node's log begins unless told otherwise; not at the start of an hour."""
HOUR_US = 3_600_000_000
INTERVAL_US = 10_000_000
BOOT = "0c6b8a1e-3f57-4d2a-9b1c-5e8f7a6d4c3b"


def chip(at: int, name: str = "NVIDIA H100 PCIe") -> Chip:
    """A whole GPU that the chip table knows, with a uuid of its own."""
    return Chip(
        uuid=f"GPU-{at:08x}-0000-4000-8000-000000000000",
        name=name,
        role="gpu",
        parent=None,
        sms=114,
        memory_mib=81_559,
        clock_max_mhz=1_755,
        power_limit_mw=350_000,
        pci_bus_id=f"00000000:{at:02X}:00.0",
        nvlink_links=0,
        fabric=None,
        measured_by=dict.fromkeys(FIELDS, "nvml"),
        not_measured={},
    )


@dataclass
class Node:
    """One log of a node, growing. A segment takes what was appended since the last one."""

    name: LogName
    key: Ed25519PrivateKey
    time_us: int = START_US
    boots: int = 1
    boot_id: str = BOOT
    mono_us: int = 60_000_000
    frontier: Frontier = field(default_factory=Frontier)
    lines: list[bytes] = field(default_factory=list)
    """Every entry of the log, without newlines."""
    sent: int = 0
    chips: int = 0

    @classmethod
    def new(cls, deployment: str = "keyturn.example.org", *, seed: int | None = None, incarnation: int = 1) -> "Node":
        """A node with a new key, or one that ``seed`` gives."""
        raw = None if seed is None else random.Random(seed).randbytes(32)
        key = Ed25519PrivateKey.generate() if raw is None else Ed25519PrivateKey.from_private_bytes(raw)
        return cls(LogName(Deployment(deployment), node_id_of(key.public_key().public_bytes_raw()), incarnation), key)

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def vkey(self) -> VerifierKey:
        return node_key(self.origin, self.public_key)

    @property
    def origin(self) -> Origin:
        return self.name.origin

    @property
    def size(self) -> int:
        return len(self.lines)

    def copy(self) -> "Node":
        """A clone that can go its own way: the way to a fork."""
        return replace(self, lines=list(self.lines))

    def next_incarnation(self, *, key: Ed25519PrivateKey | None = None, skip: int = 0) -> "Node":
        """The empty log that follows this one."""
        name = replace(self.name, incarnation=self.name.incarnation + 1 + skip)
        return Node(
            name, key or self.key, time_us=self.time_us, boots=self.boots, boot_id=self.boot_id, mono_us=self.mono_us
        )

    def append(self, body: Body, *, after_us: int = 0) -> bytes:
        """Append an entry ``after_us`` later and return its line."""
        self.time_us += after_us
        self.mono_us += after_us
        entry: Entry = ENTRY_OF_BODY[type(body)](
            v=1,
            seq=self.size,
            prev=leaf_hash(self.lines[-1] if self.lines else self.origin.encode()).hex(),
            boot_id=self.boot_id,
            boots=self.boots,
            mono_us=self.mono_us,
            time_us=self.time_us,
            body=body,
        )
        return self.append_line(format_entry(entry))

    def append_line(self, line: bytes) -> bytes:
        """Append any bytes as an entry: for entries that must be refused."""
        self.lines.append(line)
        self.frontier = self.frontier.extend([leaf_hash(line)])
        return line

    def genesis(self, *, source: Source = "nvml", previous: Previous | None = None) -> bytes:
        return self.append(
            GenesisBody(
                agent_version="test",
                agent_sha256="00" * 32,
                source=source,
                public_key=self.public_key.hex(),
                trust_sha256=None,
                root_sha256=None,
                previous=previous,
            )
        )

    def previous(self, reason: str = "rejected") -> Previous:
        """How the next incarnation's genesis names this log."""
        return msgspec.convert(
            {"origin": self.origin, "size": self.size, "root": self.frontier.root().hex(), "reason": reason}, Previous
        )

    def inventory(self, chips: int = 1, *, first: int = 0, name: str = "NVIDIA H100 PCIe") -> bytes:
        self.chips = chips
        return self.append(
            InventoryBody(
                chips=[chip(first + i, name) for i in range(chips)],
                driver_version="550.54.15",
                nvml_version="12.550.54.15",
                cuda_version="12.4",
                gate="none",
                pci=None,
            )
        )

    def started(self, workload: str, *, class_: ShareClass = "exclusive", dtype: str | None = "bf16") -> bytes:
        return self.append(
            WorkloadStartedBody(
                id=workload,
                class_=class_,
                chips=list(range(self.chips)),
                declared_dtype=dtype,
                name_commitment=None,
                parents=[],
            )
        )

    def usage(
        self,
        count: int = 1,
        *,
        workload: str | None = "slurm:1",
        span_us: int = INTERVAL_US,
        null: Sequence[str] = (),
        shares: Sequence[Share] | None = None,
        busy_ppm: int = 900_000,
    ) -> list[bytes]:
        """``count`` usage entries on end, each cut short where its UTC hour ends."""
        made = []
        for _ in range(count):
            span = min(span_us, HOUR_US - self.time_us % HOUR_US)
            made.append(self.append(self.usage_body(span, workload, null, shares, busy_ppm), after_us=span))
        return made

    def usage_body(
        self, span: int, workload: str | None, null: Sequence[str], shares: Sequence[Share] | None, busy_ppm: int
    ) -> UsageBody:
        """The body of a usage entry that begins now; values differ by chip and stay plausible."""
        cycles = span * 1_700 // 1_000_000
        values = dict.fromkeys(FIELDS, cycles * 8 // 10) | {
            "energy_mj": span * 300 // 1_000,
            "busy_us": span * busy_ppm // 1_000_000,
            "elapsed_mcycles": cycles,
            "active_mcycles": cycles * 9 // 10,
            "tensor_mcycles": cycles * 8 // 10,
            "dram_busy_us": span // 3,
            "throttled_us": 0,
            "memory_mib_max": 70_000,
            "clock_mhz_max": 1_700,
        }
        columns: dict[str, Any] = {
            f: [None if f in null else max(v - (0 if f in MAX_FIELDS else at), 0) for at in range(self.chips)]
            for f, v in values.items()
        }
        whole = [
            Share(chip=at, id=workload, class_="exclusive", share_ppm=1_000_000)
            for at in range(self.chips)
            if workload is not None
        ]
        return UsageBody(
            from_us=self.time_us,
            to_us=self.time_us + span,
            mono_from_us=self.mono_us,
            samples=[max(span // 1_000_000, 1)] * self.chips,
            workloads=whole if shares is None else list(shares),
            **columns,
        )

    def heartbeat(self, after_us: int = 0) -> bytes:
        return self.append(HeartbeatBody(verifier_checkpoint=None), after_us=after_us)

    def shutdown(self, reason: str = "stopped") -> bytes:
        return self.append(ShutdownBody(reason=reason))

    def key_roll(self, new: Ed25519PrivateKey) -> bytes:
        public = new.public_key().public_bytes_raw()
        message = key_roll_message(self.origin, self.size, self.public_key, public)
        return self.append(
            KeyRollBody(
                next_incarnation=self.name.incarnation + 1,
                next_public_key=public.hex(),
                next_signature=new.sign(message).hex(),
            )
        )

    def checkpoint(self, size: int | None = None) -> bytes:
        """The signed note at ``size``, the newest by default."""
        end = self.size if size is None else size
        root = Frontier().extend(map(leaf_hash, self.lines[:end])).root()
        at = Checkpoint(self.origin, end, root)
        return at.signed(self.vkey, self.key.sign(at.to_text())).to_bytes()

    def range(self, start: int, end: int) -> bytes:
        """Entries ``start`` … ``end - 1`` as a segment, sent or not."""
        return format_segment(self.lines[start:end], parse_note(self.checkpoint(end)))

    def segment(self, *_: object) -> bytes:
        """Everything since the last segment; the arguments only show in a test what was appended for it."""
        data = self.range(self.sent, self.size)
        self.sent = self.size
        return data

    def first(self, *, chips: int = 1, at: int = 0, usage: int = 0, source: Source = "nvml") -> bytes:
        """A first segment: genesis, inventory, and some usage. ``at``: the number of its first chip."""
        return self.segment(self.genesis(source=source), self.inventory(chips, first=at), self.usage(usage))


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def problem(self) -> api.Problem:
        """The problem that this is."""
        assert self.headers["content-type"] == api.PROBLEM_TYPE, self
        return msgspec.json.decode(self.body, type=api.Problem)

    @property
    def code(self) -> str:
        return self.problem.code


class Client:
    """Speaks to a verifier over HTTP, and keeps connections open; threads may share it."""

    def __init__(self, url: str, *, timeout: float = 60) -> None:
        self.url = url
        self._pool = urllib3.PoolManager(maxsize=64, retries=False, timeout=timeout)
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """One request; header names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self._pool.request(method, self.url + path, body=body, headers=named, redirect=False)
        return Reply(answer.status, answer.data, {k.lower(): v for k, v in answer.headers.items()})

    def get(self, path: str, token: str | None = None) -> Reply:
        return self.request("GET", path, None, **({} if token is None else {"authorization": f"Bearer {token}"}))

    def post(self, segment: bytes, *, shown: bytes | None = None) -> Reply:
        """Send a segment, compressed. ``shown``: a receipt for it."""
        if shown is None:
            return self.post_raw(zstd.compress(segment))
        named = {"content_type": api.SEGMENT_TYPE, "keyturn_receipt": base64.b64encode(shown).decode()}
        return self.request("POST", api.SEGMENTS, zstd.compress(segment), **named)

    def post_raw(self, body: bytes, content_type: str = api.SEGMENT_TYPE) -> Reply:
        return self.request("POST", api.SEGMENTS, body, content_type=content_type)

    def join(self, node: Node, token: str) -> Reply:
        return self.join_with(str(node.vkey), token)

    def join_with(self, vkey: str, token: str) -> Reply:
        body = encode_record(api.JoinRequest(token=token, vkey=vkey))
        return self.request("POST", api.JOIN, body, content_type="application/json")

    def head(self, node: Node) -> Reply:
        return self.get(api.head_path(node.name.node_id, node.name.incarnation))


__all__ = ["START_US", "Client", "Genesis", "Node", "Reply", "Usage", "WorkloadStarted", "chip"]
