"""The wall clock of a host set while the agent runs, while it is down, over an hour's edge, and to other centuries.

The agent is the program itself under libfaketime, which changes what the wall clock says and leaves CLOCK_BOOTTIME
alone, as `date -s` does. Usage is measured on the latter: it loses nothing. The log says that the clock was set.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keyturn_protocol.entries import ClockStep, Entry, Usage
from keyturn_protocol.findings import FindingCode
from tests.faults.after import SILENCE, After, check
from tests.faults.site import Agent, Process
from tests.faults.table import LONG, record
from tests.faults.test_disk import entries
from tests.support.optional import require
from tests.support.verifier import Verifier

PACE = ("--interval", "1", "--checkpoint-every", "1", "--heartbeat-every", "1")


class Rig:
    """A host whose wall clock is what a file says; ``set`` writes that file."""

    def __init__(self, folder: Path, verifier: Verifier, library: Path) -> None:
        self.verifier = verifier
        self.host = Agent(folder / "host", verifier)
        self._says = folder / "clock"
        self.set("+0")
        self.agent = Process(
            self.host.folder,
            LD_PRELOAD=str(library),
            FAKETIME_TIMESTAMP_FILE=str(self._says),
            FAKETIME_NO_CACHE="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
            DONT_FAKE_MONOTONIC="1",
        )

    def set(self, clock: str) -> None:
        """``+3600``; ``@2038-01-19 03:14:05`` and on from there; without the @ it stands still."""
        draft = self._says.with_suffix(".new")
        draft.write_text(clock + "\n")
        draft.rename(self._says)

    def more(self, heads: int = 3) -> None:
        """Wait until so many more heads were receipted."""
        folder = self.host.folder / "logs" / "1"
        count: Callable[[], int] = lambda: len(list(folder.glob("*.receipt")))  # noqa: E731
        goal, deadline = count() + heads, time.monotonic() + 60
        while count() < goal:
            assert self.agent.process is not None
            assert self.agent.process.poll() is None, self.agent.said()
            assert time.monotonic() < deadline, self.agent.said()
            time.sleep(0.05)


@contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    found = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), *Path("/usr/lib").glob("faketime/libfaketimeMT*")]
    require("faketime", shutil.which("faketime") is not None and bool(found), "libfaketime is not installed")
    with Verifier(folder / "site") as verifier:
        made = Rig(folder, verifier, found[0])
        try:
            yield made
        finally:
            made.agent.kill()


def checked(made: Rig, folder: Path, what: str, steps: int) -> list[Entry]:
    """Everything holds, and the log names so many steps."""
    steps_at_least = {FindingCode.CLOCK_STEP} if steps else set()
    after: After = check(made.verifier, folder / "out", [made.host.folder], expect=steps_at_least, allow=SILENCE)
    written = entries(after.bundle)
    found = [entry.body.step_us for entry in written if isinstance(entry, ClockStep)]
    assert len(found) == steps, found
    usage = [entry.body for entry in written if isinstance(entry, Usage)]
    assert usage
    assert sum(body.to_us - body.from_us for body in usage) < 600_000_000
    record("faults", "agent", f"wall clock {what}", expected="the log says so; usage loses nothing", seen=after.seen)
    return written


def test_the_clock_is_set_while_the_agent_runs_and_while_it_is_down(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        made.agent.start(*PACE)
        made.more()
        made.set("+7200")
        made.more()
        made.set("-86400")
        made.more()
        assert made.agent.stop() == 0, made.agent.said()
        made.set("+5")
        made.agent.start(*PACE)
        made.more()
        assert made.agent.stop() == 0, made.agent.said()
        written = checked(made, tmp_path, "set forward, back, and while the agent was down", 3)
    steps = [round(entry.body.step_us / 1e6) for entry in written if isinstance(entry, ClockStep)]
    assert steps == [7_200, -93_600, 86_405]


EDGES = {
    "over an hour's edge": "@2031-05-05 11:59:58",
    "over a leap day": "@2028-02-28 23:59:58",
    "over the end of 32 bits": "@2038-01-19 03:14:05",
    "over the end of February 2100": "@2100-02-28 23:59:58",
    "to 1971": "@1971-01-01 00:00:01",
}


@pytest.mark.skipif(not LONG, reason="make faults")
@pytest.mark.parametrize("what", EDGES)
@pytest.mark.parametrize("running", [True, False], ids=["in mid-run", "at the start"])
def test_other_times(tmp_path: Path, what: str, running: bool) -> None:
    with rig(tmp_path) as made:
        if not running:
            made.set(EDGES[what])
        made.agent.start(*PACE)
        made.more()
        if running:
            made.set(EDGES[what])
        made.more(6)
        assert made.agent.stop() == 0, made.agent.said()
        written = checked(made, tmp_path, f"{what}, {'in mid-run' if running else 'at the start'}", int(running))
    hours = {(body.from_us // 3_600_000_000, (body.to_us - 1) // 3_600_000_000)
             for body in (entry.body for entry in written if isinstance(entry, Usage))}  # fmt: skip
    assert all(start == end for start, end in hours)


@pytest.mark.skipif(not LONG, reason="make faults")
def test_a_clock_that_stands_still(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        made.agent.start(*PACE)
        made.more()
        made.set(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime()))
        made.more(5)
        made.set("+0")
        made.more()
        assert made.agent.stop() == 0, made.agent.said()
        after = check(made.verifier, tmp_path / "out", [made.host.folder],
                      allow={FindingCode.CLOCK_STEP, *SILENCE})  # fmt: skip
    found = [entry.body.step_us for entry in entries(after.bundle) if isinstance(entry, ClockStep)]
    # That it stopped, by how much it was behind when it was set right, and that it was; to stop it may be a step too.
    assert 2 <= len(found) <= 5, found
    assert abs(sum(found)) < 2_000_000, "in the end it is where it was"
    record(
        "faults", "agent", "wall clock stands still", expected="the log says so; usage loses nothing", seen=after.seen
    )
