"""How much is said about one run. A permit bundle has all of it, and one that is too large is none: no host could open
it, and nobody could sign the run any more.

Parties have equal shares of that, the requester's some more, so that none takes room from another; and what a party
says to stop a run has room in its share that its other words can't take:

    up to 2/4 of the share    everything
    up to 3/4                 denials that change what their person said before
    up to 4/4                 suspensions by which the party stops the run sooner than by those that it has in force

A veto and the requester's own end of a run are never too much: they come once. An amendment pays for its veto in
advance.
"""

from typing import Final

from msgspec.structs import replace

from keyturn_protocol.authority import Logged, Why, refuse
from keyturn_protocol.lifecycle import SECOND, Run, party_in
from keyturn_protocol.limits import (
    ABOUT_BYTES,
    CALLS,
    REQUESTER_BYTES,
    SAID_BYTES,
    VETO_BYTES,
)
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import Amend, Decision, Request, RunStatement, Suspend, Withdraw

_QUARTERS: Final = 4


def said_more(run: Run, standing: Standing, logged: Logged, statement: RunStatement) -> Run:
    """The run with the bytes of one more statement.

    :param standing: of the root in force, whose parties share.
    :raises Refused: ``too_much``.
    """
    if isinstance(statement, Request) or _ends(run, statement):
        return run
    person = statement.person
    if isinstance(statement, Suspend) and sum(call.person == person for call in run.calls) >= CALLS:
        raise refuse(Why.TOO_MUCH, "has so many suspensions in force", expected=f"<= {CALLS}")
    size = logged.kept_bytes + (VETO_BYTES if isinstance(statement, Amend) else 0)
    quarters = _quarters(run, statement, logged.time_us)
    party, said = party_in(person), {**run.said, person: run.said.get(person, 0) + size}
    if quarters == _QUARTERS // 2:
        _check(f"{person} said too much about this run", SAID_BYTES, said[person])
    more = REQUESTER_BYTES if party == party_in(run.request.requester) else 0
    room = (ABOUT_BYTES // len(standing.parties) + more) * quarters // _QUARTERS
    _check(f"{party} said too much about this run", room, sum(n for who, n in said.items() if party_in(who) == party))
    # Parties that come and go with roots have more than one share together.
    _check("too much was said about this run", ABOUT_BYTES + REQUESTER_BYTES, sum(said.values()))
    return replace(run, said=said)


def _check(what: str, room: int, size: int) -> None:
    if size > room:
        raise refuse(Why.TOO_MUCH, what, expected=f"<= {room} bytes as a permit bundle has them", got=size)


def _ends(run: Run, statement: RunStatement) -> bool:
    """Whether it is the last word on what it is about."""
    match statement:
        case Decision():
            return statement.verdict == "veto"
        case Withdraw():
            return statement.subject == run.hash
        case _:
            return False


def _quarters(run: Run, statement: RunStatement, at_us: int) -> int:
    """Up to how much of its party's share it may be said."""
    match statement:
        case Suspend() if _stops_sooner(run, statement, at_us):
            return 4
        case Decision() if statement.verdict == "deny":
            proposal = run.proposals.get(statement.subject)
            before = (run.votes if proposal is None else proposal.votes).get(statement.person)
            return 2 if before is not None and before.verdict == "deny" else 3
        case _:
            return 2


def _stops_sooner(run: Run, said: Suspend, at_us: int) -> bool:
    """Whether a suspension is its party's first one in force, or the first that wants the notice to be all, or none.
    Not just any that is sooner: of these, each by a microsecond, there is no end."""
    notice_us = at_us + run.policy.stop.notice_s * SECOND
    wanted_us = notice_us if said.stop_at_us is None else said.stop_at_us
    mine = [call.wanted_us for call in run.calls if call.party == party_in(said.person)]
    return not mine or any(wanted_us <= moment < min(mine) for moment in (at_us, notice_us))
