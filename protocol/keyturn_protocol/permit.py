"""The permit bundle: what a host, or whoever signs offline, needs to know about a run without asking anybody.

    {"deployment":"keyturn.example.org","run":"41d0…","start":{"index":41,"lease":"{\\"allowance\\":null,…","time_us":…},
     "statements":[{"envelope":{…},"index":1,"time_us":1790000000000000},…],"v":1}             (one line)

Every root and policy, and with ``run`` the request and all that was said about it, as leaves of the verifier's log, in
their order; ``start`` is the run's first lease. Nothing in it is believed but by the root that the reader has pinned.
A verifier can't add to it, for want of keys, but it can leave the end out: a reader keeps what it saw
(:class:`Versions`, :class:`Mark`), and takes nothing that falls behind.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby, pairwise
from typing import Annotated, Literal

import msgspec

from keyturn_protocol import ids
from keyturn_protocol.authority import Authority, Logged, Why, refuse
from keyturn_protocol.canonical import Hex32, Positive, Record, UInt, decode, encode_record
from keyturn_protocol.dsse import Envelope, EnvelopeRecord, envelope_of
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.lease import SignedLease, open_lease, parse_lease
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.limits import PERMIT_BUNDLE_BYTES
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Root, Standing
from keyturn_protocol.statement_base import kind_of
from keyturn_protocol.statements import parse_payload
from keyturn_protocol.switch import Switch, log_statement
from keyturn_protocol.values import Micros

AUTHORITY = frozenset({"root", "policy"})
"""Kinds that every bundle has all of."""


class _Said(Record, frozen=True, kw_only=True):
    envelope: EnvelopeRecord
    index: UInt
    time_us: Micros


class _Start(Record, frozen=True, kw_only=True):
    lease: str
    index: UInt
    time_us: Micros


class _Bundle(Record, frozen=True, kw_only=True):
    v: Literal[1]
    deployment: str
    run: Hex32 | None
    start: _Start | None
    statements: Annotated[list[_Said], msgspec.Meta(min_length=1)]


class Said(msgspec.Struct, frozen=True):
    """A statement in its envelope, and the leaf that names it."""

    envelope: Envelope
    index: int
    time_us: int


@dataclass(frozen=True, slots=True)
class Start:
    """A run's first lease, a signed note, and the leaf that names it."""

    lease: SignedLease
    index: int
    time_us: int


@dataclass(frozen=True, slots=True)
class PermitBundle:
    """A parsed bundle. Nothing in it may be believed before :func:`open_permit_bundle` has returned."""

    deployment: str
    run: str | None
    """Hash of the request; None for roots and policies alone."""
    statements: tuple[Said, ...]
    """In the order of their leaves."""
    start: Start | None = None

    @property
    def index(self) -> int:
        """Of the last leaf in it."""
        return max(self.statements[-1].index, self.start.index if self.start else 0)

    @property
    def time_us(self) -> int:
        """Of the last leaf in it, by the verifier's clock."""
        return max(self.statements[-1].time_us, self.start.time_us if self.start else 0)

    def to_bytes(self) -> bytes:
        start = None
        if self.start is not None:
            lease = self.start.lease.to_bytes().decode()
            start = _Start(lease=lease, index=self.start.index, time_us=self.start.time_us)
        said = [
            _Said(envelope=one.envelope.to_record(), index=one.index, time_us=one.time_us) for one in self.statements
        ]
        return encode_record(_Bundle(v=1, deployment=self.deployment, run=self.run, start=start, statements=said))


@dataclass(frozen=True, slots=True)
class Opened:
    """What a bundle proves to who pinned one of its roots."""

    bundle: PermitBundle
    switch: Switch
    run: Run | None

    @property
    def authority(self) -> Authority:
        return self.switch.authority

    @property
    def standing(self) -> Standing:
        """The newest root in it."""
        return self.switch.authority.roots[-1][1]


