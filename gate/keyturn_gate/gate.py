"""What the gate does: takes grants, keeps their time, stops what is over, and has the chips locked.

One thread. The driver is the locker's business; a request that opens chips is answered when the locker has made a
pass, or when that takes too long.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

import msgspec

from keyturn_gate import processes
from keyturn_gate.driver import Kind
from keyturn_gate.errors import GateError
from keyturn_gate.grants import LINGER_US, Held, Phase, Step, closed, due, held, moved, replaced, stopped
from keyturn_gate.keeper import Keeper
from keyturn_gate.locker import Locker
from keyturn_gate.messages import (
    MOST_US,
    Event,
    Grant,
    Granted,
    Lock,
    Release,
    Released,
    Request,
    Standing,
    Status,
    Stop,
)
from keyturn_gate.notices import Notices
from keyturn_gate.strays import Strays, named, strays

OPEN_US: Final = 10_000_000
"""So long may a driver take to open the chips of a grant."""
EVENTS: Final = 200
"""In one answer; whoever has more to read asks again."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A grant that waits for the locker's pass ``number``."""

    job: str
    number: int
    until_us: int


class Gate:
    """The gate over an open :class:`Keeper`.

    :param notices: the folder of notice files.
    """

    def __init__(
        self,
        keeper: Keeper,
        locker: Locker,
        kind: Kind,
        notices: Path,
        boottime_us: Callable[[], int],
        wall_us: Callable[[], int],
    ) -> None:
        self._keeper = keeper
        self._locker = locker
        self._kind: Kind = kind
        self._notices = Notices(notices)
        self._now_us = boottime_us
        self._wall_us = wall_us

    @property
    def enforces(self) -> bool:
        """Whether anything is locked or signalled: not by observing, and not while root has released the host."""
        return self._kind != "observe" and self._keeper.kept.released is None

    # -- requests

    def do(self, request: Request, uid: int) -> Standing | Opening | None:
        """Do what is asked; None: it is done.

        :raises GateError: it isn't, and nothing was changed.
        """
        match request:
            case Grant():
                return self._grant(request)
            case Stop():
                self._stop(request)
            case Status():
                return self._standing(request.after)
            case Release() | Lock() if uid != 0:
                raise GateError("not_root", "only root releases a host, and ends that")
            case Release():
                self._keeper.release(Released(reason=request.reason, uid=uid, time_us=max(0, self._wall_us())))
                self._keeper.note("released", None, request.reason)
                self._locker.kick()
            case Lock():
                if self._keeper.kept.released is None:
                    raise GateError("not_released", "the host isn't released")
                self._keeper.release(None)
                self._keeper.note("locked", None, "the release is over")
                self._locker.kick()
            case _:
                assert_never(request)
        return None

    def opened(self, opening: Opening) -> bool:
        """Whether the chips of a grant are open.

        :raises GateError: they can't be opened: the grant is taken back.
        """
        grant = self._keeper.kept.grants.get(opening.job)
        if grant is None or grant.ending:
            raise GateError("over", "the grant ended meanwhile")
        if self._locker.done < opening.number:
            if self._now_us() < opening.until_us:
                return False
            self._take_back(grant, "driver", "the driver doesn't answer")
        if self._locker.trouble is not None:
            self._take_back(grant, "driver", self._locker.trouble)
        if grant.job not in self._keeper.kept.before:
            self._take_back(grant, "driver", "the driver doesn't say who computes on its chips")
        chips = self._locker.chips
        for uuid in grant.chips:
            chip = chips.get(uuid)
            if chip is None:
                self._take_back(grant, "no_chip", f"no chip {uuid} on this host")
            elif chip.state in ("prohibited", "unknown", "locked"):
                self._take_back(grant, chip.state if chip.state == "prohibited" else "driver", f"{uuid}: {chip.detail}")
        return True

    def _grant(self, request: Grant) -> Opening | None:
        now_us = self._now_us()
        if request.boot_id != self._keeper.boot_id:
            raise GateError("other_boot", f"this boot is {self._keeper.boot_id} (got {request.boot_id})")
        if not now_us < request.stop_at_us <= now_us + MOST_US:
            raise GateError(
                "bad_time", f"stop_at_us: must be after {now_us}, within 400 days (got {request.stop_at_us})"
            )
        old = self._keeper.kept.grants.get(request.job)
        if old is not None and old.ending:
            raise GateError("stopping", "its stop has begun")
        if old is not None and (old.chips, old.subject, old.target) != (request.chips, request.subject, request.target):
            raise GateError("other_job", "a grant that is said again has the same chips, subject and processes")
        if old is None and request.target is not None:
            processes.check(request.target)
        grant = held(request, now_us) if old is None else replaced(old, request, now_us)
        self._keeper.put(grant)
        if old is None:
            self._keeper.note("granted", grant.job, f"lease {grant.lease} of {grant.subject}: {', '.join(grant.chips)}")
        elif grant.phase is Phase.RUNNING:
            self._notices.forget(grant.job)
        if old is not None:
            return None
        number = self._locker.kick()
        return None if self._kind == "observe" else Opening(grant.job, number, now_us + OPEN_US)

    def _take_back(self, grant: Held, code: str, why: str) -> None:
        """A grant that could not be kept: whoever waits for it hasn't begun."""
        how = f"not opened: {why}"
        if grant.job in self._keeper.kept.before:
            # Some chips may have been open for a moment, and anybody may have come.
            self._close(grant, how, quiet=True)
        else:
            self._end(grant, how)
        raise GateError(code, why)

    def _stop(self, request: Stop) -> None:
        grant = self._keeper.kept.grants.get(request.job)
        if grant is None:
            raise GateError("no_grant", "no such grant")
        self._keeper.move(stopped(grant, request.why, self._now_us()))

    def _standing(self, after: int) -> Standing:
        kept = self._keeper.kept
        events: list[Event] = [event for event in kept.events if event.seq > after][:EVENTS]
        return Standing(
            ok=True,
            v=1,
            driver=self._kind,
            boot_id=self._keeper.boot_id,
            now_us=self._now_us(),
            seq=kept.seq,
            released=kept.released,
            trouble=self._locker.trouble,
            chips=sorted(self._locker.chips.values(), key=lambda chip: chip.uuid),
            grants=[
                Granted(
                    job=grant.job,
                    lease=grant.lease,
                    subject=grant.subject,
                    chips=grant.chips,
                    stop_at_us=grant.stop_at_us,
                    phase=grant.phase,
                    why=grant.why,
                    processes=_count(grant),
                )
                for grant in kept.grants.values()
                if not grant.quiet
            ],
            events=events,
        )

    # -- time

    def tick(self) -> bool:
        """Do what is due; returns whether to come back at once rather than in a while."""
        again = False
        for grant in list(self._keeper.kept.grants.values()):
            look = self._locker.look
            looked_us = look.began_us if look is not None and look.tells(grant.chips) else -1
            step = due(grant, self._now_us(), _runs(grant), looked_us)
            if step is not None:
                self._take(step, grant)
                again = True
        return again

    def _take(self, step: Step, grant: Held) -> None:
        now_us = self._now_us()
        match step:
            case Step.NOTICE:
                self._give_notice(grant, now_us)
                self._keeper.move(moved(grant, Phase.NOTICED, now_us))
            case Step.TERM if not self.enforces:
                self._keeper.note("would_stop", grant.job, f"{_count(grant)} processes would be stopped: {grant.why}")
                self._close(grant, "over; nothing is enforced")
            case Step.TERM:
                count = processes.signal_all(grant.target, signal.SIGTERM) if grant.target else 0
                self._keeper.move(moved(grant, Phase.STOPPING, now_us))
                self._keeper.note("stopping", grant.job, f"SIGTERM to {count} processes: {grant.why}")
            case Step.KILL:
                left = _count(grant)
                for stray in grant.strays:
                    processes.tell(stray.pid, stray.start, signal.SIGKILL)
                if grant.closed_us is None and grant.target is not None:
                    processes.kill(grant.target)
                if grant.phase is not Phase.KILLED:
                    self._keeper.move(moved(grant, Phase.KILLED, now_us))
                    self._keeper.note("killed", grant.job, f"SIGKILL to {left} processes: {grant.why}")
            case Step.SURVIVORS:
                hides = grant.closed_us is None and grant.target is not None and processes.hides(grant.target)
                more = " that are seen, in more groups than are looked into," if hides else ""
                self._keeper.note("survivors", grant.job, f"{_count(grant)} processes{more} outlive SIGKILL")
                how = "over; some of it can't be killed"
                if grant.closed_us is None:
                    self._close(grant, how)
                else:
                    self._end(grant, how)
            case Step.LOCK:
                self._close(grant)
            case Step.SEEK:
                self._keeper.move(moved(grant, Phase.SEEKING, now_us))
            case Step.JUDGE:
                self._judge(grant, now_us)
            case Step.UNSEEN:
                self._keeper.move(msgspec.structs.replace(grant, quiet=True))
                why = self._locker.trouble or "the driver doesn't answer"
                self._keeper.note(
                    "unseen", grant.job, f"who computes on its chips is looked at once that can be: {why}"
                )
            case _:
                assert_never(step)

    def _close(self, grant: Held, how: str | None = None, *, quiet: bool = False) -> None:
        """Lock its chips, and see who computes there all the same."""
        self._keeper.move(closed(grant, self._now_us(), how, quiet=quiet))
        self._notices.forget(grant.job)
        self._locker.kick()

    def _judge(self, grant: Held, now_us: int) -> None:
        """Stop who computes on the chips of a grant that is over, or end it."""
        there = self._strays(grant)
        who = f"process {named(one.pid for one in there.found)} computes on its chips and is not in its group"
        if there.found and self.enforces:
            for stray in there.found:
                processes.tell(stray.pid, stray.start, signal.SIGTERM)
            self._keeper.move(
                msgspec.structs.replace(moved(grant, Phase.STOPPING, now_us), strays=list(there.found), quiet=False)
            )
            self._keeper.note("stopping", grant.job, f"SIGTERM: {who}: {grant.why}")
            return
        if there.beyond and now_us < grant.since_us + LINGER_US:
            # Mostly somebody who began just now, or is just ending.
            return
        if there.found:
            self._keeper.note("would_stop", grant.job, f"{who}: {grant.why}")
        if there.beyond:
            pids = named(there.beyond)
            self._keeper.note("survivors", grant.job, f"process {pids} computes on its chips and can't be reached")
        self._end(grant, grant.how)

    def _strays(self, grant: Held) -> Strays:
        kept, look = self._keeper.kept, self._locker.look
        before = kept.before.get(grant.job)
        if before is None or look is None or grant.closed_us is None:
            # Its chips were never opened.
            return Strays((), ())
        others = [other for other in kept.grants.values() if other.closed_us is None]
        runs = [each.target for each in (grant, *others) if each.target is not None]
        spared = {1, os.getpid()}.union(*map(processes.members, runs))
        shared = {uuid for other in others for uuid in other.chips}
        return strays(look, grant.chips, before, spared, shared, grant.closed_us)

    def _end(self, grant: Held, how: str) -> None:
        self._keeper.drop(grant.job)
        self._notices.forget(grant.job)
        self._keeper.note("ended", grant.job, how)
        self._locker.kick()

    def _give_notice(self, grant: Held, now_us: int) -> None:
        left_us = max(0, grant.stop_at_us - now_us)
        self._notices.give(grant, left_us, self._wall_us() + left_us, enforced=self.enforces)
        if self.enforces and grant.signal is not None and grant.target is not None:
            processes.tell(grant.target.pid, grant.target.start, grant.signal)
        self._keeper.note("notice", grant.job, f"stops in {left_us // 1_000_000} s: {grant.why}")


def _runs(grant: Held) -> bool | None:
    if grant.closed_us is not None:
        return any(map(processes.alive, grant.strays))
    return None if grant.target is None else processes.some(grant.target)


def _count(grant: Held) -> int:
    """How many processes are left of it."""
    if grant.closed_us is not None:
        return sum(map(processes.alive, grant.strays))
    return 0 if grant.target is None else processes.count(grant.target)
