"""Writes the recordings and ground truths of this folder. The same input gives the same bytes.

    python hardware_fixtures/make.py [--traces ../shared/traces] [--out hardware_fixtures]

Needs keyturn_protocol on the path. `h100_pcie_training` is the measured trace in the recording format; every
folder called `derived_…` is computed from it here, in the open, and says so. No number is drawn at random.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from keyturn_protocol.canonical import encode
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import Share

HERE = Path(__file__).resolve().parent
TRACE = "h100_pcie_training"
SMS = 114
K_BF16 = 4096
"""Dense BF16 FLOP per SM and clock of GH100; protocol/keyturn_protocol/chips.toml has the source."""
PPM = 1_000_000
DRIVER = "580.126.20"
PERIOD_US = 100_000
RAW_PER_SECOND = 10

READING = (
    "energy_mj power_mw busy_ppm sm_clock_mhz memory_mib throttled_ppm sm_active_ppm tensor_ppm hmma_ppm imma_ppm "
    "dmma_ppm fp64_ppm fp32_ppm fp16_ppm dram_ppm nvlink_tx_kib nvlink_rx_kib pcie_tx_kib pcie_rx_kib elapsed_kcycles "
    "active_kcycles tensor_kcycles hmma_kcycles imma_kcycles dmma_kcycles fp64_kcycles fp32_kcycles fp16_kcycles"
).split()
"""Every field of a reading; what a source lacks is null."""

Fields = dict[str, int | None]
Folder = tuple[list[Any], dict[str, Any]]
"""The lines of a recording, and its ground truth."""


@dataclass(frozen=True)
class Raw:
    """One line of the measured trace as integers."""

    t_us: int
    busy_ppm: int
    sm_active_ppm: int | None
    tensor_ppm: int | None
    clock_mhz: int
    power_mw: int


def exact(text: str, scale: int) -> int:
    """`text` times `scale`; refuses to round."""
    value = Decimal(text) * scale
    if value != int(value):
        raise ValueError(f"{text} x {scale} is no integer")
    return int(value)


def read_trace(traces: Path) -> tuple[list[Raw], dict[str, Any]]:
    with (traces / TRACE / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    raw = [
        Raw(
            t_us=exact(r["t_ms"], 1_000),
            busy_ppm=exact(r["gpu_util_percent"], 10_000),
            sm_active_ppm=exact(r["sm_active"], PPM) if r["sm_active"] else None,
            tensor_ppm=exact(r["tensor_active"], PPM) if r["tensor_active"] else None,
            clock_mhz=exact(r["sm_clock_mhz"], 1),
            power_mw=exact(r["power_w"], 1_000),
        )
        for r in rows
    ]
    truth: dict[str, Any] = json.loads((traces / TRACE / "ground_truth.json").read_text(), parse_float=Decimal)
    return raw, truth


def chip(number: int, not_measured: dict[str, str], measured_by: dict[str, str]) -> Chip:
    """The source names no uuid: these are visibly made up."""
    return Chip(
        uuid=f"GPU-00000000-0000-4000-8000-{number:012x}",
        name="NVIDIA H100 PCIe",
        role="gpu",
        parent=None,
        sms=SMS,
        memory_mib=None,
        clock_max_mhz=1755,
        power_limit_mw=350_000,
        pci_bus_id=None,
        nvlink_links=None,
        fabric=None,
        measured_by=measured_by,
        not_measured=not_measured,
    )


POWER = {"energy_mj": "power_x_time"}
COUNTER = {"energy_mj": "total_energy"}
CLOCK = {"busy_us": "utilization", "elapsed_mcycles": "sm_clock_x_time", "clock_mhz_max": "sm_clock"}
RATIOS = {"active_mcycles": "ratio_x_sm_clock", "tensor_mcycles": "ratio_x_sm_clock"}
ABSENT = (
    "hmma_mcycles imma_mcycles dmma_mcycles fp64_mcycles fp32_mcycles fp16_mcycles dram_busy_us nvlink_tx_kib "
    "nvlink_rx_kib pcie_tx_kib pcie_rx_kib throttled_us memory_mib_max"
).split()


def absent(*more: str) -> dict[str, str]:
    return dict.fromkeys((*ABSENT, *more), "not in the source")


def header(about: str, chips: list[Chip], workloads: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "v": 1,
        "type": "recording",
        "about": about,
        "chips": chips,
        "driver_version": DRIVER,
        "nvml_version": None,
        "cuda_version": None,
        "workloads": workloads,
    }


def workload(id_: str, class_: str, dtype: str | None, chips: list[int]) -> dict[str, Any]:
    return {"id": id_, "class": class_, "declared_dtype": dtype, "chips": chips}


def sample(t_us: int, chips: list[Fields | None], shares: list[Share], error: str | None = None) -> dict[str, Any]:
    full = [c if c is None else dict.fromkeys(READING) | c for c in chips]
    return {"t_us": t_us, "chips": full, "error": error, "shares": shares}


def share(chip_: int, id_: str, class_: Any, ppm: int) -> Share:
    return Share(chip=chip_, id=id_, class_=class_, share_ppm=ppm)


def rounded(numerator: int, denominator: int) -> int:
    """To the nearest integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


