"""A key roll and a retirement through a real verifier, and what an auditor finds afterwards."""

import os
import subprocess
import sys
import time
from pathlib import Path

from keyturn_agent.store import holder
from keyturn_verifier.state import TRUST
from tests.support.paths import REPO
from tests.support.verifier import Verifier

RECORDING = REPO / "hardware_fixtures" / "derived_driver_loss" / "recording.jsonl"


def agent(*arguments: object, token: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "keyturn_agent", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"KEYTURN_JOIN_TOKEN": token},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_after_a_roll_and_a_retirement_the_bundle_passes(tmp_path: Path) -> None:
    state, trust = tmp_path / "state", tmp_path / "verifier" / "state" / TRUST
    with Verifier(tmp_path / "verifier") as verifier:
        url = verifier.client.url
        agent("enroll", "--state", state, "--verifier", url, "--trust", trust, token=verifier.join_token())
        first_key = (state / "key").read_bytes()
        agent("run", "--state", state, "--recording", RECORDING, "--fast")
        assert "/2" in agent("key-roll", "--state", state)
        assert (state / "key").read_bytes() != first_key
        agent("run", "--state", state, "--recording", RECORDING, "--fast")
        # Once more, and the end, with the agent running.
        run = ["run", "--state", state, "--recording", RECORDING, "--checkpoint-every", "1"]
        command = [sys.executable, "-m", "keyturn_agent", *map(str, run)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            try:
                while holder(state) is None:
                    assert running.poll() is None, running.stderr and running.stderr.read()
                    time.sleep(0.05)
                assert "/3" in agent("key-roll", "--state", state)
                assert "retired" in agent("retire", "--state", state, "--reason", "scrapped")
                _, talk = running.communicate(timeout=60)
                assert running.returncode == 0, talk
            finally:
                running.kill()
        again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (again.returncode, "this host was retired" in again.stderr) == (1, True)
        assert (state / "retired").exists()
        bundle = verifier.export(tmp_path / "bundle")
        report = verifier.audit(bundle)
    assert report.outcome == "pass", report.reasons
    incarnations = {path.parent.name for path in bundle.rglob("*.segment")}
    assert incarnations >= {"1", "2", "3"}
