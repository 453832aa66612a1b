"""What root types: status, the logged way out, and the way back."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.gates import Gate, until
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
    for word in ("compute_mode", "GPU-0 open", "GPU-1 locked", "run 71a3, 1 chip, ", "the lease ends"):
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


@pytest.mark.parametrize(
    ("words", "status"),
    [(("release",), 2), (("status",), 3), (("nothing",), 2), (("serve", "--agent", "not-there-yet"), 1)],
)
def test_exit_codes(folder: Path, words: tuple[str, ...], status: int) -> None:
    done = command(Gate(folder), *words)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False)


@contextmanager
def another(folder: Path, answer: bytes | None) -> Iterator[Gate]:
    """A program that isn't this gate, at its socket. ``answer``: what it says to anything; None: nothing."""
    made = Gate(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(made.socket))
        listener.listen()

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                if answer is not None:
                    connection.sendall(answer + b"\n")
                connection.recv(1)

        threading.Thread(target=speak, daemon=True).start()
        yield made


OTHERS = {
    "no JSON": b"HTTP/1.1 400 Bad Request",
    "no UTF-8": b'{"ok":true,"driver":"\xff"}',
    "no object": b"[1]",
    "a number": b"7",
    "no answer of ours": b"{}",
    "a refusal without a code": b'{"ok":false}',
    "deeper than anybody reads": b"[" * 100_000,
    "a gate without a driver": b'{"ok":true,"v":1}',
    "a gate with a driver that isn't known": b'{"ok":true,"v":1,"driver":"vault"}',
}


@pytest.mark.parametrize("said", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("words", [("status",), ("status", "--json")])
def test_another_program_at_the_socket_is_no_gate(folder: Path, said: bytes, words: tuple[str, ...]) -> None:
    with another(folder, said) as there:
        done = command(there, *words)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("keyturn-gate: error: not a gate's answer")


def test_a_newer_gate_says_more_and_is_understood(observing: Gate, folder: Path) -> None:
    standing = observing.status()
    event = {"seq": 1, "boot_id": "b", "boot_us": 1, "time_us": 1, "kind": "granted", "job": None, "detail": "x"}
    observing.stop()
    observing.socket.unlink()
    standing |= {"later": [1], "events": [event | {"later": 1}]}
    with another(folder, json.dumps(standing).encode()) as newer:
        shown = command(newer, "status")
    assert (shown.returncode, shown.stdout.splitlines()[0]) == (0, "driver     observe"), shown.stderr
    assert "granted x" in shown.stdout


def test_ctrl_c_is_a_line_and_130(folder: Path) -> None:
    with another(folder, None) as there:
        process = subprocess.Popen(
            [sys.executable, "-m", "keyturn_gate", "status", "--socket", str(there.socket)],
            env=os.environ | {"PYTHONPATH": str(REPO / "gate")}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        # It waits for an answer once it sleeps in a call, and not while Python starts.
        until(lambda: _connected(there.socket), "it never asked")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "keyturn-gate: error: interrupted\n")


def _connected(path: Path) -> bool:
    """Whether somebody is at the other end of a listening socket: the kernel lists both ends by its path."""
    lines = [line for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(f" {path}")]
    return any(line.split()[5] == "03" for line in lines)
