"""Auditing a bundle: a pure fold from bytes and pinned keys to a report.

Each log is checked by itself (:func:`audit_log`, in any order or side by side), the verifier's log by
:func:`audit_verifier_log`, and :func:`conclude` puts them together. Nothing in a bundle is believed because
the bundle says so: keys come from the auditor's :class:`~keyturn_protocol.api.Trust`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from keyturn_protocol.api import Trust, WorkloadTotal
from keyturn_protocol.audit_log import Contradiction, LogResult, Task, audit_log, listed
from keyturn_protocol.audit_tree import VerifierLog, audit_verifier_log
from keyturn_protocol.bundle import (
    MANIFEST,
    TOTALS,
    VERIFIER_LOG,
    BundleReader,
    Manifest,
    evidence_path,
    log_folder,
    parse_manifest,
    parse_segment_name,
)
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entries import Chip, WorkloadStartedBody
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.findings import Finding, FindingCode, at_genesis, finding, in_totals, ranked
from keyturn_protocol.ids import LogName, parse_origin
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.leaves import (
    Export,
    Init,
    LogFrozen,
    LogFrozenBody,
    NodeCheckpoint,
    NodeCheckpointBody,
)
from keyturn_protocol.segment import parse_segment, verify_head
from keyturn_protocol.totals import LogEnd, missing_after, summarise
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
    checkpoint: Checkpoint | None
    case: str | None = None


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
            Task(ref, segments, files, trust, frozenset(logged.get(ref.origin, ())), tuple(frozen.get(ref.origin, ())))
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
) -> Report:
    """Put the logs together: keys, completeness, evidence of forks, totals, findings.

    :param pinned: whether ``trust`` came from outside of the bundle.
    """
    found = [*verifier_log.contradictions, *(c for r in results for c in r.contradictions)]
    found += _manifest(reader, manifest, verifier_log, trust)
    found += _enrolled(manifest, verifier_log, results)
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
    late, more = _between(manifest, results)
    findings += more
    for leaf in verifier_log.leaves:
        if isinstance(leaf, LogFrozen):
            contradiction, proof = _frozen(reader, manifest, leaf.body, results)
            found += contradiction
            findings += proof
    findings += in_totals(usage, [*gaps, *late], chips, lambda chip: table.lookup(chip) is not None)
    reasons = [f"{c.where}: {c.message}" for c in found]
    left_out = tuple((left.origin, left.reason) for left in manifest.export.left_out)
    open_ends = [] if pinned else ["internally consistent at best: keys not pinned"]
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
        checkpoint=verifier_log.checkpoint,
        case=manifest.export.case,
    )


def _manifest(
    reader: BundleReader, manifest: Manifest, verifier_log: VerifierLog, trust: Trust
) -> Iterable[Contradiction]:
    """The manifest's own claims: the keys, the export leaf, exactly the listed files."""
    if manifest.verifier != trust:
        yield Contradiction(MANIFEST, "the bundle names other verifier keys than those pinned")
    first = verifier_log.leaves[0] if verifier_log.leaves else None
    if verifier_log.checkpoint is not None and not (
        isinstance(first, Init)
        and (first.body.deployment, first.body.log_vkey, first.body.receipt_vkey)
        == (trust.deployment, trust.log_vkey, trust.receipt_vkey)
    ):
        yield Contradiction(VERIFIER_LOG, "the verifier's log did not begin with the pinned keys", 0)
    leaf = verifier_log.leaves[manifest.export_index] if manifest.export_index < len(verifier_log.leaves) else None
    if not isinstance(leaf, Export) or leaf.body != manifest.export:
        yield Contradiction(MANIFEST, "the verifier's log holds no such export", manifest.export_index)
    present = {path for path in reader.paths() if path != MANIFEST}
    for path in sorted(manifest.files.keys() - present):
        yield Contradiction(path, "file is missing")
    for path in sorted(present - manifest.files.keys()):
        yield Contradiction(path, "file is not in the manifest")


def _enrolled(manifest: Manifest, verifier_log: VerifierLog, results: Sequence[LogResult]) -> Iterable[Contradiction]:
    """Every enrolled log is here or named as left out, under the key and names it was enrolled with."""
    enrolled = verifier_log.enrolments()
    listed = {ref.origin: ref for ref in manifest.logs}
    left_out = {left.origin for left in manifest.export.left_out}
    for origin in sorted(enrolled.keys() - listed.keys() - left_out):
        yield Contradiction(MANIFEST, f"{origin} is enrolled, but neither in the bundle nor named as left out")
    if verifier_log.checkpoint is None:
        return
    by_origin = {r.ref.origin: r for r in results}
    for origin, ref in listed.items():
        body = enrolled.get(origin)
        key = parse_vkey(ref.vkey).public_key
        if body is None or (body.public_key, body.organisation, body.site) != (
            key.hex(),
            ref.organisation,
            ref.site,
        ):
            yield Contradiction(MANIFEST, f"{origin} was not enrolled like this")
        name = parse_origin(origin)
        previous = _newest_before(by_origin, name)
        if previous is not None and not previous.contradictions:
            expected = previous.chain.next_key or parse_vkey(previous.ref.vkey).public_key.hex()
            if key.hex() != expected:
                yield Contradiction(MANIFEST, f"{origin} is signed by a key that its predecessor did not name")


