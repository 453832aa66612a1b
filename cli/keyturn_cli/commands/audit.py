"""``keyturn audit``: recompute everything in a bundle, offline, with keys that the auditor brings."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn

from keyturn_cli import render, tracing
from keyturn_cli.archive import open_bundle
from keyturn_cli.auditing import Pins, run_audit
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_cli.output import clean, note, print_json, results, talk
from keyturn_cli.report import EXITS, print_report, to_json
from keyturn_cli.units import count
from keyturn_protocol.api import Trust
from keyturn_protocol.audit import open_manifest
from keyturn_protocol.bundle import MANIFEST, Anchor, parse_anchor
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import NOTE_BYTES, TRUST_BYTES

SLOW_S = 2.0
"""Progress shows after this long."""
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="an evidence bundle: its folder, .tar or .tar.zst")
]
TrustOption = Annotated[Path | None, typer.Option("--trust", metavar="FILE", help="the verifier's keys, out of band")]
RootOption = Annotated[str | None, typer.Option("--root", metavar="sha256:…", help="the root, out of band")]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="FILE", help="a head of the verifier's log got elsewhere")
]
JsonOption = Annotated[bool, typer.Option("--json", help="canonical JSON on stdout")]
JobsOption = Annotated[int, typer.Option("--jobs", min=0, max=4096, help="processes; 0: one a core")]


def audit(
    bundle: BundleArgument,
    trust: TrustOption = None,
    root: RootOption = None,
    checkpoint: CheckpointOption = None,
    json: JsonOption = False,
    jobs: JobsOption = 0,
) -> int:
    """Recompute everything in an evidence bundle, offline.

    Exit 0: passes; 1: evidence contradicts evidence; 2: usage; 3: undecided, such as keys that aren't pinned.
    """
    if not bundle.exists():
        raise CliError(
            f"{bundle} is not a folder or file", exit=Exit.USAGE, hint="BUNDLE is what the verifier exported"
        )
    pins = _pins(trust, root, checkpoint)
    try:
        with open_bundle(bundle) as reader, _Talk() as progress:
            report = run_audit(reader, pins, jobs, progress)
    except ProtocolError as error:
        where = "" if MANIFEST in str(error) else f"{MANIFEST}: "
        raise CliError(
            f"not a bundle: {where}{error}", exit=Exit.REJECTED, hint=f"is {bundle} the folder that holds {MANIFEST}?"
        ) from None
    if json:
        print_json(to_json(report))
    else:
        print_report(report, results())
    return EXITS[report.outcome]


def trace(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="a workload, a chip, a node or a log's origin")],
    bundle: BundleArgument,
    trust: TrustOption = None,
    root: RootOption = None,
    checkpoint: CheckpointOption = None,
    json: JsonOption = False,
) -> int:
    """Show which logs and entries a number rests on, and whether the bundle passes its audit.

    Exit as for the audit itself; 1 also where nothing in the bundle speaks of the subject.
    """
    pins = _pins(trust, root, checkpoint)
    with open_bundle(bundle) as reader:
        report = run_audit(reader, pins, 1, lambda *_: None)
        found = list(tracing.trace(reader, open_manifest(reader), subject))
    totals = [total for total in report.workloads if total.workload == subject]
    if not found:
        raise CliError(f"nothing in {bundle} speaks of {subject}", exit=Exit.REJECTED)
    if json:
        logs = [
            {
                "origin": one.ref.origin,
                "organisation": one.ref.organisation,
                "site": one.ref.site,
                "workloads": sorted(one.workloads),
                "chips": sorted(one.chips),
                "segments": [{"path": piece.path, "entries": piece.seqs} for piece in one.pieces],
            }
            for one in found
        ]
        print_json({"subject": subject, "outcome": report.outcome, "totals": totals, "logs": logs})
        return EXITS[report.outcome]
    if totals:
        results().print(render.workloads(totals))
    for one in found:
        parts = [
            (len(one.chips), "chip", None),
            (len(one.workloads), "workload", None),
            (one.entries, "entry", "entries"),
        ]
        what = ", ".join(count(*part) for part in parts)
        whose = f"{clean(one.ref.organisation)} / {clean(one.ref.site)}"
        results().print(f"{one.ref.origin}  {whose}: {what}", soft_wrap=True)
        for piece in one.pieces:
            results().print(f"    {piece.path}  entries {_ranges(piece.seqs)}", soft_wrap=True)
    if report.outcome != "pass":
        note(f"the audit of this bundle: {report.outcome}; keyturn audit {bundle} says why")
    return EXITS[report.outcome]


def _ranges(seqs: list[int]) -> str:
    """``3-7, 9``."""
    parts: list[list[int]] = []
    for seq in seqs:
        if parts and parts[-1][1] == seq - 1:
            parts[-1][1] = seq
        else:
            parts.append([seq, seq])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _pins(trust: Path | None, root: str | None, checkpoint: Path | None) -> Pins:
    """What the options bring; that nothing pins the keys is said."""
    anchor = None if trust is None else read_anchor(trust)
    pins = Pins(
        trust=None if anchor is None else anchor.trust,
        operators=None if anchor is None else anchor.operators,
        root_sha256=None if root is None else _root(root),
        checkpoint=None if checkpoint is None else read_capped(checkpoint, NOTE_BYTES, "--checkpoint"),
    )
    if pins.trust is None and pins.root_sha256 is None:
        note("keys are not pinned: the result can't be a pass (give --root or --trust)")
    return pins


def read_trust(path: Path) -> Trust:
    """The verifier's keys in a trust file."""
    return read_anchor(path).trust


def read_anchor(path: Path) -> Anchor:
    """The keys in a trust file; anything wrong with it is a matter of usage."""
    try:
        return parse_anchor(read_capped(path, TRUST_BYTES, "--trust"))
    except ProtocolError as error:
        raise CliError(
            f"--trust {path}: {error}",
            exit=Exit.USAGE,
            hint="the trust.json that the verifier's operator gave you, byte for byte",
        ) from None


def _root(text: str) -> str:
    if re.fullmatch(r"sha256:[0-9a-f]{64}", text) is None:
        raise CliError(f"--root: must be sha256: and 64 lower-case hex digits (got {text})", exit=Exit.USAGE)
    return text.removeprefix("sha256:")


class _Talk:
    """Progress on stderr once it takes long: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.next_s = time.monotonic() + SLOW_S

    def __enter__(self) -> "_Talk":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done)
        elif time.monotonic() >= self.next_s:
            if talk().is_terminal:
                text = TextColumn("keyturn: {task.completed:,.0f} of {task.total:,.0f} segments")
                self.bar = Progress(text, BarColumn(), console=talk(), transient=True)
                self.bar.add_task("audit", total=total, completed=done)
                self.bar.start()
            else:
                note(f"{done:,} of {total:,} segments")
                self.next_s = time.monotonic() + 10
