"""The running agent's status as a terminal shows it, again and again. Rendering is pure."""

import os
import sys
import time
from pathlib import Path
from typing import Final

from keyturn_agent.live import LiveChip
from keyturn_agent.ports import Stop
from keyturn_agent.status import Status, read_status

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_TO_THE_END: Final = "\x1b[K"
_BELOW: Final = "\x1b[J"
_STALE_S: Final = 10


def top(folder: Path, stop: Stop, every_s: float) -> None:
    """Show the status until ``stop``; where the output is no terminal, once."""
    if not sys.stdout.isatty():
        print(_shown(folder, None))
        return
    try:
        sys.stdout.write(_ENTER)
        while not stop.requested:
            size = os.get_terminal_size(sys.stdout.fileno())
            # A terminal that doesn't know its size says 0.
            lines = _shown(folder, size.columns or None).splitlines()[: size.lines - 1 if size.lines else None]
            sys.stdout.write(_HOME + "".join(line + _TO_THE_END + "\n" for line in lines) + _BELOW)
            sys.stdout.flush()
            stop.wait(every_s)
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _shown(folder: Path, width: int | None) -> str:
    return render(read_status(folder), last_receipt_s(folder), int(time.time()), width)


def last_receipt_s(folder: Path) -> int | None:
    """When the newest receipt of the newest log came (POSIX seconds), or None."""
    newest: tuple[int, int, Path] | None = None
    for path in (folder / "logs").glob("*/*.receipt"):
        incarnation, end = path.parent.name, path.stem.rpartition("-")[2]
        if incarnation.isdigit() and end.isdigit():
            newest = max(newest or (0, 0, path), (int(incarnation), int(end), path))
    try:
        return None if newest is None else int(newest[2].stat().st_mtime)
    except OSError:
        return None


def render(status: Status, receipt_s: int | None, now_s: int, width: int | None) -> str:
    """The whole view.

    :param now_s: the host's wall clock; a replay's own time may be another.
    :param width: lines are cut to it, as text; None leaves them whole.
    """
    live = status.live
    running = "not running" if status.running_pid is None else f"running, process {status.running_pid}"
    lines = [
        f"keyturn-agent {running}    source {status.source}    {status.origin}",
        f"sealed {status.sealed}    receipted {status.receipted}    last receipt {_ago(receipt_s, now_s)}    "
        f"waiting {status.spool_segments} segments, {status.spool_bytes} bytes",
    ]
    if live is None:
        return _fit([*lines, "", "the agent has not said anything yet"], width)
    if live.paused_until_us is not None:
        lines.append(f"PAUSED for {max(0, live.paused_until_us - live.time_us) // 1_000_000} s more")
    age_s = now_s - live.time_us // 1_000_000
    if status.source != "replay" and status.running_pid is not None and age_s > _STALE_S:
        lines.append(f"this is {age_s} s old")
    lines += ["", f"{'chip':>4} {'busy':>6} {'tensor':>6} {'power':>8} {'clock':>9} {'memory':>11}  name and workloads"]
    lines += [_row(i, row) for i, row in enumerate(live.rows)]
    if live.unattributed:
        lines += ["", "nobody's: " + ", ".join(f"{n} x {reason}" for reason, n in sorted(live.unattributed.items()))]
    if live.last_error is not None:
        lines += ["", f"last error: {live.last_error}"]
    return _fit(lines, width)


def _row(number: int, row: LiveChip) -> str:
    if not row.readable:
        return f"{number:>4} {'cannot be read':>44}  {row.name} {row.uuid}"
    owners = ", ".join(f"{name} {_percent(ppm)}" for name, ppm in sorted(row.workloads.items())) or "nobody's"
    return (
        f"{number:>4} {_percent(row.busy_ppm):>6} {_percent(row.tensor_ppm):>6} "
        f"{_unit(None if row.power_mw is None else row.power_mw // 1000, 'W'):>8} "
        f"{_unit(row.clock_mhz, 'MHz'):>9} {_unit(row.memory_mib, 'MiB'):>11}  {row.name}: {owners}"
    )


def _percent(ppm: int | None) -> str:
    """Not measured isn't zero."""
    return "-" if ppm is None else f"{ppm // 10_000} %"


def _unit(value: int | None, unit: str) -> str:
    return "-" if value is None else f"{value} {unit}"


def _ago(then_s: int | None, now_s: int) -> str:
    return "never" if then_s is None else f"{max(0, now_s - then_s)} s ago"


def _fit(lines: list[str], width: int | None) -> str:
    """One line each, without anything that a terminal would obey."""
    clean = ["".join(c if c.isprintable() else " " for c in line) for line in lines]
    return "\n".join(line if width is None else line[:width] for line in clean)
