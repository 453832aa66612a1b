"""Whole files and their bytes: dropped, cut, doubled, swapped, put in, and every class of byte flipped."""

import re
from collections.abc import Iterable, Iterator
from itertools import combinations

import msgspec

from keyturn_protocol.bundle import MANIFEST, TOTALS, VERIFIER_LOG, LogRef, log_folder, receipt_path, segment_path
from keyturn_protocol.ids import Origin
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.segment import node_key
from tests.faults.tamper.forgery import Forgeries
from tests.faults.tamper.world import World, world
from tests.support.bundles import Bundle

forgery = Forgeries()

KINDS = {
    "segment": r"logs/.*\.segment",
    "receipt": r"logs/.*\.receipt",
    "evidence": r"evidence/.*",
    "verifier's checkpoint": r"verifier-log/checkpoint",
    "entry bundle": r"verifier-log/tile/entries/.*",
    "hash tile": r"verifier-log/tile/0/.*",
    "totals": r"totals\.json",
}
"""Every kind of file but the manifest, which has operators of its own."""

_NOTE = {
    "origin of the head": rb"(kt\.example/[^\n]+)\n\d+\n[^\n]+\n\n",
    "size of the head": rb"\n?kt\.example/[^\n]+\n(\d+)\n[^\n]+\n\n",
    "root of the head": rb"kt\.example/[^\n]+\n\d+\n([^\n]+)\n\n",
    "name of the signer": "— ([^ \n]+) ".encode(),
    "id of the key": "— [^ \n]+ (.{5})".encode(),
    "signature": "— [^ \n]+ .{6}(.*)\n".encode(),
}
_JSON = {"key": rb'"([a-z_0-9]+)":', "number": rb":(\d+)", "text": rb':"([^"]*)"', "bracket": rb"([][{}])"}
CLASSES: dict[str, dict[str, bytes]] = {
    "segment": {**_JSON, "newline after an entry": rb"\}(\n)\{", "empty line": rb"\}\n(\n)", **_NOTE},
    "receipt": {name: _NOTE[name] for name in ("name of the signer", "id of the key")}
    | {"time": "— [^ \n]+ .{6}(.{8})".encode(), "signature": "— [^ \n]+ .{18}(.*)\n".encode(), "dash": "(—)".encode()},
    "evidence": {**_JSON, **_NOTE},
    "verifier's checkpoint": _NOTE,
    "entry bundle": {**_JSON, "length of a leaf": rb"(..)\{\"body\""},
    "hash tile": {"hash": rb"(?s)(.{32})"},
    "totals": _JSON,
}
"""The classes of bytes of each kind of file, as the bytes that a group matches."""


def of_kind(bundle: Bundle, kind: str) -> list[str]:
    return sorted(path for path in bundle.files if re.fullmatch(KINDS[kind], path))


def _all(w: World, kind: str) -> Bundle:
    """A bundle that has such a file. Evidence is in one that is contradicted anyway, by its fork."""
    return world(fork=True).bundle if kind == "evidence" else w.bundle


