"""What an audit says about statements: each attack on a replacement by its name."""

from collections.abc import Sequence

import pytest

from keyturn_protocol.api import OperatorKey
from keyturn_protocol.audit import Report, audit
from keyturn_protocol.bundle import statement_path
from keyturn_protocol.chips import chip_table
from keyturn_protocol.leaves import StatementBody, parse_leaf
from keyturn_protocol.statements import KINDS, Statement
from tests.protocol.test_links import World, X
from tests.support.bundles import Bundle
from tests.support.people import ANNA, BEN, MALLORY, OPERATORS, operator, replaces
from tests.support.ssh_signer import SshKey
from tests.vectors.people import pae, replacement, signed
from tests.vectors.pieces import b64, canonical


def linked() -> tuple[World, str, str]:
    """A world with its replacement yet to be said, and the ids of both nodes."""
    world = World()
    new = world.again().inventory(named=[X])
    world.receive(new)
    return world, world.old.name.node_id, new.name.node_id


def said(*envelopes: bytes) -> Bundle:
    """A bundle of a verifier that took all of these."""
    world, _, _ = linked()
    for envelope in envelopes:
        world.site.say(envelope)
    return world.site.export()


def check(bundle: Bundle, operators: Sequence[OperatorKey] | None = OPERATORS) -> Report:
    return audit(bundle, bundle.trust, chip_table(), operators=operators)


_, OLD, NEW = linked()
GOOD = replaces(OLD, NEW)


def refused(report: Report, why: str) -> None:
    assert report.outcome == "contradicted"
    assert any(why in reason for reason in report.reasons), report.reasons
    assert report.contradictions


@pytest.mark.parametrize("keys", [(ANNA,), (BEN,), (ANNA, BEN)])
def test_a_replacement_by_operators_passes(keys: tuple[object, ...]) -> None:
    report = check(said(replaces(OLD, NEW, *keys)))  # type: ignore[arg-type]
    assert (report.outcome, report.reasons) == ("pass", ())
    assert [(link.old, link.new, link.reason) for link in report.links] == [(OLD, NEW, "new disk, image 44")]


def test_a_key_that_is_no_operators() -> None:
    refused(check(said(replaces(OLD, NEW, MALLORY))), "may not sign this")
    refused(check(said(replaces(OLD, NEW, ANNA, MALLORY))), "may not sign this")


def test_a_statement_is_good_for_nothing_without_its_signer_pinned() -> None:
    report = check(said(GOOD), None)
    assert report.outcome == "undecided"
    assert any("keys of operators are not pinned" in reason for reason in report.reasons)
    assert report.links == ()
    refused(check(said(GOOD), []), "may not sign this")


def test_forged_under_the_operators_key_id() -> None:
    payload = canonical(replacement(deployment="kt.example", old=OLD, new=NEW))
    envelope = signed(payload, ANNA)
    envelope["signatures"][0]["sig"] = b64(MALLORY.sign(pae("replacement", payload)))
    refused(check(said(canonical(envelope))), "does not verify")


def test_a_signature_in_another_namespace() -> None:
    payload = canonical(replacement(deployment="kt.example", old=OLD, new=NEW))
    envelope = signed(payload, BEN)
    envelope["signatures"][0]["sig"] = b64(BEN.sshsig(pae("replacement", payload), namespace="git"))
    refused(check(said(canonical(envelope))), "another namespace")


def test_for_another_deployment() -> None:
    refused(check(said(replaces(OLD, NEW, deployment="kt.example.net"))), "another deployment")


def test_under_a_root_that_there_is_not() -> None:
    refused(check(said(replaces(OLD, NEW, root="00" * 32))), "another root")


def test_of_a_node_that_was_never_here() -> None:
    refused(check(said(replaces("00" * 16, NEW))), "never enrolled")


def test_by_an_id_that_looks_alike() -> None:
    """Another node with all but one digit: a replacement of a node that isn't there."""
    other = OLD[:-1] + ("0" if OLD[-1] != "0" else "1")
    refused(check(said(replaces(other, NEW))), "never enrolled")


def test_two_replacements_of_one_node() -> None:
    refused(check(said(GOOD, replaces(OLD, "00" * 16))), "replaced already")


