"""What an audit says about bundles that someone tampered with, by what was done to them."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import msgspec
import pytest

from keyturn_protocol import audit as auditing
from keyturn_protocol.api import Trust
from keyturn_protocol.audit import Report, audit, conclude, open_manifest, tasks
from keyturn_protocol.audit_log import audit_log
from keyturn_protocol.audit_tree import audit_verifier_log
from keyturn_protocol.bundle import MANIFEST, TOTALS, check_trust, parse_manifest, receipt_path, segment_path
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.checkpoint import open_checkpoint
from keyturn_protocol.chips import chip_table
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.findings import FindingCode
from keyturn_protocol.keys import VerifierKey, parse_vkey
from keyturn_protocol.leaves import EnrolmentBody, InitBody, LeafBody, NodeCheckpointBody, parse_leaf
from keyturn_protocol.receive import Accepted
from keyturn_protocol.segment import parse_segment
from tests.support.bundles import Bundle, Site, large
from tests.support.hosts import Host, Key, forked, signed_segment


@cache
def world() -> tuple[Site, Bundle, dict[str, Host]]:
    return large()


def run(bundle: Bundle, trust: Trust | None = None) -> Report:
    return audit(bundle, trust or bundle.trust, chip_table())


def first_entry_path(host: Host, bundle: Bundle) -> str:
    folder = f"logs/{host.name.node_id}/{host.name.incarnation}/"
    return min(
        (p for p in bundle.segments() if p.startswith(folder)), key=lambda p: int(p.split("/")[-1].split("-")[0])
    )


def last_segment(host: Host, bundle: Bundle) -> str:
    folder = f"logs/{host.name.node_id}/{host.name.incarnation}/"
    return max(
        (p for p in bundle.segments() if p.startswith(folder)), key=lambda p: int(p.split("/")[-1].split("-")[0])
    )


def said(report: Report) -> str:
    return "\n".join(report.reasons)


def test_a_clean_bundle_passes_with_all_of_its_numbers() -> None:
    _, bundle, hosts = world()
    report = run(bundle)
    assert (report.outcome, report.reasons) == ("pass", ())
    assert (report.logs, report.logs_verified) == (4, 4)
    assert report.entries == sum(len(host.lines) for host in hosts.values())
    assert [w.workload for w in report.workloads] == ["run:a", "run:b", "user:7", "gap", "unattributed"]
    assert {f.code for f in report.findings} == {"gap", "new_incarnation", "unmeasured"}


def test_without_pinned_keys_nothing_passes() -> None:
    report = audit(world()[1], None, chip_table())
    assert report.outcome == "undecided"
    assert "keys not pinned" in said(report)
    assert report.contradictions == ()


def test_all_keys_replaced_is_consistent_in_itself_and_fails_against_the_pinned_trust() -> None:
    forger = Site(seed="forger")
    host = forger.enrol("forged").genesis().inventory().usage("run:a")
    forger.receive(host)
    forged = forger.export()
    assert audit(forged, None, chip_table()).outcome == "undecided"
    report = run(forged, world()[1].trust)
    assert report.outcome == "contradicted"
    assert "the bundle names other verifier keys than those pinned" in said(report)
    disguised = forged.manifested(verifier=world()[1].trust)
    assert run(disguised, world()[1].trust).outcome == "contradicted"


class TestFiles:
    @pytest.mark.parametrize("path", sorted(world()[1].files.keys() - {MANIFEST}))
    def test_a_dropped_file(self, path: str) -> None:
        report = run(world()[1].drop(path))
        assert report.outcome == "contradicted"
        assert path in {c.where for c in report.contradictions}
        assert run(world()[1].drop(path).rehashed()).outcome == "contradicted"

    @pytest.mark.parametrize("path", sorted(world()[1].files.keys() - {MANIFEST}))
    def test_a_renamed_file(self, path: str) -> None:
        renamed = world()[1].drop(path).put(path + "x", world()[1].files[path])
        assert run(renamed).outcome == "contradicted"
        assert run(renamed.rehashed()).outcome == "contradicted"

    def test_any_two_files_swapped(self) -> None:
        bundle = world()[1]
        paths = sorted(bundle.files.keys() - {MANIFEST})
        for i, one in enumerate(paths):
            for other in paths[i + 1 :]:
                swapped = bundle.put(one, bundle.files[other]).put(other, bundle.files[one]).rehashed()
                assert run(swapped).outcome == "contradicted", (one, other)

    @pytest.mark.parametrize("path", ["notes.txt", "logs/extra.segment", "roots/1.json", "evidence/x.segment"])
    def test_a_file_that_nothing_accounts_for(self, path: str) -> None:
        added = world()[1].put(path, b"hello\n")
        assert f"{path}: file is not in the manifest" in said(run(added))
        assert f"{path}: file that nothing in the evidence accounts for" in said(run(added.rehashed()))

    def test_a_duplicated_segment(self) -> None:
        _, bundle, hosts = world()
        path = first_entry_path(hosts["one"], bundle)
        start, end = map(int, path.rpartition("/")[2].removesuffix(".segment").split("-"))
        copy = segment_path(hosts["one"].name, end, end + end - start)
        doubled = bundle.put(copy, bundle.files[path])
        doubled = doubled.put(receipt_path(copy), bundle.files[receipt_path(path)]).rehashed()
        assert run(doubled).outcome == "contradicted"

    @pytest.mark.parametrize("who", ["one", "two", "three", "again"])
    def test_the_last_segment_dropped_under_a_manifest_that_agrees(self, who: str) -> None:
        _, bundle, hosts = world()
        path = last_segment(hosts[who], bundle)
        start = int(path.rpartition("/")[2].partition("-")[0])
        cut = bundle.drop(path, receipt_path(path)).rehashed().resized(hosts[who].origin, start)
        report = run(cut)
        assert report.outcome == "contradicted"
        assert f"log has {start} entries where the verifier receipted {len(hosts[who].lines)}" in said(report)


class TestManifest:
    def test_a_log_dropped_unnamed(self) -> None:
        _, bundle, hosts = world()
        folder = f"logs/{hosts['three'].name.node_id}/"
        gone = bundle.drop(*(p for p in bundle.files if p.startswith(folder))).rehashed()
        gone = gone.manifested(logs=[r for r in gone.manifest.logs if r.origin != hosts["three"].origin])
        assert f"{hosts['three'].origin} is enrolled, but neither in the bundle" in said(run(gone))

    def test_a_log_named_as_left_out_leaves_the_result_open(self) -> None:
        site, _, hosts = large()
        report = run(site.export({hosts["three"].origin: "another customer's"}))
        assert report.outcome == "undecided"
        assert report.reasons == (f"{hosts['three'].origin} is left out: another customer's",)

    def test_a_log_named_as_left_out_by_someone_else_than_the_verifier(self) -> None:
        site, bundle, hosts = large()
        other = site.export({hosts["three"].origin: "not ours"})
        report = run(other.manifested(export_index=bundle.manifest.export_index, export=bundle.manifest.export))
        assert report.outcome == "contradicted"

    @pytest.mark.parametrize(
        "change",
        [{"case": "case 8"}, {"case": None}, {"until_us": 1}, {"exporter": "x"}, {"chip_table": "x"}],
        ids=lambda c: next(iter(c)),
    )
    def test_an_export_that_differs_from_its_leaf(self, change: dict[str, object]) -> None:
        bundle = world()[1]
        export = msgspec.structs.replace(bundle.manifest.export, **change)
        assert "the verifier's log holds no such export" in said(run(bundle.manifested(export=export)))

    @pytest.mark.parametrize("field", ["organisation", "site"])
    def test_other_names_than_at_enrolment(self, field: str) -> None:
        bundle = world()[1]
        logs = [msgspec.structs.replace(r, **{field: "Other"}) for r in bundle.manifest.logs]
        assert "was not enrolled like this" in said(run(bundle.manifested(logs=logs)))


class TestKeys:
    def test_a_log_signed_again_with_a_fresh_key(self) -> None:
        """Every segment and the manifest agree; enrolment and receipts don't."""
        site, bundle, hosts = world()
        host, key = hosts["one"], Key("fresh")
        for path in bundle.segments():
            if host.name.node_id in path:
                segment = parse_segment(bundle.files[path])
                data = signed_segment(key, host.name, host.lines[: segment.end], segment.start)
                note = parse_segment(data).note
                bundle = bundle.put(path, data).put(receipt_path(path), site.receipt(note.text))
        vkey = str(replace(_vkey(bundle, host), public_key=key.public))
        logs = [msgspec.structs.replace(r, vkey=vkey) if r.origin == host.origin else r for r in bundle.manifest.logs]
        report = run(bundle.manifested(logs=logs).rehashed())
        assert report.outcome == "contradicted"
        assert "was not enrolled like this" in said(report)

    def test_a_receipt_by_another_key(self) -> None:
        site, bundle, hosts = world()
        path = first_entry_path(hosts["one"], bundle)
        text = parse_segment(bundle.files[path]).note.text
        forged = bundle.put(receipt_path(path), site.receipt(text, Key("someone"))).rehashed()
        assert run(forged).contradictions[0].where == receipt_path(path)

    def test_a_receipt_of_another_log(self) -> None:
        _, bundle, hosts = world()
        one, two = (receipt_path(first_entry_path(hosts[h], bundle)) for h in ("one", "two"))
        report = run(bundle.put(one, bundle.files[two]).rehashed())
        assert [c.where for c in report.contradictions] == [one]

    def test_a_later_incarnation_under_a_key_that_nobody_named(self) -> None:
        site, _, hosts = large()
        three = hosts["three"]
        taken = site.next_incarnation(three, seed="thief")
        assert isinstance(site.receive(taken), Accepted)
        assert f"{taken.origin} is signed by a key that its predecessor did not name" in said(run(site.export()))

    def test_a_first_seen_incarnation_under_a_key_that_is_not_the_nodes(self) -> None:
        site = Site()
        thief = site.enrol("thief", 2, Host("victim", site.name).name.node_id)
        site.receive(thief.genesis(Host("victim", site.name).genesis().previous()))
        assert "is signed by a key that its predecessor did not name" in said(run(site.export()))


