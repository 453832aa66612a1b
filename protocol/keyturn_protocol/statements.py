"""Statements by people: what somebody signed, as opposed to what a host measured.

    {"deployment":"keyturn.example.org","new":"6f0c…","old":"71a3…","reason":"new disk, image 44","root":null,
     "time_us":1790000000000000,"type":"replacement","v":1}                             (one line)

Canonical JSON in a DSSE envelope (:mod:`keyturn_protocol.dsse`). :data:`KINDS` is the one list of what can be said.
"""

from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol import ids
from keyturn_protocol.canonical import Hex32, Record, Text, decode, encode_record
from keyturn_protocol.dsse import Envelope, parse_envelope
from keyturn_protocol.entries import Micros
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import STATEMENT_BYTES

NodeIdText = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Reason = Annotated[Text, msgspec.Meta(min_length=1)]


class Statement(Record, frozen=True, kw_only=True, tag_field="type"):
    """What every kind names: where it holds, under which root (null before there is one), and when it was made.

    ``time_us`` is the word of whoever signs; when a statement counts from is the time of its leaf.
    """

    v: Literal[1]
    deployment: str
    root: Hex32 | None
    time_us: Micros


class Replacement(Statement, frozen=True, kw_only=True, tag="replacement"):
    """``new`` is the node that the host of ``old`` became: it was set up again and has another key."""

    old: NodeIdText
    new: NodeIdText
    reason: Reason


KINDS: Final[dict[str, type[Statement]]] = {"replacement": Replacement}
"""Every kind that there is, by its ``type``, which its payloadType repeats."""
BY_OPERATORS: Final = frozenset({"replacement"})
"""Kinds for which an operator's signature is enough. No other is taken on it, whatever is added above."""


def kind_of(statement: Statement) -> str:
    """The ``type`` of a statement."""
    return str(type(statement).__struct_config__.tag)


def format_statement(statement: Statement) -> bytes:
    """The payload of a statement: what is hashed and, in its pre-authentication encoding, signed.

    :raises ProtocolError: as :func:`parse_payload` would.
    """
    payload = encode_record(statement)
    parse_payload(kind_of(statement), payload)
    return payload


def parse_payload(kind: str, payload: bytes) -> Statement:
    """Parse and check the payload of a statement; nothing in it is signed by that.

    :raises ProtocolError: ``bad_statement``, ``bad_identifier``, ``not_canonical`` or ``too_large``.
    """
    known = KINDS.get(kind)
    if known is None:
        raise ProtocolError(Code.BAD_STATEMENT, "no such kind of statement", expected=" or ".join(KINDS), got=kind)
    statement: Statement = decode(payload, known, limit=STATEMENT_BYTES)
    ids.deployment(statement.deployment)
    if isinstance(statement, Replacement) and statement.old == statement.new:
        raise ProtocolError(Code.BAD_STATEMENT, "a node doesn't replace itself", got=statement.old)
    return statement


def parse_statement(data: bytes) -> tuple[Envelope, Statement]:
    """An envelope and the statement in it; who signed is yet to be checked.

    :raises ProtocolError: as :func:`~keyturn_protocol.dsse.parse_envelope` and :func:`parse_payload`.
    """
    envelope = parse_envelope(data)
    return envelope, parse_payload(envelope.kind, envelope.payload)


def check_operators(kind: str) -> None:
    """That an operator may say such a thing at all.

    :raises ProtocolError: ``bad_statement``.
    """
    if kind not in BY_OPERATORS:
        expected = " or ".join(sorted(BY_OPERATORS))
        raise ProtocolError(Code.BAD_STATEMENT, "no operator decides about this", expected=expected, got=kind)


def check_place(statement: Statement, deployment: str, root: str | None) -> None:
    """That a statement is about this deployment, under this root.

    :raises ProtocolError: ``bad_statement``.
    """
    if statement.deployment != deployment:
        raise ProtocolError(
            Code.BAD_STATEMENT, "statement for another deployment", expected=deployment, got=statement.deployment
        )
    if statement.root != root:
        raise ProtocolError(Code.BAD_STATEMENT, "statement under another root", expected=root, got=statement.root)
