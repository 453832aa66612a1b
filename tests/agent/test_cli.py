"""The program itself, as processes, over a real socket."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from keyturn_protocol.entries import Shutdown, Usage
from tests.agent.fakes import TOKEN, FakeVerifier, over_http
from tests.agent.samples import steady_recording
from tests.faults.table import LONG

AGENT = [sys.executable, "-m", "keyturn_agent"]


def agent(*arguments: object, token: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "KEYTURN_JOIN_TOKEN"}
    if token is not None:
        env["KEYTURN_JOIN_TOKEN"] = token
    command = [*AGENT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


class Site:
    """A verifier on a port, and a host's folder that is enrolled there."""

    def __init__(self, folder: Path, verifier: FakeVerifier, url: str) -> None:
        self.state, self.verifier, self.url = folder / "state", verifier, url
        self.trust = folder / "trust.json"
        self.trust.write_bytes(verifier.pinned.data)
        self.recording = folder / "recording.jsonl"
        self.recording.write_bytes(steady_recording(30))

    def enroll(self, *more: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        where = ["--state", self.state, "--verifier", self.url, "--trust", self.trust]
        return agent("enroll", *where, *more, token=token)

    def run(self, *more: object) -> subprocess.CompletedProcess[str]:
        return agent("run", "--state", self.state, "--recording", self.recording, *more)

    def start(self, *more: object) -> subprocess.Popen[str]:
        command = [*AGENT, "run", "--state", self.state, "--recording", self.recording, *more]
        return subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)

    def holds(self, entries: int) -> bool:
        """Whether the verifier has so many entries."""
        return len(self.verifier.entries()) >= entries

    def status(self) -> dict[str, object]:
        done = agent("status", "--state", self.state, "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    verifier = FakeVerifier()
    with over_http(verifier) as url:
        yield Site(tmp_path, verifier, url)


def test_enrol_run_and_ask(site: Site) -> None:
    done = site.enroll()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("enrolled test.example.org/node/")
    done = site.run("--fast", "--start", "2026-11-21T23:59:50Z", "--label", "h1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    status = site.status()
    assert status["sealed"] == status["receipted"] == len(site.verifier.entries())
    assert status["running_pid"] is None
    assert isinstance(status["live"], dict)
    assert status["live"]["chips"] == ["h1-GPU-0"]
    usage = [e.body for e in site.verifier.entries() if isinstance(e, Usage)]
    assert [(u.to_us - u.from_us) // 1_000_000 for u in usage] == [10, 10, 10]
    assert "cannot be read" in agent("status", "--state", site.state).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--state", "nowhere", "--source", "nvml"], "error: "),
        (["run", "--state", "nowhere"], "--recording"),
        (["run", "--state", "nowhere", "--recording", "none.jsonl", "--fast"], "reading the recording"),
        (["status", "--state", "nowhere"], "keyturn-agent enroll"),
        (["enroll", "--state", "s", "--verifier", "https://v.example.org", "--trust", "none"], "trust"),
        (["run"], "--state"),
        ([], "usage: keyturn-agent"),
        (["run", "--state", "s", "--recording", "r", "--interval", "0"], "must be a whole number from 1"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = agent(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_refused_token_exits_with_1_and_is_not_shown(site: Site) -> None:
    done = site.enroll(token="secret-but-wrong")
    assert done.returncode == 1
    assert done.stderr.startswith("keyturn-agent: error: the verifier refuses to enrol this host")
    assert "secret-but-wrong" not in done.stderr + done.stdout
    assert not site.state.exists()


def test_no_verifier_exits_with_3(site: Site) -> None:
    site.url = "http://127.0.0.1:9"
    done = site.enroll("--wait", 2)
    assert done.returncode == 3
    assert "not enrolled yet" in done.stderr
    assert TOKEN not in done.stderr
    assert not site.state.exists()


def test_help_names_the_program() -> None:
    done = agent("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: keyturn-agent")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


def test_sigterm_ends_in_order_and_a_second_process_is_refused(site: Site) -> None:
    site.enroll()
    running = site.start("--jitter", "0", "--drain", "60")
    try:
        wait_for(lambda: site.status()["running_pid"] == running.pid, running)
        second = site.run("--fast")
        assert second.returncode == 1
        assert f"is in use by process {running.pid}" in second.stderr
        wait_for(lambda: len(site.verifier.entries()) > 2, running)
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    finally:
        running.kill()
        running.communicate()
    assert isinstance(site.verifier.entries()[-1], Shutdown)
    status = site.status()
    assert status["sealed"] == status["receipted"]


def test_speed_is_simulated_time_that_waits(site: Site) -> None:
    site.enroll()
    done = site.run("--speed", "1000", "--until-end", "--loop", "2")
    assert done.returncode == 0, done.stderr
    usage = [e.body for e in site.verifier.entries() if isinstance(e, Usage)]
    assert sum(u.energy_mj[0] or 0 for u in usage) == 60 * 300_000


def test_kill_9_at_any_moment_loses_nothing_receipted_and_never_forks(site: Site) -> None:
    site.enroll()
    chance = random.Random(7)
    receipted = 0
    for _ in range(24 if LONG else 6):
        running = site.start("--fast", "--loop", "100000", "--checkpoint-every", "20", "--heartbeat-every", "5")
        try:
            enough = len(site.verifier.entries()) + chance.randrange(1, 120)
            wait_for(partial(site.holds, enough), running)
            # Anywhere in the cycle of writing, sealing, sending and keeping the receipt.
            time.sleep(chance.random() * 0.05)
            running.send_signal(signal.SIGKILL)
        finally:
            running.kill()
            running.communicate()
        status = site.status()
        assert isinstance(status["receipted"], int)
        # What the verifier has, the folder has; what the folder knows to be receipted, the verifier has.
        assert receipted <= status["receipted"] <= len(site.verifier.entries())
        assert isinstance(status["sealed"], int)
        assert len(site.verifier.entries()) <= status["sealed"]
        receipted = status["receipted"]
    done = site.run("--fast")
    assert done.returncode == 0, done.stderr
    # The fake raises on an entry that doesn't follow, and a fork would have opened another incarnation.
    assert len(site.verifier.logs) == 1
    status = site.status()
    assert status["sealed"] == status["receipted"] == len(site.verifier.entries())
    assert len(site.verifier.entries()) > 100


def test_the_configuration_file_is_used_and_flags_override_it(site: Site) -> None:
    site.enroll()
    config = site.state.parent / "agent.toml"
    config.write_text("[usage]\ninterval_s = 5\n")
    assert site.run("--fast", "--config", config).returncode == 0
    assert site.run("--fast", "--config", config, "--interval", "15").returncode == 0
    usage = [e.body for e in site.verifier.entries() if isinstance(e, Usage)]
    assert [(u.to_us - u.from_us) // 1_000_000 for u in usage] == [5] * 6 + [15] * 2
    config.write_text("[upload]\ninterval_s = -5\n")
    done = site.run("--fast", "--config", config)
    assert (done.returncode, done.stderr) == (2, "keyturn-agent: error: upload.interval_s: must be > 0 (got -5)\n")


def test_a_run_leaves_its_metrics_in_the_file_that_was_asked_for(site: Site) -> None:
    site.enroll()
    config, metrics = site.state.parent / "agent.toml", site.state.parent / "keyturn.prom"
    config.write_text(f'[metrics]\ntextfile = "{metrics}"\n')
    assert site.run("--fast", "--config", config).returncode == 0
    lines = metrics.read_text().splitlines()
    assert "keyturn_agent_up 0" in lines
    assert any(line.startswith("keyturn_agent_log_entries ") for line in lines)
