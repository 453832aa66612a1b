"""What a host knows of what it starts, against the commitments that were approved. Pure.

A commitment is opened with its salt; then its value is compared with what is about to run. The agent compares the
command line and hashes files itself (*verified*); a digest that it is only told (*declared*), and a part about which
nobody says anything (*unchecked*), are weaker, and a policy may refuse them. A mismatch is refused by every policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from keyturn_agent.errors import RefusedError
from keyturn_protocol.entry_switch import Checked, SpecChecks
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.openings import ARGV, Openings, check_openings
from keyturn_protocol.values import SPEC_PARTS, SpecPart

NOTHING = SpecChecks(argv="unchecked", config="unchecked", data="unchecked", image="unchecked")
"""For what needs no permit."""


@dataclass(frozen=True, slots=True)
class Start:
    """What is about to be started, with digests (``sha256:<hex>``) of files that were hashed here, and those told."""

    argv: Sequence[str]
    hashed: Mapping[SpecPart, str] = field(default_factory=dict)
    told: Mapping[SpecPart, str] = field(default_factory=dict)


def check_spec(spec: Mapping[SpecPart, str | None], openings: Openings | None, start: Start) -> SpecChecks:
    """Compare what is started with what was committed to.

    :param spec: of the run: the request's, or that of an amendment.
    :raises RefusedError: ``bad_openings``: they open other commitments; ``other_program``, ``other_image``,
        ``other_config``, ``other_data``: what is started is not what was approved.
    """
    parts = {} if openings is None else openings.parts
    if openings is not None:
        try:
            check_openings(openings, spec)
        except ProtocolError as error:
            raise RefusedError(
                "bad_openings", f"the openings are not this run's: {error}", hint="take those of the request itself"
            ) from None
    found: dict[str, Checked] = {}
    for part in SPEC_PARTS:
        opening = parts.get(part)
        if opening is None:
            found[part] = "unchecked"
        elif part == ARGV:
            found[part] = _same(part, opening.value, list(start.argv), "verified")
        elif part in start.hashed:
            found[part] = _same(part, opening.value, start.hashed[part], "verified")
        elif part in start.told:
            found[part] = _same(part, opening.value, start.told[part], "declared")
        else:
            found[part] = "unchecked"
    return SpecChecks(**found)


def check_wanted(checks: SpecChecks, wanted: Sequence[SpecPart], spec: Mapping[SpecPart, str | None]) -> None:
    """That the parts which the policy wants verified are.

    :raises RefusedError: ``unverified``.
    """
    missing = [part for part in wanted if part not in checks.verified()]
    if not missing:
        return
    how = {
        "argv": "--openings FILE",
        "image": "--image FILE",
        "config": "--config FILE",
        "data": "--data-manifest FILE",
    }
    hint = "give --openings FILE" + "".join(f" and {how[part]}" for part in missing if part != ARGV)
    if nothing := [part for part in missing if spec.get(part) is None]:
        hint = f"the request commits to no {' or '.join(nothing)}: it can't be verified"
    raise RefusedError("unverified", f"the policy wants verified here: {', '.join(missing)}", hint=hint)


def replaced(approved: Mapping[SpecPart, str | None], spec: Mapping[SpecPart, str | None]) -> list[SpecPart]:
    """The parts that another spec commits to otherwise than the one with which a start was compared."""
    return [part for part in SPEC_PARTS if part in approved and approved[part] != spec.get(part)]


def still(checks: SpecChecks, other: Sequence[SpecPart]) -> SpecChecks:
    """What is left of what was checked, once other parts are approved."""
    return msgspec.structs.replace(checks, **dict.fromkeys(other, "unchecked"))


def describe(checks: SpecChecks) -> str:
    """For people: ``argv, image verified · config declared · data unchecked``."""
    words = []
    for word in ("verified", "declared", "unchecked"):
        if parts := [part for part in SPEC_PARTS if getattr(checks, part) == word]:
            words.append(f"{', '.join(sorted(parts))} {word}")
    return " · ".join(words)


_NAME = {"argv": "program", "image": "image", "config": "config", "data": "data"}


def _same(part: SpecPart, approved: object, got: object, word: Checked) -> Checked:
    if approved == got:
        return word
    raise RefusedError(
        f"other_{_NAME[part]}",
        f"another {_NAME[part]} than was approved (expected {shown(approved)}, got {shown(got)})",
        hint="a change of the spec is amended with keyturn amend, or asked for as a new run",
    )


def shown(value: object) -> str:
    """A value for people: on one line, and not longer than that."""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 200 else text[:199] + "…"
