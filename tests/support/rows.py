"""Chips and usage rows for tests."""

from typing import Any

from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.usage import UsageRow

HOUR_US = 3_600_000_000


def make_chip(name: str = "NVIDIA H100 PCIe", **more: Any) -> Chip:
    fields: dict[str, Any] = {
        "uuid": "GPU-00000000-0000-4000-8000-0000000000ff",
        "name": name,
        "role": "gpu",
        "parent": None,
        "sms": None,
        "memory_mib": None,
        "clock_max_mhz": None,
        "power_limit_mw": None,
        "pci_bus_id": None,
        "nvlink_links": None,
        "fabric": None,
        "measured_by": {},
        "not_measured": {},
    }
    return Chip(**fields | more)


def make_row(time_us: int = HOUR_US, workload: str = "slurm:fixture:1", **measured: int | None) -> UsageRow:
    """A row in which everything that isn't given is null, with the basis that this makes."""
    values = dict.fromkeys(FIELDS) | measured
    return UsageRow(
        log="example.org/node/00000000000000000000000000000000/1",
        chip="GPU-00000000-0000-4000-8000-0000000000ff",
        hour_s=0,
        workload=workload,
        inventory_seq=1,
        basis=sum(1 << i for i, name in enumerate(FIELDS) if values[name] is None),
        time_us=time_us,
        samples=1,
        **values,
    )
