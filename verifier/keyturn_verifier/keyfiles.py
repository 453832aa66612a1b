"""The verifier's signing keys, a PEM file each (PKCS 8, mode 0600), and what they are called."""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_protocol.api import Trust
from keyturn_protocol.ids import Deployment, lease_name, log_origin, receipt_name
from keyturn_protocol.keys import SignatureType, VerifierKey
from keyturn_protocol.root import Services
from keyturn_verifier.errors import VerifierError

LOG_KEY: Final = "log.key"
RECEIPT_KEY: Final = "receipt.key"
LEASE_KEY: Final = "lease.key"


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
    """The keys of a verifier: a cosigner's key signs nothing else, and a lease's no log."""

    log: SigningKey
    receipt: SigningKey
    lease: SigningKey | None
    """None: a state directory from before there were leases; :func:`with_lease` makes it."""

    def trust(self, name: Deployment) -> Trust:
        """What agents and auditors pin before there is a root."""
        return Trust(v=1, deployment=name, log_vkey=str(self.log.public), receipt_vkey=str(self.receipt.public))

    def services(self) -> Services | None:
        """What a root must say of this verifier; None without a lease key."""
        if self.lease is None:
            return None
        return Services(
            log_vkey=str(self.log.public), receipt_vkey=str(self.receipt.public), lease_vkey=str(self.lease.public)
        )


def generate(name: Deployment) -> Keys:
    """Three new keys."""
    log, receipt, lease = (Ed25519PrivateKey.generate() for _ in range(3))
    return Keys(_log(name, log), _receipt(name, receipt), _lease(name, lease))


def write(folder: Path, keys: Keys) -> None:
    """Write every key file; durable when this returns."""
    for file, key in ((LOG_KEY, keys.log), (RECEIPT_KEY, keys.receipt), (LEASE_KEY, keys.lease)):
        if key is not None:
            descriptor = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            _fill(descriptor, key)


def load(folder: Path, name: Deployment) -> Keys:
    """Read the key files; refuses files that others can read."""
    lease = _lease(name, _read(folder / LEASE_KEY)) if (folder / LEASE_KEY).exists() else None
    return Keys(_log(name, _read(folder / LOG_KEY)), _receipt(name, _read(folder / RECEIPT_KEY)), lease)


def current(folder: Path, name: Deployment, keys: Keys) -> Keys:
    """``keys``, or what is there now if the lease key was made, or copied here, since they were read."""
    return keys if keys.lease is not None else load(folder, name)


def with_lease(folder: Path, name: Deployment) -> Keys:
    """:func:`load`, and a lease key is made if there is none. Whoever makes it first, everybody gets that one."""
    keys = load(folder, name)
    if keys.lease is not None:
        return keys
    descriptor, made = tempfile.mkstemp(prefix=".lease-", dir=folder)  # mode 0600
    try:
        _fill(descriptor, _lease(name, Ed25519PrivateKey.generate()))
        with suppress(FileExistsError):
            (folder / LEASE_KEY).hardlink_to(made)
    finally:
        Path(made).unlink()
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # after this, the key survives; nothing names it before
    finally:
        os.close(directory)
    return replace(keys, lease=_lease(name, _read(folder / LEASE_KEY)))


def _fill(descriptor: int, key: SigningKey) -> None:
    pem = key._private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(descriptor, "wb") as out:
        out.write(pem)
        out.flush()
        os.fsync(descriptor)


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


def _log(name: Deployment, key: Ed25519PrivateKey) -> SigningKey:
    return SigningKey(VerifierKey(log_origin(name), SignatureType.ED25519, _raw(key)), key)


def _receipt(name: Deployment, key: Ed25519PrivateKey) -> SigningKey:
    return SigningKey(VerifierKey(receipt_name(name), SignatureType.COSIGNATURE_ED25519, _raw(key)), key)


def _lease(name: Deployment, key: Ed25519PrivateKey) -> SigningKey:
    return SigningKey(VerifierKey(lease_name(name), SignatureType.ED25519, _raw(key)), key)


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
