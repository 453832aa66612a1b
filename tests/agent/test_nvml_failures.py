"""What breaks under NVML: GPUs that fall off the bus, drivers that go, calls that hang; and pausing it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keyturn_agent.errors import RefusedError
from tests.agent.conftest import Sources, release
from tests.agent.nvml_stub.stories import SECOND_US, metered, read, read_seconds, steady_gpu, to_start, two_gpus
from tests.agent.nvml_stub.stub import HERE, START_US, Control, Script, Stub, build
from tests.support.optional import require_program
from tests.support.paths import REPO


def test_a_gpu_falls_off_the_bus_and_the_others_go_on(stub: Stub, make: Sources) -> None:
    script = two_gpus().fail("*", 15, unit="1", from_us=START_US + 3 * SECOND_US, to_us=START_US + 9 * SECOND_US)
    source = make(stub, script)
    to_start(stub, source)
    samples = read_seconds(stub, source, 12)
    assert all(sample.chips[0] is not None for sample in samples)
    assert [sample.chips[1] is None for sample in samples[:4]] == [False, False, False, True]
    assert samples[3].error == "gpu_lost"
    # Asked again after 1, 2 and 4 s: each call to a lost GPU may hang.
    assert [sample.chips[1] is None for sample in samples[9:]] == [True, False, False, False]
    assert {c.uuid for c in source.inventory().chips} == {f"GPU-{i:08d}-0000-4000-8000-000000000000" for i in range(2)}


def test_a_lost_gpu_stays_in_the_inventory_when_the_driver_drops_it(stub: Stub, make: Sources) -> None:
    lost_us = START_US + 2 * SECOND_US
    source = make(stub, two_gpus().fail("*", 1, from_us=lost_us, to_us=lost_us + SECOND_US))
    to_start(stub, source)
    read_seconds(stub, source, 2)
    stub.play(Script().gpu(0).steady("0"))
    samples = read_seconds(stub, source, 5, lost_us + SECOND_US)
    assert [chip is None for chip in samples[5].chips] == [False, True]
    assert samples[5].error == "not_found"
    assert len(source.inventory().chips) == 2


@pytest.mark.parametrize(
    ("code", "cause"), [(1, "nvml_uninitialized"), (9, "driver_not_loaded"), (18, "driver_version_mismatch")]
)
def test_driver_reload(stub: Stub, make: Sources, code: int, cause: str) -> None:
    """All chips are lost with a cause, the library is closed and opened again, and nothing spans the reload."""
    gone_us, back_us = START_US + 3 * SECOND_US, START_US + 5 * SECOND_US
    script = steady_gpu().fail("*", code, from_us=gone_us, to_us=back_us)
    for second in range(20):
        # The energy counter restarts, and here it soon stands higher than before.
        energy_mj = 300_000 * second + (5_000_000 if second < 15 else 500_000_000)
        script.at(second * SECOND_US + 1, "0", energy_mj=energy_mj)
    source = make(stub, script)
    to_start(stub, source)
    samples = read_seconds(stub, source, 9)
    assert [s.chips[0] is None for s in samples[:4]] == [False, False, False, True]
    assert samples[3].error == cause
    assert samples[9].chips[0] is not None
    assert stub.control.get("openings") == 2
    assert stub.control.get("sessions") == 1
    bodies, gaps = metered(samples)
    assert sum(body.energy_mj[0] or 0 for body in bodies) < 5_000_000
    assert {gap.cause for gap in gaps} >= {cause}


def test_no_library_is_an_empty_inventory_with_a_cause(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().fail("nvmlInitWithFlags", 9, to_us=5 * SECOND_US))
    inventory = source.inventory()
    assert (inventory.chips, inventory.driver_version, source.trouble) == ([], None, "driver_not_loaded")
    sample = read(stub, source, SECOND_US)
    assert (sample.chips, sample.error) == ((), "driver_not_loaded")
    for second in range(2, 10):
        read(stub, source, second * SECOND_US)
    assert source.trouble is None
    assert source.inventory_changed
    assert len(source.inventory().chips) == 1


def test_back_off_doubles(stub: Stub, make: Sources) -> None:
    source = make(stub, Script().gpu().fail("nvmlInitWithFlags", 9))
    tries = []
    for second in range(1, 40):
        before = stub.control.get("openings")
        read(stub, source, second * SECOND_US)
        assert stub.control.get("openings") == before
        tries.append(source._host._backoff._next_us // SECOND_US)
    assert sorted(set(tries)) == [2, 4, 8, 16, 26, 36, 46]


def test_back_off_begins_anew_after_a_good_sample(stub: Stub, make: Sources) -> None:
    script = steady_gpu()
    for begin in (3, 20):
        script.fail("*", 1, from_us=START_US + begin * SECOND_US, to_us=START_US + (begin + 6) * SECOND_US)
    source = make(stub, script)
    to_start(stub, source)
    lost = [second for second, sample in enumerate(read_seconds(stub, source, 30)) if sample.chips == (None,)]
    # 6 s, up to the next attempt at 7 s, and the sample of the opening.
    assert lost == [*range(3, 11), *range(20, 28)]


def test_energy_counter_reset_without_a_reload_is_a_gap(stub: Stub, make: Sources) -> None:
    script = steady_gpu().at(START_US + 5 * SECOND_US, "0", energy_mj=7)
    for second in range(6, 20):
        script.at(START_US + second * SECOND_US, "0", energy_mj=7 + 300_000 * (second - 5))
    source = make(stub, script)
    to_start(stub, source)
    bodies, gaps = metered(read_seconds(stub, source, 10))
    assert [gap.cause for gap in gaps] == ["counter_reset"]
    assert sum(body.energy_mj[0] or 0 for body in bodies) == 9 * 300_000


def test_a_hanging_call_never_blocks_and_the_agent_goes_on_when_it_is_back(stub: Stub, make: Sources) -> None:
    script = two_gpus().hang("nvmlGpmSampleGet", unit="1", from_us=START_US + 2 * SECOND_US)
    source = make(stub, script, read_deadline_s=0.05)
    to_start(stub, source)
    samples = read_seconds(stub, source, 5)
    assert [s.error for s in samples] == [None, None, *["call_hung"] * 4]
    assert samples[3].chips == (None, None)
    assert stub.control.get("hanging") == 1
    release(stub, source)
    later = read_seconds(stub, source, 2, START_US + 6 * SECOND_US)
    assert all(reading is not None for sample in later for reading in sample.chips)
    _, gaps = metered([*samples, *later])
    assert [gap.cause for gap in gaps] == ["call_hung"]
    assert [gap.to_us - gap.from_us for gap in gaps] == [5 * SECOND_US]


def test_while_a_call_hangs_each_read_comes_back_at_once(stub: Stub, make: Sources) -> None:
    """Nothing is put in line behind it: one hanging call, however often it is asked."""
    source = make(stub, steady_gpu().hang("nvmlDeviceGetPowerUsage", from_us=START_US), read_deadline_s=0.05)
    to_start(stub, source)
    for second in range(50):
        assert read(stub, source, START_US + second * SECOND_US).error == "call_hung"
    assert source.worker.waiting == 0
    assert source.processes() == (None,)


def test_opening_that_hangs(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().hang("nvmlInitWithFlags"), open_deadline_s=0.05, read_deadline_s=0.05)
    assert source.inventory().chips == []
    assert source.trouble == "call_hung"
    release(stub, source)
    assert len(source.inventory().chips) == 1


def test_a_driver_without_gpus_is_opened_again(stub: Stub, make: Sources) -> None:
    source = make(stub, Script())
    assert source.inventory().chips == []
    assert source.trouble == "gpu_not_found"
    stub.play(steady_gpu())
    read(stub, source, 2 * SECOND_US)
    assert len(source.inventory().chips) == 1


def test_a_gpu_that_answers_late_is_taken_up(stub: Stub, make: Sources) -> None:
    source = make(stub, two_gpus().fail("*", 15, unit="1", to_us=START_US + 5 * SECOND_US))
    assert len(to_start(stub, source).chips) == 1
    read_seconds(stub, source, 12)
    assert source.inventory_changed
    assert len(source.inventory().chips) == 2
    assert None not in read(stub, source, START_US + 13 * SECOND_US).chips


def test_every_chip_lost_opens_the_library_again(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().fail("nvmlDeviceGetPowerUsage", 15, from_us=START_US, to_us=START_US + 1))
    to_start(stub, source)
    samples = read_seconds(stub, source, 3)
    assert [sample.error for sample in samples] == ["gpu_lost", "reopened", None, None]
    assert stub.control.get("openings") == 2


def test_pause_closes_every_handle_and_nothing_spans_it(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().cycles())
    to_start(stub, source)
    before = read_seconds(stub, source, 1)
    assert (stub.control.get("sessions"), stub.control.get("buffers")) == (1, 2)
    source.close()
    assert (stub.control.get("sessions"), stub.control.get("buffers")) == (0, 0)
    assert read(stub, source, START_US + 2 * SECOND_US).error == "paused"
    source.reopen()
    inventory = source.inventory()
    assert len(inventory.chips) == 1
    after = read_seconds(stub, source, 2, START_US + 10 * SECOND_US)
    # Without a read in between nobody would see that counters restarted.
    assert [sample.error for sample in after] == ["reopened", None, None]
    assert [body.samples for body in metered([*before, *after])[0]] == [[1], [1]]


def test_pause_while_a_call_hangs_says_that_handles_are_open(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().hang("nvmlDeviceGetPowerUsage", from_us=START_US), read_deadline_s=0.05)
    to_start(stub, source)
    read(stub, source, START_US)
    with pytest.raises(RefusedError, match="still open"):
        source.close()
    release(stub, source)
    assert read(stub, source, START_US + SECOND_US).error == "paused"
    assert stub.control.get("sessions") == 0


# --- a process of its own ---------------------------------------------------------------------------------------


def run_host(stub_folder: Path, library: Path, script: Script, *arguments: str | Path) -> list[list[object]]:
    """Run host.py with the library where the loader looks for the driver's."""
    script.write(stub_folder / "script.txt")
    Control(stub_folder / "control")
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(map(str, (REPO / "protocol", REPO / "agent"))),
        "LD_LIBRARY_PATH": str(library.parent),
        "KEYTURN_NVML_STUB": str(stub_folder / "script.txt"),
        "KEYTURN_NVML_CONTROL": str(stub_folder / "control"),
    }
    done = subprocess.run(
        [sys.executable, HERE / "host.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: list[list[object]] = json.loads(done.stdout)
    return seen


def test_a_driver_upgrade_is_followed_without_a_restart(library: Path, tmp_path: Path) -> None:
    """The binding keeps its first library; a newer kernel driver answers that one LIB_RM_VERSION_MISMATCH for good."""
    newer = build(require_program("cc"), tmp_path / "newer", "-DGENERATION=2")
    link = tmp_path / "libnvidia-ml.so.1"
    link.symlink_to(library)
    seen = run_host(tmp_path, link, steady_gpu().host("kernel", 1), "upgrade", link, newer)
    assert seen[0] == [1, None]
    assert seen[1] == [1, "driver_version_mismatch"]
    assert seen[-1] == [1, None]


def test_a_call_that_hangs_does_not_keep_the_process_from_ending(library: Path, tmp_path: Path) -> None:
    assert run_host(tmp_path, library, steady_gpu().hang("nvmlInitWithFlags"), "hang") == [[0, "call_hung"]]
