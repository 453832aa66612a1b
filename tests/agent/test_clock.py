"""Clocks, the wish to stop, and the hash of the code."""

import shutil
import subprocess
from pathlib import Path

import pytest

import keyturn_agent
import keyturn_protocol
from keyturn_agent.clock import MADE_US, Reading, SimulatedClock, StopFlag, SystemClock, sane
from keyturn_agent.errors import UsageError
from keyturn_agent.identity import code_sha256
from keyturn_agent.ports import Moment
from tests.agent.fakes import NoStop


def test_simulated_time_advances_only_by_waiting() -> None:
    clock = SimulatedClock(1_000, "boot")
    assert clock.now() == clock.now() == Moment(0, 1_000)
    clock.wait_until(500, NoStop())
    assert clock.now() == Moment(500, 1_500)
    clock.wait_until(400, NoStop())
    assert clock.now() == Moment(500, 1_500)


def test_a_stop_ends_a_wait_and_simulated_time_stands() -> None:
    stop = StopFlag()
    assert not stop.requested
    stop.request()
    stop.request()
    assert stop.requested
    stop.wait(10**6)
    SystemClock().wait_until(2**60, stop)
    clock = SimulatedClock(0, "boot", speed=1)
    clock.wait_until(10**12, stop)
    assert clock.now() == Moment(0, 0)


def test_clocks_that_were_read_apart_are_read_again() -> None:
    """A host that is busy between the two would see a step of the wall clock that never was."""
    readings = [Reading(Moment(1_000, 900_000), 700_000), Reading(Moment(800_000, 800_500), 40)]
    assert SystemClock(lambda: readings.pop(0)).now() == Moment(800_000, 800_500)
    always = [Reading(Moment(at, at), 900_000 - at) for at in range(100)]
    assert SystemClock(lambda: always.pop(0)).now() == Moment(10, 10), "the best of a few"


def test_the_system_clock_counts_on_and_knows_its_boot() -> None:
    clock = SystemClock()
    one, two = clock.now(), clock.now()
    assert one.mono_us <= two.mono_us
    assert clock.boot_id == SystemClock().boot_id
    assert len(clock.boot_id) == 36


def test_the_hash_of_the_code_can_be_made_in_a_shell(tmp_path: Path) -> None:
    for package in (keyturn_agent, keyturn_protocol):
        shutil.copytree(package.__path__[0], tmp_path / package.__name__)
    found = subprocess.run(  # noqa: S602 -- the very line of the documentation
        "find keyturn_agent keyturn_protocol -name '*.py' -o -name '*.toml'"
        " | LC_ALL=C sort | xargs sha256sum | sha256sum",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    # Computed anew: the cached value is that of the moment when this process first asked.
    assert found.stdout.split()[0] == code_sha256.__wrapped__()


def test_a_clock_from_before_this_program_is_not_enrolled_with() -> None:
    assert sane(SimulatedClock(MADE_US, "boot")).now().time_us == MADE_US
    with pytest.raises(UsageError, match="1970-01-01T00:01:00"):
        sane(SimulatedClock(60_000_000, "boot"))
