"""What the agent measures, for Prometheus: the text format, version 0.0.4. Off unless it is asked for.

GPU names follow the OpenTelemetry semantic conventions for hardware (``hw.gpu.*`` with units in the name), their
labels dcgm-exporter's, so that dashboards join on what they know. A value that isn't measured has no line; it is
never zero. What counts as evidence is the signed log, not this.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from keyturn_agent.ports import Reading
from keyturn_protocol.entries import Chip

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
    for number, (chip, reading) in enumerate(zip(chips, readings, strict=True)):
        labels = _labels(number, chip, hostname)
        rows = [_status(reading), *([] if reading is None else _values(chip, reading))]
        for name, kind, text, value in rows:
            if value is not None:
                found.setdefault(name, (kind, text, []))[2].append((labels, value))
    return [Family(name, kind, text, tuple(samples)) for name, (kind, text, samples) in found.items()]


_Row = tuple[str, Literal["gauge", "counter"], str, int | float | None]


def _status(reading: Reading | None) -> _Row:
    return "hw_status", "gauge", "1 if the device can be read, else 0.", int(reading is not None)


def _values(chip: Chip, reading: Reading) -> list[_Row]:
    limit = None if chip.memory_mib is None else chip.memory_mib * _MIB
    used = None if reading.memory_mib is None else reading.memory_mib * _MIB
    return [
        ("hw_energy_joules_total", "counter", "Energy, by the device's counter.", _part(reading.energy_mj, 1000)),
        ("hw_power_watts", "gauge", "Power draw.", _part(reading.power_mw, 1000)),
        ("hw_gpu_utilization_ratio", "gauge", "Part of the time with a kernel resident.", _ppm(reading.busy_ppm)),
        ("hw_gpu_memory_usage_bytes", "gauge", "Memory in use.", used),
        ("hw_gpu_memory_limit_bytes", "gauge", "Memory of the device.", limit),
        ("hw_gpu_sm_active_ratio", "gauge", "Cycles with a warp resident, mean per SM.", _ppm(reading.sm_active_ppm)),
        ("hw_gpu_tensor_active_ratio", "gauge", "Cycles with the tensor pipe active.", _ppm(reading.tensor_ppm)),
        ("hw_gpu_dram_active_ratio", "gauge", "Part of the time with memory traffic.", _ppm(reading.dram_ppm)),
        ("hw_gpu_throttled_ratio", "gauge", "Part of the time with clocks held down.", _ppm(reading.throttled_ppm)),
        ("hw_gpu_sm_clock_hertz", "gauge", "SM clock.", _times(reading.sm_clock_mhz, 1_000_000)),
    ]


def _labels(number: int, chip: Chip, hostname: str) -> dict[str, str]:
    """dcgm-exporter's names; ``hw_id`` and ``hw_type`` are OpenTelemetry's."""
    return {
        "gpu": str(number),
        "UUID": chip.uuid,
        "device": f"nvidia{number}",
        "modelName": chip.name,
        "Hostname": hostname,
        "pci_bus_id": chip.pci_bus_id or "",
        "hw_id": chip.uuid,
        "hw_type": "gpu",
    }


def _ppm(value: int | None) -> float | None:
    return None if value is None else value / 1_000_000


def _part(value: int | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _times(value: int | None, unit: int) -> int | None:
    return None if value is None else value * unit


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
