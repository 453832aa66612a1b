"""From readings to usage: exact, cut where it has to be, and nothing missing ever reads as zero."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_agent.ports import Reading, Sample
from keyturn_agent.sampler import Lost, Sampler, Span, measure
from keyturn_protocol.entry_usage import FIELDS, SUM_FIELDS, UsageBody
from tests.agent.samples import reading, sample, share

HOUR_US = 3_600_000_000
MIDNIGHT_US = 1_790_000_000_000_000 // HOUR_US * HOUR_US


def meter(samples: Sequence[Sample], interval_us: int = 10_000_000, anchor_us: int = MIDNIGHT_US) -> list[UsageBody]:
    sampler = Sampler(len(samples[0].chips), interval_us, anchor_us)
    bodies: list[UsageBody] = []
    for one in samples:
        step = sampler.add(one)
        bodies += step.before + step.after
    return bodies + sampler.flush()


def total(bodies: Sequence[UsageBody], field: str, chip: int = 0) -> int:
    return sum(getattr(body, field)[chip] or 0 for body in bodies)


def test_ratios_become_cycles_sample_by_sample() -> None:
    (body,) = meter(
        [
            sample(0, reading(sm_clock_mhz=1, sm_active_ppm=0, tensor_ppm=0)),
            # Clock and activity move against each other: 2000 MHz x 10 %, then 1000 MHz x 90 %.
            sample(1_000_000, reading(sm_clock_mhz=2000, sm_active_ppm=100_000, tensor_ppm=50_000)),
            sample(2_000_000, reading(sm_clock_mhz=1000, sm_active_ppm=900_000, tensor_ppm=500_000)),
        ]
    )
    assert body.elapsed_mcycles == [3000]
    assert body.active_mcycles == [200 + 900]
    assert body.tensor_mcycles == [100 + 500]
    assert body.clock_mhz_max == [2000]
    assert body.samples == [2]


def test_counters_are_preferred_to_ratios() -> None:
    (body,) = meter(
        [
            sample(0, reading(energy_mj=5, power_mw=1, tensor_kcycles=10_000, tensor_ppm=1, sm_clock_mhz=1)),
            sample(1_000_000, reading(energy_mj=305, power_mw=1, tensor_kcycles=27_500, tensor_ppm=1, sm_clock_mhz=1)),
        ]
    )
    assert body.energy_mj == [300]
    assert body.tensor_mcycles == [17]


def test_power_stands_in_for_a_missing_energy_counter() -> None:
    (body,) = meter([sample(0, reading(power_mw=9)), sample(2_500_000, reading(power_mw=300_000))])
    assert body.energy_mj == [750_000]


def test_a_field_that_the_source_lacks_is_null_and_not_zero() -> None:
    (body,) = meter([sample(0, reading(power_mw=0)), sample(1_000_000, reading(power_mw=0))])
    assert body.energy_mj == [0]
    assert {name for name in FIELDS if getattr(body, name) != [None]} == {"energy_mj"}


def test_intervals_are_cut_at_utc_hours() -> None:
    # An hour's end lies 400 ms into the second span.
    anchor_us = MIDNIGHT_US + HOUR_US - 1_400_000
    one, two = meter([sample(s * 1_000_000, reading(energy_mj=s * 1000)) for s in range(4)], anchor_us=anchor_us)
    assert (one.from_us, one.to_us) == (anchor_us, MIDNIGHT_US + HOUR_US)
    assert (two.from_us, two.to_us) == (MIDNIGHT_US + HOUR_US, anchor_us + 3_000_000)
    assert two.mono_from_us == 1_400_000
    assert (one.energy_mj, two.energy_mj) == ([1400], [1600])
    assert (one.samples, two.samples) == ([2], [2])


def test_a_span_over_several_hours_is_cut_at_each() -> None:
    bodies = meter([sample(0, reading(energy_mj=0)), sample(2 * HOUR_US + 7, reading(energy_mj=10**9 + 7))])
    assert [b.to_us - b.from_us for b in bodies] == [HOUR_US, HOUR_US, 7]
    assert total(bodies, "energy_mj") == 10**9 + 7


def test_the_interval_before_a_loss_stands_and_lost_time_has_no_samples() -> None:
    good = [reading(energy_mj=s * 1000) for s in range(8)]
    one, two, three = meter(
        [
            sample(0, good[0], good[0]),
            sample(1_000_000, good[1], good[1]),
            sample(2_000_000, None, good[2], error="gpu_lost"),
            sample(3_000_000, None, good[3], error="gpu_lost"),
            sample(4_000_000, good[4], good[4]),
            sample(5_000_000, good[5], good[5]),
        ]
    )
    assert (one.samples, one.energy_mj) == ([1, 1], [1000, 1000])
    assert (two.samples, two.energy_mj) == ([0, 3], [None, 3000])
    assert (three.samples, three.energy_mj) == ([1, 1], [1000, 1000])
    assert all(getattr(two, name)[0] is None for name in FIELDS)


def test_no_chip_no_usage() -> None:
    assert meter([sample(s * 1_000_000, None, error="driver_lost") for s in range(5)]) == []


def test_a_counter_that_went_back_loses_its_span_and_no_more() -> None:
    bodies = meter([sample(s * 1_000_000, reading(energy_mj=e)) for s, e in enumerate((100, 200, 5, 30))])
    assert [(b.samples, b.energy_mj) for b in bodies] == [([1], [100]), ([1], [25])]
    assert isinstance(measure(reading(energy_mj=2), reading(energy_mj=1), 1), Lost)


def test_a_field_that_turns_null_cuts_the_interval_and_loses_nothing() -> None:
    one, two = meter(
        [
            sample(0, reading(energy_mj=0, sm_clock_mhz=1000, tensor_ppm=0)),
            sample(1_000_000, reading(energy_mj=10, sm_clock_mhz=1000, tensor_ppm=1_000_000)),
            sample(2_000_000, reading(energy_mj=20, sm_clock_mhz=1000)),
        ]
    )
    assert (one.energy_mj, one.tensor_mcycles) == ([10], [1000])
    assert (two.energy_mj, two.tensor_mcycles) == ([10], [None])


def test_a_workload_that_comes_cuts_the_interval() -> None:
    one, two = meter(
        [
            sample(0, reading(energy_mj=0)),
            sample(1_000_000, reading(energy_mj=1)),
            sample(2_000_000, reading(energy_mj=9), shares=(share(0, "run:w", 1_000_000),)),
        ]
    )
    assert (one.workloads, one.energy_mj) == ([], [1])
    assert ([s.id for s in two.workloads], two.energy_mj) == (["run:w"], [8])


def test_a_set_wall_clock_ends_the_interval_and_moves_utc() -> None:
    sampler = Sampler(1, 10_000_000, 1_000)
    sampler.add(sample(0, reading(energy_mj=0)))
    sampler.add(sample(1_000_000, reading(energy_mj=1)))
    (before,) = sampler.step_clock(5_000)
    sampler.add(sample(2_000_000, reading(energy_mj=3)))
    (after,) = sampler.flush()
    assert (before.from_us, before.to_us, before.energy_mj) == (1_000, 1_001_000, [1])
    assert (after.from_us, after.mono_from_us, after.energy_mj) == (1_005_000, 1_000_000, [2])


def test_a_value_that_no_one_can_mean_is_not_measured() -> None:
    span = measure(reading(nvlink_tx_kib=0, energy_mj=0), reading(nvlink_tx_kib=2**60, energy_mj=1), 1)
    assert isinstance(span, Span)
    assert dict(zip(SUM_FIELDS, span.sums, strict=True))["nvlink_tx_kib"] is None


# -- properties

STEPS = st.lists(
    st.tuples(
        st.integers(1, 5_000_000),
        st.one_of(st.none(), st.tuples(st.integers(0, 10**6), st.integers(0, 3000), st.integers(0, 10**6))),
        st.one_of(st.none(), st.integers(0, 10**6)),
    ),
    min_size=2,
    max_size=40,
)


def build(steps: Sequence[tuple[int, tuple[int, int, int] | None, int | None]]) -> list[Sample]:
    """One chip: its energy grows by the first number of a step; activity may be missing, the chip too."""
    samples, now, energy = [], 0, 0
    for dt_us, values, tensor in steps:
        chip: Reading | None = None
        if values is not None:
            energy += values[0]
            chip = reading(energy_mj=energy, sm_clock_mhz=values[1], busy_ppm=values[2], tensor_ppm=tensor)
        samples.append(sample(now, chip, error=None if chip is not None else "gpu_lost"))
        now += dt_us
    return samples


@given(STEPS, st.integers(1, 20_000_000), st.integers(0, HOUR_US - 1))
def test_entries_add_up_to_the_rounded_whole(
    steps: list[tuple[int, tuple[int, int, int] | None, int | None]], interval_us: int, offset_us: int
) -> None:
    samples = build(steps)
    exact: dict[str, Fraction] = dict.fromkeys(
        ("energy_mj", "elapsed_mcycles", "busy_us", "tensor_mcycles"), Fraction(0)
    )
    lengths = 0
    for old, new in pairwise(samples):
        a, b, dt = old.chips[0], new.chips[0], new.mono_us - old.mono_us
        if a is None or b is None:
            continue
        lengths += dt
        exact["energy_mj"] += (b.energy_mj or 0) - (a.energy_mj or 0)
        exact["elapsed_mcycles"] += Fraction((b.sm_clock_mhz or 0) * dt, 10**6)
        exact["busy_us"] += Fraction((b.busy_ppm or 0) * dt, 10**6)
        if b.tensor_ppm is not None:
            exact["tensor_mcycles"] += Fraction((b.sm_clock_mhz or 0) * b.tensor_ppm * dt, 10**12)
    bodies = meter(samples, interval_us, MIDNIGHT_US + offset_us)
    for field, value in exact.items():
        assert total(bodies, field) == int(value), field
    assert sum(b.to_us - b.from_us for b in bodies) == lengths


@given(STEPS, st.integers(1, 20_000_000), st.integers(1, 20_000_000))
def test_the_length_of_intervals_changes_no_sum(
    steps: list[tuple[int, tuple[int, int, int] | None, int | None]], one_us: int, other_us: int
) -> None:
    samples = build(steps)
    one, other = meter(samples, one_us), meter(samples, other_us)
    for field in SUM_FIELDS:
        assert total(one, field) == total(other, field)
    assert sum(b.samples[0] for b in one) == sum(b.samples[0] for b in other)


@given(STEPS, st.integers(0, HOUR_US - 1))
def test_entries_are_well_formed_follow_each_other_and_never_hold_a_zero_for_lost_time(
    steps: list[tuple[int, tuple[int, int, int] | None, int | None]], offset_us: int
) -> None:
    covered = -1
    for body in meter(build(steps), anchor_us=MIDNIGHT_US + offset_us):
        assert body.to_us > body.from_us
        assert body.from_us // HOUR_US == (body.to_us - 1) // HOUR_US
        assert body.mono_from_us >= covered
        covered = body.mono_from_us + body.to_us - body.from_us
        # With one chip, time without samples isn't written at all.
        assert body.samples[0] > 0
        assert body.energy_mj[0] is not None


@given(
    st.lists(
        st.tuples(st.integers(1, 3_000_000), st.lists(st.integers(0, 250_000), min_size=4, max_size=4)),
        min_size=1,
        max_size=20,
    )
)
def test_shares_stay_within_the_whole_and_keep_a_whole_whole(steps: list[tuple[int, list[int]]]) -> None:
    now, samples = 0, [sample(0, reading(energy_mj=0), reading(energy_mj=0))]
    for dt_us, parts in steps:
        now += dt_us
        some = tuple(share(0, f"run:{i}", ppm, "shared") for i, ppm in enumerate(parts))
        whole = (share(1, "run:a", parts[0], "shared"), share(1, "run:b", 1_000_000 - parts[0], "shared"))
        samples.append(sample(now, reading(energy_mj=0), reading(energy_mj=0), shares=some + whole))
    for body in meter(samples):
        assert [(s.chip, s.id) for s in body.workloads] == sorted((s.chip, s.id) for s in body.workloads)
        assert sum(s.share_ppm for s in body.workloads if s.chip == 0) <= 1_000_000
        assert sum(s.share_ppm for s in body.workloads if s.chip == 1) == 1_000_000


@pytest.mark.parametrize("interval_us", [1_000_000, 3_000_000, 10_000_000])
def test_shares_are_weighted_by_time(interval_us: int) -> None:
    samples = [sample(0, reading(energy_mj=0))]
    for second, ppm in enumerate([1_000_000, 0, 500_000], start=1):
        samples.append(sample(second * 1_000_000, reading(energy_mj=0), shares=(share(0, "run:w", ppm),)))
    bodies = meter(samples, interval_us)
    weighted = sum(b.workloads[0].share_ppm * (b.to_us - b.from_us) for b in bodies)
    assert weighted == 1_500_000 * 1_000_000
