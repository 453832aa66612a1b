"""The gate's units under a live systemd, with an agent whose runs live in scopes: opened, killed, upgraded, stopped."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_protocol.entries import Degraded, Inventory, Lease
from keyturn_protocol.policy import Stop
from tests.agent.conftest import library
from tests.agent.leasing import Leasing
from tests.faults.booting import AGENT, GATE, UNITS, Booted, boot
from tests.faults.table import record
from tests.support.gates import until

__all__ = ("library",)
"""A fixture."""

SWITCH = """\
[switch]
exec_socket = "/run/keyturn-agent/exec.sock"
gate = "compute_mode"
gate_socket = "/run/keyturn-gate.sock"
report_s = 1
"""
ENFORCING = """\
[Service]
ExecStart=
ExecStart=/usr/bin/keyturn-gate serve --driver compute-mode --agent keyturn-agent
"""
LOOP = "trap 'echo term; exit 9' TERM; echo begun; while :; do sleep 0.1; done"
LEAVING = f"setsid sleep 1001 & {LOOP}"
"""A run with a process that leaves its session, and not its group."""


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def begun(booted: Booted, run: str, loop: str, *prefix: str) -> "subprocess.Popen[str]":
    """The command under its permit in the machine, once it runs."""
    process = subprocess.Popen(
        ["nsenter", "-t", str(booted.machine.pid), "-m", "-p", "-u", "-i", "-C", "--", *prefix,
         "keyturn-agent", "exec", "--run", run, "--", "sh", "-c", loop],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first == "begun\n", (process.stderr.read() if process.stderr else "") + booted.machine.journal()
    return process


def started_again(booted: Booted, unit: str, before: int) -> None:
    names = ("NRestarts", "ActiveState")
    booted.machine.until(unit, lambda f: int(f["NRestarts"]) > before and f["ActiveState"] == "active", *names)


def suspended(verifier: Leasing, run: str) -> None:
    """By two organisations, so that it is at once."""
    soon = time.time_ns() // 1000
    verifier.say(lambda hall: hall.suspend(run, "office/ivy", soon))
    verifier.say(lambda hall: hall.suspend(run, "operator-b/eve", soon))


@pytest.fixture
def verifier() -> Leasing:
    return Leasing(stop=Stop(notice_s=1800, alone_s=3600, kill_s=2))


@pytest.fixture
def booted(tmp_path: Path, library: Path, verifier: Leasing) -> Iterator[Booted]:
    with boot(tmp_path, library, verifier, verifier.hall.root, SWITCH) as made:
        machine = made.machine
        machine.run("bash", "-c", f"printf '%s' '{ENFORCING}' > {UNITS}/{GATE}.d/driver.conf")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "keyturn-gate.socket", GATE, AGENT)
        made.received(0, Inventory)
        yield made


def scopes(booted: Booted) -> list[str]:
    words = ("systemctl", "list-units", "--type=scope", "--no-legend", "--plain", "keyturn-run-*")
    return [line.split()[0] for line in booted.machine.run(*words).splitlines() if line.strip()]


def test_a_run_in_a_scope_outlives_agent_and_gate_and_is_stopped_whole(booted: Booted, verifier: Leasing) -> None:
    made = booted.machine

    def seen(what: str, expected: str, saw: str) -> None:
        record("faults", "gate under systemd", what, expected=expected, seen=saw)

    assert "locked" in made.run("keyturn-gate", "status")
    run = verifier.approved()
    process = begun(booted, run, LEAVING)
    (scope,) = scopes(booted)
    until(lambda: " open" in made.run("keyturn-gate", "status"))
    seen("exec", "a scope of its own, its chips opened", "a transient scope; chips open")

    for unit, name in ((GATE, "gate"), (AGENT, "agent")):
        before = int(made.show(unit, "NRestarts")["NRestarts"])
        made.run("systemctl", "kill", "-s", "KILL", unit)
        started_again(booted, unit, before)
        assert process.poll() is None
        assert scopes(booted) == [scope]
        seen(
            f"kill -9 of the {name}", "started again, the run goes on", "active; the same scope; nothing was signalled"
        )
    for unit, name in ((GATE, "gate"), (AGENT, "agent")):
        made.run("systemctl", "restart", unit)
        assert process.poll() is None
        seen(f"systemctl restart of the {name}", "the run goes on", "active; nothing was signalled")

    suspended(verifier, run)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, "term\n"), err
    assert "suspended by office/ivy, operator-b/eve" in err
    until(lambda: [e.body.event for e in booted.entries() if isinstance(e, Lease)][-1] == "final")
    until(lambda: scopes(booted) == [])
    assert "sleep 1001" not in made.run("ps", "-eo", "args")
    until(lambda: "open" not in made.run("keyturn-gate", "status").splitlines()[1])
    causes = [entry.body.cause for entry in booted.entries() if isinstance(entry, Degraded)]
    assert "survivors" not in causes
    seen("a suspension", "SIGTERM, then the scope with all that is in it, chips locked", "stopped whole; chips locked")


def test_a_user_without_a_manager_runs_in_a_session(booted: Booted, verifier: Leasing) -> None:
    """``systemd-run --user`` has nobody to ask: the run gets a session of its own, and is stopped all the same."""
    run = verifier.approved()
    process = begun(booted, run, LOOP, *NOBODY)
    assert scopes(booted) == []
    suspended(verifier, run)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 9, err
    record(
        "faults", "gate under systemd", "exec by a user without a service manager", expected="a session of its own",
        seen="stopped by its session",
    )  # fmt: skip
