"""The deployment that is forged: five logs of four nodes, an earlier bundle, and a checkpoint that somebody kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import pairwise
from typing import Any

import msgspec

from keyturn_protocol.bundle import TOTALS, VERIFIER_LOG, log_folder, receipt_path, segment_path
from keyturn_protocol.canonical import encode
from keyturn_protocol.entry_log import GapBody
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.leaves import LeafBody, NodeCheckpointBody, format_leaf, parse_leaf
from keyturn_protocol.merkle import leaf_hash
from keyturn_protocol.segment import follow, parse_segment, start_of
from keyturn_protocol.usage import EMPTY, Gap, Rows, fold, merge, to_row, totals_json
from tests.support.bundles import Bundle, Site
from tests.support.hosts import Host, Key, forked, signed_segment

Lines = list[bytes]


@dataclass
class World:
    """Everything a forger may start from."""

    site: Site
    one: Host
    """Two chips, four segments, a workload that declares its data type, a gap entry."""
    two: Host
    """Ends with a key roll."""
    three: Host
    """A chip that can't be read for a while."""
    again: Host
    """The next incarnation of `two`."""
    witness: Host
    """Quotes the verifier's log in a heartbeat, after all the others."""
    older: Bundle
    kept: bytes
    """The checkpoint of the verifier's log that an auditor kept, from before the witness's heartbeat."""
    bundle: Bundle

    @property
    def trust(self) -> Any:
        return self.site.trust

    def segments(self, host: Host) -> list[str]:
        """The paths of a host's segments, in order."""
        folder = log_folder(host.name)
        return sorted(
            (p for p in self.bundle.segments() if p.startswith(folder)),
            key=lambda p: int(p.rpartition("/")[2].partition("-")[0]),
        )


def make_world(*, quoted: bool = True, fork: bool = False) -> World:
    """A new one; the same bytes each time.

    :param quoted: whether any heartbeat quotes the verifier's log.
    :param fork: whether `three` has signed two heads of one size.
    """
    site = Site()
    one = site.enrol("one").genesis().inventory(2).started("run:a", "bf16").usage("run:a")
    two = site.enrol("two").genesis().inventory().usage("run:b", "user:7")
    three = site.enrol("three").genesis().inventory().usage("run:b").usage(samples=0)
    for host in (one, two, three):
        site.receive(host)
    older = site.export()
    one.usage("run:a").wait(60_000_000)
    one.add(GapBody(chips=None, from_us=one.now_us - 60_000_000, to_us=one.now_us, cause="driver_lost", detail=None))
    one.usage("run:a")
    two.usage("run:b", "user:7").key_roll(Key("two again"))
    for host in (three.usage("run:b"), two, one):
        site.receive(host)
    again = site.next_incarnation(two, seed="two again", reason="key_roll").inventory().usage("run:b")
    site.receive(again)
    site.receive(one.usage())
    site.receive(one.usage("run:a"))
    if fork:
        site.post(forked(three))
    witness = site.enrol("witness").genesis().inventory()
    kept = site.checkpoint()
    site.receive(witness.heartbeat(kept if quoted else None).usage("run:c"))
    return World(site, one, two, three, again, witness, older, kept, site.export())


@cache
def world(*, quoted: bool = True, fork: bool = False) -> World:
    """One to read from, never to change."""
    return make_world(quoted=quoted, fork=fork)


# -- what forgers do


