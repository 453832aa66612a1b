"""What a file editor without any key does to entries, receipts, totals, the manifest and the verifier's log."""

import base64
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import msgspec

from keyturn_protocol.bundle import MANIFEST, TOTALS, VERIFIER_LOG, receipt_path, segment_path
from keyturn_protocol.canonical import encode
from keyturn_protocol.leaves import EnrolmentBody, LeafBody, LeftOut
from tests.faults.tamper.forgery import Forgeries
from tests.faults.tamper.world import (
    World,
    edited,
    make_world,
    relinked,
    retotalled,
    with_leaves,
    with_lines,
    without_host,
    world,
)
from tests.support.bundles import Bundle, Site
from tests.support.hosts import Host

forgery = Forgeries()
NAMED = r"LOG/…\.segment \(entry \d+\)"
"""Log and entry."""


# -- entries


@forgery("anyone", "an entry's number changed", says=NAMED)
def entry_changed(w: World) -> Iterable[Bundle]:
    yield from _each_usage(w, lambda e: e["body"]["energy_mj"].__setitem__(0, 1), link=False)


@forgery("anyone", "an entry's number changed, every later link made to fit", says=NAMED)
def entry_changed_linked(w: World) -> Iterable[Bundle]:
    yield from _each_usage(w, lambda e: e["body"]["energy_mj"].__setitem__(0, 1), link=True)


@forgery("anyone", "a workload relabelled in an entry", says=NAMED)
def relabelled(w: World) -> Iterable[Bundle]:
    def change(entry: dict[str, Any]) -> None:
        for share in entry["body"]["workloads"]:
            share["id"] = "run:z"

    yield from _each_usage(w, change, link=False)
    yield from _each_usage(w, change, link=True)


@forgery("anyone", "time of an entry moved", says=NAMED)
def entry_moved(w: World) -> Iterable[Bundle]:
    yield from _each_usage(w, lambda e: e.update(time_us=e["time_us"] + 1), link=True)


@forgery("anyone", "an entry dropped", says=r"LOG/…")
def entry_dropped(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.two, w.three):
        for at in range(len(host.lines)):
            rest = [*host.lines[:at], *host.lines[at + 1 :]]
            yield with_lines(w.bundle, host, rest, start=at)
            yield with_lines(w.bundle, host, relinked(host, rest), start=at)


@forgery("anyone", "a gap entry dropped", says=NAMED)
def gap_dropped(w: World) -> Iterable[Bundle]:
    rest = [line for line in w.one.lines if b'"type":"gap"' not in line]
    assert len(rest) == len(w.one.lines) - 1
    yield with_lines(w.bundle, w.one, relinked(w.one, rest))


@forgery("anyone", "an entry inserted", says=NAMED)
def entry_inserted(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.three):
        for at in range(1, len(host.lines) - 1):
            more = [*host.lines[:at], host.lines[at], *host.lines[at:]]
            yield with_lines(w.bundle, host, relinked(host, more), start=at)


@forgery("anyone", "two entries swapped", says=NAMED)
def entries_swapped(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.three):
        for at in range(1, len(host.lines) - 1):
            swapped = [*host.lines[:at], host.lines[at + 1], host.lines[at], *host.lines[at + 2 :]]
            yield with_lines(w.bundle, host, swapped, start=at)
            yield with_lines(w.bundle, host, relinked(host, swapped), start=at)


def _each_usage(w: World, change: Callable[[dict[str, Any]], object], *, link: bool) -> Iterable[Bundle]:
    for host in (w.one, w.two, w.again):
        for at, line in enumerate(host.lines):
            if b'"type":"usage"' in line and b'"workloads":[]' not in line:
                lines = [*host.lines[:at], edited(line, change), *host.lines[at + 1 :]]
                yield with_lines(w.bundle, host, relinked(host, lines) if link else lines, start=at)


# -- segments and logs


