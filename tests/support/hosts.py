"""A host that signs a log, without a host: entries ten seconds apart, all keys from fixed seeds."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.entries import ENTRY_OF_BODY, Body, format_entry
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_log import (
    GenesisBody,
    HeartbeatBody,
    KeyRollBody,
    Previous,
    RetiredBody,
    Source,
    key_roll_message,
)
from keyturn_protocol.entry_usage import FIELDS, Share, ShareClass, UsageBody
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.ids import Deployment, LogName, NodeId
from keyturn_protocol.keys import node_id_of
from keyturn_protocol.merkle import leaf_hash, root_of
from keyturn_protocol.segment import format_segment, node_key

START_US = 1_790_000_000_000_000
STEP_US = 10_000_000
BOOT = "0c6b1d9e-0000-4000-8000-000000000001"


class Key:
    """An Ed25519 key that a seed always gives again."""

    def __init__(self, seed: str) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(sha256(seed.encode()).digest())
        self.public = self.private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message)


def chip(uuid: str) -> Chip:
    return Chip(
        uuid=uuid,
        name="NVIDIA H100 PCIe",
        role="gpu",
        parent=None,
        sms=114,
        memory_mib=81559,
        clock_max_mhz=1755,
        power_limit_mw=350_000,
        pci_bus_id=None,
        nvlink_links=None,
        fabric=None,
        measured_by={},
        not_measured={},
    )


class Host:
    """Writes one log of a node, an entry at a time, ten seconds apart."""

    def __init__(self, seed: str, deployment: Deployment, incarnation: int = 1, node: NodeId | None = None) -> None:
        self.key = Key(seed)
        self.name = LogName(deployment, node or node_id_of(self.key.public), incarnation)
        self.lines: list[bytes] = []
        self.cut = 0
        self.chips = 0
        self.now_us = START_US + incarnation * 3_600_000_000
        self.mono_us = 1_000_000
        self.boot = BOOT

    @property
    def origin(self) -> str:
        return self.name.origin

    def add(self, body: Body, **overrides: Any) -> Self:
        before = self.lines[-1] if self.lines else self.origin.encode()
        fields = {
            "v": 1,
            "seq": len(self.lines),
            "prev": leaf_hash(before).hex(),
            "boot_id": self.boot,
            "boots": self.name.incarnation,
            "mono_us": self.mono_us,
            "time_us": self.now_us,
            "body": body,
        }
        self.lines.append(format_entry(ENTRY_OF_BODY[type(body)](**(fields | overrides))))
        return self

    def wait(self, us: int) -> Self:
        self.now_us += us
        self.mono_us += us
        return self

    def genesis(self, previous: Previous | None = None, source: Source = "replay") -> Self:
        return self.add(
            GenesisBody(
                agent_version="0.1.0",
                agent_sha256="00" * 32,
                source=source,
                public_key=self.key.public.hex(),
                trust_sha256=None,
                root_sha256=None,
                previous=previous,
            )
        )

    def inventory(self, chips: int = 1, *, named: Sequence[str] | None = None) -> Self:
        uuids = [f"GPU-{self.name.node_id[:6]}-{i}" for i in range(chips)] if named is None else list(named)
        self.chips = len(uuids)
        return self.add(
            InventoryBody(
                chips=[chip(uuid) for uuid in uuids],
                driver_version=None,
                nvml_version=None,
                cuda_version=None,
                gate="none",
                pci=None,
            )
        )

    def started(self, workload: str, dtype: str | None = None) -> Self:
        return self.add(
            WorkloadStartedBody(
                id=workload,
                class_="exclusive",
                chips=list(range(self.chips)),
                declared_dtype=dtype,
                name_commitment=None,
                parents=[],
            )
        )

    def usage(self, *workloads: str, samples: int = 10) -> Self:
        """Ten seconds; the workloads, if any, share every chip evenly."""
        start_us, start_mono = self.now_us, self.mono_us
        self.wait(STEP_US)
        value: dict[str, int] = {
            "energy_mj": 3_000_000,
            "busy_us": STEP_US,
            "elapsed_mcycles": 17_000,
            "active_mcycles": 15_000,
            "tensor_mcycles": 9_000,
            "hmma_mcycles": 9_000,
        }
        columns = {f: [value.get(f) if samples else None] * self.chips for f in FIELDS}
        part = 1_000_000 // max(len(workloads), 1)
        class_: ShareClass = "exclusive" if len(workloads) == 1 else "shared"
        shares = [
            Share(chip=i, id=w, class_=class_, share_ppm=part) for i in range(self.chips) for w in sorted(workloads)
        ]
        return self.add(
            UsageBody(
                from_us=start_us,
                to_us=self.now_us,
                mono_from_us=start_mono,
                samples=[samples] * self.chips,
                workloads=shares if samples else [],
                **columns,
            )
        )

    def heartbeat(self, quoted: bytes | None = None) -> Self:
        """A sign of life that quotes a checkpoint of the verifier's log."""
        return self.add(HeartbeatBody(verifier_checkpoint=None if quoted is None else quoted.decode()))

    def retired(self, *chips: str) -> Self:
        """Chips retire by name; without any, the whole host does."""
        return self.add(RetiredBody(chips=sorted(chips) or None, reason="sold"))

    def key_roll(self, new: Key) -> Self:
        message = key_roll_message(self.name.origin, len(self.lines), self.key.public, new.public)
        return self.add(
            KeyRollBody(
                next_incarnation=self.name.incarnation + 1,
                next_public_key=new.public.hex(),
                next_signature=new.sign(message).hex(),
            )
        )

    def previous(self, reason: str = "rejected") -> Previous:
        """What the next incarnation says about this one."""
        root = root_of(map(leaf_hash, self.lines))
        return Previous(origin=self.origin, size=len(self.lines), root=root.hex(), reason=reason)  # type: ignore[arg-type]

    def segment(self) -> bytes:
        """Everything since the last segment, with a signed head."""
        data = signed_segment(self.key, self.name, self.lines, self.cut)
        self.cut = len(self.lines)
        return data


def signed_segment(key: Key, name: LogName, lines: list[bytes], start: int) -> bytes:
    """Entries ``start`` … of a log, under a head over all of ``lines``."""
    head = Checkpoint(name.origin, len(lines), root_of(map(leaf_hash, lines)))
    note = head.signed(node_key(name.origin, key.public), key.sign(head.to_text()))
    return format_segment(lines[start:], note)


def forked(host: Host) -> bytes:
    """The host's newest segment with its last entry rewritten and signed again: a second head of one size."""
    lines = list(host.lines)
    entry = msgspec.json.decode(lines[-1])
    entry["time_us"] += 1
    lines[-1] = msgspec.json.encode(entry, order="sorted")
    return signed_segment(host.key, host.name, lines, len(lines) - 1)
