"""What must hold after a fault, whatever the fault was: the four lines that every row of docs/faults.md promises.

1. The audit of an export passes (or says `contradicted`, where a node really signed two heads).
2. Every receipt that was ever given is in the export, byte for byte.
3. No log has two signed heads of one size, on any host or at the verifier.
4. The findings are exactly those that the fault calls for.

`check` looks at all four and raises; `seen` is what it says for the table.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyturn_agent.errors import DamagedError
from keyturn_agent.log_files import Intended
from keyturn_agent.spool import SEGMENT, ranges, read_segment
from keyturn_agent.store import read_enrolment
from keyturn_protocol.audit import Report
from keyturn_protocol.canonical import decode
from keyturn_protocol.chips import chip_table
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.findings import Finding, FindingCode
from keyturn_protocol.segment import parse_segment
from keyturn_verifier import queries
from keyturn_verifier.db.engine import reading
from tests.support.verifier import Verifier

Receipts = Mapping[tuple[str, int], bytes]
"""(origin, size) → the receipt line that was given for the head of that size."""
Head = tuple[str, int, str]
"""Origin, size and root of a signed head."""

SILENCE: Final = frozenset({FindingCode.GAP})
"""Time that nobody measured: what most faults leave behind, and what no fault may hide."""
VERIFIERS_OWN: Final = frozenset({FindingCode.VERIFIER_ROLLBACK})
"""Findings about the verifier's conduct: it knows of them by other evidence than an auditor of the bundle does."""
WENT_BACK: Final = "the verifier's log went back or was rewritten"


@dataclass(frozen=True, slots=True)
class After:
    """What was found. ``findings`` is the union of what verifier and auditor say."""

    report: Report
    receipts: int
    findings: frozenset[FindingCode]
    bundle: Path

    @property
    def seen(self) -> str:
        """For a row of the table: the same words for the same outcome."""
        codes = ", ".join(sorted(self.findings - SILENCE))
        # Whether a heartbeat quotes what was lost, which makes it undecided, is a matter of moments.
        went_back = FindingCode.VERIFIER_ROLLBACK in self.findings
        outcome = "not contradicted" if went_back else self.report.outcome
        return f"audit: {outcome}; findings: {codes or 'none'}"


def origin_of(folder: Path) -> str:
    """The origin of an agent's first log, without the incarnation."""
    enrolment, _ = read_enrolment(folder)
    return f"{enrolment.deployment}/node/{enrolment.node_id}"


def receipts(folder: Path) -> dict[tuple[str, int], bytes]:
    """The receipts in an agent's state folder."""
    node = origin_of(folder)
    found: dict[tuple[str, int], bytes] = {}
    for log in _logs(folder):
        for start, end, kind in ranges(log):
            if kind != SEGMENT:
                found[f"{node}/{log.name}", end] = (log / f"{start}-{end}.receipt").read_bytes()
    return found


def heads(folder: Path, *, intended: bool = True) -> Iterator[Head]:
    """Every head that an agent's state folder holds, or intends: it will be signed as it stands, and no other."""
    for log in _logs(folder):
        for start, end, kind in ranges(log):
            if kind == SEGMENT:
                try:
                    head = read_segment(log / f"{start}-{end}.segment").checkpoint
                except DamagedError:
                    continue  # broken on purpose; what it held is held by the verifier
                yield head.origin, head.size, head.root.hex()
        try:
            state: Intended = decode((log / "state").read_bytes(), Intended, limit=1 << 20)
        except (FileNotFoundError, ProtocolError):
            continue
        if intended:
            yield state.origin, state.size, state.root


def stored_heads(bundle: Path) -> Iterator[Head]:
    """Every head in an export; what is kept as evidence against a node isn't one of its log."""
    for path in bundle.rglob("*.segment"):
        if "evidence" not in path.parts:
            head = parse_segment(path.read_bytes()).checkpoint
            yield head.origin, head.size, head.root.hex()


def no_second_head(found: Collection[Head]) -> None:
    """No log was signed with two roots at one size."""
    roots: dict[tuple[str, int], str] = {}
    for origin, size, root in found:
        assert roots.setdefault((origin, size), root) == root, f"{origin} has two signed heads of size {size}"


def check(
    verifier: Verifier,
    out: Path,
    hosts: Sequence[Path] = (),
    *,
    given: Receipts | None = None,
    expect: Collection[FindingCode] = (),
    allow: Collection[FindingCode] = SILENCE,
    contradicted: bool | None = False,
) -> After:
    """Export to ``out``, audit, and hold everything against it.

    :param verifier: it needn't serve.
    :param hosts: state folders of agents.
    :param given: receipts that are known from elsewhere, such as a client's answers.
    :param expect: findings that must be raised, by the auditor too where it can.
    :param allow: findings that may be raised as well.
    :param contradicted: a node did sign two heads, or None: may have; its own folders aren't held against it then.
    """
    honest = contradicted is False
    bundle = verifier.export(out)
    report = verifier.audit(bundle)
    if contradicted is None:
        contradicted = any(one.code is FindingCode.FORK for one in report.findings)
    # Where the verifier's own log went back, an auditor who sees that can't vouch for what may be missing.
    said = [
        why for why in report.reasons if not (FindingCode.VERIFIER_ROLLBACK in expect and why.startswith(WENT_BACK))
    ]
    assert report.outcome == ("contradicted" if contradicted else "undecided" if report.reasons else "pass")
    assert contradicted or not said, said
    held: dict[tuple[str, int], bytes] = dict(given or {})
    for host in hosts:
        held |= receipts(host)
    exported = stored_receipts(bundle)
    for (origin, size), receipt in held.items():
        there = exported.get((origin, size))
        assert there is not None, f"{origin} was receipted at size {size}, which the export lacks"
        assert there == receipt, f"{origin} has another receipt for size {size} than the one that was given"
    no_second_head(list(stored_heads(bundle)))
    if honest:
        no_second_head([*stored_heads(bundle), *(head for host in hosts for head in heads(host))])
    with reading(verifier.engine) as connection:
        stored = queries.findings(connection, report.until_us, chip_table())
    # Both compute them by the same rules, each from what it has.
    assert _of_nodes(report.findings) == _of_nodes(stored)
    codes = frozenset(one.code for one in stored)
    assert set(expect) <= codes, f"expected {sorted(set(expect) - codes)}, got {sorted(codes)}"
    more = codes - set(expect) - set(allow)
    assert not more, [f"{one.code}: {one.detail}" for one in stored if one.code in more]
    return After(report, len(held), codes, bundle)


def _of_nodes(findings: Sequence[Finding]) -> list[Finding]:
    return [one for one in findings if one.code not in VERIFIERS_OWN]


def _logs(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "logs").iterdir() if path.name.isdigit())


def stored_receipts(bundle: Path) -> dict[tuple[str, int], bytes]:
    """Every receipt in an export."""
    found: dict[tuple[str, int], bytes] = {}
    for path in bundle.rglob("*.receipt"):
        segment = parse_segment(path.with_suffix(".segment").read_bytes())
        found[segment.origin, segment.end] = path.read_bytes()
    return found
