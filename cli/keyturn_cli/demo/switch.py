"""The demo's second part: nobody starts a large run alone, and one is enough to stop it."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from keyturn_cli.demo.parties import (
    ADA,
    BOB,
    BUDGET_FLOP,
    EVE,
    IVY,
    LARGE_FLOP,
    NOTICE_S,
    POLICY,
    REQUEST,
    Desk,
    found,
    pin,
)
from keyturn_cli.demo.place import SHARED
from keyturn_cli.demo.processes import Child, Children, Done
from keyturn_cli.demo.teller import Teller, expect
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.units import scientific
from keyturn_protocol.api_switch import RunView
from keyturn_protocol.canonical import parse
from keyturn_protocol.entry_switch import SPENT

APPROVED: Final = ("sleep", "600")
"""What stands for the training program: the host's GPU is a recording in any case."""
OTHER: Final = ("sleep", "601")
_AGENT: Final = """\
[switch]
exec_socket = "{sockets}/exec"
gate = "observe"
gate_socket = "{sockets}/gate"
report_s = 1

[upload]
interval_s = 1
jitter_s = 0

[usage]
interval_s = 1
"""
SMALL: Final = ("sleep", "1")
_LOOK_S: Final = 0.2


class _Shown(msgspec.Struct):
    as_served: RunView


@dataclass(slots=True)
class Switched:
    """What this part showed."""

    root_sha256: str
    run: str
    suspension: str
    """The hash of the veto-holder's suspension."""
    approval: str
    """The hash of the regulator's approval."""
    charged_tflop: int
    ssh: bool


