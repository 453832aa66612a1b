"""Tables for people. An interval's ends stand as large as its best estimate; what isn't measured says so."""

from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text

from keyturn_cli.layout import Block, Rows
from keyturn_cli.output import clean
from keyturn_cli.units import NOT_KNOWN, NOT_MEASURED, at_most, count, duration, energy, flop_range, moment, scientific
from keyturn_protocol.api import FindingItem, FlopInterval, NodeLog, WorkloadTotal
from keyturn_protocol.audit_runs import RunTotal
from keyturn_protocol.findings import Finding, Severity
from keyturn_protocol.ids import GAP, UNATTRIBUTED
from keyturn_protocol.lease_accounts import TERA
from keyturn_protocol.usage import UsageRow

POOLS = (UNATTRIBUTED, GAP)
_COLOURS: Mapping[str, str] = {Severity.CRITICAL: "bold red", Severity.HIGH: "red", Severity.MEDIUM: "yellow"}


def workloads(totals: Iterable[WorkloadTotal]) -> Rows:
    """One row a workload; the pools that no workload can be given come last, as :func:`summarise` orders them."""
    made = Rows(
        *("WORKLOAD", "FLOP, UNDECLARED", "BEST", "FLOP, AS DECLARED", "BEST", "DTYPE"),
        *("CHIPS", "CHIP TIME", "ENERGY"),
        folds=["WORKLOAD"],
    )
    for total in totals:
        name = Text(_name(total), style="italic" if total.workload in POOLS else "")
        made.add(
            name,
            *_undeclared(total),
            *_declared(total),
            f"{total.chips:,}",
            duration(total.time_us),
            energy(total.energy_mj),
            block=_workload_block(name, total),
        )
    return made


def _workload_block(name: Text, total: WorkloadTotal) -> Block:
    """Both intervals under each other, and what they come from."""
    flop, best = _undeclared(total)
    lines = [f"{flop} FLOP" if total.workload == GAP else f"{'undeclared':<12}{flop:<17} FLOP, best {best}"]
    if total.declared is not None:
        flop, best, dtype = _declared(total)
        lines.append(f"{'as ' + dtype:<12}{flop:<17} FLOP, best {best}")
    elif total.workload not in POOLS:
        lines.append("no data type declared")
    lines.append(f"{count(total.chips, 'chip')}, {duration(total.time_us)}, energy {energy(total.energy_mj)}")
    return Block(name, lines)


def _name(total: WorkloadTotal) -> str:
    match total.workload:
        case "gap":
            return "gap: silent or not measured"
        case "unattributed":
            return "unattributed: no visible workload"
        case name:
            return clean(name) + (f" [{total.class_}]" if total.class_ not in (None, "exclusive") else "")


def _undeclared(total: WorkloadTotal) -> tuple[str, str]:
    """``low … high`` and the best estimate. A gap has only an upper bound, and no best."""
    if total.workload == GAP:
        return at_most(total.undeclared.high), NOT_MEASURED
    return interval(total.undeclared)


def _declared(total: WorkloadTotal) -> tuple[str, str, str]:
    if total.declared is None:
        return "–", "–", "–" if total.workload in POOLS else "not declared"
    return *interval(total.declared), clean(total.declared_dtype or "several")


def interval(of: FlopInterval) -> tuple[str, str]:
    """Both ends, and the best estimate: without an upper end nobody has one, only a part that is known."""
    return flop_range(of.low, of.high), NOT_KNOWN if of.high is None else scientific(int(of.best))


def runs(totals: Iterable[RunTotal]) -> Rows:
    """Runs of the start switch, as an audit recomputes them."""
    made = Rows("RUN", "LABEL", "STATE", "CHARGED", "BUDGET", "RECOMPUTED", "EPOCH", folds=["LABEL"])
    for total in totals:
        short = total.charged_tflop * TERA < total.recomputed_flop
        made.add(
            total.hash[:12],
            clean(total.label),
            str(total.state),
            scientific(total.charged_tflop * TERA, "up"),
            scientific(total.budget_tflop * TERA, "down"),
            Text(scientific(total.recomputed_flop, "up"), style="red" if short else ""),
            str(total.epoch),
        )
    return made


def nodes(logs: Iterable[NodeLog]) -> Rows:
    made = Rows(
        "NODE",
        "LOG",
        "ORGANISATION",
        "SITE",
        "SOURCE",
        "CHIPS",
        "ENTRIES",
        "LAST ENTRY",
        "LAST RECEIPT",
        "STATE",
        folds=["ORGANISATION", "SITE", "STATE"],
    )
    for log in logs:
        receipt = None if log.last_receipt_s is None else log.last_receipt_s * 1_000_000
        state = log.state if log.reason is None else f"{log.state}: {log.reason}"
        made.add(
            clean(log.node_id),
            str(log.incarnation),
            clean(log.organisation),
            clean(log.site),
            log.source or "no entries yet",
            str(log.chips) if log.source else "unknown",
            f"{log.size:,}",
            moment(log.last_entry_us),
            moment(receipt),
            Text(clean(state), style="" if log.state == "open" else "red"),
        )
    return made


def usage(rows: Iterable[UsageRow]) -> Rows:
    """Raw rows: what the logs say before anything is estimated."""
    made = Rows(
        "HOUR",
        "LOG",
        "CHIP",
        "WORKLOAD",
        "TIME",
        "BUSY",
        "TENSOR Mcycles",
        "ELAPSED Mcycles",
        "ENERGY",
        folds=["LOG", "WORKLOAD"],
    )
    for row in rows:
        made.add(
            moment(row.hour_s * 1_000_000),
            clean(row.log),
            clean(row.chip),
            clean(row.workload),
            duration(row.time_us),
            NOT_MEASURED if row.busy_us is None else duration(row.busy_us),
            _measured(row.tensor_mcycles),
            _measured(row.elapsed_mcycles),
            energy(None if row.energy_mj is None else str(row.energy_mj)),
        )
    return made


def _measured(value: int | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,}"


def findings(found: Sequence[Finding | FindingItem], most: int = 20) -> Rows:
    """Grouped by kind and log, the first of each in words; the groups in the order given, which is by severity."""
    groups: dict[tuple[str, str, str], list[Finding | FindingItem]] = {}
    for one in found:
        groups.setdefault((one.severity, one.code, one.origin), []).append(one)
    made = Rows("SEVERITY", "FINDING", "LOG", "WHERE", "WHAT", folds=["LOG", "WHAT"])
    for (severity, code, origin), members in list(groups.items())[:most]:
        first = members[0]
        what = clean(first.detail) + (f" (and {len(members) - 1:,} more)" if len(members) > 1 else "")
        # The deployment is the same everywhere: <node>/<incarnation> is what tells logs apart.
        log = clean(origin).rpartition("/node/")[2]
        style, where = _COLOURS.get(severity, ""), _where(first)
        title = Text.assemble((f"{clean(severity):<10}", style), f"{clean(code)}  {where}")
        block = Block(title, [what, f"log {log}"] if log else [what])
        made.add(Text(clean(severity), style=style), clean(code), log, where, what, block=block)
    if len(groups) > most:
        made.add("…", f"{len(groups) - most:,} more kinds", "", "", "--json shows every one")
    return made


def _where(one: Finding | FindingItem) -> str:
    if one.seq is not None:
        return f"entry {one.seq}"
    return "–" if one.from_us is None else f"from {moment(one.from_us)}"
