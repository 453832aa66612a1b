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


def report(name: str, *, seconds: float, limit_s: float, bar: float, **more: object) -> None:
    """Print a figure as the ratio of the limit's time to ours: 1 means as fast as the limit."""
    ratio = limit_s / seconds
    line = {"name": name, "ratio": round(ratio, 3), "bar": bar, "holds": ratio >= bar, **more}
    print(json.dumps(line), flush=True)
