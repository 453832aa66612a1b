"""What ``doctor`` says about NVIDIA chips. Pure: an inventory in, checks out."""

from collections.abc import Mapping, Sequence
from typing import Final

from keyturn_agent.doctor import Check
from keyturn_agent.sources.pci import NVIDIA
from keyturn_protocol.entry_inventory import Chip, InventoryBody, PciDevice

_VENDORS: Final = {0x1002: "AMD", 0x1DA3: "Habana", 0x19E5: "Huawei"}
"""Makers of accelerators that this source doesn't meter; a server's own VGA controller is of none of them."""
_GPM: Final = "tensor_mcycles"


def nvml_checks(
    inventory: InventoryBody,
    trouble: str | None,
    unattributed: Mapping[str, int],
    mps: bool,
    accounting: tuple[int, int] = (0, 0),
) -> list[Check]:
    """The chips, how they are measured, and who is on them.

    :param trouble: why NVML can't be read, or None.
    :param accounting: on how many GPUs NVML keeps records of processes that end, and of how many.
    :param unattributed: why processes that compute now would be nobody's, and how many.
    """
    if trouble is not None or not inventory.chips:
        checks = [Check(name="nvml", state="fail", detail=f"no chip can be read: {trouble or 'NVML shows none'}")]
        return [*checks, *_pci(inventory)]
    versions = f"driver {inventory.driver_version or '?'}, CUDA {inventory.cuda_version or '?'}"
    gpus = [chip for chip in inventory.chips if chip.role != "mig_instance"]
    instances = len(inventory.chips) - len(gpus)
    checks = [Check(name="nvml", state="ok", detail=f"{len(gpus)} GPUs, {instances} MIG instances, {versions}")]
    checks += _gpm(inventory.chips)
    checks += _not_measured(inventory.chips)
    checks += _pci(inventory)
    checks.append(_accounting(*accounting))
    if mps:
        detail = "MPS runs: what several clients did on a chip at once is split by time, not by what each did"
        checks.append(Check(name="mps", state="warn", detail=detail))
    if unattributed:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(unattributed.items()))
        checks.append(Check(name="workloads", state="warn", detail=f"processes that would be unattributed: {reasons}"))
    return checks


def _accounting(on: int, gpus: int) -> Check:
    """Nothing is wrong where it is off; it is the operator's to know what is seen then."""
    detail = f"on for {on} of {gpus} GPUs: processes that live shorter than a sample "
    if on < gpus or not gpus:
        detail += "show only where the driver tells utilization by process (nvidia-smi -am 1 switches it on)"
    else:
        detail += "are seen by the driver's records"
    return Check(name="accounting", state="ok", detail=detail)


def _gpm(chips: Sequence[Chip]) -> list[Check]:
    """Without tensor counters, FLOP are bounded by time and energy alone."""
    checks = []
    for chip in chips:
        reason = chip.not_measured.get(_GPM)
        if chip.role == "mig_parent" or (reason is None and _GPM in chip.measured_by):
            continue
        refused = reason is not None and reason.startswith("no_permission")
        hint = " (NVreg_RestrictProfilingToAdminUsers=0, or CAP_SYS_ADMIN)" if refused else ""
        checks.append(
            Check(
                name="gpm",
                state="fail" if refused else "warn",
                detail=f"{chip.uuid}: no tensor counters: {reason or 'no sample yet'}{hint}",
            )
        )
    return checks or [Check(name="gpm", state="ok", detail="tensor counters can be read on every chip")]


def _not_measured(chips: Sequence[Chip]) -> list[Check]:
    """The other fields, those with one reason in one line."""
    lines: dict[tuple[str, str], list[str]] = {}
    for chip in chips:
        for field, reason in chip.not_measured.items():
            lines.setdefault((chip.uuid, reason), []).append(field)
    return [
        Check(name="fields", state="warn", detail=f"{uuid}: not measured: {', '.join(fields)}: {reason}")
        for (uuid, reason), fields in lines.items()
    ]


def _pci(inventory: InventoryBody) -> list[Check]:
    """Chips that are plugged in and that the driver doesn't show."""
    if inventory.pci is None:
        return [Check(name="pci", state="warn", detail="the PCI bus can't be read: chips could be there unseen")]
    shown = {_address(chip.pci_bus_id) for chip in inventory.chips if chip.pci_bus_id is not None}
    checks = []
    for device in inventory.pci:
        if device.vendor == NVIDIA and _address(device.bus_id) not in shown:
            checks.append(Check(name="pci", state="fail", detail=f"{_named(device)} is there and NVML doesn't show it"))
        elif device.vendor in _VENDORS:
            detail = f"{_named(device)} ({_VENDORS[device.vendor]}) isn't metered by this source"
            checks.append(Check(name="pci", state="warn", detail=detail))
    return checks or [Check(name="pci", state="ok", detail="NVML shows every NVIDIA chip on the PCI bus")]


def _address(bus_id: str) -> str:
    return bus_id.lower()


def _named(device: PciDevice) -> str:
    driver = "no driver" if device.driver is None else f"driver {device.driver}"
    return f"{device.bus_id} {device.vendor:04x}:{device.device:04x} ({driver})"