@forgery("anyone", "two segments merged under the later head", says="is not in the verifier's log")
def merged(w: World) -> Iterable[Bundle]:
    """Hash, head and receipt all hold: only the verifier's log says how it was received."""
    for host in (w.one, w.two, w.three):
        for one, two in pairwise(w.segments(host)):
            start, end = _range(one)[0], _range(two)[1]
            first, second = (w.bundle.files[p].partition(b"\n\n") for p in (one, two))
            path = segment_path(host.name, start, end)
            data = first[0] + b"\n" + second[0] + b"\n\n" + second[2]
            changed = w.bundle.drop(one, two, receipt_path(one), receipt_path(two)).put(path, data)
            yield changed.put(receipt_path(path), w.bundle.files[receipt_path(two)]).rehashed()


@forgery("anyone", "a segment split in two under its one head", says=r"LOG/…\.segment")
def split(w: World) -> Iterable[Bundle]:
    for path in w.segments(w.one):
        start, end = _range(path)
        if end - start > 1:
            lines, _, head = w.bundle.files[path].partition(b"\n\n")
            first, _, rest = lines.partition(b"\n")
            a, b = (segment_path(w.one.name, x, y) for x, y in ((start, start + 1), (start + 1, end)))
            changed = w.bundle.drop(path).put(a, first + b"\n\n" + head).put(b, rest + b"\n\n" + head)
            yield changed.put(receipt_path(a), w.bundle.files[receipt_path(path)]).rehashed()


@forgery("anyone", "a log cut to an earlier receipted head", says="where the verifier receipted")
def cut_log(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.two, w.three, w.witness):
        bundle = w.bundle
        for path in reversed(w.segments(host)):
            bundle = bundle.drop(path, receipt_path(path)).resized(host.origin, _range(path)[0])
            yield retotalled(bundle)


@forgery("anyone", "a log taken out of the bundle", says="is enrolled, but neither in the bundle nor named as left out")
def log_out(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.two, w.three, w.again, w.witness):
        yield without_host(w.bundle, host)


@forgery("anyone", "a log taken out and named as left out", says="the verifier's log holds no such export")
def log_left_out(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.again):
        bundle = without_host(w.bundle, host)
        left = [LeftOut(origin=host.origin, reason="pruned")]
        yield bundle.manifested(export=msgspec.structs.replace(bundle.manifest.export, left_out=left))


@forgery("anyone", "a log that was never enrolled put in", says="was not enrolled like this")
def log_in(w: World) -> Iterable[Bundle]:
    other = Site()
    host = other.enrol("stranger").genesis().inventory().usage("run:a")
    other.receive(host)
    theirs = other.export()
    files = {p: d for p, d in theirs.files.items() if p.startswith("logs/")}
    refs = sorted([*w.bundle.manifest.logs, *theirs.manifest.logs], key=lambda r: r.origin)
    yield Bundle({**w.bundle.files, **files}, w.bundle.trust).manifested(logs=refs).rehashed()


@forgery("anyone", "two logs spliced", says=NAMED)
def spliced(w: World) -> Iterable[Bundle]:
    for host, donor in ((w.one, w.three), (w.three, w.one), (w.again, w.two)):
        for at in range(1, min(len(host.lines), len(donor.lines))):
            lines = [*host.lines[:at], *donor.lines[at:]]
            lines += host.lines[len(lines) :]
            yield with_lines(w.bundle, host, lines[: len(host.lines)], start=at)
            yield with_lines(w.bundle, host, relinked(host, lines[: len(host.lines)]), start=at)


@forgery("anyone", "entries moved to another host", says=NAMED)
def moved_host(w: World) -> Iterable[Bundle]:
    yield from _moved(w, w.one, w.three)


@forgery("anyone", "entries moved to another incarnation", says=NAMED)
def moved_incarnation(w: World) -> Iterable[Bundle]:
    yield from _moved(w, w.two, w.again)


@forgery("anyone", "entries moved to another deployment", says="LOG|of another deployment")
def moved_deployment(w: World) -> Iterable[Bundle]:
    """The same host, with the same key, somewhere else."""
    other = Site("kt.elsewhere")
    host = other.enrol("one").genesis().inventory(2).usage("run:a").usage("run:a")
    other.receive(host)
    there = other.export()
    (path,) = there.segments()
    mine = w.segments(w.one)[0]
    yield w.bundle.put(mine, there.files[path]).rehashed()
    yield w.bundle.put(mine, there.files[path].replace(b"kt.elsewhere", b"kt.example")).rehashed()
    yield Bundle(there.files, w.bundle.trust)
    yield Bundle(there.files, w.bundle.trust).manifested(verifier=w.bundle.trust, deployment="kt.example")


