"""Auditing a bundle: a pure fold from bytes and pinned keys to a report.

Each log is checked by itself (:func:`audit_log`, in any order or side by side), the verifier's log by
:func:`audit_verifier_log`, and :func:`conclude` puts them together. Nothing in a bundle is believed because
the bundle says so: keys come from the auditor's :class:`~keyturn_protocol.api.Trust`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from keyturn_protocol.api import OperatorKey, Trust, WorkloadTotal
from keyturn_protocol.audit_log import Contradiction, LogResult, Task, audit_log, listed
from keyturn_protocol.audit_nodes import between, enrolled, frozen
from keyturn_protocol.audit_rollback import quoted, shown
from keyturn_protocol.audit_root import root_trust
from keyturn_protocol.audit_runs import RunTotal, run_totals
from keyturn_protocol.audit_statements import newest_logs, node_logs, said
from keyturn_protocol.audit_tree import VerifierLog, audit_verifier_log, hold_against
from keyturn_protocol.bundle import (
    MANIFEST,
    TOTALS,
    VERIFIER_LOG,
    BundleReader,
    Manifest,
    evidence_path,
    lease_path,
    log_folder,
    parse_manifest,
    parse_segment_name,
    receipt_path,
    statement_path,
)
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.findings import Finding, in_totals, ranked
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.leaves import (
    Export,
    Lease,
    LogFrozen,
    LogFrozenBody,
    NodeCheckpoint,
    NodeCheckpointBody,
    Statement,
)
from keyturn_protocol.links import Link, link_findings, takeovers
from keyturn_protocol.root import Standing
from keyturn_protocol.tiles import tiles_of
from keyturn_protocol.totals import summarise
from keyturn_protocol.usage import Gap, Rows, to_row, totals_json

Outcome = Literal["pass", "contradicted", "undecided"]


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an audit. ``outcome`` is about integrity only; it says nothing about compliance."""

    outcome: Outcome
    reasons: tuple[str, ...]
    """Why the outcome isn't ``pass``, a line each."""
    deployment: str
    pinned: bool
    logs: int
    logs_verified: int
    entries: int
    left_out: tuple[tuple[str, str], ...]
    contradictions: tuple[Contradiction, ...]
    findings: tuple[Finding, ...]
    workloads: tuple[WorkloadTotal, ...]
    chips: int
    until_us: int
    chip_table: str
    chip_table_claimed: str
    """The version that the exporter used; totals hold no FLOP, so a newer table contradicts nothing."""
    checkpoint: Checkpoint | None
    seen: Checkpoint | None
    case: str | None = None
    links: tuple[Link, ...] = ()
    """Nodes that others replaced, as operators signed."""
    runs: tuple[RunTotal, ...] = ()
    """Every run that was asked for, in that order, recomputed at ``until_us``."""


def open_manifest(reader: BundleReader) -> Manifest:
    """Read and parse the manifest."""
    return parse_manifest(reader.read(MANIFEST))


def tasks(manifest: Manifest, verifier_log: VerifierLog, trust: Trust) -> list[Task]:
    """One task for each log that the manifest lists."""
    by_folder: dict[str, dict[str, str]] = {}
    for path, digest in manifest.files.items():
        folder = path.rpartition("/")[0] + "/"
        by_folder.setdefault(folder, {})[path] = digest
    logged: dict[str, list[NodeCheckpointBody]] = {}
    frozen: dict[str, list[LogFrozenBody]] = {}
    followed: dict[str, set[int]] = {}
    for before, size in verifier_log.followed().values():
        followed.setdefault(before.origin, set()).add(size)
    for leaf in verifier_log.leaves:
        if isinstance(leaf, NodeCheckpoint):
            logged.setdefault(leaf.body.origin, []).append(leaf.body)
        elif isinstance(leaf, LogFrozen):
            frozen.setdefault(leaf.body.origin, []).append(leaf.body)
    found = []
    for ref in manifest.logs:
        files = by_folder.get(log_folder(parse_origin(ref.origin)), {})
        segments = tuple(sorted((p for p in files if p.endswith(".segment")), key=_segment_order))
        found.append(
            Task(
                ref=ref,
                segments=segments,
                files=files,
                trust=trust,
                logged=frozenset(logged.get(ref.origin, ())) if verifier_log.whole else None,
                frozen=tuple(frozen.get(ref.origin, ())),
                followed_at=frozenset(followed.get(ref.origin, ())),
            )
        )
    return found


def _segment_order(path: str) -> tuple[int, int]:
    try:
        return parse_segment_name(path.rpartition("/")[2])
    except ProtocolError:
        return (-1, -1)


