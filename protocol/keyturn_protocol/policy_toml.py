"""A policy as people write it: TOML in, the statement that is signed out.

    name = "a lab with a regulator"
    requesters = ["lab"]

    [[tier]]                                             # from the smallest runs to the largest
    name = "large"
    above = { budget_flop = 1e23, chips = 1024 }
    approve = { persons = 3, organisations = 3, minimum = { lab = 1, regulator = 1 } }
    deny = 2
    veto = ["regulator"]
    colleagues = true
    decide = "7d"
    …

Spans are ``"7d"``, ``"48h"``, ``"30min"``, ``"60s"`` and compute is in FLOP; the statement has seconds and TFLOP.
What the file can't know (deployment, root, version) is given beside it.
"""

from typing import Final

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.policy import Above, Allowance, Policy, Stop, Tier
from keyturn_protocol.root import CLASSES, Standing, Threshold
from keyturn_protocol.statements import format_statement, parse_payload
from keyturn_protocol.toml_reader import Table, read_toml
from keyturn_protocol.values import SPEC_PARTS

_CODE: Final = Code.BAD_POLICY


def compile_policy(text: str, standing: Standing, before: tuple[str, Policy] | None, time_us: int) -> Policy:
    """The policy that a TOML text says, its form checked; whether people can meet it is for ``simulate.check``.

    :param standing: the root in force.
    :param before: hash and policy in force; None makes version 1.
    :raises ProtocolError: ``bad_policy``, with the path of the key; ``too_large``.
    """
    top = read_toml(text, _CODE)
    policy = Policy(
        v=1,
        deployment=standing.root.deployment,
        root=standing.hash,
        time_us=time_us,
        version=1 if before is None else before[1].version + 1,
        previous=None if before is None else before[0],
        name=top.text("name"),
        requesters=top.words("requesters", CLASSES),
        tiers=[_tier(table) for table in top.tables("tier")],
        allowance=_allowance(top.table("allowance")),
        stop=_stop(top.table("stop")),
    )
    top.end()
    try:
        parse_payload("policy", format_statement(policy))
    except ProtocolError as error:
        if error.code is not Code.NOT_CANONICAL:
            raise
        raise ProtocolError(_CODE, str(error)) from None  # such as a tier's name: what JSON's form asks for
    return policy


def _tier(table: Table) -> Tier:
    above = table.table("above")
    tier = Tier(
        name=table.text("name"),
        above=Above(
            budget_tflop=above.tflop("budget_flop") if above.has("budget_flop") else None,
            chips=above.integer("chips") if above.has("chips") else None,
            lineage_tflop=above.tflop("lineage_flop") if above.has("lineage_flop") else None,
        ),
        approve=_threshold(table.table("approve")),
        deny=table.integer("deny", least=1),
        veto=table.words("veto", CLASSES),
        colleagues=table.flag("colleagues"),
        decide_s=table.span_s("decide"),
        start_s=table.span_s("start"),
        grace_s=table.span_s("grace", least=0),
        lease_s=table.span_s("lease"),
        assurance=table.integer("assurance", 0, most=3),
        verified=table.words("verified", SPEC_PARTS, []),
        watchers=table.words("watchers", None, []),
    )
    above.end()
    table.end()
    return tier


def _threshold(table: Table) -> Threshold:
    minimum = table.table("minimum", {})
    for kind, _ in minimum.items():
        if kind not in CLASSES:
            raise minimum.error(kind, "unknown class", expected=" or ".join(CLASSES))
    found = Threshold(
        persons=table.integer("persons", least=1),
        organisations=table.integer("organisations", 1, least=1),
        minimum={kind: minimum.integer(kind, least=1) for kind in CLASSES if minimum.has(kind)},
    )
    table.end()
    return found


def _allowance(table: Table) -> Allowance:
    found = Allowance(
        window_s=table.span_s("window"),
        organisation_tflop=table.tflop("organisation_flop"),
        lineage_tflop=table.tflop("lineage_flop"),
        diagnostics_tflop=table.tflop("diagnostics_flop"),
        chips=table.integer("chips"),
        lease_s=table.span_s("lease"),
    )
    table.end()
    return found


def _stop(table: Table) -> Stop:
    found = Stop(notice_s=table.span_s("notice"), alone_s=table.span_s("alone"), kill_s=table.span_s("kill"))
    table.end()
    return found