def format_permit_bundle(
    deployment: str, run: str | None, statements: Iterable[Said], start: Start | None = None
) -> bytes:
    """The bytes of a bundle.

    :raises ProtocolError: as :func:`parse_permit_bundle` would.
    """
    data = PermitBundle(deployment, run, tuple(statements), start).to_bytes()
    parse_permit_bundle(data)
    return data


def parse_permit_bundle(data: bytes) -> PermitBundle:
    """Take a bundle apart; ``parse_permit_bundle(x).to_bytes() == x`` for everything that it accepts.

    :raises ProtocolError: ``bad_permit``, ``bad_statement``, ``not_canonical``, ``too_large``, or as
        :func:`~keyturn_protocol.lease.parse_lease`.
    """
    raw: _Bundle = decode(data, _Bundle, limit=PERMIT_BUNDLE_BYTES)
    ids.deployment(raw.deployment)
    said = tuple(Said(envelope_of(one.envelope), one.index, one.time_us) for one in raw.statements)
    start = None
    if raw.start is not None:
        start = Start(parse_lease(raw.start.lease.encode()), raw.start.index, raw.start.time_us)
    bundle = PermitBundle(raw.deployment, raw.run, said, start)
    leaves = [(one.index, one.time_us) for one in said]
    _check_order(leaves)
    if start is not None:
        _check_order(sorted([*leaves, (start.index, start.time_us)]))
    return bundle


def _check_order(leaves: Sequence[tuple[int, int]]) -> None:
    for (index, time_us), (next_index, next_us) in pairwise(leaves):
        if next_index <= index or next_us < time_us:
            raise _bad("leaves are in their order, and so are their times", got=f"leaf {next_index} at {next_us}")


def open_permit_bundle(bundle: PermitBundle, root_sha256: str, deployment: str) -> Opened:
    """What a bundle proves: every signature is verified, every statement taken as the verifier has to take it.

    :param root_sha256: hash of any version of the root that the reader has pinned, as hex. Versions before it are
        authentic by their hashes, later ones by the thresholds of those before.
    :raises ProtocolError: ``bad_permit``, with the leaf that breaks it and the reason.
    """
    if bundle.deployment != deployment:
        raise _bad("a bundle for another deployment", expected=deployment, got=bundle.deployment)
    switch = Switch(deployment)
    start = bundle.start
    for batch in _batches(bundle.statements):
        for logged in _verified(batch, switch.authority):
            if start is not None and start.index < logged.index:
                _start(switch, bundle.run, start)
                start = None
            _take(switch, bundle.run, logged)
    if start is not None:
        _start(switch, bundle.run, start)
    roots = [standing.hash for _, standing in switch.authority.roots]
    if root_sha256 not in roots:
        raise _bad("not under the root that is pinned", expected=root_sha256, got=", ".join(roots) or "no root")
    if bundle.run is not None and bundle.run not in switch.runs:
        raise _bad("the run's request isn't in it", expected=bundle.run)
    return Opened(bundle, switch, None if bundle.run is None else switch.runs[bundle.run])


def _batches(statements: Sequence[Said]) -> Iterator[Sequence[Said]]:
    """Each root by itself, and all that is said under it: signed by the same keys, they are verified in one go, which
    takes a tenth less time than one after the other with the fold between them."""
    for is_root, group in groupby(statements, key=lambda one: one.envelope.kind == "root"):
        batch = list(group)
        yield from ([one] for one in batch) if is_root else [batch]


def _verified(batch: Sequence[Said], authority: Authority) -> list[Logged]:
    found = []
    for one in batch:
        try:
            statement = parse_payload(one.envelope.kind, one.envelope.payload)
            found.append(log_statement(one.envelope, statement, one.index, one.time_us, authority))
        except ProtocolError as error:
            raise _bad(f"leaf {one.index}: {error}") from error
    return found


def _take(switch: Switch, run: str | None, logged: Logged) -> None:
    """One statement: a root, a policy, or about this run and no other."""
    try:
        change = switch.decide(logged)
    except ProtocolError as error:
        raise _bad(f"leaf {logged.index}: {error}") from error
    if not isinstance(logged.statement, Root | Policy) and set(change.runs) != {run}:
        raise _bad(f"leaf {logged.index}: not about this run", expected=run, got=kind_of(logged.statement))
    switch.apply(logged, change)


