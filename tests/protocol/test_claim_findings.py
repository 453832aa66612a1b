"""Two nodes that list one chip at once are a finding that names both; a chip that moved between them is none."""

import pytest

from keyturn_protocol.claim_findings import Listings
from keyturn_protocol.claims import LIVE_S, Naming
from keyturn_protocol.entry_log import Source
from keyturn_protocol.findings import Finding
from keyturn_protocol.ids import parse_origin
from tests.support.leasing import log

X, Y, Z = "GPU-x", "GPU-y", "GPU-z"
Segment = tuple[str, int, list[str] | None]
"""A node, when its segment was received, and the chips of an inventory in it; a digit after the node: its log."""


def found(*segments: Segment, source: Source = "nvml", retired: str = "") -> list[Finding]:
    """
    :param source: of node ``b``.
    :param retired: a node whose last segment retires it.
    """
    listings, last = Listings(), {node: at for at, (node, _, _) in enumerate(segments)}
    for at, (node, time_s, chips) in enumerate(segments):
        name = parse_origin(log(node[0], int(node[1:] or 1)))
        listed = None if chips is None else frozenset(chips)
        leaves = node == retired and last[node] == at
        listings.received(name, time_s, Naming(0, source if node[0] == "b" else "nvml", frozenset(), listed, leaves))
    return listings.findings()


def node(name: str) -> str:
    return parse_origin(log(name)).node_id


BOTH: dict[str, tuple[Segment, ...]] = {
    "one lists the chip of another, who goes on": (("a", 0, [X]), ("b", 100, [X]), ("a", 200, None)),
    "and both go on": (("a", 0, [X]), ("b", 100, [X]), ("a", 200, None), ("b", 300, None)),
    "and gives it up again": (("a", 0, [X]), ("b", 100, [X]), ("b", 150, []), ("a", 200, None)),
    "in its next log": (("a", 0, [X]), ("b", 50, [Y]), ("b2", 100, [X]), ("a", 200, None)),
    "whose host changes its log": (("a", 0, [X]), ("a2", 50, [X]), ("b", 100, [X]), ("a2", 200, None)),
    "whose host was paused meanwhile": (
        ("a", 0, [X]),
        ("a", 50, []),
        ("b", 100, [X]),
        ("a", 150, [X]),
        ("b", 200, None),
    ),
    "whose host was silent meanwhile": (
        *(("a", 0, [X]), ("b", LIVE_S, [X]), ("b", 2 * LIVE_S, None), ("a", 2 * LIVE_S + 1, None)),
        ("b", 2 * LIVE_S + 2, None),
    ),
}


@pytest.mark.parametrize("segments", BOTH.values(), ids=BOTH)
def test_who_lists_a_chip_of_another_node(segments: tuple[Segment, ...]) -> None:
    (one,) = found(*segments)
    assert (one.code, one.severity) == ("chip_claimed", "high")
    assert parse_origin(one.origin).node_id == node("b"), "it is about the later one"
    assert one.detail == f"lists {X} as its own, and so does node {node('a')}, which did so first"


NONE: dict[str, tuple[Segment, ...]] = {
    "nobody else lists": (("a", 0, [X]), ("b", 0, [Y]), ("a", 100, None), ("b", 100, None)),
    "moved, off its old host's list": (
        ("a", 0, [X]),
        ("a", 50, []),
        ("b", 100, [X]),
        ("a", 200, None),
        ("b", 200, None),
    ),
    "moved, its old host back without it": (("a", 0, [X]), ("b", 100, [X]), ("b", 200, None), ("a", 300, [])),
    "moved, its old host never heard of again": (("a", 0, [X]), ("b", 100, [X]), ("b", 200, None)),
    "moved, and back": (("a", 0, [X]), ("a", 1, []), ("b", 2, [X]), ("b", 3, []), ("a", 4, [X]), ("b", 5, None)),
    "moved while its old host was off, and back": (("a", 0, [X]), ("b", 1, [X]), ("b", 9, []), ("a", LIVE_S + 9, None)),
    "moved within a second": (("a", 0, [X]), ("a", 100, None), ("b", 100, [X]), ("b", 200, None)),
    "of one node in two logs": (("a", 0, [X]), ("a2", 50, [X]), ("a", 100, None), ("a2", 200, None)),
}


@pytest.mark.parametrize("segments", NONE.values(), ids=NONE)
def test_a_chip_that_no_two_nodes_list_at_once(segments: tuple[Segment, ...]) -> None:
    assert found(*segments) == []


def test_a_replay_lists_what_it_likes() -> None:
    assert found(*BOTH["and both go on"], source="replay") == []


def test_a_host_that_retired_lists_nothing_any_more() -> None:
    assert found(("a", 0, [X]), ("a", 100, None), ("b", 100, [X]), ("b", 200, None), retired="a") == []


def test_a_host_that_lists_a_chip_once_more_as_it_retires() -> None:
    assert found(("a", 0, [X]), ("b", 50, [X]), ("a", 100, [X]), ("b", 200, None), retired="a") == []


def test_many_chips_of_one_node_are_one_finding_with_its_times() -> None:
    (one,) = found(("a", 0, [X, Y, Z]), ("b", 100, [Y]), ("b", 110, [X, Y]), ("a", 200, None), ("b", 300, None))
    assert one.detail == f"lists {X} and 1 more as its own, and so does node {node('a')}, which did so first"
    assert (one.from_us, one.to_us) == (100_000_000, 200_000_000)


def test_each_node_that_was_there_before_is_named() -> None:
    segments = [("a", 0, [X]), ("b", 10, [Y]), ("c", 100, [X, Y]), ("a", 200, None), ("b", 200, None)]
    assert sorted((parse_origin(one.origin).node_id, one.detail.split()[9]) for one in found(*segments)) == sorted(
        (node("c"), f"{node(earlier)},") for earlier in "ab"
    )


def test_two_nodes_of_the_same_second() -> None:
    (one,) = found(("a", 0, [X]), ("b", 0, [X]), ("a", 100, None), ("b", 100, None))
    names = {parse_origin(one.origin).node_id, one.detail.split()[9].rstrip(",")}
    assert names == {node("a"), node("b")}