class SwitchStory:
    """A run of that part beside a verifier that serves.

    :param work: an empty folder's path; state and keys go there, and are gone with it.
    :param deadline_s: on the monotonic clock.
    """

    def __init__(
        self, work: Path, state: Path, url: str, fixtures: Path, children: Children, teller: Teller, deadline_s: float
    ) -> None:
        self.work, self.state, self.url, self.fixtures = work, state, url, fixtures
        self.children, self.teller, self.deadline_s = children, teller, deadline_s
        self.desk = Desk(work / "people", children, work / "config.toml")
        self.ssh = False
        self.exec: tuple[str, ...] = ()

    def run(self, deployment: str, token: str, join_token: str) -> Switched:
        """All of it.

        :param token: of the role ``approver``.
        :raises CliError: a step failed, or didn't show what it should.
        """
        self.work.mkdir(mode=0o700)
        with _short_folder() as sockets:
            root = self._root(deployment, token)
            host = self._host(root, join_token, sockets)
            self.exec = ("keyturn-agent", "exec", "--socket", str(sockets / "exec"), "--obey")
            self._allowance()
            run, openings = self._request()
            leased = ("--run", run, "--openings", str(openings), "--", *APPROVED)
            self._refused(run, leased)
            approval = self._approve(run)
            self._other_program(run, openings)
            suspension = self._suspended(run, leased)
            charged = self._exhausted(run, leased)
            for child in host:
                self.children.stop(child)
            return Switched(root, run, suspension, approval, charged, self.ssh)

    def _root(self, deployment: str, token: str) -> str:
        self.teller.step("a root: a lab, an operator and a regulator say who they are and how many it takes")
        run, desk = self.children.run, self.desk
        services = run("keyturn-verifier root", "keyturn-verifier", "root", "services", "--state", self.state)
        root, digest, self.ssh = found(desk, deployment, services)
        run("keyturn-verifier root install", "keyturn-verifier", "root", "install", root, "--state", self.state)
        pin(desk, self.url, digest, token)
        policy = desk.folder / "policy.toml"
        policy.write_text(POLICY)
        signed, _ = desk.sign(desk.draft("policy", "policy", "new", policy), BOB, IVY)
        desk.keyturn("statement", "send", signed)
        kinds = "one of them with an SSH key" if self.ssh else "no ssh-keygen here, so all with Keyturn's own keys"
        self.teller.say(f"three parties signed it, {kinds}; everybody pins sha256:{digest[:16]}…")
        self.teller.say(
            f"their policy: above {scientific(LARGE_FLOP)} FLOP all three agree; a veto-holder stops it alone"
        )
        return digest

    def _host(self, root: str, join_token: str, sockets: Path) -> tuple[Child, ...]:
        self.teller.step("a fourth host, which pins that root; its gate only observes, since there is no GPU to lock")
        config = self.work / "agent.toml"
        config.write_text(_AGENT.format(sockets=sockets))
        played = ("--state", self.work / "host", "--recording", SHARED.file(self.fixtures))
        pinned = ("--verifier", self.url, "--root", f"sha256:{root}")
        join = ("keyturn-agent", "enroll", *played, *pinned)
        self.children.run("keyturn-agent enroll (leased)", *join, env={"KEYTURN_JOIN_TOKEN": join_token})
        gate = ("--driver", "observe", "--socket", sockets / "gate", "--agent", str(os.getuid()))
        observing = self.children.start(
            "gate", "keyturn-gate", "serve", *gate, "--state", self.work / "gate", "--notices", sockets / "notices"
        )
        command = (
            "keyturn-agent",
            "run",
            *played,
            "--label",
            "leased",
            "--on-lease",
            "--loop",
            "1000",
            "--config",
            config,
        )
        agent = self.children.start("leased", *command)
        self._until("the agent to listen", (sockets / "exec").exists, agent)
        return agent, observing

    def _allowance(self) -> None:
        self.teller.step("a small job runs under the allowance: nobody is asked")
        self.teller.command("keyturn-agent exec --lineage demo --", *SMALL)
        self._exec("small job", "--lineage", "demo", "--", *SMALL, code=0)
        self.teller.say("leased, metered, charged to its lineage, done")

    def _request(self) -> tuple[str, Path]:
        self.teller.step("a large run is asked for, and can't start before the quorum")
        toml, openings = self.desk.folder / "run.toml", self.desk.folder / "openings.json"
        toml.write_text(REQUEST.format(argv=", ".join(f'"{word}"' for word in APPROVED)))
        ask = ("request", toml, "--person", ADA, "--unsigned", "--openings", openings)
        signed, run = self.desk.sign(self.desk.draft("request", *ask), ADA, openings=openings)
        self.desk.keyturn("statement", "send", signed, "--openings", openings)
        self.teller.say(f"r-{run[:8]}: {scientific(BUDGET_FLOP)} FLOP on one GPU, for exactly: {' '.join(APPROVED)}")
        return run, openings

    def _refused(self, run: str, leased: Sequence[str]) -> None:
        self.teller.command("keyturn-agent exec --run", f"{run[:8]}…", "--", *APPROVED)
        self.teller.say(self._exec("too early", *leased, code=1).last)
        self.teller.command("keyturn approve", f"r-{run[:8]}", "--key", "ada.key")
        own = self.desk.keyturn("approve", run, "--key", self.desk.key(ADA), "--expect", run, code=1)
        expect("requester" in own.err, "the requester's own approval refused", own.last)
        self.teller.say(own.last)

    def _approve(self, run: str) -> str:
        self.teller.step("three people of three parties read what is asked, and sign for exactly that")
        for person in (BOB, EVE, IVY):
            self.desk.keyturn("approve", run, "--key", self.desk.key(person), "--expect", run)
            self.teller.say(f"{person} approves" + (" with an SSH key" if person == EVE and self.ssh else ""))
        view = self._view(run)
        expect(view.state == "approved", "approved", str(view.state))
        return next(one.sha256 for one in view.signed if one.person == IVY)

    def _other_program(self, run: str, openings: Path) -> None:
        self.teller.step("another program under the same permit is refused by the host itself")
        self.teller.command("keyturn-agent exec --run", f"{run[:8]}…", "--", *OTHER)
        done = self._exec("other program", "--run", run, "--openings", str(openings), "--", *OTHER, code=1)
        self.teller.say(done.last)

    def _suspended(self, run: str, leased: Sequence[str]) -> str:
        self.teller.step("it starts under a lease, is metered, and one veto-holder stops it")
        # Signed before it starts: on a slow machine the run would be over before a person has typed.
        ask = ("suspend", run, "--person", IVY, "--unsigned", "--reason", "a rehearsal")
        signed, digest = self.desk.sign(self.desk.draft("suspend", *ask), IVY)
        child = self._start("run-1", run, leased)
        self._until("the run to be charged", lambda: self._view(run).charged_tflop > 0, child)
        self.teller.command("keyturn suspend", f"r-{run[:8]}", "--key", "ivy.key")
        self.desk.keyturn("statement", "send", signed)
        self._ended(child, "suspended")
        self.teller.say(f"the regulator alone: all hosts stop at one moment, {NOTICE_S} s later; the run was ended")
        view = self._view(run)
        expect(view.state == "suspended", "suspended", str(view.state))
        self.teller.say(f"charged so far: {scientific(view.charged_tflop * 10**12)} FLOP, the high end")
        return digest

    def _exhausted(self, run: str, leased: Sequence[str]) -> int:
        self.teller.step("the quorum resumes it, and it ends when its budget does")
        ask = ("resume", run, "--person", ADA, "--unsigned", "--reason", "rehearsed")
        signed, proposal = self.desk.sign(self.desk.draft("resume", *ask), ADA)
        self.desk.keyturn("statement", "send", signed)
        for person in (BOB, EVE, IVY):
            key = self.desk.key(person)
            self.desk.keyturn("approve", run, "--on", proposal, "--key", key, "--expect", run)
        self._ended(self._start("run-2", run, leased), SPENT)
        self._until("the last report", lambda: self._view(run).state == "exhausted", None)
        charged = self._view(run).charged_tflop
        self.teller.say(f"charged {scientific(charged * 10**12)} of {scientific(BUDGET_FLOP)} FLOP: exhausted")
        return charged

    # -- helpers

    def _start(self, name: str, run: str, leased: Sequence[str]) -> Child:
        self.teller.command("keyturn-agent exec --run", f"{run[:8]}…", "--", *APPROVED)
        return self.children.start(name, *self.exec, *leased)

    def _ended(self, child: Child, why: str) -> None:
        """That a run was stopped, and says why."""
        code = self.children.ended(child, self.deadline_s)
        expect(code != 0 and why in child.tail(), f"a run that ends because it is {why}", f"{code}: {child.tail()}")

    def _exec(self, name: str, *words: str, code: int) -> Done:
        done = self.children.attempt(f"keyturn-agent exec ({name})", *self.exec, *words)
        expect(done.code == code, f"{name}: exit {code}", f"{done.code}: {done.last}")
        return done

    def _view(self, run: str) -> RunView:
        """What the verifier says about the run, out of what ``keyturn show`` prints."""
        shown: _Shown = parse(self.desk.keyturn("show", run, "--json").out.encode(), _Shown)
        return shown.as_served

    def _until(self, what: str, true: Callable[[], bool], child: Child | None) -> None:
        """Wait for something that a program does next."""
        while not true():
            if child is not None and child.process.poll() is not None:
                raise CliError(
                    f"{child.name} ended with {child.process.returncode}: {child.tail()}", exit=Exit.REJECTED
                )
            if time.monotonic() > self.deadline_s:
                raise CliError(f"the demo waited too long for {what}", exit=Exit.REJECTED)
            time.sleep(_LOOK_S)


@contextmanager
def _short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's, which may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="keyturn-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