# --- the measured trace -----------------------------------------------------------------------------------------


def reading_of(raw: Raw, *, activity: bool = True) -> Fields:
    fields: Fields = {"busy_ppm": raw.busy_ppm, "sm_clock_mhz": raw.clock_mhz, "power_mw": raw.power_mw}
    if activity:
        fields |= {"sm_active_ppm": raw.sm_active_ppm, "tensor_ppm": raw.tensor_ppm}
    return fields


def executed(run: dict[str, Any]) -> int:
    """FLOP that the program counted: a whole number of tokens times FLOP per token."""
    tokens = Decimal(run["tokens_per_s"]) * Decimal(run["elapsed_s"])
    if abs(tokens - round(tokens)) > Decimal("0.001"):
        raise ValueError(f"{tokens} is no number of tokens")
    return round(tokens) * int(run["executed_flop_per_token"])


def measured_truth(raw: list[Raw], truth: dict[str, Any]) -> dict[str, Any]:
    trace = truth["trace"]
    done = executed(trace)
    # ppm x MHz x µs = 10^-6 cycles
    cycles = sum((r.tensor_ppm or 0) * r.clock_mhz for r in raw) * PERIOD_US
    metered = cycles * SMS * K_BF16 // PPM
    covered_us = sum(r.tensor_ppm is not None for r in raw) * PERIOD_US
    elapsed_us = int(trace["elapsed_s"] * PPM)
    first = {
        "elapsed_us": elapsed_us,
        "covered_us": covered_us,
        "executed_flop": str(done),
        "metered_flop": str(metered),
        "energy_mj": exact(str(trace["energy_j"]), 1_000),
        "executed_per_metered_ppm": done * PPM // metered,
        "executed_per_metered_by_rate_ppm": done * PPM * covered_us // (metered * elapsed_us),
    }
    means = []
    for run in truth["summaries"]:
        done = executed(run)
        us = int(run["elapsed_s"] * PPM)
        khz = int(run["mean_sm_clock_mhz"] * 1_000)
        tensor, active = (int(run[f"mean_{of}_active"] * PPM) for of in ("tensor", "sm"))
        metered = tensor * khz * us * SMS * K_BF16 // (1_000 * PPM)
        means.append(
            {
                "elapsed_us": us,
                "mean_sm_active_ppm": active,
                "mean_tensor_ppm": tensor,
                "mean_sm_clock_khz": khz,
                "energy_mj": exact(str(run["energy_j"]), 1_000),
                "executed_flop": str(done),
                "metered_flop": str(metered),
                "executed_per_metered_ppm": done * PPM // metered,
            }
        )
    return {
        "about": "executed_flop: counted by the program. metered_flop: tensor-active cycles x 114 SMs x 4096 (bf16)",
        "derived": False,
        "trace": first,
        "summaries": means,
    }


