"""The steps of the demo, each of which must show what it says or ends the demo."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from keyturn_cli import render
from keyturn_cli.auditing import Pins, run_audit
from keyturn_cli.client import Client
from keyturn_cli.demo.place import RECORDINGS, executed_flop
from keyturn_cli.demo.processes import Child, Children, wait_for
from keyturn_cli.demo.switch import Switched, SwitchStory
from keyturn_cli.demo.tamper import Flip, drop_statement, flip_digit, forge_approval, rehash
from keyturn_cli.demo.teller import Teller, expect, shown
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.output import clean
from keyturn_cli.reader import FolderReader
from keyturn_cli.report import print_report
from keyturn_cli.units import at_most, flop_range, scientific
from keyturn_protocol import api
from keyturn_protocol.audit import Report
from keyturn_protocol.audit_log import Contradiction
from keyturn_protocol.bundle import parse_trust
from keyturn_protocol.findings import FindingCode
from keyturn_protocol.ids import GAP, UNATTRIBUTED
from keyturn_protocol.segment import parse_segment

DEPLOYMENT: Final = "demo.keyturn.example"
TRAINED: Final = "slurm:fixture:1"
"""The workload of the training host's recording."""
DEADLINE_S: Final = 400.0
"""For everything up to the export; the rest takes a second or two."""


@dataclass(slots=True)
class Told:
    """What the demo showed, for ``--json`` and for tests."""

    workloads: list[api.WorkloadTotal] = field(default_factory=list)
    findings: list[api.FindingItem] = field(default_factory=list)
    executed_flop: int = 0
    audit: Report | None = None
    flip: Flip | None = None
    forged: list[Report] = field(default_factory=list)
    switch: Switched | None = None
    forged_switch: list[Report] = field(default_factory=list)


