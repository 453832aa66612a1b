"""The operators' commands as processes, beside an agent that meters the stub in real time."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from keyturn_agent.recording import read_recording
from keyturn_protocol.entries import Paused
from tests.agent.fakes import TOKEN, FakeVerifier, over_http
from tests.agent.live import RealTime, agent
from tests.agent.nvml_stub.stories import two_gpus
from tests.agent.nvml_stub.stub import Control


@dataclass
class Site:
    """A verifier, an enrolled host and the stub."""

    folder: Path
    library: Path
    verifier: FakeVerifier
    control: Control

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        return agent(list(arguments), self.library, self.folder, KEYTURN_JOIN_TOKEN=TOKEN)

    def do(self, *arguments: str | Path) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, talk = process.communicate(timeout=60)
        assert "Traceback" not in talk, talk
        return process.returncode, out, talk


@pytest.fixture
def site(tmp_path: Path, library: Path) -> Iterator[Site]:
    control = Control(tmp_path / "control")
    two_gpus().add("process", 0, 4711, 1024, 50).write(tmp_path / "script.txt")
    verifier = FakeVerifier()
    (tmp_path / "trust.json").write_bytes(verifier.pinned.data)
    with over_http(verifier) as url, RealTime(control):
        site = Site(tmp_path, library, verifier, control)
        done = site.do(
            "enroll", "--state", site.state, "--source", "nvml", "--verifier", url, "--trust", tmp_path / "trust.json"
        )
        assert done[0] == 0, done[2]
        yield site


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


def test_pause_resume_and_top_beside_a_running_agent(site: Site) -> None:
    code, _, talk = site.do("pause", "--state", site.state, "--for", "1m", "--reason", "upgrade")
    assert (code, "no agent runs" in talk) == (1, True)
    running = site.start(
        "run", "--state", site.state, "--source", "nvml", "--label", "run:w", "--jitter", "0", "--period", "200ms"
    )
    try:
        status = site.state / "status.json"
        wait_for(lambda: status.exists() and bool(json.loads(status.read_text())["rows"]), running)
        code, out, talk = site.do("top", "--state", site.state)
        assert code == 0, talk
        assert "\x1b" not in out
        assert "300 W" in out
        assert "run:w 100 %" in out
        assert f"running, process {running.pid}" in out
        code, out, talk = site.do("pause", "--state", site.state, "--for", "10m", "--reason", "upgrade", "--json")
        assert code == 0, talk
        assert json.loads(out)["refused"] is None
        assert site.control.get("sessions") == 0
        assert "PAUSED" in site.do("top", "--state", site.state)[1]
        assert "paused     until 20" in site.do("status", "--state", site.state)[1]
        code, out, talk = site.do("resume", "--state", site.state)
        assert (code, out) == (0, "metering goes on\n"), talk
        wait_for(lambda: site.control.get("sessions") == 1, running)
        assert site.do("resume", "--state", site.state)[0] == 1
        running.terminate()
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.communicate()
    (paused,) = (e.body for e in site.verifier.entries() if isinstance(e, Paused))
    assert (paused.for_us, paused.reason) == (600_000_000, "upgrade")


def test_what_is_recorded_can_be_replayed(site: Site) -> None:
    out = site.folder / "new.jsonl"
    arguments: list[str | Path] = [
        "record",
        "--out",
        out,
        "--about",
        "two H100 in a test",
        "--for",
        "2s",
        "--period",
        "200ms",
    ]
    code, said, talk = site.do(*arguments, "--label", "run:w", "--dtype", "bf16")
    assert code == 0, talk
    recording = read_recording(out)
    assert said == f"{len(recording.samples)} samples in {out}\n"
    assert 5 <= len(recording.samples) <= 11
    assert recording.header.about == "two H100 in a test"
    (declared,) = recording.header.workloads
    assert (declared.id, declared.declared_dtype) == ("run:w", "bf16")
    first = recording.samples[-1].chips[0]
    assert first is not None
    assert first.tensor_ppm == 400_000
    assert [(s.chip, s.id) for s in recording.samples[-1].shares] == [(0, "run:w")]
    assert site.control.get("sessions") == 0
    before = out.read_bytes()
    code, _, talk = site.do(*arguments)
    assert (code, "File exists" in talk) == (2, True), "a recording is never written over"
    assert out.read_bytes() == before


def test_what_became_no_recording_is_not_left(site: Site) -> None:
    (site.folder / "script.txt").write_text("host driver 1\n")
    out = site.folder / "new.jsonl"
    code, _, talk = site.do("record", "--out", out, "--about", "x", "--for", "1s")
    assert (code, "shows no chips" in talk) == (2, True)
    assert not out.exists()


def test_doctor(site: Site) -> None:
    code, out, talk = site.do("doctor", "--state", site.state, "--json")
    found = {check["name"]: check for check in json.loads(out)["checks"]}
    assert found["state"]["state"] == found["verifier"]["state"] == found["nvml"]["state"] == "ok", talk
    assert found["gpm"]["state"] == "ok"
    assert "1 x " in found["workloads"]["detail"], "4711 is nobody here"
    assert (code == 0) == json.loads(out)["ok"]
    with (site.folder / "script.txt").open("a") as script:
        script.write("fail nvmlGpmSampleGet * 4 0 4000000000000 0\n")
    code, out, _ = site.do("doctor", "--state", site.state)
    assert code == 1
    assert "NVreg_RestrictProfilingToAdminUsers=0" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pause", "--state", "s", "--for", "25h", "--reason", "x"], "at most 24h"),
        (["pause", "--state", "s", "--for", "0s", "--reason", "x"], "--for"),
        (["pause", "--state", "s", "--for", "1m", "--reason", " "], "must say something"),
        (["pause", "--state", "s", "--for", "1m", "--reason", "a\nb"], "--reason"),
        (["pause", "--state", "s", "--for", "1m"], "--reason"),
        (["pause", "--state", "s", "--for", "1m", "--reason", "x"], "not an enrolled host"),
        (["resume", "--state", "s"], "not an enrolled host"),
        (["top", "--state", "s"], "not an enrolled host"),
        (["record", "--out", "o", "--about", "x", "--for", "1s", "--dtype", "bf16"], "--label"),
        (["record", "--out", "o", "--about", "x", "--for", "1s", "--label", "nokind"], "--label"),
        (["record", "--out", "o", "--about", "x", "--for", "1s", "--source", "replay"], "--recording"),
        (["record", "--out", "none/o", "--about", "x", "--for", "1s"], "--out"),
        (["record", "--out", "o", "--about", "x", "--for", "1s", "--period", "10ms"], "sample period"),
    ],
)
def test_wrong_use_is_said_and_leaves_nothing(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    process = agent(list(arguments), library, tmp_path)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 2, talk
    assert message in talk
    assert "Traceback" not in talk
    assert not list(tmp_path.iterdir())
