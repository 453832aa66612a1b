"""The log's key as a file: 32 bytes of Ed25519 seed, for nobody but the agent's user."""

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from keyturn_agent import files
from keyturn_agent.errors import LOST, StoreError

_SEED_BYTES: Final = 32


class FileSigner:
    """A :class:`~keyturn_agent.ports.Signer` whose key is in memory, and in a file once it was saved."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public_key = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def __repr__(self) -> str:
        return f"FileSigner({self._public_key.hex()})"

    @property
    def public_key(self) -> bytes:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    @classmethod
    def generate(cls) -> "FileSigner":
        """A new key, in memory only."""
        return cls(Ed25519PrivateKey.generate())

    def save(self, path: Path) -> None:
        """Write the key, mode 0600; refuses to replace one.

        :raises StoreError: also if there is a key already.
        """
        seed = self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        with files.doing(f"writing the key {path}"):
            files.create(path, seed)

    @classmethod
    def load(cls, path: Path, *, credential: bool = False) -> "FileSigner":
        """Read a key; refuses one that others may read.

        :param credential: systemd gave it to this service. Where it does so by an access control list, the list's
            mask stands where a group's permissions would.
        :raises StoreError: ``no_key``, ``key_mode`` or ``bad_key``.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                seed = os.read(fd, _SEED_BYTES + 1)
            finally:
                files.close(fd)
        except OSError as error:
            raise StoreError("no_key", f"reading the key {path}: {error}", hint=LOST) from error
        if mode & (0o037 if credential else 0o077):
            raise StoreError(
                "key_mode",
                f"others may read the key {path} (expected mode 0600, got {mode:04o})",
                hint="if others could have read it, the key is lost: enrol this host anew in another folder",
            )
        if len(seed) != _SEED_BYTES:
            raise StoreError("bad_key", f"{path} is not a key (expected {_SEED_BYTES} bytes)", hint=LOST)
        return cls(Ed25519PrivateKey.from_private_bytes(seed))
