"""``keyturn audit``: recompute everything in a bundle, offline, with keys that the auditor brings."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn

from keyturn_cli.auditing import Pins, run_audit
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_cli.output import note, print_json, results, talk
from keyturn_cli.reader import FolderReader
from keyturn_cli.report import EXITS, print_report, to_json
from keyturn_protocol.api import Trust
from keyturn_protocol.bundle import MANIFEST, parse_trust
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import NOTE_BYTES, TRUST_BYTES

SLOW_S = 2.0
"""Progress shows after this long."""
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="the folder of an evidence bundle")]
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
    if not bundle.is_dir():
        raise CliError(f"{bundle} is not a folder", exit=Exit.USAGE, hint="BUNDLE is what the verifier exported")
    pins = Pins(
        trust=None if trust is None else read_trust(trust),
        root_sha256=None if root is None else _root(root),
        checkpoint=None if checkpoint is None else read_capped(checkpoint, NOTE_BYTES, "--checkpoint"),
    )
    if pins.trust is None:
        note("keys are not pinned: the result can't be a pass (give --trust)")
    if pins.root_sha256 is not None:
        note("bundles carry no root statements yet: --root pins no keys, --trust does")
    reader = FolderReader(str(bundle))
    try:
        with _Talk() as progress:
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


def read_trust(path: Path) -> Trust:
    """The keys in a trust file; anything wrong with it is a matter of usage."""
    try:
        return parse_trust(read_capped(path, TRUST_BYTES, "--trust"))
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
