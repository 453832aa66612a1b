"""What is forged about the start switch: in bundles, by whoever holds no key, a host's or the verifier's.

The verifier's keys are those of its log, receipts and leases. A party keeps the checkpoint that it was shown when its
statement was taken: `checkpoint` says that the auditor has that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import msgspec

from keyturn_protocol.bundle import lease_path, statement_path
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.lease import format_lease, lease_text, parse_lease
from keyturn_protocol.leaves import LeafBody, LeaseBody, StatementBody
from tests.faults.tamper.forgery import Forgeries
from tests.faults.tamper.world import with_leaves
from tests.support.bundles import Bundle
from tests.support.hosts import Key
from tests.support.leased_site import LeasedSite
from tests.support.metered import Metered
from tests.support.parties import PEOPLE, envelope, person, person_key, root, service

forgery = Forgeries()
Leaves = list[tuple[int, LeafBody]]
VERIFIER: Final = "the verifier's keys"


@dataclass
class Switched:
    """A run that works under leases on two hosts and was suspended; another one that was vetoed."""

    site: LeasedSite
    a: Metered
    b: Metered
    leases: tuple[str, str]
    vetoed: str
    veto: str
    suspension: str
    kept: bytes
    bundle: Bundle


def make_switched() -> Switched:
    """A new one; the same bytes each time."""
    site = LeasedSite(budget_tflop=10**5)
    a, b = site.host("a"), site.host("b")
    leases = (site.leased(a, 60_000), site.leased(b, 40_000))
    for host, lease in zip((a, b), leases, strict=True):
        host.works().say(lease)
        site.receive(host)
    vetoed = site.hall.say(site.hall.request(nonce="7" * 64), "lab-a/ada")
    veto = site.hall.say(site.hall.decision(vetoed, "office/ivy", "veto"), "office/ivy")
    suspension = site.hall.suspend(site.run)
    site.catch_up()
    kept = site.checkpoint()
    for host, lease in zip((a, b), leases, strict=True):
        host.works().say(lease, "final")
        site.receive(host)
    return Switched(site, a, b, leases, vetoed, veto, suspension, kept, site.export())


@cache
def switched() -> Switched:
    """One to read from, never to change."""
    return make_switched()


# -- anyone


@forgery("anyone", "a veto dropped", says=f"{statement_path('HASH')}: (file is missing|statement of leaf)")
def veto_dropped(w: Switched) -> Iterable[Bundle]:
    yield w.bundle.drop(statement_path(w.veto))
    yield w.bundle.drop(statement_path(w.veto)).rehashed()


@forgery("anyone", "a suspension dropped", says=f"{statement_path('HASH')}: (file is missing|statement of leaf)")
def suspension_dropped(w: Switched) -> Iterable[Bundle]:
    yield w.bundle.drop(statement_path(w.suspension))
    yield w.bundle.drop(statement_path(w.suspension)).rehashed()


@forgery("anyone", "an approval in place of a veto", says="not the statement that the verifier's log names")
def veto_replaced(w: Switched) -> Iterable[Bundle]:
    said = w.site.hall.decision(w.vetoed, "office/ivy")
    for signer in ("office/ivy", "mallory"):
        yield w.bundle.put(statement_path(w.veto), envelope(said, signer).to_bytes()).rehashed()


@forgery("anyone", "a lease dropped", says=f"{lease_path('HASH')}: (file is missing|lease of leaf)")
def lease_dropped(w: Switched) -> Iterable[Bundle]:
    for lease in w.leases:
        yield w.bundle.drop(lease_path(lease))
        yield w.bundle.drop(lease_path(lease)).rehashed()


@forgery("anyone", "a lease altered, its signature as it was", says="lease of leaf")
def lease_altered(w: Switched) -> Iterable[Bundle]:
    path = lease_path(w.leases[0])
    for changes in ({"upto_tflop": 10**6}, {"node_id": w.b.name.node_id}, {"epoch": 9}, {"ttl_s": 1}):
        signed = parse_lease(w.bundle.files[path])
        text = lease_text(msgspec.structs.replace(signed.lease, **changes))
        yield w.bundle.put(path, w.bundle.files[path].replace(signed.note.text, text)).rehashed()


@forgery("anyone", "a lease signed with another key", says="is not signed by any known key|verify")
def lease_signed_again(w: Switched) -> Iterable[Bundle]:
    """Under its own name, and under that of the lease key."""
    path = lease_path(w.leases[0])
    lease, fresh = parse_lease(w.bundle.files[path]).lease, Key("fresh")
    for vkey in (service("lease", 1), _vkey(fresh)):
        note = format_lease(lease, parse_vkey(vkey), fresh.sign(lease_text(lease)))
        yield w.bundle.put(path, note).rehashed()


def _vkey(key: Key) -> str:
    named = parse_vkey(service("lease", 1))
    return str(type(named)(named.name, named.kind, key.public))


@forgery("anyone", "two leases in each other's place", says="not the lease that the verifier's log names")
def leases_swapped(w: Switched) -> Iterable[Bundle]:
    one, two = map(lease_path, w.leases)
    yield w.bundle.put(one, w.bundle.files[two]).put(two, w.bundle.files[one]).rehashed()


# -- the verifier's keys


def _without(w: Switched, digest: str) -> Bundle:
    """Taken out of the log, and the log signed again."""

    def change(leaves: Leaves) -> Leaves:
        return [(t, b) for t, b in leaves if getattr(b, "sha256", None) != digest]

    kept = w.bundle.drop(statement_path(digest), lease_path(digest))
    return with_leaves(kept, w.site, change, sign=True)


TAKEN_OUT = {"a veto": "veto", "a suspension": "suspension"}
for what, field in TAKEN_OUT.items():

    @forgery(
        *(VERIFIER, f"{what} taken out of the log; its party kept a checkpoint"),
        **{"says": "the verifier signed another log", "checkpoint": True},  # type: ignore[arg-type]
    )
    def seen(w: Switched, field: str = field) -> Iterable[Bundle]:
        yield _without(w, getattr(w, field))

    @forgery(VERIFIER, f"{what} taken out of the log; nobody outside has seen it", outcome="pass", says="^$")
    def unseen(w: Switched, field: str = field) -> Iterable[Bundle]:
        yield _without(w, getattr(w, field))


@forgery(VERIFIER, "a lease taken out of the log", says="lease_unknown", outcome="pass")
def lease_out(w: Switched) -> Iterable[Bundle]:
    """The hosts' own logs name it."""
    yield _without(w, w.leases[1])


