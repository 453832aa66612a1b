"""When a notice, a stop and an end are due: every phase, at every moment, with and without a run."""

import pytest

from keyturn_gate.grants import (
    LINGER_US,
    LOOK_US,
    SETTLE_US,
    Held,
    Phase,
    Step,
    closed,
    due,
    held,
    moved,
    replaced,
    stopped,
)
from keyturn_gate.messages import Grant, Target

S = 1_000_000
TARGET = Target(pid=100, start=5, cgroup=None, session=100)
GRANT = Grant(
    v=1, job="a" * 64, lease="b" * 64, subject="run", boot_id="boot", chips=["GPU-0"], stop_at_us=1000 * S, grace_s=100,
    kill_s=60, signal=None, why="the lease ends", target=TARGET,
)  # fmt: skip


def at(phase: Phase, since_us: int = 0) -> Held:
    return moved(held(GRANT, 0), phase, since_us)


@pytest.mark.parametrize(
    ("grant", "now_us", "runs", "step"),
    [
        (at(Phase.RUNNING), 0, True, None),
        (at(Phase.RUNNING), 900 * S - 1, True, None),
        (at(Phase.RUNNING), 900 * S, True, Step.NOTICE),
        # A gate that was down over the notice goes straight to the stop.
        (at(Phase.RUNNING), 1000 * S, True, Step.TERM),
        (at(Phase.NOTICED), 1000 * S - 1, True, None),
        (at(Phase.NOTICED), 1000 * S, True, Step.TERM),
        # The run is over before its time.
        (at(Phase.RUNNING), 5, False, Step.LOCK),
        (at(Phase.NOTICED), 950 * S, False, Step.LOCK),
        # Nothing to look at: the chips are open for as long as was asked for.
        (at(Phase.RUNNING), 999 * S, None, Step.NOTICE),
        (at(Phase.NOTICED), 999 * S, None, None),
        (at(Phase.NOTICED), 1000 * S, None, Step.LOCK),
        # kill_s counts from the SIGTERM that was sent, however late that was.
        (at(Phase.STOPPING, 5000 * S), 5060 * S - 1, True, None),
        (at(Phase.STOPPING, 5000 * S), 5060 * S, True, Step.KILL),
        (at(Phase.STOPPING, 5000 * S), 5001 * S, False, Step.LOCK),
        # SIGKILL again and again, until nothing is left or that is hopeless.
        (at(Phase.KILLED, 5060 * S), 5061 * S, True, Step.KILL),
        (at(Phase.KILLED, 5060 * S), 5060 * S + LINGER_US, True, Step.SURVIVORS),
        (at(Phase.KILLED, 5060 * S), 5061 * S, False, Step.LOCK),
    ],
)
def test_what_is_due(grant: Held, now_us: int, runs: bool | None, step: Step | None) -> None:
    assert due(grant, now_us, runs, -1) is step


@pytest.mark.parametrize(
    ("grant", "now_us", "looked_us", "step"),
    [
        # A look that began before the chips were to be locked tells nothing about a locked chip.
        (at(Phase.LOCKING, 50 * S), 51 * S, 50 * S - 1, None),
        (at(Phase.LOCKING, 50 * S), 51 * S, 50 * S, Step.SEEK),
        (at(Phase.SEEKING, 51 * S), 52 * S, 51 * S + SETTLE_US - 1, None),
        (at(Phase.SEEKING, 51 * S), 52 * S, 51 * S + SETTLE_US, Step.JUDGE),
        # A driver that hangs is waited for, and who asked isn't kept waiting.
        (at(Phase.LOCKING, 50 * S), 50 * S + LOOK_US, -1, Step.UNSEEN),
        (at(Phase.SEEKING, 50 * S), 50 * S + LOOK_US, 49 * S, Step.UNSEEN),
        (closed(at(Phase.RUNNING), 50 * S, quiet=True), 50 * S + LOOK_US, -1, None),
        (closed(at(Phase.RUNNING), 50 * S, quiet=True), 50 * S + LOOK_US, 50 * S, Step.SEEK),
    ],
)
def test_what_is_due_when_its_chips_are_locked(grant: Held, now_us: int, looked_us: int, step: Step | None) -> None:
    assert due(grant, now_us, False, looked_us) is step


def test_strays_get_the_same_steps_and_then_there_is_another_look() -> None:
    chased = closed(at(Phase.STOPPING, 10 * S), 20 * S, "over; some of it")
    assert (chased.phase, chased.closed_us, chased.how) == (Phase.LOCKING, 20 * S, "over; some of it")
    told = moved(chased, Phase.STOPPING, 30 * S)
    assert due(told, 90 * S, True, 0) is Step.KILL
    assert due(told, 31 * S, False, 0) is Step.LOCK
    again = closed(told, 31 * S)
    # Who began under another grant after this one was over isn't its.
    assert (again.closed_us, again.since_us, again.how) == (20 * S, 31 * S, "over; some of it")


def test_a_renewal_puts_the_stop_off_and_takes_the_notice_back() -> None:
    later = Grant(**{name: getattr(GRANT, name) for name in Grant.__struct_fields__} | {"stop_at_us": 5000 * S})
    assert replaced(at(Phase.NOTICED), later, 950 * S).phase is Phase.RUNNING
    # One that leaves it within the notice doesn't give it twice.
    assert replaced(at(Phase.NOTICED, 900 * S), GRANT, 950 * S) == at(Phase.NOTICED, 900 * S)


def test_a_stop_comes_forward_and_never_goes_back() -> None:
    assert stopped(at(Phase.RUNNING), "suspended", 50 * S).stop_at_us == 50 * S
    assert stopped(at(Phase.RUNNING), "suspended", 2000 * S).stop_at_us == 1000 * S
    for phase in (Phase.STOPPING, Phase.KILLED, Phase.LOCKING, Phase.SEEKING):
        assert stopped(at(phase), "again", 50 * S) == at(phase)