def _moved(w: World, source: Host, target: Host) -> Iterable[Bundle]:
    for line in source.lines[1:]:
        lines = [*target.lines[:-1], line]
        yield with_lines(w.bundle, target, lines, start=len(lines) - 1)
        yield with_lines(w.bundle, target, relinked(target, lines), start=len(lines) - 1)


# -- receipts


@forgery("anyone", "receipt: of another size of the same log", says=r"receipt of entries \d+ … \d+")
def receipt_size(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.two, w.three):
        paths = w.segments(host)
        for path in paths:
            for other in paths:
                if other != path:
                    yield w.bundle.put(receipt_path(path), w.bundle.files[receipt_path(other)]).rehashed()


@forgery("anyone", "receipt: of another log", says=r"receipt of entries \d+ … \d+")
def receipt_log(w: World) -> Iterable[Bundle]:
    one, two = w.segments(w.one)[0], w.segments(w.three)[0]
    yield w.bundle.put(receipt_path(one), w.bundle.files[receipt_path(two)]).rehashed()


@forgery("anyone", "receipt: by another verifier", says=r"receipt of entries \d+ … \d+")
def receipt_verifier(w: World) -> Iterable[Bundle]:
    other = Site(seed="another")
    path = w.segments(w.one)[0]
    text = w.bundle.files[path].partition(b"\n\n")[2].partition(b"\n\n")[0] + b"\n"
    yield w.bundle.put(receipt_path(path), other.receipt(text)).rehashed()


@forgery("anyone", "receipt: its time changed", says=r"receipt of entries \d+ … \d+")
def receipt_time(w: World) -> Iterable[Bundle]:
    for path in w.segments(w.one):
        yield _receipt_bytes(w, path, lambda raw: raw[:11] + bytes([raw[11] ^ 1]) + raw[12:])


@forgery("anyone", "receipt: the same signature in another form (S + L)", says=r"receipt of entries \d+ … \d+")
def receipt_malleated(w: World) -> Iterable[Bundle]:
    order = 2**252 + 27742317777372353535851937790883648493

    def change(raw: bytes) -> bytes:
        s = int.from_bytes(raw[-32:], "little") + order
        return raw[:-32] + s.to_bytes(32, "little")

    for path in w.segments(w.one):
        yield _receipt_bytes(w, path, change)


@forgery("anyone", "receipt: a second line under it", says=r"receipt of entries \d+ … \d+")
def receipt_two(w: World) -> Iterable[Bundle]:
    one, two = (receipt_path(p) for p in w.segments(w.one)[:2])
    yield w.bundle.put(one, w.bundle.files[one] * 2).rehashed()
    yield w.bundle.put(one, w.bundle.files[one] + w.bundle.files[two]).rehashed()


def _receipt_bytes(w: World, path: str, change: Callable[[bytes], bytes]) -> Bundle:
    head, _, encoded = w.bundle.files[receipt_path(path)].rstrip(b"\n").rpartition(b" ")
    raw = change(base64.b64decode(encoded))
    return w.bundle.put(receipt_path(path), head + b" " + base64.b64encode(raw) + b"\n").rehashed()


# -- the verifier's log


Leaves = list[tuple[int, LeafBody]]


@forgery(
    "anyone", "verifier's log: a leaf dropped, the tree built anew", says="don't hash to the signed root|leaf \\d+"
)
def leaf_dropped(w: World) -> Iterable[Bundle]:
    for at in range(len(w.site.leaves) - 1):
        yield with_leaves(w.bundle, w.site, lambda ls, at=at: ls[:at] + ls[at + 1 :], sign=False)  # type: ignore[misc]


