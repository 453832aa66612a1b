"""What the agent measures, for Prometheus: the text format, version 0.0.4. Off unless it is asked for.

GPU names follow the OpenTelemetry semantic conventions for hardware (``hw.*`` and ``hw.gpu.*``, with units in the name
as their Prometheus form has it), their labels dcgm-exporter's, so that dashboards join on what they know. A value that
isn't measured has no line; it is never zero. What counts as evidence is the signed log, not this.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from keyturn_agent.ports import Reading
from keyturn_protocol.entry_inventory import Chip

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with its samples: labels, and an exact value."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    samples: Sequence[tuple[dict[str, str], int | float]] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The agent's own state; None is *not known yet*. ``level``: 0 room, 1 filling, 2 full."""

    version: str
    origin: str
    incarnation: int
    entries: int
    sealed: int
    receipted: int
    spool_segments: int
    spool_bytes: int
    spool_level: int
    gaps: int
    last_receipt_s: int | None
    running: bool


def exposition(families: Iterable[Family]) -> str:
    """The text of a scrape."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines.append(f"# HELP {family.name} {_escape(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for labels, value in family.samples:
            inner = ",".join(f'{name}="{_escape(text, quote=True)}"' for name, text in labels.items())
            lines.append(f"{family.name}{{{inner}}} {value}" if inner else f"{family.name} {value}")
    return "".join(f"{line}\n" for line in lines)


def of_agent(health: Health) -> list[Family]:
    """The agent's own metrics."""

    def one(name: str, kind: Literal["gauge", "counter"], text: str, value: int | None) -> Family:
        return Family(f"keyturn_agent_{name}", kind, text, () if value is None else (({}, value),))

    about = {"version": health.version, "origin": health.origin}
    return [
        Family("keyturn_agent_info", "gauge", "What runs, and the log that it writes.", ((about, 1),)),
        one("up", "gauge", "1 while the agent meters, 0 once it has ended.", int(health.running)),
        one("log_incarnation", "gauge", "Incarnation of the log.", health.incarnation),
        one("log_entries", "gauge", "Entries in the log.", health.entries),
        one("log_sealed_entries", "gauge", "Entries under a signed head.", health.sealed),
        one("log_receipted_entries", "gauge", "Entries that the verifier has receipted.", health.receipted),
        one("spool_segments", "gauge", "Segments without a receipt.", health.spool_segments),
        one("spool_bytes", "gauge", "Bytes without a receipt, as stored.", health.spool_bytes),
        one("spool_level", "gauge", "0: room; 1: filling, usage is coarser; 2: full, no usage.", health.spool_level),
        one("gaps_total", "counter", "Gap entries written since the start.", health.gaps),
        one(
            "last_receipt_timestamp_seconds",
            "gauge",
            "When the newest receipt was stored, POSIX.",
            health.last_receipt_s,
        ),
    ]


def of_chips(chips: Sequence[Chip], readings: Sequence[Reading | None], hostname: str) -> list[Family]:
    """Metrics of every chip at one moment; ``readings`` in the order of ``chips``."""
    found: dict[str, tuple[Literal["gauge", "counter"], str, list[tuple[dict[str, str], int | float]]]] = {}
    numbers = _numbers(chips)
    for chip, reading in zip(chips, readings, strict=True):
        labels = _labels(numbers[chip.uuid], chip, hostname)
        rows = [*_status(reading), *([] if reading is None else _values(chip, reading))]
        for name, kind, text, value, more in rows:
            if value is not None:
                found.setdefault(name, (kind, text, []))[2].append((labels | more, value))
    return [Family(name, kind, text, tuple(samples)) for name, (kind, text, samples) in found.items()]


def _numbers(chips: Sequence[Chip]) -> dict[str, int]:
    """The number of each chip's GPU, as the driver counts them."""
    gpus = {chip.uuid: number for number, chip in enumerate(c for c in chips if c.parent is None)}
    return {chip.uuid: gpus[chip.parent or chip.uuid] for chip in chips}


_Row = tuple[str, Literal["gauge", "counter"], str, int | float | None, dict[str, str]]


