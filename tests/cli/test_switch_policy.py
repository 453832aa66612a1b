"""A policy from TOML, what it comes to, and what a request would take under it."""

import json
from pathlib import Path

import pytest

from keyturn_protocol.canonical import encode_record
from keyturn_protocol.root import Steward
from tests.cli.conftest import Cli
from tests.cli.switch_desk import Desk
from tests.support.parties import person, root, service
from tests.support.paths import REPO

SMALL = """
name = "three"
requesters = ["lab"]

[[tier]]
name = "large"
above = { budget_flop = 1e23 }
approve = { persons = 2, organisations = 2, minimum = { regulator = 1 } }
deny = 1
veto = ["regulator"]
colleagues = true
decide = "7d"
start = "30d"
grace = "10min"
lease = "48h"

[allowance]
window = "7d"
organisation_flop = 1e21
lineage_flop = 1e21
diagnostics_flop = 1e18
chips = 64
lease = "1h"

[stop]
notice = "30min"
alone = "72h"
kill = "60s"
"""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "policy.toml").write_text(SMALL)
    (tmp_path / "root").write_bytes(encode_record(root()))
    return Desk(tmp_path)


def test_from_toml_to_the_policy_in_force(keyturn: Cli, desk: Desk) -> None:
    where, made = ("--bundle", desk.file(), "--root", desk.pin), desk.folder / "made"
    code, out, err = keyturn("policy", "new", desk.folder / "policy.toml", "--out", made, *where)
    assert (code, "three, version 2 of kt.example" in out) == (0, True), err
    assert "1 regulator among them" in out
    code, out, _ = keyturn("policy", "diff", made, *where)
    assert (code, "  tiers.large.approve.persons: 3 → 2" in out.splitlines()) == (0, True), out
    digest = json.loads(keyturn("statement", made, "--json")[1])["sha256"]
    for step, (who, source) in enumerate([("lab-a/ada", made), ("office/ivy", desk.folder / "signed-0")]):
        line = ("sign", source, "--key", desk.key(who), "--out", desk.folder / f"signed-{step}", "--expect", digest)
        code, out, err = keyturn(*line, *where)
        assert (code, "tiers.large.approve.persons: 3 → 2" in out) == (0, True), err
    assert "requests that are pending when it comes into force lapse" in out
    desk.sent(desk.folder / "signed-1")
    now = ("--bundle", desk.file(), "--root", desk.pin)
    shown = json.loads(keyturn("policy", "show", *now, "--json")[1])
    assert (shown["sha256"], shown["says"]["version"], shown["counts"][0]["met"]) == (digest, 2, True)
    assert "three parties, version 1" in keyturn("policy", "show", "1", *now)[1]


def test_check_says_what_it_comes_to(keyturn: Cli, desk: Desk) -> None:
    under = ("--under", desk.folder / "root")
    code, out, err = keyturn("policy", "check", desk.folder / "policy.toml", *under)
    assert code == 0, err
    for shown in (
        "any 1 person may be away, and every request can still be approved",
        "stopped alone by office/ivy, office/joe",
        "a verifier that is away for 48 h ends no run",
        "a stop takes 30 min on hosts that hear of it, 48 h 30 min at the worst",
        "the verifier alone can over-lease and hide a veto",
    ):
        assert shown in out, shown
    assert json.loads(keyturn("policy", "check", desk.folder / "policy.toml", *under, "--json")[1])["faults"] == []
    (desk.folder / "all.toml").write_text(SMALL.replace("persons = 2", "persons = 5"))
    assert "nobody that it takes may be away" in keyturn("policy", "check", desk.folder / "all.toml", *under)[1]
    assert keyturn("policy", "check", "--bundle", desk.file(), "--root", desk.pin)[0] == 0