@forgery(
    "anyone", "verifier's log: a leaf edited, the tree built anew", says="the leaves don't hash to the signed root"
)
def leaf_edited(w: World) -> Iterable[Bundle]:
    def change(leaves: Leaves) -> Leaves:
        return [(t, msgspec.structs.replace(b, site="Z") if isinstance(b, EnrolmentBody) else b) for t, b in leaves]

    yield with_leaves(w.bundle, w.site, change, sign=False)


@forgery("anyone", "verifier's log: two leaves swapped, the tree built anew", says="don't hash to the signed root")
def leaves_swapped(w: World) -> Iterable[Bundle]:
    for at in range(len(w.site.leaves) - 1):

        def change(ls: Leaves, at: int = at) -> Leaves:
            return [*ls[:at], ls[at + 1], ls[at], *ls[at + 2 :]]

        yield with_leaves(w.bundle, w.site, change, sign=False)


@forgery("anyone", "verifier's log: rolled back to an earlier head that it really signed", says="holds no such export")
def older_head(w: World) -> Iterable[Bundle]:
    for fewer in range(1, len(w.site.leaves)):
        files = {p: d for p, d in w.bundle.files.items() if not p.startswith(VERIFIER_LOG)}
        yield Bundle(files | w.site.log_files(len(w.site.leaves) - fewer), w.bundle.trust).rehashed()


@forgery("anyone", "verifier's log: of the earlier bundle, under these logs", says="is not in the verifier's log")
def older_log(w: World) -> Iterable[Bundle]:
    files = {p: d for p, d in w.bundle.files.items() if not p.startswith(VERIFIER_LOG)}
    theirs = {p: d for p, d in w.older.files.items() if p.startswith(VERIFIER_LOG)}
    manifest = w.older.manifest
    bundle = Bundle(files | theirs, w.bundle.trust)
    yield bundle.manifested(export=manifest.export, export_index=manifest.export_index).rehashed()


@forgery("anyone", "an earlier export named as this bundle's", says="the export is not the last")
def older_export(w: World) -> Iterable[Bundle]:
    manifest = w.older.manifest
    yield w.bundle.manifested(export=manifest.export, export_index=manifest.export_index)


@forgery("anyone", "the earlier bundle, whole, instead of this one", outcome="pass", says="^$")
def older_bundle(w: World) -> Iterable[Bundle]:
    """Nothing in it is false: it says when it was exported."""
    yield w.older


@forgery(
    *("anyone", "the earlier bundle, whole; the auditor kept a newer checkpoint"),
    **{"outcome": "undecided", "says": "the bundle's log only", "checkpoint": True},  # type: ignore[arg-type]
)
def older_bundle_seen(w: World) -> Iterable[Bundle]:
    yield w.older


@forgery("anyone", "a stranger's signature added to the verifier's checkpoint", outcome="pass", says="^$")
def stranger_signs(w: World) -> Iterable[Bundle]:
    """A note may carry more signatures, as of witnesses: nothing rests on one that nobody pinned."""
    path = VERIFIER_LOG + "checkpoint"
    line = Site(seed="stranger").checkpoint().rpartition(b"\n\n")[2].replace(b"kt.example/log", b"witness.example/w")
    yield w.bundle.put(path, w.bundle.files[path] + line).rehashed()


# -- totals and manifest


def _totals(w: World, change: Callable[[dict[str, list[dict[str, Any]]]], object]) -> Bundle:
    totals = msgspec.json.decode(w.bundle.files[TOTALS])
    change(totals)
    return w.bundle.put(TOTALS, encode(totals)).rehashed()


for name, change in {
    "a number lowered": lambda t: t["usage_hour"][0].update(tensor_mcycles=1),
    "a missing number made 0": lambda t: t["usage_hour"][0].update(dmma_mcycles=0),
    "a row dropped": lambda t: t["usage_hour"].pop(),
    "a row doubled": lambda t: t["usage_hour"].append(t["usage_hour"][-1]),
    "rows reordered": lambda t: t["usage_hour"].reverse(),
    "a row given to another host": lambda t: t["usage_hour"][0].update(log=t["usage_hour"][-1]["log"]),
    "a workload relabelled": lambda t: t["usage_hour"][0].update(workload="run:z"),
    "a gap dropped": lambda t: t["gaps"].pop(),
    "a gap shortened": lambda t: t["gaps"][0].update(to_us=t["gaps"][0]["to_us"] - 1),
    "a gap explained away": lambda t: t["gaps"][0].update(cause="paused"),
}.items():

    @forgery("anyone", f"totals: {name}", says="totals differ from the recomputed ones at byte")
    def totals_changed(w: World, change: Callable[[Any], object] = change) -> Iterable[Bundle]:
        yield _totals(w, change)


