"""When the wall clock moves against CLOCK_BOOTTIME: what is said of it, and what UTC is counted from. Pure.

A step is said at once. What it begins is an *episode*: a clock that goes on moving by little and little, as one that
stands still does, is said again only when it has settled, when it jumps, and once an hour; what is said then is all
that it moved by since the last word. The episode is over once the clock has kept pace for ten seconds.

Meanwhile UTC follows the wall clock all the same, in silence, where no usage interval is open, and at the latest once
they are ten seconds apart: a span that is dated later than the clock shows would hide as much of the time after the
next reboot.
"""

from dataclasses import dataclass
from typing import Final

from keyturn_agent.ports import Moment
from keyturn_protocol.entry_log import ClockStepBody

SETTLED_US: Final = 10_000_000
APART_US: Final = 10_000_000
AGAIN_US: Final = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Moved:
    """UTC is counted anew: ``shift_us`` later than so far. ``said``: the entries about it, maybe none."""

    shift_us: int
    said: tuple[ClockStepBody, ...]


@dataclass(slots=True)
class _Episode:
    """A clock that moves. Positions are UTC minus CLOCK_BOOTTIME."""

    said_mono_us: int
    last: Moment
    steady: Moment
    """Since then it has kept pace."""
    unsaid_us: int = 0
    """What UTC has followed in silence."""


class Steps:
    """The wall clock of one run of the agent.

    :param least_us: what is less is no step.
    """

    def __init__(self, least_us: int) -> None:
        self._least_us = least_us
        self._episode: _Episode | None = None

    def look(self, now: Moment, anchor_us: int, *, between: bool) -> Moved | None:
        """Look at both clocks; None where nothing is to be done.

        :param anchor_us: what UTC is counted from so far: UTC minus CLOCK_BOOTTIME.
        :param between: whether no usage interval is open.
        """
        apart_us = _position(now) - anchor_us
        episode = self._episode
        if episode is None:
            if abs(apart_us) < self._least_us:
                return None
            self._episode = _Episode(now.mono_us, now, now)
            return Moved(apart_us, (_step(now, apart_us),))
        last, episode.last = episode.last, now
        change_us = _position(now) - _position(last)
        if abs(change_us) > now.mono_us - last.mono_us + self._least_us:
            return self._jump(now, last, apart_us, change_us, episode)
        if abs(_position(now) - _position(episode.steady)) >= self._least_us:
            episode.steady = now
        if now.mono_us - episode.steady.mono_us >= SETTLED_US:
            return self.end(now, anchor_us)
        if now.mono_us - episode.said_mono_us >= AGAIN_US:
            episode.said_mono_us = now.mono_us
            return self._say(now, apart_us, episode)
        if abs(apart_us) >= (self._least_us if between else APART_US):
            episode.unsaid_us += apart_us
            return Moved(apart_us, ())
        return None

    def end(self, now: Moment, anchor_us: int) -> Moved | None:
        """The clock has settled, or nobody will look at it any more: say what is left to say."""
        episode, self._episode = self._episode, None
        return None if episode is None else self._say(now, _position(now) - anchor_us, episode)

    def _say(self, now: Moment, apart_us: int, episode: _Episode) -> Moved | None:
        followed_us, episode.unsaid_us = episode.unsaid_us, 0
        whole_us = followed_us + apart_us
        if abs(whole_us) >= self._least_us:
            return Moved(apart_us, (_step(now, whole_us),))
        # Nothing to say: UTC is counted again from where the last word left it.
        return Moved(-followed_us, ()) if followed_us else None

    def _jump(self, now: Moment, last: Moment, apart_us: int, change_us: int, episode: _Episode) -> Moved:
        """The clock was set: what it moved by before that is said too, and not in one sum with it."""
        before_us = episode.unsaid_us + apart_us - change_us
        self._episode = _Episode(now.mono_us, now, now)
        if abs(before_us) < self._least_us:
            return Moved(apart_us, (_step(now, before_us + change_us),))
        return Moved(apart_us, (_step(last, before_us), _step(now, change_us)))


def _position(moment: Moment) -> int:
    return moment.time_us - moment.mono_us


def _step(at: Moment, step_us: int) -> ClockStepBody:
    return ClockStepBody(before_us=at.time_us - step_us, after_us=at.time_us, step_us=step_us)
