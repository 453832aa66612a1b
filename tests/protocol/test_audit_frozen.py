"""What an audit says about logs that were frozen, and about the evidence for it."""

from hashlib import sha256
from typing import Literal

import msgspec

from keyturn_protocol.audit import Report, audit
from keyturn_protocol.bundle import evidence_path
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entry_log import RetiredBody
from keyturn_protocol.findings import FindingCode
from keyturn_protocol.leaves import LogFrozenBody, parse_leaf
from keyturn_protocol.receive import Fork, Invalid
from keyturn_protocol.segment import parse_segment
from tests.support.bundles import Bundle, large
from tests.support.hosts import Host, Key, forked, signed_segment


def run(bundle: Bundle) -> Report:
    return audit(bundle, bundle.trust, chip_table())


def last_segment(host: Host, bundle: Bundle) -> str:
    folder = f"logs/{host.name.node_id}/{host.name.incarnation}/"
    return max(
        (p for p in bundle.segments() if p.startswith(folder)), key=lambda p: int(p.split("/")[-1].split("-")[0])
    )


def test_evidence_of_a_fork_contradicts_and_names_log_and_file() -> None:
    site, _, hosts = large()
    data = forked(hosts["one"])
    assert isinstance(site.post(data), Fork)
    report = run(site.export())
    path = evidence_path(sha256(data).hexdigest())
    assert [c.where for c in report.contradictions] == [path]
    assert hosts["one"].origin in report.contradictions[0].message
    assert report.findings[0].code is FindingCode.FORK
    assert report.findings[0].severity == "critical"


def test_evidence_of_a_fork_at_a_size_that_is_no_segments_end() -> None:
    site, _, hosts = large()
    short = Host("one", site.name)
    short.lines = hosts["one"].lines[:2]
    assert isinstance(site.post(forked(short)), Fork)
    assert run(site.export()).findings[0].code is FindingCode.FORK


def test_evidence_of_signed_entries_that_break_the_chain() -> None:
    site, _, hosts = large()
    host = hosts["one"]
    host.add(RetiredBody(chips=None, reason="sold"), boots=9)
    assert isinstance(site.receive(host), Invalid)
    report = run(site.export())
    assert report.findings[0].code is FindingCode.INVALID_ENTRIES
    assert "boot counter changed within one boot" in report.findings[0].detail


def test_missing_evidence() -> None:
    site, _, hosts = large()
    data = forked(hosts["one"])
    site.post(data)
    path = evidence_path(sha256(data).hexdigest())
    for bundle in (site.export().drop(path), site.export().drop(path).rehashed()):
        report = run(bundle)
        assert report.outcome == "contradicted"
        assert path in {c.where for c in report.contradictions}
        assert FindingCode.FORK not in {f.code for f in report.findings}


def test_evidence_that_shows_nothing_blames_nobody() -> None:
    """A verifier that freezes a log over a head that the log really has."""
    site, bundle, hosts = large()
    path = last_segment(hosts["one"], bundle)
    data = bundle.files[path]
    segment = parse_segment(data)
    site.files[evidence_path(sha256(data).hexdigest())] = data
    reasons: list[Literal["fork", "invalid_entries"]] = ["fork", "invalid_entries"]
    for reason in reasons:
        body = LogFrozenBody(
            origin=segment.origin,
            reason=reason,
            size=segment.end,
            signed_root=segment.checkpoint.root.hex(),
            evidence_sha256=sha256(data).hexdigest(),
        )
        site.leaf(body)
    report = run(site.export())
    assert report.outcome == "contradicted"
    assert {f.severity for f in report.findings}.isdisjoint({"critical"})


def test_evidence_signed_by_someone_else() -> None:
    site, _, hosts = large()
    one = hosts["one"]
    data = signed_segment(Key("framed"), one.name, one.lines[:2], 1)
    site.files[evidence_path(sha256(data).hexdigest())] = data
    root = parse_segment(data).checkpoint.root.hex()
    digest = sha256(data).hexdigest()
    site.leaf(LogFrozenBody(origin=one.origin, reason="fork", size=2, signed_root=root, evidence_sha256=digest))
    report = run(site.export())
    assert report.outcome == "contradicted"
    assert FindingCode.FORK not in {f.code for f in report.findings}


def test_evidence_of_another_head_than_the_leaf_names() -> None:
    site, _, hosts = large()
    data = forked(hosts["one"])
    site.post(data)
    leaf = parse_leaf(site.leaves.pop()).body
    assert isinstance(leaf, LogFrozenBody)
    for changes in ({"signed_root": "00" * 32}, {"size": leaf.size - 1}, {"origin": hosts["three"].origin}):
        site.leaf(msgspec.structs.replace(leaf, **changes))
        report = run(site.export())
        assert report.outcome == "contradicted"
        assert FindingCode.FORK not in {f.code for f in report.findings}
        del site.leaves[-2:]


def test_evidence_of_invalid_entries_that_are_valid_blames_nobody() -> None:
    """The verifier froze a log over its next, good segment."""
    site, _, hosts = large()
    host = hosts["one"].usage()
    data = host.segment()
    segment, digest = parse_segment(data), sha256(data).hexdigest()
    site.files[evidence_path(digest)] = data
    site.leaf(
        LogFrozenBody(
            origin=host.origin,
            reason="invalid_entries",
            size=segment.end,
            signed_root=segment.checkpoint.root.hex(),
            evidence_sha256=digest,
        )
    )
    report = run(site.export())
    assert "evidence of invalid entries that are valid" in "".join(report.reasons)
    assert FindingCode.INVALID_ENTRIES not in {f.code for f in report.findings}
