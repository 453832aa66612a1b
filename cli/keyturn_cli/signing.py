"""Signing statements: with an Ed25519 key in a file, or with any SSH key by calling ``ssh-keygen``.

What a key may be is :mod:`keyturn_protocol.public_keys`; every signature is checked before it is written anywhere.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_protocol.dsse import Envelope, pae
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import SSHSIG_NAMESPACE
from keyturn_protocol.public_keys import FILE_KEY, PublicKey, parse_public_key
from keyturn_protocol.sshsig import parse_armor

_KEY_BYTES: Final = 65_536
_PEM: Final = b"-----BEGIN PRIVATE KEY-----"
_OPENSSH: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that can sign, here or in ``ssh-keygen``'s hands. Its ``repr`` shows no secret."""

    public: PublicKey
    path: Path
    private: Ed25519PrivateKey | None = None
    """None: ``ssh-keygen`` finds it, in the file, an agent or a security key."""

    def __repr__(self) -> str:
        return f"SigningKey({self.public})"

    def sign(self, envelope: Envelope) -> Envelope:
        """The envelope with one signature more.

        :raises CliError: ``ssh-keygen`` didn't sign.
        """
        message = pae(envelope.kind, envelope.payload)
        signature = _by_ssh(self.path, message) if self.private is None else self.private.sign(message)
        return envelope.with_signature(self.public, signature)


def make_key(path: Path) -> PublicKey:
    """A new Ed25519 key in a PEM file (PKCS 8, mode 0600), which OpenSSL reads too.

    :raises CliError: there is a file already.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(pem)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}", exit=Exit.USAGE) from None
    return _public(key)


def read_key(path: Path) -> SigningKey:
    """The key that a file holds or names: a PEM file, an SSH private key, or an SSH ``.pub`` file.

    :raises CliError: it is none that signs statements, or others can read it.
    """
    data = read_capped(path, _KEY_BYTES, "--key")
    if data.startswith(_PEM):
        return _file_key(path, data)
    if data.startswith(_OPENSSH):
        beside = path.with_name(path.name + ".pub")
        line = read_capped(beside, _KEY_BYTES, "--key") if beside.exists() else _derived(path)
        return SigningKey(_ssh_key(line, path), path)
    return SigningKey(_ssh_key(data, path), path)


def _file_key(path: Path, data: bytes) -> SigningKey:
    if path.stat().st_mode & 0o077:
        raise CliError(f"--key {path}: others can read this key", exit=Exit.USAGE, hint=f"chmod 600 {path}")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise CliError(f"--key {path}: no usable key: {error}", exit=Exit.USAGE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CliError(f"--key {path}: not an Ed25519 key", exit=Exit.USAGE, hint="keyturn key new makes one")
    return SigningKey(_public(key), path, key)


def _public(key: Ed25519PrivateKey) -> PublicKey:
    return PublicKey(FILE_KEY, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def _ssh_key(line: bytes, path: Path) -> PublicKey:
    """The key in the line of a .pub file; what follows it is a comment."""
    text = " ".join(line.decode("ascii", "replace").split()[:2])
    try:
        return parse_public_key(text)
    except ProtocolError as error:
        raise CliError(f"--key {path}: {error}", exit=Exit.USAGE) from None


def _derived(path: Path) -> bytes:
    return _ssh_keygen(["-y", "-f", str(path)], b"")


def _by_ssh(path: Path, message: bytes) -> bytes:
    """An SSHSIG. ``ssh-keygen`` asks for a passphrase, a PIN or a touch by itself."""
    armor = _ssh_keygen(["-Y", "sign", "-n", SSHSIG_NAMESPACE.decode(), "-f", str(path)], message)
    return parse_armor(armor.decode("ascii", "replace"))


def _ssh_keygen(arguments: list[str], message: bytes) -> bytes:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise CliError("ssh-keygen is not here, which signs with SSH keys", exit=Exit.USAGE, hint="install OpenSSH")
    done = subprocess.run([program, *arguments], input=message, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise CliError(
            "ssh-keygen did not sign", exit=Exit.UNDECIDED, hint="it says why above; is the key in the agent?"
        )
    return done.stdout
