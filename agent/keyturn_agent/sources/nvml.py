"""NVML through ``pynvml``: typed values out, :class:`~.nvml_causes.NvmlFailure` for every error.

The only module that imports the binding. Nothing here decides: one function for each call that the agent makes,
in NVML's own units. All of them may hang; :mod:`~.worker` says what then.
"""

import _ctypes
from collections.abc import Callable, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Final, NewType
from uuid import UUID

import pynvml

from keyturn_agent.sources.nvml_causes import FUNCTION_NOT_FOUND, NOT_FOUND, SUCCESS, UNKNOWN, NvmlFailure
from keyturn_protocol.canonical import fit_text

Handle = NewType("Handle", object)
"""``nvmlDevice_t`` of a GPU or of a MIG device; valid until the library is shut down."""
GpmBuffer = NewType("GpmBuffer", object)
"""``nvmlGpmSample_t``."""

_MIB: Final = 1024 * 1024
_SLOWED: Final = (
    pynvml.nvmlClocksThrottleReasonSwPowerCap
    | pynvml.nvmlClocksThrottleReasonHwSlowdown
    | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
)
"""Not among them: idle, and clocks that someone set."""


def _call(name: str, *args: Any) -> Any:
    try:
        return getattr(pynvml, name)(*args)
    except pynvml.NVMLError as error:
        raise NvmlFailure(error.value, name) from None
    except pynvml.NVMLLibraryMismatchError:
        raise NvmlFailure(FUNCTION_NOT_FOUND, name) from None
    except UnicodeDecodeError:
        raise NvmlFailure(UNKNOWN, name) from None


def _either(name: str, older: str, *args: Any) -> Any:
    """The call, or its older form where the driver doesn't have it."""
    try:
        return _call(name, *args)
    except NvmlFailure as failure:
        if failure.code != FUNCTION_NOT_FOUND:
            raise
        return _call(older, *args)


def _u32(value: int) -> int | None:
    """Drivers say *no value* with all bits set."""
    return None if value == 2**32 - 1 else value


def _u64(value: int) -> int | None:
    return None if value == 2**64 - 1 else value


def open_library() -> None:
    """Load the library if it isn't, and initialize it."""
    _call("nvmlInit")


def close_library() -> None:
    """Shut down: no handle is valid after this, and no file of the driver stays open."""
    _call("nvmlShutdown")


def unload_library() -> None:
    """Forget the library, so that the next opening loads the one that is installed by then.

    The binding keeps the first library for good; after a driver upgrade it would never fit the kernel's again.
    """
    library, pynvml.nvmlLib = pynvml.nvmlLib, None
    pynvml._nvmlGetFunctionPointer_cache.clear()
    if library is not None:
        _ctypes.dlclose(library._handle)


def driver_version() -> str:
    return str(_call("nvmlSystemGetDriverVersion"))


def nvml_version() -> str:
    return str(_call("nvmlSystemGetNVMLVersion"))


def cuda_version() -> str:
    """Of the driver, as 12.4."""
    number = int(_either("nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetCudaDriverVersion"))
    return f"{number // 1000}.{number % 1000 // 10}"


def device_count() -> int:
    return int(_call("nvmlDeviceGetCount"))


def device(index: int) -> Handle:
    return Handle(_call("nvmlDeviceGetHandleByIndex", index))


def device_by_uuid(uuid: str) -> Handle:
    return Handle(_call("nvmlDeviceGetHandleByUUID", uuid))


def uuid(handle: Handle) -> str:
    return str(_call("nvmlDeviceGetUUID", handle))


def name(handle: Handle) -> str:
    return fit_text(str(_call("nvmlDeviceGetName", handle)))


def bus_id(handle: Handle) -> str:
    """As sysfs writes it: ``0000:3b:00.0``."""
    info = _call("nvmlDeviceGetPciInfo", handle)
    function = str(info.busId).rpartition(".")[2]
    return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.{function or 0}"


def memory_total_mib(handle: Handle) -> int | None:
    total = _u64(_call("nvmlDeviceGetMemoryInfo", handle).total)
    return None if total is None else total // _MIB


def memory_used_mib(handle: Handle) -> int | None:
    used = _u64(_call("nvmlDeviceGetMemoryInfo", handle).used)
    return None if used is None else used // _MIB


