"""The root that a host pinned, and the newest of everything that it has seen under it; what falls behind is refused.

root.json        the pinned hash; the newest root and policy; how far the roots and policies, and each run, were seen
authority.json   the bundle of roots and policies that this rests on, as the verifier served it

A verifier, or a backup of one, can leave out the end of what was said: a veto, a suspension, a root that calls a key
compromised. It can't take back what this host has seen. Both files are written before anything is done by them.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec

from keyturn_agent import files
from keyturn_agent.errors import LOST, RefusedError, StoreError, UsageError
from keyturn_protocol.canonical import Hex32, Record, UInt, decode, encode
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import PERMIT_BUNDLE_BYTES
from keyturn_protocol.permit import (
    AUTHORITY,
    Mark,
    Opened,
    PermitBundle,
    Versions,
    check_mark,
    check_versions,
    mark,
    open_permit_bundle,
    parse_permit_bundle,
    versions,
)

RUNS: Final = 256
"""Runs of which is kept how far they were seen; the one that was looked at longest ago goes first."""
_SEEN: Final = "root.json"
_AUTHORITY: Final = "authority.json"
_FILE_BYTES: Final = 256 * 1024


class SeenRun(Record, frozen=True, kw_only=True):
    """How far a run was seen, and its highest epoch."""

    run: Hex32
    mark: Mark
    epoch: UInt


class Seen(Record, frozen=True, kw_only=True):
    """The file ``root.json``; ``runs`` in the order in which they were looked at last."""

    v: Literal[1]
    root_sha256: Hex32
    versions: Versions
    authority: Mark
    runs: list[SeenRun]


class Pin:
    """A pinned root with its memory."""

    def __init__(self, folder: Path, deployment: str, seen: Seen, authority: Opened) -> None:
        self._folder = folder
        self._deployment = deployment
        self._seen = seen
        self.authority = authority
        """The newest roots and policies that were seen."""

    @classmethod
    def first(cls, folder: Path, deployment: str, root_sha256: str, data: bytes) -> "Pin":
        """Begin under a root: nothing was seen before. Nothing is written until :meth:`keep`.

        :param data: what ``GET /v1/authority`` answered.
        :raises ProtocolError: ``bad_permit`` and the like: not a chain with this root in it.
        """
        opened = open_permit_bundle(parse_permit_bundle(data), root_sha256, deployment)
        seen = Seen(
            v=1,
            root_sha256=root_sha256,
            versions=versions(opened.authority),
            authority=mark(opened.bundle, run=False),
            runs=[],
        )
        return cls(folder, deployment, seen, opened)

    @classmethod
    def load(cls, folder: Path, deployment: str, root_sha256: str) -> "Pin":
        """As it was kept.

        :raises StoreError: ``bad_state``: the files are gone, damaged, or of another root.
        """
        try:
            seen: Seen = decode((folder / _SEEN).read_bytes(), Seen, limit=_FILE_BYTES)
            if seen.root_sha256 != root_sha256:
                raise StoreError("bad_state", f"{folder}/{_SEEN} is of another root", hint=LOST)
            bundle = parse_permit_bundle((folder / _AUTHORITY).read_bytes())
            opened = open_permit_bundle(bundle, root_sha256, deployment)
            check_versions(opened.authority, seen.versions)
            check_mark(opened.bundle, seen.authority, run=False)
        except (OSError, ProtocolError) as error:
            raise StoreError("bad_state", f"reading {folder}/{_SEEN} and {_AUTHORITY}: {error}", hint=LOST) from error
        return cls(folder, deployment, seen, opened)

    @property
    def root_sha256(self) -> str:
        """The hash that was pinned, of some version of the root."""
        return self._seen.root_sha256

    @property
    def versions(self) -> Versions:
        return self._seen.versions

    def epoch(self, run: str) -> int:
        """The highest epoch of a run that was seen."""
        return next((seen.epoch for seen in self._seen.runs if seen.run == run), 0)

    def index(self, run: str) -> int | None:
        """The last leaf about a run, or about roots and policies, that was seen; None if the run never was."""
        found = next((seen.mark.index for seen in self._seen.runs if seen.run == run), None)
        return None if found is None else max(found, self._seen.authority.index)

    def keep(self) -> None:
        """Write both files; a crash between them leaves an authority that is newer than what is remembered of it."""
        with files.doing(f"writing {self._folder}/{_SEEN}"):
            files.replace(self._folder / _AUTHORITY, self.authority.bundle.to_bytes())
            # After this nothing older is believed.
            files.replace(self._folder / _SEEN, encode(self._seen))

    def open(self, data: bytes) -> Opened:
        """What a bundle proves under the pinned root; takes time, and touches nothing.

        :raises ProtocolError: it proves nothing.
        """
        if len(data) > PERMIT_BUNDLE_BYTES:
            raise RefusedError("too_large", f"a permit bundle over {PERMIT_BUNDLE_BYTES} bytes")
        return open_permit_bundle(parse_permit_bundle(data), self.root_sha256, self._deployment)

    def check(self, opened: Opened) -> None:
        """That a bundle is no older than what was seen.

        :raises ProtocolError: it is older, or says something else about what was seen.
        """
        check_versions(opened.authority, self._seen.versions)
        check_mark(opened.bundle, self._seen.authority, run=False)
        before = self._before(opened.bundle.run)
        if before is not None:
            check_mark(opened.bundle, before.mark, run=True)

    def _before(self, run: str | None) -> SeenRun | None:
        return next((seen for seen in self._seen.runs if seen.run == run), None)

    def take(self, opened: Opened) -> None:
        """Believe a bundle that is no older than what was seen; when this returns that survives.

        :raises ProtocolError: as :meth:`check`: nothing changes.
        """
        self.check(opened)
        bundle, run, runs = opened.bundle, opened.bundle.run, self._seen.runs
        before = self._before(run)
        if opened.run is not None:
            known = SeenRun(
                run=opened.run.hash,
                mark=mark(bundle, run=True),
                epoch=max(opened.run.epoch, 0 if before is None else before.epoch),
            )
            runs = [*(seen for seen in runs if seen.run != run), known][-RUNS:]
        seen = msgspec.structs.replace(
            self._seen, versions=versions(opened.authority), authority=mark(bundle, run=False), runs=runs
        )
        if seen == self._seen:
            return
        newer = seen.authority != self._seen.authority
        self._seen = seen
        if newer:
            self.authority = _alone(opened, self)
            self.keep()
        else:
            with files.doing(f"writing {self._folder}/{_SEEN}"):
                files.replace(self._folder / _SEEN, encode(self._seen))


def _alone(opened: Opened, pin: Pin) -> Opened:
    """The roots and policies of a bundle without its run."""
    said = tuple(one for one in opened.bundle.statements if one.envelope.kind in AUTHORITY)
    return pin.open(PermitBundle(opened.bundle.deployment, None, said).to_bytes())


def deployment_of(data: bytes) -> str:
    """Which deployment a bundle says that it is of; what it is of, its root has to say.

    :raises ProtocolError: not a bundle.
    """
    return parse_permit_bundle(data).deployment


def root_argument(text: str) -> str:
    """The hash of ``--root sha256:<hex>``.

    :raises UsageError: ``bad_root``.
    """
    kind, _, digest = text.partition(":")
    if kind != "sha256" or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise UsageError("bad_root", f"--root: expected sha256: and 64 hex digits (got {text})")
    return digest
