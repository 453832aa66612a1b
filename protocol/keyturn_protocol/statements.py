"""Statements by people: what somebody signed, as opposed to what a host measured.

    {"deployment":"keyturn.example.org","new":"6f0c…","old":"71a3…","reason":"new disk, image 44","root":null,
     "time_us":1790000000000000,"type":"replacement","v":1}                             (one line)

Canonical JSON in a DSSE envelope (:mod:`keyturn_protocol.dsse`). :data:`KINDS` is the one list of what can be said.
"""

from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Final

from keyturn_protocol import ids
from keyturn_protocol.canonical import decode, encode_record
from keyturn_protocol.dsse import Envelope, parse_envelope
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import STATEMENT_BYTES
from keyturn_protocol.policy import Policy, check_form
from keyturn_protocol.root import Root, stand
from keyturn_protocol.runs import Amend, Decision, Request, Resume, Revoke, Suspend, Withdraw, check_said
from keyturn_protocol.statement_base import Reason
from keyturn_protocol.statement_base import Statement as Statement
from keyturn_protocol.statement_base import kind_of as kind_of
from keyturn_protocol.values import NodeIdText


class Replacement(Statement, frozen=True, kw_only=True, tag="replacement"):
    """``new`` is the node that the host of ``old`` became: it was set up again and has another key."""

    old: NodeIdText
    new: NodeIdText
    reason: Reason


class Signers(StrEnum):
    """Whose signatures make a statement count."""

    OPERATORS = "operators"
    """One or more of the operator's: keys of the trust file before there is a root, then persons of that class."""
    ROOT_THRESHOLD = "root_threshold"
    """So many as both the old and the new root ask for."""
    POLICY_THRESHOLD = "policy_threshold"
    PERSON = "person"
    """The one person that it names, with one key."""


KINDS: Final[dict[str, type[Statement]]] = {
    kind_of(kind): kind
    for kind in (Replacement, Root, Policy, Request, Decision, Withdraw, Suspend, Resume, Revoke, Amend)
}
"""Every kind that there is, by its ``type``, which its payloadType repeats."""
SIGNED_BY: Final[dict[str, Signers]] = dict.fromkeys(KINDS, Signers.PERSON) | {
    "replacement": Signers.OPERATORS,
    "root": Signers.ROOT_THRESHOLD,
    "policy": Signers.POLICY_THRESHOLD,
}
BY_OPERATORS: Final = frozenset(kind for kind, signers in SIGNED_BY.items() if signers is Signers.OPERATORS)
"""Kinds for which an operator's signature is enough, and the only ones that are taken before there is a root."""


def format_statement(statement: Statement) -> bytes:
    """The payload of a statement: what is hashed and, in its pre-authentication encoding, signed.

    :raises ProtocolError: as :func:`parse_payload` would.
    """
    payload = encode_record(statement)
    parse_payload(kind_of(statement), payload)
    return payload


def parse_payload(kind: str, payload: bytes) -> Statement:
    """Parse and check the payload of a statement; nothing in it is signed by that.

    :raises ProtocolError: ``bad_statement``, ``bad_root``, ``bad_policy``, ``bad_key``, ``bad_identifier``,
        ``not_canonical`` or ``too_large``.
    """
    return _parse_again(kind, payload) if kind in ("root", "policy") else _parse(kind, payload)


@lru_cache(maxsize=16)  # the largest of all, and a host opens bundles with one and the same all day
def _parse_again(kind: str, payload: bytes) -> Statement:
    return _parse(kind, payload)


def _parse(kind: str, payload: bytes) -> Statement:
    known = KINDS.get(kind)
    if known is None:
        raise ProtocolError(Code.BAD_STATEMENT, "no such kind of statement", expected=" or ".join(KINDS), got=kind)
    statement: Statement = decode(payload, known, limit=STATEMENT_BYTES)
    ids.deployment(statement.deployment)
    _check(statement, payload)
    return statement


def _check(statement: Statement, payload: bytes) -> None:
    """What a kind asks for beyond its shape, as far as it can be told from the statement alone."""
    match statement:
        case Decision() | Request() | Withdraw() | Suspend() | Resume() | Revoke() | Amend():
            check_said(statement)
        case Replacement():
            if statement.old == statement.new:
                raise ProtocolError(Code.BAD_STATEMENT, "a node doesn't replace itself", got=statement.old)
        case Root():
            stand(statement, sha256(payload).hexdigest())
        case Policy():
            check_form(statement)
        case _:
            pass


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
    """That a statement is about this deployment, under this root: the one in force, null before there is one.

    The next root names the one in force too, as the one that it follows.

    :raises ProtocolError: ``bad_statement``.
    """
    if statement.deployment != deployment:
        raise ProtocolError(
            Code.BAD_STATEMENT, "statement for another deployment", expected=deployment, got=statement.deployment
        )
    if statement.root != root:
        raise ProtocolError(Code.BAD_STATEMENT, "statement under another root", expected=root, got=statement.root)
