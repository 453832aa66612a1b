"""DSSE envelopes: a statement's bytes, and who signed them.

    {"payload":"eyJ…","payloadType":"application/vnd.keyturn.replacement+json",
     "signatures":[{"keyid":"5f0c…","sig":"AbC…"}]}                                   (one line)

What is signed is the *pre-authentication encoding* of type and payload (DSSE v1)::

    DSSEv1 40 application/vnd.keyturn.replacement+json 213 {"deployment":…}

A signature is Ed25519 over that, or an SSHSIG over that: which of the two is a matter of the key, never of the
envelope. ``keyid`` only says which key is meant.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Final

import msgspec

from keyturn_protocol.canonical import Hex32, Record, decode, encode_record
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.keys import ED25519_SIGNATURE_BYTES, b64decode, verify_ed25519
from keyturn_protocol.limits import ENVELOPE_BYTES, SIGNATURE_BYTES, STATEMENT_BYTES, STATEMENT_SIGNATURES
from keyturn_protocol.public_keys import FILE_KEY, PublicKey
from keyturn_protocol.sshsig import verify_sshsig

_TYPE: Final = re.compile(r"application/vnd\.keyturn\.([a-z][a-z0-9_]{0,31})\+json", re.ASCII)


class SignatureRecord(Record, frozen=True, kw_only=True):
    """One signature of an envelope."""

    keyid: Hex32
    sig: bytes


class EnvelopeRecord(Record, frozen=True, kw_only=True):
    """An envelope as JSON, by itself or inside of something else; :func:`envelope_of` checks what is in it."""

    payload: bytes
    """Base64 in JSON (RFC 4648 §4), as are the signatures: :func:`decode` holds it against its re-encoding."""
    payload_type: str = msgspec.field(name="payloadType")
    signatures: Annotated[list[SignatureRecord], msgspec.Meta(min_length=1, max_length=STATEMENT_SIGNATURES)]


class _SpelledSignature(Record, frozen=True, kw_only=True):
    keyid: Hex32
    sig: str


class _Spelled(Record, frozen=True, kw_only=True):
    """An envelope with its base64 as text."""

    payload: str
    payload_type: str = msgspec.field(name="payloadType")
    signatures: list[_SpelledSignature]


class Envelope(msgspec.Struct, frozen=True):
    """A parsed envelope. Nothing in ``payload`` may be believed before :func:`verify` has returned."""

    kind: str
    payload: bytes
    signatures: Mapping[str, bytes]
    """Key id → signature."""

    @property
    def hash(self) -> Hash:
        """The statement's hash: of its payload, whoever signs it."""
        return Hash(sha256(self.payload).digest())

    def to_bytes(self) -> bytes:
        """Canonical JSON, the signatures in the order of their key ids."""
        return encode_record(self.to_record())

    def to_record(self) -> EnvelopeRecord:
        return EnvelopeRecord(
            payload=self.payload,
            payload_type=payload_type(self.kind),
            signatures=[
                SignatureRecord(keyid=key_id, sig=signature) for key_id, signature in sorted(self.signatures.items())
            ],
        )

    def with_signature(self, key: PublicKey, signature: bytes) -> "Envelope":
        """The same with one more signature, checked.

        :raises ProtocolError: it doesn't verify, or there is one by this key.
        """
        if key.id in self.signatures:
            raise ProtocolError(Code.BAD_STATEMENT, "signed by this key already", got=str(key))
        check(key, signature, pae(self.kind, self.payload))
        return Envelope(self.kind, self.payload, {**self.signatures, key.id: signature})


def payload_type(kind: str) -> str:
    """The media type of a kind of statement."""
    return f"application/vnd.keyturn.{kind}+json"


def pae(kind: str, payload: bytes) -> bytes:
    """What is signed: DSSE v1 ``PAE(payloadType, payload)``."""
    return b"%s %d %s" % (_pae_head(kind), len(payload), payload)


@lru_cache(maxsize=64)
def _pae_head(kind: str) -> bytes:
    name = payload_type(kind).encode()
    return b"DSSEv1 %d %s" % (len(name), name)


