"""What charging looks at of usage entries: the counters of one chip, an interval at a time or several as one."""

from typing import Final, NamedTuple, cast

from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.usage_runs import Run


class Reading(NamedTuple):
    """What one chip did in one interval: the counters that charging looks at."""

    time_us: int
    energy_mj: int | None
    busy_us: int | None
    elapsed_mcycles: int | None
    active_mcycles: int | None
    tensor_mcycles: int | None
    hmma_mcycles: int | None
    imma_mcycles: int | None
    dmma_mcycles: int | None
    fp64_mcycles: int | None
    fp32_mcycles: int | None
    fp16_mcycles: int | None


COLUMNS: Final = tuple(FIELDS.index(name) for name in Reading._fields[1:])
_TENSOR: Final = FIELDS.index("tensor_mcycles")
_PIPES: Final = COLUMNS[Reading._fields.index("hmma_mcycles") - 1 :]
"""HMMA, IMMA, DMMA, and the three vector pipes."""


def summed(run: Run, at: int) -> Reading | None:
    """A chip's intervals as one, where that gives the same sum: it was read in all of them, with every pipe's counter.

    Then only the cycles that no pipe explains aren't linear: they are summed by interval.
    """
    pipes = [run.columns[column][at] for column in _PIPES]
    tensor = run.columns[_TENSOR][at]
    if 0 in run.samples[at] or None in tensor or any(None in column for column in pipes):
        return None
    known = cast(list[tuple[int, ...]], pipes)
    explained = list(map(sum, zip(*known[:3], strict=True)))
    rest = sum(t - e for t, e in zip(cast(tuple[int, ...], tensor), explained, strict=True) if t > e)
    hmma, imma, dmma, fp64, fp32, fp16 = map(sum, known)
    time_us = sum(run.to_us) - sum(run.from_us)
    return Reading(time_us, None, None, None, None, sum(explained) + rest, hmma, imma, dmma, fp64, fp32, fp16)
