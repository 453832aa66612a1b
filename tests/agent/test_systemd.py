"""The service manager: what it is told, and what it says about the unit."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from keyturn_agent.cli import USAGE
from keyturn_agent.systemd import Notifier
from keyturn_protocol.entries import Inventory, Shutdown, Usage
from keyturn_protocol.ids import Origin
from keyturn_protocol.usage import EMPTY, fold
from tests.agent.fakes import FakeVerifier, over_http
from tests.agent.test_cli import AGENT, Site
from tests.support.optional import require_program
from tests.support.paths import REPO

UNIT = REPO / "agent" / "systemd" / "keyturn-agent.service"
EXPOSURE = 21
"""Tenths: what `systemd-analyze security` may say at most."""


class Manager:
    """The receiving end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(60)

    def read(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().split("\n"))

    def until(self, key: str) -> list[dict[str, str]]:
        """Everything up to the message with this key."""
        found = [self.read()]
        while key not in found[-1]:
            found.append(self.read())
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def test_what_is_said(manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environment(environ)
    # No child speaks in our name.
    assert environ == {}
    notifier.ready("metering\nnow")
    assert manager.read() == {"READY": "1", "STATUS": "metering now"}
    notifier.alive()
    notifier.stopping("stopped")
    assert manager.read() == {"WATCHDOG": "1"}
    assert manager.read() == {"STOPPING": "1", "STATUS": "stopped"}
    notifier.close()


def test_the_watchdog_is_fed_three_times_in_its_time(manager: Manager) -> None:
    now = [0.0]
    notifier = Notifier(manager.address, 30.0, lambda: now[0])
    for second in range(31):
        now[0] = float(second)
        notifier.alive()
    notifier.stopping("")
    assert [set(message) for message in manager.until("STOPPING")] == [{"WATCHDOG"}] * 4 + [{"STOPPING", "STATUS"}]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "no"},
    ],
)
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environ)
    notifier.ready("")
    notifier.alive()
    notifier.stopping("")
    notifier.close()


def test_a_watchdog_of_another_process_is_not_ours(manager: Manager) -> None:
    notifier = Notifier.from_environment(
        {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}
    )
    notifier.alive()
    notifier.ready("")
    assert "READY" in manager.read()


def test_an_upgrade_is_a_gap_of_what_lies_between_the_last_usage_and_the_first(
    tmp_path: Path, manager: Manager
) -> None:
    """Stopped and started again, the log goes on, and the gap in it is what wasn't measured: no more, no less."""
    verifier = FakeVerifier()
    with over_http(verifier) as url:
        site = Site(tmp_path, verifier, url)
        site.enroll()
        config = tmp_path / "agent.toml"
        # So that both runs end with all their receipts, however slow this machine is.
        config.write_text("[upload]\nstop_s = 60\njitter_s = 0\ninterval_s = 1\n[usage]\ninterval_s = 1\n")
        for _ in range(2):
            running = subprocess.Popen(
                [
                    *AGENT,
                    "run",
                    "--state",
                    str(site.state),
                    "--recording",
                    str(site.recording),
                    "--config",
                    str(config),
                ],
                env={**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000"},
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert manager.until("READY")[-1]["STATUS"].startswith("metering into test.example.org/node/")
                for _ in range(3):
                    manager.until("WATCHDOG")
                running.send_signal(signal.SIGTERM)
                assert "STOPPING" in manager.until("STOPPING")[-1]
                _, talk = running.communicate(timeout=100)
                assert running.returncode == 0, talk
            finally:
                running.kill()
                running.communicate()
    entries = verifier.entries()
    assert len(verifier.logs) == 1
    (first,) = (n for n, e in enumerate(entries) if isinstance(e, Shutdown) and n + 1 < len(entries))
    second = [n for n, e in enumerate(entries) if isinstance(e, Inventory)][1]
    assert second > first
    before = [e.body for e in entries[:first] if isinstance(e, Usage)]
    after = [e.body for e in entries[second:] if isinstance(e, Usage)]
    gaps = fold(Origin("x"), EMPTY, entries).gaps
    # On CLOCK_BOOTTIME, which nobody sets.
    end_us = before[-1].mono_from_us + before[-1].to_us - before[-1].from_us
    expected = (before[-1].to_us, after[0].mono_from_us - end_us)
    assert expected in {(gap.from_us, gap.to_us - gap.from_us) for gap in gaps}
    # Nothing of what either run saw is missing: usage reaches up to the stop and begins with the start.
    assert all(old.to_us == new.from_us for old, new in pairwise(before))


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here, as `verify` looks for it."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/keyturn-agent", sys.executable))
    return copy


def test_the_unit_is_correct(unit: Path) -> None:
    analyze = require_program("systemd-analyze")
    done = subprocess.run(
        [analyze, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if UNIT.stem in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_unit_is_hardened(unit: Path) -> None:
    analyze = require_program("systemd-analyze")
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: (\d+)\.(\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert int(found[1]) * 10 + int(found[2]) <= EXPOSURE
    assert done.returncode == 0


def test_every_file_of_systemd_is_explained() -> None:
    for path in sorted(UNIT.parent.rglob("*.*")):
        if path.is_file():
            assert path.read_text().startswith("# "), path


@pytest.mark.parametrize(
    "setting",
    [
        *("Type=notify", "WatchdogSec=60", "StateDirectory=keyturn-agent", "User=keyturn-agent", "Restart=always"),
        # The exit status of a usage error, which no other start would mend.
        f"RestartPreventExitStatus={USAGE}",
        # By number: the driver's name differs by version, and is unknown before it is loaded.
        "DeviceAllow=char-195 rw",
    ],
)
def test_the_unit_says(setting: str) -> None:
    assert f"\n{setting}\n" in UNIT.read_text()
