"""A host of 8 busy GPUs on the tests' stub of NVML, in the host's own time, for programs that load the driver."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from keyturn_protocol.entries import Usage, parse_entry
from keyturn_protocol.segment import parse_segment
from tests.agent.nvml_stub.stub import FOREVER, HERE, Control, Script, build
from tests.support.paths import REPO
from tests.support.verifier import Verifier

CHIPS = 8
_KCYCLES = 10**12
_PER_CENT = {248: 100, 249: 80, 250: 40, 251: 0, 252: 40, 253: 0, 254: 0, 258: 1, 259: 9, 260: 2}
"""GPM counters, as parts of the clock."""
_MEANS = {"g2": 80, "g5": 40, "g6": 0, "g7": 40, "g8": 0, "g9": 0, "g10": 25, "g11": 1, "g12": 9, "g13": 2}
_RATES = {"g20": 100, "g21": 200, "g60": 300_000, "g61": 310_000}


class Host:
    """The stub's library and script in ``folder``, and a process of one workload on every chip. Use it as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = build("cc", folder / "lib", "-O2", str(HERE / "more.c"))

    def __enter__(self) -> "Host":
        self._busy = [subprocess.Popen(["sleep", "infinity"]) for _ in range(CHIPS)]
        script = Script().host("clock", "boottime")
        for chip, process in enumerate(self._busy):
            unit = str(chip)
            script.gpu(chip, links=18)
            script.at(0, unit, power_mw=600_000, clock_mhz=1500, memory_mib=71_000, reasons=0, busy_percent=100)
            script.at(FOREVER, unit, **_MEANS, **_RATES)
            script.add("grow", unit, "energy_mj", 5_000_000, 600_000)
            for metric, percent in _PER_CENT.items():
                script.add("grow", unit, f"g{metric}", _KCYCLES, 15_000_000 * percent)
            script.add("process", unit, process.pid, 70_000, 90)
        script.write(self.folder / "script")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._busy:
            process.kill()
            process.wait()

    def start(self, name: str, *command: str | Path, **more: str) -> "Program":
        """Start a program; what it says goes into ``<name>.log``."""
        control = Control(self.folder / f"{name}.control")
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "KEYTURN_NVML_STUB": str(self.folder / "script"),
            "KEYTURN_NVML_CONTROL": str(control.path),
            "PYTHONPATH": f"{REPO / 'protocol'}:{REPO / 'agent'}",
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)], env=environment | more, stdout=log, stderr=log
            )
        return Program(process, control)

    def enroll(self, verifier: Verifier) -> None:
        """Enrol this host, so that :meth:`run_agent` can."""
        trust = verifier.state / "trust.json"
        joining = self.start(
            "enroll", "-m", "keyturn_agent", "enroll", "--source", "nvml", "--state", self.folder / "host",
            "--verifier", verifier.client.url, "--trust", trust, KEYTURN_JOIN_TOKEN=verifier.join_token(),
        )  # fmt: skip
        assert joining.process.wait(timeout=60) == 0, (self.folder / "enroll.log").read_text()

    def run_agent(self) -> "Program":
        """Samples once a second, an entry every 10 s, sealed and sent every 60 s."""
        return self.start(
            "agent", "-m", "keyturn_agent", "run", "--source", "nvml", "--state", self.folder / "host",
            "--period", "1s", "--interval", "10", "--checkpoint-every", "60",
        )  # fmt: skip


@dataclass(frozen=True)
class Program:
    """One that runs, and what the stub tells of it."""

    process: "subprocess.Popen[bytes]"
    control: Control

    def end(self) -> int:
        """SIGTERM, as systemd does it; returns the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=60)


def usage_of(verifier: Verifier, bundle: Path) -> list[Usage]:
    """The usage entries that the verifier has of its one log, by way of a bundle that passes the audit."""
    report = verifier.audit(verifier.export(bundle))
    assert report.outcome == "pass", report.reasons
    segments = sorted((parse_segment(path.read_bytes()) for path in bundle.rglob("*.segment")), key=lambda s: s.start)
    entries = [parse_entry(line) for segment in segments for line in segment.lines]
    return [entry for entry in entries if isinstance(entry, Usage)]
