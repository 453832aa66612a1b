"""What of a run waits for a person's word."""

from dataclasses import dataclass

from keyturn_cli import consequence
from keyturn_cli.permits import View
from keyturn_cli.render_run import deadline_us
from keyturn_protocol.lifecycle import State, excluded, state
from keyturn_protocol.policy import Tier
from keyturn_protocol.statements import kind_of


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request or a proposal on which a person may say something, and hasn't."""

    run: str
    subject: str
    kind: str
    label: str
    asker: str
    until_us: int
    missing: str
    fills: str
    """The slot that this person's approval fills."""
    veto: bool

    def to_json(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def waiting(view: View, person: str) -> list[Waiting]:
    """What of this run waits for a person; nothing of what they asked for themselves."""
    run, found = view.run, []
    if state(run, view.at_us) is State.PENDING:
        until_us = deadline_us(run.time_us, run.tier.decide_s)
        found.append((run.hash, "request", run.request.requester, run.tier, until_us, run.votes))
    for digest, one in run.proposals.items():
        until_us = deadline_us(one.time_us, one.tier.decide_s)
        found.append((digest, kind_of(one.statement), one.statement.person, one.tier, until_us, one.votes))
    return [
        _of(view, person, subject, kind, asker, tier, until_us)
        for subject, kind, asker, tier, until_us, votes in found
        if person not in votes and until_us >= view.at_us and person not in excluded(run, tier, view.standing)
    ]


def _of(view: View, person: str, subject: str, kind: str, asker: str, tier: Tier, until_us: int) -> Waiting:
    slot = consequence.slot(view, subject, person)
    label, veto = view.run.request.label, view.standing.party_of(person).class_ in tier.veto
    return Waiting(view.run.hash, subject, kind, label, asker, until_us, str(slot.before), slot.text, veto)
