"""What whoever holds keys does: the host's, the verifier's two, both; and strangers with fresh ones."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from keyturn_protocol.entry_log import RetiredBody
from keyturn_protocol.leaves import EnrolmentBody, ExportBody, LeafBody, LeftOut, LogFrozenBody, NodeCheckpointBody
from keyturn_protocol.segment import node_key
from tests.faults.tamper.forgery import Forgeries
from tests.faults.tamper.world import (
    Lines,
    World,
    edited,
    leaves_for,
    make_world,
    receipted_anew,
    relinked,
    resigned,
    with_leaves,
    without_host,
)
from tests.support.bundles import Bundle, Site
from tests.support.hosts import Host, Key

forgery = Forgeries()
Leaves = list[tuple[int, LeafBody]]
UNRECEIPTED = r"receipt of entries \d+ … \d+|is not in the verifier's log|where the verifier receipted"


# -- the host's key, after the receipt


def _lowered(host: Host) -> Lines:
    """A history with less work in it."""

    def change(entry: dict[str, Any]) -> None:
        if entry["type"] == "usage":
            entry["body"]["tensor_mcycles"] = [v and 1 for v in entry["body"]["tensor_mcycles"]]

    return relinked(host, [edited(line, change) for line in host.lines])


def _relabelled(host: Host) -> Lines:
    def change(entry: dict[str, Any]) -> None:
        for share in entry["body"].get("workloads", []):
            share["id"] = "run:z"

    return relinked(host, [edited(line, change) for line in host.lines])


def _retired(host: Host) -> Lines:
    """The host was sold long ago."""
    twin = Host("one", host.name.deployment)
    twin.lines, twin.now_us, twin.mono_us = host.lines[:3], host.now_us, host.mono_us
    return list(twin.add(RetiredBody(chips=None, reason="sold")).lines)


def _rolled(host: Host) -> Lines:
    twin = Host("one", host.name.deployment)
    twin.lines, twin.now_us, twin.mono_us = list(host.lines), host.now_us, host.mono_us
    return list(twin.key_roll(Key("thief")).lines)


def _longer(host: Host) -> Lines:
    twin = Host("one", host.name.deployment)
    twin.lines, twin.now_us, twin.mono_us, twin.chips = list(host.lines), host.now_us, host.mono_us, host.chips
    return list(twin.usage("run:z").lines)


REWRITTEN: dict[str, Callable[[Host], Lines]] = {
    "numbers lowered": _lowered,
    "a workload relabelled": _relabelled,
    "a gap entry taken out": lambda h: relinked(h, [x for x in h.lines if b'"type":"gap"' not in x]),
    "the last entry dropped": lambda h: h.lines[:-1],
    "rolled back to half of it": lambda h: h.lines[: len(h.lines) // 2],
    "a retirement forged": _retired,
    "a key roll forged at the end": _rolled,
    "entries added at the end": _longer,
}
for name, change in REWRITTEN.items():

    @forgery("the host's key", f"a log signed again: {name}", says=UNRECEIPTED)
    def signed_again(w: World, change: Callable[[Host], Lines] = change) -> Iterable[Bundle]:
        yield resigned(w.bundle, w.one, change(w.one))


@forgery("the host's key", "a second head in place of the one that was receipted", says=UNRECEIPTED)
def second_head(w: World) -> Iterable[Bundle]:
    for at in range(2, len(w.one.lines)):
        lines = [*w.one.lines[:at], edited(w.one.lines[at], lambda e: e.update(time_us=e["time_us"] + 1))]
        yield resigned(w.bundle, w.one, relinked(w.one, [*lines, *w.one.lines[at + 1 :]]))


# -- fresh keys


@forgery("anyone", "a log signed again with another key", says="was not enrolled like this")
def another_key(w: World) -> Iterable[Bundle]:
    fresh = Key("fresh")
    bundle = resigned(w.bundle, w.one, w.one.lines, fresh)
    logs = [_rekeyed(ref, fresh) if ref.origin == w.one.origin else ref for ref in bundle.manifest.logs]
    yield bundle.manifested(logs=logs)


@forgery("anyone", "a log signed again with another key, the manifest as it was", says=r"LOG/…\.segment")
def another_key_unnamed(w: World) -> Iterable[Bundle]:
    yield resigned(w.bundle, w.one, w.one.lines, Key("fresh"))
    yield resigned(w.bundle, w.one, w.one.lines, w.three.key)


def _stranger() -> Bundle:
    site = Site(seed="forger")
    for seed in ("one", "two"):
        site.receive(site.enrol(seed).genesis().inventory().usage("run:a"))
    return site.export()


@forgery("anyone", "fresh keys for everything", says="names other verifier keys than those pinned")
def fresh_keys(w: World) -> Iterable[Bundle]:
    yield Bundle(_stranger().files, w.bundle.trust)


@forgery("anyone", "fresh keys for everything, under the pinned keys' names", says="verifier-log/checkpoint")
def fresh_keys_disguised(w: World) -> Iterable[Bundle]:
    yield Bundle(_stranger().files, w.bundle.trust).manifested(verifier=w.bundle.trust)


@forgery("anyone", "fresh keys for everything; the auditor pins none", outcome="undecided", says="keys not pinned")
def fresh_keys_unpinned(_: World) -> Iterable[Bundle]:
    bundle = _stranger()
    yield Bundle(bundle.files, None)  # type: ignore[arg-type]


# -- the verifier's keys


def _drop(host: Host) -> Callable[[Leaves], Leaves]:
    """Without a host, and with as many leaves as before: an export more for each that is gone."""

    def change(leaves: Leaves) -> Leaves:
        kept = [(t, b) for t, b in leaves if getattr(b, "origin", None) != host.origin]
        at = next(i for i, (_, b) in enumerate(kept) if isinstance(b, ExportBody))
        return [*kept[:at], *[kept[at]] * (len(leaves) - len(kept)), *kept[at:]]

    return change


def _edit(leaves: Leaves) -> Leaves:
    return [(t, msgspec.structs.replace(b, site="Z") if isinstance(b, EnrolmentBody) else b) for t, b in leaves]


def _swap(leaves: Leaves) -> Leaves:
    """The first receipts of two hosts change places; each keeps the other's time, so that none is too late."""
    at = [i for i, (_, b) in enumerate(leaves) if isinstance(b, NodeCheckpointBody) and b.start == 0][:2]
    (t0, one), (t1, two) = leaves[at[0]], leaves[at[1]]
    new = list(leaves)
    new[at[0]], new[at[1]] = (t1, two), (t1, one)
    return [(max(t, max(x for x, _ in new[: i + 1])), b) for i, (t, b) in enumerate(new)] if t0 <= t1 else new


