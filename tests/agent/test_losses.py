"""What isn't measured is explained: when it begins, while it lasts, when it ends."""

from keyturn_agent.attribution import Workloads
from keyturn_agent.losses import FIELDS_LOST, Losses
from keyturn_agent.ports import Declared
from keyturn_agent.sampler import Lost, Span, measure
from keyturn_protocol.entry_log import DegradedBody, GapBody
from keyturn_protocol.entry_workloads import WorkloadEndedBody, WorkloadStartedBody
from tests.agent.samples import NOTHING, reading, sample, share

GOOD = measure(NOTHING, NOTHING, 1)
LOST, BACK = Lost("driver_lost", over=False), Lost("driver_lost", over=True)


def test_a_loss_is_told_when_it_begins_at_each_checkpoint_and_when_it_ends() -> None:
    losses = Losses(2)
    assert losses.see(0, 10, [GOOD, GOOD]) == []
    (begun,) = losses.see(10, 20, [LOST, LOST])
    assert isinstance(begun, DegradedBody)
    assert begun.cause == "driver_lost"
    assert [(g.from_us, g.to_us) for g in losses.so_far(25)] == [(10, 25)]
    assert losses.see(20, 30, [LOST, LOST]) == []
    assert [(g.from_us, g.to_us) for g in losses.so_far(35)] == [(10, 35)]
    (gap,) = losses.see(30, 40, [BACK, BACK])
    assert gap == GapBody(chips=None, from_us=10, to_us=40, cause="driver_lost", detail=None)
    assert losses.see(40, 50, [GOOD, GOOD]) == []
    assert losses.so_far(60) == []


def test_chips_that_are_lost_together_are_named_together() -> None:
    losses = Losses(3)
    losses.see(0, 10, [LOST, GOOD, LOST])
    assert [gap.chips for gap in losses.so_far(10)] == [[0, 2]]
    first, begun = losses.see(10, 20, [Lost("gpu_lost", over=False), GOOD, LOST])
    assert isinstance(first, GapBody)
    assert (first.chips, first.cause, first.to_us) == ([0], "driver_lost", 10)
    assert isinstance(begun, DegradedBody)
    assert begun.cause == "gpu_lost"


def test_a_reset_is_a_gap_of_one_span() -> None:
    losses = Losses(1)
    (gap,) = losses.see(10, 20, [Lost("counter_reset", over=True)])
    assert isinstance(gap, GapBody)
    assert (gap.from_us, gap.to_us, gap.cause) == (10, 20, "counter_reset")
    assert losses.so_far(30) == []


def test_a_field_that_is_lost_is_named() -> None:
    losses = Losses(1)
    full = measure(reading(power_mw=1), reading(power_mw=1), 1)
    assert isinstance(full, Span)
    losses.see(0, 1, [full])
    (lost,) = losses.see(1, 2, [GOOD])
    assert isinstance(lost, DegradedBody)
    assert (lost.cause, lost.detail) == (FIELDS_LOST, "chip 0: energy_mj")
    assert losses.see(2, 3, [GOOD]) == []


def test_workloads_start_and_end_with_their_shares() -> None:
    workloads = Workloads({"run:w": Declared("bf16", (0, 1))}.get)
    one = sample(0, NOTHING, NOTHING, shares=(share(0, "run:w", 10), share(1, "run:x", 10, "shared")))
    started = workloads.see(one)
    assert all(isinstance(body, WorkloadStartedBody) for body in started)
    assert [(b.id, b.chips, b.declared_dtype, b.class_) for b in started if isinstance(b, WorkloadStartedBody)] == [
        ("run:w", [0, 1], "bf16", "exclusive"),
        ("run:x", [1], None, "shared"),
    ]
    assert workloads.see(one) == []
    (ended,) = workloads.see(sample(1, NOTHING, NOTHING, shares=(share(0, "run:w", 10),)))
    assert isinstance(ended, WorkloadEndedBody)
    assert ended.id == "run:x"
    assert [body.id for body in workloads.present()] == ["run:w"]


def test_a_workload_on_a_lost_chip_has_not_ended() -> None:
    workloads = Workloads(lambda _: None)
    workloads.see(sample(0, NOTHING, shares=(share(0, "run:w", 10),)))
    assert workloads.see(sample(1, None, error="driver_lost")) == []
    (ended,) = workloads.see(sample(2, NOTHING))
    assert ended.id == "run:w"
