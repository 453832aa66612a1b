"""Tables for people. An interval's ends stand as large as its best estimate; what isn't measured says so."""

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from keyturn_cli.output import clean
from keyturn_cli.units import NOT_MEASURED, at_most, duration, energy, flop_range, moment, scientific
from keyturn_protocol.api import FindingItem, FlopInterval, NodeLog, WorkloadTotal
from keyturn_protocol.findings import Finding, Severity
from keyturn_protocol.ids import GAP, UNATTRIBUTED
from keyturn_protocol.usage import UsageRow

POOLS = (UNATTRIBUTED, GAP)
_COLOURS: Mapping[str, str] = {Severity.CRITICAL: "bold red", Severity.HIGH: "red", Severity.MEDIUM: "yellow"}


def table(*columns: str, folds: Sequence[str] = ()) -> Table:
    """A plain table without a box; columns keep their lines, but for those named in ``folds``."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(name, overflow="fold", no_wrap=name not in folds)
    return made


def workloads(totals: Iterable[WorkloadTotal]) -> Table:
    """One row a workload; the pools that no workload can be given come last, as :func:`summarise` orders them."""
    made = table(
        *("WORKLOAD", "FLOP, UNDECLARED", "BEST", "FLOP, AS DECLARED", "BEST", "DTYPE"),
        *("CHIPS", "CHIP TIME", "ENERGY"),
        folds=["WORKLOAD"],
    )
    for total in totals:
        made.add_row(
            Text(_name(total), style="italic" if total.workload in POOLS else ""),
            *_undeclared(total),
            *_declared(total),
            f"{total.chips:,}",
            duration(total.time_us),
            energy(total.energy_mj),
        )
    return made


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
    """Both ends, and the best estimate."""
    return flop_range(of.low, of.high), scientific(int(of.best))


def nodes(logs: Iterable[NodeLog]) -> Table:
    made = table(
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
        made.add_row(
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


def usage(rows: Iterable[UsageRow]) -> Table:
    """Raw rows: what the logs say before anything is estimated."""
    made = table(
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
        made.add_row(
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


def findings(found: Sequence[Finding | FindingItem], most: int = 20) -> Table:
    """Grouped by kind and log, the first of each in words; the groups in the order given, which is by severity."""
    groups: dict[tuple[str, str, str], list[Finding | FindingItem]] = {}
    for one in found:
        groups.setdefault((one.severity, one.code, one.origin), []).append(one)
    made = table("SEVERITY", "FINDING", "LOG", "WHERE", "WHAT", folds=["LOG", "WHAT"])
    for (severity, code, origin), members in list(groups.items())[:most]:
        first = members[0]
        what = clean(first.detail) + (f" (and {len(members) - 1:,} more)" if len(members) > 1 else "")
        # The deployment is the same everywhere: <node>/<incarnation> is what tells logs apart.
        log = clean(origin).rpartition("/node/")[2]
        made.add_row(Text(clean(severity), style=_COLOURS.get(severity, "")), clean(code), log, _where(first), what)
    if len(groups) > most:
        made.add_row("…", f"{len(groups) - most:,} more kinds", "", "", "--json shows every one")
    return made


def _where(one: Finding | FindingItem) -> str:
    if one.seq is not None:
        return f"entry {one.seq}"
    return "–" if one.from_us is None else f"from {moment(one.from_us)}"
