"""What a log charges as protocol/spec/start-switch.md describes it, over plain JSON values, for whole H100 PCIe cards.

An entry, a chip and a rule at a time: a second opinion. It shares no code with us.
"""

from typing import Any
from urllib.parse import quote

Json = dict[str, Any]
HMMA = {"tf32": 2048, "bf16": 4096, "fp16": 4096, "fp8": 8192}
DMMA = {"fp64_tensor": 256}
VECTOR = {"fp64_mcycles": 128, "fp32_mcycles": 512, "fp16_mcycles": 512}
"""An FMA pipe also executes FP16x2."""
ISSUE, SMS, CLOCK_MHZ, FLOP_PER_JOULE = 512, 114, 1755, 14_325_000_000_000
PEAK = (8192 + ISSUE) * CLOCK_MHZ * SMS
"""FLOP a µs."""
TERA = 10**12


def subject_of(lease: Json) -> str:
    if lease["run"] is not None:
        return str(lease["run"])
    name = lease["allowance"]
    return f"allowance/{name['kind']}/{quote(name['organisation'], safe='')}/{quote(name['lineage'] or '', safe='')}"


def measured(row: Json, time_us: int, dtypes: list[str]) -> int:
    """FLOP of one chip in one interval."""
    h, i, d = row["hmma_mcycles"], row["imma_mcycles"], row["dmma_mcycles"]
    allowed = set(dtypes)
    if (h and not allowed & HMMA.keys()) or (d and not allowed & DMMA.keys()) or (i and not allowed & {"int8", "fp8"}):
        allowed = set()
    tensor = {**HMMA, **DMMA}
    fastest = max((k for dtype, k in tensor.items() if dtype in allowed), default=8192)
    of_hmma = max((k for dtype, k in HMMA.items() if dtype in allowed), default=8192)
    of_imma = 8192 if not allowed or "fp8" in allowed else 0
    active = row["active_mcycles"] if row["active_mcycles"] is not None else row["elapsed_mcycles"]
    active = time_us * CLOCK_MHZ if active is None else active * 10**6
    if all(row[name] is not None for name in VECTOR):
        vector = sum(row[name] * k for name, k in VECTOR.items()) * 10**6
    else:
        vector = active * ISSUE
    if None not in (h, i, d):
        rest = max(0, (row["tensor_mcycles"] or 0) - h - i - d)
        return int((h * of_hmma + d * 256 + i * of_imma + rest * fastest) * 10**6 + vector) * SMS
    if row["tensor_mcycles"] is not None:
        return int(row["tensor_mcycles"] * fastest * 10**6 + vector) * SMS
    most = int(active * fastest + vector) * SMS
    energy = row["energy_mj"]
    if energy is not None and energy * 100 >= time_us:  # 10 W
        most = min(most, -(-energy * FLOP_PER_JOULE // 1000))
    return most


class NaiveCharge:
    def __init__(self, leases: dict[str, Json]) -> None:
        self.leases = leases
        self.flop: dict[str, int] = {}
        self.inventory: list[str] = []
        self.asked: dict[str, tuple[int, int]] = {}
        self.boots = 0
        self.held: dict[str, Json] = {}
        """Subject → lease, end, and for each chip the point up to which it is charged."""

    def add(self, entry: Json) -> int | None:
        """What a lease entry should say."""
        body = entry["body"]
        if entry["boots"] != self.boots:
            self.reboot(entry)
        match entry["type"]:
            case "inventory":
                self.inventory = [chip["uuid"] for chip in body["chips"]]
            case "permit":
                self.asked[body["nonce"]] = (entry["boots"], entry["mono_us"])
            case "usage":
                for subject in self.held:
                    self.usage(subject, body)
            case "lease":
                return self.lease(body, entry)
        return None

    def charge(self, subject: str, flop: int) -> None:
        self.flop[subject] = self.flop.get(subject, 0) + flop

    def reboot(self, entry: Json) -> None:
        self.boots = entry["boots"]
        for subject, held in self.held.items():
            for mono_us, time_us in held["points"].values():
                left = max(0, held["ends"] - mono_us)
                passed = entry["time_us"] - entry["mono_us"] - time_us
                self.charge(subject, PEAK * (left if passed < 0 else min(left, passed)))
        self.held = {}

    def usage(self, subject: str, body: Json) -> None:
        held = self.held[subject]
        length = body["to_us"] - body["from_us"]
        for at, uuid in enumerate(self.inventory):
            if uuid not in held["points"]:
                continue
            mono_us, _ = held["points"][uuid]
            self.charge(subject, PEAK * max(0, min(body["mono_from_us"], held["ends"]) - mono_us))
            row = {
                name: column[at] for name, column in body.items() if isinstance(column, list) and name != "workloads"
            }
            read = body["samples"][at] and any(row[name] is not None for name in (*VECTOR, *COUNTERS))
            self.charge(subject, measured(row, length, held["dtypes"]) if read else PEAK * length)
            held["points"][uuid] = (max(mono_us, body["mono_from_us"] + length), body["to_us"])

    def lease(self, body: Json, entry: Json) -> int:
        for gap in body["gaps"]:
            for subject, held in self.held.items():
                point = held["points"].get(gap["chip"])
                if point and point[0] == gap["mono_from_us"]:
                    length = gap["mono_to_us"] - gap["mono_from_us"]
                    most = PEAK * max(0, min(gap["mono_to_us"], held["ends"]) - gap["mono_from_us"])
                    if gap["energy_mj"] * 100 >= length:
                        most = min(most, -(-gap["energy_mj"] * FLOP_PER_JOULE // 1000))
                    self.charge(subject, most)
                    held["points"][gap["chip"]] = (gap["mono_to_us"], point[1] + length)
        lease = self.leases.get(body["lease"])
        if lease is None:
            return 0
        subject = subject_of(lease)
        if body["event"] == "adopted":
            self.adopt(subject, lease, entry)
        elif body["event"] == "final" and subject in self.held:
            held = self.held.pop(subject)
            for mono_us, _ in held["points"].values():
                self.charge(subject, PEAK * max(0, min(entry["mono_us"], held["ends"]) - mono_us))
            if body["reason"] == "the compute of the lease is used up":
                self.flop[subject] = max(self.flop.get(subject, 0), lease["upto_tflop"] * 10**12)
        return self.flop.get(subject, 0)

    def adopt(self, subject: str, lease: Json, entry: Json) -> None:
        before = self.held.get(subject, {"points": {}, "ends": 0})
        points = {}
        for uuid, point in before["points"].items():
            if uuid in lease["chips"]:
                points[uuid] = point
            else:
                self.charge(subject, PEAK * max(0, min(entry["mono_us"], before["ends"]) - point[0]))
        for uuid in lease["chips"]:
            points.setdefault(uuid, (entry["mono_us"], entry["time_us"]))
        asked = self.asked.get(lease["nonce"], (0, 0))
        begin = asked[1] if asked[0] == entry["boots"] else entry["mono_us"]
        ends = begin + lease["ttl_s"] * 10**6
        self.held[subject] = {"points": points, "ends": ends, "dtypes": lease["dtypes"]}
        self.flop[subject] = max(self.flop.get(subject, 0), lease["charged_tflop"] * TERA)


COUNTERS = (
    *("energy_mj", "busy_us", "elapsed_mcycles", "active_mcycles"),
    *("tensor_mcycles", "hmma_mcycles", "imma_mcycles", "dmma_mcycles"),
)
