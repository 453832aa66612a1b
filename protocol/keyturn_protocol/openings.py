"""Openings: what the commitments of a run's spec were made from, so that approvers and hosts know what is to run.

    {"parts":{"argv":{"salt":"5d0e…","value":["python","train.py"]},"image":{"salt":"91c4…","value":"sha256:3b7a…"}},
     "v":1}                                                                                     (one line)

Whoever has them knows the spec; whoever has only the request doesn't, and can't guess it: a salt is 32 random bytes.
They are no statement and nobody signs them: a value is believed because it opens what was signed.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.canonical import Hex32, Record, decode, encode
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.limits import ARGUMENTS, OPENINGS_BYTES
from keyturn_protocol.runs import commit
from keyturn_protocol.values import SPEC_PARTS, SpecPart

DigestText = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
"""Of bytes: an image's as its registry names it, a file's as ``sha256sum`` prints it."""
Arguments = Annotated[list[str], msgspec.Meta(min_length=1, max_length=ARGUMENTS)]
"""A program and its arguments, as ``execve`` takes them."""
Value = DigestText | Arguments


class Opening(Record, frozen=True, kw_only=True):
    """One part: its value, and the salt that hides it in the commitment."""

    salt: Hex32
    value: Value


class Openings(Record, frozen=True, kw_only=True):
    """Of any of a run's parts; one that isn't here stays unknown to the reader."""

    v: Literal[1]
    parts: dict[SpecPart, Opening]


ARGV: Final = "argv"
"""The one part whose value is a list; every other one's is a digest."""


def commitment(part: SpecPart, opening: Opening) -> Hash:
    """What a request's ``spec`` holds for this value and salt."""
    return commit(bytes.fromhex(opening.salt), part, opening.value)


def format_openings(openings: Openings) -> bytes:
    """The bytes of a file, or of a body.

    :raises ProtocolError: as :func:`parse_openings` would.
    """
    data = encode(openings)
    parse_openings(data)
    return data


def parse_openings(data: bytes) -> Openings:
    """Parse openings; which commitments they open is for :func:`check_openings`.

    :raises ProtocolError: ``not_canonical``, ``too_large``, ``bad_statement``.
    """
    openings: Openings = decode(data, Openings, limit=OPENINGS_BYTES)
    for part, opening in openings.parts.items():
        if isinstance(opening.value, list) != (part == ARGV):
            expected = "a list of arguments" if part == ARGV else "sha256:<hex>"
            raise ProtocolError(Code.BAD_STATEMENT, f"not a value of {part}", expected=expected, got=opening.value)
        if any("\0" in argument for argument in opening.value):
            raise ProtocolError(Code.BAD_STATEMENT, "an argument that no program can be given", got=opening.value)
    return openings


def check_openings(openings: Openings, spec: Mapping[SpecPart, str | None]) -> tuple[SpecPart, ...]:
    """That each opens its commitment in ``spec``; returns the parts that stay unknown.

    :raises ProtocolError: ``bad_statement``: a value that was never committed to, or another one.
    """
    for part, opening in openings.parts.items():
        digest = commitment(part, opening).hex()
        if digest != spec.get(part):
            raise ProtocolError(
                Code.BAD_STATEMENT, f"{part} doesn't open its commitment", expected=spec.get(part), got=digest
            )
    return tuple(part for part in SPEC_PARTS if part not in openings.parts)
