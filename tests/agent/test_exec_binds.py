"""What was approved stays bound to what runs: against a real agent, a real gate and real commands."""

import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from keyturn_agent.switch import hold
from keyturn_agent.switch.asking import Ask, Leased, ToExec, line, to_exec
from keyturn_agent.switch.programs import began_as
from keyturn_agent.switch.stub import TOKEN
from keyturn_protocol.entries import Degraded, Permit
from keyturn_protocol.policy import Stop
from tests.agent.leasing import LOOP, Leasing, LeasingHost, enforced_host, leasing_host, openings_of
from tests.support.gates import gate, until
from tests.support.optional import require
from tests.support.parties import tier

PEOPLE = ("lab-a/bob", "operator-b/eve", "office/ivy")
ARGV: Final = ["python", "train.py"]
"""What was approved."""
STRANGER: Final = 23_456
"""A user."""

BEGIN: Final = """
import os, socket, sys
path, uid, *argv = sys.argv[1:]
os.setsid()
if uid != "0":
    os.setgid(int(uid)), os.setuid(int(uid))
agent = socket.socket(socket.AF_UNIX)
agent.connect(path)
agent.sendall(b'{"token":"%s","type":"begin"}\\n' % os.environ["KEYTURN_BEGIN"].encode())
print(agent.recv(65536).decode(), flush=True)
sys.stdin.read()
"""
"""A program that isn't the stub, and says that it becomes the command."""

BECOMES: Final = """
import os, sys
from keyturn_agent.switch import hold, stub
become = os.execvp
os.execvp = lambda name, argv: become("sleep", ["sleep", "100"])
if sys.argv.pop(1) == "unseen":
    hold.over_exec = lambda program, look: False
sys.exit(stub.main(sys.argv[1:]))
"""
"""The stub, but that it becomes something else, held or not."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="kt-binds-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def host(folder: Path) -> Iterator[LeasingHost]:
    verifier = Leasing(stop=Stop(notice_s=1800, alone_s=3600, kill_s=1), tiers=[tier(verified=["argv"])])
    with gate(folder) as served, leasing_host(folder, verifier, served) as host:
        yield host


class Visiting:
    """A visitor that states the approved command line, and has a lease for it."""

    def __init__(self, host: LeasingHost) -> None:
        openings, spec = openings_of(ARGV)
        self.host = host
        self.agent = socket.socket(socket.AF_UNIX)
        self.agent.settimeout(60)
        self.agent.connect(str(host.socket))
        self.lines = self.agent.makefile("rb")
        ask = Ask(
            v=1, kind="run", run=host.verifier.approved(spec=spec), lineage=None, group="0", hosts=1, chips=None,
            argv=ARGV, openings=openings, files=[], told={}, signal=None,
        )  # fmt: skip
        self.agent.sendall(line(ask))
        leased = self.hear(Leased)
        assert isinstance(leased, Leased)
        self.env = host.env | {TOKEN: leased.token}

    def hear(self, kind: type[ToExec]) -> ToExec:
        while True:
            message = to_exec(self.lines.readline()[:-1])
            if isinstance(message, kind):
                return message

    def begin(self, *words: str, prefix: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*prefix, sys.executable, "-c", *words], env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd="/",
        )  # fmt: skip


@contextmanager
def visiting(host: LeasingHost) -> Iterator[Visiting]:
    visitor = Visiting(host)
    with visitor.agent:
        yield visitor


def said(process: "subprocess.Popen[str]") -> str:
    """Its first line; after that it goes."""
    out = process.communicate(timeout=60)[0]
    return out.partition("\n")[0]


def details(host: LeasingHost, cause: str) -> list[str]:
    found = [entry.body for entry in host.entries() if isinstance(entry, Degraded)]
    return [str(body.detail) for body in found if body.cause == cause]


def claimed(host: LeasingHost) -> list[str]:
    """What each request for a lease said of the command line."""
    return [entry.body.spec.argv for entry in host.entries() if isinstance(entry, Permit)]


def test_a_visitor_that_lies_about_what_it_starts_begins_nothing(host: LeasingHost) -> None:
    """It states the approved command line, and another program has the token: the kernel says what that is."""
    with visiting(host) as visitor:
        assert '"code":"other_program"' in said(visitor.begin(BEGIN, str(host.socket), "0"))
        until(lambda: host.leases()[-1].body.event == "final")
    assert "(expected python train.py, got" in details(host, "other_program")[0]


def test_nobody_but_a_child_of_the_same_user_begins_with_a_token(host: LeasingHost) -> None:
    """Whoever stole it gets nothing, and takes nothing from whom it is for."""
    require("root", os.geteuid() == 0, "only root may be somebody else")
    with visiting(host) as visitor:
        another_user = visitor.begin(BEGIN, str(host.socket), str(STRANGER), *ARGV)
        assert '"code":"no_job"' in said(another_user)
        no_child = visitor.begin(BEGIN, str(host.socket), "0", *ARGV, prefix=("sh", "-c", '"$0" "$@"; exit'))
        assert '"code":"no_job"' in said(no_child)
        assert '"type":"go"' in said(visitor.begin(BEGIN, str(host.socket), "0", *ARGV))


@pytest.mark.parametrize("how", ["held", "unseen"])
def test_a_stub_that_becomes_another_program(host: LeasingHost, how: str) -> None:
    """Held, it is seen before it has begun, and ended; where nothing holds it, the log says that nobody looked, and its
    next words on the command line are those of whoever asked."""
    host.verifier.terms = {"renew_s": 1}
    with visiting(host) as visitor:
        process = visitor.begin(BECOMES, how, str(host.socket), "-", "1", *ARGV)
        if how == "held":
            assert process.wait(60) == -signal.SIGKILL
            until(lambda: host.leases()[-1].body.event == "final")
            assert details(host, "other_program")[0].endswith("(expected python train.py, got sleep 100)")
            assert "another program" in (host.leases()[-1].body.reason or "")
        else:
            until(lambda: details(host, "program_unseen"))
            # From then on renewals say less, of an agent that is started again too.
            until(lambda: claimed(host)[-1] == "declared")
            host.kill()
            host.start()
            asked = len(claimed(host))
            until(lambda: len(claimed(host)) > asked)
            assert claimed(host)[-1] == "declared"
            process.kill()
        process.communicate()


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_no_process_more_is_allowed_nothing_is_held_and_the_command_begins(
    monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """As in a container that is at its limit: neither the helper's parent, or not the helper itself."""
    fork, left = os.fork, iter(range(allowed))

    def limited() -> int:
        if next(left, None) is None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    assert not hold.over_exec("true", lambda: True)


