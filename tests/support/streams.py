"""Random but valid logs, as plain JSON values: what an agent could have written in a bad week."""

import json
from hashlib import sha256
from random import Random
from typing import Any

from tests.support.naive_fold import FIELDS, HOUR_US, MAX_INT, MAXIMA

ORIGIN = "keyturn.example.org/node/a1b5b1ea9b30e9ad8f6b1ce1b1e7a0f0/1"
START_US = 1_790_000_000_000_000
CHIPS = [f"GPU-{i:02d}" for i in range(6)]
WORKLOADS = ["docker:c0ffee", "run:aurora-2", "slurm:alps:4711", "user:1000"]


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def leaf(data: bytes) -> str:
    return sha256(b"\0" + data).hexdigest()


def chip(uuid: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": "NVIDIA H100 PCIe",
        "role": "gpu",
        "parent": None,
        "sms": 114,
        "memory_mib": 81559,
        "clock_max_mhz": 1755,
        "power_limit_mw": 350000,
        "pci_bus_id": None,
        "nvlink_links": None,
        "fabric": None,
        "measured_by": {},
        "not_measured": {},
    }


class Stream:
    """Writes entries that follow from each other, and keeps both clocks.

    :param steady: the wall clock never steps, so that it and the monotonic clock tell the same story.
    """

    def __init__(self, random: Random, *, steady: bool = False, retire: bool = True, origin: str = ORIGIN) -> None:
        self.random, self.steady, self.retire, self.origin = random, steady, retire, origin
        self.entries: list[dict[str, Any]] = []
        self.lines: list[bytes] = []
        self.prev = leaf(origin.encode())
        self.boots, self.mono_us, self.time_us = 1, 5_000_000, START_US + random.randrange(HOUR_US)
        self.covered_us = 0
        self.present: list[str] = []
        self.inventory_mono_us = 0
        self.null: dict[str, set[str]] = {}

    def add(self, kind: str, body: dict[str, Any]) -> None:
        entry = {
            "v": 1,
            "seq": len(self.entries),
            "prev": self.prev,
            "boot_id": f"{self.boots:08x}-0000-4000-8000-000000000000",
            "boots": self.boots,
            "mono_us": self.mono_us,
            "time_us": self.time_us,
            "type": kind,
            "body": body,
        }
        line = canonical(entry)
        self.entries.append(entry)
        self.lines.append(line)
        self.prev = leaf(line)

    def pass_time(self, span_us: int) -> None:
        self.mono_us += span_us
        self.time_us += span_us

    def genesis(self, public_key: str) -> None:
        self.add(
            "genesis",
            {
                "agent_version": "0.1.0",
                "agent_sha256": "00" * 32,
                "source": "replay",
                "public_key": public_key,
                "trust_sha256": None,
                "root_sha256": None,
                "previous": None,
            },
        )

    def inventory(self) -> None:
        self.present = self.random.sample(CHIPS, self.random.randint(0 if self.present else 1, 4))
        self.inventory_mono_us = self.mono_us
        self.add(
            "inventory",
            {
                "chips": [chip(uuid) for uuid in self.present],
                "driver_version": None,
                "nvml_version": None,
                "cuda_version": None,
                "gate": "none",
                "pci": None,
            },
        )

    def usage(self) -> None:
        random = self.random
        if random.random() < 0.3:
            self.pass_time(random.choice([1, 999_999, 10_000_000, HOUR_US]))
        from_mono = self.mono_us
        if random.random() < 0.2:
            # An interval may begin in the past, if nothing covers it yet.
            earliest = max(self.covered_us, self.inventory_mono_us)
            from_mono = random.randint(earliest, self.mono_us)
        from_us = self.time_us - (self.mono_us - from_mono)
        left = HOUR_US - from_us % HOUR_US
        span = min(left, random.choice([1, 7, 10_000_000, 10_000_000, 10_000_000, left, random.randint(1, HOUR_US)]))
        if from_mono + span > self.mono_us:
            self.pass_time(from_mono + span - self.mono_us)
        self.covered_us = from_mono + span
        body: dict[str, Any] = {
            "from_us": from_us,
            "to_us": from_us + span,
            "mono_from_us": from_mono,
            "samples": [],
            "workloads": [],
        } | {field: [] for field in FIELDS}
        for at, uuid in enumerate(self.present):
            self.columns(body, at, uuid)
        if random.random() < 0.3:
            self.pass_time(random.randrange(2_000_000))
        self.add("usage", body)

    def columns(self, body: dict[str, Any], at: int, uuid: str) -> None:
        random = self.random
        null = self.null.setdefault(uuid, {f for f in FIELDS if random.random() < 0.3})
        if random.random() < 0.1:
            null ^= {random.choice(FIELDS)}
        samples = 0 if random.random() < 0.1 else random.choice([1, 10, 10, 10, 3600])
        body["samples"].append(samples)
        top = MAX_INT if random.random() < 0.01 else random.choice([1, 10, 10**6, 10**12])
        for field in FIELDS:
            value = random.randint(0, 100_000 if field in MAXIMA else top)
            body[field].append(None if samples == 0 or field in null else value)
        if samples == 0:
            return
        case = random.random()
        if case < 0.2:
            return
        if case < 0.6:
            body["workloads"].append(share(at, WORKLOADS[at % 2], "exclusive", 1_000_000))
            return
        left = 1_000_000
        for workload in sorted(random.sample(WORKLOADS, random.randint(1, 4))):
            ppm = random.choice([0, 1, left // 3, left, random.randint(0, left)])
            ppm = min(ppm, left)
            left -= ppm
            body["workloads"].append(share(at, workload, random.choice(["shared", "shared", "exclusive", "mig"]), ppm))

    def reboot(self) -> None:
        off_us = self.random.choice([1_000_000, 60_000_000, 2 * HOUR_US])
        self.boots += self.random.randint(1, 3)
        self.time_us += off_us
        self.mono_us, self.covered_us, self.inventory_mono_us = 1_000_000, 0, 0
        self.time_us += self.mono_us
        if self.random.random() < 0.8:
            self.inventory()

    def clock_step(self) -> None:
        step = self.random.choice([-5 * HOUR_US, -3, 0, 17, HOUR_US])
        before, self.time_us = self.time_us, self.time_us + step
        self.add("clock_step", {"before_us": before, "after_us": self.time_us, "step_us": step})

    def explanation(self) -> None:
        """An entry that measures nothing, but may say why nothing is measured."""
        now = self.time_us
        bodies: dict[str, dict[str, Any]] = {
            "heartbeat": {"verifier_checkpoint": None},
            "gap": {"chips": None, "from_us": now, "to_us": now, "cause": "driver_lost", "detail": None},
            "paused": {"for_us": 60_000_000, "reason": "firmware"},
            "shutdown": {"reason": "maintenance"},
        }
        kind = self.random.choice([*bodies])
        self.add(kind, bodies[kind])

    def step(self) -> None:
        case = self.random.random()
        if case < 0.65:
            self.usage()
        elif case < 0.75:
            self.pass_time(self.random.randrange(20_000_000))
            self.inventory()
        elif case < 0.80:
            self.pass_time(self.random.randrange(20_000_000))
            self.explanation()
        elif case < 0.85:
            self.reboot()
        elif case < 0.92 and not self.steady:
            self.clock_step()
        elif self.retire:
            self.pass_time(self.random.randrange(20_000_000))
            chips = sorted(self.random.sample(CHIPS, self.random.randint(0, 3)))
            self.add("retired", {"chips": chips, "reason": "sold"})

    def end(self) -> None:
        """Retire the host: nothing may follow."""
        self.add("retired", {"chips": None, "reason": "scrapped"})


def share(chip: int, workload: str, kind: str, ppm: int) -> dict[str, Any]:
    return {"chip": chip, "id": workload, "class": kind, "share_ppm": ppm}


def stream(
    random: Random, steps: int, *, public_key: str = "00" * 32, steady: bool = False, retire: bool = True
) -> Stream:
    run = Stream(random, steady=steady, retire=retire)
    run.genesis(public_key)
    run.inventory()
    for _ in range(steps):
        run.step()
    if retire and random.random() < 0.2:
        run.end()
    return run
