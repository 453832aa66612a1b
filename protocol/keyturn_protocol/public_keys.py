"""Public keys of people, strictly: Ed25519 keys in files, and the SSH keys that ``ssh-keygen -Y sign`` signs with.

    ed25519 UlgJdJKITmse4wlZqE3z3Hzm+ZqXI0dwiLGY5OA5bIg=
    ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFJYCXSSiE5rHuMJWahN89x85vmalyNHcIixmOTgOWyI
    └ algorithm: how it signs ┘ └ base64: the 32 bytes, or the SSH key blob

The second form is a line of ``~/.ssh/*.pub`` without its comment. How a key signs is fixed by this text. Who it is,
is its curve and point: one key in two forms is one key and has one :attr:`PublicKey.id`.
"""

import base64
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Final, Literal, assert_never

from cryptography.hazmat.primitives.asymmetric import ec

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.keys import b64decode, ed25519_public_key
from keyturn_protocol.limits import PUBLIC_KEY_V1

Curve = Literal["ed25519", "nistp256", "nistp384", "nistp521"]
Algorithm = Literal[
    "ed25519",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
]

FILE_KEY: Final = "ed25519"
"""Signs the message itself; every other algorithm signs an SSHSIG over it."""
CURVES: Final[dict[str, Curve]] = {
    "ed25519": "ed25519",
    "ssh-ed25519": "ed25519",
    "ecdsa-sha2-nistp256": "nistp256",
    "ecdsa-sha2-nistp384": "nistp384",
    "ecdsa-sha2-nistp521": "nistp521",
    "sk-ssh-ed25519@openssh.com": "ed25519",
    "sk-ecdsa-sha2-nistp256@openssh.com": "nistp256",
}
"""Every algorithm that is read. RSA and DSA, certificates and WebAuthn's own form are refused."""
FIELD_BYTES: Final[dict[Curve, int]] = {"nistp256": 32, "nistp384": 48, "nistp521": 66}
_CURVE: Final[dict[Curve, ec.EllipticCurve]] = {
    "nistp256": ec.SECP256R1(),
    "nistp384": ec.SECP384R1(),
    "nistp521": ec.SECP521R1(),
}
_TEXT_CHARS: Final = 1_024
_APPLICATION_BYTES: Final = 255
_UINT32: Final = struct.Struct(">I")


class Wire:
    """Reads the SSH wire format (RFC 4251 §5) to its last byte."""

    def __init__(self, data: bytes, code: Code, what: str) -> None:
        self._data, self._at, self._code, self._what = data, 0, code, what

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self._at + count
        if end > len(self._data):
            raise ProtocolError(self._code, f"{self._what} is cut short", expected=f"{end} bytes", got=len(self._data))
        self._at, start = end, self._at
        return self._data[start:end]

    def uint32(self) -> int:
        value: int = _UINT32.unpack(self.take(4))[0]
        return value

    def string(self) -> bytes:
        return self.take(self.uint32())

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._data):
            raise ProtocolError(self._code, f"{self._what} goes on after its end", got=len(self._data) - self._at)