def flips(bundle: Bundle, kind: str, pattern: bytes) -> Iterator[Bundle]:
    """The first, the middle and the last byte of a class, in each file of a kind, by one bit and by the case bit."""
    for path in of_kind(bundle, kind):
        found = [m.span(1) for m in re.finditer(pattern, bundle.files[path]) if m.end(1) > m.start(1)]
        for start, end in {found[0], found[len(found) // 2], found[-1]} if found else ():
            for at in {start, (start + end) // 2, end - 1}:
                for mask in (0x01, 0x20):
                    yield bundle.flip(path, at, mask).rehashed()


SAYS = {
    "segment": r"LOG/…\.segment",
    "receipt": r"LOG/…\.receipt: receipt of entries \d+ … \d+",
    "evidence": r"evidence/…\.segment",
    "verifier's checkpoint": "verifier-log/checkpoint",
    "entry bundle": "verifier-log/",
    "hash tile": "tile differs from what the leaves hash to",
    "totals": "totals.json: totals differ from the recomputed ones at byte",
}
"""What names the file, whatever was done to it."""

PLACE = {**SAYS, "receipt": "receipt", "hash tile": "verifier-log/tile", "totals": "totals.json"}
"""The same for a file that isn't whole."""

for kind, classes in CLASSES.items():
    for name, pattern in classes.items():

        @forgery("anyone", f"{kind}: flip in a {name}", says=SAYS[kind])
        def flip(w: World, kind: str = kind, pattern: bytes = pattern) -> Iterable[Bundle]:
            yield from flips(_all(w, kind), kind, pattern)


for kind in KINDS:

    @forgery("anyone", f"{kind}: dropped", says="." if kind == "segment" else PLACE[kind])
    def drop(w: World, kind: str = kind) -> Iterable[Bundle]:
        bundle = _all(w, kind)
        for path in of_kind(bundle, kind):
            yield bundle.drop(path).rehashed()

    @forgery("anyone", f"{kind}: dropped, still in the manifest", says="file is missing")
    def missing(w: World, kind: str = kind) -> Iterable[Bundle]:
        bundle = _all(w, kind)
        for path in of_kind(bundle, kind):
            yield bundle.drop(path)

    @forgery("anyone", f"{kind}: emptied, cut or grown", says=PLACE[kind])
    def cut(w: World, kind: str = kind) -> Iterable[Bundle]:
        bundle = _all(w, kind)
        for path in of_kind(bundle, kind):
            data = bundle.files[path]
            for changed in (b"", data[:1], data[: len(data) // 2], data[:-1], data + b"\n", data + data, b"\n" + data):
                yield bundle.put(path, changed).rehashed()

    @forgery("anyone", f"{kind}: another of the same kind in its place", says=".")
    def exchanged(w: World, kind: str = kind) -> Iterable[Bundle]:
        bundle = _all(w, kind)
        for one, other in combinations(of_kind(bundle, kind), 2):
            yield bundle.put(one, bundle.files[other]).put(other, bundle.files[one]).rehashed()
        if len(of_kind(bundle, kind)) == 1:
            (path,) = of_kind(bundle, kind)
            older = w.older.files.get(path) or b"".join(w.older.files[p] for p in of_kind(w.older, kind))
            yield bundle.put(path, older).rehashed() if older else bundle.drop(path).rehashed()


@forgery("anyone", "files of two kinds swapped", says=".")
def kinds_swapped(w: World) -> Iterable[Bundle]:
    paths = sorted(w.bundle.files.keys() - {MANIFEST})
    for one, other in combinations(paths, 2):
        if one.rpartition(".")[2] != other.rpartition(".")[2]:
            yield w.bundle.put(one, w.bundle.files[other]).put(other, w.bundle.files[one]).rehashed()


@forgery("anyone", "a file that isn't in the manifest", says="file is not in the manifest")
def unlisted(w: World) -> Iterable[Bundle]:
    for path in ("notes.txt", "logs/extra.segment", VERIFIER_LOG + "tile/0/001", "evidence/" + "0" * 64 + ".segment"):
        yield w.bundle.put(path, b"x")


@forgery("anyone", "a file that nothing in the evidence accounts for", says="nothing in the evidence accounts for")
def unaccounted(w: World) -> Iterable[Bundle]:
    for path in ("notes.txt", "logs/extra.segment", "roots/1.json", VERIFIER_LOG + "tile/0/001", "totals.json.old"):
        yield w.bundle.put(path, b"x").rehashed()
    segment = w.segments(w.one)[0]
    yield w.bundle.put("evidence/" + "0" * 64 + ".segment", w.bundle.files[segment]).rehashed()


@forgery(
    "anyone",
    "segment: duplicated as the next one",
    says=r"LOG/…\.segment \(entry \d+\): .* it says that it is entry \d+",
)
def duplicated(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.two, w.three):
        for path in w.segments(host):
            start, end = map(int, path.rpartition("/")[2].removesuffix(".segment").split("-"))
            size = len(host.lines)
            copy = segment_path(host.name, size, size + end - start)
            changed = w.bundle.put(copy, w.bundle.files[path])
            changed = changed.put(receipt_path(copy), w.bundle.files[receipt_path(path)])
            yield changed.resized(host.origin, size + end - start).rehashed()


@forgery("anyone", "a whole log copied as the node's next incarnation", says="was not enrolled like this")
def incarnation_copied(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.three):
        folder, copy = log_folder(host.name), log_folder(host.name)[:-2] + "2/"
        files = {p.replace(folder, copy): d for p, d in w.bundle.files.items() if p.startswith(folder)}
        (ref,) = [r for r in w.bundle.manifest.logs if r.origin == host.origin]
        origin = ref.origin[:-1] + "2"
        refs = [*w.bundle.manifest.logs, _renamed(ref, Origin(origin))]
        bundle = Bundle({**w.bundle.files, **files}, w.bundle.trust)
        yield bundle.manifested(logs=sorted(refs, key=lambda r: r.origin)).rehashed()


@forgery("anyone", "the folders of two hosts swapped", says=r"LOG/…\.segment")
def folders_swapped(w: World) -> Iterable[Bundle]:
    one, two = log_folder(w.one.name), log_folder(w.three.name)
    swapped = {one: two, two: one}
    files = {}
    for path, data in w.bundle.files.items():
        folder = path.rpartition("/")[0] + "/"
        files[path.replace(folder, swapped.get(folder, folder))] = data
    yield Bundle(files, w.bundle.trust).rehashed()
    yield (
        Bundle(files, w.bundle.trust)
        .resized(w.one.origin, len(w.three.lines))
        .resized(w.three.origin, len(w.one.lines))
        .rehashed()
    )


@forgery("anyone", "manifest: bytes flipped", says=".")
def manifest_flips(w: World) -> Iterable[Bundle]:
    data = w.bundle.files[MANIFEST]
    for at in range(0, len(data), 7):
        yield w.bundle.flip(MANIFEST, at)


@forgery("anyone", "manifest: emptied, cut, grown, or dropped", says=".")
def manifest_cut(w: World) -> Iterable[Bundle]:
    data = w.bundle.files[MANIFEST]
    for changed in (b"", b"{}", data[:-1], data[: len(data) // 2], data + b"\n", data + data, b"\xef\xbb\xbf" + data):
        yield w.bundle.put(MANIFEST, changed)
    yield w.bundle.put(MANIFEST, data.replace(b",", b", "))
    yield w.bundle.put(MANIFEST, data.replace(b'"v":1}', b'"v":1,"w":1}'))
    yield w.bundle.put(MANIFEST, b'{"deployment":"kt.example",' + data[1:])
    yield w.bundle.put(MANIFEST, w.bundle.files[TOTALS])
    yield w.bundle.drop(MANIFEST)


def _renamed(ref: LogRef, origin: Origin) -> LogRef:
    return msgspec.structs.replace(ref, origin=origin, vkey=str(node_key(origin, parse_vkey(ref.vkey).public_key)))
