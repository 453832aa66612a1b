"""The state folder: the only place where the agent keeps anything, held by one process at a time.

config.json   whose host this is (written last at enrolment)     mode 0600, as all of them
trust.json    the keys of the verifier at enrolment, byte for byte
root.json     the pinned root and what was seen under it, see :mod:`~keyturn_agent.switch.pin`; beside it authority.json
key           the log's key; beside it key.next and rolled.json, see :mod:`~keyturn_agent.keyring`
boots.json    the kernel's boot id and our count of boots
lock          held by the process that runs, with its id
status.json   what it says about itself; may be lost
chips.json    the chips that were listed and not retired; may be lost
paused.json   the pause that goes on, see :mod:`~keyturn_agent.pausing`
retired       there once the end of this host's log is receipted: its service isn't started any more
logs/<n>/     the log of incarnation n, see :mod:`~keyturn_agent.log`
"""

import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from keyturn_agent import files
from keyturn_agent.enrolment import Enrolment, Pinned, genesis, parse_enrolment, parse_trust, pinned_by_root
from keyturn_agent.errors import LOST, DamagedError, RefusedError, StoreError, UsageError
from keyturn_agent.keyring import Keyring
from keyturn_agent.log import NodeLog, let_go
from keyturn_agent.log_files import Intended, Opened
from keyturn_agent.ports import Clock, Signer, Stamp
from keyturn_agent.spool import Spool
from keyturn_agent.switch.pin import Pin
from keyturn_agent.trail import Older, trail
from keyturn_protocol.canonical import Record, UInt, decode, encode, fit_text
from keyturn_protocol.entry_log import KeyRollBody, Previous, key_roll_message
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Deployment, LogName, NodeId
from keyturn_protocol.keys import VerifierKey
from keyturn_protocol.merkle import EMPTY_ROOT
from keyturn_protocol.segment import node_key
from keyturn_protocol.values import BootId

logger = logging.getLogger(__name__)

Reason = Literal["rejected", "rollback", "damaged"]
_FILE_BYTES: Final = 128 * 1024


class Boots(Record, frozen=True, kw_only=True):
    """The file ``boots.json``."""

    v: Literal[1]
    boot_id: BootId
    boots: UInt


class FolderLock:
    """The right to write in a state folder; the kernel takes it back when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """:raises RefusedError: another process has it."""
        with files.doing(f"locking {folder}"):
            self._fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, files.PRIVATE_FILE)
            try:
                self._take(folder)
            except BaseException:
                self.release()
                raise

    def _take(self, folder: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "another process"
            raise RefusedError(
                "locked",
                f"the state folder {folder} is in use by process {holder}",
                hint="one agent writes one log; stop that process, or give this host a folder of its own",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            files.close(self._fd)
            self._fd = -1


def holder(folder: Path) -> int | None:
    """The process that holds a state folder's lock, or None."""
    try:
        fd = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
    return None


