"""SSHSIG: what ``ssh-keygen -Y sign -n keyturn`` writes, checked without OpenSSH.

    -----BEGIN SSH SIGNATURE-----
    U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgUlgJdJKITmse4wlZqE3z3Hzm+Z
    qXI0dwiLGY5OA5bIgAAAAHa2V5dHVybgAAAAAAAAAGc2hhNTEyAAAAUwAAAAtzc2gtZWQy
    …
    -----END SSH SIGNATURE-----

The base64 holds ``"SSHSIG"``, a version, and SSH strings: public key, namespace, reserved (empty), hash algorithm,
signature. What is signed is ``"SSHSIG"``, namespace, reserved, hash algorithm and the hash of the message
(OpenSSH PROTOCOL.sshsig). A key in a security key signs over that: the hash of its application, flags and a counter
(OpenSSH PROTOCOL.u2f).
"""

import base64
import textwrap
from dataclasses import dataclass
from hashlib import sha256, sha512
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.keys import ED25519_SIGNATURE_BYTES, b64decode, verify_ed25519
from keyturn_protocol.limits import SIGNATURE_BYTES, SSHSIG_NAMESPACE
from keyturn_protocol.public_keys import FIELD_BYTES, FILE_KEY, Curve, PublicKey, Wire, ecdsa_key, wire_string

_MAGIC: Final = b"SSHSIG"
_VERSION: Final = 1
_BEGIN: Final = "-----BEGIN SSH SIGNATURE-----\n"
_END: Final = "-----END SSH SIGNATURE-----\n"
_LINE: Final = 70
"""Columns of base64, as ssh-keygen folds it."""
_HASHES: Final = {b"sha256": sha256, b"sha512": sha512}
_ECDSA: Final[dict[Curve, hashes.HashAlgorithm]] = {
    "nistp256": hashes.SHA256(),
    "nistp384": hashes.SHA384(),
    "nistp521": hashes.SHA512(),
}
USER_PRESENT: Final = 0x01
"""Somebody touched the security key (WebAuthn §6.1)."""
_MORE_DATA: Final = 0xC0
"""Flags that announce attested credentials or extensions: bytes that an SSH signature doesn't carry."""


@dataclass(frozen=True, slots=True)
class SshSignature:
    """The parts of a signature, not yet verified."""

    public_key: bytes
    """The SSH public key blob."""
    hash_algorithm: bytes
    signature: bytes
    """The SSH signature blob."""

    def to_bytes(self) -> bytes:
        return b"".join(
            (
                _MAGIC,
                _VERSION.to_bytes(4, "big"),
                wire_string(self.public_key),
                wire_string(SSHSIG_NAMESPACE),
                wire_string(b""),
                wire_string(self.hash_algorithm),
                wire_string(self.signature),
            )
        )


def parse_sshsig(data: bytes) -> SshSignature:
    """Take an SSHSIG apart; ``parse_sshsig(x).to_bytes() == x`` for everything that it accepts.

    :raises ProtocolError: ``bad_sshsig``, also for another namespace; ``too_large``.
    """
    if len(data) > SIGNATURE_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "signature over its cap", expected=f"<= {SIGNATURE_BYTES}", got=len(data))
    wire = Wire(data, Code.BAD_SSHSIG, "SSH signature")
    if (magic := wire.take(len(_MAGIC))) != _MAGIC:
        raise ProtocolError(Code.BAD_SSHSIG, "not an SSH signature", expected=_MAGIC, got=magic)
    if (version := wire.uint32()) != _VERSION:
        raise ProtocolError(Code.BAD_SSHSIG, "SSH signature of another version", expected=_VERSION, got=version)
    public_key, namespace, reserved = wire.string(), wire.string(), wire.string()
    hash_algorithm, signature = wire.string(), wire.string()
    wire.end()
    if namespace != SSHSIG_NAMESPACE:
        raise ProtocolError(
            Code.BAD_SSHSIG, "SSH signature in another namespace", expected=SSHSIG_NAMESPACE, got=namespace
        )
    if reserved:
        raise ProtocolError(Code.BAD_SSHSIG, "SSH signature with a reserved field", expected="nothing", got=reserved)
    if hash_algorithm not in _HASHES:
        raise ProtocolError(
            Code.BAD_SSHSIG, "SSH signature over another hash", expected="sha256 or sha512", got=hash_algorithm
        )
    return SshSignature(public_key, hash_algorithm, signature)


def format_armor(data: bytes) -> str:
    """An SSHSIG as ``ssh-keygen`` writes it into a file."""
    lines = textwrap.wrap(base64.b64encode(data).decode(), _LINE)
    return _BEGIN + "".join(f"{line}\n" for line in lines) + _END


