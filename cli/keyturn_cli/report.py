"""An audit's report as text for people and as JSON. Integrity, completeness and compliance are kept apart."""

from functools import partial

from rich.console import Console
from rich.text import Text

from keyturn_cli import render
from keyturn_cli.errors import Exit
from keyturn_cli.output import clean
from keyturn_cli.units import at_most, count, duration, moment
from keyturn_protocol.audit import Report
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.ids import GAP

REASONS = 10
"""Contradictions that are printed; ``--json`` has all of them."""
EXITS = {"pass": Exit.FINE, "contradicted": Exit.REJECTED, "undecided": Exit.UNDECIDED}
_WORDS = {
    "pass": ("PASS", "bold green"),
    "contradicted": ("FAIL", "bold red"),
    "undecided": ("UNDECIDED", "bold yellow"),
}
DISCLAIMER = "this says nothing about compliance"


def print_report(report: Report, out: Console) -> None:
    """The report as on the audit page: integrity, completeness, totals, findings, and with what it was computed."""
    say = partial(out.print, soft_wrap=True)
    word, style = _WORDS[report.outcome]
    say(_line("INTEGRITY", word, style, _integrity(report)))
    for contradiction in report.contradictions[:REASONS]:
        entry = "" if contradiction.seq is None else f" (entry {contradiction.seq})"
        say(_more(f"{contradiction.where}{entry}: {contradiction.message}"))
    if (rest := len(report.contradictions) - REASONS) > 0:
        say(_more(f"and {count(rest, 'more contradiction')}: --json lists them"))
    for reason in report.reasons[len(report.contradictions) :]:
        say(_more(reason))
    say(_line("COMPLETENESS", "NOT SHOWN", "bold yellow", "among enrolled chips only: no outside leg supplied"))
    for line in _not_measured(report):
        say(_more(line))
    say()
    if report.contradictions:
        say("what verified before the contradictions above:", style="yellow")
    out.print(render.workloads(report.workloads))
    say()
    if report.runs:
        out.print(render.runs(report.runs))
        say("without watchers the verifier alone can over-lease and hide a veto", style="yellow")
        say()
    if report.findings:
        out.print(render.findings(report.findings))
        say()
    table = "" if report.chip_table == report.chip_table_claimed else f" (at export: {report.chip_table_claimed})"
    say(_line("chip table", report.chip_table + table))
    say(_line("verifier log", _head(report.checkpoint)))
    if report.seen is not None:
        say(_line("held against", _head(report.seen)))
    say(_line("exported", moment(report.until_us) + (f", case {report.case}" if report.case else "")))
    say(DISCLAIMER, style="bold")


def _integrity(report: Report) -> str:
    logs = f"{report.logs_verified:,} of {count(report.logs, 'log')}"
    what = [logs, count(report.entries, "entry", "entries")]
    if report.contradictions:
        what.append(count(len(report.contradictions), "contradiction"))
    else:
        what.append("totals equal")
    return ", ".join(what)


def _not_measured(report: Report) -> list[str]:
    gap = next((w for w in report.workloads if w.workload == GAP), None)
    lines = [f"{count(report.chips, 'chip')} seen in {count(report.logs, 'log')} of {report.deployment}"]
    if gap is None:
        lines.append("no silent or unmeasured time among them")
    else:
        silent = f"silent or unmeasured: {duration(gap.gap_us)} on {count(gap.chips, 'chip')}"
        lines.append(f"{silent}  {at_most(gap.undeclared.high)} FLOP")
    lines.append("maker shipments, asset ledger, fabric, site energy: not supplied")
    return lines


def _line(label: str, word: str, style: str = "", rest: str = "") -> Text:
    return Text.assemble(f"{label:<14}", (clean(word), style), f"  {clean(rest)}" if rest else "")


def _more(text: str) -> str:
    return " " * 16 + clean(text, 600)


def _head(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "none that verifies"
    return f"{checkpoint.origin}, {count(checkpoint.size, 'leaf', 'leaves')}, root {checkpoint.root.hex()}"


def to_json(report: Report) -> dict[str, object]:
    """The whole report as plain values; FLOP as decimal strings, the rest as on the wire."""
    return {
        "v": 1,
        "outcome": report.outcome,
        "exit": int(EXITS[report.outcome]),
        "reasons": list(report.reasons),
        "deployment": report.deployment,
        "case": report.case,
        "until_us": report.until_us,
        "keys_pinned": report.pinned,
        "integrity": {
            "logs": report.logs,
            "logs_verified": report.logs_verified,
            "entries": report.entries,
            "contradictions": [{"where": c.where, "seq": c.seq, "message": c.message} for c in report.contradictions],
        },
        "completeness": {
            "shown": False,
            "basis": "among enrolled chips only: no outside leg supplied",
            "chips": report.chips,
            "left_out": [{"origin": origin, "reason": reason} for origin, reason in report.left_out],
        },
        "workloads": list(report.workloads),
        "findings": list(report.findings),
        "replacements": [
            {"old": link.old, "new": link.new, "reason": link.reason, "sha256": link.sha256, "leaf": link.index}
            for link in report.links
        ],
        "runs": [
            {
                "run": run.hash,
                "label": run.label,
                "state": str(run.state),
                "budget_tflop": run.budget_tflop,
                "charged_tflop": run.charged_tflop,
                "committed_tflop": run.committed_tflop,
                "recomputed_flop": str(run.recomputed_flop),
                "epoch": run.epoch,
            }
            for run in report.runs
        ],
        "chip_table": report.chip_table,
        "chip_table_claimed": report.chip_table_claimed,
        "verifier_checkpoint": _head_json(report.checkpoint),
        "held_against": _head_json(report.seen),
        "compliance": DISCLAIMER,
    }


def _head_json(checkpoint: Checkpoint | None) -> dict[str, object] | None:
    if checkpoint is None:
        return None
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
