"""Who may replace a root, and which policies there can be."""

from typing import Any

import pytest

from keyturn_protocol.authority import Why
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.policy import Above, policy_faults
from keyturn_protocol.root import Threshold, stand
from tests.support.outcomes import LARGE, SMALL, refused
from tests.support.parties import BEGIN, DAY, PEOPLE, World, changed, person, person_key, policy, public, root, tier

# Roots


def test_a_root_is_replaced_by_the_thresholds_of_both() -> None:
    world = World.begun()
    old = world.authority.roots[-1][1].root
    new = changed(old, version=2, previous=world.root_hash, root=world.root_hash)
    refused(Why.THRESHOLD, lambda: world.put_root(new, "lab-a/ada", "lab-a/bob"), world)
    strangers = [person("lab-a/max"), person("office/kim")]
    taken = changed(new, persons=strangers)
    refused(Why.THRESHOLD, lambda: world.put_root(taken, "lab-a/max", "office/kim"), world)
    refused(Why.THRESHOLD, lambda: world.put_root(taken, "lab-a/ada", "office/ivy"), world)
    world.put_root(taken, "lab-a/ada", "office/ivy", "lab-a/max", "office/kim")


@pytest.mark.parametrize("version", [1, 3])
def test_an_older_root_or_a_gap_between_two(version: int) -> None:
    world = World.begun()
    old = world.authority.roots[-1][1].root
    previous = None if version == 1 else world.root_hash
    refused(
        Why.VERSION,
        lambda: world.put_root(changed(old, version=version, previous=previous, root=previous, time_us=1)),
        world,
    )


def test_one_key_twice_in_a_root() -> None:
    twice = [person("lab-a/ada"), person("lab-a/bob", person_key("lab-a/ada"))]
    with pytest.raises(ProtocolError, match="one key is listed twice"):
        World.begun(of=root(persons=twice))
    assert public("lab-a/ada").id == public("lab-a/ada").id


# Policies


def broken(*tiers: Any, **changes: Any) -> str:
    world = World()
    world.put_root(root())
    with pytest.raises(ProtocolError) as error:
        world.put_policy(policy(world.root_hash, tiers=list(tiers) or [tier()], **changes))
    return str(error.value)


def test_what_one_policy_passed_is_no_pass_for_another() -> None:
    # Of one version, under one name of a root, at one time: what a careless memory would tell by.
    until = {"valid_until_us": BEGIN + DAY}
    whole = stand(root(persons=[person(name, person_key(name, **until)) for name in sorted(PEOPLE)]), "0" * 64)
    fewer = stand(root(persons=[person("lab-a/ada"), person("operator-b/eve")]), "0" * 64)
    good, bad = policy("0" * 64), policy("0" * 64, requesters=["third-party"])
    for _ in range(2):
        assert policy_faults(good, whole, BEGIN) == []
        assert policy_faults(good, fewer, BEGIN)
        assert policy_faults(bad, whole, BEGIN)
        assert policy_faults(good, whole, BEGIN + DAY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"approve": Threshold(persons=7, organisations=3, minimum={"lab": 1})}, "can never approve"),
        ({"approve": Threshold(persons=3, organisations=3, minimum={"lab": 2})}, "can never approve"),
        ({"approve": Threshold(persons=3, organisations=3, minimum={"third-party": 1})}, "1 third-party"),
        ({"approve": Threshold(persons=3, organisations=3, minimum={})}, "no class whose consent"),
        ({"approve": Threshold(persons=2, organisations=3, minimum={"lab": 1})}, "3 organisations, but only 2"),
        ({"approve": Threshold(persons=1, organisations=1, minimum={"lab": 1, "operator": 1})}, "2 persons by class"),
        ({"veto": []}, "nobody can suspend"),
        ({"veto": ["third-party"]}, "nobody can suspend"),
        ({"veto": ["third-party"], "deny": 6}, "can never refuse"),
        ({"watchers": ["office"]}, "no watcher of office"),
        ({"above": Above(budget_tflop=None, chips=None, lineage_tflop=None)}, "no size"),
        ({"verified": ["image", "argv"]}, "verified is sorted"),
    ],
)
def test_a_policy_that_cannot_approve_or_cannot_refuse(changes: dict[str, Any], said: str) -> None:
    assert said in broken(tier(**changes))


@pytest.mark.parametrize(
    ("upper", "said"),
    [
        (LARGE, None),
        (changed(LARGE, above=SMALL.above), "must be above that of tier small"),
        (changed(LARGE, veto=["operator"]), "takes a veto away"),
        (changed(LARGE, approve=Threshold(persons=2, organisations=2, minimum={"lab": 1})), "less consent"),
        (changed(LARGE, name="small"), "two tiers of one name"),
    ],
)
def test_a_larger_run_never_needs_less(upper: Any, said: str | None) -> None:
    if said is None:
        World.begun(tiers=[SMALL, upper])
    else:
        assert said in broken(SMALL, upper)


@pytest.mark.parametrize("field", ["persons", "organisations"])
def test_a_zero_threshold_has_no_form(field: str) -> None:
    good = {"persons": 1, "organisations": 1, "minimum": {"lab": 1}}
    decode(encode(good), Threshold)
    for bad in ({**good, field: 0}, {k: v for k, v in good.items() if k != field}, {**good, "minimum": {"lab": 0}}):
        with pytest.raises(ProtocolError):
            decode(encode(bad), Threshold)
