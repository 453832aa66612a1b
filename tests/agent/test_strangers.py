"""Work without a lease: said once for each stretch, and told apart from what outlives its lease."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from keyturn_agent.ports import Reading, Sample
from keyturn_agent.switch.strangers import Strangers
from keyturn_protocol.entry_usage import Share
from tests.agent.samples import chip, reading

CHIPS = [chip("GPU-0"), chip("GPU-1")]


def sample(*work: tuple[int, str]) -> Sample:
    shares = tuple(Share(chip=at, id=name, class_="exclusive", share_ppm=10**6) for at, name in work)
    return Sample(0, (None, None), None, shares)


def test_work_without_a_lease_is_said_once_until_it_is_gone() -> None:
    strangers = Strangers()
    assert strangers.see(CHIPS, {"GPU-1"}, sample((0, "user:1"), (1, "run:a"))) == [
        ("would_refuse", "user:1 computes without a lease, on GPU-0")
    ]
    assert strangers.see(CHIPS, {"GPU-1"}, sample((0, "user:1"))) == []
    assert strangers.see(CHIPS, {"GPU-1"}, sample()) == []
    assert len(strangers.see(CHIPS, {"GPU-1"}, sample((0, "user:1")))) == 1


def test_a_busy_chip_of_nobody_who_is_seen_has_no_lease_either() -> None:
    strangers = Strangers()
    idle, busy = reading(busy_ppm=10_000), reading(busy_ppm=900_000)

    def see(*readings: Reading | None, leased: Collection[str] = (), work: Sequence[tuple[int, str]] = ()) -> list[str]:
        found = strangers.see(CHIPS, leased, replace(sample(*work), chips=readings))
        return [detail for cause, detail in found if cause == "would_refuse"]

    assert see(idle, None) == []
    assert see(busy, None) == ["nobody who is seen computes without a lease, on GPU-0"]
    assert see(busy, None) == []
    assert see(busy, busy, leased={"GPU-1"}) == []
    # The first samples after a lease tell of its own time.
    assert [see(idle, busy) for _ in range(3)] == [[], [], ["nobody who is seen computes without a lease, on GPU-1"]]
    assert see(idle, busy, work=[(1, "user:1")]) == ["user:1 computes without a lease, on GPU-1"]


def test_what_goes_on_after_its_lease_is_a_survivor() -> None:
    strangers = Strangers()
    strangers.see(CHIPS, {"GPU-0"}, sample((0, "run:a")))
    # These tell of the time in which the lease ended.
    assert [strangers.see(CHIPS, (), sample((0, "run:a"))) for _ in range(2)] == [[], []]
    assert strangers.see(CHIPS, (), sample((0, "run:a"), (0, "user:1"))) == [
        ("survivors", "run:a goes on after its lease, on GPU-0"),
        ("would_refuse", "user:1 computes without a lease, on GPU-0"),
    ]


def test_another_lease_begins_anew() -> None:
    strangers = Strangers()
    strangers.see(CHIPS, {"GPU-0"}, sample((0, "run:a")))
    strangers.see(CHIPS, (), sample())
    strangers.see(CHIPS, {"GPU-0"}, sample((0, "run:b")))
    for _ in range(2):
        strangers.see(CHIPS, (), sample())
    assert strangers.see(CHIPS, (), sample((0, "run:a"))) == [
        ("would_refuse", "run:a computes without a lease, on GPU-0")
    ]
