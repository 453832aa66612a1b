"""Chips that are locked until a lease: compute modes, on the stub of NVML, with every way in which it fails."""

from pathlib import Path

import pytest

from tests.agent.nvml_stub.stub import Control, Script
from tests.gate.conftest import script
from tests.support.gates import JOB, Gate, gate, until

PROHIBITED, DEFAULT, EXCLUSIVE = 2, 0, 3
NO_PERMISSION, NOT_SUPPORTED, LOST = 4, 3, 15


def two(**changes: object) -> Script:
    return Script().gpu(0, uuid="GPU-0", **changes).gpu(1, uuid="GPU-1")


def states(served: Gate) -> dict[str, str]:
    return {chip["uuid"]: chip["state"] for chip in served.status()["chips"]}


def test_chips_are_locked_before_anybody_is_answered(served: Gate, control: Control) -> None:
    assert (control.mode(0), control.mode(1)) == (PROHIBITED, PROHIBITED)
    assert states(served) == {"GPU-0": "locked", "GPU-1": "locked"}


def test_a_grant_opens_its_chips_and_no_others_and_its_end_locks_them(served: Gate, control: Control) -> None:
    assert served.grant()["ok"]
    # Whoever is told yes finds the chip open.
    assert (control.mode(0), control.mode(1)) == (DEFAULT, PROHIBITED)
    served.ask(verb="stop", job=JOB, why="over")
    until(lambda: control.mode(0) == PROHIBITED)


def test_two_jobs_on_one_chip_keep_it_open_until_the_last(served: Gate, control: Control) -> None:
    served.grant()
    served.grant(job="d" * 64)
    served.ask(verb="stop", job=JOB, why="over")
    served.event("ended")
    assert served.ask(verb="stop", job="d" * 64, why="over")["ok"]
    until(lambda: control.mode(0) == PROHIBITED)


def test_the_mode_that_was_found_comes_back(folder: Path, stub_environ: dict[str, str], control: Control) -> None:
    script(folder, two(compute_mode=EXCLUSIVE))
    with gate(folder, "compute-mode", stub_environ) as served:
        served.grant(chips=["GPU-0", "GPU-1"])
        assert (control.mode(0), control.mode(1)) == (EXCLUSIVE, DEFAULT)
        # Also after a crash, when what there is to be found is our own lock.
        served.kill()
        served.start()
        assert states(served) == {"GPU-0": "open", "GPU-1": "open"}
        served.ask(verb="stop", job=JOB, why="over")
        until(lambda: control.mode(0) == PROHIBITED)
        served.event("ended")
        served.kill()
        served.start()
        served.grant()
        assert control.mode(0) == EXCLUSIVE


def test_after_a_reboot_chips_are_locked_again(served: Gate, control: Control) -> None:
    served.grant()
    served.kill()
    control.set_mode(0, None)
    control.set_mode(1, None)
    path = served.folder / "gate" / "gate.json"
    path.write_text(path.read_text().replace(served_boot(path), "00000000-0000-4000-8000-000000000000"))
    served.start()
    assert (control.mode(0), control.mode(1)) == (PROHIBITED, PROHIBITED)


def served_boot(path: Path) -> str:
    import json

    return str(json.loads(path.read_text())["boot_id"])


def test_root_who_opens_a_chip_is_seen_and_it_is_locked_again(served: Gate, control: Control) -> None:
    control.set_mode(0, EXCLUSIVE)
    assert "GPU-0 had been set to compute mode 3" in served.event("relocked")["detail"]
    until(lambda: control.mode(0) == PROHIBITED)
    # What root set is what is there to restore.
    served.grant()
    assert control.mode(0) == EXCLUSIVE


def test_a_chip_that_was_prohibited_before_the_gate_came_is_not_opened(
    folder: Path, stub_environ: dict[str, str], control: Control
) -> None:
    control.set_mode(0, PROHIBITED)
    with gate(folder, "compute-mode", stub_environ) as served:
        assert served.grant()["code"] == "prohibited"
        assert served.status()["grants"] == []
        assert control.mode(0) == PROHIBITED


def test_a_chip_that_is_not_there_is_not_granted(served: Gate, control: Control) -> None:
    assert served.grant(chips=["GPU-0", "GPU-9"])["code"] == "no_chip"
    assert served.status()["grants"] == []
    until(lambda: control.mode(0) == PROHIBITED)


@pytest.mark.parametrize("code", [NO_PERMISSION, LOST])
def test_a_driver_that_refuses_to_open_grants_nothing(
    folder: Path, stub_environ: dict[str, str], control: Control, code: int
) -> None:
    script(folder, two().fail("nvmlDeviceSetComputeMode", code, unit="0", after=1))
    with gate(folder, "compute-mode", stub_environ) as served:
        assert served.grant()["code"] == "driver"
        assert served.status()["grants"] == []
        assert control.mode(0) == PROHIBITED


