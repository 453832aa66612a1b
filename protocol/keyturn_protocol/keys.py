"""Ed25519 and ML-DSA-44 public keys, strictly; C2SP key ids and vkeys.

    example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k
    └ key name ───┘ └ id ──┘ └ base64 of signature type || public key ──┘

OpenSSL accepts Ed25519 keys of low order and keys that aren't canonically encoded; such a key can make one
signature valid for many messages, or one key look like two. Both kinds are refused here, at the door.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import NodeId
from keyturn_protocol.limits import KEY_NAME_BYTES

ED25519_KEY_BYTES: Final = 32
ED25519_SIGNATURE_BYTES: Final = 64
MLDSA44_KEY_BYTES: Final = 1312
MLDSA44_SIGNATURE_BYTES: Final = 2420

_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P
_LOW_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    }
)
"""The y coordinates of the eight points whose order divides 8."""

_NOT_IN_NAMES: Final = re.compile(
    "[+\\x00-\\x20\\x7f-\\xa0\\u1680\\u2000-\\u200f\\u2028-\\u202f\\u205f-\\u206f\\u3000\\ud800-\\udfff\\ufeff]"
)
"""Plus, controls, Unicode White_Space, characters that are invisible or change direction, surrogates.

A fixed list: ``str.isspace`` and ``str.isprintable`` change with the Unicode tables of the Python version, and
a name must not be good on one machine and bad on another.
"""


class SignatureType(IntEnum):
    """C2SP signed-note signature type identifier bytes that Keyturn reads."""

    ED25519 = 0x01
    COSIGNATURE_ED25519 = 0x04
    COSIGNATURE_MLDSA44 = 0x06


_KEY_BYTES: Final = {
    SignatureType.ED25519: ED25519_KEY_BYTES,
    SignatureType.COSIGNATURE_ED25519: ED25519_KEY_BYTES,
    SignatureType.COSIGNATURE_MLDSA44: MLDSA44_KEY_BYTES,
}


@lru_cache(maxsize=16_384)
def ed25519_public_key(raw: bytes) -> Ed25519PublicKey:
    """Load an Ed25519 public key (RFC 8032 §5.1.2), refusing weak and ambiguous ones.

    :param raw: 32 bytes, little-endian y with the sign of x in the top bit.
    :raises ProtocolError: ``bad_key`` for a wrong length, a non-canonical y, no point on the curve, low order.
    """
    if len(raw) != ED25519_KEY_BYTES:
        raise ProtocolError(Code.BAD_KEY, "Ed25519 public key of the wrong length", expected=32, got=len(raw))
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    if y >= _P:
        raise ProtocolError(Code.BAD_KEY, "Ed25519 public key is not canonically encoded", got=raw.hex())
    if y in _LOW_ORDER_Y:
        raise ProtocolError(Code.BAD_KEY, "Ed25519 public key has low order", got=raw.hex())
    # x^2 = (y^2 - 1) / (d y^2 + 1) has a root exactly when it is a quadratic residue (Euler's criterion).
    x2 = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    if pow(x2, (_P - 1) // 2, _P) != 1:
        raise ProtocolError(Code.BAD_KEY, "Ed25519 public key is not a point on the curve", got=raw.hex())
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise ProtocolError(Code.BAD_KEY, f"not an Ed25519 public key: {error}", got=raw.hex()) from None


def verify_ed25519(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Check one Ed25519 signature (RFC 8032 §5.1.7, cofactorless, S < L); returns nothing or raises.

    :raises ProtocolError: ``bad_key`` or ``bad_signature``.
    """
    key = ed25519_public_key(public_key)
    try:
        key.verify(signature, message)
    except InvalidSignature:
        raise ProtocolError(Code.BAD_SIGNATURE, "Ed25519 signature does not verify") from None