def test_what_a_file_is_its_first_byte_says_and_not_its_name(keyturn: Cli, desk: Desk) -> None:
    """TOML under any name, a statement under one that ends as TOML does, and what is neither."""
    where = ("--bundle", desk.file(), "--root", desk.pin)
    code, _, err = keyturn("policy", "new", desk.folder / "policy.toml", "--out", desk.folder / "made.toml", *where)
    assert code == 0, err
    (desk.folder / "policy").write_text(SMALL)
    (desk.folder / "broken").write_text("name = ")
    (desk.folder / "latin").write_bytes(b'name = "\xe9"')
    under = ("--under", desk.folder / "root")
    assert "three" in keyturn("policy", "check", desk.folder / "policy", *under)[1]
    assert "three" in keyturn("policy", "check", desk.folder / "made.toml", *under)[1]
    for name, message in (("broken", "not TOML"), ("latin", "isn't UTF-8"), ("nowhere", "No such file")):
        code, _, err = keyturn("policy", "check", desk.folder / name, *under)
        assert (code, message in err) == (2, True), err


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("regulator = 1 }", "third-party = 1 }", 1, "can never approve"),
        ("persons = 2", "persons = 7", 1, "can never approve"),
        ('veto = ["regulator"]', "veto = []", 1, "nobody can suspend"),
        ("persons = 2", "persons = 0", 2, "tier[0].approve.persons"),
        ('decide = "7d"', "decide = 7", 2, "tier[0].decide: not a span"),
        ("deny = 1", "deny = 1\nwish = 1", 2, "tier[0].wish: unknown key"),
    ],
)
def test_what_can_never_work_is_refused(keyturn: Cli, desk: Desk, old: str, new: str, code: int, message: str) -> None:
    (desk.folder / "policy.toml").write_text(SMALL.replace(old, new, 1))
    got, out, err = keyturn("policy", "check", desk.folder / "policy.toml", "--under", desk.folder / "root")
    assert (got, message in (out + err).replace("\n", " ")) == (code, True), out + err
    where = ("--bundle", desk.file(), "--root", desk.pin, "--out", desk.folder / "made")
    assert keyturn("policy", "new", desk.folder / "policy.toml", *where)[0] == code
    assert not (desk.folder / "made").exists()


def test_simulate_says_who_could_and_what_is_missing(keyturn: Cli, desk: Desk) -> None:
    request = desk.folder / "request"
    request.write_bytes(encode_record(desk.request()))
    line = ("policy", "simulate", request, "--policy", desk.folder / "policy.toml", "--under", desk.folder / "root")
    code, out, err = keyturn(*line, "--approved", "lab-a/bob", "--approved", "lab-a/ada")
    assert code == 0, err
    for shown in (
        "budget_tflop 1,000,000,000,000 is above 100,000,000,000",
        "lab-a/ada (lab, acme)",
        "1 regulator, 1 more organisation(s)",
    ):
        assert shown in out, shown
    shown = json.loads(keyturn(*line, "--json")[1])
    assert (shown["tier"], shown["excluded"], shown["possible"]) == ("large", ["lab-a/ada"], True)
    nobody = root(
        persons=[person(one.id) if one.party != "office" else one for one in root().persons if one.party == "lab-a"]
    )
    (desk.folder / "root").write_bytes(encode_record(nobody))
    code, out, _ = keyturn(*line)
    assert (code, "nobody in the root can give that" in out) == (1, True)


@pytest.mark.parametrize("name", ["single-lab", "lab-regulator"])
def test_the_policies_that_are_ready_compile(keyturn: Cli, desk: Desk, name: str) -> None:
    file = REPO / "docs" / "policies" / f"{name}.toml"
    code, out, err = keyturn("policy", "check", file, "--under", desk.folder / "root")
    assert code in (0, 1), err
    assert "a verifier that is away for" in out


def test_watchers_that_a_tier_names_hold_nothing_yet(keyturn: Cli, desk: Desk) -> None:
    """No host asks what they cosigned: whoever reads that a tier has watchers reads that too."""
    watcher = Steward(party="office", vkey=service("watcher", 4))
    (desk.folder / "root").write_bytes(encode_record(root(watchers=[watcher])))
    (desk.folder / "policy.toml").write_text(SMALL.replace("deny = 1", 'deny = 1\nwatchers = ["office"]'))
    code, out, err = keyturn("policy", "check", desk.folder / "policy.toml", "--under", desk.folder / "root")
    assert code == 0, err
    assert "the verifier alone can over-lease and hide a veto: no host of this version asks what the watchers" in out
