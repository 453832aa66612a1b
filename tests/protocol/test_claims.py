"""A chip is its first node's, while that one lists it and is heard of: who squats on it is refused, its host isn't."""

import pytest

from keyturn_protocol.authority import Refused
from keyturn_protocol.claims import LIVE_S, Claims, Naming, check_claims, naming_in
from keyturn_protocol.entries import Entry, parse_entry
from keyturn_protocol.entry_log import RetiredBody, Source
from keyturn_protocol.ids import LogName, parse_origin
from tests.support.hosts import Host
from tests.support.leasing import log
from tests.support.metered import NAME

X, Y = "GPU-x", "GPU-y"
OWNER, SQUATTER, THIRD = "owner", "squatter", "third"


class Register:
    """What is heard of nodes, in seconds; each segment lists all that its host has."""

    def __init__(self) -> None:
        self.claims = Claims()
        self.replaced: dict[str, str] = {}

    def name(self, node: str, incarnation: int = 1) -> LogName:
        return parse_origin(log(node, incarnation))

    def heard(
        self,
        node: str,
        at_s: int,
        chips: list[str] | None = None,
        *,
        incarnation: int = 1,
        named: list[str] | None = None,
        source: Source = "nvml",
        retired: bool = False,
    ) -> None:
        """
        :param chips: of an inventory; None: there is none in the segment.
        :param named: also retired by name.
        """
        name = self.name(node, incarnation)
        listed = None if chips is None else frozenset(chips)
        said = frozenset((listed or frozenset()) | set(named or ()))
        self.claims.received(name, at_s, Naming(0, source, said, listed, retired))

    def alive(self, node: str, at_s: int, incarnation: int = 1) -> None:
        self.claims.received(self.name(node, incarnation), at_s, None)

    def refusal(self, node: str, at_s: int, chips: tuple[str, ...] = (X,)) -> Refused:
        with pytest.raises(Refused) as caught:
            check_claims(self.claims, self.name(node).node_id, chips, self.replaced, at_s * 1_000_000)
        assert caught.value.why == "chip_claimed"
        return caught.value

    def free(self, node: str, at_s: int, chips: tuple[str, ...] = (X,)) -> None:
        check_claims(self.claims, self.name(node).node_id, chips, self.replaced, at_s * 1_000_000)


@pytest.fixture
def squatted() -> Register:
    """The owner has had the chip since second 100; somebody else lists it as well since 200."""
    made = Register()
    made.heard(OWNER, 100, [X, Y])
    made.heard(SQUATTER, 200, [X])
    return made


def test_a_chip_that_another_node_named_first_and_lists(squatted: Register) -> None:
    squatted.refusal(SQUATTER, 200)
    squatted.free(OWNER, 200)


def test_the_refusal_names_both_nodes_and_the_chip(squatted: Register) -> None:
    owner, squatter = (squatted.name(node).node_id for node in (OWNER, SQUATTER))
    assert f"(expected node {owner}, got {X} of node {squatter})" in str(squatted.refusal(SQUATTER, 200))


def test_one_chip_of_another_node_among_many_of_its_own(squatted: Register) -> None:
    squatted.heard(SQUATTER, 210, ["GPU-0", X, "GPU-1"])
    squatted.free(SQUATTER, 210, ("GPU-0", "GPU-1"))
    squatted.refusal(SQUATTER, 210, ("GPU-0", "GPU-1", X))


def test_a_squatter_that_starts_another_log(squatted: Register) -> None:
    squatted.heard(SQUATTER, 300, [X], incarnation=2)
    squatted.refusal(SQUATTER, 300)


def test_two_squatters_are_in_line_behind_the_owner(squatted: Register) -> None:
    squatted.heard(THIRD, 300, [X])
    squatted.refusal(THIRD, 300)
    squatted.heard(OWNER, 310, [Y])
    squatted.refusal(THIRD, 310)
    squatted.free(SQUATTER, 310)


def test_a_squatter_that_replays_a_recording(squatted: Register) -> None:
    squatted.heard(THIRD, 300, [X], source="replay")
    squatted.refusal(THIRD, 300)


def test_a_recording_of_the_chip_that_was_there_first_claims_nothing() -> None:
    made = Register()
    made.heard(SQUATTER, 1, [X], source="replay")
    made.heard(OWNER, 100, [X])
    made.alive(SQUATTER, 100)
    made.free(OWNER, 100)


