"""Usage entries to totals as protocol/spec/usage.md describes it, over plain JSON values.

An entry at a time and a chip at a time, without state between calls: slow and obvious, a second opinion. It
shares no code with us.
"""

from dataclasses import dataclass, replace
from typing import Any

SUMS = [
    "energy_mj",
    "busy_us",
    "elapsed_mcycles",
    "active_mcycles",
    "tensor_mcycles",
    "hmma_mcycles",
    "imma_mcycles",
    "dmma_mcycles",
    "fp64_mcycles",
    "fp32_mcycles",
    "fp16_mcycles",
    "dram_busy_us",
    "nvlink_tx_kib",
    "nvlink_rx_kib",
    "pcie_tx_kib",
    "pcie_rx_kib",
    "throttled_us",
]
MAXIMA = ["memory_mib_max", "clock_mhz_max"]
FIELDS = SUMS + MAXIMA
MAX_INT = 2**53 - 1
SHARED = 2**30
HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Point:
    """How far a chip's time is accounted for."""

    boots: int
    mono_us: int
    time_us: int
    inventory_seq: int


class NaiveFold:
    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.rows: dict[tuple[str, int, str, int, int], dict[str, int | None]] = {}
        self.gaps: list[dict[str, Any]] = []
        self.points: dict[str, Point] = {}
        self.present: list[str] = []
        self.retired: set[str] = set()
        self.inventory_seq = 0
        self.causes: dict[str, str] = {}

    def add(self, entry: dict[str, Any]) -> None:
        body = entry["body"]
        if entry["type"] == "inventory":
            for chip in self.retired:
                del self.points[chip]
                self.causes.pop(chip, None)
            self.retired = set()
            self.present = [chip["uuid"] for chip in body["chips"]]
            self.inventory_seq = entry["seq"]
            for chip in self.present:
                here = Point(entry["boots"], entry["mono_us"], entry["time_us"], entry["seq"])
                self.points.setdefault(chip, here)
        elif entry["type"] == "retired":
            named = list(self.points) if body["chips"] is None else body["chips"]
            for chip in named:
                if chip not in self.points or chip in self.retired:
                    continue
                self.gap(chip, entry["boots"], entry["mono_us"], entry["time_us"])
                if chip in self.present:
                    self.retired.add(chip)
                    moved = {"boots": entry["boots"], "mono_us": entry["mono_us"], "time_us": entry["time_us"]}
                    self.points[chip] = replace(self.points[chip], **moved)
                else:
                    del self.points[chip]
                    self.causes.pop(chip, None)
        elif entry["type"] == "gap":
            named = self.present if body["chips"] is None else [self.present[chip] for chip in body["chips"]]
            self.causes |= dict.fromkeys(named, body["cause"])
        elif entry["type"] in ("paused", "shutdown"):
            self.causes |= dict.fromkeys(self.present, entry["type"])
        elif entry["type"] == "usage":
            span = body["to_us"] - body["from_us"]
            for at, chip in enumerate(self.present):
                if body["samples"][at]:
                    self.retired.discard(chip)
                if chip not in self.retired:
                    self.gap(chip, entry["boots"], body["mono_from_us"], body["from_us"])
                self.points[chip] = Point(
                    entry["boots"], body["mono_from_us"] + span, body["to_us"], self.inventory_seq
                )
                self.causes.pop(chip, None)
                self.usage(chip, at, span, body)

    def gap(self, chip: str, boots: int, mono_us: int, time_us: int) -> None:
        point = self.points[chip]
        end = point.time_us + (mono_us - point.mono_us) if boots == point.boots else None
        if end is None:
            end = max(time_us, point.time_us + mono_us)
        if end > point.time_us:
            self.gaps.append(
                {
                    "log": self.origin,
                    "chip": chip,
                    "from_us": point.time_us,
                    "to_us": end,
                    "inventory_seq": point.inventory_seq,
                    "cause": self.causes.get(chip),
                }
            )

    def usage(self, chip: str, at: int, span: int, body: dict[str, Any]) -> None:
        hour_s = body["from_us"] // HOUR_US * 3600
        if body["samples"][at] == 0:
            nothing: dict[str, int | None] = dict.fromkeys(FIELDS)
            self.row((chip, hour_s, "gap", self.inventory_seq, 2 ** len(FIELDS) - 1), span, 0, nothing)
            return
        shares = [share for share in body["workloads"] if share["chip"] == at]
        basis = sum(2**bit for bit, field in enumerate(FIELDS) if body[field][at] is None)
        if len(shares) > 1 or any(share["class"] == "shared" for share in shares):
            basis += SHARED
        rest = 1_000_000 - sum(share["share_ppm"] for share in shares)
        low = 0
        for workload, ppm in [(share["id"], share["share_ppm"]) for share in shares] + [("unattributed", rest)]:
            if ppm == 0:
                continue
            high = low + ppm

            def part(x: int, low: int = low, high: int = high) -> int:
                return x * high // 1_000_000 - x * low // 1_000_000

            values = {}
            for field in FIELDS:
                value = body[field][at]
                values[field] = part(value) if value is not None and field in SUMS else value
            key = (chip, hour_s, workload, self.inventory_seq, basis)
            self.row(key, part(span), part(body["samples"][at]), values)
            low = high

    def row(
        self, key: tuple[str, int, str, int, int], time_us: int, samples: int, values: dict[str, int | None]
    ) -> None:
        new = {"time_us": time_us, "samples": samples, **values}
        old = self.rows.get(key)
        if old is None:
            self.rows[key] = new
            return
        for field, value in new.items():
            have = old[field]
            if value is not None and have is not None:
                old[field] = max(have, value) if field in MAXIMA else have + value

    def totals(self) -> dict[str, Any]:
        """The content of totals.json for this one log."""
        rows = []
        for (chip, hour_s, workload, inventory_seq, basis), values in sorted(self.rows.items()):
            row: dict[str, Any] = {
                "log": self.origin,
                "chip": chip,
                "hour_s": hour_s,
                "workload": workload,
                "inventory_seq": inventory_seq,
                "basis": basis,
            }
            row |= {field: value if value is None else min(value, MAX_INT) for field, value in values.items()}
            rows.append(row)
        gaps = sorted(self.gaps, key=lambda g: (g["chip"], g["from_us"], g["to_us"], g["inventory_seq"]))
        return {"v": 1, "gaps": gaps, "usage_hour": rows}


def fold(origin: str, entries: list[dict[str, Any]]) -> NaiveFold:
    run = NaiveFold(origin)
    for entry in entries:
        run.add(entry)
    return run
