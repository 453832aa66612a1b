"""``keyturn demo``: all of it, on this machine, from recordings, in a minute or two."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli.demo.place import checkout, prepare, remove
from keyturn_cli.demo.processes import Children, program
from keyturn_cli.demo.story import Story, Told
from keyturn_cli.errors import Exit
from keyturn_cli.output import print_json, results, talk
from keyturn_cli.report import to_json

DirOption = Annotated[
    Path | None, typer.Option("--dir", metavar="DIR", help="default: build/demo; replaces an earlier demo's only")
]
KeepOption = Annotated[bool, typer.Option("--keep", help="keep the state and logs of verifier and agents, in DIR/work")]
JsonOption = Annotated[bool, typer.Option("--json", help="a summary as canonical JSON on stdout, the story on stderr")]


def demo(dir: DirOption = None, keep: KeepOption = False, json: JsonOption = False) -> int:
    """Show all of it on this machine: hosts, totals, a run that needs a quorum, an audit, forgeries.

    A verifier and four agents that replay recorded GPU telemetry run as processes of their own, on 127.0.0.1.
    """
    place = checkout()
    for name in ("keyturn-verifier", "keyturn-agent", "keyturn-gate"):
        program(name)
    began_s = time.monotonic()
    folder = (dir or place / "build" / "demo").absolute()
    prepare(folder)
    work = folder / "work"
    work.mkdir(mode=0o700)
    out = talk() if json else results()
    try:
        with Children(work) as children:
            told = Story(folder, place / "hardware_fixtures", children, out).run()
    except BaseException:
        talk().print(f"keyturn: what the processes said is in {work}")
        raise
    if not keep:
        remove(work)
    out.print()
    out.print(f"done in {time.monotonic() - began_s:.1f} s; nothing is left running", style="bold green")
    if json:
        print_json(_summary(told))
    return Exit.FINE


def _summary(told: Told) -> dict[str, object]:
    """What was shown, as plain values."""
    assert told.audit is not None  # noqa: S101 -- the story ended well
    assert told.flip is not None  # noqa: S101
    return {
        "v": 1,
        "executed_flop": str(told.executed_flop),
        "workloads": told.workloads,
        "findings": told.findings,
        "audit": to_json(told.audit),
        "flip": {"path": told.flip.path, "seq": told.flip.seq, "offset": told.flip.offset},
        "forged": [to_json(report) for report in told.forged],
        "switch": None if told.switch is None else asdict(told.switch),
        "forged_switch": [to_json(report) for report in told.forged_switch],
    }