def test_who_replayed_the_chip_first_and_lists_it_then() -> None:
    made = Register()
    made.heard(SQUATTER, 1, [X], source="replay")
    made.heard(OWNER, 100, [X])
    made.heard(SQUATTER, 200, [X], incarnation=2)
    made.free(OWNER, 200)
    made.refusal(SQUATTER, 200)


def test_an_owner_whose_next_log_goes_on(squatted: Register) -> None:
    """After a key roll, or a log that was left."""
    squatted.heard(OWNER, 300, [X, Y], incarnation=2)
    squatted.refusal(SQUATTER, 300)
    squatted.free(OWNER, 300)


def test_an_owner_that_listed_no_chip_for_a_while(squatted: Register) -> None:
    """Paused, or with a driver that was being upgraded: nobody takes its place meanwhile, for good."""
    squatted.heard(OWNER, 300, [])
    squatted.free(SQUATTER, 300)
    squatted.heard(OWNER, 400, [X, Y])
    squatted.refusal(SQUATTER, 400)
    squatted.free(OWNER, 400)


def test_an_owner_that_was_silent_and_is_back(squatted: Register) -> None:
    squatted.alive(SQUATTER, 100 + LIVE_S)
    squatted.refusal(SQUATTER, 100 + LIVE_S)
    squatted.free(SQUATTER, 100 + LIVE_S + 1)
    squatted.alive(OWNER, 100 + LIVE_S + 2)
    squatted.refusal(SQUATTER, 100 + LIVE_S + 2)


def test_an_owner_is_never_held_up_by_who_came_later(squatted: Register) -> None:
    squatted.alive(SQUATTER, 5_000)
    squatted.free(OWNER, 5_000)


def test_a_chip_that_its_old_host_lists_no_more_is_free_at_once(squatted: Register) -> None:
    squatted.heard(OWNER, 300, [Y])
    squatted.free(SQUATTER, 300)
    squatted.refusal(SQUATTER, 300, (Y,))


def test_a_chip_of_a_host_that_retired_is_free_at_once(squatted: Register) -> None:
    squatted.heard(OWNER, 300, retired=True)
    squatted.free(SQUATTER, 300)


def test_a_chip_that_its_old_host_retired_by_name_is_free_with_its_next_inventory(squatted: Register) -> None:
    squatted.heard(OWNER, 300, [Y], named=[X])
    squatted.free(SQUATTER, 300)


def test_a_chip_of_a_node_that_was_replaced_is_free_at_once(squatted: Register) -> None:
    old, new = (squatted.name(node).node_id for node in (OWNER, SQUATTER))
    squatted.replaced = {old: new}
    squatted.free(SQUATTER, 200)
    squatted.heard(THIRD, 300, [X])
    squatted.refusal(THIRD, 300)


def test_an_owner_whose_newest_log_lists_it_no_more(squatted: Register) -> None:
    squatted.heard(OWNER, 300, [Y], incarnation=2)
    squatted.free(SQUATTER, 300)
    # What comes late of the old log changes nothing: it is the newest that speaks for the node.
    squatted.heard(OWNER, 310, [X], incarnation=1)
    squatted.free(SQUATTER, 310)


def test_a_chip_that_nobody_else_named(squatted: Register) -> None:
    squatted.free(THIRD, 300, ("GPU-new",))


def entries(host: Host) -> list[Entry]:
    return [parse_entry(line) for line in host.lines]


def test_what_the_entries_of_a_segment_say() -> None:
    host = Host("a", NAME).genesis(source="nvml").inventory(named=[X]).usage().inventory(named=[Y])
    host.add(RetiredBody(chips=["GPU-z"], reason="moved"))
    whole = entries(host)
    assert naming_in(whole) == Naming(0, "nvml", frozenset({X, Y, "GPU-z"}), frozenset({Y}), retired=False)
    assert naming_in(whole[3:]) == Naming(3, None, frozenset({Y, "GPU-z"}), frozenset({Y}), retired=False)
    assert naming_in(whole[2:3]) is None
    host.add(RetiredBody(chips=None, reason="sold"))
    assert naming_in(entries(host)[5:]) == Naming(5, None, frozenset(), None, retired=True)
