"""When a job stops: whatever comes first, on a clock that nobody sets."""

from keyturn_agent.switch.lease_state import (
    TFLOP,
    Bounds,
    Holding,
    Moment,
    Now,
    Stop,
    Times,
    heard_stop,
    renew_us,
    spent_us,
    stop_of,
    stopped_by,
    times_of,
)
from keyturn_protocol.lease import Lease
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.permit import open_permit_bundle, parse_permit_bundle
from tests.support.assembly import Assembly
from tests.support.parties import DAY, NAME, SECOND, changed

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


def test_what_an_amendment_replaced_stops_after_a_notice_that_nothing_said_later_puts_off() -> None:
    hall = Assembly()
    name = hall.approved()
    run = hall.switch.runs[name]
    leaf_us, notice_us = hall.now_us, run.policy.stop.notice_s * SECOND
    heard = heard_stop(run, None, leaf_us, Now(UP, leaf_us + SECOND), ["argv"])
    assert heard == Moment(UP + notice_us - SECOND, "an amendment replaced what was started: argv", leaf_us + notice_us)
    later = Now(UP + 60 * SECOND, leaf_us + 60 * SECOND)
    assert heard_stop(run, heard, later.time_us, later, ["argv", "image"]) is heard
    # Sooner by somebody's word, and never later.
    for stop_in_s, why in ((notice_us // SECOND + 3600, heard.why), (None, "suspended by office/ivy")):
        suspended = Assembly()
        suspended.approved()
        suspended.now_us = leaf_us - 60 * SECOND
        suspended.suspend(name, "office/ivy", None if stop_in_s is None else leaf_us + stop_in_s * SECOND)
        first = heard_stop(suspended.switch.runs[name], heard, leaf_us, later, ["argv"])
        assert first is not None
        assert (first.why, first.at_us <= heard.at_us) == (why, True)
    # Approved again as it was started.
    assert heard_stop(run, heard, leaf_us, later) is None


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


def test_compute_is_spent_so_early_that_the_stop_still_fits_in() -> None:
    one = changed(lease(), upto_tflop=10)
    rate = 10**6
    assert spent_us(one, 0, UP, rate, 60) == UP + 10 * SECOND - 60 * SECOND
    assert spent_us(one, 4 * TFLOP, UP, rate, 0) == UP + 6 * SECOND
    assert spent_us(one, 99 * TFLOP, UP, rate, 0) == UP


def test_a_lease_is_renewed_at_its_own_pace_and_before_half_of_it_is_over() -> None:
    holding = Holding(sha256="0" * 64, origin="kt.example/node/a/1", drawn_us=UP)
    assert renew_us(holding, changed(lease(), ttl_s=3600, renew_s=600)) == UP + 600 * SECOND
    assert renew_us(holding, changed(lease(), ttl_s=60, renew_s=600)) == UP + 30 * SECOND
    assert renew_us(holding, changed(lease(), ttl_s=1, renew_s=600)) == UP + SECOND


def test_a_command_that_ends_as_its_stop_comes_was_stopped() -> None:
    stop = Stop(UP, "suspended by office/ivy")
    assert stopped_by(stop, Now(UP - 2 * SECOND, 0)) is None
    assert stopped_by(stop, Now(UP - SECOND // 2, 0)) == "suspended by office/ivy"
    assert stopped_by(None, Now(UP, 0)) is None


def test_how_a_stop_goes_is_the_policys_word_and_else_what_was_kept_of_it() -> None:
    kept = Bounds(said=None, ends_us=None, grace_s=30, kill_s=7)
    assert times_of(None, None) == Times(0, 60)
    assert times_of(None, kept) == Times(30, 7)
    hall = Assembly()
    run = hall.approved()
    for which in (run, None):
        opened = open_permit_bundle(parse_permit_bundle(hall.bundle(which)), hall.root, NAME)
        policy = opened.authority.policies[-1][2]
        assert times_of(opened, kept) == Times(policy.tiers[0].grace_s, policy.stop.kill_s) != Times(30, 7)
