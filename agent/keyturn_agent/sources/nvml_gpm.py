"""GPM, the performance monitor of Hopper and later: SM and pipe activity, DRAM and link traffic of one chip.

A metric comes out of two samples of the same handle, at least 100 ms apart. Newer drivers have *cumulative*
metrics (248 and up), of which a difference is exact whatever the clock did meanwhile. Older ones have *ratios*
of cycles over the time between the samples (up to 13), which have to be multiplied by a clock, sample by sample.
Traffic comes as a rate and is added up here.

What is not documented: whether a cumulative metric is the mean of the SMs or their sum, or is cumulative at all
on a given driver; nor whether it goes on while a chip is idle. So :func:`divisor` holds it against the SM clock when
the chip is opened, or once it is busy, and a driver whose counters don't fit is read by ratios. Each later sample is
held against the clock too (:func:`plausible`): counters that stand still under load, jump or go back don't count for
that sample, and after a few of them not at all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml_causes import NO_VALUE, NOT_PERMITTED, SUCCESS, NvmlFailure, Reach, cause_of
from keyturn_protocol.values import Slug

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
ACTIVE: Final = 249
SM_ACTIVE: Final = 2
IMPLAUSIBLE: Final[Slug] = "implausible_counter"
_ROUNDING_PERCENT: Final = 105
"""A ratio a little above 100 % is rounding; far above, it is no ratio."""
_STRIKES: Final = 3
"""Implausible samples of a busy chip, one after another, after which its counters aren't believed any more."""
_BUSY_PERCENT: Final = 50
"""A chip so busy has no excuse for counters that stand still."""


@dataclass(frozen=True, slots=True)
class Now:
    """What else is known of a chip at the moment of a sample; None where it isn't."""

    clock_mhz: int | None
    clock_max_mhz: int | None
    sms: int | None
    busy_percent: int | None

    @property
    def busy(self) -> bool:
        return self.busy_percent is not None and self.busy_percent >= _BUSY_PERCENT


def plausible(elapsed: float, active: float | None, dt_us: int, before: Now | None, now: Now) -> bool:
    """Whether cycles (mean per SM) can have grown so in ``dt_us``. Wide: clocks move, and samples come late.

    :param active: by how much the active cycles grew, if that is known.
    """
    clocks = [each.clock_mhz for each in (before, now) if each is not None and each.clock_mhz is not None]
    if not clocks:
        return elapsed >= 0
    if not min(clocks) * dt_us / 16 <= elapsed <= 4 * max(*clocks, now.clock_max_mhz or 0, 1) * dt_us:
        return False
    if active is None:
        return True
    worked = before is not None and before.busy and now.busy
    return active >= (1 if worked else 0) and active <= elapsed * _ROUNDING_PERCENT / 100 + 1


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
        self._strikes = 0
        self._then: Now | None = None
        self._last: dict[int, float] = {}
        self._sums: dict[str, float] = {}

    @property
    def decided(self) -> bool:
        """Whether it is known if the cumulative metrics are what they should be."""
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

    def read(self, now_us: int, now: Now) -> dict[str, int]:
        """The fields that have a value over the time since the last call; the first call only starts it.

        A call too early changes nothing and has no values. After a failure the next call starts anew, so that no
        value spans the time of the failure.

        :raises NvmlFailure: what the driver answered; reach CHIP and SESSION concern more than GPM.
        """
        values, dt_us = self.metrics(now_us)
        last, self._last = self._last, values or self._last
        if now.busy_percent is None and SM_ACTIVE in values:
            # MIG instances have no utilization.
            now = replace(now, busy_percent=round(values[SM_ACTIVE]))
        then, self._then = self._then, now if values else self._then
        found: dict[str, int] = {}
        if values and self._believed(last, values, dt_us, then, now) and self._divisor is not None:
            for name, ids in COUNTERS.items():
                if (value := self._counted(name, ids, last, values)) is not None:
                    found[name] = int(value / self._divisor) // 1000
        for name, ids in RATIOS.items():
            told = self._told(ids, values)
            if told and (most := max(values[m] for m in told)) <= _ROUNDING_PERCENT:
                found[name] = min(1_000_000, round(most * 10_000))
        for name, metric in RATES.items():
            if metric in values:
                # KiB/s x µs: as fine as it comes, so that rounding doesn't add up.
                self._sums[name] = self._sums.get(name, 0) + round(values[metric] * 1024 * dt_us)
                found[name] = int(self._sums[name]) // 1_000_000
        return found

    def _believed(
        self, last: Mapping[int, float], values: Mapping[int, float], dt_us: int, then: Now | None, now: Now
    ) -> bool:
        """Whether the cumulative metrics of this sample count; decides for good where that wasn't yet."""
        if ELAPSED not in last or ELAPSED not in values:
            return True
        elapsed = values[ELAPSED] - last[ELAPSED]
        if not self.decided:
            if not now.busy:
                return False
            self._divisor = divisor(elapsed, dt_us, now.clock_mhz, now.clock_max_mhz, now.sms)
            good = self._divisor is not None
        elif self._divisor is not None:
            active = values[ACTIVE] - last[ACTIVE] if ACTIVE in last and ACTIVE in values else None
            each = None if active is None else active / self._divisor
            good = plausible(elapsed / self._divisor, each, dt_us, then, now)
        else:
            return False
        self._strikes = 0 if good else self._strikes + now.busy
        if self._strikes >= _STRIKES:
            self.use_counters(None)
        return good

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

    def ask_again(self) -> None:
        """Ask once more for what wasn't permitted."""
        for metric in [metric for metric, slug in self._gone.items() if slug == NOT_PERMITTED]:
            del self._gone[metric]
            self._metrics = sorted([*self._metrics, metric])

    @property
    def method(self) -> tuple[int, int | None]:
        """Changes where fields may come in another way from here on: how many metrics were refused, the divisor."""
        return len(self._gone), self._divisor

    def reason(self, name: str) -> Slug:
        """Why a field has no value."""
        ids = COUNTERS.get(name) or RATIOS.get(name) or (RATES[name],)
        return next((self._gone[m] for m in ids if m in self._gone), NO_VALUE)

    def _counted(self, name: str, ids: tuple[int, ...], last: dict[int, float], now: dict[int, float]) -> float | None:
        if len(ids) == 1:
            return now.get(ids[0])
        if not (told := self._told(ids, last, now)):
            return None
        self._sums[name] = self._sums.get(name, 0) + max(now[m] - last[m] for m in told)
        return self._sums[name]

    def _told(self, ids: tuple[int, ...], *samples: Mapping[int, float]) -> list[int]:
        """Those of a field's metrics that this driver has; none where a sample lacks one of them.

        One that isn't told, for a moment or without a permission, may be the one that grows.
        """
        told = [metric for metric in ids if self._gone.get(metric, NOT_PERMITTED) == NOT_PERMITTED]
        return told if all(metric in sample for sample in samples for metric in told) else []

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