def edited(line: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """An entry or leaf with something changed in it, canonical again."""
    value = msgspec.json.decode(line)
    change(value)
    return encode(value)


def relinked(host: Host, lines: Sequence[bytes]) -> Lines:
    """The same entries, numbered and linked as a log of that host."""
    made: Lines = []
    for seq, line in enumerate(lines):
        prev = leaf_hash(made[-1] if made else host.origin.encode()).hex()
        made.append(edited(line, lambda entry, seq=seq, prev=prev: entry.update(seq=seq, prev=prev)))  # type: ignore[misc]
    return made


def cuts(bundle: Bundle, host: Host) -> list[int]:
    """Where a host's segments begin and end."""
    folder = log_folder(host.name)
    ends = [int(p.rpartition("-")[2].removesuffix(".segment")) for p in bundle.segments() if p.startswith(folder)]
    return [0, *sorted(ends)]


def with_lines(bundle: Bundle, host: Host, lines: Sequence[bytes], *, start: int = 0) -> Bundle:
    """A host's log replaced from entry `start` on, without any key: the heads stay those that were signed."""
    for first, end in pairwise(cuts(bundle, host)):
        path = segment_path(host.name, first, end)
        if end > start:
            head = bundle.files[path].partition(b"\n\n")[2]
            bundle = bundle.put(path, b"".join(line + b"\n" for line in lines[first:end]) + b"\n" + head)
    return retotalled(bundle)


def resigned(
    bundle: Bundle,
    host: Host,
    lines: Sequence[bytes],
    key: Key | None = None,
) -> Bundle:
    """A host's log replaced, its heads signed with its key or another; the receipts stay as they are."""
    old = cuts(bundle, host)
    ends = sorted({min(end, len(lines)) for end in old[:-1]} | {len(lines)})
    folder = log_folder(host.name)
    receipts = {end: bundle.files.get(receipt_path(segment_path(host.name, a, end)), b"") for a, end in pairwise(old)}
    bundle = bundle.drop(*(p for p in bundle.files if p.startswith(folder)))
    for first, end in pairwise(ends):
        data = signed_segment(key or host.key, host.name, list(lines[:end]), first)
        path = segment_path(host.name, first, end)
        last = receipts.get(end) or receipts[max(receipts)]
        bundle = bundle.put(path, data).put(receipt_path(path), last)
    return retotalled(bundle.resized(host.origin, len(lines)))


def retotalled(bundle: Bundle) -> Bundle:
    """Totals as the logs in the bundle give them, where they can be folded at all, and a manifest that agrees."""
    rows: Rows = {}
    gaps: list[Gap] = []
    for ref in bundle.manifest.logs:
        name = parse_origin(ref.origin)
        paths = sorted(
            (p for p in bundle.segments() if p.startswith(log_folder(name))),
            key=lambda p: int(p.rpartition("/")[2].partition("-")[0]),
        )
        lines = [line for p in paths for line in bundle.files[p].partition(b"\n\n")[0].split(b"\n")]
        try:
            key = parse_vkey(ref.vkey).public_key
            followed = follow(name, key, start_of(name.origin), lines, [leaf_hash(line) for line in lines])
            folded = fold(name.origin, EMPTY, followed.entries)
        except ProtocolError:
            return bundle.rehashed()
        merge(rows, folded.rows)
        gaps += folded.gaps
    return bundle.put(TOTALS, totals_json([to_row(k, v) for k, v in rows.items()], gaps)).rehashed()


def without_host(bundle: Bundle, host: Host) -> Bundle:
    """A host's log taken out of files, manifest and totals."""
    folder = log_folder(host.name)
    bundle = bundle.drop(*(p for p in bundle.files if p.startswith(folder)))
    return retotalled(bundle.manifested(logs=[r for r in bundle.manifest.logs if r.origin != host.origin]))


def with_leaves(
    bundle: Bundle,
    site: Site,
    change: Callable[[list[tuple[int, LeafBody]]], list[tuple[int, LeafBody]]],
    *,
    sign: bool,
) -> Bundle:
    """The verifier's log with other leaves, tree and tiles built anew.

    :param change: from the (time, body) of each leaf to those of the new ones.
    :param sign: with a new checkpoint; else the old one stays.
    """
    leaves = [parse_leaf(line) for line in site.leaves]
    new = change([(leaf.time_us, leaf.body) for leaf in leaves])
    other = replace_leaves(site, [format_leaf(i, time_us, body) for i, (time_us, body) in enumerate(new)])
    files = {p: d for p, d in bundle.files.items() if not p.startswith(VERIFIER_LOG)} | other.log_files()
    if not sign:
        files[VERIFIER_LOG + "checkpoint"] = bundle.files[VERIFIER_LOG + "checkpoint"]
    return Bundle(files, bundle.trust).manifested(export_index=len(new) - 1).rehashed()


def replace_leaves(site: Site, leaves: Lines) -> Site:
    """The same verifier with another log."""
    other = Site()
    other.log_key, other.log_vkey = site.log_key, site.log_vkey
    other.leaves = leaves
    return other


def receipted_anew(site: Site, bundle: Bundle, host: Host) -> Bundle:
    """Receipts for a host's segments as they are now, with the times of the old ones; by the verifier's key."""
    for path in [p for p in bundle.segments() if p.startswith(log_folder(host.name))]:
        size = int(path.rpartition("-")[2].removesuffix(".segment"))
        other = replace_leaves(site, [])
        other.receipt_key, other.receipt_vkey = site.receipt_key, site.receipt_vkey
        times = [b.receipt_s for b in _receipts(site, host) if b.size >= size]
        other.now_s = min(times) if times else max(b.receipt_s for b in _receipts(site, host))
        bundle = bundle.put(receipt_path(path), other.receipt(parse_segment(bundle.files[path]).note.text))
    return bundle


def leaves_for(bundle: Bundle, host: Host) -> Callable[[list[tuple[int, LeafBody]]], list[tuple[int, LeafBody]]]:
    """The change of leaves that makes them agree with a host's segments in `bundle`."""
    segments = {}
    for path in bundle.segments():
        if path.startswith(log_folder(host.name)):
            segment = parse_segment(bundle.files[path])
            segments[segment.end] = (segment, sha256(bundle.files[path]).hexdigest())

    def change(leaves: list[tuple[int, LeafBody]]) -> list[tuple[int, LeafBody]]:
        made: list[tuple[int, LeafBody]] = []
        for time_us, body in leaves:
            if isinstance(body, NodeCheckpointBody) and body.origin == host.origin:
                if body.size not in segments:
                    continue
                segment, digest = segments[body.size]
                root = segment.checkpoint.root.hex()
                body = msgspec.structs.replace(body, root=root, segment_sha256=digest)
            made.append((time_us, body))
        return made

    return change


def _receipts(site: Site, host: Host) -> list[NodeCheckpointBody]:
    bodies = [parse_leaf(line).body for line in site.leaves]
    return [b for b in bodies if isinstance(b, NodeCheckpointBody) and b.origin == host.origin]