@forgery(VERIFIER, "the budget leased twice", says="exhausted: more than is left")
def over_lease(_: Switched) -> Iterable[Bundle]:
    for upto in (40_001, 10**9):
        site = LeasedSite(budget_tflop=10**5)
        site.leased(site.host("a"), 60_000)
        site.leased(site.host("b"), upto)
        yield site.export()


@forgery(VERIFIER, "a lease after a suspension", says="suspended: the run is to stop|stale: of another epoch")
def leased_on(_: Switched) -> Iterable[Bundle]:
    for epoch in (0, 1):
        w = make_switched()
        w.site.leased(w.a, 70_000, epoch=epoch)
        yield w.site.export()


@forgery(VERIFIER, "a permit forged: an approval that it signed itself", says="a key that may not sign this")
def permit_forged(_: Switched) -> Iterable[Bundle]:
    site = LeasedSite()
    hall = site.hall
    run = hall.say(hall.request(nonce="7" * 64), "lab-a/ada")
    for who in ("lab-a/bob", "operator-b/eve"):
        hall.say(hall.decision(run, who), who)
    site.catch_up()
    site.say(envelope(hall.decision(run, "office/ivy"), "service lease").to_bytes())
    host = site.host("a")
    site.leased(host, 10, run=run)
    yield site.export()


