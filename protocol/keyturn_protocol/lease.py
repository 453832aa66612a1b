"""A lease: one node, in one boot, may spend up to so much of a permit or an allowance for a while.

    {"allowance":null,"boot_id":"0c6b…","charged_tflop":0,"chips":["GPU-5a…"],"deployment":"keyturn.example.org","dtypes":["bf16"],
     "epoch":0,"node_id":"6f0c…","nonce":"9c1f…","policy":"77a0…","renew_s":600,"root":"b1d2…","run":"41d0…",
     "sequence":0,"time_us":1790000000000000,"ttl_s":172800,"type":"lease","upto_tflop":73400,"v":1}   (one line)

    — keyturn.example.org/lease Az3…                                   a C2SP signed note by the verifier's lease key

``upto_tflop`` is a cap on what the log charges to the *subject* in all, under this and every earlier lease: it can't
be spent twice, whatever is lost, and a lease that is played back allows nothing new. The time to live counts on
CLOCK_BOOTTIME from when the host drew the nonce; in another boot the lease is void.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec

from keyturn_protocol import ids
from keyturn_protocol.canonical import Hex32, Positive, Record, Text, UInt, decode, encode_record
from keyturn_protocol.chips import PIPE_OF
from keyturn_protocol.entry_switch import Lineage
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash, lease_name
from keyturn_protocol.keys import SignatureType, VerifierKey
from keyturn_protocol.limits import CHIPS_PER_HOST
from keyturn_protocol.note import Note, Signature, open_note, parse_note
from keyturn_protocol.values import BootId, ChipUuid, Micros, NodeIdText, Slug


class AllowanceName(Record, frozen=True, kw_only=True):
    """Whose free compute a lease is of. ``lineage`` is null for diagnostics, which are counted by node."""

    kind: Literal["allowance", "diagnostics"]
    organisation: Annotated[Text, msgspec.Meta(min_length=1)]
    lineage: Lineage | None


class Lease(Record, frozen=True, kw_only=True, tag_field="type", tag="lease"):
    """Either ``run`` (the hash of its request) or ``allowance`` says what is spent; lists are sorted.

    ``dtypes`` are those of the run's scope, by the fastest of which work is charged; empty: any. ``epoch`` is the
    run's, 0 for an allowance. ``sequence`` counts the leases of one log and subject. ``charged_tflop`` is what the
    verifier's account of these says so far: a host whose state came from a backup goes on from there if it knows of
    less. ``renew_s`` is how long after it the host should ask for the next one.
    """

    v: Literal[1]
    deployment: str
    root: Hex32
    policy: Hex32
    run: Hex32 | None
    allowance: AllowanceName | None
    node_id: NodeIdText
    boot_id: BootId
    nonce: Hex32
    sequence: UInt
    charged_tflop: UInt
    chips: Annotated[list[ChipUuid], msgspec.Meta(min_length=1, max_length=CHIPS_PER_HOST)]
    dtypes: list[Slug]
    upto_tflop: Positive
    ttl_s: Positive
    epoch: UInt
    time_us: Micros
    renew_s: Positive


@dataclass(frozen=True, slots=True)
class SignedLease:
    """A parsed note. Nothing in ``lease`` may be believed before :func:`open_lease` has returned."""

    lease: Lease
    note: Note

    @property
    def hash(self) -> Hash:
        """Of the note's text, whoever signs it: what entries and leaves call the lease by."""
        return Hash(sha256(self.note.text).digest())

    def to_bytes(self) -> bytes:
        return self.note.to_bytes()


def lease_subject(lease: Lease) -> str:
    """What a lease spends of: the run's hash, or the name of an allowance, whose parts are percent-encoded."""
    if lease.run is not None:
        return lease.run
    name = lease.allowance
    if name is None:
        raise ProtocolError(Code.BAD_LEASE, "a lease of nothing")
    return f"allowance/{name.kind}/{quote(name.organisation, safe='')}/{quote(name.lineage or '', safe='')}"


def lease_text(lease: Lease) -> bytes:
    """What is signed and hashed: one line of canonical JSON, with its newline.

    :raises ProtocolError: ``bad_lease``, ``bad_identifier``: as :func:`parse_lease` would.
    """
    check_lease(lease)
    text = encode_record(lease)
    decode(text, Lease)
    return text + b"\n"


def lease_hash(lease: Lease) -> Hash:
    """SHA-256 of :func:`lease_text`."""
    return Hash(sha256(lease_text(lease)).digest())


def format_lease(lease: Lease, key: VerifierKey, signature: bytes) -> bytes:
    """The signed note.

    :param key: the lease key, whose name is ``<deployment>/lease``.
    :param signature: its Ed25519 signature over :func:`lease_text`.
    """
    return Note(lease_text(lease), (Signature(key.name, key.id, signature),)).to_bytes()


def parse_lease(data: bytes) -> SignedLease:
    """Take a lease apart; ``parse_lease(x).to_bytes() == x`` for everything that it accepts.

    :raises ProtocolError: ``bad_lease``, ``bad_note``, ``bad_identifier``, ``not_canonical`` or ``too_large``.
    """
    note = parse_note(data)
    lease: Lease = decode(note.text[:-1], Lease)
    check_lease(lease)
    if len(note.signatures) != 1:
        raise ProtocolError(Code.BAD_LEASE, "signed once, by the lease key", expected=1, got=len(note.signatures))
    return SignedLease(lease, note)


def open_lease(data: bytes, key: VerifierKey) -> Lease:
    """The lease that ``key`` signed.

    :param key: the lease key of a root.
    :raises ProtocolError: as :func:`parse_lease`; ``unknown_key``, ``bad_signature``.
    """
    signed = parse_lease(data)
    expected = lease_name(ids.deployment(signed.lease.deployment))
    if key.name != expected or key.kind is not SignatureType.ED25519:
        raise ProtocolError(Code.BAD_LEASE, "lease of another deployment", expected=key.name, got=expected)
    open_note(signed.note, [key])
    return signed.lease


def check_lease(lease: Lease) -> None:
    """The rules that a lease's shape doesn't express.

    :raises ProtocolError: ``bad_lease`` or ``bad_identifier``.
    """
    ids.deployment(lease.deployment)
    allowance = lease.allowance
    if (lease.run is None) == (allowance is None):
        raise ProtocolError(Code.BAD_LEASE, "a lease is of a run or of an allowance")
    if allowance is not None and (allowance.kind == "allowance") != (allowance.lineage is not None):
        raise ProtocolError(Code.BAD_LEASE, "an allowance has a lineage, diagnostics have none", got=allowance.kind)
    if lease.chips != sorted(set(lease.chips)):
        raise ProtocolError(Code.BAD_LEASE, "chips are distinct and in order", got=", ".join(lease.chips))
    if lease.dtypes != sorted(set(lease.dtypes)):
        raise ProtocolError(Code.BAD_LEASE, "dtypes are distinct and in order", got=", ".join(lease.dtypes))
    if unknown := set(lease.dtypes) - PIPE_OF.keys():
        expected = ", ".join(PIPE_OF)
        raise ProtocolError(Code.BAD_LEASE, "not a type of the tensor pipe", expected=expected, got=min(unknown))
    if lease.upto_tflop <= lease.charged_tflop:
        expected = f"> {lease.charged_tflop} TFLOP"
        raise ProtocolError(Code.BAD_LEASE, "a lease of nothing more", expected=expected, got=lease.upto_tflop)
    if lease.allowance is not None and lease.epoch != 0:
        raise ProtocolError(Code.BAD_LEASE, "an allowance has no epochs", expected=0, got=lease.epoch)