@forgery("anyone", "totals: those of the earlier bundle", says="totals differ from the recomputed ones at byte")
def totals_older(w: World) -> Iterable[Bundle]:
    yield w.bundle.put(TOTALS, w.older.files[TOTALS]).rehashed()


def _leaves_of(value: Any, path: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    match value:
        case dict():
            for key in value:
                yield from _leaves_of(value[key], (*path, key))
        case list() if value:
            for at, item in enumerate(value):
                yield from _leaves_of(item, (*path, at))
        case _:
            yield path


def _other(value: Any) -> Any:
    match value:
        case bool() | None:
            return "x"
        case int():
            return value + 1
        case str():
            return ("0" if value[:1] != "0" else "1") + value[1:] if value else "x"
        case list():
            return ["x"]


def manifest_fields() -> dict[str, list[tuple[Any, ...]]]:
    """Every field of a manifest, by name; what the format gains is here by itself."""
    fields: dict[str, list[tuple[Any, ...]]] = {}
    for path in _leaves_of(msgspec.json.decode(world().bundle.files[MANIFEST])):
        name = "files" if path[0] == "files" else ".".join(str(p) for p in path if not isinstance(p, int))
        fields.setdefault(name, []).append(path)
    return fields


for name, paths in manifest_fields().items():

    @forgery("anyone", f"manifest: {name} changed", says=".")
    def manifest_changed(w: World, paths: list[tuple[Any, ...]] = paths) -> Iterable[Bundle]:
        for path in paths:
            manifest = msgspec.json.decode(w.bundle.files[MANIFEST])
            place = manifest
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = _other(place[path[-1]])
            yield w.bundle.put(MANIFEST, encode(manifest))


@forgery("anyone", "manifest: a field left out, or one more", says=".")
def manifest_shape(w: World) -> Iterable[Bundle]:
    for key in (*msgspec.json.decode(w.bundle.files[MANIFEST]), "w"):
        manifest = msgspec.json.decode(w.bundle.files[MANIFEST])
        if manifest.pop(key, None) is None:
            manifest[key] = 1
        yield w.bundle.put(MANIFEST, encode(manifest))


@forgery("anyone", "manifest: logs reordered, or one named twice", says=".")
def manifest_logs(w: World) -> Iterable[Bundle]:
    logs = w.bundle.manifest.logs
    yield w.bundle.manifested(logs=logs[::-1])
    yield w.bundle.manifested(logs=[*logs, logs[-1]])


@forgery("anyone", "manifest: the verifier's two keys swapped", says=".")
def manifest_keys(w: World) -> Iterable[Bundle]:
    manifest = msgspec.json.decode(w.bundle.files[MANIFEST])
    keys = manifest["verifier"]
    keys["log_vkey"], keys["receipt_vkey"] = keys["receipt_vkey"], keys["log_vkey"]
    yield w.bundle.put(MANIFEST, encode(manifest))


@forgery("anyone", "evidence of a fork hidden: the log cut to before it", says="evidence|where the verifier receipted")
def fork_hidden(_: World) -> Iterable[Bundle]:
    w = make_world(fork=True)
    bundle = w.bundle.drop(*(p for p in w.bundle.files if p.startswith("evidence/")))
    yield bundle.rehashed()
    last = w.segments(w.three)[-1]
    yield retotalled(bundle.drop(last, receipt_path(last)).resized(w.three.origin, _range(last)[0]))


def _range(path: str) -> tuple[int, int]:
    start, _, end = path.rpartition("/")[2].removesuffix(".segment").partition("-")
    return int(start), int(end)
