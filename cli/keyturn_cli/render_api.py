"""Tables of what operators and auditors ask for: spans of usage, finding lines, windows, segments."""

from collections.abc import Iterable

from keyturn_cli.layout import Rows
from keyturn_cli.output import clean
from keyturn_cli.render import interval
from keyturn_cli.units import duration, energy, moment
from keyturn_protocol.api_read import FindingGroup, Maintenance, SegmentItem, UsageBucket


def buckets(items: Iterable[UsageBucket]) -> Rows:
    """Spans of time and groups; what wasn't measured has a column of its own."""
    made = Rows("FROM", "TO", "WHAT", "FLOP, UNDECLARED", "BEST", "CHIPS", "CHIP TIME", "NOT MEASURED", "ENERGY")
    for item in items:
        made.add(
            moment(item.from_s * 1_000_000),
            moment(item.to_s * 1_000_000),
            clean(item.key),
            *interval(item.undeclared),
            f"{item.chips:,}",
            duration(item.time_us),
            duration(item.gap_us),
            energy(item.energy_mj),
        )
    return made


def groups(items: Iterable[FindingGroup]) -> Rows:
    """Findings as lines to work off."""
    made = Rows("STATE", "SEVERITY", "FINDING", "NODE", "COUNT", "LAST", "WHAT", folds=["WHAT"])
    for item in items:
        node = f"{item.nodes:,} nodes" if item.node_id is None else clean(item.node_id)
        what = clean(item.detail) + (f" ({clean(item.reason)}, {clean(item.by or '')})" if item.reason else "")
        last = "–" if item.to_us is None else moment(item.to_us)
        made.add(item.state, clean(item.severity), item.code, node, f"{item.count:,}", last, what)
    return made


def windows(items: Iterable[Maintenance]) -> Rows:
    """Maintenance windows."""
    made = Rows("ID", "WHERE", "FROM", "TO", "BY", "STATE", "REASON", folds=["REASON"])
    for item in items:
        where = f"site {item.site}" if item.site else f"node {item.node_id}" if item.node_id else "everywhere"
        state = "announced" if item.cancelled_us is None else f"cancelled {moment(item.cancelled_us)}"
        span = (moment(item.from_us), moment(item.to_us))
        made.add(str(item.id), clean(where), *span, clean(item.by), state, clean(item.reason))
    return made


def segments(items: Iterable[SegmentItem]) -> Rows:
    """Segments of a log."""
    made = Rows("FIRST ENTRY", "LAST ENTRY", "SHA-256")
    for item in items:
        made.add(str(item.start), str(item.end - 1), item.sha256)
    return made
