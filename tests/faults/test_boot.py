"""The unit under a live systemd: started, told, watched, killed, upgraded, sealed, stopped, retired."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import keyturn_agent
import keyturn_protocol
from keyturn_agent.signer import FileSigner
from keyturn_protocol.entries import Entry, Inventory, Paused, Recovered, Retired, Shutdown, Usage
from keyturn_protocol.ids import Origin
from keyturn_protocol.usage import EMPTY, fold
from tests.agent.conftest import library
from tests.agent.fakes import TOKEN, FakeVerifier, over_http
from tests.agent.live import RealTime
from tests.agent.nvml_stub.stub import Control, Script
from tests.faults.table import LONG, record
from tests.support.machine import Machine, machine
from tests.support.paths import REPO

__all__ = ("library",)
"""A fixture."""

UNIT = "keyturn-agent.service"
STATE = Path("/var/lib/keyturn-agent")
SYSTEMD = REPO / "agent" / "systemd"
DROP_IN = """\
[Service]
Environment=LD_LIBRARY_PATH=/opt/keyturn/nvml
Environment=KEYTURN_NVML_STUB=/opt/keyturn/nvml/script.txt KEYTURN_NVML_CONTROL=/opt/keyturn/nvml/control
ReadWritePaths=/opt/keyturn/nvml
"""
"""The stub in the driver's place. It is told the time through a file, which has to be writable."""
PROGRAM = """\
#!/bin/sh
# This interpreter's own libraries, wherever it was built for.
export LD_LIBRARY_PATH=/opt/keyturn/python/lib:$LD_LIBRARY_PATH
export PYTHONPATH=/opt/keyturn/agent:/opt/keyturn/protocol:/opt/keyturn/site
exec /opt/keyturn/python/bin/python3 -m keyturn_agent "$@"
"""


@dataclass
class Booted:
    machine: Machine
    verifier: FakeVerifier

    def entries(self) -> list[Entry]:
        return list(self.verifier.entries())

    def active(self, restarts: int = 0) -> None:
        self.machine.until(
            UNIT,
            lambda found: found["ActiveState"] == "active" and int(found["NRestarts"]) >= restarts,
            "ActiveState", "NRestarts", "Result",
        )  # fmt: skip

    def pid(self) -> str:
        return self.machine.show(UNIT, "MainPID")["MainPID"]

    def received(self, size: int, kind: type[Entry]) -> None:
        """Wait for an entry of a kind after the first ``size``."""
        deadline = threading.Event()
        for _ in range(600):
            if any(isinstance(entry, kind) for entry in self.entries()[size:]):
                return
            deadline.wait(0.1)
        raise AssertionError(f"no {kind.__name__} came: {self.machine.journal()}")


@pytest.fixture
def booted(tmp_path: Path, library: Path) -> Iterator[Booted]:
    if not LONG:
        pytest.skip("boots a machine: under make faults")
    nvml = library.parent
    control = Control(nvml / "control")
    Script().gpu(0).gpu(1).steady("0", 600).steady("1", 600).write(nvml / "script.txt")
    nvml.chmod(0o755)
    (nvml / "control").chmod(0o666)
    (nvml / "script.txt").chmod(0o644)
    site = tmp_path / "site"
    site.mkdir()
    binds = {
        # Not where home folders are: the unit hides those.
        Path(sys.base_prefix): "/opt/keyturn/python",
        Path(next(p for p in sys.path if p.endswith("site-packages"))): "/opt/keyturn/site",
        Path(keyturn_agent.__path__[0]).parent: "/opt/keyturn/agent",
        Path(keyturn_protocol.__path__[0]).parent: "/opt/keyturn/protocol",
        nvml: "/opt/keyturn/nvml",
        site: "/opt/keyturn/host",
    }
    verifier = FakeVerifier()
    (site / "trust.json").write_bytes(verifier.pinned.data)
    (site / "token").write_text(TOKEN)
    with over_http(verifier) as url, machine(tmp_path / "machine", binds) as made, RealTime(control):
        program = site / "keyturn-agent"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        (site / "drop-in.conf").write_text(DROP_IN)
        (site / "agent.toml").write_text(
            "[upload]\njitter_s = 0\ninterval_s = 1\n[usage]\ninterval_s = 1\n[heartbeat]\ninterval_s = 1\n"
        )
        for file in (path for path in SYSTEMD.rglob("*") if path.is_file()):
            shutil.copy(file, site)
        here = "/opt/keyturn/host"
        made.run("install", "-Dm755", f"{here}/keyturn-agent", "/usr/bin/keyturn-agent")
        made.run("install", "-Dm644", f"{here}/keyturn-agent.sysusers.conf", "/usr/lib/sysusers.d/keyturn-agent.conf")
        made.run("install", "-Dm644", f"{here}/{UNIT}", f"/etc/systemd/system/{UNIT}")
        made.run("install", "-Dm644", f"{here}/drop-in.conf", f"/etc/systemd/system/{UNIT}.d/stub.conf")
        made.run("install", "-Dm644", f"{here}/agent.toml", "/etc/keyturn/agent.toml")
        made.run("systemd-sysusers")
        made.run("systemctl", "daemon-reload")
        made.run("install", "-d", "-m", "700", "-o", "keyturn-agent", "-g", "keyturn-agent", str(STATE))
        made.run(
            "setpriv", "--reuid=keyturn-agent", "--regid=keyturn-agent", "--clear-groups", "keyturn-agent", "enroll",
            "--state", str(STATE), "--source", "nvml", "--verifier", url, "--trust", f"{here}/trust.json",
            "--token-file", f"{here}/token",
        )  # fmt: skip
        yield Booted(made, verifier)


