"""One metered chip behind NVML: a GPU, or a MIG instance, which has a GPM call of its own and little else.

A value that can't be had is null with a reason, and the reading goes on: only what concerns the whole chip or all
chips ends it. What a driver refuses for good isn't asked for again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from keyturn_agent.ports import Reading
from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml_causes import NO_VALUE, NOT_PERMITTED, UNKNOWN, NvmlFailure, Reach
from keyturn_agent.sources.nvml_gpm import COUNTERS, RATES, RATIOS, Gpm, Now, divisor
from keyturn_agent.sources.nvml_processes import Processes
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.values import Slug

T = TypeVar("T")

ASK_AGAIN_US: Final = 600_000_000
"""How often what wasn't permitted is asked for again."""
WITH_PARENT: Final[Slug] = "counted_with_the_parent"
SHARED_INSTANCE: Final[Slug] = "part_of_a_gpu_instance"
"""GPM reads GPU instances; of a compute instance that is only a part of one there is no counter."""
NO_SAMPLE: Final[Slug] = "no_sample_yet"
GPM_SAMPLE: Final = "nvmlGpmSampleGet"

_ENERGY: Final = "nvmlDeviceGetTotalEnergyConsumption"
_UTILIZATION: Final = "nvmlDeviceGetUtilizationRates"
_CLOCK: Final = "nvmlDeviceGetClockInfo"
_MEMORY: Final = "nvmlDeviceGetMemoryInfo"
_REASONS: Final = "nvmlDeviceGetCurrentClocksEventReasons"
_POWER: Final = "nvmlDeviceGetPowerUsage"
_OF_THE_GPU: Final = (_ENERGY, _POWER, _UTILIZATION, _REASONS)

