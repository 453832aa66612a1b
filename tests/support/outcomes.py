"""What became of a :class:`~tests.support.parties.World`, and two tiers to tell apart in one."""

from collections.abc import Callable
from typing import Any

import pytest

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.lifecycle import Run, State, state
from keyturn_protocol.policy import Above
from tests.support.parties import SECOND, World, tier

SMALL = tier(name="small", above=Above(budget_tflop=10**9, chips=None, lineage_tflop=10**10))
LARGE = tier(name="very-large", above=Above(budget_tflop=10**11, chips=1024, lineage_tflop=10**12))


def at(world: World, later_s: int = 0, charged: int = 0) -> State:
    assert world.run is not None
    return state(world.run, world.now_us + later_s * SECOND, charged)


def the_run(world: World) -> Run:
    assert world.run is not None
    return world.run


def refused(why: Why, call: Callable[[], Any], world: World) -> None:
    """It is refused for this reason, and nothing changes."""
    before = world.run, world.authority, world.index
    with pytest.raises(Refused) as refusal:
        call()
    assert refusal.value.why is why, str(refusal.value)
    assert (world.run, world.authority, world.index) == before
