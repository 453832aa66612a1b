"""The recordings: made by the committed script, readable, and true where something is known."""

import importlib.util
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from keyturn_protocol.canonical import decode
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.flop import Estimate, estimate
from keyturn_protocol.usage import UsageRow
from tests.support.paths import REPO
from tests.support.rows import make_chip, make_row

FIXTURES = REPO / "hardware_fixtures"
FOLDERS = sorted(path.parent for path in FIXTURES.glob("*/recording.jsonl"))
DERIVED = [folder for folder in FOLDERS if folder.name.startswith("derived_")]
H100 = make_chip("NVIDIA H100 PCIe", sms=114, clock_max_mhz=1755)
Reading = dict[str, int | None]


def truth_of(folder: str) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((FIXTURES / folder / "ground_truth.json").read_text())
    return known


def lines_of(folder: str) -> list[Any]:
    data = (FIXTURES / folder / "recording.jsonl").read_bytes()
    return [decode(line, Any) for line in data.splitlines()]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hardware_fixtures_make", FIXTURES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def row_of(folder: str, chip: int = 0) -> UsageRow:
    """One row of a whole recording."""
    return row_over(lines_of(folder)[1:], chip)


def row_over(samples: list[Any], chip: int = 0) -> UsageRow:
    """One row, sample by sample: activity times clock times time, as the agent does it."""

    def integral(term: Callable[[Reading], int | None], unit: int) -> int | None:
        total = 0
        for before, after in pairwise(samples):
            if (value := term(after["chips"][chip])) is None:
                return None
            total += value * (after["t_us"] - before["t_us"])
        return total // unit

    def cycles(ppm: str) -> Callable[[Reading], int | None]:
        def term(reading: Reading) -> int | None:
            active, clock = reading[ppm], reading["sm_clock_mhz"]
            return None if active is None or clock is None else active * clock

        return term

    return make_row(
        samples[-1]["t_us"] - samples[0]["t_us"],
        elapsed_mcycles=integral(lambda r: r["sm_clock_mhz"], 10**6),
        active_mcycles=integral(cycles("sm_active_ppm"), 10**12),
        tensor_mcycles=integral(cycles("tensor_ppm"), 10**12),
        energy_mj=integral(lambda r: r["power_mw"], 10**6),
        busy_us=integral(lambda r: r["busy_ppm"], 10**6),
    )


def test_there_are_recordings():
    assert len(FOLDERS) >= 6
    assert len(DERIVED) == len(FOLDERS) - 1


def test_the_script_gives_the_same_bytes(shared_traces: Path):
    made = dict(generator().make(shared_traces))
    committed = {str(p.relative_to(FIXTURES)): p.read_bytes() for f in FOLDERS for p in f.glob("*.json*")}
    assert made.keys() == committed.keys()
    assert [name for name in made if made[name] != committed[name]] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_recording_is_canonical_small_and_in_order(folder: Path):
    assert (folder / "recording.jsonl").stat().st_size < 2 * 1024**2
    head, *samples = lines_of(folder.name)
    chips: list[Chip] = [
        decode(json.dumps(c, separators=(",", ":"), sort_keys=True).encode(), Chip) for c in head["chips"]
    ]
    assert head["type"] == "recording"
    assert samples[0]["t_us"] == 0
    times = [s["t_us"] for s in samples]
    assert times == sorted({*times})
    assert {len(s["chips"]) for s in samples} == {len(chips)}
    assert [chip.name for chip in chips if chip_table().lookup(chip) is None] == []


@pytest.mark.parametrize("folder", DERIVED, ids=lambda folder: folder.name)
def test_what_is_derived_says_so(folder: Path):
    assert lines_of(folder.name)[0]["about"].startswith("derived")
    assert "derived" in (folder / "SOURCE.md").read_text().splitlines()[0]
    assert truth_of(folder.name)["derived"] is True


def test_what_is_measured_is_told_apart():
    assert lines_of("h100_pcie_training")[0]["about"].startswith("measured")
    assert truth_of("h100_pcie_training")["derived"] is False


# --- ground truth -----------------------------------------------------------------------------------------------


def holds(done: Estimate, executed: int, *, best_within: float) -> None:
    assert done.declared is not None
    for one in (done.undeclared, done.declared):
        assert one.high is not None
        assert one.low <= executed <= one.high
        assert one.best == pytest.approx(executed, rel=best_within)


def test_executed_flop_of_the_trace_lies_in_both_intervals():
    """The program ran 15.17 s, the samples cover 14.9 s of it."""
    trace = truth_of("h100_pcie_training")["trace"]
    row = row_of("h100_pcie_training")
    assert row.time_us == trace["covered_us"]
    done = estimate(row, H100, "bf16", chip_table())
    holds(done, int(trace["executed_flop"]), best_within=0.08)
    in_samples = int(trace["executed_flop"]) * trace["covered_us"] // trace["elapsed_us"]
    holds(done, in_samples, best_within=0.08)


