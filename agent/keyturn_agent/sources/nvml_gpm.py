"""GPM, the performance monitor of Hopper and later: SM and pipe activity, DRAM and link traffic of one chip.

A metric comes out of two samples of the same handle, at least 100 ms apart. Newer drivers have *cumulative*
metrics (248 and up), of which a difference is exact whatever the clock did meanwhile. Older ones have *ratios*
of cycles over the time between the samples (up to 13), which have to be multiplied by a clock, sample by sample.
Traffic comes as a rate and is added up here.

What is not documented: whether a cumulative metric is the mean of the SMs or their sum, or is cumulative at all
on a given driver. So :func:`divisor` holds it against the SM clock when the chip is opened, and a driver whose
counters don't fit is read by ratios.
"""

import math
from collections.abc import Callable
from typing import Final

from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml_causes import NO_VALUE, SUCCESS, NvmlFailure, Reach, cause_of
from keyturn_protocol.entries import Slug

MIN_SPACING_US: Final = 100_000
"""Between two samples that a metric is to come out of (``nvmlGpmMetricsGet``)."""

COUNTERS: Final[dict[str, tuple[int, ...]]] = {
    "elapsed_kcycles": (248,),
    "active_kcycles": (249,),
    "tensor_kcycles": (250,),
    "dmma_kcycles": (251, 254),
    "hmma_kcycles": (252,),
    "imma_kcycles": (253,),
    "fp64_kcycles": (258,),
    "fp32_kcycles": (259,),
    "fp16_kcycles": (260,),
}
RATIOS: Final[dict[str, tuple[int, ...]]] = {
    "sm_active_ppm": (2,),
    "tensor_ppm": (5,),
    "dmma_ppm": (8, 6),
    "hmma_ppm": (7,),
    "imma_ppm": (9,),
    "dram_ppm": (10,),
    "fp64_ppm": (11,),
    "fp32_ppm": (12,),
    "fp16_ppm": (13,),
}
"""Where a field has two metrics (DMMA and DFMA, both FP64 on the tensor pipe) the one that grew more counts: they
may be two names of one thing, and what the other had beyond it is still in ``tensor``."""
RATES: Final[dict[str, int]] = {
    "pcie_tx_kib": 20,
    "pcie_rx_kib": 21,
    "nvlink_rx_kib": 60,
    "nvlink_tx_kib": 61,
}
"""MiB/s."""
FIELDS: Final = (*COUNTERS, *RATIOS, *RATES)
_ALL: Final = tuple(sorted({m for ids in (*COUNTERS.values(), *RATIOS.values()) for m in ids} | set(RATES.values())))
ELAPSED: Final = 248
IMPLAUSIBLE: Final[Slug] = "implausible_counter"
_ROUNDING_PERCENT: Final = 105
"""A ratio a little above 100 % is rounding; far above, it is no ratio."""


def divisor(cycles: float, dt_us: int, clock_mhz: int | None, clock_max_mhz: int | None, sms: int | None) -> int | None:
    """What to divide cumulative cycles by to get the mean per SM; None where they aren't believable.

    :param cycles: by which the elapsed cycles of a chip grew in ``dt_us``.
    :param clock_mhz: the SM clock at the end; the counter has to show at least a quarter of it.
    """
    if clock_mhz is None or clock_max_mhz is None or not math.isfinite(cycles):
        return None
    low, high = clock_mhz * dt_us / 4, max(clock_mhz, clock_max_mhz) * dt_us * 1.1
    for candidate in (1, sms):
        if candidate and low <= cycles / candidate <= high:
            return candidate
    return None


