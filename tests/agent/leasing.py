"""A verifier in memory that leases, and a host whose agent, gate and runs are real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from keyturn_agent.ports import Answer
from keyturn_agent.recording import read_recording
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.charging import Charge
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entries import Degraded, Entry, Inventory, Lease, Permit
from keyturn_protocol.ids import Deployment, parse_origin
from keyturn_protocol.lease import AllowanceName, lease_subject, parse_lease
from keyturn_protocol.openings import Opening, Openings, commitment, format_openings
from tests.agent.fakes import TOKEN, FakeVerifier, over_http, refusal
from tests.agent.nvml_stub.stub import Control, Script
from tests.support.assembly import Assembly, lease_note
from tests.support.gates import Gate, gate, until
from tests.support.hosts import Key
from tests.support.optional import require
from tests.support.parties import NAME, SECOND, scope
from tests.support.paths import REPO

FIXTURE: Final = REPO / "hardware_fixtures" / "h100_pcie_training" / "recording.jsonl"
AGENT: Final = [sys.executable, "-m", "keyturn_agent"]


class Leasing(FakeVerifier):
    """The fake with a hall of people behind it; what it leases, it leases as it is told."""

    deployment = Deployment(NAME)

    def __init__(self, **changes: Any) -> None:
        super().__init__(Key("service log").private, Key("service receipt").private)
        self.hall = Assembly(**changes)
        self.hall.now_us = time.time_ns() // 1000 - 3600 * SECOND
        self.issued: dict[tuple[str, int], bytes] = {}
        self.sequences: dict[str, int] = {}
        self.terms: dict[str, Any] = {}
        """Fields of the leases from here on."""
        self.answer: Callable[[str, int], Answer | None] = lambda origin, seq: None
        """What is said in place of a lease."""
        self.news = threading.Condition()

    def approved(self, **changes: Any) -> str:
        """A run that the quorum has signed for, a minute ago."""
        hall = self.hall
        hall.now_us = time.time_ns() // 1000 - 600 * SECOND
        window = {"not_before_us": 0, "not_after_us": hall.now_us + 10 * 86_400 * SECOND}
        run = hall.say(hall.request(**{"scope": scope(**window)} | changes), "lab-a/ada")
        for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
            hall.say(hall.decision(run, who), who)
        return run

    def say(self, what: Callable[[Assembly], Any]) -> None:
        """Somebody says something, now; whoever waits hears of it."""
        with self.news:
            self.hall.now_us = max(self.hall.now_us, time.time_ns() // 1000)
            what(self.hall)
            self.news.notify_all()

    def posted(self, path: str, body: bytes) -> Answer:
        if path != "/v1/leases":
            return super().posted(path, body)
        asked = json.loads(body)
        return self._answer("lease", self._lease(asked["origin"], asked["seq"]))

    def got(self, path: str) -> Answer:
        parts = urlsplit(path)
        if parts.path == "/v1/authority":
            return self._answer("authority", self._bundle(None, parse_qs(parts.query)))
        if parts.path.endswith("/permit"):
            return self._answer("permit", self._bundle(parts.path.split("/")[3], parse_qs(parts.query)))
        return super().got(path)

    def _bundle(self, run: str | None, query: dict[str, list[str]]) -> Answer:
        after, wait_s = (int(query.get(name, ["-1"])[0]) for name in ("after", "wait_s"))
        with self.news:
            if run is not None and run not in self.hall.switch.runs:
                return refusal(ProblemCode.NOT_FOUND)
            self.news.wait_for(lambda: self._index(run) > after, max(0, wait_s))
            if self._index(run) <= after:
                return Answer(204, "", None, b"")
            return Answer(200, "application/json", None, self.hall.bundle(run))

    def _index(self, run: str | None) -> int:
        start = self.hall.starts.get(run or "")
        return max(self.hall.about(run)[-1].index, 0 if start is None else start.index)

    def _lease(self, origin: str, seq: int) -> Answer:
        if (said := self.answer(origin, seq)) is not None:
            return said
        if (issued := self.issued.get((origin, seq))) is not None:
            return Answer(200, "text/plain", None, issued)
        log = self.logs.get(origin)
        if log is None or len(log.entries) <= seq:
            return refusal(ProblemCode.NOT_FOUND)
        entry = log.entries[seq]
        assert isinstance(entry, Permit), entry
        note = self.note(entry, parse_origin(origin).node_id)
        self.issued[origin, seq] = note
        return Answer(200, "text/plain", None, note)

    def note(self, entry: Permit, node_id: str, **changes: Any) -> bytes:
        """A lease as this entry asks for it, but for what ``changes`` and the terms say."""
        body = entry.body
        run = None if body.run is None else self.hall.switch.runs[body.run]
        allowance = None
        if body.kind != "run":
            allowance = AllowanceName(kind=body.kind, organisation=self.organisation, lineage=body.lineage)
        fields: dict[str, Any] = {
            "allowance": allowance,
            "node_id": node_id,
            "boot_id": entry.boot_id,
            "nonce": body.nonce,
            "chips": body.chips,
            "dtypes": ["bf16"] if run is None else sorted(run.scope.dtypes),
            "epoch": 0 if run is None else run.epoch,
            "time_us": time.time_ns() // 1000,
            "upto_tflop": 10**9,
            "charged_tflop": 0,
            "sequence": 0,
        }
        if run is None:
            fields["ttl_s"] = self.hall.switch.authority.policies[-1][2].allowance.lease_s
        fields |= self.terms | changes
        standing = self.hall.switch.standing
        assert standing is not None
        policy = self.hall.policy if run is None else run.request.policy
        note = lease_note(standing.hash, policy, body.run, **fields)
        subject = lease_subject(parse_lease(note).lease)
        if "sequence" not in changes:
            self.sequences[subject] = self.sequences.get(subject, -1) + 1
            note = lease_note(standing.hash, policy, body.run, **fields | {"sequence": self.sequences[subject]})
        return note


def openings_of(argv: list[str], **more: str) -> tuple[Openings, dict[str, Any]]:
    """Openings for a command line and digests, and the spec that they open."""
    values: dict[Any, Any] = {"argv": argv} | more
    openings = Openings(v=1, parts={p: Opening(salt=f"{i:064x}", value=v) for i, (p, v) in enumerate(values.items())})
    spec: dict[str, Any] = dict.fromkeys(("argv", "config", "data", "image"))
    return openings, spec | {part: commitment(part, opening).hex() for part, opening in openings.parts.items()}


class LeasingHost:
    """One enrolled host: its agent replays a recording in real time, its gate is real, and so is what it runs.

    :param expected: ``switch.gate`` of its configuration, where that isn't what the gate does.
    """

    def __init__(
        self, folder: Path, verifier: Leasing, url: str, gate: Gate | None, more: str = "", expected: str | None = None
    ) -> None:
        self.folder, self.verifier, self.gate = folder, verifier, gate
        self.state = folder / "state"
        self.socket = folder / "exec.sock"
        self.config = folder / "agent.toml"
        kind = ""
        if gate is not None:
            kind = f'gate = "{expected or gate.driver.replace("-", "_")}"\ngate_socket = "{gate.socket}"\n'
        self.config.write_text(
            f'[switch]\nexec_socket = "{self.socket}"\nreport_s = 1\n{kind}'
            f"[upload]\ninterval_s = 5\njitter_s = 0\n[usage]\ninterval_s = 1\n{more}"
        )
        self.process: subprocess.Popen[str] | None = None
        self.said = folder / "agent.err"
        done = self.command(
            "enroll", "--state", str(self.state), "--verifier", url, "--root", f"sha256:{verifier.hall.root}",
            "--recording", str(FIXTURE), KEYTURN_JOIN_TOKEN=TOKEN,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.told = done.stderr
        """What ``enroll`` had to say."""

    def command(self, *words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*AGENT, *words], env=self.env | environ, capture_output=True, text=True, timeout=100, check=False
        )

    def rebooted(self) -> list[str]:
        """A prefix under which another boot id is the kernel's: what a reboot is to whoever was not running."""
        require("root", os.geteuid() == 0, "only root may mount a boot id")
        path = self.folder / "boot_id"
        path.write_text("00000000-1111-4222-8333-444444444444\n")
        mount = f"mount --bind {path} /proc/sys/kernel/random/boot_id"
        return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']

    @property
    def env(self) -> dict[str, str]:
        paths = os.pathsep.join(str(REPO / part) for part in ("protocol", "agent"))
        return os.environ | {"PYTHONPATH": paths, "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": "/nonexistent"}

    def start(self, *prefix: str, patience: bool = True, **environ: str) -> "LeasingHost":
        """``keyturn-agent run``. ``prefix``: a program that runs it in another world."""
        log = self.said.open("a")
        arguments = ["--state", str(self.state), "--recording", str(FIXTURE), "--config", str(self.config)]
        self.process = subprocess.Popen(
            [*prefix, *AGENT, "run", *arguments, "--loop", "1000", "--on-lease"],
            env=self.env | environ, stderr=log, text=True,
        )  # fmt: skip
        log.close()
        process = self.process
        until(lambda: self.socket.exists() or process.poll() is not None, "the agent never listened")
        assert not patience or process.poll() is None, self.said.read_text()
        return self

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)
        self.socket.unlink(missing_ok=True)
        assert "Traceback" not in self.said.read_text(), self.said.read_text()

    def exec(self, *words: str, wait: bool = False) -> "subprocess.Popen[str]":
        """``keyturn-agent exec`` with these words."""
        return subprocess.Popen(
            [*AGENT, "exec", "--socket", str(self.socket), *words],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ran(self, *words: str) -> tuple[int, str, str]:
        """The same, to its end: status, stdout, stderr."""
        process = self.exec(*words)
        try:
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def status(self) -> str:
        """``keyturn-agent status``, for people."""
        return self.command("status", "--state", str(self.state)).stdout

    def openings(self, argv: list[str], **more: str) -> tuple[str, dict[str, Any]]:
        """A file of openings, and the spec of a request that they open."""
        openings, spec = openings_of(argv, **more)
        path = self.folder / f"openings-{len(list(self.folder.glob('openings-*')))}.json"
        path.write_bytes(format_openings(openings))
        return str(path), spec

    def entries(self) -> list[Entry]:
        return self.verifier.entries()

    def leases(self) -> list[Lease]:
        return [entry for entry in self.entries() if isinstance(entry, Lease)]

    def check_charges(self) -> None:
        """That every word on a lease says what an auditor makes of the log up to it."""
        leases = {signed.hash.hex(): signed.lease for signed in map(parse_lease, self.verifier.issued.values())}
        for log in self.verifier.logs.values():
            charge = Charge(chip_table(), leases)
            for entry in log.entries:
                flop = charge.entry(entry)
                assert not isinstance(entry, Lease) or str(flop) == entry.body.charged_flop, entry

    def gates(self) -> list[str]:
        """What each inventory says of the gate."""
        return [entry.body.gate for entry in self.entries() if isinstance(entry, Inventory)]

    def causes(self) -> list[str]:
        return [entry.body.cause for entry in self.entries() if isinstance(entry, Degraded)]


@contextmanager
def leasing_host(
    folder: Path, verifier: Leasing, gate: Gate | None = None, more: str = "", expected: str | None = None
) -> Iterator[LeasingHost]:
    """A host that runs, with a verifier that it can reach."""
    with over_http(verifier) as url:
        host = LeasingHost(folder, verifier, url, gate, more, expected)
        try:
            yield host.start()
        finally:
            if host.process is not None and host.process.poll() is None:
                host.kill()
        host.check_charges()


@contextmanager
def enforcing(folder: Path, library: Path) -> Iterator[Gate]:
    """A gate that enforces, on the stub of NVML with the chips of the recording."""
    Control(folder / "control")
    script = Script()
    for i, chip in enumerate(read_recording(FIXTURE).header.chips):
        script.gpu(i, uuid=chip.uuid)
    script.write(folder / "script.txt")
    environ = {
        "LD_LIBRARY_PATH": str(library.parent),
        "KEYTURN_NVML_STUB": str(folder / "script.txt"),
        "KEYTURN_NVML_CONTROL": str(folder / "control"),
    }
    with gate(folder, "compute-mode", environ) as made:
        yield made


@contextmanager
def enforced_host(folder: Path, library: Path, verifier: Leasing) -> Iterator[LeasingHost]:
    """A host whose gate enforces."""
    with enforcing(folder, library) as served, leasing_host(folder, verifier, served) as host:
        yield host


LOOP: Final = ["sh", "-c", "trap 'echo term; exit 9' TERM; echo begun; while :; do sleep 0.05; done"]
"""A command that goes on until it is told to end."""


def begun(host: LeasingHost, *words: str) -> "subprocess.Popen[str]":
    """:data:`LOOP` under a lease, once it runs."""
    process = host.exec(*words, "--", *LOOP)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n", process.stderr.read() if process.stderr else ""
    return process