def _vkey(bundle: Bundle, host: Host) -> VerifierKey:
    return parse_vkey(next(r.vkey for r in bundle.manifest.logs if r.origin == host.origin))


class TestTotals:
    def lowered(self, bundle: Bundle, change: Callable[[dict[str, list[dict[str, int]]]], None]) -> Bundle:
        totals = msgspec.json.decode(bundle.files[TOTALS])
        change(totals)
        return bundle.put(TOTALS, msgspec.json.encode(totals, order="sorted")).rehashed()

    def test_a_lowered_number(self) -> None:
        def change(totals: dict[str, list[dict[str, int]]]) -> None:
            totals["usage_hour"][0]["tensor_mcycles"] -= 1

        report = run(self.lowered(world()[1], change))
        assert [c.where for c in report.contradictions] == [TOTALS]

    def test_a_gap_left_out(self) -> None:
        report = run(self.lowered(world()[1], lambda totals: totals["gaps"].clear()))
        assert [c.where for c in report.contradictions] == [TOTALS]

    def test_a_truncated_file_says_where(self) -> None:
        bundle = world()[1]
        report = run(bundle.put(TOTALS, bundle.files[TOTALS][:100]).rehashed())
        assert "totals differ from the recomputed ones at byte 100" in said(report)


class TestVerifierLog:
    def test_a_receipt_that_is_not_in_the_log(self) -> None:
        """The verifier gave a receipt and forgot it: its log has no leaf for the last segment."""
        site, bundle, hosts = large()
        path = last_segment(hosts["one"], bundle)
        site.leaves.pop()  # the export; the leaf before it is of this host's last receipt
        assert _receipted(site.leaves.pop()) == hosts["one"].origin
        report = run(site.export())
        assert report.outcome == "contradicted"
        assert [c.where for c in report.contradictions] == [receipt_path(path)]
        assert FindingCode.UNLOGGED_RECEIPT in {f.code for f in report.findings}

    @pytest.mark.parametrize("fewer", [1, 2, 5])
    def test_a_log_rolled_back_to_an_older_head(self, fewer: int) -> None:
        site, bundle, _ = world()
        older = {p: d for p, d in bundle.files.items() if not p.startswith("verifier-log/")}
        older |= site.log_files(len(site.leaves) - fewer)
        report = run(Bundle(older, bundle.trust).rehashed())
        assert "the verifier's log holds no such export" in said(report)

    def test_an_older_bundle_whole_is_found_by_a_newer_checkpoint_only(self) -> None:
        site, _, hosts = large()
        older = site.export()
        site.receive(hosts["one"].usage("run:a"))
        assert run(older).outcome == "pass"
        report = seen(older, site.checkpoint())
        assert report.outcome == "undecided"
        assert "the bundle's log only" in said(report)

    def test_a_checkpoint_that_the_log_contains(self) -> None:
        site, bundle, _ = world()
        for size in (1, 2, 3, len(site.leaves) - 1, len(site.leaves)):
            assert seen(bundle, site.checkpoint(size)).outcome == "pass"

    def test_a_checkpoint_of_a_log_that_was_rewritten(self) -> None:
        site, bundle, _ = large()
        kept = site.checkpoint()
        other, again, _ = large()
        other.leaves[3] = other.leaves[3].replace(b"hall 1", b"hall 2")
        other.leaves[-1] = other.leaves[-1].replace(b"tests", b"toast")
        for size in (len(other.leaves), 4):
            report = seen(bundle, other.checkpoint(size))
            assert report.outcome == "contradicted"
            assert f"its first {size} leaves hash to" in said(report)
        assert seen(again, kept).outcome == "pass"

    def test_a_clock_that_went_back(self) -> None:
        site, _, _ = large()
        site.now_s -= 100
        assert "time went back" in said(run(site.export()))

    def test_an_export_that_counts_silence_up_to_an_earlier_moment(self) -> None:
        site, _, _ = large()
        early = site.export().manifest.export
        site.now_s += 3600
        assert "another moment than its own" in said(run(site.export(then=[early])))

    def test_leaves_out_of_order(self) -> None:
        site, _, _ = large()
        site.leaves[2], site.leaves[3] = site.leaves[3], site.leaves[2]
        report = run(site.export())
        assert report.outcome == "contradicted"
        assert "leaf out of order" in said(report)

    def test_entries_cut_into_other_segments_than_were_receipted(self) -> None:
        """Signed by the node and receipted by the verifier, but at another time than its log says."""
        site, bundle, hosts = large()
        host = hosts["one"]
        folder = f"logs/{host.name.node_id}/"
        bundle = bundle.drop(*(p for p in bundle.files if p.startswith(folder)))
        path = segment_path(host.name, 0, len(host.lines))
        data = signed_segment(host.key, host.name, host.lines, 0)
        receipt = site.receipt(parse_segment(data).note.text)
        report = run(bundle.put(path, data).put(receipt_path(path), receipt).rehashed())
        assert report.outcome == "contradicted"
        assert "the verifier's log has another segment ending at 4" in said(report)

    @pytest.mark.parametrize("place", ["second init", "enrolled twice", "receipt after the freeze", "gap in receipts"])
    def test_a_verifier_that_contradicts_itself(self, place: str) -> None:
        site, _, hosts = large()
        leaves = [parse_leaf(leaf).body for leaf in site.leaves]
        init = next(b for b in leaves if isinstance(b, InitBody))
        enrolment = next(b for b in leaves if isinstance(b, EnrolmentBody) and b.origin == hosts["one"].origin)
        head = next(b for b in reversed(leaves) if isinstance(b, NodeCheckpointBody))
        extra: list[LeafBody]
        match place:
            case "second init":
                extra, message = [init], "a second beginning"
            case "enrolled twice":
                extra = [msgspec.structs.replace(enrolment, public_key=Key("x").public.hex())]
                message = "is enrolled again"
            case "receipt after the freeze":
                site.post(forked(hosts["one"]))
                after = msgspec.structs.replace(head, start=head.size, size=head.size + 1)
                extra, message = [msgspec.structs.replace(after, origin=hosts["one"].origin)], "was not open"
            case _:
                extra = [msgspec.structs.replace(head, start=head.size + 1, size=head.size + 2)]
                message = "don't follow what was receipted"
        report = run(site.export(then=extra))
        assert report.outcome == "contradicted"
        assert message in said(report)


