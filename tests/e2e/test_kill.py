"""kill -9 of agent and verifier at random moments, in a loop; then everything receipted is there, and audits."""

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keyturn_protocol.bundle import receipt_path, segment_path
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.segment import parse_segment
from tests.faults.table import LONG
from tests.support.node import Client
from tests.support.paths import REPO
from tests.support.verifier import Served, Verifier, command, run
from tests.support.verifier import environment as verifier_environment

RECORDING = REPO / "hardware_fixtures" / "derived_driver_loss" / "recording.jsonl"
ROUNDS = 24 if LONG else 6


def agent(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "keyturn_agent", *map(str, arguments)]


def environment() -> dict[str, str]:
    folders = [str(REPO / part) for part in ("protocol", "agent")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders)}


class Fixed(Served):
    """A served verifier that comes back on the same port: hosts keep their verifier's URL."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.out = folder.with_name("verifier.log")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]

    def start(self) -> Client:
        ready = self.state.with_name("port")
        ready.unlink(missing_ok=True)
        arguments = command("serve", "--state", self.state, "--port", str(self.port), "--port-file", ready)
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(arguments, env=verifier_environment(), stderr=out)
        while not ready.exists():
            assert self.process.poll() is None, self.out.read_text()
            time.sleep(0.01)
        return Client(f"http://127.0.0.1:{self.port}")


class Host:
    """``keyturn-agent`` on one state folder, as processes that come and go."""

    def __init__(self, folder: Path, trust: Path, port: int, token: str) -> None:
        self.state = folder
        self.log = folder.with_name(f"{folder.name}.log")
        enroll = agent(
            "enroll", "--state", folder, "--verifier", f"http://127.0.0.1:{port}", "--trust", trust,
            "--recording", RECORDING,
        )  # fmt: skip
        environ = environment() | {"KEYTURN_JOIN_TOKEN": token}
        done = subprocess.run(enroll, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command = agent("run", "--state", self.state, "--recording", RECORDING, "--jitter", "0", *arguments)
        with self.log.open("ab") as out:
            return subprocess.Popen(command, env=environment(), stdout=out, stderr=out)

    def receipts(self) -> dict[tuple[int, int], bytes]:
        """Receipts that this host holds, by incarnation and size.

        Not by start: an agent sends several sealed pieces as one segment, and one that dies before it has kept the
        receipt is told later of the size alone, and keeps it with the last piece.
        """
        return {
            (int(p.parent.name), int(p.stem.partition("-")[2])): p.read_bytes() for p in self.state.rglob("*.receipt")
        }


@pytest.mark.parametrize("seed", range(int(os.environ.get("KEYTURN_KILL_SEEDS", "1"))))
def test_nothing_receipted_is_lost_when_either_side_is_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    site = tmp_path / "site"
    site.mkdir()
    created = run("init", "--state", site / "state", "--deployment", "keyturn.example.org")
    assert created.returncode == 0, created.stderr
    token = run(
        "token", "create", "--state", site / "state", "--organisation", "Example", "--site", "hall", "--hosts", "1"
    )  # fmt: skip
    assert token.returncode == 0, token.stderr
    verifier = Fixed(site / "state")
    verifier.start()
    host = Host(tmp_path / "host", site / "state" / "trust.json", verifier.port, token.stdout.strip())
    killed = {"agent": 0, "verifier": 0}
    process = host.start("--speed", "120")
    try:
        for _ in range(ROUNDS):
            time.sleep(dice.uniform(0.05, 0.9))
            if dice.random() < 0.6:
                process.kill()
                process.wait()
                killed["agent"] += 1
                process = host.start("--speed", "120")
            else:
                verifier.kill()
                killed["verifier"] += 1
                time.sleep(dice.uniform(0, 0.2))
                verifier.start()
        process.kill()
        process.wait()
        process = host.start("--fast", "--until-end")
        assert process.wait(timeout=120) == 0, host.log.read_text()
    finally:
        process.kill()
        process.wait()
        verifier.kill()
    assert min(killed.values()) > 0, killed
    with Verifier(site) as reopened:
        bundle = reopened.export(tmp_path / "bundle")
        report = reopened.audit(bundle)
    assert report.outcome == "pass", report.reasons
    held = host.receipts()
    assert held
    exported = {}
    for path in bundle.rglob("*.segment"):
        segment = parse_segment(path.read_bytes())
        where = segment_path(segment.name, segment.start, segment.end)
        receipt = (bundle / receipt_path(where)).read_bytes()
        exported[parse_origin(segment.origin).incarnation, segment.end] = receipt
    for place, receipt in held.items():
        assert exported.get(place) == receipt, f"{place} was receipted and is not in the bundle"
    assert {incarnation for incarnation, _ in exported} == {1}, "a crash must not need a new incarnation"