def _newest_before(results: Mapping[str, LogResult], name: LogName) -> LogResult | None:
    """The result of the node's incarnation just before ``name``, skipping numbers that were never seen."""
    mine = [
        (parse_origin(origin).incarnation, result)
        for origin, result in results.items()
        if origin.startswith(f"{name.deployment}/node/{name.node_id}/")
    ]
    earlier = [(incarnation, result) for incarnation, result in mine if incarnation < name.incarnation]
    return max(earlier, key=lambda pair: pair[0])[1] if earlier else None


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
        at = next((i for i, (x, y) in enumerate(zip(data, computed, strict=False)) if x != y), None)
        yield Contradiction(TOTALS, f"totals differ from the recomputed ones at byte {at}")


def _between(manifest: Manifest, results: Sequence[LogResult]) -> tuple[list[Gap], list[Finding]]:
    """What is missing after each log's end, and what new incarnations left behind."""
    gaps: list[Gap] = []
    found: list[Finding] = []
    nodes: dict[str, list[LogResult]] = {}
    for result in results:
        nodes.setdefault(parse_origin(result.ref.origin).node_id, []).append(result)
    for logs in nodes.values():
        logs.sort(key=lambda r: parse_origin(r.ref.origin).incarnation)
        for at, result in enumerate(logs):
            name = parse_origin(result.ref.origin)
            after = logs[at + 1].genesis if at + 1 < len(logs) else None
            end = LogEnd(
                name.origin,
                result.chain.source,
                result.chain.time_us,
                result.fold,
                None if after is None else after.time_us,
            )
            gaps += missing_after(end, manifest.export.until_us)
            if result.genesis is not None and name.incarnation > 1:
                before = logs[at - 1] if at else None
                known = None if before is None else (parse_origin(before.ref.origin).incarnation, before.size)
                found += at_genesis(name.origin, result.genesis, name.incarnation, known)
    return gaps, found


def _frozen(
    reader: BundleReader, manifest: Manifest, body: LogFrozenBody, results: Sequence[LogResult]
) -> tuple[list[Contradiction], list[Finding]]:
    """Check the evidence for which a log was frozen: it must be there, signed, and show what is said of it."""
    path = evidence_path(body.evidence_sha256)
    found: list[Contradiction] = []
    result = next((r for r in results if r.ref.origin == body.origin), None)
    code = FindingCode.FORK if body.reason == "fork" else FindingCode.INVALID_ENTRIES
    try:
        data = listed(reader, manifest, path, found)
        if sha256(data).hexdigest() != body.evidence_sha256:
            raise ProtocolError(Code.BAD_BUNDLE, "evidence is not what the verifier's log names")
        segment = parse_segment(data)
        if result is not None:
            verify_head(segment, parse_vkey(result.ref.vkey))
        signed = (segment.origin, segment.end, segment.checkpoint.root.hex())
        if signed != (body.origin, body.size, body.signed_root):
            raise ProtocolError(Code.BAD_BUNDLE, "evidence of another head", expected=body.origin, got=segment.origin)
    except ProtocolError as error:
        return [*found, Contradiction(path, str(error))], []
    detail = f"the node also signed {body.signed_root} for size {body.size}"
    if code is FindingCode.INVALID_ENTRIES:
        detail = f"signed entries {segment.start} … {segment.end - 1} break the format or the chain"
    found.append(Contradiction(path, f"{body.origin}: {detail}", segment.end - 1))
    return found, [finding(code, body.origin, detail, seq=segment.end - 1)]


def audit(reader: BundleReader, trust: Trust | None, table: ChipTable) -> Report:
    """Audit a whole bundle in this process.

    :param trust: the pinned keys; without them the manifest's own are used and the outcome is never ``pass``.
    """
    manifest = open_manifest(reader)
    keys = trust or manifest.verifier
    verifier_log = audit_verifier_log(reader, manifest, keys)
    results = [audit_log(reader, task) for task in tasks(manifest, verifier_log, keys)]
    return conclude(reader, manifest, verifier_log, results, keys, table, pinned=trust is not None)