def h100_pcie_training(raw: list[Raw], truth: dict[str, Any]) -> Folder:
    id_ = "slurm:fixture:1"
    about = (
        "measured: one NVIDIA H100 PCIe training a transformer in bf16, 15 s at 10 Hz, from nikosvil/flopcheck (MIT); "
        "the chip's uuid and the workload's id are made up"
    )
    head = header(about, [chip(1, absent(), POWER | CLOCK | RATIOS)], [workload(id_, "exclusive", "bf16", [0])])
    lines = [
        sample(r.t_us, [reading_of(r)], [share(0, id_, "exclusive", PPM)] if r.t_us else []) for r in raw
    ]
    return [head, *lines], measured_truth(raw, truth)


# --- derived: the measured trace, repeated, at one sample a second ----------------------------------------------


class Gpu:
    """The measured trace played in a circle, from `offset`, with counters that only grow.

    The first line of the trace has no activity; the circle is made of the other 149. Ten lines become one
    sample: ppm are averages weighted with the clock, so that ppm x clock is the mean of the products.
    Clock and counters carry what doesn't fill a unit, so that nothing drifts.
    """

    def __init__(self, raw: list[Raw], offset: int, energy_mj: int) -> None:
        self.circle = raw[1:]
        self.at = offset
        self.energy_uj = energy_mj * 1_000
        self.elapsed = self.active = self.tensor = 0  # 10^-6 kcycles
        self.carry = 0

    def first(self, *, counters: bool) -> Fields:
        now = self.circle[self.at % len(self.circle)]
        return self._with_counters({"power_mw": now.power_mw, "sm_clock_mhz": now.clock_mhz}, counters)

    def second(self, *, counters: bool) -> Fields:
        ten = [self.circle[(self.at + i) % len(self.circle)] for i in range(RAW_PER_SECOND)]
        self.at += RAW_PER_SECOND
        clocks = sum(r.clock_mhz for r in ten)
        active = sum((r.sm_active_ppm or 0) * r.clock_mhz for r in ten)
        tensor = sum((r.tensor_ppm or 0) * r.clock_mhz for r in ten)
        power = sum(r.power_mw for r in ten)
        self.energy_uj += power * PERIOD_US // 1_000  # mW x µs = 10^-3 µJ
        self.elapsed += clocks * PPM * (PERIOD_US // 1_000)
        self.active += active * (PERIOD_US // 1_000)
        self.tensor += tensor * (PERIOD_US // 1_000)
        clock, self.carry = divmod(clocks + self.carry, RAW_PER_SECOND)
        fields: Fields = {
            "busy_ppm": sum(r.busy_ppm for r in ten) // RAW_PER_SECOND,
            "power_mw": rounded(power, RAW_PER_SECOND),
            "sm_clock_mhz": clock,
            "sm_active_ppm": rounded(active, clock * RAW_PER_SECOND),
            "tensor_ppm": rounded(tensor, clock * RAW_PER_SECOND),
        }
        return self._with_counters(fields, counters)

    def _with_counters(self, fields: Fields, counters: bool) -> Fields:
        fields["energy_mj"] = self.energy_uj // 1_000
        if counters:
            fields |= {
                "elapsed_kcycles": self.elapsed // PPM,
                "active_kcycles": self.active // PPM,
                "tensor_kcycles": self.tensor // PPM,
            }
        return fields

    def truth(self, start_mj: int = 0) -> dict[str, Any]:
        return {
            "elapsed_kcycles": self.elapsed // PPM,
            "active_kcycles": self.active // PPM,
            "tensor_kcycles": self.tensor // PPM,
            "metered_flop": str(self.tensor * SMS * K_BF16 // 1_000),
            "energy_mj": self.energy_uj // 1_000 - start_mj,
        }


def derived_truth(about: str, chips: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"about": f"derived, not measured: {about}", "derived": True, "chips": chips, **more}


METERED = (
    "tensor-active cycles of the repeated trace, and those x 114 SMs x 4096 (bf16); "
    "nobody counted what was executed"
)


def derived_8gpu_host(raw: list[Raw], _: dict[str, Any]) -> Folder:
    """Eight GPUs, GPU g starting 1.7 x g s into the trace; with cycle and energy counters."""
    seconds, id_ = 240, "slurm:fixture:4100"
    gpus = [Gpu(raw, 17 * g, 1_000_000 * (g + 1)) for g in range(8)]
    measured_by = COUNTER | CLOCK | {f"{of}_mcycles": "cycle_counter" for of in ("elapsed", "active", "tensor")}
    about = (
        "derived, not measured: a host of eight GPUs that all train, made of the trace in h100_pcie_training, "
        "repeated, with an offset of its own for each GPU, averaged over 1 s"
    )
    head = header(
        about,
        [chip(0x800 + g, absent(), measured_by) for g in range(8)],
        [workload(id_, "exclusive", "bf16", list(range(8)))],
    )
    lines = [sample(0, [g.first(counters=True) for g in gpus], [])]
    shares = [share(g, id_, "exclusive", PPM) for g in range(8)]
    for s in range(1, seconds + 1):
        lines.append(sample(s * PPM, [g.second(counters=True) for g in gpus], shares))
    chips = [gpu.truth(1_000_000 * (g + 1)) for g, gpu in enumerate(gpus)]
    return [head, *lines], derived_truth(METERED, chips, duration_us=seconds * PPM)


def derived_idle_host(_: list[Raw], __: dict[str, Any]) -> Folder:
    """Two GPUs that do nothing for five minutes. All values are chosen: see SOURCE.md."""
    seconds, power_mw, clock_mhz = 300, (48_000, 51_000), 345
    head = header(
        "derived, not measured: two idle GPUs; power and clock are chosen, activity is 0",
        [chip(0x1D00 + g, absent(), COUNTER | CLOCK | RATIOS) for g in range(2)],
        [],
    )

    def idle(gpu: int, s: int) -> Fields:
        now: Fields = {"power_mw": power_mw[gpu], "sm_clock_mhz": clock_mhz, "energy_mj": power_mw[gpu] * s}
        return now | dict.fromkeys(("busy_ppm", "sm_active_ppm", "tensor_ppm"), 0) if s else now

    lines = [sample(s * PPM, [idle(0, s), idle(1, s)], []) for s in range(seconds + 1)]
    chips = [
        {
            "elapsed_kcycles": clock_mhz * 1_000 * seconds,
            "active_kcycles": 0,
            "tensor_kcycles": 0,
            "metered_flop": "0",
            "energy_mj": power_mw[g] * seconds,
        }
        for g in range(2)
    ]
    return [head, *lines], derived_truth("chosen values, added up", chips, duration_us=seconds * PPM)


def derived_shared_gpu(raw: list[Raw], _: dict[str, Any]) -> Folder:
    """One GPU, two workloads; the first one's share goes 20 % … 60 % … 20 % a minute, and each minute's last
    ten seconds leave 5 % to nobody."""
    seconds = 240
    ids = ("k8s:00000000-0000-4000-8000-00000000000a", "k8s:00000000-0000-4000-8000-00000000000b")
    gpu = Gpu(raw, 0, 2_000_000)
    head = header(
        "derived, not measured: one GPU shared by two workloads; the trace of h100_pcie_training repeated and "
        "averaged over 1 s, the shares are chosen",
        [chip(0x5A00, absent(), COUNTER | CLOCK | RATIOS)],
        [workload(ids[0], "shared", "bf16", [0]), workload(ids[1], "shared", None, [0])],
    )
    lines = [sample(0, [gpu.first(counters=False)], [])]
    for s in range(1, seconds + 1):
        minute = s % 60
        first = 200_000 + 400_000 * min(minute, 60 - minute) // 30
        second = PPM - first - (50_000 if minute >= 50 else 0)
        shares = [share(0, ids[0], "shared", first), share(0, ids[1], "shared", second)]
        lines.append(sample(s * PPM, [gpu.second(counters=False)], shares))
    return [head, *lines], derived_truth(METERED, [gpu.truth(2_000_000)], duration_us=seconds * PPM)


def derived_driver_loss(raw: list[Raw], _: dict[str, Any]) -> Folder:
    """Two GPUs; the driver is gone from second 121 to second 270, and the energy counters start again from 0."""
    before, lost, after = 120, 150, 120
    ids = ("slurm:fixture:4200", "slurm:fixture:4201")
    start = (700_000_000, 710_000_000)
    head = header(
        "derived, not measured: two training GPUs whose driver is lost for 150 s; the trace of h100_pcie_training "
        "repeated and averaged over 1 s; after the driver is back its energy counters start from 0",
        [chip(0xD100 + g, absent(), COUNTER | CLOCK | RATIOS) for g in range(2)],
        [workload(id_, "exclusive", "bf16", [0, 1]) for id_ in ids],
    )
    lines: list[Any] = []
    chips: list[dict[str, Any]] = []
    for part, (begin, seconds, id_) in enumerate(((0, before, ids[0]), (before + lost, after, ids[1]))):
        gpus = [Gpu(raw, 31 * g + 7 * part, 0 if part else start[g]) for g in range(2)]
        # Where the driver comes back, nobody saw who had the chips before.
        lines.append(sample((begin + part) * PPM, [g.first(counters=False) for g in gpus], []))
        shares = [share(g, id_, "exclusive", PPM) for g in range(2)]
        for s in range(1, seconds + 1):
            lines.append(sample((begin + part + s) * PPM, [g.second(counters=False) for g in gpus], shares))
        if not part:
            lines += [sample((begin + seconds + s) * PPM, [None, None], [], "driver_lost") for s in range(1, lost + 1)]
        chips += [
            {"chip": g, "workload": id_, **gpu.truth(0 if part else start[g])} for g, gpu in enumerate(gpus)
        ]
    return [head, *lines], derived_truth(
        METERED,
        chips,
        duration_us=(before + lost + 1 + after) * PPM,
        lost_from_us=before * PPM,
        lost_to_us=(before + lost + 1) * PPM,
    )


def derived_without_gpm(raw: list[Raw], truth: dict[str, Any]) -> Folder:
    """The measured trace without its activity columns, as where GPM answers NO_PERMISSION."""
    id_ = "slurm:fixture:1"
    head = header(
        "derived by leaving out: the trace of h100_pcie_training without SM and tensor activity, as where the "
        "driver refuses GPM; utilization, clock and power are as measured",
        [chip(0x6B00, absent("active_mcycles", "tensor_mcycles"), POWER | CLOCK)],
        [workload(id_, "exclusive", "bf16", [0])],
    )
    lines = [
        sample(r.t_us, [reading_of(r, activity=False)], [share(0, id_, "exclusive", PPM)] if r.t_us else [])
        for r in raw
    ]
    return [head, *lines], {**measured_truth(raw, truth), "derived": True, "summaries": []}


FOLDERS: tuple[Callable[[list[Raw], dict[str, Any]], Folder], ...] = (
    h100_pcie_training,
    derived_8gpu_host,
    derived_idle_host,
    derived_shared_gpu,
    derived_driver_loss,
    derived_without_gpm,
)


def make(traces: Path) -> Iterator[tuple[str, bytes]]:
    """(path below the folder of fixtures, bytes) of every generated file."""
    raw, truth = read_trace(traces)
    for folder in FOLDERS:
        lines, known = folder(raw, truth)
        yield f"{folder.__name__}/recording.jsonl", b"".join(encode(line) + b"\n" for line in lines)
        yield f"{folder.__name__}/ground_truth.json", json.dumps(known, indent=1).encode() + b"\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=HERE.parents[1] / "shared" / "traces")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    for name, data in make(args.traces):
        path = args.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{path}: {len(data)} bytes")


if __name__ == "__main__":
    main()