class Story:
    """One run of the demo in an empty folder."""

    def __init__(self, folder: Path, fixtures: Path, children: Children, out: Console) -> None:
        self.folder, self.fixtures, self.children, self.out = folder, fixtures, children, out
        self.teller = Teller(out)
        self.deadline_s = self.teller.began_s + DEADLINE_S
        self.state = folder / "work" / "verifier"
        self.told = Told()

    def run(self) -> Told:
        """All of it.

        :raises CliError: a step failed, or didn't show what it should.
        """
        server, url = self._verifier()
        self._hosts(url)
        self._switch(url)
        self._totals(url)
        self._export(server)
        self._audit()
        self._forge()
        self._forge_switch(self.told.switch)
        return self.told

    def _verifier(self) -> tuple[Child, str]:
        self.teller.step("a verifier, on SQLite and on 127.0.0.1 only")
        run, state = self.children.run, self.state
        run("keyturn-verifier init", "keyturn-verifier", "init", "--state", state, "--deployment", DEPLOYMENT)
        shutil.copyfile(state / "trust.json", self._trust)
        port_file = self.folder / "work" / "port"
        server = self.children.start(
            "verifier", "keyturn-verifier", "serve", "--state", state, "--port", "0", "--port-file", port_file
        )
        url = f"http://127.0.0.1:{int(wait_for(port_file, server, self.deadline_s))}"
        self.teller.say(f"its keys are in {shown(self._trust)}: hosts and auditors pin them, and believe no others")
        return server, url

    def _hosts(self, url: str) -> None:
        self.teller.step("three hosts, each an agent that replays a recording in fast time")
        token = self._token("--organisation", "Demo", "--site", "this machine", "--hosts", str(len(RECORDINGS)))
        running = []
        for recording in RECORDINGS:
            state, file = self.folder / "work" / recording.name, recording.file(self.fixtures)
            join = ("--state", state, "--verifier", url, "--trust", self._trust, "--recording", file)
            name = f"keyturn-agent enroll ({recording.name})"
            self.children.run(name, "keyturn-agent", "enroll", *join, env={"KEYTURN_JOIN_TOKEN": token})
            command = ("keyturn-agent", "run", "--state", state, "--recording", file, "--fast")
            running.append(self.children.start(recording.name, *command, "--label", recording.name))
        for recording, child in zip(RECORDINGS, running, strict=True):
            self.children.finish(child, self.deadline_s)
            self.teller.say(f"{recording.story}: metered, logged, signed, uploaded, receipted")

    def _switch(self, url: str) -> None:
        join_token = self._token("--organisation", "acme", "--site", "this machine")
        part = SwitchStory(
            self.folder / "work" / "switch", self.state, url, self.fixtures, self.children, self.teller, self.deadline_s
        )
        self.told.switch = part.run(DEPLOYMENT, self._token("--role", "approver"), join_token)
        (self.folder / "root").write_text(f"{self._root}\n")

    def _token(self, *what: str) -> str:
        run, state = self.children.run, self.state
        name = "keyturn-verifier token"
        return run(name, "keyturn-verifier", "token", "create", "--state", state, "--expires", "1h", *what).strip()

    def _totals(self, url: str) -> None:
        self.teller.step("what the verifier adds up: intervals, and what nobody measured beside them")
        with Client(url, self._token("--role", "auditor")) as client:
            totals = list(client.items(api.WORKLOADS, api.WorkloadTotal))
            found = list(client.items(api.FINDINGS, api.FindingItem))
            logs = list(client.items(api.NODES, api.NodeLog))
        self.told.workloads, self.told.findings = totals, found
        expect(len(logs) == len(RECORDINGS) + 1, "four logs", f"{len(logs)}")
        expect(all(log.source == "replay" for log in logs), "logs marked as replay", "others")
        self.out.print(render.workloads(totals))
        self.out.print()
        by_class = [t.class_ for t in totals if t.workload not in (GAP, UNATTRIBUTED)]
        expect(by_class.count("shared") == 2, "two workloads that share a GPU", f"{by_class.count('shared')}")
        self._truth(totals)
        self._gap(totals, found)

    def _truth(self, totals: Sequence[api.WorkloadTotal]) -> None:
        """The training program counted its own FLOP: the metered interval must contain that number."""
        executed = self.told.executed_flop = executed_flop(self.fixtures)
        total = next((t for t in totals if t.workload == TRAINED), None)
        if total is None or total.declared is None:
            raise CliError("the training workload has no totals", exit=Exit.REJECTED)
        for interval, what in ((total.undeclared, "undeclared"), (total.declared, "as declared")):
            inside = int(interval.low) <= executed and (interval.high is None or executed <= int(interval.high))
            expect(inside, f"{executed} inside {what}", flop_range(interval.low, interval.high))
        off = (int(total.declared.best) - executed) / executed
        self.teller.say(
            f"the training program counted {scientific(executed)} FLOP itself: inside both intervals, "
            f"and the best estimate is {off:+.1%} off"
        )

    def _gap(self, totals: Sequence[api.WorkloadTotal], found: Sequence[api.FindingItem]) -> None:
        """The lost driver: time without a measurement is an upper bound and a finding, never a zero."""
        gap = next((t for t in totals if t.workload == GAP), None)
        codes = (FindingCode.GAP, FindingCode.UNMEASURED)
        findings = [f for f in found if f.code in codes]
        if gap is None or gap.undeclared.high in (None, "0") or not findings:
            raise CliError("the lost driver left no gap or no finding", exit=Exit.REJECTED)
        self.teller.say(
            f"the lost driver left {gap.gap_us / 1e6:.0f} chip seconds unmeasured: {at_most(gap.undeclared.high)} FLOP"
        )
        self.out.print()
        self.out.print(render.findings(found))

    def _export(self, server: Child) -> None:
        self.teller.step("the evidence, exported; from here on there is no verifier")
        command = ("keyturn-verifier", "export", "--state", self.state, "--out", self._evidence, "--case", "demo")
        self.children.run("keyturn-verifier export", *command)
        self.children.stop(server)
        self.teller.say(f"{shown(self._evidence)}, and {shown(self._trust)} beside it")

    def _audit(self) -> None:
        self.teller.step(f"$ keyturn audit {shown(self._evidence)} --root {self._root[:23]}…")
        report = self.told.audit = self._report(self._evidence)
        print_report(report, self.out)
        expect(report.outcome == "pass", "pass", report.outcome)
        same = report.workloads == tuple(self.told.workloads)
        expect(same, "the audit's totals to be the verifier's", "others")
        run = next((one for one in report.runs if self.told.switch and one.hash == self.told.switch.run), None)
        expect(run is not None and run.state == "exhausted", "an exhausted run", str(run and run.state))
        self.teller.say("the audit's totals are the verifier's, to the last digit; so is what became of the run")

    def _forge(self) -> None:
        self.teller.step("a forgery: one byte of one entry, in a copy")
        origin = self._origin_of_training()
        flip = self.told.flip = flip_digit(self._evidence, self._tampered, origin)
        self.teller.say(f"entry {flip.seq}, {flip.field}: {flip.before} becomes {flip.after}")
        self.teller.step(f"$ keyturn audit {shown(self._tampered)} --root {self._root[:23]}…")
        self._contradicted(flip)
        rehash(self._tampered, flip.path)
        self.teller.say("again, with a manifest whose hash of that file was forged to fit:")
        self._contradicted(flip)

    def _forge_switch(self, switch: Switched | None) -> None:
        assert switch is not None  # noqa: S101 -- it was told before
        self.teller.step("a forged permit: the regulator's approval, signed by somebody else")
        self._found(self.folder / "forged", forge_approval(self._evidence, self.folder / "forged", switch.approval))
        self.teller.step("a dropped veto: the suspension is left out")
        self._found(self.folder / "dropped", drop_statement(self._evidence, self.folder / "dropped", switch.suspension))

    def _found(self, bundle: Path, path: str) -> None:
        """That the audit names what was forged."""
        report = self._report(bundle)
        self.told.forged_switch.append(report)
        named = next((one for one in report.contradictions if one.where == path), None)
        if report.outcome != "contradicted" or named is None:
            raise CliError(f"the audit of {shown(bundle)} didn't find {path}: {report.outcome}", exit=Exit.REJECTED)
        self._fail(named)

    def _fail(self, found: Contradiction) -> None:
        self.out.print(Text.assemble("INTEGRITY     ", ("FAIL", "bold red"), f"  {clean(found.where)}"), soft_wrap=True)
        self.out.print(Text(f"              {clean(found.message)}"), soft_wrap=True)

    def _contradicted(self, flip: Flip) -> None:
        report = self._report(self._tampered)
        self.told.forged.append(report)
        expect(bool(report.contradictions), "a contradiction", report.outcome)
        first = report.contradictions[0]
        named = (first.where, first.seq)
        expect((report.outcome, named) == ("contradicted", (flip.path, flip.seq)), "that entry named", str(named))
        self._fail(first)

    def _origin_of_training(self) -> str:
        """The log of the host that trained, by the workload in its totals."""
        reader = FolderReader(str(self._evidence))
        for path in sorted(reader.paths()):
            if path.endswith(".segment") and f'"{TRAINED}"'.encode() in (data := reader.read(path)):
                return parse_segment(data).origin
        raise CliError("the evidence has no log of the training host", exit=Exit.REJECTED)

    def _report(self, bundle: Path) -> Report:
        pins = Pins(trust=parse_trust(self._trust.read_bytes()), root_sha256=self._root.removeprefix("sha256:"))
        return run_audit(FolderReader(str(bundle)), pins, 1, lambda *_: None)

    @property
    def _root(self) -> str:
        assert self.told.switch is not None  # noqa: S101 -- it was told before
        return f"sha256:{self.told.switch.root_sha256}"

    @property
    def _trust(self) -> Path:
        return self.folder / "trust.json"

    @property
    def _evidence(self) -> Path:
        return self.folder / "evidence"

    @property
    def _tampered(self) -> Path:
        return self.folder / "tampered"
