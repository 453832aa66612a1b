"""Who is heard at the gate's socket, and what is not: other users, garbage, floods, slow and silent peers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from keyturn_gate.host import boot_id, boottime_us
from keyturn_gate.messages import LINE_BYTES, MOST_US
from tests.support.gates import JOB, Gate, gate, until
from tests.support.optional import require
from tests.support.paths import REPO

NOBODY = 65_534


def connect(gate: Gate) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(30)
    peer.connect(str(gate.socket))
    return peer


def said(gate: Gate, data: bytes) -> bytes:
    """What the gate answers to these bytes; empty where it hangs up."""
    with connect(gate) as peer:
        try:
            peer.sendall(data)
            return peer.recv(1 << 20)
        except OSError:
            return b""


NO_REQUESTS = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"grant"',
    b'{"verb":"open","v":1}',
    b'{"verb":"status","v":1}',
    b'{"verb":"status","v":2,"after":0}',
    b'{"verb":"status","v":1,"after":-1}',
    b'{"verb":"status","v":1,"after":0,"more":1}',
    b'{"verb":"stop","v":1,"job":"../../etc/passwd","why":""}',
    b'{"verb":"release","v":1,"reason":""}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
]


def test_what_is_no_request_is_refused(observing: Gate) -> None:
    for line in NO_REQUESTS:
        assert json.loads(said(observing, line + b"\n"))["code"] == "bad_request", line[:100]
    assert observing.status()["seq"] == 0


WRONG_GRANTS: list[tuple[dict[str, Any], str]] = [
    ({"boot_id": "00000000-0000-4000-8000-000000000000"}, "other_boot"),
    ({"stop_at_us": 1}, "bad_time"),
    ({"stop_at_us": boottime_us() + 2 * MOST_US}, "bad_time"),
    ({"chips": []}, "bad_request"),
    ({"chips": ["GPU 0"]}, "bad_request"),
    ({"job": "A" * 64}, "bad_request"),
    ({"signal": 0}, "bad_request"),
    ({"signal": 65}, "bad_request"),
    ({"kill_s": -1}, "bad_request"),
    ({"why": "x" * 1025}, "bad_request"),
    ({"target": {"pid": 1, "start": 0, "cgroup": None, "session": 1}}, "bad_request"),
]


def test_a_grant_that_is_wrong_is_refused(observing: Gate) -> None:
    for changes, code in WRONG_GRANTS:
        assert observing.grant(**changes)["code"] == code, changes
    assert observing.status()["grants"] == []


def test_a_grant_that_is_said_again_is_the_same_run(observing: Gate) -> None:
    assert observing.grant()["ok"]
    assert observing.grant(chips=["GPU-1"])["code"] == "other_job"
    assert observing.grant(subject="another")["code"] == "other_job"


def test_a_line_without_an_end_is_cut(observing: Gate) -> None:
    assert said(observing, b"x" * (LINE_BYTES + 100_000)) == b""


def test_lines_one_after_another_are_answered_in_order(observing: Gate) -> None:
    with connect(observing) as peer:
        peer.sendall(b'{"verb":"stop","v":1,"job":"%s","why":""}\n' % JOB.encode() * 50 + b"nonsense\n")
        data = b""
        while data.count(b"\n") < 51:
            data += peer.recv(1 << 16)
    assert [json.loads(line)["code"] for line in data.splitlines()] == ["no_grant"] * 50 + ["bad_request"]


def test_peers_that_say_nothing_keep_nobody_out(observing: Gate) -> None:
    silent = [connect(observing) for _ in range(31)]
    assert observing.status()["ok"]
    crowd = [connect(observing) for _ in range(10)]
    busy = [json.loads(peer.recv(4096)) for peer in crowd[2:]]
    assert {answer["code"] for answer in busy} == {"busy"}
    for peer in [*silent, *crowd]:
        peer.close()
    until(lambda: observing.status()["ok"])


ASK = """
import contextlib, os, socket
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
peer = socket.socket(socket.AF_UNIX); peer.connect({path!r})
with contextlib.suppress(BrokenPipeError):
    peer.sendall({line!r})
print(peer.recv(4096).decode())
"""


def as_nobody(gate: Gate, line: bytes) -> str:
    """What another user is told, for whom the socket and its folder were left open."""
    require("root", os.geteuid() == 0, "only root can be somebody else")
    gate.folder.chmod(0o755)
    gate.socket.chmod(0o666)
    code = ASK.format(nobody=NOBODY, path=str(gate.socket), line=line)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_another_user_is_not_heard(observing: Gate) -> None:
    answer = as_nobody(observing, b'{"verb":"stop","v":1,"job":"' + JOB.encode() + b'","why":"mine"}\n')
    assert json.loads(answer)["code"] == "not_you"


def test_the_agent_does_not_release(folder: Path) -> None:
    """The agent's account opens chips for leases; opening them for everybody is root's."""
    with gate(folder, agent=NOBODY) as served:
        for request in (b'{"verb":"release","v":1,"reason":"mine"}\n', b'{"verb":"lock","v":1}\n'):
            assert json.loads(as_nobody(served, request))["code"] == "not_root"
        assert json.loads(as_nobody(served, b'{"verb":"status","v":1,"after":0}\n'))["released"] is None


def test_a_socket_that_is_served_is_not_taken(observing: Gate) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyturn_gate", "serve", *observing.arguments],
        env=os.environ | {"PYTHONPATH": str(REPO / "gate")}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "another gate serves" in done.stderr) == (1, True)


def test_boots_agree() -> None:
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
