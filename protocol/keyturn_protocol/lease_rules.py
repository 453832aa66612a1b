"""What a lease must be, given what it answers and what people said: the rules beside those of the ledger.

Whoever issues leases follows them, and whoever audits a verifier holds every lease against them.
"""

from collections.abc import Mapping

from keyturn_protocol.authority import Authority, Why, refuse
from keyturn_protocol.entry_inventory import InventoryBody
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.lease import Lease
from keyturn_protocol.leases import Asked
from keyturn_protocol.lifecycle import Run, State, state
from keyturn_protocol.policy import Allowance, Policy
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import Scope

LEVEL = 0
"""The assurance level of every node: evidence for a higher one isn't read yet."""


def leasable(inventory: InventoryBody) -> frozenset[str]:
    """The chips of an inventory that a lease may name: a MIG parent's work is that of its instances."""
    return frozenset(chip.uuid for chip in inventory.chips if chip.role != "mig_parent")


def limits_of(authority: Authority, run: Run | None, index: int) -> Scope | Allowance:
    """What a lease takes of: the scope of its run, or the allowance of the policy in force.

    :raises Refused: ``no_policy``.
    """
    return run.scope if run is not None else authority.policy_at(index)[1].allowance


def check_rules(
    authority: Authority, run: Run | None, lease: Lease, asked: Asked, *, charged_tflop: int, index: int, time_us: int
) -> None:
    """Whether a lease is one that may be logged as leaf ``index``; the ledger's own rules come after these.

    :param run: that the lease names; None for an allowance.
    :param charged_tflop: to that run so far.
    :raises Refused: with the first rule that it breaks.
    """
    standing = authority.standing_at(index)
    if lease.root != standing.hash:
        raise refuse(Why.OTHER_ROOT, "under another root", expected=standing.hash, got=lease.root)
    _answers(lease, asked)
    if missing := sorted(set(lease.chips) - asked.listed):
        raise refuse(Why.SITE, "the node lists no such chip that can be leased", got=missing[0])
    if run is not None:
        _check_run(run, lease, asked, charged_tflop, time_us)
    else:
        _check_allowance(*authority.policy_at(index), standing, lease)
    if lease.time_us != time_us:
        # The lease's own time says until when its chips and what it allows count as taken.
        raise refuse(Why.STALE, "of another time than its leaf", expected=time_us, got=lease.time_us)


def check_node(asked: Asked, replaced: Mapping[str, str]) -> None:
    """That a node may have leases at all. One that was replaced is another by now, which asks for itself.

    :param replaced: node → which one its host became.
    :raises Refused: ``replaced``.
    """
    node = parse_origin(asked.origin).node_id
    if (new := replaced.get(node)) is not None:
        raise refuse(Why.REPLACED, "another node is what this host became", expected=new, got=node)


def check_organisation(standing: Standing, organisation: str) -> None:
    """That a root has an organisation of exactly this name: what a join token says is free text, and each name that is
    let pass has an allowance of its own.

    :raises Refused: ``organisation``.
    """
    known = sorted({party.organisation for party in standing.parties.values()})
    if organisation in known:
        return
    expected = " or ".join([", ".join(known[:-1]), known[-1]] if len(known) > 1 else known)
    what = f"the host isn't of an organisation in the root in force, root version {standing.root.version}"
    # Letter by letter: a name in another script can look just like one of these.
    raise refuse(Why.ORGANISATION, what, expected=expected, got=ascii(organisation))


def _check_allowance(policy_hash: str, policy: Policy, standing: Standing, lease: Lease) -> None:
    if lease.policy != policy_hash:
        raise refuse(Why.OTHER_POLICY, "under another policy", expected=policy_hash, got=lease.policy)
    if lease.allowance is not None:
        check_organisation(standing, lease.allowance.organisation)
    _no_longer_than(policy.allowance.lease_s, lease)
    if lease.dtypes:
        raise refuse(Why.BROKEN, "an allowance is charged for any data type", got=", ".join(lease.dtypes))


def _answers(lease: Lease, asked: Asked) -> None:
    """That a lease is the answer to the entry: of this node, in this boot, once."""
    body = asked.body
    allowance = lease.allowance
    organisation = None if allowance is None else asked.organisation
    wanted = (
        ("node", lease.node_id, parse_origin(asked.origin).node_id),
        ("boot", lease.boot_id, asked.boot_id),
        ("nonce", lease.nonce, body.nonce),
        ("kind", "run" if allowance is None else allowance.kind, body.kind),
        ("run", lease.run, body.run),
        ("lineage", None if allowance is None else allowance.lineage, body.lineage),
        ("organisation", None if allowance is None else allowance.organisation, organisation),
        ("chips", lease.chips, body.chips),
    )
    for what, got, expected in wanted:
        if got != expected:
            raise refuse(Why.STALE, f"answers for another {what} than asked", expected=expected, got=got)


def _check_run(run: Run, lease: Lease, asked: Asked, charged_tflop: int, time_us: int) -> None:
    if lease.policy != run.request.policy:
        raise refuse(Why.OTHER_POLICY, "under another policy", expected=run.request.policy, got=lease.policy)
    match state(run, time_us, charged_tflop):
        case State.APPROVED | State.ACTIVE:
            pass
        case State.PENDING:
            raise refuse(Why.NO_PERMIT, "not approved yet", got=run.hash)
        case State.SUSPENDED:
            raise refuse(Why.SUSPENDED, "the run is to stop", got=run.hash)
        case State.EXHAUSTED:
            raise refuse(Why.EXHAUSTED, "the budget is charged", got=f"{charged_tflop} TFLOP")
        case over:
            raise refuse(Why.OVER, f"the run is {over}", got=run.hash)
    if lease.epoch != run.epoch:
        raise refuse(Why.STALE, "of another epoch", expected=run.epoch, got=lease.epoch)
    if time_us < run.scope.not_before_us:
        raise refuse(Why.WINDOW, "before its window", expected=run.scope.not_before_us, got=time_us)
    _no_longer_than(run.tier.lease_s, lease)
    if lease.dtypes != run.scope.dtypes:
        raise refuse(Why.BROKEN, "other data types", expected=", ".join(run.scope.dtypes), got=", ".join(lease.dtypes))
    if run.scope.sites is not None and asked.site not in run.scope.sites:
        raise refuse(Why.SITE, "at another site", expected=" or ".join(run.scope.sites), got=asked.site)
    if run.scope.chip_uuids is not None and (other := sorted(set(lease.chips) - set(run.scope.chip_uuids))):
        raise refuse(Why.SITE, "a chip that the permit doesn't name", got=other[0])
    if run.tier.assurance > LEVEL:
        raise refuse(Why.ASSURANCE, "evidence of a higher level needed", expected=run.tier.assurance, got=LEVEL)
    if unchecked := sorted(set(run.tier.verified) - asked.body.spec.verified()):
        raise refuse(Why.UNVERIFIED, "the host has to check these itself", got=", ".join(unchecked))


def _no_longer_than(lease_s: int, lease: Lease) -> None:
    if lease.ttl_s > lease_s:
        raise refuse(Why.BROKEN, "lives longer than the policy lets it", expected=f"<= {lease_s} s", got=lease.ttl_s)