def conclude(
    reader: BundleReader,
    manifest: Manifest,
    verifier_log: VerifierLog,
    results: Sequence[LogResult],
    trust: Trust,
    table: ChipTable,
    *,
    pinned: bool,
    seen: Checkpoint | None = None,
    root_sha256: str | None = None,
    operators: Sequence[OperatorKey] | None = None,
) -> Report:
    """Put the logs together: keys, completeness, evidence of forks, totals, findings.

    :param pinned: whether ``trust`` came from outside of the bundle.
    :param seen: a checkpoint of the verifier's log that the auditor got elsewhere, its signature checked.
    :param root_sha256: the pinned root, in hex: any version of it.
    :param operators: the pinned keys of operators; None if none came with ``trust``.
    """
    found = [*verifier_log.contradictions, *(c for r in results for c in r.contradictions)]
    found += _manifest(reader, manifest, verifier_log, trust)
    found += enrolled(manifest, verifier_log, results)
    rows: Rows = {}
    gaps: list[Gap] = []
    chips: dict[tuple[str, int, str], Chip] = {}
    started: dict[tuple[str, str], Sequence[WorkloadStartedBody]] = {}
    findings = [f for r in results for f in r.findings]
    for result in results:
        rows |= result.rows
        gaps += result.gaps
        chips |= result.chips
        started |= result.started
    usage = [to_row(key, values) for key, values in rows.items()]
    if not any(r.contradictions for r in results):
        found += _totals(reader, manifest, totals_json(usage, gaps))
    people = said(reader, manifest, verifier_log, results, trust, operators if pinned else None, root_sha256)
    found += people.contradictions
    findings += people.findings
    nodes = node_logs(verifier_log, results, people.links)
    late, more = between(manifest, results, verifier_log, takeovers(people.links, nodes))
    findings += [*more, *link_findings(people.links, nodes, newest_logs(verifier_log))]
    by_origin = {r.ref.origin: r for r in results}
    enrolments = verifier_log.enrolments()
    for leaf in verifier_log.leaves:
        if isinstance(leaf, LogFrozen):
            origin = leaf.body.origin
            proof = frozen(reader, manifest, leaf.body, enrolments.get(origin), by_origin.get(origin))
            found += proof[0]
            findings += proof[1]
    findings += in_totals(usage, [*gaps, *late], chips, lambda chip: table.lookup(chip) is not None)
    open_ends = [] if pinned else ["internally consistent at best: keys not pinned"]
    if people.unpinned:
        open_ends.append(f"{people.unpinned} statements by people: the keys of operators are not pinned")
    went_back = quoted(verifier_log, {r.ref.origin: r.quotes for r in results}, trust)
    findings += [*went_back[0], *shown(verifier_log)]
    open_ends += went_back[1]
    if people.under_root and root_sha256 is None:
        open_ends.append(f"{people.under_root} statements under a root: it is not pinned")
    elif root_sha256 is not None and not people.under_root:
        open_ends.append("the verifier's log holds no root yet: the pinned one is not in it")
    found += _root(manifest, people.switch.standing)
    if seen is not None:
        match hold_against(verifier_log, seen):
            case Contradiction() as rewritten:
                found.append(rewritten)
            case str() as open_end:
                open_ends.append(open_end)
            case None:
                pass
    # What names an entry comes first; and one order, whichever log was audited first.
    found.sort(key=lambda c: (c.seq is None, c.where, c.seq or 0, c.message))
    reasons = [f"{c.where}: {c.message}" for c in found]
    left_out = tuple((left.origin, left.reason) for left in manifest.export.left_out)
    open_ends += [f"{origin} is left out: {reason}" for origin, reason in left_out]
    outcome: Outcome = "contradicted" if reasons else "undecided" if open_ends else "pass"
    broken = {r.ref.origin for r in results if r.contradictions}
    return Report(
        outcome=outcome,
        reasons=tuple(reasons + open_ends),
        deployment=manifest.deployment,
        pinned=pinned,
        logs=len(results),
        logs_verified=len(results) - len(broken),
        entries=sum(r.size for r in results),
        left_out=left_out,
        contradictions=tuple(found),
        findings=tuple(ranked(findings)),
        workloads=tuple(summarise(usage, [*gaps, *late], chips, started, table)),
        chips=len({uuid for _, _, uuid in chips}),
        until_us=manifest.export.until_us,
        chip_table=table.version,
        chip_table_claimed=manifest.export.chip_table,
        checkpoint=verifier_log.checkpoint,
        seen=seen,
        case=manifest.export.case,
        links=tuple(people.links),
        runs=run_totals(people.switch, results, manifest.export.until_us),
    )