def thinned(samples: list[Any], every: int) -> list[Any]:
    """What a slower reader would have seen: activity averaged since its last sample, the clock of the moment."""
    kept = [samples[0]]
    for end in range(every, len(samples), every):
        span = [sample["chips"][0] for sample in samples[end - every + 1 : end + 1]]
        means = {name: sum(reading[name] for reading in span) // every for name in ("tensor_ppm", "sm_active_ppm")}
        kept.append(samples[end] | {"chips": [span[-1] | means]})
    return kept


@pytest.mark.parametrize(
    ("first", "end", "every"),
    [(0, 76, 1), (75, 150, 1), (50, 100, 1), (0, 150, 2), (0, 150, 10), (4, 150, 10), (0, 76, 10), (75, 150, 10)],
)
def test_executed_flop_of_parts_of_the_trace_lies_in_both_intervals(first: int, end: int, every: int):
    """By rate: what was executed in a part is known as a share of the whole only."""
    trace = truth_of("h100_pcie_training")["trace"]
    row = row_over(thinned(lines_of("h100_pcie_training")[1:][first:end], every))
    executed = int(trace["executed_flop"]) * row.time_us // trace["elapsed_us"]
    holds(estimate(row, H100, "bf16", chip_table()), executed, best_within=0.08)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_executed_flop_of_the_long_runs_lies_in_both_intervals(number: int):
    run = truth_of("h100_pcie_training")["summaries"][number]
    # kHz x µs = 10^-9 x 10^6 cycles
    elapsed = run["mean_sm_clock_khz"] * run["elapsed_us"]
    row = make_row(
        run["elapsed_us"],
        elapsed_mcycles=elapsed // 10**9,
        active_mcycles=elapsed * run["mean_sm_active_ppm"] // 10**15,
        tensor_mcycles=elapsed * run["mean_tensor_ppm"] // 10**15,
        energy_mj=run["energy_mj"],
    )
    holds(estimate(row, H100, "bf16", chip_table()), int(run["executed_flop"]), best_within=0.08)


def test_without_gpm_the_truth_still_lies_in_the_interval():
    done = estimate(row_of("derived_without_gpm"), H100, "bf16", chip_table())
    executed = int(truth_of("derived_without_gpm")["trace"]["executed_flop"])
    assert done.declared is not None
    for one in (done.undeclared, done.declared):
        assert one.low == 0
        assert one.high is not None
        assert executed <= one.high


@pytest.mark.parametrize("folder", ["derived_8gpu_host", "derived_shared_gpu", "derived_idle_host"])
def test_averages_over_a_second_keep_the_products(folder: str):
    """ppm x clock of the 1 s samples gives the cycles of the 10 Hz ones to 2 in a million."""
    for number, known in enumerate(truth_of(folder)["chips"]):
        row = row_of(folder, number)
        for name in ("tensor", "active"):
            assert getattr(row, f"{name}_mcycles") == pytest.approx(known[f"{name}_kcycles"] / 1_000, abs=1, rel=2e-6)
        assert row.elapsed_mcycles == pytest.approx(known["elapsed_kcycles"] / 1_000, abs=2)
        assert row.energy_mj == pytest.approx(known["energy_mj"], rel=1e-4)


def test_counters_of_the_big_host_only_grow_and_end_at_the_truth():
    samples = lines_of("derived_8gpu_host")[1:]
    for chip, known in enumerate(truth_of("derived_8gpu_host")["chips"]):
        for name in ("elapsed_kcycles", "active_kcycles", "tensor_kcycles", "energy_mj"):
            seen = [s["chips"][chip][name] for s in samples]
            assert seen == sorted(seen)
            assert seen[-1] - seen[0] == known[name]


def test_a_lost_driver_is_null_and_its_energy_counter_starts_again():
    known = truth_of("derived_driver_loss")
    samples = lines_of("derived_driver_loss")[1:]
    for s in samples:
        lost = known["lost_from_us"] < s["t_us"] < known["lost_to_us"]
        assert (s["error"] == "driver_lost") == lost == (s["chips"] == [None, None])
    energy = [s["chips"][0]["energy_mj"] for s in samples if s["chips"][0]]
    assert 0 in energy
    assert energy[0] > max(energy[energy.index(0) :])


def test_shares_of_the_shared_gpu_move_and_sometimes_leave_something():
    totals = [sum(s["share_ppm"] for s in sample["shares"]) for sample in lines_of("derived_shared_gpu")[2:]]
    assert {*totals} == {1_000_000, 950_000}
    assert len({s["shares"][0]["share_ppm"] for s in lines_of("derived_shared_gpu")[2:]}) > 20
