"""What is said about a run: asked for, agreed to, refused, stopped, resumed, widened, ended.

A *request* says what is to run, by commitments that its openings fit, and within which *scope*. Persons *decide* on it.
What they decide on later (to resume, to revoke for good, to amend) is a *proposal*, which names every event since the
permit that it answers, so that none can be played back. A *suspension* needs nobody else.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, assert_never

import msgspec

from keyturn_protocol.canonical import Hex32, Positive, Record, Text, UInt, encode
from keyturn_protocol.chips import PIPE_OF
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.limits import ANCESTORS, ANSWERED, COMMIT_V1, SCOPE_ITEMS
from keyturn_protocol.root import PersonId
from keyturn_protocol.statement_base import Reason, Statement
from keyturn_protocol.values import ChipUuid, Micros, Slug, SpecPart

Site = Annotated[Text, msgspec.Meta(min_length=1)]


class Scope(Record, frozen=True, kw_only=True):
    """How much, on what, where and when. Lists are sorted; a null list is *any*."""

    budget_tflop: Positive
    chips: Positive
    """At once."""
    chip_uuids: Annotated[list[ChipUuid], msgspec.Meta(max_length=SCOPE_ITEMS)] | None
    sites: Annotated[list[Site], msgspec.Meta(max_length=SCOPE_ITEMS)] | None
    dtypes: Annotated[list[Slug], msgspec.Meta(min_length=1)]
    """Of the tensor pipe; the budget is charged at the fastest of them."""
    not_before_us: Micros
    not_after_us: Micros


class Narrowing(Record, frozen=True, kw_only=True):
    """Less than was asked for; null leaves a part as it is."""

    budget_tflop: Positive | None
    chips: Positive | None
    chip_uuids: Annotated[list[ChipUuid], msgspec.Meta(max_length=SCOPE_ITEMS)] | None
    sites: Annotated[list[Site], msgspec.Meta(max_length=SCOPE_ITEMS)] | None
    dtypes: list[Slug] | None
    not_before_us: Micros | None
    not_after_us: Micros | None


class Ancestor(Record, frozen=True, kw_only=True):
    """A run whose output this one starts from, or one of that run's ancestors: all of them, each once.

    ``tflop`` is the high end of what it alone took; null when nobody knows, which counts as unbounded.
    """

    run: Text
    tflop: UInt | None
    basis: Text


class Request(Statement, frozen=True, kw_only=True, tag="request"):
    """Frozen once submitted. ``spec`` holds commitments; a part that is left out is null and can't be verified."""

    policy: Hex32
    requester: PersonId
    label: Text
    purpose: Text
    lineage: Annotated[Text, msgspec.Meta(min_length=1)]
    spec: dict[SpecPart, Hex32 | None]
    scope: Scope
    ancestors: Annotated[list[Ancestor], msgspec.Meta(max_length=ANCESTORS)]
    nonce: Hex32


class Decision(Statement, frozen=True, kw_only=True, tag="decision"):
    """One person's word on a request or a proposal. The last one counts, until one of them decides; a veto is final."""

    policy: Hex32
    subject: Hex32
    person: PersonId
    verdict: Literal["approve", "deny", "veto"]
    narrowing: Narrowing | None
    reason: Text


class Withdraw(Statement, frozen=True, kw_only=True, tag="withdraw"):
    """Of one's own request, proposal or suspension (before it took effect); of a running run: it is completed."""

    policy: Hex32
    subject: Hex32
    person: PersonId
    reason: Text


class Suspend(Statement, frozen=True, kw_only=True, tag="suspend"):
    """Stop the run at ``stop_at_us``, by default after the policy's notice. Never out of order."""

    policy: Hex32
    run: Hex32
    person: PersonId
    stop_at_us: Micros | None
    reason: Reason


class _Proposal(Statement, frozen=True, kw_only=True):
    policy: Hex32
    run: Hex32
    person: PersonId
    after: Annotated[list[Hex32], msgspec.Meta(max_length=ANSWERED)]
    """Every event of the run since its permit, oldest first."""
    reason: Reason


class Resume(_Proposal, frozen=True, kw_only=True, tag="resume"):
    """Let a suspended run go on."""


class Revoke(_Proposal, frozen=True, kw_only=True, tag="revoke"):
    """End the run for good."""


class Amend(_Proposal, frozen=True, kw_only=True, tag="amend"):
    """Another scope or spec. What only narrows takes effect at once when a veto-holder or the requester signs it, and
    ends the run no sooner than a suspension would."""

    scope: Scope
    spec: dict[SpecPart, Hex32 | None]


Proposal = Resume | Revoke | Amend
RunStatement = Request | Decision | Withdraw | Suspend | Resume | Revoke | Amend


