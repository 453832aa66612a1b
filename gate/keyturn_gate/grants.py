"""When a grant's notice, stop and end are due. Pure: a grant, what is left of its run, and a moment.

    running ─(stop − grace)→ noticed ─(stop)→ stopping ─(+ kill_s)→ killed
       └─────────────── nothing left ────────────┴──────────┴─────────┘
                                                 ↓
                       ┌──────────→ locking ─(locked)→ seeking ─(nobody computes there)→ gone
                       └─ nothing left of them ─ killed ← stopping ←┘ (somebody does: a stray)

A run's group is stopped first, then its chips are locked, and who computes on them after that gets the same steps: only
on a locked chip does nobody begin between a look and the next. Each phase is on disk before the next one is thought
about. A signal is sent before its phase is, so that a crash between the two sends it twice rather than never.
"""

from enum import StrEnum
from typing import Final

import msgspec

from keyturn_gate.messages import Grant, Target
from keyturn_gate.strays import Process

LINGER_US: Final = 5_000_000
"""What is left so long after SIGKILL hangs in the kernel: it is reported, and the chips are locked all the same."""
SETTLE_US: Final = 500_000
"""From locking to the look that counts: who was beginning as the chip was locked is on it by then."""
LOOK_US: Final = 10_000_000
"""A driver that hasn't said for so long who computes is waited for in silence: for the agent the grant is over."""
_SECOND: Final = 1_000_000


class Phase(StrEnum):
    """How far a grant has come."""

    RUNNING = "running"
    NOTICED = "noticed"
    STOPPING = "stopping"
    KILLED = "killed"
    LOCKING = "locking"
    SEEKING = "seeking"


class Step(StrEnum):
    """What is due."""

    NOTICE = "notice"
    TERM = "term"
    KILL = "kill"
    SURVIVORS = "survivors"
    LOCK = "lock"
    SEEK = "seek"
    JUDGE = "judge"
    UNSEEN = "unseen"


class Held(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A grant as it is kept. ``since_us``: when its phase began.

    ``closed_us``: when its chips were to be locked, after which ``strays`` are what is left of it. ``quiet``: for
    whoever asked for it, it is over. ``how``: how it ended, for people.
    """

    job: str
    lease: str
    subject: str
    chips: list[str]
    stop_at_us: int
    grace_s: int
    kill_s: int
    signal: int | None
    why: str
    target: Target | None
    phase: Phase
    since_us: int
    closed_us: int | None = None
    strays: list[Process] = []
    quiet: bool = False
    how: str = "over"

    @property
    def ending(self) -> bool:
        """Whether its stop has begun, or its end."""
        return self.phase not in (Phase.RUNNING, Phase.NOTICED)


def held(grant: Grant, now_us: int) -> Held:
    """A new grant."""
    return Held(
        job=grant.job,
        lease=grant.lease,
        subject=grant.subject,
        chips=grant.chips,
        stop_at_us=grant.stop_at_us,
        grace_s=grant.grace_s,
        kill_s=grant.kill_s,
        signal=grant.signal,
        why=grant.why,
        target=grant.target,
        phase=Phase.RUNNING,
        since_us=now_us,
    )


def replaced(old: Held, grant: Grant, now_us: int) -> Held:
    """The grant after it was said again; a notice is given again where the stop was put off beyond it."""
    new = held(grant, now_us)
    if old.phase is Phase.NOTICED and now_us >= notice_us(new):
        return msgspec.structs.replace(new, phase=Phase.NOTICED, since_us=old.since_us)
    return new


def stopped(grant: Held, why: str, now_us: int) -> Held:
    """The grant once it is to end now; one whose stop has begun goes on as it was."""
    if grant.ending:
        return grant
    return msgspec.structs.replace(grant, stop_at_us=min(grant.stop_at_us, now_us), why=why)


def moved(grant: Held, phase: Phase, now_us: int) -> Held:
    return msgspec.structs.replace(grant, phase=phase, since_us=now_us)


def closed(grant: Held, now_us: int, how: str | None = None, *, quiet: bool = False) -> Held:
    """The grant once its chips are to be locked, and looked at; after its strays once more."""
    return msgspec.structs.replace(
        grant,
        phase=Phase.LOCKING,
        since_us=now_us,
        closed_us=now_us if grant.closed_us is None else grant.closed_us,
        strays=[],
        quiet=grant.quiet or quiet,
        how=how or grant.how,
    )


def notice_us(grant: Held) -> int:
    return grant.stop_at_us - grant.grace_s * _SECOND


def due(grant: Held, now_us: int, runs: bool | None, looked_us: int) -> Step | None:
    """The one thing to do now, or None.

    :param runs: whether anything is left of its run, or of its strays once it is closed; None for a grant without a
        run to look at.
    :param looked_us: when the last look at its chips began.
    """
    match grant.phase:
        case Phase.RUNNING | Phase.NOTICED:
            if runs is False or (runs is None and now_us >= grant.stop_at_us):
                # Whoever ran is gone: nothing is left to stop, and nothing to keep the chips open for.
                return Step.LOCK
            if now_us >= grant.stop_at_us:
                return Step.TERM
            return Step.NOTICE if grant.phase is Phase.RUNNING and now_us >= notice_us(grant) else None
        case Phase.STOPPING:
            if not runs:
                return Step.LOCK
            return Step.KILL if now_us >= grant.since_us + grant.kill_s * _SECOND else None
        case Phase.KILLED:
            if not runs:
                return Step.LOCK
            return Step.SURVIVORS if now_us >= grant.since_us + LINGER_US else Step.KILL
        case Phase.LOCKING if looked_us >= grant.since_us:
            return Step.SEEK
        case Phase.SEEKING if looked_us >= grant.since_us + SETTLE_US:
            return Step.JUDGE
        case Phase.LOCKING | Phase.SEEKING:
            return Step.UNSEEN if not grant.quiet and now_us >= grant.since_us + LOOK_US else None
