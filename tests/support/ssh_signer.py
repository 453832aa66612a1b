"""SSH keys in software, security keys included, and the signatures that ssh-keygen would make with them.

Nothing here imports Keyturn: it is the other side of :mod:`keyturn_protocol.sshsig`, written from OpenSSH's
PROTOCOL.sshsig and PROTOCOL.u2f. Keys come from fixed seeds and ECDSA is deterministic (RFC 6979).
"""

import base64
from hashlib import new, sha256
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_CURVES: dict[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    "nistp256": (ec.SECP256R1(), hashes.SHA256()),
    "nistp384": (ec.SECP384R1(), hashes.SHA384()),
    "nistp521": (ec.SECP521R1(), hashes.SHA512()),
}


def string(data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return len(raw).to_bytes(4, "big") + raw


def mpint(value: int) -> bytes:
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big"))


class SshKey:
    """A key of one of :data:`ALGORITHMS`. Keys of one seed and curve are one key, whatever wraps them."""

    def __init__(self, algorithm: str, seed: str = "operator", application: str = "ssh:") -> None:
        self.algorithm, self.application = algorithm, application
        self.sk = algorithm.startswith("sk-")
        self.curve = "ed25519" if "ed25519" in algorithm else algorithm.split("@")[0].rpartition("-")[2]
        secret = b"".join(sha256(f"keyturn ssh key: {seed} {self.curve} {i}".encode()).digest() for i in range(3))
        self.private: Any
        if self.curve == "ed25519":
            self.private = Ed25519PrivateKey.from_private_bytes(secret[:32])
            self.point = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        else:
            curve, self.hash = _CURVES[self.curve]
            self.private = ec.derive_private_key(int.from_bytes(secret, "big") % (1 << curve.key_size - 2) + 1, curve)
            self.point = self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    @property
    def blob(self) -> bytes:
        """The public key blob."""
        curve = b"" if self.curve == "ed25519" else string(self.curve)
        return string(self.algorithm) + curve + string(self.point) + (string(self.application) if self.sk else b"")

    @property
    def text(self) -> str:
        """A line of a .pub file, without a comment."""
        return f"{self.algorithm} {base64.b64encode(self.blob).decode()}"

    @property
    def id(self) -> str:
        return sha256(b"keyturn/public-key/v1\n" + self.curve.encode() + b"\n" + self.point).hexdigest()

    def raw(self, data: bytes) -> bytes:
        """The inner signature: 64 bytes of Ed25519, or two mpints."""
        if self.curve == "ed25519":
            return bytes(self.private.sign(data))
        der = self.private.sign(data, ec.ECDSA(self.hash, deterministic_signing=True))
        return b"".join(map(mpint, decode_dss_signature(der)))

    def sshsig(
        self,
        message: bytes,
        *,
        namespace: str = "keyturn",
        hash_algorithm: str = "sha512",
        reserved: bytes = b"",
        version: int = 1,
        flags: int = 1,
        counter: int = 5,
        named: "SshKey | None" = None,
        algorithm: str | None = None,
        inner: bytes | None = None,
        inner_tail: bytes = b"",
        tail: bytes = b"",
    ) -> bytes:
        """An SSHSIG blob over ``message``; each argument is a way to make another one.

        :param named: the key that the blob says it is by.
        :param algorithm: what the signature says it is.
        :param inner: in place of the real inner signature.
        :param inner_tail: after its end, where nothing signs it.
        """
        digest = new(hash_algorithm if hash_algorithm in ("sha256", "sha512") else "sha512", message).digest()
        data = b"SSHSIG" + b"".join(string(part) for part in (namespace, reserved, hash_algorithm, digest))
        rest = b""
        if self.sk:
            rest = bytes([flags]) + counter.to_bytes(4, "big")
            data = sha256(self.application.encode()).digest() + rest + sha256(data).digest()
        signature = (
            string(algorithm or self.algorithm) + string(self.raw(data) if inner is None else inner) + rest + inner_tail
        )
        head = b"SSHSIG" + version.to_bytes(4, "big") + string((named or self).blob)
        return head + b"".join(string(part) for part in (namespace, reserved, hash_algorithm, signature)) + tail


def armor(blob: bytes, columns: int = 70) -> str:
    encoded = base64.b64encode(blob).decode()
    lines = [encoded[at : at + columns] for at in range(0, len(encoded), columns)]
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""])
