"""Chips that nobody can begin to compute on: NVML's compute mode PROHIBITED. The only module that imports ``pynvml``.

Who gets around it: root (``nvidia-smi -c 0``; the gate sees it, says so and locks again), and whoever had a context
before a chip was opened for a lease, which goes on: it is said, and never killed. The mode is not kept over a reboot or
an unload of the driver, so it is set again at start, and looked at every few seconds; the library stays open meanwhile,
which keeps the driver's state. Setting it takes root.

On a GPU that is divided (MIG) NVML sets no compute mode, "changing it is not supported" (NVML API reference,
``nvmlDeviceSetComputeMode``). Each instance is tried, for drivers that come to have it, and one that can't be locked is
``cannot_lock``, with the driver's word for why: what holds there are timers and signals alone.
"""

from collections.abc import Sequence
from typing import Any, Final

import pynvml

from keyturn_gate.driver import DriverError, Kind, Seen

_TEXT: Final = {
    1: "not initialized",
    3: "not supported",
    4: "no permission",
    6: "not found",
    9: "driver not loaded",
    12: "library not found",
    13: "function not found",
    15: "the GPU is lost",
    18: "driver version mismatch",
    28: "GPU not found",
}
"""``nvmlReturn_t`` of ``nvml.h``."""
_AS_A_WHOLE: Final = (1, 9, 12, 18)
"""What means that the library has to be opened again."""
_NOT_FOUND: Final = 6
_NOBODY: Final = (3, 13, 15)
"""What means that a chip's processes are never listed, or that it is lost to them too."""


class ComputeMode:
    """NVML, opened when it is first asked and again after it failed as a whole."""

    kind: Kind = "compute_mode"
    locked_mode: int = pynvml.NVML_COMPUTEMODE_PROHIBITED

    def __init__(self) -> None:
        self._open = False

    def look(self) -> Sequence[Seen]:
        try:
            if not self._open:
                _call("nvmlInit")
                self._open = True
            return [seen for index in range(_call("nvmlDeviceGetCount")) for seen in self._gpu(index)]
        except _Failed as failure:
            self.close()
            raise DriverError(str(failure)) from None

    def set_mode(self, uuid: str, mode: int) -> None:
        try:
            _call("nvmlDeviceSetComputeMode", _call("nvmlDeviceGetHandleByUUID", uuid), mode)
        except _Failed as failure:
            raise DriverError(str(failure)) from None

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                _call("nvmlShutdown")
            except _Failed:
                return

    def _gpu(self, index: int) -> Sequence[Seen]:
        """A GPU, or its MIG instances; one that fell off the bus is not listed."""
        try:
            handle = _call("nvmlDeviceGetHandleByIndex", index)
            uuid = str(_call("nvmlDeviceGetUUID", handle))
        except _Failed as failure:
            if failure.code in _AS_A_WHOLE:
                raise
            return ()
        instances = [] if not _divided(handle) else _instances(handle)
        return [_seen(uuid, handle), *(_seen(str(_call("nvmlDeviceGetUUID", each)), each) for each in instances)]


class _Failed(Exception):
    def __init__(self, code: int, call: str) -> None:
        super().__init__(f"{call}: {_TEXT.get(code, f'error {code}')}")
        self.code = code


def _call(name: str, *args: Any) -> Any:
    try:
        return getattr(pynvml, name)(*args)
    except pynvml.NVMLError as error:
        raise _Failed(error.value, name) from None


def _divided(handle: Any) -> bool:
    try:
        return bool(_call("nvmlDeviceGetMigMode", handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except _Failed:
        return False


def _instances(handle: Any) -> list[Any]:
    found = []
    for index in range(_call("nvmlDeviceGetMaxMigDeviceCount", handle)):
        try:
            found.append(_call("nvmlDeviceGetMigDeviceHandleByIndex", handle, index))
        except _Failed as failure:
            if failure.code != _NOT_FOUND:
                raise
    return found


def _seen(uuid: str, handle: Any) -> Seen:
    try:
        return Seen(uuid, int(_call("nvmlDeviceGetComputeMode", handle)), _contexts(handle))
    except _Failed as failure:
        return Seen(uuid, None, _contexts(handle), str(failure))


def _contexts(handle: Any) -> tuple[int, ...] | None:
    try:
        return tuple(sorted({process.pid for process in _call("nvmlDeviceGetComputeRunningProcesses", handle)}))
    except _Failed as failure:
        return () if failure.code in _NOBODY else None
