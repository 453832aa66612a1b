"""Hosts for benchmarks: 8-GPU logs made with the protocol alone, deterministic, signed for real."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.entries import Body, Genesis, Inventory, Usage, format_entry
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_log import GenesisBody
from keyturn_protocol.entry_usage import Share, UsageBody
from keyturn_protocol.ids import LogName, deployment
from keyturn_protocol.keys import node_id_of
from keyturn_protocol.merkle import Frontier, leaf_hash
from keyturn_protocol.segment import format_segment, node_key

CHIPS = 8
INTERVAL_US = 10_000_000
START_US = 1_790_000_000_000_000 // 3_600_000_000 * 3_600_000_000
BOOT = "0c6b1a2e-1111-4222-8333-444455556666"
_VALUES = {
    "energy_mj": 3_400_000,
    "busy_us": 9_990_000,
    "elapsed_mcycles": 14_100,
    "active_mcycles": 12_600,
    "tensor_mcycles": 6_800,
    "hmma_mcycles": 6_700,
    "imma_mcycles": 1,
    "dmma_mcycles": 1,
    "fp64_mcycles": 3,
    "fp32_mcycles": 2_400,
    "fp16_mcycles": 900,
    "dram_busy_us": 5_100_000,
    "nvlink_tx_kib": 310_000_000,
    "nvlink_rx_kib": 305_000_000,
    "pcie_tx_kib": 2_100_000,
    "pcie_rx_kib": 1_900_000,
    "throttled_us": 120_000,
    "memory_mib_max": 71_000,
    "clock_mhz_max": 1_755,
}


@dataclass
class Host:
    """One simulated host: a key, and an endless stream of entries a 10 s interval each."""

    seed: int
    deployment: str = "bench.example.org"

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.key = Ed25519PrivateKey.from_private_bytes(self.random.randbytes(32))
        self.public_key = self.key.public_key().public_bytes_raw()
        self.name = LogName(deployment(self.deployment), node_id_of(self.public_key), 1)
        self.vkey = node_key(self.name.origin, self.public_key)
        self.frontier = Frontier()
        self.prev = leaf_hash(self.name.origin.encode())
        self.mono_us = 0
        self.entries = self._entries()

    def lines(self, count: int) -> list[bytes]:
        """The next ``count`` entries."""
        lines = []
        for _ in range(count):
            kind, body = next(self.entries)
            entry = kind(
                v=1,
                seq=self.frontier.size,
                prev=self.prev.hex(),
                boot_id=BOOT,
                boots=1,
                mono_us=self.mono_us,
                time_us=START_US + self.mono_us,
                body=body,
            )
            lines.append(format_entry(entry))
            self.prev = leaf_hash(lines[-1])
            self.frontier = self.frontier.extend([self.prev])
        return lines

    def segment(self, count: int) -> bytes:
        """The next ``count`` entries as a signed segment."""
        lines = self.lines(count)
        checkpoint = Checkpoint(self.name.origin, self.frontier.size, self.frontier.root())
        return format_segment(lines, checkpoint.signed(self.vkey, self.key.sign(checkpoint.to_text())))

    def _entries(self) -> Iterator[tuple[type, Body]]:
        yield (
            Genesis,
            GenesisBody(
                agent_version="0",
                agent_sha256="0" * 64,
                source="nvml",
                public_key=self.public_key.hex(),
                trust_sha256=None,
                root_sha256=None,
                previous=None,
            ),
        )
        yield Inventory, self._inventory()
        shares = [Share(chip=i, id="slurm:cluster:4711", class_="exclusive", share_ppm=1_000_000) for i in range(CHIPS)]
        while True:
            start_us = self.mono_us
            self.mono_us += INTERVAL_US
            columns = {
                field: [max(0, value + self.random.randrange(-value // 20 - 1, value // 20 + 2)) for _ in range(CHIPS)]
                for field, value in _VALUES.items()
            }
            body = UsageBody(
                from_us=START_US + start_us,
                to_us=START_US + self.mono_us,
                mono_from_us=start_us,
                samples=[10] * CHIPS,
                workloads=shares,
                **columns,  # type: ignore[arg-type]
            )
            yield Usage, body

    def _inventory(self) -> InventoryBody:
        chips = [
            Chip(
                uuid=f"GPU-{self.random.randbytes(16).hex()}",
                name="NVIDIA H100 80GB HBM3",
                role="gpu",
                parent=None,
                sms=132,
                memory_mib=81_559,
                clock_max_mhz=1_980,
                power_limit_mw=700_000,
                pci_bus_id=f"00000000:{i:02x}:00.0",
                nvlink_links=18,
                fabric=None,
                measured_by={},
                not_measured={},
            )
            for i in range(CHIPS)
        ]
        return InventoryBody(
            chips=chips, driver_version=None, nvml_version=None, cuda_version=None, gate="none", pci=None
        )
