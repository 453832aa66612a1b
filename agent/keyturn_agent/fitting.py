"""What is left out of an entry that would be larger than the format allows. Pure.

A host with 64 MIG instances, or with a thousand containers on its chips, is no reason to stop metering. What is left
out is never a measurement: the names of calls behind reasons, then the reasons and methods themselves; of usage the
smallest shares, and what they had is ``unattributed``.
"""

from collections.abc import Iterator
from functools import partial

from msgspec.structs import replace

from keyturn_protocol.canonical import encode_record
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_usage import UsageBody


def smaller(body: Body, excess: int) -> Iterator[Body]:
    """Forms of a body that take less room, each less than the one before.

    :param excess: bytes that it is over the cap.
    """
    match body:
        case InventoryBody():
            for form in (
                _short_reasons,
                partial(replace, not_measured={}),
                partial(replace, not_measured={}, measured_by={}),
            ):
                yield replace(body, chips=[form(chip) for chip in body.chips])
        case UsageBody():
            yield _fewer_shares(body, excess)
        case _:
            return


def _short_reasons(chip: Chip) -> Chip:
    """``not_supported: nvmlGpmMetricsGet`` as ``not_supported``."""
    return replace(chip, not_measured={name: why.partition(":")[0] for name, why in chip.not_measured.items()})


def _fewer_shares(body: UsageBody, excess: int) -> UsageBody:
    gone = set()
    for share in sorted(body.workloads, key=lambda share: (share.share_ppm, share.chip, share.id)):
        if excess <= 0:
            break
        gone.add((share.chip, share.id))
        excess -= len(encode_record(share)) + 1
    return replace(body, workloads=[share for share in body.workloads if (share.chip, share.id) not in gone])
