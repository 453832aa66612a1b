"""The service manager: what it hands over, what it is told and when, and what it says about the units."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from keyturn_gate.cli import USAGE
from tests.agent.nvml_stub.stub import Control
from tests.support.gates import Gate, until
from tests.support.optional import require_program
from tests.support.paths import REPO

UNITS = REPO / "gate" / "systemd"
SERVICE, SOCKET = UNITS / "keyturn-gate.service", UNITS / "keyturn-gate.socket"
EXPOSURE = 30
"""Tenths: what `systemd-analyze security` may say at most."""

HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""As the service manager does: the socket is descriptor 3 of the process that is named."""


def test_it_is_started_by_its_socket_and_ready_when_the_chips_are_locked(
    folder: Path, stub_environ: dict[str, str], control: Control
) -> None:
    made = Gate(folder, "compute-mode")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(made.socket))
    listener.listen()
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(folder / "notify"))
    manager.settimeout(30)
    arguments = [each for each in made.arguments if each not in ("--socket", str(made.socket))]
    env = os.environ | stub_environ | {"PYTHONPATH": str(REPO / "gate")}
    process = subprocess.Popen(
        [sys.executable, "-c", HAND_OVER, str(listener.fileno()), "-m", "keyturn_gate", "serve", *arguments],
        env=env | {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "300000"},
        pass_fds=[listener.fileno()],
    )
    try:
        assert manager.recv(4096) == b"READY=1\nSTATUS=compute_mode, 2 chips"
        assert (control.mode(0), control.mode(1)) == (2, 2)
        assert manager.recv(4096) == b"WATCHDOG=1"
        assert made.status()["driver"] == "compute_mode"
        process.terminate()
        assert until(lambda: manager.recv(4096) == b"STOPPING=1")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        listener.close()
        manager.close()
    # The end of a gate opens nothing.
    assert (control.mode(0), control.mode(1)) == (2, 2)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program that exists here, as `verify` looks for it."""
    for unit in (SERVICE, SOCKET):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/keyturn-gate", sys.executable))
    return tmp_path


@pytest.mark.parametrize("unit", [SERVICE.name, SOCKET.name])
def test_the_units_are_correct(units: Path, unit: str) -> None:
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", "--man=no", units / unit],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:"},
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "keyturn" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_service_is_hardened() -> None:
    analyze = require_program("systemd-analyze")
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", SERVICE],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: (\d+)\.(\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert int(found[1]) * 10 + int(found[2]) <= EXPOSURE
    assert done.returncode == 0


def test_every_relaxation_is_explained() -> None:
    """What the agent's unit may not do and this one may stands below a comment."""
    strict = (REPO / "agent" / "systemd" / "keyturn-agent.service").read_text()
    relaxed = SERVICE.read_text().partition("# -- relaxations")[2]
    for setting in re.findall(r"^(\w+)=", relaxed.partition("[Install]")[0], flags=re.MULTILINE):
        before = relaxed.partition(f"\n{setting}=")[0].splitlines()
        assert any(line.startswith("# ") for line in before[-3:]), setting
    ours = SERVICE.read_text()
    for line in re.findall(r"^(?:Protect|Restrict|Private|Lock|Memory|NoNew)\w+=\S+$", strict, flags=re.MULTILINE):
        name = line.partition("=")[0]
        if line == "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX":
            continue
        assert f"\n{line}\n" in ours or f"\n{name}=" in relaxed, line


@pytest.mark.parametrize(
    "setting",
    [
        *("Type=notify", "WatchdogSec=30", "Restart=always", "PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"),
        f"RestartPreventExitStatus={USAGE}",
        "DeviceAllow=char-195 rw",
    ],
)
def test_the_service_says(setting: str) -> None:
    assert f"\n{setting}\n" in SERVICE.read_text()


def test_it_comes_before_whatever_uses_gpus() -> None:
    before = " ".join(re.findall(r"^Before=(.*)$", SERVICE.read_text(), flags=re.MULTILINE)).split()
    assert {"docker.service", "containerd.service", "slurmd.service", "kubelet.service"} <= set(before)
