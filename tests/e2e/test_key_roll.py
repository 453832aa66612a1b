"""A key roll and a retirement through a real verifier, and what an auditor finds afterwards."""

import os
import subprocess
import sys
from pathlib import Path

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
        agent("retire", "--state", state, "--reason", "scrapped")
        bundle = verifier.export(tmp_path / "bundle")
        report = verifier.audit(bundle)
    assert report.outcome == "pass", report.reasons
    incarnations = {path.parent.name for path in bundle.rglob("*.segment")}
    assert incarnations >= {"1", "2"}