def sm_clock_max_mhz(handle: Handle) -> int | None:
    return _u32(_call("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_SM))


def sm_clock_mhz(handle: Handle) -> int | None:
    return _u32(_call("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM))


def power_limit_mw(handle: Handle) -> int | None:
    return _u32(_call("nvmlDeviceGetPowerManagementLimit", handle))


def power_mw(handle: Handle) -> int | None:
    return _u32(_call("nvmlDeviceGetPowerUsage", handle))


def energy_mj(handle: Handle) -> int | None:
    """Since the driver was loaded."""
    return _u64(_call("nvmlDeviceGetTotalEnergyConsumption", handle))


def busy_percent(handle: Handle) -> int | None:
    """Part of the last sample period (1/6 to 1 s) in which a kernel was resident, which is not work."""
    return _u32(_call("nvmlDeviceGetUtilizationRates", handle).gpu)


def throttled(handle: Handle) -> int:
    """1 where power or heat holds the clocks down at this moment, else 0."""
    reasons = _either("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return 1 if reasons & _SLOWED else 0


def gpu_cores(handle: Handle) -> int:
    return int(_call("nvmlDeviceGetNumGpuCores", handle))


def compute_capability(handle: Handle) -> tuple[int, int]:
    major, minor = _call("nvmlDeviceGetCudaComputeCapability", handle)
    return int(major), int(minor)


def active_nvlinks(handle: Handle) -> int:
    """Links that are up now."""
    active = 0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            active += _call("nvmlDeviceGetNvLinkState", handle, link) == pynvml.NVML_FEATURE_ENABLED
        except NvmlFailure:
            # A chip says "not supported" or "invalid argument" from the first link on that it doesn't have.
            if link == 0:
                raise
            break
    return active


def fabric(handle: Handle) -> str | None:
    """NVLink domain as ``<cluster uuid>/<clique>``; None outside of one."""
    info = pynvml.c_nvmlGpuFabricInfoV_t()
    _call("nvmlDeviceGetGpuFabricInfoV", handle, byref(info))
    cluster = bytes(info.clusterUuid)
    if info.state != pynvml.NVML_GPU_FABRIC_STATE_COMPLETED or not any(cluster):
        return None
    return f"{UUID(bytes=cluster)}/{info.cliqueId}"


def mig_enabled(handle: Handle) -> bool:
    return bool(_call("nvmlDeviceGetMigMode", handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)


def mig_devices(handle: Handle) -> list[Handle]:
    """The MIG devices of a GPU in MIG mode; indices without one are skipped."""
    devices = []
    for index in range(_call("nvmlDeviceGetMaxMigDeviceCount", handle)):
        try:
            devices.append(Handle(_call("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)))
        except NvmlFailure as failure:
            if failure.code != NOT_FOUND:
                raise
    return devices


@dataclass(frozen=True, slots=True)
class MigAttributes:
    """Where a MIG device lies, and how large it is. A slice is a unit of the vendor's."""

    gpu_instance: int
    sms: int
    memory_mib: int
    gpu_slices: int
    compute_slices: int


def mig_attributes(handle: Handle) -> MigAttributes:
    found = _call("nvmlDeviceGetAttributes", handle)
    return MigAttributes(
        gpu_instance=_call("nvmlDeviceGetGpuInstanceId", handle),
        sms=found.multiprocessorCount,
        memory_mib=found.memorySizeMB,
        gpu_slices=found.gpuInstanceSliceCount,
        compute_slices=found.computeInstanceSliceCount,
    )


def gpm_supported(handle: Handle) -> bool:
    return bool(_call("nvmlGpmQueryDeviceSupport", handle).isSupportedDevice)


def gpm_buffer() -> GpmBuffer:
    return GpmBuffer(_call("nvmlGpmSampleAlloc"))


def gpm_free(buffer: GpmBuffer) -> None:
    _call("nvmlGpmSampleFree", buffer)


def gpm_sample(handle: Handle, buffer: GpmBuffer) -> None:
    _call("nvmlGpmSampleGet", handle, buffer)


def gpm_mig_sample(parent: Handle, gpu_instance: int, buffer: GpmBuffer) -> None:
    _call("nvmlGpmMigSampleGet", parent, gpu_instance, buffer)


def gpm_query() -> Callable[[Sequence[int], GpmBuffer, GpmBuffer], list[tuple[int, float]]]:
    """A function of metric ids and two samples of one handle, the earlier one first: a return code and a value each.

    The struct has room for every metric that exists (23 kB), so it is made once for each asker.
    """
    request = pynvml.c_nvmlGpmMetricsGet_t()

    def query(metrics: Sequence[int], first: GpmBuffer, second: GpmBuffer) -> list[tuple[int, float]]:
        request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(metrics)
        request.sample1, request.sample2 = first, second
        for slot, metric in zip(request.metrics, metrics, strict=False):
            slot.metricId = metric
        _call("nvmlGpmMetricsGet", request)
        return [(request.metrics[i].nvmlReturn, request.metrics[i].value) for i in range(len(metrics))]

    return query


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process with a context on a chip. ``pid`` is the host's, whatever namespace the process is in."""

    pid: int
    memory_mib: int | None
    sm_util_ppm: int | None
    """Its part of the SMs' time since the last time it was asked for; None where the driver doesn't tell."""
    present_ppm: int = 1_000_000
    """The part of the time since then in which it was there."""


def processes(handle: Handle) -> dict[int, int | None]:
    """pid → MiB of the processes that compute on a chip."""
    found = _either("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2", handle)
    # usedGpuMemory is None already where the driver has no value.
    return {p.pid: None if p.usedGpuMemory is None else p.usedGpuMemory // _MIB for p in found}


def process_utilization(handle: Handle, since_us: int) -> list[tuple[int, int, int]]:
    """(pid, percent of the SMs, time in µs) after ``since_us`` on the driver's clock; empty when nothing ran."""
    try:
        found = _call("nvmlDeviceGetProcessUtilization", handle, since_us)
    except NvmlFailure as failure:
        # The binding takes "nothing to list" for a failure.
        if failure.code in (SUCCESS, NOT_FOUND):
            return []
        raise
    return [(sample.pid, sample.smUtil, sample.timeStamp) for sample in found]


@dataclass(frozen=True, slots=True)
class AccountingRecord:
    """What the driver kept about a process. ``busy_percent``: of its life, with a kernel resident."""

    running: bool
    time_ms: int
    busy_percent: int


def accounting(handle: Handle) -> bool:
    """Whether the driver keeps records of the processes that end."""
    return bool(_call("nvmlDeviceGetAccountingMode", handle) == pynvml.NVML_FEATURE_ENABLED)


def accounted_pids(handle: Handle) -> list[int]:
    """The pids that have a record; the oldest are dropped."""
    return list(_call("nvmlDeviceGetAccountingPids", handle))


def accounting_record(handle: Handle, pid: int) -> AccountingRecord:
    found = _call("nvmlDeviceGetAccountingStats", handle, pid)
    return AccountingRecord(bool(found.isRunning), int(found.time), int(found.gpuUtilization))