def make_folder(folder: Path) -> None:
    """Make a state folder, mode 0700; one that is there must be for nobody else.

    :raises UsageError: ``folder_mode``.
    """
    with files.doing(f"making the state folder {folder}"):
        folder.mkdir(mode=files.PRIVATE_FOLDER, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        raise UsageError(
            "folder_mode", f"others may enter {folder} (expected mode 0700, got {mode:04o})", hint=f"chmod 700 {folder}"
        )


def read_enrolment(folder: Path) -> tuple[Enrolment, Pinned]:
    """Who this host is, and the verifier's keys that it pinned.

    :raises UsageError: ``not_enrolled``.
    :raises StoreError: the files contradict each other.
    """
    try:
        data = (folder / "config.json").read_bytes()
    except FileNotFoundError:
        raise UsageError(
            "not_enrolled", f"{folder} is not an enrolled host's state folder", hint="run keyturn-agent enroll first"
        ) from None
    except OSError as error:
        raise StoreError("disk", f"reading {folder}/config.json: {error}") from error
    try:
        enrolment = parse_enrolment(data, _FILE_BYTES)
    except ProtocolError as error:
        raise StoreError("bad_state", f"{folder}/config.json was damaged: {error}", hint=LOST) from error
    hint = "put back the trust file that this host was enrolled with; the verifier's operator hands it out"
    try:
        pinned = parse_trust((folder / "trust.json").read_bytes(), str(folder / "trust.json"))
    except (OSError, UsageError) as error:
        raise StoreError("bad_state", f"reading {folder}/trust.json: {error}", hint=hint) from error
    if pinned.sha256 != enrolment.trust_sha256 or pinned.deployment != enrolment.deployment:
        raise StoreError(
            "bad_state",
            f"{folder}/trust.json is not the one that was enrolled with, as {folder}/config.json has it "
            f"(expected sha256 {enrolment.trust_sha256}, got {pinned.sha256})",
            hint=hint,
        )
    if enrolment.root_sha256 is not None:
        # From here on roots say which keys the verifier has; the file is what they were at enrolment.
        pin = Pin.load(folder, enrolment.deployment, enrolment.root_sha256)
        pinned = pinned_by_root(pin.authority.standing, enrolment.root_sha256)
    return enrolment, pinned


class Store:
    """An enrolled host's state, open for writing."""

    def __init__(self, folder: Path, lock: FolderLock, keyring: Keyring, enrolment: Enrolment, pinned: Pinned) -> None:
        self.folder = folder
        self.enrolment = enrolment
        self.pinned = pinned
        self._lock = lock
        self.keyring = keyring
        self._signer: Signer
        self._before: tuple[Spool, VerifierKey] | None = None
        self._boots = Boots(v=1, boot_id="00000000-0000-0000-0000-000000000000", boots=0)
        self.log: NodeLog
        self.anchor_us: int | None = None
        """UTC minus CLOCK_BOOTTIME as the last entry before this start had it, if that was in this boot."""

    @classmethod
    def open(
        cls, folder: Path, make_clock: Callable[[int], Clock], now_s: int, *, retired: bool = False
    ) -> tuple["Store", Clock]:
        """Open the folder and the newest log in it, as a crash or an orderly end left them.

        :param make_clock: a clock that doesn't start before the given UTC µs, the newest in the log.
        :param now_s: the host's real time, for the guard of :meth:`next_incarnation`.
        :param retired: open the log of a retired host too, to which nothing can be added.
        :raises RefusedError: ``retired``.
        """
        make_folder(folder)
        lock = FolderLock(folder)
        try:
            enrolment, pinned = read_enrolment(folder)
            with files.doing(f"opening {folder}"):
                store = cls(folder, lock, Keyring(folder, enrolment), enrolment, pinned)
                clock = store._open_log(make_clock, now_s)
            if store.log.chain.closed == "retired" and not retired:
                store.log.close()
                raise RefusedError(
                    "retired",
                    "this host was retired: its log has ended",
                    hint="a host that comes back is enrolled anew, in a new state folder",
                )
            return store, clock
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        self.log.close()
        self._lock.release()

    @property
    def incarnation(self) -> int:
        return self.log.name.incarnation

    def stamp(self, clock: Clock) -> Stamp:
        """The clock fields of an entry that is written now."""
        now = clock.now()
        return Stamp(self._boots.boot_id, self._boots.boots, now.mono_us, now.time_us)

    def reopen(self, stamp: Stamp) -> int:
        """Open the log again after a write that failed, as after a crash.

        :returns: how many entries were there, before the one that may say what was dropped.
        :raises NoSpaceError: there is still no room; the log stays unusable and this may be tried again.
        """
        self.log.close()
        self.log = NodeLog.open(self.log.folder, self.log.name, self._signer)
        size = self.log.size
        self.log.settle(stamp)
        return size

    def may_open_next(self, now_s: int, guard_s: int) -> bool:
        """Whether the guard against incarnations without end lets another one open.

        The first incarnation may always be followed; each later one must have lived for ``guard_s``.
        """
        return self.incarnation == 1 or not 0 <= now_s - self.log.opened.opened_s < guard_s

    def next_incarnation(self, reason: Reason, detail: str, stamp: Stamp, now_s: int) -> None:
        """Leave the log as it is and open the next one."""
        if self._before is not None:
            # The verifier never took the end of the log before: it knows the old key only.
            self.keyring.cancel()
            self._before = None
        self._follow(reason, detail, stamp, now_s)

    def roll_key(self, stamp: Stamp, now_s: int) -> None:
        """End the log with the next key's announcement, and open the next incarnation under that key."""
        name, following = self.log.name, self.keyring.next()
        message = key_roll_message(name.origin, self.log.size, self._signer.public_key, following.public_key)
        body = KeyRollBody(
            next_incarnation=name.incarnation + 1,
            next_public_key=following.public_key.hex(),
            next_signature=following.sign(message).hex(),
        )
        # After this the log has ended; a start after a crash goes on from here.
        self.log.append([body], stamp)
        self._finish_roll(stamp, now_s)

    def _finish_roll(self, stamp: Stamp, now_s: int) -> None:
        self.log.seal()
        if (key := self.log.chain.next_key) is None:
            raise StoreError("bad_state", f"{self.log.folder} names no next key")
        self.keyring.roll(self.incarnation + 1, bytes.fromhex(key))
        self._follow("key_roll", "the key was rolled", stamp, now_s)
        self._find_before()

    def _follow(self, reason: Reason | Literal["key_roll"], detail: str, stamp: Stamp, now_s: int) -> None:
        """Leave the log as it is and open the next one."""
        before = self.log
        before.close()
        self._create(
            before.name.incarnation,
            Previous(origin=before.name.origin, size=before.sealed, root=before.root.hex(), reason=reason),
            detail,
            stamp,
            now_s,
        )

    @property
    def before(self) -> tuple[Spool, VerifierKey] | None:
        """The log that ended with the newest key roll, and its key, while its end has no receipt."""
        return self._before

    def older(self) -> Sequence[Older]:
        """The logs before the newest one, oldest first."""
        return trail(self.folder / "logs", bytes.fromhex(self.enrolment.public_key), self.log.name)

    def settle_keys(self) -> None:
        """Remove the old key once the end of its log is receipted."""
        if self._before is not None and self._before[0].receipted < self._before[0].end:
            return
        self._before = None
        if self.log.opened.reason == "key_roll" and self.keyring.drop_old():
            logger.warning("the old key was removed; %s has the new one", self.log.name.origin)

    def _find_before(self) -> None:
        if self.log.opened.reason != "key_roll" or not (self.folder / "key.next").exists():
            return
        name = self._name(self.incarnation - 1)
        key = node_key(name.origin, self.keyring.signer(name.incarnation).public_key)
        self._before = (Spool(self.folder / "logs" / str(name.incarnation), key), key)
        self.settle_keys()

    def _open_log(self, make_clock: Callable[[int], Clock], now_s: int) -> Clock:
        with files.doing(f"opening {self.folder}/logs"):
            found = sorted(int(p.name) for p in (self.folder / "logs").iterdir() if p.name.isdigit())
        if not found:
            raise StoreError("bad_state", f"{self.folder}/logs is empty, though this host is enrolled", hint=LOST)
        name = self._name(found[-1])
        folder = self.folder / "logs" / str(found[-1])
        try:
            self._signer = self.keyring.signer(found[-1])
            self.log = NodeLog.open(folder, name, self._signer)
        except DamagedError as error:
            logger.error("%s", error)
            clock = make_clock(0)
            self._boots = self._count_boot(clock.boot_id, None)
            size, root = last_head(folder, name, self._signer.public_key)
            previous = Previous(origin=name.origin, size=size, root=root, reason="damaged")
            self._create(name.incarnation, previous, str(error), self.stamp(clock), now_s)
            return clock
        with let_go(self.log):
            return self._recovered(make_clock, now_s)

    def _recovered(self, make_clock: Callable[[int], Clock], now_s: int) -> Clock:
        """Go on with the log that was opened."""
        chain = self.log.chain
        # A genesis alone is no reason to hold a replay's clock: nothing was measured before it.
        clock = make_clock(chain.time_us if chain.size > 1 else 0)
        newest = None if chain.boot_id is None else Boots(v=1, boot_id=chain.boot_id, boots=chain.boots)
        self._boots = self._count_boot(clock.boot_id, newest)
        if chain.size > 1 and chain.boot_id == clock.boot_id:
            self.anchor_us = chain.time_us - chain.mono_us
        self.log.settle(self.stamp(clock))
        if self.log.chain.closed == "key_roll":
            # A roll that was cut short.
            self._finish_roll(self.stamp(clock), now_s)
        else:
            self._find_before()
        return clock

    def _create(self, after: int, previous: Previous, detail: str, stamp: Stamp, now_s: int) -> None:
        name = self._name(after + 1)
        self._signer = self.keyring.signer(name.incarnation)
        enrolled = self.enrolment
        body = genesis(self._signer.public_key, enrolled.source, enrolled.trust_sha256, enrolled.root_sha256, previous)
        opened = Opened(v=1, opened_s=now_s, reason=previous.reason, detail=fit_text(detail))
        folder = self.folder / "logs" / str(name.incarnation)
        self.log = NodeLog.create(folder, name, self._signer, opened, body, stamp)
        with let_go(self.log):
            self.log.seal()

    def _name(self, incarnation: int) -> LogName:
        return LogName(Deployment(self.enrolment.deployment), NodeId(self.enrolment.node_id), incarnation)

    def _count_boot(self, boot_id: str, newest: Boots | None) -> Boots:
        """The count for this boot, durable before any entry carries it.

        The log's own newest count is a floor, so that a lost file can't make it go back.
        """
        known = [boots for boots in (self._read_boots(), newest) if boots is not None]
        highest = max((boots.boots for boots in known), default=0)
        for boots in known:
            if boots.boot_id == boot_id and boots.boots == highest:
                return boots
        counted = Boots(v=1, boot_id=boot_id, boots=highest + 1)
        with files.doing(f"counting the boot in {self.folder}"):
            # After this the count survives.
            files.replace(self.folder / "boots.json", encode(counted))
        return counted

    def _read_boots(self) -> Boots | None:
        try:
            boots: Boots = decode((self.folder / "boots.json").read_bytes(), Boots)
        except (FileNotFoundError, ProtocolError):
            return None
        return boots


def last_head(folder: Path, name: LogName, public_key: bytes) -> tuple[int, str]:
    """Size and root of the newest head that a damaged log still shows: intended, or signed over whole segments."""
    size, root = 0, EMPTY_ROOT.hex()
    try:
        intended: Intended = decode(files.read(folder / "state"), Intended, limit=_FILE_BYTES)
        if intended.origin == name.origin:
            size, root = intended.size, intended.root
    except (DamagedError, ProtocolError):
        pass
    spool = Spool(folder, node_key(name.origin, public_key))
    try:
        if spool.end > size and (found := spool.root_at(spool.end)) is not None:
            size, root = spool.end, found.hex()
    except DamagedError:
        pass
    return size, root