def seen(bundle: Bundle, checkpoint: bytes) -> Report:
    """An audit with a checkpoint that the auditor got elsewhere."""
    manifest = open_manifest(bundle)
    key, _ = check_trust(bundle.trust)
    log = audit_verifier_log(bundle, manifest, bundle.trust)
    results = [audit_log(bundle, task) for task in tasks(manifest, log, bundle.trust)]
    return conclude(
        bundle,
        manifest,
        log,
        results,
        bundle.trust,
        chip_table(),
        pinned=True,
        seen=open_checkpoint(checkpoint, key),
    )


def _receipted(leaf: bytes) -> str | None:
    """The log that a leaf's receipt is of."""
    body = parse_leaf(leaf).body
    return body.origin if isinstance(body, NodeCheckpointBody) else None


class TestIncarnations:
    def test_one_that_was_never_seen_is_a_finding(self) -> None:
        site, _, hosts = large()
        site.receive(site.next_incarnation(hosts["one"], skip=1))
        report = run(site.export())
        assert report.outcome == "pass"
        assert FindingCode.INCARNATION_SKIPPED in {f.code for f in report.findings}

    def test_one_that_forgets_receipted_entries_is_a_finding(self) -> None:
        site, _, hosts = large()
        forgetful = Host("one", site.name)
        forgetful.lines = hosts["one"].lines[:3]
        site.receive(site.next_incarnation(forgetful, seed="one"))
        assert FindingCode.LOST_HEAD in {f.code for f in run(site.export()).findings}

    def test_an_enrolled_log_without_entries_passes(self) -> None:
        site, _, _ = large()
        site.enrol("quiet")
        report = run(site.export())
        assert (report.outcome, report.logs) == ("pass", 5)