def parse_armor(text: str) -> bytes:
    """The SSHSIG in a file that ``ssh-keygen`` wrote; ``format_armor(parse_armor(x)) == x``.

    :raises ProtocolError: ``bad_sshsig`` or ``too_large``.
    """
    if len(text) > 2 * SIGNATURE_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "signature over its cap", expected=f"<= {SIGNATURE_BYTES}", got=len(text))
    if not text.startswith(_BEGIN) or not text.endswith(_END) or len(text) < len(_BEGIN) + len(_END):
        raise ProtocolError(Code.BAD_SSHSIG, "not an armored SSH signature", expected=_BEGIN.strip(), got=text[:64])
    data = b64decode(text[len(_BEGIN) : -len(_END)].replace("\n", ""), Code.BAD_SSHSIG)
    if format_armor(data) != text:
        raise ProtocolError(Code.BAD_SSHSIG, f"armor is not folded at {_LINE} columns")
    return data


def signed_data(message: bytes, hash_algorithm: bytes) -> bytes:
    """What a key signs for an SSHSIG over ``message`` (PROTOCOL.sshsig §3).

    :param hash_algorithm: ``sha256`` or ``sha512``.
    """
    digest = _HASHES[hash_algorithm](message).digest()
    return _MAGIC + b"".join(map(wire_string, (SSHSIG_NAMESPACE, b"", hash_algorithm, digest)))


def verify_sshsig(key: PublicKey, signature: bytes, message: bytes) -> None:
    """Check an SSHSIG over ``message`` by ``key``; returns nothing or raises.

    :param key: an SSH key; the one in the signature must be the same, to the byte.
    :raises ProtocolError: ``bad_sshsig``, ``bad_signature``, ``too_large``.
    """
    if key.algorithm == FILE_KEY:
        raise ProtocolError(Code.BAD_SIGNATURE, "a file key makes no SSH signatures", got=str(key))
    parsed = parse_sshsig(signature)
    if parsed.public_key != key.blob:
        raise ProtocolError(
            Code.BAD_SIGNATURE, "SSH signature by another key", expected=key.blob.hex(), got=parsed.public_key.hex()
        )
    data = signed_data(message, parsed.hash_algorithm)
    wire = Wire(parsed.signature, Code.BAD_SSHSIG, "SSH signature blob")
    if (name := wire.string()) != key.algorithm.encode():
        raise ProtocolError(
            Code.BAD_SSHSIG, "SSH signature of another algorithm than its key", expected=key.algorithm, got=name
        )
    inner = wire.string()
    if key.application is not None:
        flags, counter = wire.take(1), wire.take(4)
        _check_flags(flags[0])
        data = b"".join((sha256(key.application.encode()).digest(), flags, counter, sha256(data).digest()))
    wire.end()
    if key.curve == "ed25519":
        if len(inner) != ED25519_SIGNATURE_BYTES:
            raise ProtocolError(Code.BAD_SIGNATURE, "signature of the wrong length", expected=64, got=len(inner))
        verify_ed25519(key.point, inner, data)
    else:
        verify_ecdsa(key, inner, data)


def _check_flags(flags: int) -> None:
    if not flags & USER_PRESENT:
        raise ProtocolError(Code.BAD_SIGNATURE, "nobody touched the security key", expected="flag 0x01", got=flags)
    if flags & _MORE_DATA:
        raise ProtocolError(Code.BAD_SSHSIG, "flags that announce data which isn't there", got=f"{flags:#04x}")


def verify_ecdsa(key: PublicKey, pair: bytes, message: bytes) -> None:
    """Check an ECDSA signature over ``message`` with the hash of its curve; returns nothing or raises.

    :param pair: two mpints, r and s (RFC 5656 §3.1.2).
    :raises ProtocolError: ``bad_sshsig``, ``bad_signature``.
    """
    wire = Wire(pair, Code.BAD_SSHSIG, "ECDSA signature")
    r, s = (_mpint(wire.string(), FIELD_BYTES[key.curve]) for _ in range(2))
    wire.end()
    try:
        ecdsa_key(key.curve, key.point).verify(encode_dss_signature(r, s), message, ec.ECDSA(_ECDSA[key.curve]))
    except InvalidSignature:
        raise ProtocolError(Code.BAD_SIGNATURE, "ECDSA signature does not verify") from None


def _mpint(data: bytes, size: int) -> int:
    """A positive integer of at most ``size`` bytes, in its shortest form (RFC 4251 §5)."""
    shortest = data[:1] != b"\0" or (len(data) > 1 and data[1] >= 0x80)
    if not data or data[0] >= 0x80 or not shortest or len(data.lstrip(b"\0")) > size:
        raise ProtocolError(Code.BAD_SSHSIG, "not a positive integer in its shortest form", got=data)
    return int.from_bytes(data, "big")