def test_a_chip_that_cannot_be_locked_is_said_and_tried_again(
    folder: Path, stub_environ: dict[str, str], control: Control
) -> None:
    script(folder, two().fail("nvmlDeviceSetComputeMode", LOST, unit="0"))
    with gate(folder, "compute-mode", stub_environ) as served:
        assert states(served) == {"GPU-0": "unknown", "GPU-1": "locked"}
        assert "the GPU is lost" in served.event("cannot_lock")["detail"]
        script(folder)
        control.set("reload", 1)
        until(lambda: states(served)["GPU-0"] == "locked")


def test_a_host_without_a_driver_is_trouble_until_there_is_one(
    folder: Path, stub_environ: dict[str, str], control: Control
) -> None:
    (folder / "script.txt").unlink()
    with gate(folder, "compute-mode", stub_environ) as served:
        assert "driver not loaded" in served.status()["trouble"]
        assert served.grant()["code"] == "driver"
        script(folder)
        until(lambda: control.mode(0) == PROHIBITED)


def test_a_driver_that_hangs_holds_no_stop_up(
    folder: Path, stub_environ: dict[str, str], control: Control, begin
) -> None:
    run = begin()
    with gate(folder, "compute-mode", stub_environ) as served:
        served.grant(run.target, for_s=3600)
        script(folder, two().hang("nvmlDeviceGetComputeMode"))
        control.set("reload", 1)
        until(lambda: control.get("hanging"))
        served.ask(verb="stop", job=JOB, why="suspended")
        assert run.ended() < 0
        # Nobody waits for a driver that may never answer; who computes is looked at when it does.
        assert "the driver doesn't answer" in served.event("unseen")["detail"]
        assert served.status()["grants"] == []
        assert "ended" not in served.kinds()
        control.set("release", 1)
        served.event("ended")


def test_who_computed_before_a_chip_was_locked_is_said_and_left_alone(
    folder: Path, stub_environ: dict[str, str]
) -> None:
    made = two()
    made.add("process", "0", 4711, 1024, 50)
    script(folder, made)
    with gate(folder, "compute-mode", stub_environ) as served:
        assert served.event("contexts")["detail"] == "GPU-0 is locked, and in use since before: process 4711"
        assert served.kinds().count("contexts") == 1


def test_a_divided_gpu_cannot_be_locked_and_that_is_said(folder: Path, stub_environ: dict[str, str]) -> None:
    """NVML has no compute mode for MIG: a grant on an instance stands on timers alone."""
    divided = Script().gpu(0, uuid="GPU-0", mig=1)
    divided.unit("0.0", uuid="MIG-0").unit("0.1", uuid="MIG-1")
    script(folder, divided)
    with gate(folder, "compute-mode", stub_environ) as served:
        assert states(served) == {"GPU-0": "cannot_lock", "MIG-0": "cannot_lock", "MIG-1": "cannot_lock"}
        assert "MIG-0 can't be locked: nvmlDeviceGetComputeMode: not supported" in [
            event["detail"] for event in served.status()["events"]
        ]
        assert served.grant(chips=["MIG-0"])["ok"]


def test_an_instance_is_locked_where_a_driver_can(folder: Path, stub_environ: dict[str, str], control: Control) -> None:
    divided = Script().gpu(0, uuid="GPU-0", mig=1)
    divided.unit("0.0", uuid="MIG-0", compute_mode=DEFAULT).unit("0.1", uuid="MIG-1", compute_mode=DEFAULT)
    script(folder, divided)
    with gate(folder, "compute-mode", stub_environ) as served:
        assert states(served) == {"GPU-0": "cannot_lock", "MIG-0": "locked", "MIG-1": "locked"}
        served.grant(chips=["MIG-1"])
        assert states(served) == {"GPU-0": "cannot_lock", "MIG-0": "locked", "MIG-1": "open"}


def test_release_opens_everything_and_stops_nothing_until_lock(served: Gate, control: Control, begin) -> None:
    """Root's way out is in the events, with its reason."""
    run = begin()
    served.grant(run.target, for_s=0.5)
    answer = served.ask(verb="release", reason="the lease server is down, incident 12")
    assert answer["ok"] or answer["code"] == "not_root"
    if not answer["ok"]:
        pytest.skip("only root releases")
    until(lambda: control.mode(1) == DEFAULT)
    assert served.event("would_stop")
    assert run.process.poll() is None
    assert served.status()["released"]["reason"] == "the lease server is down, incident 12"
    # It outlives the gate, and ends with `lock`.
    served.kill()
    served.start()
    assert served.status()["released"] is not None
    assert served.ask(verb="lock")["ok"]
    until(lambda: control.mode(1) == PROHIBITED)
    assert [kind for kind in served.kinds() if kind in ("released", "locked")] == ["released", "locked"]
