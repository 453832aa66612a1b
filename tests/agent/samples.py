"""Readings, samples and recordings made by hand."""

from typing import Any

import msgspec

from keyturn_agent.ports import Reading, Sample
from keyturn_agent.recording import Header, RecordedSample, Workload, format_recording
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import Share, ShareClass

NOTHING = Reading(**dict.fromkeys(Reading.__struct_fields__))


def reading(**values: int | None) -> Reading:
    """A reading with these fields; the source lacks the others."""
    changes: dict[str, Any] = dict(values)
    return msgspec.structs.replace(NOTHING, **changes)


def share(chip: int, workload: str, ppm: int, class_: ShareClass = "exclusive") -> Share:
    return Share(chip=chip, id=workload, class_=class_, share_ppm=ppm)


def sample(t_us: int, *chips: Reading | None, error: str | None = None, shares: tuple[Share, ...] = ()) -> Sample:
    return Sample(t_us, chips, error, shares)


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


def header(chips: int = 1, workloads: tuple[str, ...] = ()) -> Header:
    return Header(
        v=1,
        type="recording",
        about="made by hand",
        chips=[chip(f"GPU-{i}") for i in range(chips)],
        driver_version="580.126.20",
        nvml_version=None,
        cuda_version=None,
        workloads=[
            Workload(id=w, class_="exclusive", declared_dtype="bf16", chips=list(range(chips))) for w in workloads
        ],
    )


def recorded(
    t_us: int, *chips: Reading | None, error: str | None = None, shares: tuple[Share, ...] = ()
) -> RecordedSample:
    return RecordedSample(t_us=t_us, chips=list(chips), error=error, shares=list(shares))


def steady(seconds: int, workload: str | None = "run:w", start_mj: int = 0) -> list[RecordedSample]:
    """One chip, a sample a second, 300 W by its energy counter, 1000 MHz, half of the tensor pipe."""
    shares = () if workload is None else (share(0, workload, 1_000_000),)
    return [
        recorded(
            s * 1_000_000,
            reading(
                energy_mj=start_mj + s * 300_000,
                busy_ppm=1_000_000,
                sm_clock_mhz=1000,
                sm_active_ppm=800_000,
                tensor_ppm=500_000,
                memory_mib=1024,
            ),
            shares=shares,
        )
        for s in range(seconds + 1)
    ]


def steady_recording(seconds: int) -> bytes:
    return format_recording(header(1, ("run:w",)), steady(seconds))
