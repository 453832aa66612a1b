"""Statements about runs, made from what a verified bundle says: place, policy and events answered are never typed."""

import secrets
from typing import Any, Literal

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.permits import View
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.openings import Opening, Openings, Value, commitment, format_openings
from keyturn_protocol.runs import (
    Amend,
    Ancestor,
    Decision,
    Narrowing,
    Request,
    Resume,
    Revoke,
    Scope,
    Suspend,
    Withdraw,
)
from keyturn_protocol.values import SPEC_PARTS, SpecPart


def decision(
    view: View,
    person: str,
    verdict: Literal["approve", "deny", "veto"],
    subject: str,
    narrowing: Narrowing | None,
    reason: str,
) -> Decision:
    """A person's word on the request, or on a proposal."""
    place = _about(view)
    return Decision(**place, subject=subject, person=person, verdict=verdict, narrowing=narrowing, reason=reason)


def withdraw(view: View, person: str, subject: str, reason: str) -> Withdraw:
    """Of one's own request, proposal or suspension."""
    return Withdraw(**_about(view), subject=subject, person=person, reason=reason)


def suspend(view: View, person: str, stop_at_us: int | None, reason: str) -> Suspend:
    """Stop it: at a moment, or after the policy's notice."""
    return Suspend(**_about(view), run=view.run.hash, person=person, stop_at_us=stop_at_us, reason=reason)


def proposal(view: View, person: str, kind: type[Resume] | type[Revoke], reason: str) -> Resume | Revoke:
    """To let it go on, or to end it for good; every event so far is answered."""
    return kind(**_about(view), run=view.run.hash, person=person, after=list(view.run.after), reason=reason)


def amend(view: View, person: str, scope: Scope, spec: dict[SpecPart, str | None], reason: str) -> Amend:
    """Another scope or spec."""
    run = view.run
    answered = list(run.after)
    return Amend(**_about(view), run=run.hash, person=person, after=answered, reason=reason, scope=scope, spec=spec)


def request(
    view: View,
    requester: str,
    *,
    label: str,
    purpose: str,
    lineage: str,
    scope: Scope,
    ancestors: list[Ancestor],
    openings: Openings,
) -> Request:
    """A request under the policy in force; its spec is the commitments of its openings."""
    if view.policy is None:
        raise CliError("there is no policy yet, so nobody can ask for a run", exit=Exit.REJECTED, hint="keyturn policy")
    return Request(
        **_place(view),
        policy=view.policy[0],
        requester=requester,
        label=label,
        purpose=purpose,
        lineage=lineage,
        spec=commitments(openings),
        scope=scope,
        ancestors=ancestors,
        nonce=secrets.token_hex(32),
    )


def seal(values: dict[SpecPart, Value]) -> Openings:
    """Openings of these values, each with a salt of its own.

    :raises CliError: a value that no program could be started with.
    """
    parts = {part: Opening(salt=secrets.token_hex(32), value=value) for part, value in values.items()}
    made = Openings(v=1, parts=parts)
    try:
        format_openings(made)
    except ProtocolError as error:
        raise CliError(f"spec: {error}", exit=Exit.USAGE) from None
    return made


def commitments(openings: Openings) -> dict[SpecPart, str | None]:
    """A spec: a commitment for each part, null for one that isn't among the openings."""
    return {
        part: commitment(part, openings.parts[part]).hex() if part in openings.parts else None for part in SPEC_PARTS
    }


def subject_of(run: Run, on: str | None) -> str:
    """What a decision or a withdrawal is about: the request, or the proposal or suspension that ``on`` begins.

    :raises CliError: nothing of the run begins so, or several do.
    """
    if on is None:
        return run.hash
    wanted = on.removeprefix("r-").removeprefix("sha256:")
    known = [*run.proposals, *(call.hash for call in run.calls)]
    found = [digest for digest in known if digest.startswith(wanted)]
    if len(found) != 1 or len(wanted) < 4:
        many = f"{len(found)} open proposals and suspensions begin so" if found else "nothing that is open begins so"
        hint = "type more of it" if found else "keyturn show RUN lists what is open"
        raise CliError(f"--on {on}: {many}", exit=Exit.USAGE, hint=hint)
    return found[0]


def _place(view: View) -> dict[str, Any]:
    return {"v": 1, "deployment": view.deployment, "root": view.standing.hash, "time_us": view.at_us}


def _about(view: View) -> dict[str, Any]:
    return {**_place(view), "policy": view.run.request.policy}
