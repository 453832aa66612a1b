"""A verifier's log that was written anew: what heartbeats quote, and what old receipts show."""

from functools import partial
from itertools import pairwise

import pytest

from keyturn_protocol import audit_log
from keyturn_protocol.audit import Report, audit
from keyturn_protocol.audit_log import Quote
from keyturn_protocol.chips import chip_table
from keyturn_protocol.findings import FindingCode
from keyturn_protocol.leaves import NodeCheckpointBody, parse_leaf
from tests.support.bundles import Bundle, Site
from tests.support.hosts import Host, Key


def run(bundle: Bundle) -> Report:
    return audit(bundle, bundle.trust, chip_table())


def quoting() -> tuple[Site, Host, Host]:
    """Two hosts; the second quotes the verifier's log after the first was receipted."""
    site = Site()
    one, two = site.enrol("one").genesis().inventory().usage("run:a"), site.enrol("two").genesis().inventory()
    site.receive(one)
    site.receive(two.usage("run:b").heartbeat(site.checkpoint()).usage("run:b"))
    return site, one, two


def without(site: Site, host: Host) -> None:
    """Whoever holds the verifier's keys takes a host out of its log, its database and its totals."""
    bodies = [parse_leaf(leaf).body for leaf in site.leaves]
    site.leaves.clear()
    for body in bodies:
        if getattr(body, "origin", None) != host.origin:
            site.leaf(body)
    del site.logs[host.origin]


def test_a_log_that_contains_what_is_quoted_passes() -> None:
    report = run(quoting()[0].export())
    assert (report.outcome, report.reasons) == ("pass", ())
    assert FindingCode.VERIFIER_ROLLBACK not in {f.code for f in report.findings}


def test_a_log_written_anew_is_shown_by_the_node_that_quotes_the_old_one() -> None:
    site, one, two = quoting()
    without(site, one)

    report = run(site.export())

    (found,) = [f for f in report.findings if f.code is FindingCode.VERIFIER_ROLLBACK]
    assert (found.origin, found.seq, found.severity) == (two.origin, 3, "high")
    assert "entry 3 quotes a checkpoint of 4 leaves" in found.detail
    assert report.outcome == "undecided"
    assert two.origin in report.reasons[0]


def test_a_log_shorter_than_what_is_quoted() -> None:
    site = Site()
    host = site.enrol("one").genesis().inventory()
    for _ in range(9):
        site.leaf(parse_leaf(site.leaves[0]).body)
    longer = site.checkpoint()
    del site.leaves[2:]
    site.receive(host.heartbeat(longer))
    report = run(site.export())
    assert report.outcome == "undecided"
    assert "a checkpoint of 11 leaves" in report.reasons[0]


def test_what_the_pinned_key_did_not_sign_says_nothing() -> None:
    """A host can't frame the verifier."""
    site, _, two = quoting()
    other = Site(seed="other").checkpoint()
    genuine = site.checkpoint()
    cut = genuine[:-9] + b"AAAAAAA=\n"
    grown = genuine.replace(b"\n6\n", b"\n7\n") if b"\n6\n" in genuine else genuine.replace(b"\n5\n", b"\n7\n")
    assert grown != genuine
    for note in (b"", b"x", other, cut, grown, site.receipt(b"x"), Site("kt.other").checkpoint()):
        two.heartbeat(note)
    site.receive(two)
    assert run(site.export()).outcome == "pass"


def test_many_quotes_are_thinned_evenly_and_the_first_stays() -> None:
    quotes = audit_log._Quotes()
    for at in range(5_000):
        quotes.add(Quote(at, 0, str(at // 2)))
    kept = [quote.seq for quote in quotes.kept]
    assert 512 <= len(kept) <= audit_log.QUOTES
    assert kept[0] == 0
    steps = {after - before for before, after in pairwise(kept)}
    assert len(steps) == 1


@pytest.mark.parametrize(("late_s", "codes"), [(0, []), (300, []), (301, ["verifier_rollback"])])
def test_a_receipt_much_older_than_its_leaf_was_shown_by_the_node(late_s: int, codes: list[str]) -> None:
    site, one, _ = quoting()
    site.receive(one.usage("run:a"))
    body = parse_leaf(site.leaves.pop()).body
    site.now_s += late_s
    site.leaf(body)
    report = run(site.export())
    assert report.outcome == "pass"
    assert [f.code for f in report.findings if f.code == "verifier_rollback"] == codes


def test_a_receipt_from_after_its_own_leaf() -> None:
    site, one, _ = quoting()
    receive = partial(site.receive, one.usage("run:a"))
    receive()
    body = parse_leaf(site.leaves.pop()).body
    assert isinstance(body, NodeCheckpointBody)
    site.now_s -= 1
    site.leaf(body)
    site.now_s += 2
    report = run(site.export())
    assert report.outcome == "contradicted"
    assert "a receipt from after its own leaf" in report.reasons[0]


def test_an_earlier_export_passed_off_as_this_one() -> None:
    """Its silence would end earlier, and it may name logs as left out that aren't."""
    site, _, two = quoting()
    early = site.export().manifest
    site.now_s += 3_600
    site.receive(two.usage("run:b"))
    late = site.export()
    report = run(late.manifested(export=early.export, export_index=early.export_index))
    assert report.outcome == "contradicted"
    assert "the export is not the last" in report.reasons[0]


def test_a_new_incarnation_that_knows_other_entries_than_were_receipted() -> None:
    site, one, _ = quoting()
    twin = Host("one", site.name).genesis().inventory().usage("run:z")
    assert len(twin.lines) == len(one.lines)
    after = site.enrol("unused", 2, one.name.node_id)
    after.key = Key("one")
    site._rekey(after)
    site.receive(after.genesis(twin.previous()))
    found = [f.detail for f in run(site.export()).findings if f.code is FindingCode.LOST_HEAD]
    assert found == ["knows other entries than the 3 that were receipted"]
