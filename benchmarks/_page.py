"""Fills the table of docs/benchmarks.md: python benchmarks/_page.py build/bench.jsonl, as `make bench` printed it."""

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
_OWN = ("name", "ratio", "value", "unit", "bar", "holds", "durability")


def table(lines: list[dict[str, Any]]) -> str:
    """A row a figure."""
    rows = ["| Figure | Measured | Bar | Holds | Durability | Beside it |", "|---|---|---|---|---|---|"]
    for line in lines:
        below = "value" in line
        measured = f"{line['value']} {line['unit']}" if below else f"{line['ratio']} of the limit"
        bar = "none" if line["bar"] is None else f"< {line['bar']}" if below else f">= {line['bar']}"
        beside = ", ".join(f"{name} {_text(value)}" for name, value in line.items() if name not in _OWN)
        holds = "" if line["bar"] is None else "yes" if line["holds"] else "**no**"
        rows.append(f"| {line['name']} | {measured} | {bar} | {holds} | {line.get('durability', '')} | {beside} |")
    return "\n".join(rows)


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def machine() -> str:
    """What it ran on, in general words, with what an fdatasync costs there."""
    model = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return (
        f"{os.cpu_count()} cores ({model}), Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}; an fdatasync of 4 KiB takes {_fdatasync_ms():.2f} ms."
    )


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _fdatasync_ms(times: int = 100) -> float:
    """The median."""
    spent = []
    with tempfile.TemporaryFile() as file:
        for _ in range(times):
            file.write(bytes(4096))
            file.flush()
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            spent.append(time.perf_counter() - start)
    return sorted(spent)[times // 2] * 1000


def fill(page: str, results: str) -> str:
    """The page with ``results`` between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"keyturn: error: {PAGE} has no markers")
    return f"{before}{BEGIN}\n\n{results}\n\n{END}{after}"


def main() -> None:
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines() if line.startswith("{")]
    PAGE.write_text(fill(PAGE.read_text(), f"{machine()}\n\n{table(lines)}"))


if __name__ == "__main__":
    main()
