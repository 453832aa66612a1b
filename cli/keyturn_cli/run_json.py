"""A run as plain values, for programs: what the bundle proves, beside what only the verifier says."""

from keyturn_cli.permits import View
from keyturn_protocol.api_switch import RunView
from keyturn_protocol.lifecycle import Run, State, progress, state
from keyturn_protocol.openings import Openings
from keyturn_protocol.simulate import worst_stop_s
from keyturn_protocol.values import SPEC_PARTS


def to_json(view: View, openings: Openings | None, served: RunView | None) -> dict[str, object]:
    """Everything that the screen shows."""
    root, policy = view.standing, view.policy
    in_force = {"version": root.root.version, "sha256": root.hash, "expires_us": root.root.expires_us}
    shown: dict[str, object] = {
        "v": 1,
        "deployment": view.deployment,
        "root": in_force,
        "policy": None if policy is None else {"version": policy[1].version, "sha256": policy[0]},
        "index": view.bundle.index,
        "time_us": view.bundle.time_us,
        "as_served": served,
        "run": None if view.opened.run is None else _run(view, view.opened.run, openings),
    }
    return shown


def _run(view: View, run: Run, openings: Openings | None) -> dict[str, object]:
    known = {} if openings is None else openings.parts
    count = progress(run, view.opened.authority, view.opened.switch.index + 1, view.at_us)
    pending, reasons = state(run, view.at_us) is State.PENDING, view.reasons
    return {
        "sha256": run.hash,
        "state": state(run, view.at_us),
        "request": run.request,
        "asked_us": run.time_us,
        "tier": run.tier,
        "scope": run.scope,
        "spec": {part: known[part].value if part in known else None for part in SPEC_PARTS},
        "not_known": [part for part in SPEC_PARTS if part not in known],
        "votes": [
            {"person": vote.person, "verdict": vote.verdict, "sha256": vote.hash, "reason": reasons[vote.hash]}
            for vote in run.votes.values()
        ],
        "counted": list(count.persons),
        "missing": str(count) if pending else None,
        "permit": None
        if run.permit is None
        else {"index": run.permit.index, "time_us": run.permit.time_us, "start_by_us": run.permit.start_by_us},
        "proposals": [
            {
                "sha256": digest,
                "says": one.statement,
                "votes": {vote.person: vote.verdict for vote in one.votes.values()},
            }
            for digest, one in run.proposals.items()
        ],
        "suspensions": [
            {"sha256": call.hash, "person": call.person, "stop_at_us": call.alone_us, "reason": reasons[call.hash]}
            for call in run.calls
        ],
        "stop_at_us": run.stop_at_us,
        "stop_reachable_s": run.policy.stop.notice_s,
        "stop_latest_s": worst_stop_s(run.policy, run.tier),
        "epoch": run.epoch,
        "ended": None if run.ended is None else {"time_us": run.ended.time_us, "why": run.ended.why},
        "watchers": run.tier.watchers,
    }
