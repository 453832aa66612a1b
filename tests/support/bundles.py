"""Evidence bundles in memory: a host that signs, a verifier that receipts, an export; all keys from fixed seeds.

    site = Site()
    host = site.enrol("a")
    host.genesis().inventory(1).usage("run:aurora").usage("run:aurora")
    site.receive(host)
    bundle = site.export()
    audit(bundle, bundle.trust, chip_table())

The verifier here decides with the protocol's own receipt table; everything around it is the shortest thing
that is right. Tests then change what it gives: :meth:`Bundle.put`, :meth:`Bundle.drop`, :meth:`Bundle.rehashed`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import msgspec

from keyturn_protocol.api import Trust
from keyturn_protocol.bundle import (
    MANIFEST,
    TOTALS,
    VERIFIER_LOG,
    LogRef,
    Manifest,
    evidence_path,
    lease_path,
    parse_manifest,
    receipt_path,
    segment_path,
    statement_path,
)
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.cosignature import Cosignature, cosignature_line, ed25519_message
from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Deployment, Hash, NodeId, log_origin, receipt_name
from keyturn_protocol.keys import SignatureType, VerifierKey
from keyturn_protocol.lease import parse_lease
from keyturn_protocol.leaves import (
    EnrolmentBody,
    ExportBody,
    InitBody,
    LeafBody,
    LeaseBody,
    LeftOut,
    LogFrozenBody,
    NodeCheckpointBody,
    StatementBody,
    format_leaf,
)
from keyturn_protocol.merkle import leaf_hash, root_of
from keyturn_protocol.receive import (
    Accepted,
    Decision,
    Fork,
    Head,
    History,
    Invalid,
    StoredSegment,
    decide,
    new_head,
)
from keyturn_protocol.segment import node_key, parse_segment
from keyturn_protocol.tiles import ENTRIES, TILE_WIDTH, encode_bundle, encode_hashes, tiles_of
from keyturn_protocol.usage import Gap, Rows, merge, to_row, totals_json
from tests.support.hosts import START_US, Host, Key


@dataclass
class Bundle:
    """A bundle's files; a :class:`~keyturn_protocol.bundle.BundleReader`."""

    files: dict[str, bytes]
    trust: Trust

    def paths(self) -> Iterable[str]:
        return list(self.files)

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise ProtocolError(Code.BAD_BUNDLE, "no such file", got=path)
        return self.files[path]

    @property
    def manifest(self) -> Manifest:
        return parse_manifest(self.files[MANIFEST])

    def segments(self) -> list[str]:
        return sorted(p for p in self.files if p.startswith("logs/") and p.endswith(".segment"))

    def put(self, path: str, data: bytes) -> "Bundle":
        return Bundle({**self.files, path: data}, self.trust)

    def drop(self, *paths: str) -> "Bundle":
        return Bundle({p: d for p, d in self.files.items() if p not in paths}, self.trust)

    def flip(self, path: str, at: int, mask: int = 1) -> "Bundle":
        data = bytearray(self.files[path])
        data[at] ^= mask
        return self.put(path, bytes(data))

    def manifested(self, **changes: Any) -> "Bundle":
        """The same with other fields in its manifest."""
        return self.put(MANIFEST, encode_record(msgspec.structs.replace(self.manifest, **changes)))

    def rehashed(self) -> "Bundle":
        """The same with a manifest that lists the files as they are: what a forger would do next."""
        hashes = {p: sha256(d).hexdigest() for p, d in self.files.items() if p != MANIFEST}
        return self.manifested(files=hashes)

    def resized(self, origin: str, size: int) -> "Bundle":
        """The same with another size claimed for one log."""
        logs = [msgspec.structs.replace(r, size=size) if r.origin == origin else r for r in self.manifest.logs]
        return self.manifested(logs=logs)


@dataclass
class _Received:
    head: Head
    organisation: str
    site: str
    lines: list[bytes] = field(default_factory=list)
    segments: dict[tuple[int, int], StoredSegment] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)


