"""Roots and policies as a screen: everything in them, as it is signed."""

from keyturn_cli import switch_text
from keyturn_cli.lines import Lines
from keyturn_cli.output import named
from keyturn_cli.switch_text import groups
from keyturn_cli.units import moment, span
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import PersonKey, Root
from keyturn_protocol.root_expiry import ends_soon, expires_in


def root(said: Root, digest: str, at_us: int) -> Lines:
    """Every field of a root, and how long it is still for."""
    lines = Lines()
    lines.add("root", f"version {said.version} of {said.deployment}, made {moment(said.time_us)}")
    lines.add("hash", groups(digest), f"pinned as sha256:{digest}")
    lines.add("follows", "nothing: it is the first" if said.previous is None else f"sha256:{said.previous}")
    style = "yellow" if ends_soon(said, at_us) else ""
    lines.add("expires", f"{moment(said.expires_us)}: it {expires_in(said, at_us)}", style=style)
    lines.add(
        "changed",
        f"root: by {switch_text.threshold(said.thresholds.root)}",
        f"policy: by {switch_text.threshold(said.thresholds.policy)}",
    )
    for party in said.parties:
        lines.add("party", f"{party.id} ({party.class_}) of organisation {party.organisation}: {named(party.name)}")
    for person in said.persons:
        lines.add("person", person.id + ("" if person.keys else ": no key"), *map(_key, person.keys))
    services = said.services
    lines.add(
        "verifier", f"log {services.log_vkey}", f"receipt {services.receipt_vkey}", f"lease {services.lease_vkey}"
    )
    for label, stewards in (("witness", said.witnesses), ("watcher", said.watchers)):
        for steward in stewards:
            lines.add(label, f"{steward.party}: {steward.vkey}")
    return lines


def _key(key: PersonKey) -> str:
    text = f"  {key.key}"
    if key.valid_from_us:
        text += f", from {moment(key.valid_from_us)}"
    if key.valid_until_us is not None:
        text += f", until {moment(key.valid_until_us)}"
    if key.compromised_since_us is not None:
        text += f", COMPROMISED since {moment(key.compromised_since_us)}"
    return text


def policy(said: Policy, digest: str) -> Lines:
    """Every field of a policy."""
    lines = Lines()
    lines.add("policy", f"{named(said.name)}, version {said.version} of {said.deployment}, made {moment(said.time_us)}")
    lines.add("hash", groups(digest))
    lines.add("follows", "nothing: it is the first" if said.previous is None else f"sha256:{said.previous}")
    lines.add("root", "none" if said.root is None else f"sha256:{said.root}")
    lines.add("asked by", f"persons of class {switch_text.either(said.requesters)}")
    for tier in said.tiers:
        lines.add("tier", tier.name, *(f"  {text}" for text in switch_text.tier(tier)))
    lines.extend("free", switch_text.allowance(said.allowance))
    stop = said.stop
    lines.add(
        "stop",
        f"all hosts at one moment, {span(stop.notice_s)} after a suspension; sooner if another organisation asks too",
        f"for {span(stop.alone_s)} the suspender's party has to agree to a resumption",
        f"{span(stop.kill_s)} from SIGTERM to SIGKILL",
    )
    return lines
