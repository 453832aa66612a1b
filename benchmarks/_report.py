"""One JSON line a figure, always beside what it is held against."""

import json
import time
from collections.abc import Callable


def best_of(runs: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of ``runs`` calls: the one least disturbed by the machine."""
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def report(name: str, *, seconds: float, limit_s: float, bar: float | None, **more: object) -> None:
    """Print a figure as the ratio of the limit's time to ours: 1 means as fast as the limit.

    :param bar: the least that it has to be; None where nothing is asked.
    """
    ratio = limit_s / seconds
    _print({"name": name, "ratio": round(ratio, 3), "bar": bar, "holds": bar is None or ratio >= bar, **more})


def report_below(name: str, value: float, unit: str, *, bar: float | None, **more: object) -> None:
    """Print a figure that has to stay below ``bar``, both in ``unit``; None where nothing is asked."""
    holds = bar is None or value < bar
    _print({"name": name, "value": round(value, 3), "unit": unit, "bar": bar, "holds": holds, **more})


def _print(line: dict[str, object]) -> None:
    print(json.dumps(line, ensure_ascii=False), flush=True)
