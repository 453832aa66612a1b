"""What a statement would change, as the next leaf: found by the very function that the verifier will ask."""

from collections.abc import Collection
from dataclasses import dataclass

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.permits import View
from keyturn_protocol.authority import Logged, Refused
from keyturn_protocol.dsse import Envelope
from keyturn_protocol.lifecycle import Run, progress
from keyturn_protocol.policy import Tier
from keyturn_protocol.quorum import Tally, tally
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import Amend, Decision, Request, RunStatement
from keyturn_protocol.statements import Statement


@dataclass(frozen=True, slots=True)
class Consequence:
    """A run before and after a statement."""

    before: Run | None
    """None: the statement is its request."""
    after: Run


def of(view: View, envelope: Envelope, said: Statement, key_id: str) -> Consequence:
    """What a statement about a run changes, signed by a key, if it were logged now.

    :raises CliError: the switch would refuse it: nobody needs to sign that.
    """
    try:
        change = view.opened.switch.decide(next_leaf(view, envelope, said, [key_id]))
    except Refused as error:
        raise refused(error) from None
    if isinstance(said, Request):
        return Consequence(None, change.runs[envelope.hash.hex()])
    return Consequence(view.run, change.runs.get(view.run.hash, view.run))


def next_leaf(view: View, envelope: Envelope, said: Statement, keys: Collection[str]) -> Logged:
    """A statement as if it were the next leaf."""
    at = view.opened.switch.index + 1
    return Logged(at, view.at_us, envelope.hash.hex(), said, tuple(keys), len(envelope.payload))


def refused(error: Refused) -> CliError:
    """The switch's own word, with where to read more."""
    return CliError(f"{error.why}: {error}", exit=Exit.REJECTED, hint=f"keyturn explain {error.why}")


def at_stake(said: RunStatement, run: Run) -> Request | Amend | None:
    """Whose scope and spec a statement is about, where they aren't the run's own as it is."""
    if isinstance(said, (Request, Amend)):
        return said
    proposal = run.proposals.get(said.subject) if isinstance(said, Decision) else None
    return proposal.statement if proposal is not None and isinstance(proposal.statement, Amend) else None


@dataclass(frozen=True, slots=True)
class Slot:
    """What an approval adds to a count."""

    tier: Tier
    before: Tally
    after: Tally
    text: str


def slot(view: View, subject: str, person: str, verdict: str = "approve") -> Slot:
    """Which slot a person's approval of the request or of a proposal fills; the text is empty for one who says no."""
    run, standing = view.run, view.standing
    index = view.opened.switch.index + 1
    proposal = run.proposals.get(subject)
    tier = run.tier if proposal is None else proposal.tier
    before = progress(run, view.opened.authority, index, view.at_us, None if proposal is None else subject)
    if verdict != "approve":
        rest = [one for one in before.persons if one != person]
        return Slot(tier, before, tally(tier.approve, rest, standing), "")
    after = tally(tier.approve, [*before.persons, person], standing)
    return Slot(tier, before, after, _filled(tier, before, after, person, standing))


def _filled(tier: Tier, before: Tally, after: Tally, person: str, standing: Standing) -> str:
    if person in before.persons:
        return "counts already: this replaces what was said before"
    kind = standing.party_of(person).class_
    wanted = tier.approve.minimum.get(kind, 0)
    missing = before.missing_classes.get(kind, 0)
    if missing:
        return f"{kind} {wanted - missing + 1} of {wanted}"
    if after.missing_persons < before.missing_persons:
        return f"person {len(after.persons)} of {tier.approve.persons}, of any class"
    if after.missing_organisations < before.missing_organisations:
        return "another organisation"
    return "none that is still missing"
