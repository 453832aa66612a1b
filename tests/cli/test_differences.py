"""What is other in a new version is named, every bit of it."""

from typing import Any

import msgspec
import pytest

from keyturn_cli.differences import differences
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Root, Threshold, Thresholds
from tests.support.parties import changed, person, person_key, policy, root, service, tier

ONE = Threshold(persons=1, organisations=1, minimum={})


def said(old: Any, new: Any) -> list[str]:
    return [str(one) for one in differences(old, new)]


def test_nothing_is_other_in_the_same_version_made_again() -> None:
    assert said(root(), changed(root(), time_us=7, version=2, previous="1" * 64, root="1" * 64)) == []
    assert said(policy("1" * 64), changed(policy("2" * 64), version=2)) == []


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"thresholds": Thresholds(root=ONE, policy=root().thresholds.policy)},
            ["  thresholds.root.persons: 2 → 1", "  thresholds.root.organisations: 2 → 1"],
        ),
        ({"persons": root().persons[1:]}, ["- persons.lab-a/ada: "]),
        ({"persons": [*root().persons, person("office/zoe")]}, ["+ persons.office/zoe: "]),
        (
            {"persons": [person("lab-a/ada", person_key("lab-a/ada", compromised_since_us=0)), *root().persons[1:]]},
            ["compromised_since_us: none → 1970-01-01 00:00:00Z"],
        ),
        ({"services": changed(root().services, lease_vkey=service("other", 1))}, ["  services.lease_vkey: "]),
        (
            {"parties": [changed(one, class_="lab") for one in root().parties]},
            ["parties.office.class: regulator → lab"],
        ),
    ],
)
def test_of_a_root(changes: dict[str, Any], lines: list[str]) -> None:
    found = said(root(), changed(root(), **changes))
    for line in lines:
        assert any(line in one for one in found), found


def test_every_field_of_a_root_and_policy_shows_when_it_changes() -> None:
    """Whatever leaf of the structure is changed, some line says so: nothing is compared by accident only."""
    whole: list[tuple[Root | Policy, int]] = [(root(), 40), (policy("1" * 64), 25)]
    for value, least in whole:
        plain = msgspec.to_builtins(value)
        paths = list(leaves(plain))
        tried = 0
        for path in paths:
            other = msgspec.to_builtins(value)
            put(other, path)
            try:
                new = msgspec.convert(other, type(value))
            except msgspec.ValidationError:
                continue
            tried += 1
            assert (said(value, new) == []) == (path[0] in ("v", "time_us", "root", "version", "previous")), path
        assert tried >= least


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Any:
    match value:
        case dict():
            for key, one in value.items():
                yield from leaves(one, (*path, key))
        case list():
            for at, one in enumerate(value):
                yield from leaves(one, (*path, at))
        case _:
            yield path


def put(value: Any, path: tuple[Any, ...]) -> None:
    for step in path[:-1]:
        value = value[step]
    old = value[path[-1]]
    match old:
        case bool():
            new: Any = not old
        case int():
            new = old + 1
        case None:
            new = 1
        case _:
            new = f"{old}x"
    value[path[-1]] = new


def test_a_tier_that_is_added_or_whose_order_changes() -> None:
    small = tier(name="small")
    both = policy("1" * 64, tiers=[small, tier()])
    assert said(policy("1" * 64), both)[0].startswith("+ tiers.small: ")
    swapped = policy("1" * 64, tiers=[tier(), small])
    assert said(both, swapped) == ["  tiers: order: small, large → large, small"]
