"""Which chips NVML shows: GPUs, MIG instances as chips beside their parent, and what identifies each."""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from msgspec.structs import replace

from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml_causes import GPU_NOT_FOUND, NvmlFailure, Reach
from keyturn_agent.sources.nvml_chip import Identity
from keyturn_protocol.entry_inventory import Chip

T = TypeVar("T")

CORES_PER_SM: Final[dict[tuple[int, int], int]] = {
    (6, 0): 64,
    (6, 1): 128,
    (7, 0): 64,
    (7, 5): 64,
    (8, 0): 64,
    (8, 6): 128,
    (8, 7): 128,
    (8, 9): 128,
    (9, 0): 128,
    (10, 0): 128,
    (10, 3): 128,
    (12, 0): 128,
    (12, 1): 128,
}
"""FP32 cores of an SM by compute capability (CUDA C++ Programming Guide): NVML counts cores, not SMs."""


def discover() -> tuple[list[Identity], int]:
    """The chips in the order of the driver, each GPU before its MIG instances; and how many GPUs didn't answer.

    Those are left out here: who knew them before keeps them in the inventory, and the scan of the PCI bus shows them.

    :raises NvmlFailure: with reach SESSION, or when no GPU answers.
    """
    found: list[Identity] = []
    failures: list[NvmlFailure] = []
    for index in range(nvml.device_count()):
        try:
            found += _gpu(nvml.device(index))
        except NvmlFailure as failure:
            if failure.cause.reach is Reach.SESSION:
                raise
            failures.append(failure)
    if not found:
        # Only a new opening of the library counts the GPUs again.
        raise failures[0] if failures else NvmlFailure(GPU_NOT_FOUND, "nvmlDeviceGetCount")
    return found, len(failures)


def with_roles(chips: Sequence[Chip]) -> list[Chip]:
    """The chips as an inventory lists them: a GPU in MIG mode that has no instances yet is nobody's parent."""
    parents = {chip.parent for chip in chips}
    return [
        replace(chip, role="gpu") if chip.role == "mig_parent" and chip.uuid not in parents else chip for chip in chips
    ]


def mig_uuids(parent: nvml.Handle) -> frozenset[str]:
    """The MIG devices that a GPU has now: they come and go while the library is open."""
    return frozenset(nvml.uuid(handle) for handle in nvml.mig_devices(parent))


def optional(ask: Callable[[], T]) -> T | None:
    """A property, or None where the driver doesn't have it.

    :raises NvmlFailure: with reach CHIP or SESSION.
    """
    try:
        return ask()
    except NvmlFailure as failure:
        if failure.cause.reach in (Reach.CHIP, Reach.SESSION):
            raise
        return None


def _gpu(handle: nvml.Handle) -> list[Identity]:
    uuid = nvml.uuid(handle)
    divided = optional(lambda: nvml.mig_enabled(handle)) is True
    bus_id = optional(lambda: nvml.bus_id(handle))
    gpu = Chip(
        uuid=uuid,
        name=nvml.name(handle),
        role="mig_parent" if divided else "gpu",
        parent=None,
        sms=optional(lambda: _sms(handle)),
        memory_mib=optional(lambda: nvml.memory_total_mib(handle)),
        clock_max_mhz=optional(lambda: nvml.sm_clock_max_mhz(handle)),
        power_limit_mw=optional(lambda: nvml.power_limit_mw(handle)),
        pci_bus_id=bus_id,
        nvlink_links=optional(lambda: nvml.active_nvlinks(handle)),
        fabric=optional(lambda: nvml.fabric(handle)),
        measured_by={},
        not_measured={},
    )
    found = [Identity(handle=handle, clock_handle=handle, gpu_instance=None, chip=gpu)]
    if divided:
        found += [_instance(device, handle, gpu) for device in nvml.mig_devices(handle)]
    return found


def _instance(handle: nvml.Handle, parent: nvml.Handle, gpu: Chip) -> Identity:
    size = optional(lambda: nvml.mig_attributes(handle))
    chip = Chip(
        uuid=nvml.uuid(handle),
        name=nvml.name(handle),
        role="mig_instance",
        parent=gpu.uuid,
        sms=None if size is None else size.sms,
        memory_mib=None if size is None else size.memory_mib,
        clock_max_mhz=gpu.clock_max_mhz,
        power_limit_mw=None,
        pci_bus_id=gpu.pci_bus_id,
        nvlink_links=None,
        fabric=None,
        measured_by={},
        not_measured={},
    )
    # GPM reads GPU instances: their mean per SM is that of a compute instance only where it is all of one.
    alone = size is not None and size.compute_slices == size.gpu_slices
    return Identity(
        handle=handle,
        clock_handle=parent,
        gpu_instance=size.gpu_instance if size is not None and alone else None,
        chip=chip,
    )


def _sms(handle: nvml.Handle) -> int | None:
    cores = CORES_PER_SM.get(nvml.compute_capability(handle))
    return None if cores is None else nvml.gpu_cores(handle) // cores