class Site:
    """A deployment: hosts, and a verifier that receipts what they send."""

    def __init__(self, name: str = "kt.example", seed: str = "verifier") -> None:
        self.name = Deployment(name)
        self.log_key, self.receipt_key = Key(f"{seed} log"), Key(f"{seed} receipt")
        self.log_vkey = VerifierKey(log_origin(self.name), SignatureType.ED25519, self.log_key.public)
        self.receipt_vkey = VerifierKey(
            receipt_name(self.name), SignatureType.COSIGNATURE_ED25519, self.receipt_key.public
        )
        self.trust = Trust(v=1, deployment=name, log_vkey=str(self.log_vkey), receipt_vkey=str(self.receipt_vkey))
        self.leaves: list[bytes] = []
        self.files: dict[str, bytes] = {}
        self.root_sha256: str | None = None
        """Of the newest root that was said."""
        self.logs: dict[str, _Received] = {}
        self.now_s = START_US // 1_000_000
        init = InitBody(deployment=name, log_vkey=str(self.log_vkey), receipt_vkey=str(self.receipt_vkey))
        self.leaf(init)

    def leaf(self, body: LeafBody) -> None:
        self.leaves.append(format_leaf(len(self.leaves), self.now_s * 1_000_000, body))

    def enrol(
        self, seed: str, incarnation: int = 1, node: NodeId | None = None, *, organisation: str = "Example"
    ) -> Host:
        """A new host whose log is known here; a later incarnation takes the node's id."""
        host = Host(seed, self.name, incarnation, node)
        self.logs[host.origin] = _Received(new_head(host.name, host.key.public), organisation, "hall 1")
        self.leaf(
            EnrolmentBody(
                origin=host.origin,
                node_id=host.name.node_id,
                incarnation=incarnation,
                public_key=host.key.public.hex(),
                organisation=organisation,
                site="hall 1",
                token_sha256=None,
            )
        )
        return host

    def next_incarnation(self, host: Host, *, seed: str | None = None, skip: int = 0, reason: str = "rejected") -> Host:
        """The node's next log, its genesis written."""
        number = host.name.incarnation + 1 + skip
        new = self.enrol(seed or "unused", number, host.name.node_id)
        if seed is None:
            new.key = host.key
            self._rekey(new)
        return new.genesis(host.previous(reason))

    def _rekey(self, host: Host) -> None:
        self.logs[host.origin].head = new_head(host.name, host.key.public)
        body = msgspec.json.decode(self.leaves.pop())["body"]
        self.leaf(EnrolmentBody(**(body | {"public_key": host.key.public.hex()})))

    def receive(self, host: Host) -> Decision:
        """The host uploads what is new."""
        return self.post(host.segment())

    def post(self, data: bytes) -> Decision:
        """Decide about a segment and do what a verifier does about it."""
        self.now_s += 1
        segment = parse_segment(data)
        log = self.logs[segment.origin]
        history = History(
            segment=lambda start, end: log.segments.get((start, end)),
            root_at=lambda size: root_of(map(leaf_hash, log.lines[:size])),
        )
        decision = decide(log.head, segment, data, history)
        match decision:
            case Accepted():
                receipt = self.receipt(segment.note.text)
                log.lines += segment.lines
                log.segments[segment.start, segment.end] = StoredSegment(decision.sha256, receipt)
                log.head = replace(decision.head, receipt=receipt)
                merge(log.rows, decision.rows)
                log.gaps += decision.gaps
                path = segment_path(segment.name, segment.start, segment.end)
                self.files[path], self.files[receipt_path(path)] = data, receipt
                self.leaf(
                    NodeCheckpointBody(
                        origin=segment.origin,
                        start=segment.start,
                        size=segment.end,
                        root=segment.checkpoint.root.hex(),
                        segment_sha256=sha256(data).hexdigest(),
                        receipt_s=self.now_s,
                    )
                )
            case Fork() | Invalid():
                reason = "fork" if isinstance(decision, Fork) else "invalid_entries"
                self.files[evidence_path(sha256(data).hexdigest())] = data
                self.leaf(
                    LogFrozenBody(
                        origin=segment.origin,
                        reason=reason,  # type: ignore[arg-type]
                        size=segment.end,
                        signed_root=segment.checkpoint.root.hex(),
                        evidence_sha256=sha256(data).hexdigest(),
                    )
                )
            case _:
                pass
        return decision

    def say(self, envelope: bytes, *, sha256: str | None = None, kind: str | None = None) -> str:
        """Take a statement, whatever is in it, as a verifier that doesn't check would; returns its hash."""
        self.now_s += 1
        parsed = parse_envelope(envelope)
        digest = sha256 or parsed.hash.hex()
        self.files[statement_path(digest)] = envelope
        self.leaf(StatementBody(kind=kind or parsed.kind, sha256=digest))
        if parsed.kind == "root":
            self.root_sha256 = digest
        return digest

    def lease(self, note: bytes, sha256: str | None = None) -> str:
        """Issue a lease, whatever is in it; returns its hash."""
        self.now_s += 1
        digest = sha256 or parse_lease(note).hash.hex()
        self.files[lease_path(digest)] = note
        allowance = parse_lease(note).lease.allowance
        self.leaf(LeaseBody(kind="run" if allowance is None else allowance.kind, sha256=digest))
        return digest

    def receipt(self, text: bytes, key: Key | None = None) -> bytes:
        """A receipt line for a checkpoint's text, at the verifier's time."""
        signer = key or self.receipt_key
        vkey = VerifierKey(self.receipt_vkey.name, self.receipt_vkey.kind, signer.public)
        signature = signer.sign(ed25519_message(text, self.now_s))
        return cosignature_line(vkey, Cosignature(self.now_s, signature)).to_bytes()

    def checkpoint(self, size: int | None = None) -> bytes:
        """The verifier's signed head over its first ``size`` leaves."""
        leaves = self.leaves[:size]
        head = Checkpoint(self.log_vkey.name, len(leaves), root_of(map(leaf_hash, leaves)))
        return head.signed(self.log_vkey, self.log_key.sign(head.to_text())).to_bytes()

    def log_files(self, size: int | None = None) -> dict[str, bytes]:
        """``verifier-log/`` over its first ``size`` leaves."""
        leaves = self.leaves[:size]
        files = {VERIFIER_LOG + "checkpoint": self.checkpoint(size)}
        levels: list[list[Hash]] = [[leaf_hash(line) for line in leaves]]
        while levels[-1]:
            below = levels[-1]
            full = len(below) // TILE_WIDTH
            levels.append([root_of(below[i * TILE_WIDTH : (i + 1) * TILE_WIDTH]) for i in range(full)])
        for tile in tiles_of(len(leaves)):
            part = slice(tile.start, tile.start + tile.width)
            data = encode_bundle(leaves[part]) if tile.level == ENTRIES else encode_hashes(levels[tile.level][part])
            files[VERIFIER_LOG + tile.path] = data
        return files

    def export(
        self,
        left_out: Mapping[str, str] | None = None,
        *,
        case: str | None = "case 7",
        then: Iterable[LeafBody] = (),
    ) -> Bundle:
        """The bundle as a verifier would export it now.

        :param left_out: origin → reason.
        :param then: leaves after the export's own, before the head is signed.
        """
        left_out = left_out or {}
        body = ExportBody(
            until_us=self.now_s * 1_000_000,
            case=case,
            exporter="tests",
            root_sha256=self.root_sha256,
            chip_table="tests",
            left_out=[LeftOut(origin=o, reason=r) for o, r in sorted(left_out.items())],
        )
        index = len(self.leaves)
        self.leaf(body)
        for more in then:
            self.leaf(more)
        kept = {origin: log for origin, log in self.logs.items() if origin not in left_out}
        folders = tuple(f"logs/{log.head.name.node_id}/{log.head.name.incarnation}/" for log in kept.values())
        files = {p: d for p, d in self.files.items() if p.startswith((*folders, "evidence/", "statements/", "leases/"))}
        files |= self.log_files()
        rows: Rows = {}
        for log in kept.values():
            merge(rows, log.rows)
        gaps = [gap for log in kept.values() for gap in log.gaps]
        files[TOTALS] = totals_json([to_row(k, v) for k, v in rows.items()], gaps)
        manifest = Manifest(
            v=1,
            deployment=self.name,
            export_index=index,
            export=body,
            verifier=self.trust,
            logs=[
                LogRef(
                    origin=origin,
                    vkey=str(node_key(log.head.name.origin, log.head.public_key)),
                    organisation=log.organisation,
                    site=log.site,
                    size=log.head.size,
                )
                for origin, log in sorted(kept.items())
            ],
            files={p: sha256(d).hexdigest() for p, d in files.items()},
        )
        return Bundle({**files, MANIFEST: encode_record(manifest)}, self.trust)


def small() -> tuple[Site, Bundle]:
    """One host, two segments, five entries."""
    site = Site()
    host = site.enrol("a").genesis().inventory().usage("run:a")
    site.receive(host)
    host.usage("run:a").usage()
    site.receive(host)
    return site, site.export()


def large() -> tuple[Site, Bundle, dict[str, Host]]:
    """Three nodes; one of them in its second incarnation after a key roll, one with a lost chip and a gap."""
    site = Site()
    one = site.enrol("one").genesis().inventory(2).started("run:a", "bf16").usage("run:a")
    two = site.enrol("two").genesis().inventory().usage("run:b", "user:7")
    three = site.enrol("three").genesis().inventory().usage("run:b").usage(samples=0)
    for host in (one, two, three):
        site.receive(host)
    one.usage("run:a").wait(60_000_000).usage("run:a")
    two.usage("run:b", "user:7").key_roll(Key("two again"))
    for host in (three.usage("run:b"), two, one):
        site.receive(host)
    again = site.next_incarnation(two, seed="two again", reason="key_roll").inventory().usage("run:b")
    site.receive(again)
    site.receive(one.usage())
    return site, site.export(), {"one": one, "two": two, "three": three, "again": again}
