"""What root types: status, the logged way out, and the way back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.gates import Gate
from tests.support.optional import require
from tests.support.paths import REPO


def command(gate: Gate, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "keyturn_gate", *words, "--socket", str(gate.socket)],
        env=os.environ | {"PYTHONPATH": str(REPO / "gate")}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_status_for_people_and_for_programs(served: Gate) -> None:
    served.grant(subject="run 71a3")
    shown = command(served, "status")
    assert shown.returncode == 0
    for word in ("compute_mode", "GPU-0 open", "GPU-1 locked", "run 71a3, 1 chips", "the lease ends"):
        assert word in shown.stdout
    status: dict[str, Any] = json.loads(command(served, "status", "--json").stdout)
    assert status.keys() == served.status().keys()


def test_release_and_lock(served: Gate) -> None:
    require("root", os.geteuid() == 0, "only root releases")
    assert command(served, "lock").returncode == 1
    done = command(served, "release", "--reason", "incident 12")
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "released")
    assert "RELEASED" in command(served, "status").stdout
    assert "incident 12" in served.event("released")["detail"]
    assert command(served, "lock").returncode == 0


@pytest.mark.parametrize(("words", "status"), [(("release",), 2), (("status",), 3), (("nothing",), 2)])
def test_exit_codes(folder: Path, words: tuple[str, ...], status: int) -> None:
    done = command(Gate(folder), *words)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False)