def _host_gone(w: World) -> Bundle:
    return with_leaves(without_host(w.bundle, w.one), w.site, _drop(w.one), sign=True)


def _tail_gone(w: World) -> Bundle:
    bundle = w.bundle
    *_, last = w.segments(w.one)
    start = int(last.rpartition("/")[2].partition("-")[0])
    bundle = resigned(bundle, w.one, w.one.lines[:start])
    return with_leaves(receipted_anew(w.site, bundle, w.one), w.site, leaves_for(bundle, w.one), sign=True)


def _renamed_site(w: World) -> Bundle:
    logs = [msgspec.structs.replace(ref, site="Z") for ref in w.bundle.manifest.logs]
    return with_leaves(w.bundle.manifested(logs=logs), w.site, _edit, sign=True)


def _reordered(w: World) -> Bundle:
    return with_leaves(w.bundle, w.site, _swap, sign=True)


def _fork_forgiven(_: World, *, quoted: bool = True) -> Bundle:
    w = make_world(fork=True, quoted=quoted)
    bundle = w.bundle.drop(*(p for p in w.bundle.files if p.startswith("evidence/")))
    change: Callable[[Leaves], Leaves] = lambda ls: [(t, b) for t, b in ls if not isinstance(b, LogFrozenBody)]  # noqa: E731
    return with_leaves(bundle, w.site, change, sign=True)


REWRITES: dict[str, Callable[[World], Bundle]] = {
    "a host taken out of everything": _host_gone,
    "the end of a host's log taken out": _tail_gone,
    "enrolments edited": _renamed_site,
    "two receipts' leaves swapped": _reordered,
}
REWRITES_QUOTED = r"the verifier's log went back or was rewritten: LOG entry \d+ quotes a checkpoint of \d+ leaves"

for name, rewrite in REWRITES.items():

    @forgery("the verifier's keys", f"{name}; another host quotes the log", outcome="undecided", says=REWRITES_QUOTED)
    def quoted(w: World, rewrite: Callable[[World], Bundle] = rewrite) -> Iterable[Bundle]:
        yield rewrite(w)

    @forgery(
        "the verifier's keys", f"{name}; the auditor kept a checkpoint", says="signed another log", checkpoint=True
    )
    def seen(_: World, rewrite: Callable[[World], Bundle] = rewrite) -> Iterable[Bundle]:
        yield rewrite(make_world(quoted=False))

    @forgery("the verifier's keys", f"{name}; nobody outside has seen the log", outcome="pass", says="^$")
    def unseen(_: World, rewrite: Callable[[World], Bundle] = rewrite) -> Iterable[Bundle]:
        yield rewrite(make_world(quoted=False))


@forgery(
    "the verifier's keys", "a fork forgiven; another host quotes the log", outcome="undecided", says=REWRITES_QUOTED
)
def fork_forgiven(w: World) -> Iterable[Bundle]:
    yield _fork_forgiven(w)