def test_what_is_started_is_seen_whatever_it_becomes_next(host: LeasingHost, folder: Path) -> None:
    """Held, it is looked at before it has done anything; and a script is what the kernel makes of it."""
    script = folder / "train.sh"
    script.write_text('#!/usr/bin/env -S sh -u\nexec echo "$1"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    for argv in (["sh", "-c", "exec echo next"], [str(script), "next"], ["sh", "-c", "trap '' TERM; echo next", ""]):
        openings, spec = host.openings(argv)
        run = host.verifier.approved(spec=spec, nonce=os.urandom(32).hex())
        status, out, err = host.ran("--run", run, "--openings", openings, "--", *argv)
        assert (status, out) == (0, "next\n"), err
    argv = [str(folder / "none")]
    openings, spec = host.openings(argv)
    run = host.verifier.approved(spec=spec, nonce=os.urandom(32).hex())
    status, out, err = host.ran("--run", run, "--openings", openings, "--", *argv)
    assert (status, out, "No such file" in err) == (127, "", True)
    assert host.causes() == []


def test_the_token_is_on_no_command_line_and_not_in_the_environment_of_the_run(host: LeasingHost) -> None:
    assert host.gate is not None
    assert host.gate.process is not None
    # So that the stub waits while it is looked at.
    host.gate.process.send_signal(signal.SIGSTOP)
    try:
        process = host.exec("--lineage", "aurora", "--", *LOOP)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        stub = Path("/proc") / until(lambda: children.read_text().split() or None)[0]
        until(lambda: b"switch.stub" in (stub / "cmdline").read_bytes())
        assert not re.search(rb"\b[0-9a-f]{64}\b", (stub / "cmdline").read_bytes())
    finally:
        host.gate.process.send_signal(signal.SIGCONT)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert TOKEN.encode() not in (stub / "environ").read_bytes()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("words", "argv", "same"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", ""], ["a"], False),
        (["a"], ["a", "b"], False),
        (["/bin/sh", "./a", "b"], ["./a", "b"], True),
        (["/usr/bin/env", "-S sh", "/usr/bin/a", "b"], ["a", "b"], True),
        (["/bin/sh", "/opt/a", "b"], ["/bin/a", "b"], False),
        (["/bin/sh", "./a", "c"], ["./a", "b"], False),
        (["/bin/sh", "./a"], ["./a"], True),
        (["x"] * 9 + ["./a"], ["./a"], False),
        (["b", "a"], ["a", "b"], False),
    ],
)
def test_what_execve_makes_of_arguments(words: list[str], argv: list[str], same: bool) -> None:
    assert began_as(words, argv) == same


def test_a_program_that_an_amendment_replaced_is_not_renewed_and_stops(folder: Path, library: Path) -> None:
    """It has the notice of a suspension, also from an agent that is started again; what was approved instead starts."""
    verifier = Leasing(stop=Stop(notice_s=8, alone_s=3600, kill_s=1), tiers=[tier(verified=["argv"])])
    verifier.terms = {"renew_s": 1}
    with enforced_host(folder, library, verifier) as host:
        openings, spec = host.openings(LOOP)
        run = verifier.approved(spec=spec)
        words = ["--run", run, "--openings", openings, "--", *LOOP]
        process = host.exec(*words)
        until(lambda: len([entry for entry in host.entries() if isinstance(entry, Permit)]) > 2)
        argv = ["echo", "the next one"]
        other, amended = host.openings(argv)
        verifier.say(lambda hall: hall.amend(run, *PEOPLE, spec=amended))
        why = "an amendment replaced what was started: argv"
        until(lambda: why in (host.state / "leases.json").read_text())
        asked = len([entry for entry in host.entries() if isinstance(entry, Permit)])
        host.kill()
        host.start()
        assert host.gate is not None
        (notice,) = until(lambda: list(host.gate.notices.iterdir()))  # type: ignore[union-attr]
        assert json.loads(notice.read_bytes())["why"] == why
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (9, "begun\nterm\n"), err
        assert why in err
        until(lambda: host.leases()[-1].body.event == "final")
        assert host.leases()[-1].body.reason == why
        assert len([entry for entry in host.entries() if isinstance(entry, Permit)]) <= asked + 1
        status, out, err = host.ran(*words)
        assert (status, out) == (1, ""), err
        assert "bad_openings" in err or "the openings are not this run's" in err
        status, out, err = host.ran("--run", run, "--openings", other, "--", *argv)
        assert (status, out) == (0, "the next one\n"), err