@forgery(VERIFIER, "a lease without a permit", says="no_permit: not approved yet|over: the run is denied")
def no_permit(_: Switched) -> Iterable[Bundle]:
    w = make_switched()
    w.site.leased(w.a, 10, run=w.vetoed)
    yield w.site.export()
    site = LeasedSite()
    run = site.hall.say(site.hall.request(nonce="7" * 64), "lab-a/ada")
    site.catch_up()
    site.leased(site.host("a"), 10, run=run)
    yield site.export()


@forgery(VERIFIER, "a lease for a node or boot that didn't ask", says="answers no permit entry|for another boot")
def lease_moved(_: Switched) -> Iterable[Bundle]:
    moved: list[dict[str, Any]] = [{"node_id": "00" * 16}, {"boot_id": "00000000-0000-4000-8000-000000000000"}]
    for changes in moved:
        site = LeasedSite()
        host = site.host("a")
        host.ask(host.uuids, run=site.run)
        site.receive(host)
        site.issue(host, 10, **changes)
        yield site.export()


@forgery(VERIFIER, "a lease twice", says="answers no permit entry|is there again")
def lease_twice(_: Switched) -> Iterable[Bundle]:
    site = LeasedSite()
    host = site.host("a")
    lease = site.leased(host, 10)
    site.leaf(LeaseBody(kind="run", sha256=lease))
    yield site.export()
    site = LeasedSite()
    host = site.host("a")
    site.leased(host, 10)
    site.issue(host, 20)
    yield site.export()


@forgery(VERIFIER, "a root that the old parties did not sign", says="threshold: too few signed")
def root_replaced(_: Switched) -> Iterable[Bundle]:
    site = LeasedSite()
    people = [person(name, person_key(f"mallory {name}")) for name in sorted(PEOPLE)]
    old = site.hall.switch.standing
    assert old is not None
    coup = root(services=old.root.services, version=2, previous=old.hash, root=old.hash, persons=people)
    site.say(envelope(coup, "mallory lab-a/ada", "mallory office/ivy").to_bytes())
    yield site.export()


@forgery(VERIFIER, "a leaf for a statement that nobody made", says="statement of leaf")
def statement_invented(_: Switched) -> Iterable[Bundle]:
    site = LeasedSite()
    site.leaf(StatementBody(kind="decision", sha256="00" * 32))
    yield site.export()


# -- the host's key, before the receipt


@forgery("the host's key", "less charged than the log comes to", says="lease_undercharged", outcome="pass")
def undercharged(_: Switched) -> Iterable[Bundle]:
    for flop in (0, 10**12):
        site = LeasedSite()
        host = site.host("a")
        lease = site.leased(host, 10**5)
        host.works().say(lease, "final", flop=flop)
        site.receive(host)
        yield site.export()


@forgery("the host's key", "charges forgotten, as by a restored backup", says="lease_rollback", outcome="pass")
def forgotten(_: Switched) -> Iterable[Bundle]:
    site = LeasedSite()
    host = site.host("a")
    lease = site.leased(host, 10**5)
    host.works().say(lease)
    host.say(lease, flop=0)
    site.receive(host)
    yield site.export()


@forgery("the host's key", "work under another node's lease", says="lease_unknown", outcome="pass")
def borrowed(_: Switched) -> Iterable[Bundle]:
    site = LeasedSite()
    host, thief = site.host("a"), site.host("b")
    lease = site.leased(host, 10**5)
    thief.leases = host.leases
    thief.say(lease, "adopted")
    site.receive(thief.works())
    yield site.export()


@forgery("the host's key", "more work than the lease allows", says="lease_overrun", outcome="pass")
def overrun(_: Switched) -> Iterable[Bundle]:
    site = LeasedSite()
    host = site.host("a")
    lease = site.leased(host, 1)
    host.works().say(lease)
    site.receive(host)
    yield site.export()


@forgery("the host's key", "work that goes on after the last word", says="lease_survivors", outcome="pass")
def survivors(_: Switched) -> Iterable[Bundle]:
    site = LeasedSite()
    host = site.host("a")
    lease = site.leased(host, 10**5)
    host.works().say(lease, "final")
    site.receive(host.works())
    yield site.export()
