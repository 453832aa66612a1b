"""What the log says of a wall clock that moves: each step once, an episode in few words, and UTC never far from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_agent.ports import Moment
from keyturn_agent.steps import AGAIN_US, APART_US, Steps
from tests.agent.hosts import START_US

S = 1_000_000
LEAST_US = 500_000


@dataclass
class Story:
    """Looks at a clock, a second apart where nothing else is said; ``said``: the steps in the log."""

    steps: Steps = field(default_factory=lambda: Steps(LEAST_US))
    now: Moment = field(default_factory=lambda: Moment(5 * S, START_US))
    anchor_us: int = START_US - 5 * S
    said: list[int] = field(default_factory=list)
    furthest_us: int = 0
    """How far the clock was from UTC, at the most, after a look."""

    def look(self, change_us: int, passed_us: int = S, *, between: bool = True, last: bool = False) -> None:
        """So much later the clock has moved by ``change_us`` more than CLOCK_BOOTTIME."""
        self.now = Moment(self.now.mono_us + passed_us, self.now.time_us + passed_us + change_us)
        moved = (
            self.steps.end(self.now, self.anchor_us)
            if last
            else self.steps.look(self.now, self.anchor_us, between=between)
        )
        if moved is not None:
            self.anchor_us += moved.shift_us
            for step in moved.said:
                assert step.after_us - step.before_us == step.step_us
                self.said.append(step.step_us)
        self.furthest_us = max(self.furthest_us, abs(self.now.time_us - self.now.mono_us - self.anchor_us))

    def all(self, changes: Iterable[int]) -> list[int]:
        for change_us in changes:
            self.look(change_us)
        return self.said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([0] * 5, []),
        ([400_000, *[0] * 30], []),
        # Set once: said at once.
        ([7200 * S, *[0] * 30], [7200 * S]),
        ([-S, *[0] * 30], [-S]),
        # Set three times in a row: said each time.
        ([7200 * S, 0, -93_600 * S, 86_405 * S, *[0] * 30], [7200 * S, -93_600 * S, 86_405 * S]),
        # Stands still for a minute and is set right: two words for the minute, one for the setting.
        ([*[-S] * 60, 60 * S, *[0] * 30], [-S, -59 * S, 60 * S]),
        # Stands still for a minute and goes on.
        ([*[-S] * 60, *[0] * 30], [-S, -59 * S]),
        # Twice as fast for a minute.
        ([*[S] * 60, *[0] * 30], [S, 59 * S]),
        # A tenth too slow, and then right again.
        ([*[-100_000] * 100, *[0] * 30], [-500_000, -9_500_000]),
        # To and fro, and in the end where it was after the first step.
        ([*[-S, S] * 30, *[0] * 30], [-S, S]),
        # A little after a step that is said is left for the next one.
        ([5 * S, 300_000, *[0] * 30, 300_000, *[0] * 30], [5 * S, 600_000]),
    ],
)
def test_what_is_said(changes: list[int], said: list[int]) -> None:
    assert Story().all(changes) == said


def test_a_day_that_stands_still_is_said_once_an_hour() -> None:
    story = Story()
    story.all([-S] * 86_400)
    story.look(0, last=True)
    assert len(story.said) == 1 + 24
    assert sum(story.said) == -86_400 * S


def test_an_open_interval_is_not_cut_for_a_little_and_a_word_waits_until_the_clock_has_settled() -> None:
    story = Story()
    story.look(-S)
    anchor_us = story.anchor_us
    for _ in range(9):
        story.look(-S, between=False)
    assert story.anchor_us == anchor_us
    # Ten seconds apart, whatever is open; and where none is open, at once.
    story.look(-S, between=False)
    assert story.anchor_us == anchor_us - 10 * S
    story.look(-S, between=True)
    assert story.anchor_us == anchor_us - 11 * S
    for _ in range(9):
        story.look(0, between=False)
    assert story.said == [-S]
    story.look(0, between=False)
    assert story.said == [-S, -11 * S]


def test_what_was_followed_and_came_back_is_taken_back_in_silence() -> None:
    story = Story()
    began_us = story.anchor_us
    story.all([S, S])
    assert story.anchor_us == began_us + 2 * S
    story.look(-S, between=False)
    for _ in range(10):
        story.look(0, between=False)
    assert story.said == [S]
    assert story.anchor_us == began_us + S


@given(
    looks=st.lists(
        st.tuples(
            st.one_of(st.integers(-3 * S, 3 * S), st.sampled_from([0, -S, 10**11, -(10**11)])),
            st.sampled_from([200_000, S, 9 * S, AGAIN_US]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_all_that_the_clock_moved_by_is_said_in_the_end_and_utc_stays_near_it(
    looks: list[tuple[int, int, bool]],
) -> None:
    story = Story(now=Moment(5 * S, 10**13), anchor_us=10**13 - 5 * S)
    began_us = story.anchor_us
    for change_us, passed_us, between in looks:
        story.look(change_us, passed_us, between=between)
    # Nothing is dated further from the clock than this: no more can be hidden by a reboot.
    assert story.furthest_us < APART_US
    story.look(0, last=True)
    assert sum(story.said) == story.anchor_us - began_us
    assert abs(story.now.time_us - story.now.mono_us - story.anchor_us) < LEAST_US