def wire_string(data: bytes) -> bytes:
    """``data`` as an SSH string: its length in 32 bits, big-endian, then itself."""
    return _UINT32.pack(len(data)) + data


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A checked key. ``str()`` is its text."""

    algorithm: Algorithm
    point: bytes
    """32 bytes of Ed25519 (RFC 8032), or an uncompressed point: 0x04, x, y (SEC 1 §2.3.3)."""
    application: str | None = None
    """Of a key in a security key (``sk-…``): what it was made for, such as ``ssh:``."""
    id: str = field(init=False, compare=False)
    """64 hex digits of curve and point: what counts as one key, whatever it is wrapped in."""

    def __post_init__(self) -> None:
        check_point(self.curve, self.point)
        if (self.application is not None) != self.algorithm.startswith("sk-"):
            raise ProtocolError(Code.BAD_KEY, "a security key's key, and no other, has an application")
        digest = sha256(PUBLIC_KEY_V1 + self.curve.encode() + b"\n" + self.point)
        object.__setattr__(self, "id", digest.hexdigest())

    @property
    def curve(self) -> Curve:
        return CURVES[self.algorithm]

    @property
    def blob(self) -> bytes:
        """What the base64 of the text holds; for an SSH key its public key blob (RFC 4253 §6.6, RFC 5656 §3.1)."""
        name = wire_string(self.algorithm.encode())
        tail = b"" if self.application is None else wire_string(self.application.encode())
        match self.curve:
            case "ed25519":
                return self.point if self.algorithm == FILE_KEY else name + wire_string(self.point) + tail
            case "nistp256" | "nistp384" | "nistp521":
                return name + wire_string(self.curve.encode()) + wire_string(self.point) + tail
            case _:
                assert_never(self.curve)

    def __str__(self) -> str:
        return f"{self.algorithm} {base64.b64encode(self.blob).decode()}"


@lru_cache(maxsize=4_096)
def parse_public_key(text: str) -> PublicKey:
    """Parse a key's text; ``str(parse_public_key(x)) == x`` for everything that it accepts.

    :raises ProtocolError: ``bad_key``, also for algorithms that are not read here.
    """
    if len(text) > _TEXT_CHARS:
        raise ProtocolError(Code.BAD_KEY, "public key is too long", expected=f"<= {_TEXT_CHARS}", got=len(text))
    name, space, encoded = text.partition(" ")
    if name not in CURVES or not space:
        raise ProtocolError(
            Code.BAD_KEY,
            "not a public key that signs statements",
            expected="<algorithm> <base64>, the algorithm one of " + ", ".join(CURVES),
            got=text,
        )
    key = _of_blob(name, b64decode(encoded, Code.BAD_KEY))  # type: ignore[arg-type]
    if str(key) != text:
        raise ProtocolError(Code.BAD_KEY, "public key that is not canonically encoded", expected=str(key), got=text)
    return key


def _of_blob(algorithm: Algorithm, blob: bytes) -> PublicKey:
    if algorithm == FILE_KEY:
        return PublicKey(algorithm, blob)
    wire = Wire(blob, Code.BAD_KEY, "SSH public key")
    _same("SSH public key of another algorithm", wire.string(), algorithm.encode())
    if CURVES[algorithm] != "ed25519":
        _same("SSH public key on another curve", wire.string(), CURVES[algorithm].encode())
    point = wire.string()
    application = _application(wire.string()) if algorithm.startswith("sk-") else None
    wire.end()
    return PublicKey(algorithm, point, application)


def _same(problem: str, got: bytes, expected: bytes) -> None:
    if got != expected:
        raise ProtocolError(Code.BAD_KEY, problem, expected=expected.decode(), got=got)


def _application(data: bytes) -> str:
    """A credential that was made for a web site signs what that site shows it: only those made for SSH are read."""
    visible = all(0x21 <= byte <= 0x7E for byte in data)
    if not data.startswith(b"ssh:") or len(data) > _APPLICATION_BYTES or not visible:
        raise ProtocolError(Code.BAD_KEY, "security key made for another use", expected="ssh:…", got=data)
    return data.decode()


def check_point(curve: Curve, point: bytes) -> None:
    """That a point is one of its curve, canonically encoded and not of low order.

    :raises ProtocolError: ``bad_key``.
    """
    if curve == "ed25519":
        ed25519_public_key(point)
    else:
        ecdsa_key(curve, point)


@lru_cache(maxsize=4_096)
def ecdsa_key(curve: Curve, point: bytes) -> ec.EllipticCurvePublicKey:
    """Load an uncompressed point of a NIST curve.

    :raises ProtocolError: ``bad_key`` for another form, coordinates beyond the field, no point of the curve.
    """
    size = 1 + 2 * FIELD_BYTES[curve]
    if len(point) != size or point[0] != 4:
        got = f"{len(point)} bytes, {point[:1].hex() or 'none'} first"
        raise ProtocolError(Code.BAD_KEY, f"not a point of {curve}", expected=f"0x04 and {size - 1} bytes", got=got)
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE[curve], point)
    except ValueError:
        raise ProtocolError(Code.BAD_KEY, f"not a point of {curve}", got=point.hex()) from None
