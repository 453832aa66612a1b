"""A host for fault injection: the agent's commands on one folder, and what must hold whatever happened to them."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keyturn_agent.log_files import Intended
from keyturn_agent.spool import read_segment
from keyturn_agent.status import read_status
from keyturn_protocol.canonical import decode
from tests.faults.strace import Call, Fault
from tests.faults.warm import Ended, Warm
from tests.support.paths import REPO

FIXTURE: Final = REPO / "hardware_fixtures" / "derived_idle_host" / "recording.jsonl"
SAMPLES: Final = 6
PRELOAD: Final = ("keyturn_agent.sources.replay",)
Heads = dict[tuple[str, int], str]
"""Roots of signed or intended heads, by log and size."""


@dataclass
class Host:
    """One host's folder, with the files that its commands read beside its state."""

    folder: Path
    url: str
    token: str
    warm: Warm
    heads: Heads = field(default_factory=dict)
    receipts: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        lines = FIXTURE.read_text().splitlines()[: SAMPLES + 1]
        (self.folder / "recording.jsonl").write_text("\n".join(lines) + "\n")
        settings = f'[retention]\ndays = 0\n\n[metrics]\ntextfile = "{self.folder}/keyturn.prom"\n'
        (self.folder / "agent.toml").write_text(settings)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def command(self, name: str, patience_s: int = 30) -> list[str]:
        """The arguments of a command by its name. `patience_s`: how long it may wait for receipts."""
        common = ["--state", str(self.state), "--config", f"{self.folder}/agent.toml"]
        replay = ["--recording", f"{self.folder}/recording.jsonl"]
        fast = ["--interval", "2", "--checkpoint-every", "2", "--until-end", "--drain", str(patience_s)]
        match name:
            case "enroll":
                trust = ["--verifier", self.url, "--trust", f"{self.folder}/trust.json", "--timeout", str(patience_s)]
                return ["enroll", *common, *replay, *trust]
            case "run":
                return ["run", *common, *replay, *fast, "--speed", "20"]
            case "fast":
                return ["run", *common, *replay, *fast, "--fast"]
            case "key-roll":
                return ["key-roll", *common, "--timeout", str(patience_s)]
            case "retire":
                return ["retire", *common, "--timeout", str(patience_s), "--reason", "scrapped"]
            case "status":
                return ["status", "--state", str(self.state), "--json"]
            case _:
                raise AssertionError(name)

    @property
    def env(self) -> dict[str, str]:
        # The verifier is met without TLS: reading all of the system's certificates would be half of each run.
        return {"KEYTURN_JOIN_TOKEN": self.token, "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": "/nonexistent"}

    def run(self, name: str) -> Ended:
        """A command that has to succeed. `roll once`: a roll that didn't begin is asked for again."""
        if name == "roll once":
            name = "key-roll" if read_status(self.state).incarnation == 1 else "status"
        ended = self.warm.run(self.folder, *self.command(name), env=self.env)
        assert ended.status == 0, f"{name} ended with {ended.status}:\n{ended.err}"
        assert "Traceback" not in ended.err, ended.err
        return ended

    def look(self) -> None:
        """Remember the heads and the receipts that are on disk; a head that is there twice must be one head."""
        for path in self.state.glob("logs/[0-9]*/*.segment"):
            if path.parent.name.isdigit():
                head = read_segment(path).checkpoint
                self._see(head.origin, head.size, head.root.hex())
        for path in self.state.glob("logs/[0-9]*/state"):
            intended: Intended = decode(path.read_bytes(), Intended, limit=1 << 20)
            self._see(intended.origin, intended.size, intended.root)
        for path in self.state.glob("logs/[0-9]*/*.receipt"):
            name = f"{path.parent.name}/{path.name}"
            assert self.receipts.setdefault(name, path.read_bytes()) == path.read_bytes(), f"{name} has changed"

    def _see(self, origin: str, size: int, root: str) -> None:
        known = self.heads.setdefault((origin, size), root)
        assert known == root, f"two heads of size {size}: {known} and {root}"

    def check(self, incarnation: int) -> None:
        """That everything is signed, sent and receipted, in the log that it should be."""
        self.look()
        status = read_status(self.state)
        assert (status.incarnation, status.spool_segments) == (incarnation, 0), status
        assert status.sealed == status.receipted > 0, status
        assert not (self.state / "logs" / str(incarnation) / "tail").read_bytes(), "entries that no head covers"

    def remove(self) -> None:
        """Forget the files."""
        for path in self.folder.parent.glob(f"{self.folder.name}.*"):
            path.unlink()
        shutil.rmtree(self.folder)

    @property
    def node(self) -> str:
        config: dict[str, str] = json.loads((self.state / "config.json").read_bytes())
        return config["node_id"]


def _enrolled(host: Host) -> None:
    host.run("enroll")


def _metered(host: Host) -> None:
    host.run("enroll")
    host.run("fast")


def _torn(host: Host) -> None:
    """What a power cut leaves: entries that no head covers yet, and half of the next one."""
    _metered(host)
    before_sealing = Call("state/logs/1/state.tmp", 1, "openat")
    assert host.warm.inject(host.folder, before_sealing, Fault.KILL, *host.command("fast"), env=host.env).killed
    with (host.state / "logs/1/tail").open("ab") as tail:
        assert tail.tell(), "no entries"
        tail.write(b'{"body":{"cut')


def _restored(host: Host) -> None:
    """An old snapshot of the folder, put back."""
    _metered(host)
    shutil.copytree(host.state, host.folder.with_name(host.folder.name + ".snapshot"))
    host.run("fast")
    shutil.rmtree(host.state)
    shutil.move(host.folder.with_name(host.folder.name + ".snapshot"), host.state)


@dataclass(frozen=True)
class Phase:
    """One part of a host's life: what comes before, the command that meets the fault, what is run after it."""

    name: str
    before: Callable[[Host], None]
    command: str
    after: tuple[str, ...]
    incarnation: int = 1
    findings: Mapping[str, int] = field(default_factory=dict)
    """Findings that it must raise, fault or not."""


PHASES: Final = (
    Phase("enrolment", lambda host: None, "enroll", ("enroll", "fast")),
    Phase("metering", _metered, "run", ("fast",)),
    Phase("recovery of a torn tail", _torn, "run", ("fast",), findings={"recovered": 1}),
    Phase("leaving a log that was rolled back", _restored, "run", ("fast",), 2, {"new_incarnation": 1, "lost_head": 1}),
    Phase("key roll", _metered, "key-roll", ("fast", "roll once", "fast"), 2, {"new_incarnation": 1}),
    Phase("retirement", _metered, "retire", ("retire",)),
    Phase("status", _metered, "status", ("fast",)),
)