def _start(switch: Switch, run: str | None, start: Start) -> None:
    """The run's first lease, by the lease key of the root in force."""
    try:
        if switch.standing is None or run is None or run not in switch.runs:
            raise _bad("a lease of no run")
        lease = open_lease(start.lease.to_bytes(), parse_vkey(switch.standing.root.services.lease_vkey))
        if lease.run != run:
            raise _bad("a lease of another run", expected=run, got=lease.run)
        switch.begin(run, start.index, start.time_us)
    except ProtocolError as error:
        raise _bad(f"first lease, leaf {start.index}: {error}") from error


class Versions(Record, frozen=True, kw_only=True):
    """The newest root and policy that a reader has seen, and keeps. Version 0: no policy yet."""

    root: Positive
    root_sha256: Hex32
    policy: UInt
    policy_sha256: Hex32 | None


def versions(authority: Authority) -> Versions:
    """Those to keep."""
    standing = authority.roots[-1][1]
    digest, policy = (authority.policies[-1][1], authority.policies[-1][2].version) if authority.policies else (None, 0)
    return Versions(root=standing.root.version, root_sha256=standing.hash, policy=policy, policy_sha256=digest)


def check_versions(authority: Authority, kept: Versions) -> None:
    """That everything that was seen before is there, and nothing else in its place.

    :raises Refused: ``version``: an older root or policy, or another one of the same version.
    """
    now = versions(authority)
    roots = {standing.hash for _, standing in authority.roots}
    policies = {digest for _, digest, _ in authority.policies} | {None}
    for what, newest, last, there in (
        ("root", now.root, kept.root, kept.root_sha256 in roots),
        ("policy", now.policy, kept.policy, kept.policy_sha256 in policies),
    ):
        if newest < last:
            raise refuse(Why.VERSION, f"an older {what} than one seen before", expected=f">= {last}", got=newest)
        if not there:
            raise refuse(Why.VERSION, f"another {what} of version {last} than the one seen before")


class Mark(Record, frozen=True, kw_only=True):
    """How far a reader has seen the roots and policies, or a run: what it knows may grow, and never change."""

    index: UInt
    """Of the last leaf."""
    sha256: Hex32
    """Of a line ``index time_us hash`` for every leaf up to it."""


def mark(bundle: PermitBundle, *, run: bool, upto: int | None = None) -> Mark:
    """Where a bundle ends, of the run in it or of the roots and policies.

    :param upto: no further than this leaf.
    """
    leaves = [leaf for leaf in sorted(_leaves(bundle, authority=not run, about=run)) if upto is None or leaf[0] <= upto]
    text = "".join(f"{index} {time_us} {digest}\n" for index, time_us, digest in leaves)
    return Mark(index=leaves[-1][0] if leaves else 0, sha256=sha256(text.encode()).hexdigest())


def check_mark(bundle: PermitBundle, kept: Mark, *, run: bool) -> None:
    """That all which was seen up to a mark is in a bundle, unchanged.

    :raises ProtocolError: ``bad_permit``: a leaf is missing, new in the past, or says something else.
    """
    if mark(bundle, run=run, upto=kept.index) != kept:
        what = "the run" if run else "roots and policies"
        raise _bad(f"not what was seen before of {what}, up to leaf {kept.index}")


def _leaves(bundle: PermitBundle, *, authority: bool = True, about: bool = True) -> Iterator[tuple[int, int, str]]:
    for one in bundle.statements:
        if authority if one.envelope.kind in AUTHORITY else about:
            yield one.index, one.time_us, one.envelope.hash.hex()
    if about and bundle.start is not None:
        yield bundle.start.index, bundle.start.time_us, bundle.start.lease.hash.hex()


def _bad(message: str, **details: object) -> ProtocolError:
    return ProtocolError(Code.BAD_PERMIT, message, **details)
