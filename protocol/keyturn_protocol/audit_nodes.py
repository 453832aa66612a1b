"""Auditing what the logs of nodes have to do with each other: enrolment, key succession, evidence, silence."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from keyturn_protocol.audit_log import Contradiction, LogResult, listed
from keyturn_protocol.audit_tree import VerifierLog
from keyturn_protocol.bundle import MANIFEST, BundleReader, Manifest, evidence_path
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.findings import Before, Finding, FindingCode, at_genesis, finding
from keyturn_protocol.ids import LogName, NodeId, parse_origin
from keyturn_protocol.keys import node_id_of, parse_vkey
from keyturn_protocol.leaves import EnrolmentBody, LogFrozenBody
from keyturn_protocol.segment import EntryError, Segment, follow, node_key, parse_segment, verify_head
from keyturn_protocol.totals import Listed, LogEnd, Takeover, clock_findings, listed_from, missing_after
from keyturn_protocol.usage import Gap


def enrolled(manifest: Manifest, verifier_log: VerifierLog, results: Sequence[LogResult]) -> Iterable[Contradiction]:
    """Every enrolled log is here or named as left out, under the key and names it was enrolled with."""
    known = verifier_log.enrolments()
    refs = {ref.origin: ref for ref in manifest.logs}
    left_out = {left.origin for left in manifest.export.left_out}
    for origin in sorted(known.keys() - refs.keys() - left_out):
        yield Contradiction(MANIFEST, f"{origin} is enrolled, but neither in the bundle nor named as left out")
    if verifier_log.checkpoint is None:
        return
    by_origin = {r.ref.origin: r for r in results}
    for origin, ref in refs.items():
        body = known.get(origin)
        key = parse_vkey(ref.vkey).public_key
        if body is None or (body.public_key, body.organisation, body.site) != (key.hex(), ref.organisation, ref.site):
            yield Contradiction(MANIFEST, f"{origin} was not enrolled like this")
        if not _succeeds(parse_origin(origin), key, by_origin, left_out):
            yield Contradiction(MANIFEST, f"{origin} is signed by a key that its predecessor did not name")


def _succeeds(name: LogName, key: bytes, results: Mapping[str, LogResult], left_out: set[str]) -> bool:
    """Whether a log's key follows from the node's newest earlier log, or from the node id if there is none."""
    earlier = {
        other.incarnation: origin
        for origin in (*results, *left_out)
        if (other := parse_origin(origin)).node_id == name.node_id and other.incarnation < name.incarnation
    }
    if not earlier:
        return node_id_of(key) == name.node_id
    before = results.get(earlier[max(earlier)])
    if before is None or before.contradictions:
        return True  # left out or broken: the result isn't a pass whatever the key is
    return key.hex() == (before.chain.next_key or parse_vkey(before.ref.vkey).public_key.hex())


def between(
    manifest: Manifest,
    results: Sequence[LogResult],
    verifier_log: VerifierLog,
    replaced: Mapping[NodeId, Mapping[str, Takeover]],
) -> tuple[list[Gap], list[Finding]]:
    """What is missing after each log's end, and what new incarnations left behind.

    :param replaced: for each replaced node, what took over its chips.
    """
    gaps: list[Gap] = []
    found: list[Finding] = []
    followed = verifier_log.followed()
    by_origin = {result.ref.origin: result for result in results}
    nodes: dict[NodeId, list[LogResult]] = {}
    for result in results:
        nodes.setdefault(parse_origin(result.ref.origin).node_id, []).append(result)
    for node, logs in nodes.items():
        logs.sort(key=lambda r: parse_origin(r.ref.origin).incarnation)
        listed: Listed = {}
        for result in reversed(logs):
            origin = parse_origin(result.ref.origin).origin
            end = LogEnd(origin, result.chain, result.fold, result.receipt_s, listed, replaced.get(node, {}))
            gaps += missing_after(end, manifest.export.until_us)
            found += clock_findings([end])
            listed = listed_from(result.chain.source, result.listed, listed)
        for at, result in enumerate(logs):
            name = parse_origin(result.ref.origin)
            if result.genesis is not None and name.incarnation > 1:
                before = logs[at - 1] if at else None
                known = None if before is None else _end(before)
                if name.origin in followed:
                    # A log may go on after its host opened the next one: what counts is what was known then.
                    enrolment, size = followed[name.origin]
                    earlier = by_origin.get(enrolment.origin)
                    root, time_us = (None, None) if earlier is None else earlier.at_followed.get(size, (None, None))
                    known = Before(enrolment.incarnation, size, root, time_us)
                found += at_genesis(name.origin, result.genesis, name.incarnation, known)
    return gaps, found


def _end(log: LogResult) -> Before:
    """Where a log ends in the bundle."""
    return Before(parse_origin(log.ref.origin).incarnation, log.size, log.frontier.root().hex(), log.chain.time_us)


def frozen(
    reader: BundleReader,
    manifest: Manifest,
    body: LogFrozenBody,
    enrolment: EnrolmentBody | None,
    result: LogResult | None,
) -> tuple[list[Contradiction], list[Finding]]:
    """Check the evidence for which a log was frozen: it must be there, signed by the node, and show what is said.

    :param result: None if the log is left out of the bundle.
    """
    path = evidence_path(body.evidence_sha256)
    found: list[Contradiction] = []
    if result is None and path not in manifest.files:
        return [], []  # left out with its log, which is named
    try:
        data = listed(reader, manifest, path, found)
        if sha256(data).hexdigest() != body.evidence_sha256:
            raise ProtocolError(Code.BAD_BUNDLE, "evidence is not what the verifier's log names")
        segment = parse_segment(data)
        if enrolment is None:
            raise ProtocolError(Code.BAD_BUNDLE, "evidence against a log that was never enrolled", got=body.origin)
        verify_head(segment, node_key(segment.origin, bytes.fromhex(enrolment.public_key)))
        signed = (segment.origin, segment.end, segment.checkpoint.root.hex())
        if signed != (body.origin, body.size, body.signed_root):
            raise ProtocolError(Code.BAD_BUNDLE, "evidence of another head", expected=body.origin, got=segment.origin)
        code, detail = _shown(body, segment, result)
    except ProtocolError as error:
        return [*found, Contradiction(path, str(error))], []
    found.append(Contradiction(path, f"{body.origin}: {detail}", segment.end - 1))
    return found, [finding(code, body.origin, detail, seq=segment.end - 1)]


def _shown(body: LogFrozenBody, segment: Segment, result: LogResult | None) -> tuple[FindingCode, str]:
    """What a signed segment proves against its log; raises if it proves nothing."""
    if body.reason == "fork":
        if result is not None and not result.contradictions:
            known = result.at_frozen.get(body.size)
            if known is None or known == segment.checkpoint.root:
                raise ProtocolError(Code.BAD_BUNDLE, "evidence of a fork that contradicts nothing", got=body.size)
        return FindingCode.FORK, f"the node also signed {body.signed_root} for size {body.size}"
    detail = f"signed entries {segment.start} … {segment.end - 1} break the format or the chain"
    if result is None or result.contradictions:
        return FindingCode.INVALID_ENTRIES, detail
    hashes = segment.leaf_hashes()
    if segment.start != result.size or result.frontier.extend(hashes).root() != segment.checkpoint.root:
        raise ProtocolError(Code.BAD_BUNDLE, "evidence of invalid entries that don't follow the log's end")
    try:
        follow(segment.name, parse_vkey(result.ref.vkey).public_key, result.chain, segment.lines, hashes)
    except EntryError as error:
        return FindingCode.INVALID_ENTRIES, f"{detail}: {error}"
    raise ProtocolError(Code.BAD_BUNDLE, "evidence of invalid entries that are valid")
