"""Workloads: when one was seen, what it starts from, and when it ended."""

import msgspec

from keyturn_protocol.canonical import Decimal, Hex32, Record, Text, UInt
from keyturn_protocol.entry_usage import ShareClass
from keyturn_protocol.errors import bad_entry
from keyturn_protocol.ids import workload_id
from keyturn_protocol.values import Slug


class Parent(Record, frozen=True, kw_only=True):
    """What a workload starts from: another workload's output, or an outside model with its own interval.

    ``flop_high`` null means unbounded.
    """

    workload: str | None
    output_sha256: Hex32 | None
    flop_low: Decimal | None
    flop_high: Decimal | None
    basis: Text | None


class WorkloadStartedBody(Record, frozen=True, kw_only=True):
    """A workload was seen or declared. ``declared_dtype`` is the operator's word, checked by no counter."""

    id: str
    class_: ShareClass = msgspec.field(name="class")
    chips: list[UInt]
    declared_dtype: Slug | None
    name_commitment: Hex32 | None
    parents: list[Parent]


class WorkloadEndedBody(Record, frozen=True, kw_only=True):
    """``output_sha256`` commits to what the workload produced, so that children can cite it."""

    id: str
    output_sha256: Hex32 | None
    reason: Text | None


def check_parent(parent: Parent) -> None:
    if parent.workload is not None:
        workload_id(parent.workload)
    if parent.flop_low is not None and parent.flop_high is not None and int(parent.flop_low) > int(parent.flop_high):
        raise bad_entry("parent with low above high", expected=f"<= {parent.flop_high}", got=parent.flop_low)