_GPM_FIELDS: Final = {
    "active_mcycles": ("active_kcycles", "sm_active_ppm"),
    **{f"{pipe}_mcycles": (f"{pipe}_kcycles", f"{pipe}_ppm") for pipe in ("tensor", "hmma", "imma", "dmma")},
    **{f"{pipe}_mcycles": (f"{pipe}_kcycles", f"{pipe}_ppm") for pipe in ("fp64", "fp32", "fp16")},
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a chip is, as NVML says it when the library is opened.

    :param clock_handle: the GPU's, which has the clock that a MIG instance runs at.
    :param gpu_instance: of a MIG instance whose compute instance is all of it, else None.
    """

    handle: nvml.Handle
    clock_handle: nvml.Handle
    gpu_instance: int | None
    chip: Chip

    @property
    def is_mig(self) -> bool:
        return self.chip.role == "mig_instance"


class ChipReader:
    """Reads one chip from one opening of the library to its closing."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._refused: dict[str, Slug] = {}
        self._reasons: dict[str, Slug] = {}
        self._methods: dict[str, Slug] = {}
        self._processes = Processes(identity.handle, self._ask)
        self._again_us: int | None = None
        self._last_failure = (UNKNOWN, "")
        if identity.is_mig:
            self._refused = dict.fromkeys(_OF_THE_GPU, WITH_PARENT)
        self.gpm = self._open_gpm()

    @property
    def chip(self) -> Chip:
        """The chip with what is measured on it by which method, and why the rest isn't."""
        chip = self.identity.chip
        missing = {f: self._reason(f) for f in FIELDS if f not in self._methods}
        return Chip(
            **{name: getattr(chip, name) for name in Chip.__struct_fields__[:-2]},
            measured_by={f: self._methods[f] for f in FIELDS if f in self._methods},
            not_measured=missing,
        )

    def read(self, now_us: int) -> Reading:
        """The values of this moment.

        :raises NvmlFailure: with reach CHIP or SESSION, or when not one value could be had.
        """
        if self._again_us is None or now_us >= self._again_us:
            if self._again_us is not None:
                self._ask_again()
            self._again_us = now_us + ASK_AGAIN_US
        handle = self.identity.handle
        clock_mhz = self._ask(_CLOCK, lambda: nvml.sm_clock_mhz(self.identity.clock_handle))
        busy = self._ask(_UTILIZATION, lambda: nvml.busy_percent(handle))
        chip = self.identity.chip
        now = Now(clock_mhz, chip.clock_max_mhz, chip.sms, busy)
        gpm = self._ask(GPM_SAMPLE, lambda: self._read_gpm(now_us, now)) or {}
        throttled = self._ask(_REASONS, lambda: nvml.throttled(handle))
        reading = Reading(
            energy_mj=self._ask(_ENERGY, lambda: nvml.energy_mj(handle)),
            power_mw=self._ask(_POWER, lambda: nvml.power_mw(handle)),
            busy_ppm=None if busy is None else min(busy, 100) * 10_000,
            sm_clock_mhz=clock_mhz,
            memory_mib=self._ask(_MEMORY, lambda: nvml.memory_used_mib(handle)),
            throttled_ppm=None if throttled is None else throttled * 1_000_000,
            **{name: gpm.get(name) for name in (*COUNTERS, *RATIOS, *RATES)},
        )
        # The clock that a MIG instance has is its GPU's, and says nothing about the instance.
        borrowed = {"sm_clock_mhz"} if self.identity.is_mig else set()
        if all(getattr(reading, name) is None for name in Reading.__struct_fields__ if name not in borrowed):
            code, call = self._last_failure
            raise NvmlFailure(code, call)
        self._learn(reading)
        return reading

    def processes(self, now_us: int) -> tuple[nvml.GpuProcess, ...] | None:
        """Who computes on the chip; None where the driver doesn't say."""
        return self._processes.look(now_us)

    @property
    def accounting(self) -> bool:
        """Whether the driver keeps records of processes that end."""
        return bool(
            self._ask("nvmlDeviceGetAccountingMode", lambda: nvml.accounting(self.identity.handle))
        )  # fmt: skip

    @property
    def idle(self) -> bool:
        """Whether nothing is known to run on it, so that counters may stand still."""
        return not self._ask(_UTILIZATION, lambda: nvml.busy_percent(self.identity.handle))

    def counter_divisor(self, cycles: float, dt_us: int) -> int | None:
        """:func:`.nvml_gpm.divisor` for this chip, by the clock that it has now."""
        clock_mhz = self._ask(_CLOCK, lambda: nvml.sm_clock_mhz(self.identity.clock_handle))
        chip = self.identity.chip
        return divisor(cycles, dt_us, clock_mhz, chip.clock_max_mhz, chip.sms)

    def close(self) -> None:
        if self.gpm is not None:
            self.gpm.close()

    def _open_gpm(self) -> Gpm | None:
        identity = self.identity
        handle, instance = identity.clock_handle, identity.gpu_instance
        if identity.is_mig and instance is None:
            self._refused[GPM_SAMPLE] = SHARED_INSTANCE
            return None
        if not self._ask("nvmlGpmQueryDeviceSupport", lambda: nvml.gpm_supported(handle)):
            self._refused[GPM_SAMPLE] = self._reasons.get("nvmlGpmQueryDeviceSupport", "not_supported")
            return None

        def take(buffer: nvml.GpmBuffer) -> None:
            if instance is None:
                nvml.gpm_sample(handle, buffer)
            else:
                nvml.gpm_mig_sample(handle, instance, buffer)

        gpm = self._ask(GPM_SAMPLE, lambda: Gpm(take))
        if gpm is None:
            self._refused[GPM_SAMPLE] = self._reasons[GPM_SAMPLE]
        return gpm

    def _read_gpm(self, now_us: int, now: Now) -> dict[str, int]:
        if self.gpm is None:
            return {}
        before = self.gpm.method
        found = self.gpm.read(now_us, now)
        if self.gpm.method != before:
            self._methods = {}
        return found

    def _ask_again(self) -> None:
        """What wasn't permitted may be by now."""
        again = [call for call, slug in self._refused.items() if slug == NOT_PERMITTED]
        for call in again:
            del self._refused[call]
        if self.gpm is not None:
            self.gpm.ask_again()
        elif GPM_SAMPLE in again:
            self.gpm = self._open_gpm()

    def _ask(self, call: str, ask: Callable[[], T]) -> T | None:
        """The answer, or None where this value can't be had; the reason is kept."""
        if call in self._refused:
            return None
        try:
            value = ask()
        except NvmlFailure as failure:
            if failure.cause.reach in (Reach.CHIP, Reach.SESSION):
                raise
            self._reasons[call] = failure.cause.slug
            self._last_failure = (failure.code, failure.call)
            if failure.cause.reach is Reach.VALUE:
                self._refused[call] = failure.cause.slug
                self._methods = {}
            return None
        if value is None:
            self._reasons[call] = NO_VALUE
        return value

    def _learn(self, reading: Reading) -> None:
        """By which method each field comes. Once seen it stays, until a call is refused for good."""
        for name, method in _methods(reading).items():
            self._methods.setdefault(name, method)

    def _reason(self, name: str) -> str:
        """Why a usage field isn't measured, with the call that didn't give it."""
        match name:
            case "energy_mj":
                call = _POWER if _ENERGY in self._refused else _ENERGY
            case "busy_us":
                call = _UTILIZATION
            case "elapsed_mcycles" | "clock_mhz_max":
                call = _CLOCK
            case "throttled_us":
                call = _REASONS
            case "memory_mib_max":
                call = _MEMORY
            case _:
                return self._gpm_reason(name)
        return f"{self._refused.get(call) or self._reasons.get(call, NO_SAMPLE)}: {call}"

    def _gpm_reason(self, name: str) -> str:
        if GPM_SAMPLE in self._refused or self.gpm is None:
            return f"{self._refused.get(GPM_SAMPLE, NO_SAMPLE)}: {GPM_SAMPLE}"
        key = _GPM_FIELDS[name][1] if name in _GPM_FIELDS else "dram_ppm" if name == "dram_busy_us" else name
        return f"{self.gpm.reason(key)}: nvmlGpmMetricsGet"


def _methods(reading: Reading) -> dict[str, Slug]:
    """The method behind each usage field that this reading has a value for, as the sampler will choose it."""
    clock = reading.sm_clock_mhz is not None
    found: dict[str, Slug] = {}
    if reading.energy_mj is not None:
        found["energy_mj"] = "total_energy"
    elif reading.power_mw is not None:
        found["energy_mj"] = "power_x_time"
    if reading.busy_ppm is not None:
        found["busy_us"] = "utilization"
    if reading.elapsed_kcycles is not None:
        found["elapsed_mcycles"] = "cycle_counter"
    elif clock:
        found["elapsed_mcycles"] = "sm_clock_x_time"
    for name, (counter, ratio) in _GPM_FIELDS.items():
        if getattr(reading, counter) is not None:
            found[name] = "cycle_counter"
        elif clock and getattr(reading, ratio) is not None:
            found[name] = "ratio_x_sm_clock"
    if reading.dram_ppm is not None:
        found["dram_busy_us"] = "ratio_x_time"
    for name in RATES:
        if getattr(reading, name) is not None:
            found[name] = "rate_x_time"
    if reading.throttled_ppm is not None:
        found["throttled_us"] = "throttle_reasons"
    if reading.memory_mib is not None:
        found["memory_mib_max"] = "memory_info"
    if clock:
        found["clock_mhz_max"] = "sm_clock"
    return found