def test_one_node_for_two() -> None:
    world, old, new = linked()
    third = world.host("third", "0c6b1d9e-0000-4000-8000-000000000009", world.ended_us).genesis(source="nvml")
    world.receive(third)
    world.site.say(replaces(old, new))
    world.site.say(replaces(third.name.node_id, new))
    refused(check(world.site.export()), "replaces another already")


def test_a_node_that_replaces_itself() -> None:
    world, old, _ = linked()
    payload = canonical(replacement(deployment="kt.example", old=old, new=old))
    world.site.say(canonical(signed(payload, ANNA)))
    refused(check(world.site.export()), "doesn't replace itself")


def test_nodes_that_replace_each_other() -> None:
    refused(check(said(GOOD, replaces(NEW, OLD))), "in a circle")


def test_the_same_statement_twice() -> None:
    refused(check(said(GOOD, GOOD)), "is there again")


def test_the_same_replacement_signed_again_is_a_second_one() -> None:
    refused(check(said(GOOD, replaces(OLD, NEW, time_us=1))), "replaced already")


def test_an_operators_key_signs_until_it_ends() -> None:
    world, old, new = linked()
    world.site.say(replaces(old, new))
    at_us = parse_leaf(world.site.leaves[-1]).time_us
    bundle = world.site.export()
    assert check(bundle, [operator(ANNA, until_us=at_us + 1)]).outcome == "pass"
    refused(check(bundle, [operator(ANNA, until_us=at_us)]), "may not sign this")


def test_a_list_of_operators_that_holds_one_key_in_two_forms() -> None:
    ed = SshKey("ssh-ed25519")
    twice = [operator(ed), OperatorKey(key=f"ed25519 {b64(ed.point)}", name="again", until_us=None)]
    refused(check(said(GOOD), twice), "listed twice")


def test_a_missing_statement() -> None:
    world, old, new = linked()
    digest = world.site.say(replaces(old, new))
    bundle = world.site.export()
    refused(check(bundle.drop(statement_path(digest))), "file is missing")
    refused(check(bundle.drop(statement_path(digest)).rehashed()), "statement of leaf")


def test_a_statement_that_no_leaf_names() -> None:
    bundle = said()
    path = statement_path("00" * 32)
    refused(check(bundle.put(path, GOOD).rehashed()), "nothing in the evidence accounts for")


def test_another_statement_in_the_place_of_the_one_that_was_logged() -> None:
    world, old, new = linked()
    digest = world.site.say(replaces(old, new))
    bundle = world.site.export()
    other = replaces(old, new, reason="another reason")
    refused(check(bundle.put(statement_path(digest), other).rehashed()), "not the statement that")


def test_a_leaf_of_another_kind_than_its_statement() -> None:
    world, old, new = linked()
    world.site.say(replaces(old, new), kind="policy")
    refused(check(world.site.export()), "not the statement that")


def test_signatures_may_be_exchanged_for_other_good_ones() -> None:
    """A statement's hash is of what was said: who else signs it changes nothing that follows."""
    world, old, new = linked()
    digest = world.site.say(replaces(old, new))
    bundle = world.site.export()
    report = check(bundle.put(statement_path(digest), replaces(old, new, BEN)).rehashed())
    assert report.outcome == "pass"


class Wish(Statement, frozen=True, kw_only=True, tag="wish"):
    """A kind that somebody added."""


def test_what_no_operator_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of statement that is known isn't an operator's for that."""
    monkeypatch.setitem(KINDS, "wish", Wish)
    said_ = {"deployment": "kt.example", "root": None, "time_us": 0, "type": "wish", "v": 1}
    refused(check(said(canonical(signed(canonical(said_), ANNA, kind="wish")))), "no operator decides about this")


def test_a_damaged_statement_says_where() -> None:
    world, old, new = linked()
    digest = world.site.say(replaces(old, new))
    bundle = world.site.export()
    path = statement_path(digest)
    for at in range(0, len(bundle.files[path]), 7):
        refused(check(bundle.flip(path, at).rehashed()), path)


def test_a_leaf_without_its_statement_is_not_taken_for_one() -> None:
    world, _, _ = linked()
    world.site.leaf(StatementBody(kind="replacement", sha256="00" * 32))
    refused(check(world.site.export()), "statement of leaf")
