"""The verifier's signing keys, a PEM file each (PKCS 8, mode 0600), and what they are called."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_protocol.api import Trust
from keyturn_protocol.ids import Deployment, log_origin, receipt_name
from keyturn_protocol.keys import SignatureType, VerifierKey
from keyturn_verifier.errors import VerifierError

LOG_KEY: Final = "log.key"
RECEIPT_KEY: Final = "receipt.key"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its public name and type. Its ``repr`` shows no secret."""

    public: VerifierKey
    _private: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """64 bytes of Ed25519."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.public})"


@dataclass(frozen=True, slots=True)
class Keys:
    """The two keys of a verifier: a cosigner's key signs nothing else."""

    log: SigningKey
    receipt: SigningKey

    def trust(self, name: Deployment) -> Trust:
        """What agents and auditors pin."""
        return Trust(v=1, deployment=name, log_vkey=str(self.log.public), receipt_vkey=str(self.receipt.public))


def generate(name: Deployment) -> Keys:
    """Two new keys."""
    return _named(name, Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())


def write(folder: Path, keys: Keys) -> None:
    """Write both key files; durable when this returns."""
    for file, key in ((LOG_KEY, keys.log), (RECEIPT_KEY, keys.receipt)):
        pem = key._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        descriptor = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(pem)
            out.flush()
            os.fsync(descriptor)


def load(folder: Path, name: Deployment) -> Keys:
    """Read both key files; refuses files that others can read."""
    return _named(name, _read(folder / LOG_KEY), _read(folder / RECEIPT_KEY))


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        if path.stat().st_mode & 0o077:
            raise VerifierError(f"{path}: others can read this key", hint=f"chmod 600 {path}, and think of a new key")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise VerifierError(f"{path}: no usable key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise VerifierError(f"{path}: not an Ed25519 key")
    return key


def _named(name: Deployment, log: Ed25519PrivateKey, receipt: Ed25519PrivateKey) -> Keys:
    return Keys(
        SigningKey(VerifierKey(log_origin(name), SignatureType.ED25519, _raw(log)), log),
        SigningKey(VerifierKey(receipt_name(name), SignatureType.COSIGNATURE_ED25519, _raw(receipt)), receipt),
    )


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
