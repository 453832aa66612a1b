"""What goes on when the chips of a host change: nothing is lost, and nothing keeps a number that isn't its own."""

from keyturn_agent.meter import NO_CHIPS, Meter, gone_meanwhile
from keyturn_agent.ports import Reading, Sample
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_log import DegradedBody, GapBody, RetiredBody
from keyturn_protocol.entry_usage import Share, UsageBody
from keyturn_protocol.entry_workloads import WorkloadEndedBody
from tests.agent.samples import header, reading

SECOND_US = 1_000_000
LIKE = header(1).chips[0]


def chip(uuid: str, parent: str | None = None) -> Chip:
    values = {name: getattr(LIKE, name) for name in Chip.__struct_fields__}
    return Chip(**values | {"uuid": uuid, "parent": parent, "role": "gpu" if parent is None else "mig_instance"})


def listed(*uuids: str) -> InventoryBody:
    return header(1).inventory([chip(uuid) for uuid in uuids])


def sample(second: int, *chips: Reading | None, error: str | None = None, shares: tuple[Share, ...] = ()) -> Sample:
    return Sample(second * SECOND_US, chips, error, shares)


def on(chip: int, workload: str) -> Share:
    return Share(chip=chip, id=workload, class_="exclusive", share_ppm=1_000_000)


def at(second: int) -> Reading:
    return reading(energy_mj=1000 * second)


def meter(*uuids: str) -> Meter:
    return Meter(listed(*uuids), lambda _: None, 10 * SECOND_US, 0)


def of(kind: type[Body], bodies: list[Body]) -> list[Body]:
    return [body for body in bodies if isinstance(body, kind)]


def test_a_chip_that_stays_is_measured_across_the_change() -> None:
    metered = meter("a", "b")
    bodies = [body for s in range(3) for body in metered.take(sample(s, at(s), at(2 * s))).bodies]
    bodies += metered.relist(listed("new", "b", "a"))
    bodies += [b for s in range(3, 6) for b in metered.take(sample(s, at(s), at(2 * s), at(s))).bodies]
    before, *after = (b for b in [*bodies, *metered.flush()] if isinstance(b, UsageBody))
    assert before.energy_mj == [2000, 4000]
    assert [sum(b.energy_mj[i] or 0 for b in after) for i in range(3)] == [2000, 6000, 3000]
    assert after[0].from_us == before.to_us
    (gap,) = (b for b in bodies if isinstance(b, GapBody))
    assert (gap.chips, gap.cause) == ([0], "newly_listed")


def test_parts_of_a_unit_are_carried_across_the_change() -> None:
    half = reading(sm_clock_mhz=1000, tensor_ppm=500)
    metered = meter("a")
    bodies = [body for s in range(2) for body in metered.take(sample(s, half)).bodies]
    bodies += metered.relist(listed("a"))
    bodies += [*metered.take(sample(2, half)).bodies, *metered.flush()]
    assert sum(b.tensor_mcycles[0] or 0 for b in bodies if isinstance(b, UsageBody)) == 1


def test_a_loss_that_goes_on_keeps_its_beginning_and_gets_its_new_number() -> None:
    metered = meter("a", "b")
    bodies: list[Body] = []
    for second, b in enumerate((at(0), at(1), None, None)):
        bodies += metered.take(sample(second, at(second), b, error=None if b else "gpu_lost")).bodies
    bodies += metered.relist(listed("b", "a"))
    bodies += metered.take(sample(4, None, at(4), error="gpu_lost")).bodies
    assert len(of(DegradedBody, bodies)) == 1, "it was said once"
    (gap,) = metered.missing(5 * SECOND_US)
    assert (gap.chips, gap.from_us, gap.cause) == ([0], SECOND_US, "gpu_lost")


def test_a_field_that_is_lost_with_the_change_is_said() -> None:
    metered = meter("a")
    for second in range(2):
        metered.take(sample(second, reading(energy_mj=second, busy_ppm=7)))
    metered.relist(listed("b", "a"))
    bodies = metered.take(sample(2, None, reading(energy_mj=2), error="no_permission")).bodies
    degraded = next(b for b in bodies if isinstance(b, DegradedBody) and b.cause == "fields_lost")
    assert degraded.detail == "chip 1: busy_us"


def test_workloads_get_the_new_numbers_and_end_with_their_chips() -> None:
    metered = meter("a", "b", "c")
    for second in range(2):
        shares = (on(0, "run:x"), on(1, "run:x"), on(2, "run:y"))
        metered.take(sample(second, at(second), at(second), at(second), shares=shares))
    bodies = metered.relist(listed("b"))
    assert [b.id for b in bodies if isinstance(b, WorkloadEndedBody)] == ["run:y"]
    assert [(b.id, b.chips) for b in metered.present()] == [("run:x", [0])]
    assert [b.chips for b in bodies if isinstance(b, RetiredBody)] == [["a", "c"]]
    assert isinstance(bodies[-1], InventoryBody)
    # It is gone from chip 0 when that can be read, and not before.
    assert not of(WorkloadEndedBody, metered.take(sample(2, None, error="x")).bodies)
    assert of(WorkloadEndedBody, metered.take(sample(3, at(3))).bodies)


def test_a_host_without_chips_is_lost_as_a_whole() -> None:
    metered = meter()
    assert not metered.take(sample(0)).bodies
    (degraded,) = (b for b in metered.take(sample(1)).bodies if isinstance(b, DegradedBody))
    assert degraded.cause == NO_CHIPS
    assert [(g.chips, g.from_us) for g in metered.missing(9 * SECOND_US)] == [(None, 0)]


def test_only_instances_of_a_gpu_that_is_there_are_gone() -> None:
    before = [chip("g"), chip("m1", "g"), chip("m2", "g"), chip("h"), chip("m3", "h")]
    assert gone_meanwhile(before, [chip("g"), chip("m2", "g")]) == ["m1"]
    assert gone_meanwhile([], before) == []
