"""Whether a lease is the one that was asked for, and may be believed. Pure; every attack on it has its line here."""

from dataclasses import dataclass

from keyturn_agent.errors import RefusedError
from keyturn_agent.switch.entitlement import check_allowance
from keyturn_agent.words import count
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.lease import Lease, lease_subject, open_lease
from keyturn_protocol.lifecycle import Run, State, state
from keyturn_protocol.permit import Opened

AHEAD_US = 300 * 1_000_000
"""A verifier's time that is so far ahead of this host's is ignored, and reported."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this host asked for, in this boot."""

    kind: str
    run: str | None
    lineage: str | None
    organisation: str
    node_id: str
    boot_id: str
    nonce: str
    chips: tuple[str, ...]


class BehindError(RefusedError):
    """The lease stands on a root or a policy that this host hasn't seen: it has to look first."""


def check_lease(data: bytes, wanted: Wanted, opened: Opened, epoch: int, sequence: int, charged_flop: int) -> Lease:
    """The lease, if it is good.

    :param epoch: the highest of the run that was seen.
    :param sequence: of the newest lease of this subject that was ever adopted here; -1 for none.
    :param charged_flop: what this host has charged to the subject.
    :raises RefusedError: ``bad_lease``, with what is wrong.
    :raises BehindError: look at the permit again.
    """
    standing, authority = opened.standing, opened.authority
    try:
        lease = open_lease(data, parse_vkey(standing.root.services.lease_vkey))
    except ProtocolError as error:
        raise BehindError("bad_lease", f"not a lease under this root: {error}") from None
    policy = authority.policies[-1][1] if opened.run is None else opened.run.request.policy
    for what, expected, got in (("root", standing.hash, lease.root), ("policy", policy, lease.policy)):
        if expected != got:
            raise BehindError("bad_lease", f"a lease under another {what} (expected {expected}, got {got})")
    for what, want, have in (
        ("run", wanted.run, lease.run),
        ("allowance", None if wanted.kind == "run" else wanted.kind, lease.allowance and lease.allowance.kind),
        ("lineage", wanted.lineage, lease.allowance and lease.allowance.lineage),
        (
            "organisation",
            None if wanted.kind == "run" else wanted.organisation,
            lease.allowance and lease.allowance.organisation,
        ),
        ("node", wanted.node_id, lease.node_id),
        ("boot", wanted.boot_id, lease.boot_id),
        ("nonce", wanted.nonce, lease.nonce),
        ("set of chips", list(wanted.chips), lease.chips),
    ):
        if want != have:
            raise _bad(f"for another {what} (expected {want}, got {have})")
    _check_terms(lease, opened)
    if lease.sequence <= sequence:
        raise _bad(f"number {lease.sequence} of {lease_subject(lease)} was adopted before, up to {sequence}")
    if lease.upto_tflop * 10**12 <= charged_flop:
        raise RefusedError(
            "exhausted", f"nothing is left: {charged_flop} FLOP are charged, up to {lease.upto_tflop} TFLOP"
        )
    if (run := opened.run) is not None:
        if lease.epoch < max(epoch, run.epoch):
            raise _bad(f"of epoch {lease.epoch}, from before the last suspension (expected {max(epoch, run.epoch)})")
        if lease.dtypes != sorted(run.scope.dtypes):
            raise _bad(f"for other data types (expected {run.scope.dtypes}, got {lease.dtypes})")
    return lease


def _check_terms(lease: Lease, opened: Opened) -> None:
    """That it lives no longer, allows no more, and is for nobody else, than what was signed by the parties."""
    run = opened.run
    if lease.allowance is not None:
        check_allowance(opened.standing, lease.allowance.organisation)
    longest_s = opened.authority.policies[-1][2].allowance.lease_s if run is None else run.tier.lease_s
    if lease.ttl_s > longest_s:
        raise _bad(f"that lives longer than the policy lets it (expected at most {longest_s} s, got {lease.ttl_s})")
    if run is not None and lease.upto_tflop > run.scope.budget_tflop:
        raise _bad(f"for more than the run has (expected {run.scope.budget_tflop} TFLOP, got {lease.upto_tflop})")


def check_run(run: Run, now_us: int) -> None:
    """That a run may begin, or go on, at this moment of the host's wall clock.

    :raises RefusedError: ``not_approved``, ``suspended``, ``window``, ``over``.
    """
    at = state(run, max(now_us, run.time_us))
    match at:
        case State.APPROVED | State.ACTIVE:
            if now_us < run.scope.not_before_us:
                raise RefusedError("window", "the run's window hasn't begun")
        case State.PENDING:
            raise RefusedError(
                "not_approved",
                "nobody may start this run yet: its quorum isn't met",
                hint="keyturn show RUN says who is missing",
            )
        case State.SUSPENDED:
            raise RefusedError(
                "suspended", "the run is suspended", hint="keyturn show RUN says by whom; keyturn resume"
            )
        case _:
            raise RefusedError("over", f"the run is {at}: it can't be started")


def check_place(run: Run, site: str, chips: tuple[str, ...]) -> None:
    """That a run may be here.

    :raises RefusedError: ``site``, ``chips``.
    """
    scope = run.scope
    if scope.sites is not None and site not in scope.sites:
        raise RefusedError("site", f"the run may not be at {site} (its sites: {', '.join(scope.sites)})")
    if scope.chip_uuids is not None and (strange := set(chips) - set(scope.chip_uuids)):
        raise RefusedError("chips", f"the run may not have {min(strange)}", hint="--chips names those that it gets")
    if len(chips) > scope.chips:
        raise RefusedError(
            "chips", f"{count(len(chips), 'chip')}, of {scope.chips} at once", hint="--chips names fewer"
        )


def _bad(message: str) -> RefusedError:
    return RefusedError("bad_lease", f"a lease {message}")