def verify_mldsa44(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Check one ML-DSA-44 signature (FIPS 204, empty context); returns nothing or raises."""
    try:
        key = MLDSA44PublicKey.from_public_bytes(public_key)
    except UnsupportedAlgorithm:
        raise ProtocolError(Code.BAD_KEY, "this build of the cryptography package has no ML-DSA-44") from None
    except ValueError as error:
        raise ProtocolError(Code.BAD_KEY, f"not an ML-DSA-44 public key: {error}") from None
    try:
        key.verify(signature, message)
    except InvalidSignature:
        raise ProtocolError(Code.BAD_SIGNATURE, "ML-DSA-44 signature does not verify") from None


def node_id_of(public_key: bytes) -> NodeId:
    """The node id that an enrolment key gives: 16 bytes of SHA-256 over its SPKI DER (RFC 8410), in hex."""
    ed25519_public_key(public_key)
    spki = bytes.fromhex("302a300506032b6570032100") + public_key
    return NodeId(hashlib.sha256(spki).digest()[:16].hex())


def check_key_name(name: str) -> str:
    """C2SP signed-note: not empty, no Unicode spaces, no plus; here also no control characters and a cap."""
    if not name or len(name.encode("utf-8", "replace")) > KEY_NAME_BYTES:
        raise ProtocolError(
            Code.BAD_KEY, "key name of the wrong length", expected=f"1 to {KEY_NAME_BYTES} bytes", got=name
        )
    if _NOT_IN_NAMES.search(name):
        raise ProtocolError(Code.BAD_KEY, "key name with a space, a plus or a control character", got=name)
    return name


def key_id(name: str, kind: SignatureType, public_key: bytes) -> bytes:
    """C2SP key ID: the first 4 bytes of ``SHA-256(name || 0x0A || type || public key)``."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named public key for one signature type; ``str()`` is its vkey."""

    name: str
    kind: SignatureType
    public_key: bytes
    id: bytes = field(init=False, repr=False, compare=False)
    """The 4 bytes that a signature line starts with."""

    def __post_init__(self) -> None:
        check_key_name(self.name)
        if len(self.public_key) != _KEY_BYTES[self.kind]:
            raise ProtocolError(
                Code.BAD_KEY,
                f"{self.kind.name} public key of the wrong length",
                expected=_KEY_BYTES[self.kind],
                got=len(self.public_key),
            )
        if self.kind is not SignatureType.COSIGNATURE_MLDSA44:
            ed25519_public_key(self.public_key)
        object.__setattr__(self, "id", key_id(self.name, self.kind, self.public_key))

    def __str__(self) -> str:
        encoded = base64.b64encode(bytes([self.kind]) + self.public_key).decode()
        return f"{self.name}+{self.id.hex()}+{encoded}"


@lru_cache(maxsize=4_096)
def parse_vkey(text: str) -> VerifierKey:
    """Parse a vkey; ``str(parse_vkey(x)) == x`` for everything that it accepts.

    :raises ProtocolError: ``bad_key``; also when the key id doesn't belong to the key.
    """
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise ProtocolError(Code.BAD_KEY, "not a vkey", expected="<name>+<8 hex digits>+<base64>", got=text)
    name, id_hex, encoded = parts
    material = b64decode(encoded, Code.BAD_KEY)
    if not material or material[0] not in SignatureType.__members__.values():
        raise ProtocolError(
            Code.BAD_KEY,
            "vkey of a signature type that is not supported",
            expected="0x01, 0x04 or 0x06",
            got=material[:1].hex() or "nothing",
        )
    key = VerifierKey(name, SignatureType(material[0]), material[1:])
    if key.id.hex() != id_hex:
        raise ProtocolError(Code.BAD_KEY, "vkey with a key id of another key", expected=key.id.hex(), got=id_hex)
    return key


def b64decode(text: str, code: Code) -> bytes:
    """Standard base64 (RFC 4648 §4), canonical: padded, no other characters, no stray bits."""
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise ProtocolError(code, "not base64", got=text) from None
    if binascii.b2a_base64(data, newline=False).decode() != text:
        raise ProtocolError(code, "base64 that is not canonical", got=text)
    return data
