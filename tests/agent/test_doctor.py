"""What doctor finds on hosts that are fine, and on those that aren't."""

from pathlib import Path

import msgspec
import pytest

from keyturn_agent.doctor import Check, Host, clock_state, host_checks, mps_running, report
from keyturn_agent.doctor_assurance import assurance
from keyturn_agent.doctor_nvml import nvml_checks
from keyturn_agent.errors import UnreachableError
from keyturn_agent.ports import Answer
from keyturn_protocol.entry_inventory import InventoryBody, PciDevice
from tests.agent import hosts
from tests.agent.conftest import Sources
from tests.agent.fakes import FakeVerifier
from tests.agent.nvml_stub.stories import steady_gpu, to_start, two_gpus
from tests.agent.nvml_stub.stub import Script, Stub
from tests.agent.proc import Proc

MOUNTS = "proc /proc proc rw,nosuid,nodev,noexec,relatime{} 0 0\n"


def answers(url: str) -> Answer:
    assert url == "http://127.0.0.1:1"
    return Answer(200, "text/plain", None, b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    host = hosts.Host(tmp_path / "state", FakeVerifier())
    host.enroll()
    return host.folder


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    proc = Proc(tmp_path / "proc")
    proc.add(1, "/init.scope")
    (proc.root / "mounts").write_text(MOUNTS.format(""))
    return proc


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def only(checks: list[Check], name: str) -> Check:
    (check,) = (check for check in checks if check.name == name)
    return check


def test_a_host_that_is_fine(folder: Path, proc: Proc) -> None:
    checks = host_checks(folder, Host(proc.root, lambda: 0, answers))
    assert set(states(checks).values()) == {"ok"}
    assert report(checks).ok


def test_which_level_a_host_has_and_what_is_missing_for_more(folder: Path, tmp_path: Path) -> None:
    sysfs, dev = tmp_path / "sys", tmp_path / "dev"
    bare = assurance(folder, sysfs, dev)
    assert bare.detail.startswith("level 0, self-reported")
    assert "here: nothing that could be attested" in bare.detail
    assert "missing for more: a TPM 2.0, a measured boot log, Secure Boot, a sealed log key" in bare.detail
    for path, text in (
        ("class/tpm/tpm0/tpm_version_major", "2\n"),
        ("kernel/security/tpm0/binary_bios_measurements", "x"),
        ("firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "\x06\0\0\0\x01"),
        ("class/dmi/id/sys_vendor", "Supermicro\n"),
    ):
        (sysfs / path).parent.mkdir(parents=True, exist_ok=True)
        (sysfs / path).write_text(text)
    dev.mkdir()
    (dev / "sev-guest").touch()
    (folder / "key").rename(tmp_path / "credential")
    full = assurance(folder, sysfs, dev)
    assert full.detail.startswith("level 0"), "what could be attested isn't"
    assert full.detail.endswith(
        "here: a TPM 2.0, a measured boot log, Secure Boot, a sealed log key, a SEV-SNP guest"
    )  # fmt: skip
    (sysfs / "class/dmi/id/sys_vendor").write_text("QEMU\n")
    assert "a virtual TPM 2.0 (level 1 at most)" in assurance(folder, sysfs, dev).detail
    (sysfs / "class/tpm/tpm0/tpm_version_major").write_text("1\n")
    assert "missing for more: a virtual TPM 2.0" in assurance(folder, sysfs, dev).detail


def test_a_clock_that_is_not_synchronised(folder: Path, proc: Proc) -> None:
    checks = host_checks(folder, Host(proc.root, lambda: 5, answers))
    assert "isn't synchronised" in only(checks, "clock").detail
    assert only(host_checks(folder, Host(proc.root, lambda: None, answers)), "clock").state == "warn"
    assert clock_state() in (None, 0, 1, 2, 3, 4, 5)


def test_processes_that_cannot_be_seen(folder: Path, proc: Proc, tmp_path: Path) -> None:
    (proc.root / "mounts").write_text(MOUNTS.format(",hidepid=invisible"))
    proc.remove(1)
    check = only(host_checks(folder, Host(proc.root, lambda: 0, answers)), "hidepid")
    assert check.state == "warn"
    assert "hidepid=invisible" in check.detail
    elsewhere = Proc(tmp_path / "container", "pid:[4026532999]")
    check = only(host_checks(folder, Host(elsewhere.root, lambda: 0, answers)), "pids")
    assert check.state == "warn"
    assert "unattributed" in check.detail


def test_a_verifier_that_does_not_answer(folder: Path, proc: Proc) -> None:
    def nothing(_: str) -> Answer:
        raise UnreachableError("unreachable", "connection refused")

    checks = host_checks(folder, Host(proc.root, lambda: 0, nothing))
    assert only(checks, "verifier").detail == "connection refused"
    assert not report(checks).ok
    checks = host_checks(folder, Host(proc.root, lambda: 0, lambda _: Answer(502, "text/html", None, b"")))
    assert "502" in only(checks, "verifier").detail


def test_a_folder_that_is_not_enrolled_or_open_to_others(folder: Path, proc: Proc, tmp_path: Path) -> None:
    checks = host_checks(tmp_path / "none", Host(proc.root, lambda: 0, answers))
    assert (only(checks, "state").state, only(checks, "verifier").state) == ("fail", "skip")
    folder.chmod(0o750)
    assert "0750" in only(host_checks(folder, Host(proc.root, lambda: 0, answers)), "state").detail


def test_mps(proc: Proc) -> None:
    (proc.root / "1" / "comm").write_text("systemd\n")
    assert not mps_running(proc.root)
    proc.add(77, "/")
    (proc.root / "77" / "comm").write_text("nvidia-cuda-mps\n")
    assert mps_running(proc.root)


# -- chips


def inventory(stub: Stub, make: Sources, script: Script) -> tuple[InventoryBody, str | None]:
    source = make(stub, script)
    return to_start(stub, source), source.trouble


def with_pci(body: InventoryBody, *devices: PciDevice) -> InventoryBody:
    return msgspec.structs.replace(body, pci=list(devices))


def on_bus(bus_id: str, vendor: int = 0x10DE, driver: str | None = "nvidia") -> PciDevice:
    return PciDevice(bus_id=bus_id, vendor=vendor, device=0x2331, driver=driver)


def test_chips_that_are_fine(stub: Stub, make: Sources) -> None:
    body, trouble = inventory(stub, make, two_gpus())
    # The server's own VGA controller is none of ours.
    body = with_pci(body, on_bus("0000:3B:00.0"), on_bus("0000:3c:00.0"), on_bus("0000:02:00.0", 0x1A03, "ast"))
    checks = nvml_checks(body, trouble, {}, False)
    fine = {"nvml": "ok", "gpm": "ok", "pci": "ok", "accounting": "ok", "fields": "warn"}
    assert states(checks) | {"fields": "warn"} == fine
    assert "nvidia-smi -am 1" in only(checks, "accounting").detail
    assert "nvidia-smi" not in only(nvml_checks(body, trouble, {}, False, (2, 2)), "accounting").detail
    assert "2 GPUs, 0 MIG instances, driver 580.126.20, CUDA 13.0" in only(checks, "nvml").detail


def test_no_permission_for_gpm_is_wrong_and_says_what_to_do(stub: Stub, make: Sources) -> None:
    body, trouble = inventory(stub, make, steady_gpu().fail("nvmlGpmSampleGet", 4))
    check = only(nvml_checks(body, trouble, {}, False), "gpm")
    assert check.state == "fail"
    assert "no_permission" in check.detail
    assert "NVreg_RestrictProfilingToAdminUsers=0" in check.detail
    assert "tensor_mcycles" in next(c.detail for c in nvml_checks(body, trouble, {}, False) if c.name == "fields")


def test_a_chip_without_gpm_is_no_fault_of_the_host_s(stub: Stub, make: Sources) -> None:
    body, trouble = inventory(stub, make, Script().gpu(0, gpm=0).steady("0"))
    assert only(nvml_checks(body, trouble, {}, False), "gpm").state == "warn"


def test_a_chip_on_the_bus_that_nvml_does_not_show(stub: Stub, make: Sources) -> None:
    body, trouble = inventory(stub, make, steady_gpu())
    body = with_pci(
        body, on_bus("0000:3b:00.0"), on_bus("0000:af:00.0", driver="vfio-pci"), on_bus("0000:b0:00.0", 0x1002)
    )
    checks = [c for c in nvml_checks(body, trouble, {}, False) if c.name == "pci"]
    assert [c.state for c in checks] == ["fail", "warn"]
    assert "0000:af:00.0 10de:2331 (driver vfio-pci)" in checks[0].detail
    assert "AMD" in checks[1].detail


def test_a_dead_driver(stub: Stub, make: Sources) -> None:
    body, trouble = inventory(stub, make, steady_gpu().fail("nvmlInitWithFlags", 9))
    checks = nvml_checks(with_pci(body, on_bus("0000:3b:00.0")), trouble, {}, False)
    assert [(c.name, c.state) for c in checks] == [("nvml", "fail"), ("pci", "fail")]
    assert "driver_not_loaded" in checks[0].detail


def test_mps_and_nobody_s_processes_are_said(stub: Stub, make: Sources) -> None:
    body, trouble = inventory(stub, make, steady_gpu())
    checks = nvml_checks(body, trouble, {"pid_namespace": 3}, True)
    assert states(checks)["mps"] == states(checks)["workloads"] == "warn"
    assert "3 x pid_namespace" in only(checks, "workloads").detail
    assert report(checks).ok