def parse_envelope(data: bytes) -> Envelope:
    """Take an envelope apart; ``parse_envelope(x).to_bytes() == x`` for everything that it accepts.

    :raises ProtocolError: ``bad_statement``, ``not_canonical`` or ``too_large``.
    """
    try:
        raw: EnvelopeRecord = decode(data, EnvelopeRecord, limit=ENVELOPE_BYTES)
    except ProtocolError:
        _check_base64(data)
        raise
    return envelope_of(raw)


def _check_base64(data: bytes) -> None:
    """Whether it is the base64 for which an envelope was refused, which then has an error of its own."""
    raw: _Spelled = decode(data, _Spelled, limit=ENVELOPE_BYTES)
    for text in (raw.payload, *(signature.sig for signature in raw.signatures)):
        b64decode(text, Code.BAD_STATEMENT)


def envelope_of(raw: EnvelopeRecord) -> Envelope:
    """The envelope of a record that was decoded; ``envelope_of(x).to_record() == x`` for each that it accepts.

    :raises ProtocolError: ``bad_statement`` or ``too_large``.
    """
    kind = _kind(raw.payload_type)
    payload = raw.payload
    if len(payload) > STATEMENT_BYTES:
        expected = f"<= {STATEMENT_BYTES} bytes"
        raise ProtocolError(Code.TOO_LARGE, "statement over its cap", expected=expected, got=len(payload))
    signatures = {signature.keyid: signature.sig for signature in raw.signatures}
    if [signature.keyid for signature in raw.signatures] != sorted(signatures):
        raise ProtocolError(Code.BAD_STATEMENT, "signatures are in the order of their key ids, one for each key")
    for signature in signatures.values():
        if not 0 < len(signature) <= SIGNATURE_BYTES:
            expected = f"1 to {SIGNATURE_BYTES} bytes"
            raise ProtocolError(Code.BAD_STATEMENT, "signature of no length", expected=expected, got=len(signature))
    return Envelope(kind, payload, signatures)


@lru_cache(maxsize=64)
def _kind(text: str) -> str:
    found = _TYPE.fullmatch(text)
    if found is None:
        expected = payload_type("<kind>")
        raise ProtocolError(Code.BAD_STATEMENT, "not a statement's type", expected=expected, got=text)
    return found[1]


def key_set(keys: Iterable[PublicKey]) -> dict[str, PublicKey]:
    """Keys by their ids.

    :raises ProtocolError: ``bad_key``: one key twice, be it in two forms.
    """
    found: dict[str, PublicKey] = {}
    for key in keys:
        if key.id in found:
            raise ProtocolError(Code.BAD_KEY, "one key is listed twice", expected=str(found[key.id]), got=str(key))
        found[key.id] = key
    return found


def verify(envelope: Envelope, keys: Mapping[str, PublicKey]) -> tuple[PublicKey, ...]:
    """Verify every signature of an envelope; returns the keys that signed, each once.

    :param keys: :func:`key_set` of those that may sign. A signature by any other refuses the whole: nothing is
        carried along that nobody checked.
    :raises ProtocolError: ``unknown_key``, ``bad_signature``, ``bad_sshsig``.
    """
    message = pae(envelope.kind, envelope.payload)
    signers = []
    for key_id, signature in envelope.signatures.items():
        key = keys.get(key_id)
        if key is None:
            raise ProtocolError(Code.UNKNOWN_KEY, "signed by a key that may not sign this", got=key_id)
        check(key, signature, message)
        signers.append(key)
    return tuple(signers)


def check(key: PublicKey, signature: bytes, message: bytes) -> None:
    """Check one signature in the one way that its key signs; returns nothing or raises.

    :raises ProtocolError: ``bad_signature``, ``bad_sshsig``.
    """
    if key.algorithm != FILE_KEY:
        verify_sshsig(key, signature, message)
        return
    if len(signature) != ED25519_SIGNATURE_BYTES:
        raise ProtocolError(Code.BAD_SIGNATURE, "signature of the wrong length", expected=64, got=len(signature))
    verify_ed25519(key.point, signature, message)