def _manifest(
    reader: BundleReader, manifest: Manifest, verifier_log: VerifierLog, trust: Trust
) -> Iterable[Contradiction]:
    """The manifest's own claims: the keys, the export leaf, exactly the listed files."""
    if manifest.verifier != trust:
        yield Contradiction(MANIFEST, "the bundle names other verifier keys than those pinned")
    leaf = verifier_log.leaves[manifest.export_index] if manifest.export_index < len(verifier_log.leaves) else None
    if not isinstance(leaf, Export) or leaf.body != manifest.export:
        yield Contradiction(MANIFEST, "the verifier's log holds no such export", manifest.export_index)
    elif manifest.export_index != len(verifier_log.leaves) - 1:
        # An earlier one would count silence up to an earlier moment, or name other logs as left out.
        message = f"not the export of this bundle: {len(verifier_log.leaves)} leaves, the export is not the last"
        yield Contradiction(MANIFEST, message, manifest.export_index)
    present = {path for path in reader.paths() if path != MANIFEST}
    for path in sorted(manifest.files.keys() - present):
        yield Contradiction(path, "file is missing")
    for path in sorted(present - manifest.files.keys()):
        yield Contradiction(path, "file is not in the manifest")
    if verifier_log.checkpoint is not None and len(verifier_log.leaves) == verifier_log.checkpoint.size:
        for path in sorted(manifest.files.keys() - _accounted(manifest, verifier_log, verifier_log.checkpoint.size)):
            yield Contradiction(path, "file that nothing in the evidence accounts for")


def _root(manifest: Manifest, newest: Standing | None) -> Iterable[Contradiction]:
    """The root that an export names is the one in force."""
    expected, claimed = None if newest is None else newest.hash, manifest.export.root_sha256
    if claimed != expected:
        yield Contradiction(MANIFEST, f"the export names another root (expected {expected}, got {claimed})")


def _accounted(manifest: Manifest, verifier_log: VerifierLog, size: int) -> set[str]:
    """Every path that has a meaning in this bundle: what isn't read can't be vouched for."""
    folders = {log_folder(parse_origin(ref.origin)) for ref in manifest.logs}
    segments = {p for p in manifest.files if p.endswith(".segment") and p.rpartition("/")[0] + "/" in folders}
    evidence = {evidence_path(leaf.body.evidence_sha256) for leaf in verifier_log.leaves if isinstance(leaf, LogFrozen)}
    tiles = {VERIFIER_LOG + tile.path for tile in tiles_of(size)}
    statements = {statement_path(leaf.body.sha256) for leaf in verifier_log.leaves if isinstance(leaf, Statement)}
    leases = {lease_path(leaf.body.sha256) for leaf in verifier_log.leaves if isinstance(leaf, Lease)}
    log = {VERIFIER_LOG + "checkpoint", *tiles}
    return {TOTALS, *log, *evidence, *statements, *leases, *segments, *map(receipt_path, segments)}


def _totals(reader: BundleReader, manifest: Manifest, computed: bytes) -> Iterable[Contradiction]:
    """``totals.json``, byte for byte."""
    found: list[Contradiction] = []
    try:
        data = listed(reader, manifest, TOTALS, found)
    except ProtocolError as error:
        yield Contradiction(TOTALS, str(error))
        return
    yield from found
    if data != computed:
        short = min(len(data), len(computed))
        at = next((i for i, (x, y) in enumerate(zip(data, computed, strict=False)) if x != y), short)
        yield Contradiction(TOTALS, f"totals differ from the recomputed ones at byte {at}")


def audit(
    reader: BundleReader,
    trust: Trust | None,
    table: ChipTable,
    *,
    operators: Sequence[OperatorKey] | None = None,
    root_sha256: str | None = None,
) -> Report:
    """Audit a whole bundle in this process.

    :param trust: the pinned keys; without them those of the pinned root are used, or else the manifest's own, and
        then the outcome is never ``pass``.
    :param operators: the pinned keys of operators, if any.
    :param root_sha256: the pinned root, in hex: any version of it.
    """
    manifest = open_manifest(reader)
    trust = trust or root_trust(reader, root_sha256)
    keys = trust or manifest.verifier
    verifier_log = audit_verifier_log(reader, manifest, keys)
    results = [audit_log(reader, task) for task in tasks(manifest, verifier_log, keys)]
    return conclude(
        reader,
        manifest,
        verifier_log,
        results,
        keys,
        table,
        pinned=trust is not None,
        operators=operators,
        root_sha256=root_sha256,
    )