def agent(booted: Booted, command: str, *arguments: str) -> str:
    return booted.machine.run("keyturn-agent", command, "--state", str(STATE), *arguments)


def test_the_life_of_the_service(booted: Booted) -> None:
    made = booted.machine

    def seen(what: str, expected: str, saw: str) -> None:
        record("faults", "agent under systemd", what, expected=expected, seen=saw)

    # Type=notify: the start comes back once the log is open and has its inventory.
    made.run("systemctl", "start", UNIT)
    found = made.show(UNIT, "ActiveState", "StatusText", "NRestarts", "Type", "WatchdogUSec")
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
    made.run("systemctl", "kill", "-s", "KILL", UNIT)
    made.until(UNIT, lambda f: int(f["NRestarts"]) == 1 and f["ActiveState"] == "active", "NRestarts", "ActiveState")
    booted.received(size, Inventory)
    seen("kill -9", "started again, one log", "active; the same log")

    # A loop that stands still is noticed by the watchdog.
    made.run("systemctl", "set-property", "--runtime", UNIT, "CPUWeight=100", check=False)
    made.run("mkdir", "-p", f"/run/systemd/system/{UNIT}.d")
    made.run("bash", "-c", f"printf '[Service]\\nWatchdogSec=4\\n' > /run/systemd/system/{UNIT}.d/watchdog.conf")
    made.run("systemctl", "daemon-reload")
    made.run("systemctl", "restart", UNIT)
    before = int(made.show(UNIT, "NRestarts")["NRestarts"])
    made.run("kill", "-STOP", booted.pid())
    made.until(
        UNIT, lambda f: int(f["NRestarts"]) > before and f["ActiveState"] == "active", "NRestarts", "ActiveState"
    )  # fmt: skip
    assert "atchdog timeout" in made.run("journalctl", "-u", UNIT, "-o", "cat", "--no-pager")
    size = len(booted.entries())
    booted.received(size, Usage)
    seen("a loop that stands still", "the watchdog ends it", "started again; the same log")
    made.run("rm", f"/run/systemd/system/{UNIT}.d/watchdog.conf")
    made.run("systemctl", "daemon-reload")

    # An upgrade: stop, start, and the gap that the log itself shows.
    made.run("systemctl", "restart", UNIT)
    size = len(booted.entries())
    booted.received(size, Usage)
    last = max(n for n, entry in enumerate(booted.entries()) if isinstance(entry, Shutdown))
    gaps = fold(Origin("x"), EMPTY, booted.entries()).gaps
    upgrade = max(g.to_us - g.from_us for g in gaps if g.from_us <= booted.entries()[last].time_us <= g.to_us)
    print(f"the gap of an upgrade: {upgrade / 1e6:.2f} s")
    seen("systemctl restart", "one gap with its cause, the log goes on", "a gap of seconds, cause shutdown")

    # A pause holds over a restart, and systemd has nothing against it.
    agent(booted, "pause", "--for", "10m", "--reason", "driver")
    made.run("systemctl", "restart", UNIT)
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
    made.run("systemctl", "stop", UNIT)
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
    drop_in = f"/etc/systemd/system/{UNIT}.d/sealed-key.conf"
    made.run("install", "-Dm644", "/opt/keyturn/host/sealed-key.conf", drop_in)
    made.run("systemctl", "daemon-reload")
    made.run("systemctl", "start", UNIT)
    booted.received(0, Usage)
    assert {log.head.public_key for log in booted.verifier.logs.values()} == {public}
    refused = subprocess.run(
        ["nsenter", "-t", str(made.pid), "-m", "-p", "--", "keyturn-agent", "key-roll", "--state", str(STATE)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (refused.returncode, "sealed" in refused.stderr) == (1, True)
    # Retired: it ends, and nothing starts it again.
    assert "retired" in agent(booted, "retire", "--reason", "scrapped")
    made.until(UNIT, lambda f: f["ActiveState"] == "inactive", "ActiveState", "SubState", "Result", "ConditionResult")
    assert isinstance(booted.entries()[-1], Retired)
    restarts = made.show(UNIT, "NRestarts")["NRestarts"]
    made.run("systemctl", "start", UNIT)
    found = made.show(UNIT, "ActiveState", "NRestarts", "ConditionResult")
    assert found == {"ActiveState": "inactive", "NRestarts": restarts, "ConditionResult": "no"}
    record("faults", "agent under systemd", "key sealed by systemd-creds; retire under the service",
           expected="signs with the credential; not started again", seen="inactive, ConditionResult=no")  # fmt: skip
