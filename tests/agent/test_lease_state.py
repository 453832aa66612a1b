"""When a job stops: whatever comes first, on a clock that nobody sets."""

from keyturn_agent.switch.lease_state import Moment, Now, heard_stop, stop_of
from keyturn_protocol.lease import Lease
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.permit import open_permit_bundle, parse_permit_bundle
from tests.support.assembly import Assembly
from tests.support.parties import DAY, NAME, SECOND

HOUR = 3600 * SECOND
UP = 50 * DAY
"""CLOCK_BOOTTIME of the host in these tests."""


def suspended(stop_in_us: int | None = None) -> tuple[Run, int, int]:
    """A run with a suspension; when the leaf was, and when it stops (UTC)."""
    hall = Assembly()
    run = hall.approved()
    start = hall.start(run)
    leaf_us = hall.now_us
    hall.suspend(run, "office/ivy", None if stop_in_us is None else leaf_us + stop_in_us)
    opened = open_permit_bundle(parse_permit_bundle(hall.bundle(run)), hall.root, NAME).run
    assert opened is not None
    assert start.index
    assert opened.stop_at_us is not None
    return opened, leaf_us, opened.stop_at_us


def lease(ttl_s: int = 48 * 3600) -> Lease:
    hall = Assembly()
    return hall.start(hall.approved(), ttl_s=ttl_s).lease.lease


def test_every_host_stops_at_the_moment_that_was_said() -> None:
    run, leaf_us, stop_us = suspended()
    for late_s in (0, 60, 1700):
        now = Now(UP, leaf_us + late_s * SECOND)
        heard = heard_stop(run, None, leaf_us, now)
        assert heard is not None
        assert heard.at_us - UP == stop_us - now.time_us
        assert "suspended by office/ivy" in heard.why


def test_clock_set_back_does_not_put_a_stop_off_beyond_its_notice() -> None:
    run, leaf_us, _ = suspended()
    heard = heard_stop(run, None, leaf_us, Now(UP, leaf_us - 3 * DAY))
    assert heard is not None
    assert heard.at_us == UP + run.policy.stop.notice_s * SECOND


def test_clock_set_forward_stops_sooner_and_never_in_the_past() -> None:
    run, leaf_us, _ = suspended()
    heard = heard_stop(run, None, leaf_us, Now(UP, leaf_us + 3 * DAY))
    assert heard is not None
    assert heard.at_us == UP


def test_clock_frozen_or_set_after_it_was_heard_changes_nothing() -> None:
    run, leaf_us, _ = suspended()
    heard = heard_stop(run, None, leaf_us, Now(UP, leaf_us))
    assert heard is not None
    for wall_us in (leaf_us, leaf_us - DAY, leaf_us + DAY):
        assert heard_stop(run, heard, leaf_us, Now(UP + 60 * SECOND, wall_us)) is heard


def test_a_sooner_suspension_by_a_second_organisation_moves_it() -> None:
    run, leaf_us, stop_us = suspended()
    before = heard_stop(run, None, leaf_us, Now(UP, leaf_us))
    assert before is not None
    moved = Moment(before.at_us, before.why, stop_us + 1)
    again = heard_stop(run, moved, leaf_us, Now(UP, leaf_us))
    assert again is not None
    assert again.of_us == stop_us


def test_the_lease_ends_by_its_own_time_whatever_the_wall_clock_says() -> None:
    _, leaf_us, _ = suspended()
    for wall_us in (0, leaf_us, leaf_us + 1000 * DAY):
        stop = stop_of(lease(3600), UP, None, UP + DAY, Now(UP, wall_us), None)
        assert (stop.at_us, stop.why) == (UP + HOUR, "the lease ends")


def test_the_earliest_wins() -> None:
    run, leaf_us, _ = suspended()
    now = Now(UP, leaf_us)
    one = lease()
    window_us = run.scope.not_after_us - leaf_us
    assert stop_of(one, UP, None, UP + 5, now, None).why == "the compute of the lease is used up"
    assert stop_of(one, UP, run, UP + 3 * DAY, now, Moment(UP + HOUR, "suspended by x", 0)).why == "suspended by x"
    late = Now(UP, run.scope.not_after_us - HOUR)
    assert stop_of(one, UP, run, UP + 3 * DAY, late, None).why == "the run's window ends"
    assert window_us > 0