@forgery("the verifier's keys", "a leaf of a receipt taken out", says="is not in the verifier's log")
def leaf_out(w: World) -> Iterable[Bundle]:
    for host in (w.one, w.witness):

        def change(leaves: Leaves, host: Host = host) -> Leaves:
            at = max(
                i for i, (_, b) in enumerate(leaves) if isinstance(b, NodeCheckpointBody) and b.origin == host.origin
            )
            return leaves[:at] + leaves[at + 1 :]

        yield with_leaves(w.bundle, w.site, change, sign=True)


@forgery("the verifier's keys", "an enrolment taken out, its receipts left", says="was not enrolled here")
def enrolment_out(w: World) -> Iterable[Bundle]:
    def change(leaves: Leaves) -> Leaves:
        return [(t, b) for t, b in leaves if not (isinstance(b, EnrolmentBody) and b.origin == w.one.origin)]

    yield with_leaves(w.bundle, w.site, change, sign=True)


@forgery("the verifier's keys", "entries altered and receipted anew", says=r"LOG/…\.segment")
def altered(w: World) -> Iterable[Bundle]:
    """The verifier can't sign for the host."""
    fresh = Key("the verifier's guess")
    bundle = receipted_anew(w.site, resigned(w.bundle, w.one, _lowered(w.one), fresh), w.one)
    yield with_leaves(bundle, w.site, leaves_for(bundle, w.one), sign=True)


@forgery("the verifier's keys", "a host invented under a known node's id", says="signed by a key that")
def invented(w: World) -> Iterable[Bundle]:
    site = make_world().site
    thief = site.enrol("thief", 2, w.one.name.node_id)
    site.receive(thief.genesis(w.one.previous()).inventory())
    yield site.export()


@forgery("the verifier's keys", "an export that leaves a log out", outcome="undecided", says="LOG is left out: pruned")
def left_out(w: World) -> Iterable[Bundle]:
    bundle = without_host(w.bundle, w.one)
    left = [LeftOut(origin=w.one.origin, reason="pruned")]
    export = msgspec.structs.replace(bundle.manifest.export, left_out=left)

    def change(leaves: Leaves) -> Leaves:
        return [*leaves[:-1], (leaves[-1][0], export)]

    yield with_leaves(bundle.manifested(export=export), w.site, change, sign=True)


@forgery("the verifier's keys", "an export up to an earlier moment", says="another moment than its own|time went back")
def early_export(w: World) -> Iterable[Bundle]:
    early = msgspec.structs.replace(w.bundle.manifest.export, until_us=w.bundle.manifest.export.until_us - 5_000_000)
    for backwards in (False, True):

        def change(leaves: Leaves, backwards: bool = backwards) -> Leaves:
            return [*leaves[:-1], (early.until_us if backwards else leaves[-1][0], early)]

        yield with_leaves(w.bundle.manifested(export=early), w.site, change, sign=True)


@forgery(
    "the verifier's keys", "receipts dated later, so that no clock is ahead", says="a receipt from after its own leaf"
)
def late_receipts(w: World) -> Iterable[Bundle]:
    def change(leaves: Leaves) -> Leaves:
        return [
            (t, msgspec.structs.replace(b, receipt_s=b.receipt_s + 9) if isinstance(b, NodeCheckpointBody) else b)
            for t, b in leaves
        ]

    yield with_leaves(w.bundle, w.site, change, sign=True)


@forgery("the verifier's keys", "two beginnings, an enrolment twice, a receipt after a freeze", says=r"leaf \d+")
def broken_rules(w: World) -> Iterable[Bundle]:
    for pick in (0, 1, 4):

        def change(leaves: Leaves, pick: int = pick) -> Leaves:
            return [*leaves[:-1], (leaves[-1][0], leaves[pick][1]), leaves[-1]]

        yield with_leaves(w.bundle, w.site, change, sign=True)


# -- host and verifier together


def _history(w: World) -> Bundle:
    bundle = receipted_anew(w.site, resigned(w.bundle, w.one, _lowered(w.one)), w.one)
    return with_leaves(bundle, w.site, leaves_for(bundle, w.one), sign=True)


@forgery(
    "both keys", "a host's history rewritten; another host quotes the log", outcome="undecided", says=REWRITES_QUOTED
)
def history_quoted(w: World) -> Iterable[Bundle]:
    yield _history(w)


@forgery(
    *("both keys", "a host's history rewritten; the auditor kept a checkpoint"),
    **{"says": "the verifier signed another log", "checkpoint": True},  # type: ignore[arg-type]
)
def history_seen(_: World) -> Iterable[Bundle]:
    yield _history(make_world(quoted=False))


@forgery("both keys", "a host's history rewritten; nobody outside has seen it", outcome="pass", says="^$")
def history_unseen(_: World) -> Iterable[Bundle]:
    yield _history(make_world(quoted=False))


def _rekeyed(ref: Any, key: Key) -> Any:
    return msgspec.structs.replace(ref, vkey=str(node_key(ref.origin, key.public)))
