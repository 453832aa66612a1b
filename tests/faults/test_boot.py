"""The unit under a live systemd: started, told, watched, killed, upgraded, sealed, stopped, retired."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_agent.signer import FileSigner
from keyturn_protocol.entries import Inventory, Paused, Recovered, Retired, Shutdown, Usage
from keyturn_protocol.ids import Origin
from keyturn_protocol.usage import EMPTY, fold
from tests.agent.conftest import library
from tests.agent.fakes import FakeVerifier
from tests.faults.booting import AGENT, HERE, STATE, Booted, boot
from tests.faults.table import record

__all__ = ("library",)
"""A fixture."""


@pytest.fixture
def booted(tmp_path: Path, library: Path) -> Iterator[Booted]:
    with boot(tmp_path, library, FakeVerifier()) as made:
        yield made


def agent(booted: Booted, command: str, *arguments: str) -> str:
    return booted.machine.run("keyturn-agent", command, "--state", str(STATE), *arguments)


def test_the_life_of_the_service(booted: Booted) -> None:
    made = booted.machine

    def seen(what: str, expected: str, saw: str) -> None:
        record("faults", "agent under systemd", what, expected=expected, seen=saw)

    # Type=notify: the start comes back once the log is open and has its inventory.
    made.run("systemctl", "start", AGENT)
    found = made.show(AGENT, "ActiveState", "StatusText", "NRestarts", "Type", "WatchdogUSec")
    assert (found["ActiveState"], found["NRestarts"], found["Type"]) == ("active", "0", "notify")
    assert found["StatusText"].startswith("metering into test.example.org/node/")
    status = dict(line.split(":\t", 1) for line in made.run("cat", f"/proc/{booted.pid()}/status").splitlines())
    assert set(status["Uid"].split()) != {"0"}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert made.run("stat", "-c", "%a %U", str(STATE)).split() == ["700", "keyturn-agent"]
    booted.received(0, Usage)
    seen("systemctl start", "ready once it meters", "active; no capability; usage receipted")

    # kill -9: started again, the log goes on.
    size = len(booted.entries())
    made.run("systemctl", "kill", "-s", "KILL", AGENT)
    made.until(AGENT, lambda f: int(f["NRestarts"]) == 1 and f["ActiveState"] == "active", "NRestarts", "ActiveState")
    booted.received(size, Inventory)
    seen("kill -9", "started again, one log", "active; the same log")

    # A loop that stands still is noticed by the watchdog.
    made.run("systemctl", "set-property", "--runtime", AGENT, "CPUWeight=100", check=False)
    made.run("mkdir", "-p", f"/run/systemd/system/{AGENT}.d")
    made.run("bash", "-c", f"printf '[Service]\\nWatchdogSec=4\\n' > /run/systemd/system/{AGENT}.d/watchdog.conf")
    made.run("systemctl", "daemon-reload")
    made.run("systemctl", "restart", AGENT)
    before = int(made.show(AGENT, "NRestarts")["NRestarts"])
    made.run("kill", "-STOP", booted.pid())
    made.until(
        AGENT, lambda f: int(f["NRestarts"]) > before and f["ActiveState"] == "active", "NRestarts", "ActiveState"
    )  # fmt: skip
    assert "atchdog timeout" in made.run("journalctl", "-u", AGENT, "-o", "cat", "--no-pager")
    size = len(booted.entries())
    booted.received(size, Usage)
    seen("a loop that stands still", "the watchdog ends it", "started again; the same log")
    made.run("rm", f"/run/systemd/system/{AGENT}.d/watchdog.conf")
    made.run("systemctl", "daemon-reload")

    # An upgrade: stop, start, and the gap that the log itself shows.
    made.run("systemctl", "restart", AGENT)
    size = len(booted.entries())
    booted.received(size, Usage)
    last = max(n for n, entry in enumerate(booted.entries()) if isinstance(entry, Shutdown))
    gaps = fold(Origin("x"), EMPTY, booted.entries()).gaps
    upgrade = max(g.to_us - g.from_us for g in gaps if g.from_us <= booted.entries()[last].time_us <= g.to_us)
    print(f"the gap of an upgrade: {upgrade / 1e6:.2f} s")
    seen("systemctl restart", "one gap with its cause, the log goes on", "a gap of seconds, cause shutdown")

    # A pause holds over a restart, and systemd has nothing against it.
    agent(booted, "pause", "--for", "10m", "--reason", "driver")
    made.run("systemctl", "restart", AGENT)
    size = len(booted.entries())
    booted.received(0, Paused)
    assert "paused     until" in agent(booted, "status")
    agent(booted, "resume")
    booted.received(size, Usage)
    seen("a restart while paused", "paused until its end", "active; NVML closed until resume")

    # The key under the running service.
    assert agent(booted, "key-roll").rstrip().endswith("/2")
    assert {log.head.frozen for log in booted.verifier.logs.values()} == {None}
    seen("key-roll under the service", "no restart", "rolled; metered across")
    made.run("systemctl", "stop", AGENT)
    assert isinstance(booted.verifier.entries(2)[-1], Shutdown)
    assert not any(isinstance(entry, Recovered) for entry in booted.verifier.entries(2))


def test_a_sealed_key_and_a_retirement(booted: Booted) -> None:
    made = booted.machine
    key = made.upper / str(STATE.relative_to("/")) / "key"
    public = FileSigner.load(key).public_key
    made.run("install", "-d", "/etc/keyturn")
    # This machine has no TPM of its own: sealed to the host's secret instead, else as the drop-in says.
    sealed = made.run(
        "systemd-creds", "encrypt", "--with-key=host", "--name=keyturn-agent.key", f"{STATE}/key",
        "/etc/keyturn/keyturn-agent.key.cred", check=False,
    )  # fmt: skip
    if not (made.upper / "etc/keyturn/keyturn-agent.key.cred").exists():
        pytest.skip(f"systemd-creds can't seal here: {sealed}")
    made.run("rm", f"{STATE}/key")
    drop_in = f"/etc/systemd/system/{AGENT}.d/sealed-key.conf"
    made.run("install", "-Dm644", f"{HERE}/sealed-key.conf", drop_in)
    made.run("systemctl", "daemon-reload")
    made.run("systemctl", "start", AGENT)
    booted.received(0, Usage)
    assert {log.head.public_key for log in booted.verifier.logs.values()} == {public}
    refused = subprocess.run(
        ["nsenter", "-t", str(made.pid), "-m", "-p", "--", "keyturn-agent", "key-roll", "--state", str(STATE)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (refused.returncode, "sealed" in refused.stderr) == (1, True)
    # Retired: it ends, and nothing starts it again.
    assert "retired" in agent(booted, "retire", "--reason", "scrapped")
    made.until(AGENT, lambda f: f["ActiveState"] == "inactive", "ActiveState", "SubState", "Result", "ConditionResult")
    assert isinstance(booted.entries()[-1], Retired)
    restarts = made.show(AGENT, "NRestarts")["NRestarts"]
    made.run("systemctl", "start", AGENT)
    found = made.show(AGENT, "ActiveState", "NRestarts", "ConditionResult")
    assert found == {"ActiveState": "inactive", "NRestarts": restarts, "ConditionResult": "no"}
    record("faults", "agent under systemd", "key sealed by systemd-creds; retire under the service",
           expected="signs with the credential; not started again", seen="inactive, ConditionResult=no")  # fmt: skip
