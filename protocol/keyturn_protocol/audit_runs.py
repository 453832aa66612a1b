"""What an audit makes of every run: its state, and what was charged to it, recomputed from statements and logs."""

from collections.abc import Iterable
from dataclasses import dataclass

from keyturn_protocol.audit_log import LogResult
from keyturn_protocol.lifecycle import State
from keyturn_protocol.switch import Switch


@dataclass(frozen=True, slots=True)
class RunTotal:
    """One run at the moment of export."""

    hash: str
    label: str
    state: State
    budget_tflop: int
    charged_tflop: int
    """As the nodes reported, rounded up for each; and what nodes that left their log could have used."""
    committed_tflop: int
    """With what may still be used under leases that are out."""
    recomputed_flop: int
    """What the logs in the bundle come to, whatever they reported."""
    epoch: int


def run_totals(switch: Switch, results: Iterable[LogResult], until_us: int) -> tuple[RunTotal, ...]:
    """Every run that was asked for, in that order."""
    recomputed: dict[str, int] = {}
    for result in results:
        for subject, flop in result.gathered.charged.items():
            recomputed[subject] = recomputed.get(subject, 0) + flop
    return tuple(
        RunTotal(
            hash=run.hash,
            label=run.request.label,
            state=switch.state_of(run, until_us),
            budget_tflop=run.scope.budget_tflop,
            charged_tflop=switch.ledger.charged_tflop(run.hash),
            committed_tflop=switch.ledger.committed_tflop(run.hash),
            recomputed_flop=recomputed.get(run.hash, 0),
            epoch=run.epoch,
        )
        for run in switch.runs.values()
    )
