"""What the running agent shows of itself."""

import os
import pty
from pathlib import Path

import msgspec
import pytest

from keyturn_agent.live import LiveChip, live_chips
from keyturn_agent.ports import Reading, Sample
from keyturn_agent.status import Live, Status
from keyturn_agent.top import last_receipt_s, render, top
from keyturn_protocol.entry_usage import Share
from tests.agent.fakes import FakeVerifier
from tests.agent.hosts import Host
from tests.agent.samples import header, reading

CHIPS = header(2).chips


def sample(*chips: Reading | None, shares: tuple[Share, ...] = ()) -> Sample:
    return Sample(1_000_000, chips, None, shares)


def test_rows_of_chips() -> None:
    share = Share(chip=0, id="slurm:lab:7", class_="shared", share_ppm=400_000)
    first, second = live_chips(CHIPS[:2], None, sample(reading(tensor_ppm=250_000), None, shares=(share,)))
    assert (first.readable, first.tensor_ppm, first.workloads) == (True, 250_000, {"slurm:lab:7": 400_000})
    assert (second.readable, second.busy_ppm, second.workloads) == (False, None, {})


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((100, 50), (300, 100), 250_000),
        ((100, 50), (100, 50), None),
        ((300, 100), (100, 50), None),
        ((None, None), (300, 100), None),
    ],
)
def test_the_tensor_pipe_by_what_was_counted(
    before: tuple[int | None, int | None], now: tuple[int, int], expected: int | None
) -> None:
    old = reading(elapsed_kcycles=before[0], tensor_kcycles=before[1], tensor_ppm=None)
    new = reading(elapsed_kcycles=now[0], tensor_kcycles=now[1], tensor_ppm=None)
    (row,) = live_chips(CHIPS[:1], sample(old), sample(new))
    assert row.tensor_ppm == expected


def chip(**more: object) -> LiveChip:
    values: dict[str, object] = {
        "uuid": "GPU-0", "name": "NVIDIA H100 PCIe", "readable": True, "busy_ppm": 970_000, "tensor_ppm": None,
        "power_mw": 312_400, "clock_mhz": 1500, "memory_mib": 2048, "workloads": {"slurm:lab:7": 1_000_000},
    }  # fmt: skip
    return msgspec.convert(values | more, LiveChip)


def status(**more: object) -> Status:
    live = Live(
        v=1, time_us=1_790_000_000_000_000, origin="x", size=9, sealed=8, chips=["GPU-0"], unreadable=[], workloads=[],
        last_error=None, rows=[chip()], unattributed={}, paused_until_us=None, gate=None,
        leases=[],
    )  # fmt: skip
    changed = {name: more.pop(name) for name in list(more) if name in Live.__struct_fields__}
    base = Status(
        node_id="n", origin="v.example.org/node/n/1", incarnation=1, incarnation_reason="enrolled", verifier="https://v",
        source="nvml", trust_sha256="00", root_sha256=None, no_allowance=None, running_pid=77,
        sealed=8, receipted=7, spool_segments=1, spool_bytes=99,
        live=msgspec.structs.replace(live, **changed),
    )  # fmt: skip
    return msgspec.structs.replace(base, **more)


def test_the_view() -> None:
    text = render(status(), 1_789_999_958, 1_790_000_000, None)
    assert "running, process 77" in text
    assert "sealed 8    receipted 7    last receipt 42 s ago    waiting 1 segments, 99 bytes" in text
    row = next(line for line in text.splitlines() if "H100" in line)
    assert " ".join(row.split()) == "0 97 % - 312 W 1500 MHz 2048 MiB NVIDIA H100 PCIe: slurm:lab:7 100 %"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"live": None}, "has not said anything yet"),
        ({"running_pid": None}, "not running"),
        ({"paused_until_us": 1_790_000_090_000_000}, "PAUSED for 90 s more"),
        ({"unattributed": {"pid_namespace": 2}}, "nobody's: 2 x pid_namespace"),
        ({"last_error": "upload: refused"}, "last error: upload: refused"),
        ({"rows": [chip(readable=False)]}, "cannot be read"),
        ({"rows": [chip(workloads={})]}, "NVIDIA H100 PCIe: nobody's"),
        ({"time_us": 1_789_999_000_000_000}, "this is 1000 s old"),
    ],
)
def test_what_is_out_of_the_ordinary_is_said(changes: dict[str, object], expected: str) -> None:
    assert expected in render(status(**changes), None, 1_790_000_000, None)
    assert expected not in render(status(), None, 1_790_000_000, None)


def test_nothing_that_a_terminal_obeys_gets_through_and_lines_are_cut() -> None:
    text = render(status(last_error="\x1b]0;owned\x07"), None, 1_790_000_000, 40)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert max(map(len, text.splitlines())) == 40


def test_the_last_receipt(tmp_path: Path) -> None:
    assert last_receipt_s(tmp_path) is None
    for name, at in (("1/0-1", 10), ("1/1-20", 20), ("2/0-3", 30), ("2/3-9", 5)):
        path = tmp_path / "logs" / f"{name}.receipt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (at, at))
    assert last_receipt_s(tmp_path) == 5, "of the newest log, the one that reaches furthest"


def test_in_a_terminal_it_draws_until_it_is_stopped_and_leaves_the_screen_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path / "state", FakeVerifier())
    host.enroll()
    assert host.run()
    leader, follower = pty.openpty()

    class Twice:
        waited = 0

        @property
        def requested(self) -> bool:
            return self.waited == 2

        def wait(self, seconds: float) -> None:
            self.waited += 1

    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        top(host.folder, Twice(), 1)
        terminal.flush()
        shown = os.read(leader, 1 << 20).decode()
    os.close(leader)
    assert shown.startswith("\x1b[?1049h")
    assert shown.endswith("\x1b[?1049l")
    assert shown.count("\x1b[H") == 2
    assert "source replay" in shown
