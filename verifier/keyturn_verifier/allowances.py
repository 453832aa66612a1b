"""What is left of allowances, for people: by organisation, by lineage, and of each host's tests of the hardware."""

from typing import Final, get_args

from keyturn_protocol.allowance import By, Spending, bound
from keyturn_protocol.api_switch import AllowanceItem
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.switch import Switch

_NOTHING: Final = Spending()
Key = tuple[By, str]
"""What an item is of; the list is in this order."""


def keys(switch: Switch) -> list[Key]:
    """Everything that has an allowance: organisations of the root in force, even before they take anything of theirs;
    lineages and nodes that took something. Empty without a policy.
    """
    authority, free = switch.authority, switch.ledger.free
    if not authority.policies:
        return []
    # An organisation that left the root has what it took before, and no allowance any more.
    names = {
        "organisation": {party.organisation for party in authority.roots[-1][1].parties.values()},
        "lineage": free.lineages.keys(),
        "node": free.nodes.keys(),
    }
    return [(by, name) for by in get_args(By) for name in sorted(names[by])]


def place(key: Key) -> tuple[int, str]:
    """Where a key is in the list."""
    return get_args(By).index(key[0]), key[1]


def item(switch: Switch, key: Key, at_us: int) -> AllowanceItem:
    """What is left of one."""
    (by, name), free = key, switch.ledger.free
    limit, window_s = bound(switch.authority.policies[-1][2].allowance, by)
    taken = {"organisation": free.organisations, "lineage": free.lineages, "node": free.nodes}[by].get(name, _NOTHING)
    used, outstanding = taken.used(window_s, at_us), taken.outstanding_tflop(window_s, at_us)
    return AllowanceItem(
        by=by,
        name=name,
        window_s=window_s,
        limit_tflop=limit,
        # A host may report any number; the others are shown all the same.
        used_tflop=min(used, MAX_INT),
        outstanding_tflop=min(outstanding, MAX_INT),
        free_tflop=max(0, limit - used - outstanding),
    )