def _status(reading: Reading | None) -> list[_Row]:
    text = "1 for the state that the device is in: ok, it can be read; failed, it can't."
    states = {"ok": reading is not None, "failed": reading is None}
    return [("hw_status", "gauge", text, int(holds), {"hw_state": state}) for state, holds in states.items()]


def _values(chip: Chip, reading: Reading) -> list[_Row]:
    limit = None if chip.memory_mib is None else chip.memory_mib * _MIB
    used = None if reading.memory_mib is None else reading.memory_mib * _MIB
    part = None if not limit or used is None else used / limit
    sent, received = _times(reading.pcie_tx_kib, 1024), _times(reading.pcie_rx_kib, 1024)
    busy = _ppm(reading.busy_ppm)
    tx, rx = {"network_io_direction": "transmit"}, {"network_io_direction": "receive"}
    rows: list[tuple[str, Literal["gauge", "counter"], str, int | float | None]] = [
        ("hw_energy_joules_total", "counter", "Energy, by the device's counter.", _part(reading.energy_mj, 1000)),
        ("hw_power_watts", "gauge", "Power draw.", _part(reading.power_mw, 1000)),
        ("hw_gpu_memory_usage_bytes", "gauge", "Memory in use.", used),
        ("hw_gpu_memory_limit_bytes", "gauge", "Memory of the device.", limit),
        ("hw_gpu_memory_utilization_ratio", "gauge", "Part of the memory in use.", part),
        ("hw_gpu_sm_active_ratio", "gauge", "Cycles with a warp resident, mean per SM.", _ppm(reading.sm_active_ppm)),
        ("hw_gpu_tensor_active_ratio", "gauge", "Cycles with the tensor pipe active.", _ppm(reading.tensor_ppm)),
        ("hw_gpu_dram_active_ratio", "gauge", "Part of the time with memory traffic.", _ppm(reading.dram_ppm)),
        ("hw_gpu_throttled_ratio", "gauge", "Part of the time with clocks held down.", _ppm(reading.throttled_ppm)),
        ("hw_gpu_sm_clock_hertz", "gauge", "SM clock.", _times(reading.sm_clock_mhz, 1_000_000)),
    ]
    return [
        (
            "hw_gpu_utilization_ratio",
            "gauge",
            "Part of the time with a kernel resident.",
            busy,
            {"hw_gpu_task": "general"},
        ),
        ("hw_gpu_io_bytes_total", "counter", "Bytes over PCIe since metering began.", sent, tx),
        ("hw_gpu_io_bytes_total", "counter", "Bytes over PCIe since metering began.", received, rx),
        *((*row, {}) for row in rows),
    ]


def _labels(number: int, chip: Chip, hostname: str) -> dict[str, str]:
    """dcgm-exporter's names and values; those with ``hw_`` are OpenTelemetry's.

    As there, a MIG instance has its GPU's ``gpu``, ``UUID`` and ``device`` and a profile beside; ``hw_id`` is its own.
    """
    labels = {
        "gpu": str(number),
        "UUID": chip.parent or chip.uuid,
        "pci_bus_id": _bus_id(chip.pci_bus_id or ""),
        "device": f"nvidia{number}",
        "modelName": chip.name.partition(" MIG ")[0],
        "Hostname": hostname,
        "hw_id": chip.uuid,
        "hw_type": "gpu",
        "hw_name": f"nvidia{number}",
    }
    if chip.parent is not None:
        labels |= {"GPU_I_PROFILE": chip.name.partition(" MIG ")[2], "hw_parent": chip.parent}
    return labels


def _bus_id(address: str) -> str:
    """``00000000:3B:00.0``, as NVIDIA's tools write what sysfs calls ``0000:3b:00.0``."""
    domain, colon, rest = address.partition(":")
    return f"{domain:>08}:{rest}".upper() if colon else address


def _ppm(value: int | None) -> float | None:
    return None if value is None else value / 1_000_000


def _part(value: int | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _times(value: int | None, unit: int) -> int | None:
    return None if value is None else value * unit


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