class Gpm:
    """The GPM samples of one chip, from one opening of the library to its closing.

    :param take: fills a buffer with a sample of the chip's handle.
    :raises NvmlFailure: when the driver has no GPM.
    """

    def __init__(self, take: Callable[[nvml.GpmBuffer], None]) -> None:
        self._take = take
        self._query = nvml.gpm_query()
        self._buffers = [nvml.gpm_buffer(), nvml.gpm_buffer()]
        self._baseline_us: int | None = None
        self._metrics = list(_ALL)
        self._gone: dict[int, Slug] = {}
        self._divisor: int | None = None
        self._last: dict[int, float] = {}
        self._sums: dict[str, float] = {}

    @property
    def decided(self) -> bool:
        """Whether :meth:`use_counters` was called."""
        return self._divisor is not None or IMPLAUSIBLE in self._gone.values()

    def close(self) -> None:
        """Free the buffers; one that the driver refuses to free went with the library."""
        for buffer in self._buffers:
            try:
                nvml.gpm_free(buffer)
            except NvmlFailure:
                continue
        self._buffers = []

    def use_counters(self, by: int | None) -> None:
        """Decide about the cumulative metrics: what to divide them by, or None not to ask for them any more."""
        self._divisor = by
        if by is None:
            for metric in {m for ids in COUNTERS.values() for m in ids}:
                self._drop(metric, self._gone.get(metric, IMPLAUSIBLE))

    def read(self, now_us: int) -> dict[str, int]:
        """The fields that have a value over the time since the last call; the first call only starts it.

        A call too early changes nothing and has no values. After a failure the next call starts anew, so that no
        value spans the time of the failure.

        :raises NvmlFailure: what the driver answered; reach CHIP and SESSION concern more than GPM.
        """
        values, dt_us = self.metrics(now_us)
        last, self._last = self._last, values or self._last
        found: dict[str, int] = {}
        if self._divisor is not None:
            for name, ids in COUNTERS.items():
                if (value := self._counted(name, ids, last, values)) is not None:
                    found[name] = int(value / self._divisor) // 1000
        for name, ids in RATIOS.items():
            have = [values[m] for m in ids if m in values]
            if have and max(have) <= _ROUNDING_PERCENT:
                found[name] = min(1_000_000, round(max(have) * 10_000))
        for name, metric in RATES.items():
            if metric in values:
                # KiB/s x µs: as fine as it comes, so that rounding doesn't add up.
                self._sums[name] = self._sums.get(name, 0) + round(values[metric] * 1024 * dt_us)
                found[name] = int(self._sums[name]) // 1_000_000
        return found

    def metrics(self, now_us: int) -> tuple[dict[int, float], int]:
        """The metrics that have a value, by id, as the driver gives them; and over how many µs."""
        before_us = self._baseline_us
        if before_us is not None and now_us - before_us < MIN_SPACING_US:
            return {}, 0
        self._baseline_us = None
        first, second = self._buffers
        self._take(second)
        self._buffers = [second, first]
        values: dict[int, float] = {}
        if before_us is not None:
            answers = self._query(self._metrics, first, second)
            for metric, (code, value) in zip(tuple(self._metrics), answers, strict=True):
                if code != SUCCESS:
                    self._refuse(metric, code)
                elif math.isfinite(value) and value >= 0:
                    values[metric] = value
        self._baseline_us = now_us
        return values, 0 if before_us is None else now_us - before_us

    @property
    def refused(self) -> int:
        """How many metrics were refused for good; asking for them is over."""
        return len(self._gone)

    def reason(self, name: str) -> Slug:
        """Why a field has no value."""
        ids = COUNTERS.get(name) or RATIOS.get(name) or (RATES[name],)
        return next((self._gone[m] for m in ids if m in self._gone), NO_VALUE)

    def _counted(self, name: str, ids: tuple[int, ...], last: dict[int, float], now: dict[int, float]) -> float | None:
        if len(ids) == 1:
            return now.get(ids[0])
        growth = [now[m] - last[m] for m in ids if m in now and m in last]
        if not growth:
            return None
        self._sums[name] = self._sums.get(name, 0) + max(growth)
        return self._sums[name]

    def _refuse(self, metric: int, code: int) -> None:
        cause = cause_of(code)
        if cause.reach in (Reach.CHIP, Reach.SESSION):
            raise NvmlFailure(code, "nvmlGpmMetricsGet")
        if cause.reach is Reach.VALUE:
            self._drop(metric, cause.slug)

    def _drop(self, metric: int, slug: Slug) -> None:
        self._gone[metric] = slug
        if metric in self._metrics:
            self._metrics.remove(metric)