class TestRoot:
    @pytest.mark.parametrize(
        ("claimed", "given", "pinned", "outcome"),
        [
            (None, None, True, "pass"),
            (None, "aa" * 32, False, "undecided"),
            (None, "aa" * 32, True, "undecided"),
            ("aa" * 32, "aa" * 32, True, "contradicted"),
            ("aa" * 32, None, True, "contradicted"),
        ],
    )
    def test_a_root_that_is_not_in_the_log(
        self, claimed: str | None, given: str | None, pinned: bool, outcome: str
    ) -> None:
        bundle = world()[1]
        manifest = bundle.manifest
        claims = msgspec.structs.replace(manifest, export=msgspec.structs.replace(manifest.export, root_sha256=claimed))
        log = audit_verifier_log(bundle, manifest, bundle.trust)
        leaves = list(log.leaves)
        leaves[manifest.export_index] = msgspec.structs.replace(leaves[manifest.export_index], body=claims.export)
        log = replace(log, leaves=tuple(leaves))
        results = [audit_log(bundle, task) for task in tasks(claims, log, bundle.trust)]
        report = conclude(bundle, claims, log, results, bundle.trust, chip_table(), pinned=pinned, root_sha256=given)
        assert report.outcome == outcome


def test_the_order_of_the_tasks_changes_nothing() -> None:
    _, bundle, _ = world()
    manifest = open_manifest(bundle)
    log = audit_verifier_log(bundle, manifest, bundle.trust)
    whole = run(bundle)
    for seed in range(10):
        todo = tasks(manifest, log, bundle.trust)
        random.Random(seed).shuffle(todo)
        results = [audit_log(bundle, task) for task in todo]
        assert conclude(bundle, manifest, log, results, bundle.trust, chip_table(), pinned=True) == whole