def commit(salt: bytes, field: str, value: Any) -> Hash:
    """The commitment to a named value: SHA-256 of the domain tag, 32 random bytes, canonical {field, value}."""
    if len(salt) != 32:
        raise ProtocolError(Code.BAD_STATEMENT, "salt of the wrong length", expected=32, got=len(salt))
    return Hash(sha256(COMMIT_V1 + salt + encode({"field": field, "value": value})).digest())


_LISTS: Final = ("chip_uuids", "sites", "dtypes")


def check_said(statement: RunStatement) -> None:
    """What the form of a statement about a run asks for beyond its shape.

    :raises ProtocolError: ``bad_statement``.
    """
    match statement:
        case Decision():
            _check_decision(statement)
        case Request():
            check_scope(statement.scope)
            if len({ancestor.run for ancestor in statement.ancestors}) != len(statement.ancestors):
                raise ProtocolError(Code.BAD_STATEMENT, "an ancestor is listed twice")
        case Amend():
            check_scope(statement.scope)
        case Withdraw() | Suspend() | Resume() | Revoke():
            pass
        case _:
            assert_never(statement)


def _check_decision(decision: Decision) -> None:
    if decision.verdict != "approve" and not decision.reason:
        raise ProtocolError(Code.BAD_STATEMENT, "who denies says why", got=decision.verdict)
    if decision.narrowing is None:
        return
    if decision.verdict != "approve":
        raise ProtocolError(Code.BAD_STATEMENT, "only an approval narrows", got=decision.verdict)
    _check_lists(decision.narrowing)


def check_scope(scope: Scope) -> None:
    """A scope that some run could fit.

    :raises ProtocolError: ``bad_statement``.
    """
    _check_lists(scope)
    if scope.not_after_us <= scope.not_before_us:
        raise ProtocolError(Code.BAD_STATEMENT, "a window that ends before it begins", got=scope.not_after_us)


def _check_lists(part: Scope | Narrowing) -> None:
    for name in _LISTS:
        values = getattr(part, name)
        if values is not None and (not values or values != sorted(set(values))):
            raise ProtocolError(Code.BAD_STATEMENT, f"{name} is sorted, each once, and not empty", got=values)
    if unknown := set(part.dtypes or ()) - PIPE_OF.keys():
        raise ProtocolError(
            Code.BAD_STATEMENT, "not a type of the tensor pipe", expected=", ".join(PIPE_OF), got=min(unknown)
        )


def widens(narrow: Narrowing | Scope, scope: Scope) -> str | None:
    """The first part of ``narrow`` that isn't within ``scope``; None if it only narrows."""
    return next(wider_parts(narrow, scope), None)


def wider_parts(narrow: Narrowing | Scope, scope: Scope) -> Iterator[str]:
    """The parts of ``narrow`` that aren't within ``scope``."""
    for name in ("budget_tflop", "chips", "not_after_us"):
        value = getattr(narrow, name)
        if value is not None and value > getattr(scope, name):
            yield name
    if narrow.not_before_us is not None and narrow.not_before_us < scope.not_before_us:
        yield "not_before_us"
    for name in _LISTS:
        value, whole = getattr(narrow, name), getattr(scope, name)
        if value is None and isinstance(narrow, Scope) and whole is not None:
            yield name
        if value is not None and whole is not None and not set(value) <= set(whole):
            yield name


def compose(scope: Scope, narrowings: Iterable[Narrowing | None]) -> Scope | None:
    """The scope that all of them allow: the least of each number, what the lists have in common; None if empty."""
    for one in narrowings:
        if one is None:
            continue
        scope = Scope(
            budget_tflop=min(scope.budget_tflop, one.budget_tflop or scope.budget_tflop),
            chips=min(scope.chips, one.chips or scope.chips),
            chip_uuids=_common(scope.chip_uuids, one.chip_uuids),
            sites=_common(scope.sites, one.sites),
            dtypes=_common(scope.dtypes, one.dtypes) or [],
            not_before_us=max(scope.not_before_us, one.not_before_us or 0),
            not_after_us=min(scope.not_after_us, scope.not_after_us if one.not_after_us is None else one.not_after_us),
        )
    empty = any(getattr(scope, name) == [] for name in _LISTS) or scope.not_after_us <= scope.not_before_us
    return None if empty else scope


def _common(ours: Any, theirs: Any) -> Any:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return sorted(set(ours) & set(theirs))


def lineage_tflop(request_scope: Scope, ancestors: Iterable[Ancestor]) -> int | None:
    """What a run of this scope and its ancestors come to; None when one of them isn't known."""
    known = [ancestor.tflop for ancestor in ancestors]
    if any(tflop is None for tflop in known):
        return None
    return request_scope.budget_tflop + sum(tflop for tflop in known if tflop is not None)
