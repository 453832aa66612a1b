"""A host under a live systemd: the shipped units on a machine with the stub of NVML, and a verifier that it reaches."""

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import keyturn_agent
import keyturn_gate
import keyturn_protocol
from keyturn_protocol.entries import Entry
from tests.agent.fakes import TOKEN, FakeVerifier, over_http
from tests.agent.live import RealTime
from tests.agent.nvml_stub.stub import Control, Script
from tests.faults.table import LONG
from tests.support.machine import Machine, machine
from tests.support.paths import REPO

AGENT: Final = "keyturn-agent.service"
GATE: Final = "keyturn-gate.service"
STATE: Final = Path("/var/lib/keyturn-agent")
HERE: Final = "/opt/keyturn/host"
UNITS: Final = "/etc/systemd/system"
STUB: Final = """\
[Service]
Environment=LD_LIBRARY_PATH=/opt/keyturn/nvml
Environment=KEYTURN_NVML_STUB=/opt/keyturn/nvml/script.txt KEYTURN_NVML_CONTROL=/opt/keyturn/nvml/control
ReadWritePaths=/opt/keyturn/nvml
"""
"""The stub in the driver's place. It is told the time through a file, which has to be writable."""
SETTINGS: Final = "[upload]\njitter_s = 0\ninterval_s = 1\n[usage]\ninterval_s = 1\n[heartbeat]\ninterval_s = 1\n"
_PROGRAM: Final = """\
#!/bin/sh
# This interpreter's own libraries, wherever it was built for.
export LD_LIBRARY_PATH=/opt/keyturn/python/lib:$LD_LIBRARY_PATH
export PYTHONPATH=/opt/keyturn/agent:/opt/keyturn/gate:/opt/keyturn/protocol:/opt/keyturn/site
exec /opt/keyturn/python/bin/python3 -m {module} "$@"
"""


@dataclass
class Booted:
    machine: Machine
    verifier: FakeVerifier

    def entries(self) -> list[Entry]:
        return list(self.verifier.entries())

    def pid(self, unit: str = AGENT) -> str:
        return self.machine.show(unit, "MainPID")["MainPID"]

    def received(self, size: int, kind: type[Entry]) -> None:
        """Wait for an entry of a kind after the first ``size``."""
        deadline = threading.Event()
        for _ in range(600):
            if any(isinstance(entry, kind) for entry in self.entries()[size:]):
                return
            deadline.wait(0.1)
        raise AssertionError(f"no {kind.__name__} came: {self.machine.journal()}")


@contextmanager
def boot(
    folder: Path, library: Path, verifier: FakeVerifier, pin: str | None = None, more: str = ""
) -> Iterator[Booted]:
    """A machine on which the agent is installed and enrolled, and, with ``pin``, its gate too; none is started.

    :param pin: the root that the host pins, in place of a trust file.
    :param more: settings of the agent.
    """
    if not LONG:
        pytest.skip("boots a machine: under make faults")
    nvml = library.parent
    control = Control(nvml / "control")
    Script().gpu(0).gpu(1).steady("0", 600).steady("1", 600).write(nvml / "script.txt")
    nvml.chmod(0o755)
    (nvml / "control").chmod(0o666)
    (nvml / "script.txt").chmod(0o644)
    site = folder / "site"
    site.mkdir()
    binds = {
        # Not where home folders are: the units hide those.
        Path(sys.base_prefix): "/opt/keyturn/python",
        Path(next(p for p in sys.path if p.endswith("site-packages"))): "/opt/keyturn/site",
        Path(keyturn_agent.__path__[0]).parent: "/opt/keyturn/agent",
        Path(keyturn_gate.__path__[0]).parent: "/opt/keyturn/gate",
        Path(keyturn_protocol.__path__[0]).parent: "/opt/keyturn/protocol",
        nvml: "/opt/keyturn/nvml",
        site: HERE,
    }
    (site / "trust.json").write_bytes(verifier.pinned.data)
    (site / "token").write_text(TOKEN)
    with over_http(verifier) as url, machine(folder / "machine", binds) as made, RealTime(control):
        (site / "stub.conf").write_text(STUB)
        (site / "agent.toml").write_text(SETTINGS + more)
        for part in ("agent", "gate") if pin else ("agent",):
            program = site / f"keyturn-{part}"
            program.write_text(_PROGRAM.format(module=f"keyturn_{part}"))
            program.chmod(0o755)
            for file in (path for path in (REPO / part / "systemd").rglob("*") if path.is_file()):
                shutil.copy(file, site)
            made.run("install", "-Dm755", f"{HERE}/keyturn-{part}", f"/usr/bin/keyturn-{part}")
            made.run("install", "-Dm644", f"{HERE}/keyturn-{part}.service", "-t", UNITS)
            made.run("install", "-Dm644", f"{HERE}/stub.conf", f"{UNITS}/keyturn-{part}.service.d/stub.conf")
        if pin:
            made.run("install", "-Dm644", f"{HERE}/keyturn-gate.socket", "-t", UNITS)
        made.run("install", "-Dm644", f"{HERE}/keyturn-agent.sysusers.conf", "/usr/lib/sysusers.d/keyturn-agent.conf")
        made.run("install", "-Dm644", f"{HERE}/agent.toml", "/etc/keyturn/agent.toml")
        made.run("systemd-sysusers")
        made.run("systemctl", "daemon-reload")
        made.run("install", "-d", "-m", "700", "-o", "keyturn-agent", "-g", "keyturn-agent", str(STATE))
        made.run(
            "setpriv", "--reuid=keyturn-agent", "--regid=keyturn-agent", "--clear-groups", "keyturn-agent", "enroll",
            "--state", str(STATE), "--source", "nvml", "--verifier", url,
            *(("--root", f"sha256:{pin}") if pin else ("--trust", f"{HERE}/trust.json")),
            "--token-file", f"{HERE}/token",
        )  # fmt: skip
        yield Booted(made, verifier)