def test_an_unreadable_manifest_raises_the_projects_own_error() -> None:
    bundle = world()[1]
    for data in (b"", b"{}", b"\xff", encode_record(bundle.trust), bundle.files[MANIFEST] + b" "):
        with pytest.raises(ProtocolError):
            auditing.audit(bundle.put(MANIFEST, data), bundle.trust, chip_table())


def test_a_manifest_whose_logs_are_out_of_order_is_refused() -> None:
    site = Site()
    for seed in "ab":
        site.receive(site.enrol(seed).genesis().inventory())
    bundle = site.export()
    with pytest.raises(ProtocolError, match="in the order of their origins"):
        parse_manifest(bundle.manifested(logs=bundle.manifest.logs[::-1]).read(MANIFEST))


def test_a_change_in_a_segments_last_entry_is_named_by_the_segment_after_it() -> None:
    site = Site()
    host = site.enrol("a").genesis().inventory().usage("run:a").usage("run:a")
    site.receive(host)
    site.receive(host.usage("run:a"))
    bundle = site.export()
    path = bundle.segments()[0]
    at = bundle.files[path].rindex(b'"energy_mj":[') + len(b'"energy_mj":[')

    (found,) = [c for c in bundle_report(bundle.flip(path, at, 0x01).rehashed()).contradictions if c.where == path]

    assert found.seq == 3
    assert found.message == "entry 3 was changed: entry 4 does not link to what comes before it"


def bundle_report(bundle: Bundle) -> Report:
    return audit(bundle, bundle.trust, chip_table())
