"""The keys of a state folder: which one signs which incarnation, while one takes over from another as well.

    key           the key of the log, or of the one before while its end has no receipt yet
    key.next      the next key, from before its announcement until it has become ``key``
    rolled.json   from which incarnation on which key signs; the moment at which the next key takes over

A host may keep the key sealed: systemd gives it to the service as a credential, and the folder has no ``key``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from keyturn_agent import files
from keyturn_agent.enrolment import Enrolment
from keyturn_agent.errors import LOST, RefusedError, StoreError
from keyturn_agent.signer import FileSigner
from keyturn_protocol.canonical import Hex32, Positive, Record, decode, encode
from keyturn_protocol.errors import ProtocolError

CREDENTIAL: Final = "keyturn-agent.key"
"""The name of the credential in ``LoadCredentialEncrypted=``."""


class Rolled(Record, frozen=True, kw_only=True):
    """The file ``rolled.json``: ``public_key`` signs incarnation ``incarnation`` and those after it."""

    v: Literal[1]
    incarnation: Positive
    public_key: Hex32


class Keyring:
    """The keys of one enrolled host."""

    def __init__(self, folder: Path, enrolment: Enrolment, environ: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._enrolled = enrolment.public_key
        self._environ = environ
        self._rolled = self._read()

    @property
    def sealed(self) -> bool:
        """Whether the key is a credential that only the service manager can change."""
        return not (self._folder / "key").exists()

    def signer(self, incarnation: int) -> FileSigner:
        """The key of an incarnation: of the newest log, or of the one that comes next.

        :raises StoreError: ``bad_state``: no key here is that one.
        """
        rolled = self._rolled
        if rolled is None:
            return self._find(self._enrolled)
        if incarnation >= rolled.incarnation:
            return self._find(rolled.public_key)
        # The log before the roll: its key is still there, or its end was receipted and nothing signs it any more.
        return FileSigner.load(self._folder / "key")

    def next(self) -> FileSigner:
        """The key that takes over, made on first use; when this returns it survives."""
        path = self._folder / "key.next"
        with files.doing(f"looking for {path}"):
            there = path.exists()
        if not there:
            FileSigner.generate().save(path)
        return FileSigner.load(path)

    def roll(self, incarnation: int, public_key: bytes) -> None:
        """Let the next key sign from ``incarnation`` on. Done again, it changes nothing."""
        rolled = Rolled(v=1, incarnation=incarnation, public_key=public_key.hex())
        with files.doing(f"writing {self._folder}/rolled.json"):
            # After this the next key has taken over; the old one is kept for what it signed last.
            files.replace(self._folder / "rolled.json", encode(rolled))
        self._rolled = rolled

    def cancel(self) -> None:
        """The end of the log before the roll isn't taken: the old key signs on, and the next one waits again."""
        with files.doing(f"removing {self._folder}/rolled.json"):
            (self._folder / "rolled.json").unlink(missing_ok=True)
            # After this the old key signs again.
            files.fsync_folder(self._folder)
        self._rolled = None

    def drop_old(self) -> bool:
        """The end of the log before the roll is receipted: only the new key stays. Returns whether one went."""
        path = self._folder / "key.next"
        with files.doing(f"removing the old key in {self._folder}"):
            if self._rolled is None or not path.exists():
                return False
            if FileSigner.load(path).public_key.hex() != self._rolled.public_key:
                return False
            path.rename(self._folder / "key")
            # After this the old key is gone.
            files.fsync_folder(self._folder)
        return True

    def _find(self, public_key: str) -> FileSigner:
        for name in ("key", "key.next"):
            if (self._folder / name).exists():
                signer = FileSigner.load(self._folder / name)
                if signer.public_key.hex() == public_key:
                    return signer
        if (folder := self._environ.get("CREDENTIALS_DIRECTORY")) and (Path(folder) / CREDENTIAL).exists():
            signer = FileSigner.load(Path(folder) / CREDENTIAL, credential=True)
            if signer.public_key.hex() == public_key:
                return signer
        if self.sealed:
            raise StoreError(
                "no_key",
                f"{self._folder}/key is not there, and no key was given as the credential {CREDENTIAL}",
                hint=f"a sealed key is there for the service only (LoadCredentialEncrypted= in its unit); else {LOST}",
            )
        raise StoreError(
            "bad_state",
            # Which of them was changed can't be told from here.
            f"{self._folder}/key is not the key of this log, which {self._folder}/config.json or rolled.json names "
            f"(expected {public_key})",
            hint=LOST,
        )

    def _read(self) -> Rolled | None:
        try:
            rolled: Rolled = decode((self._folder / "rolled.json").read_bytes(), Rolled)
        except FileNotFoundError:
            return None
        except (OSError, ProtocolError) as error:
            raise StoreError("bad_state", f"reading {self._folder}/rolled.json: {error}", hint=LOST) from error
        return rolled


def refuse_sealed(keyring: Keyring) -> None:
    """:raises RefusedError: a key that systemd holds can't be replaced from here."""
    if keyring.sealed:
        raise RefusedError(
            "sealed_key",
            "the key is a sealed credential and can't be rolled in place",
            hint="unseal it into the state folder as its file key, mode 0600, roll, and seal the new one",
        )
