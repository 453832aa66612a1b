"""What a host says to the start switch: that it asks for a lease, and what it has charged to one.

    permit  {"chips":["GPU-5a…"],"group":"0","hosts":1,"kind":"run","lineage":null,"nonce":"9c1f…","run":"41d0…",
             "spec":{"argv":"verified","config":"declared","data":"unchecked","image":"verified"}}
    lease   {"charged_flop":"73400000000000000","event":"report","gaps":[],"lease":"0f2b…","reason":null}

Neither is taken at the host's word: the verifier leases by the statements of people, and an auditor charges every log
again (:mod:`keyturn_protocol.charging`).
"""

from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.canonical import Decimal, Hex32, Positive, Record, Text, UInt
from keyturn_protocol.errors import bad_entry
from keyturn_protocol.limits import CHIPS_PER_HOST
from keyturn_protocol.values import SPEC_PARTS, ChipUuid, Micros, SpecPart

LeaseKind = Literal["run", "allowance", "diagnostics"]
"""Under what: a run's permit, the allowance of an organisation, or that of a node for tests of its hardware."""
Checked = Literal["verified", "declared", "unchecked"]
"""Of a part of the spec: the host compared it with the commitment; it was only told; nobody said anything."""
WORDS: Final[tuple[Checked, ...]] = ("verified", "declared", "unchecked")
"""The same, from the strongest to the weakest."""
Lineage = Annotated[Text, msgspec.Meta(min_length=1)]
SPENT: Final = "the compute of the lease is used up"
"""The reason of a ``final`` that charges the rest of its lease as well: too little to run on until a stop is over."""


class SpecChecks(Record, frozen=True, kw_only=True):
    """What the host knows about each part of what it starts."""

    argv: Checked
    config: Checked
    data: Checked
    image: Checked

    def verified(self) -> frozenset[SpecPart]:
        """The parts that the host checked itself."""
        return frozenset(part for part in SPEC_PARTS if getattr(self, part) == "verified")


class PermitBody(Record, frozen=True, kw_only=True):
    """This host asks for a lease. ``nonce`` was drawn in the boot that the entry names, for this entry alone.

    ``hosts`` of one ``group`` get their leases together or not at all. ``run`` is the hash of a request, null for an
    allowance; ``lineage`` is the allowance's, null for everything else: a run's stands in its request.
    """

    chips: Annotated[list[ChipUuid], msgspec.Meta(min_length=1, max_length=CHIPS_PER_HOST)]
    group: Text
    hosts: Positive
    kind: LeaseKind
    lineage: Lineage | None
    nonce: Hex32
    run: Hex32 | None
    spec: SpecChecks


class LeaseGap(Record, frozen=True, kw_only=True):
    """Time of a leased chip of which only the energy counter knows, on CLOCK_BOOTTIME of the entry's boot."""

    chip: ChipUuid
    mono_from_us: Micros
    mono_to_us: Micros
    energy_mj: UInt


class LeaseBody(Record, frozen=True, kw_only=True):
    """What this node has charged in all to the subject of a lease, under every lease of that subject that it had.

    The first entry on a lease is ``adopted``, the last ``final``, which alone has a reason. ``gaps`` gives the energy
    of time that no usage entry will cover, so that it costs no more than that energy can have done.
    """

    charged_flop: Decimal
    event: Literal["adopted", "report", "final"]
    gaps: Annotated[list[LeaseGap], msgspec.Meta(max_length=CHIPS_PER_HOST)]
    lease: Hex32
    reason: Text | None


def check_permit(body: PermitBody) -> None:
    """The rules of a ``permit`` entry that its shape doesn't express.

    :raises ProtocolError: ``bad_entry``.
    """
    if body.chips != sorted(set(body.chips)):
        raise bad_entry("chips are distinct and in order", got=", ".join(body.chips))
    if (body.kind == "run") != (body.run is not None):
        raise bad_entry("a lease for a run, and no other, names one", got=f"{body.kind}, run {body.run}")
    if (body.kind == "allowance") != (body.lineage is not None):
        raise bad_entry("a lease under the allowance, and no other, names a lineage", got=body.kind)


def check_lease(body: LeaseBody, mono_us: int) -> None:
    """The rules of a ``lease`` entry that its shape doesn't express.

    :param mono_us: of the entry.
    :raises ProtocolError: ``bad_entry``.
    """
    if (body.event == "final") != (body.reason is not None):
        raise bad_entry("the last word on a lease, and no other, has a reason", got=body.event)
    chips = [gap.chip for gap in body.gaps]
    if chips != sorted(set(chips)):
        raise bad_entry("gaps are in the order of their chips, one for each", got=", ".join(chips))
    for gap in body.gaps:
        if not gap.mono_from_us < gap.mono_to_us <= mono_us:
            expected = f"from < to <= {mono_us}"
            raise bad_entry(
                "a gap that isn't before its entry", expected=expected, got=f"{gap.mono_from_us} … {gap.mono_to_us}"
            )
