"""What the gate keeps: grants, the modes that it found, a release, and the last events. One file, one lock.

What opens a chip is on disk before the chip is opened. What closes one is done all the same where the disk fails: a
gate that is started again then does it once more. A file of another boot ends all grants and a release: chips reset
their mode at a reboot, and who ran is gone. A file that can't be read is set aside, and everything is locked.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from keyturn_gate import host
from keyturn_gate.errors import GateError
from keyturn_gate.grants import Held
from keyturn_gate.messages import Event, Released
from keyturn_gate.strays import Look, Process

logger = logging.getLogger(__name__)

EVENTS: Final = 512
"""So many are kept; whoever looks less often misses the oldest, and sees it by their numbers."""
_NAME: Final = "gate.json"


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file ``gate.json``."""

    v: Literal[1]
    boot_id: str
    seq: int
    grants: dict[str, Held]
    found: dict[str, int]
    released: Released | None
    events: list[Event]
    before: dict[str, list[Process]] = {}
    """By job: who computed on its chips before they were opened for it."""

    @property
    def wonders(self) -> bool:
        """Whether a grant has still to be told who computes on its chips: one that is new, or over."""
        return any(job not in self.before or grant.closed_us is not None for job, grant in self.grants.items())


class Keeper:
    """The gate's memory; may be used from several threads.

    :param folder: made if it isn't there, for root alone.
    """

    def __init__(
        self,
        folder: Path,
        boot_id: Callable[[], str] = host.boot_id,
        boottime_us: Callable[[], int] = host.boottime_us,
        wall_us: Callable[[], int] = host.wall_us,
    ) -> None:
        self._path = folder / _NAME
        self.boot_id = boot_id()
        self._boottime_us = boottime_us
        self._wall_us = wall_us
        self._lock = threading.RLock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kept = self._load()

    def _load(self) -> Kept:
        nothing = Kept(v=1, boot_id=self.boot_id, seq=0, grants={}, found={}, released=None, events=[])
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except FileNotFoundError:
            self._kept = nothing
            self._save(nothing)
            return nothing
        except msgspec.MsgspecError as error:
            logger.error("%s was damaged and is set aside, everything is locked: %s", self._path, error)
            self._path.replace(self._path.with_suffix(".damaged"))
            self._kept = nothing
            self.note("state_lost", None, "the gate's state was damaged: all grants ended")
            return self._kept
        self._kept = kept
        if kept.boot_id != self.boot_id:
            # Modes were reset with the boot: what is found from here on is what there is to restore.
            self._save(
                msgspec.structs.replace(kept, boot_id=self.boot_id, grants={}, found={}, released=None, before={})
            )
            for grant in kept.grants.values():
                self.note("rebooted", grant.job, f"the host was booted again; lease {grant.lease} ended with that")
        return self._kept

    # -- reading

    @property
    def kept(self) -> Kept:
        """All of it, as one value."""
        with self._lock:
            return self._kept

    # -- changing

    def put(self, grant: Held) -> None:
        """Keep a grant; after this it survives a crash.

        :raises GateError: ``disk``: it isn't kept.
        """
        with self._lock:
            self._write(msgspec.structs.replace(self._kept, grants={**self._kept.grants, grant.job: grant}))

    def move(self, grant: Held) -> None:
        """Keep how far a grant has come."""
        with self._lock:
            self._save(msgspec.structs.replace(self._kept, grants={**self._kept.grants, grant.job: grant}))

    def drop(self, job: str) -> None:
        """Forget a grant: from here on its chips are to be locked."""
        with self._lock:
            grants = {name: grant for name, grant in self._kept.grants.items() if name != job}
            before = {name: there for name, there in self._kept.before.items() if name != job}
            self._save(msgspec.structs.replace(self._kept, grants=grants, before=before))

    def looked(self, look: Look) -> Kept:
        """Keep who computes on the chips of each new grant; returns what is kept, by which chips may be opened.

        What is opened by that and nothing newer is opened after who was there is on disk. A grant of which the driver
        doesn't say that waits for the next look.
        """
        with self._lock:
            new = {
                job: sorted(look.on(grant.chips), key=lambda process: process.pid)
                for job, grant in self._kept.grants.items()
                if job not in self._kept.before and grant.closed_us is None and look.tells(grant.chips)
            }
            if new:
                self._save(msgspec.structs.replace(self._kept, before={**self._kept.before, **new}))
            return self._kept

    def find(self, uuid: str, mode: int) -> None:
        """Keep the mode that a chip had; before it is set to anything else."""
        with self._lock:
            if self._kept.found.get(uuid) != mode:
                self._save(msgspec.structs.replace(self._kept, found={**self._kept.found, uuid: mode}))

    def release(self, released: Released | None) -> None:
        """:raises GateError: ``disk``."""
        with self._lock:
            self._write(msgspec.structs.replace(self._kept, released=released))

    def note(self, kind: str, job: str | None, detail: str) -> None:
        """Keep an event, and say it."""
        logger.warning("%s%s: %s", kind, "" if job is None else f" {job[:16]}", detail)
        with self._lock:
            event = Event(
                seq=self._kept.seq + 1,
                boot_id=self.boot_id,
                boot_us=self._boottime_us(),
                time_us=max(0, self._wall_us()),
                kind=kind,
                job=job,
                detail=detail[:1_000],
            )
            events = [*self._kept.events, event][-EVENTS:]
            self._save(msgspec.structs.replace(self._kept, seq=event.seq, events=events))

    def _write(self, kept: Kept) -> None:
        try:
            self._put(kept)
        except OSError as error:
            raise GateError("disk", f"writing {self._path}: {error}") from error
        self._kept = kept

    def _save(self, kept: Kept) -> None:
        self._kept = kept
        try:
            self._put(kept)
        except OSError as error:
            logger.error("writing %s: %s", self._path, error)

    def _put(self, kept: Kept) -> None:
        temporary = self._path.with_suffix(".tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            view = memoryview(msgspec.json.encode(kept))
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # After this the change survives.
            os.fsync(folder)
        finally:
            os.close(folder)
