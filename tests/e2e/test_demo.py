"""``keyturn demo``, for real: what it shows, what it leaves, and its signatures under other people's tools."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.bundle import parse_trust
from keyturn_protocol.keys import parse_vkey
from tests.support.optional import require, require_program
from tests.support.paths import REPO

pytestmark = pytest.mark.timeout(480)

RECORDINGS = ("h100_pcie_training", "derived_shared_gpu", "derived_driver_loss")
SPKI = bytes.fromhex("302a300506032b6570032100")
"""RFC 8410: what stands before the 32 bytes of an Ed25519 public key in DER."""
OPENSSL = [
    *("pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key.der"),
    *("-rawin", "-in", "message", "-sigfile", "signature"),
]


def script(name: str) -> Path:
    path = Path(sys.executable).parent / name
    require("scripts", path.exists(), f"{name} is not installed beside {sys.executable}")
    return path


@dataclass
class Demo:
    folder: Path
    out: str
    err: str
    summary: dict[str, Any]


def children_of(folder: Path) -> list[str]:
    """Processes whose command line names the demo's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One run; ``--json`` sends the story to stderr."""
    for name in ("keyturn-verifier", "keyturn-agent", "keyturn-gate"):
        script(name)
    for name in RECORDINGS:
        require("recordings", (REPO / "hardware_fixtures" / name / "recording.jsonl").exists(), f"no recording {name}")
    folder = tmp_path_factory.mktemp("demo") / "here"
    done = subprocess.run(
        [script("keyturn"), "demo", "--dir", folder, "--json"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=450,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert children_of(folder) == []
    return Demo(folder, done.stdout, done.stderr, json.loads(done.stdout))


def test_it_leaves_the_evidence_and_the_keys(demo: Demo) -> None:
    left = [".keyturn-demo", "dropped", "evidence", "forged", "root", "tampered", "trust.json"]
    assert sorted(p.name for p in demo.folder.iterdir()) == left
    assert not any(p.name.endswith(".key") for p in demo.folder.rglob("*"))


def test_what_the_program_executed_lies_inside_both_intervals(demo: Demo) -> None:
    executed = int(demo.summary["executed_flop"])
    total = next(w for w in demo.summary["workloads"] if w["workload"] == "slurm:fixture:1")
    for interval in (total["undeclared"], total["declared"]):
        assert int(interval["low"]) <= executed <= int(interval["high"])
    assert abs(int(total["declared"]["best"]) - executed) <= executed * 8 // 100


def test_a_shared_gpu_is_split_and_a_lost_driver_is_a_gap(demo: Demo) -> None:
    totals = {w["workload"]: w for w in demo.summary["workloads"]}
    assert sum(w["class"] == "shared" and w["workload"].startswith("k8s:") for w in totals.values()) == 2
    gap = totals["gap"]
    assert gap["gap_us"] >= 2 * 150_000_000
    assert gap["undeclared"]["low"] == "0"
    assert int(gap["undeclared"]["high"]) > 0
    assert any(f["code"] in ("gap", "unmeasured") and "driver_lost" in f["detail"] for f in demo.summary["findings"])


def test_it_passes_and_the_forgery_fails_naming_the_entry(demo: Demo) -> None:
    assert demo.summary["audit"]["outcome"] == "pass"
    assert demo.summary["audit"]["workloads"] == demo.summary["workloads"]
    flip = demo.summary["flip"]
    assert len(demo.summary["forged"]) == 2
    for report in demo.summary["forged"]:
        first = report["integrity"]["contradictions"][0]
        assert (report["outcome"], first["where"], first["seq"]) == ("contradicted", flip["path"], flip["seq"])
    assert f"entry {flip['seq']} was changed" in demo.err
    before = (demo.folder / "evidence" / flip["path"]).read_bytes()
    after = (demo.folder / "tampered" / flip["path"]).read_bytes()
    assert [i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y] == [flip["offset"]]


def test_a_run_that_the_quorum_allowed_was_charged_suspended_resumed_and_exhausted(demo: Demo) -> None:
    switch = demo.summary["switch"]
    run = next(one for one in demo.summary["audit"]["runs"] if one["run"] == switch["run"])
    assert (run["state"], run["charged_tflop"]) == ("exhausted", run["budget_tflop"])
    assert run["charged_tflop"] == switch["charged_tflop"]
    for path in (switch["approval"], switch["suspension"]):
        assert (demo.folder / "evidence" / "statements" / f"{path}.json").is_file()
    # Lines are cut at the width of a terminal.
    said = ("its quorum isn't", "requester: who asks never counts", "another program than was")
    assert [text for text in said if text not in demo.err] == []


def test_a_forged_permit_and_a_dropped_veto_are_named(demo: Demo) -> None:
    switch = demo.summary["switch"]
    for report, digest in zip(demo.summary["forged_switch"], (switch["approval"], switch["suspension"]), strict=True):
        where = {one["where"] for one in report["integrity"]["contradictions"]}
        assert (report["outcome"], f"statements/{digest}.json" in where) == ("contradicted", True)


@pytest.mark.parametrize(
    ("folder", "pins", "code"),
    [
        ("evidence", "--root", 0),
        ("evidence", None, 3),
        ("tampered", "--root", 1),
        ("forged", "--root", 1),
        ("dropped", "--root", 1),
    ],
)
def test_anyone_can_audit_what_it_left(demo: Demo, folder: str, pins: str | None, code: int) -> None:
    command: list[str | Path] = [script("keyturn"), "audit", demo.folder / folder]
    root = (demo.folder / "root").read_text().strip()
    done = subprocess.run(
        command if pins is None else [*command, pins, root],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr


def test_it_empties_its_own_folder_only(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    done = subprocess.run(
        [script("keyturn"), "demo", "--dir", tmp_path],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "holds something that no demo made" in done.stderr
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM, signal.SIGINT]], ids=str
)
def test_interrupted_it_leaves_nothing_running(demo: Demo, tmp_path: Path, numbers: list[int]) -> None:
    folder = tmp_path / "here"
    process = subprocess.Popen(
        [script("keyturn"), "demo", "--dir", folder],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    port = folder / "work" / "port"
    try:
        while not port.exists():
            assert process.poll() is None
            time.sleep(0.05)
        for number in numbers:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "keyturn: error: interrupted" in err
    assert children_of(folder) == []


class TestOtherTools:
    """A checkpoint and a receipt under ``openssl`` and coreutils; of ours only the keys' text form is read."""

    def verify(self, tmp_path: Path, public_key: bytes, message: bytes, signature: bytes) -> bool:
        openssl = require_program("openssl")
        for name, data in (("key.der", SPKI + public_key), ("message", message), ("signature", signature)):
            (tmp_path / name).write_bytes(data)
        done = subprocess.run(
            [openssl, *OPENSSL],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def segment(self, demo: Demo) -> Path:
        return sorted((demo.folder / "evidence").rglob("*.segment"))[0]

    def test_a_nodes_checkpoint(self, demo: Demo, tmp_path: Path) -> None:
        manifest = json.loads((demo.folder / "evidence" / "bundle.json").read_bytes())
        note = self.segment(demo).read_text().partition("\n\n")[2]
        text, line = note.split("\n\n")
        origin = text.split("\n")[0]
        key = base64.b64decode(next(r["vkey"] for r in manifest["logs"] if r["origin"] == origin).split("+", 2)[2])
        blob = base64.b64decode(line.split(" ")[2])
        assert key[0] == 1
        assert blob[:4] == sha256(f"{origin}\n".encode() + key).digest()[:4]
        assert self.verify(tmp_path, key[1:], f"{text}\n".encode(), blob[4:])
        assert not self.verify(tmp_path, key[1:], f"{text}\n".replace("\n", "\n ", 1).encode(), blob[4:])

    def test_a_receipt(self, demo: Demo, tmp_path: Path) -> None:
        trust = parse_trust((demo.folder / "trust.json").read_bytes())
        key = parse_vkey(trust.receipt_vkey)
        segment = self.segment(demo)
        text = segment.read_text().partition("\n\n")[2].split("\n\n")[0] + "\n"
        _, name, encoded = segment.with_suffix(".receipt").read_text().split(" ")
        blob = base64.b64decode(encoded)
        message = f"cosignature/v1\ntime {int.from_bytes(blob[4:12], 'big')}\n{text}".encode()
        assert name == key.name
        assert self.verify(tmp_path, key.public_key, message, blob[12:])
        assert not self.verify(tmp_path, key.public_key, message.replace(b"time ", b"time 1"), blob[12:])

    def test_the_verifiers_own_checkpoint(self, demo: Demo, tmp_path: Path) -> None:
        trust = parse_trust((demo.folder / "trust.json").read_bytes())
        text, line = (demo.folder / "evidence" / "verifier-log" / "checkpoint").read_text().split("\n\n")
        blob = base64.b64decode(line.split(" ")[2])
        assert self.verify(tmp_path, parse_vkey(trust.log_vkey).public_key, f"{text}\n".encode(), blob[4:])

    def test_the_chain_with_printf_and_sha256sum(self, demo: Demo, tmp_path: Path) -> None:
        shell, _ = require_program("sh"), require_program("sha256sum")
        command = """
            sed -n 1p "$1" | tr -d '\\n' > first
            { printf '\\0'; cat first; } | sha256sum | cut -d' ' -f1
            sed -n 2p "$1" | sed 's/.*"prev":"\\([0-9a-f]*\\)".*/\\1/'
        """
        segments = (p for p in (demo.folder / "evidence").rglob("*.segment"))
        long = next(p for p in sorted(segments) if p.read_text().partition("\n\n")[0].count("\n") >= 1)
        done = subprocess.run(
            [shell, "-c", command, "sh", long], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        computed, written = done.stdout.split()
        assert computed == written
