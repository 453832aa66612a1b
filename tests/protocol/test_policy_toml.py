"""Policies as people write them: the ready ones hold, and what is wrong is named by its key."""

from collections.abc import Iterable

import pytest

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.policy import Policy
from keyturn_protocol.policy_toml import compile_policy
from keyturn_protocol.root import Party, Root, Standing, Threshold, Thresholds, stand
from keyturn_protocol.runs import Ancestor
from keyturn_protocol.simulate import check, root_faults, simulate
from keyturn_protocol.statements import format_statement
from tests.support.assembly import Assembly
from tests.support.parties import BEGIN, NAME, changed, digest, person, person_key, policy, root, scope, tier
from tests.support.paths import REPO

FILES = sorted((REPO / "docs" / "policies").glob("*.toml"))
READY = {path.stem: path.read_text(encoding="utf-8") for path in FILES}
LAB = ("lab-a/ada", "lab-a/bob", "lab-a/cat", "lab-a/dan")
PEOPLE = {
    "single-lab": (*LAB, "ops/eve", "ops/fay"),
    "lab-regulator": (*LAB, "evals/pat", "evals/quin", "office/ivy", "office/joe", "office/kim", "ops/eve", "ops/fay"),
}
PARTIES = {"lab-a": "lab", "ops": "operator", "office": "regulator", "evals": "third-party"}


def standing(people: Iterable[str], **organisation: str) -> Standing:
    names = sorted({name.partition("/")[0] for name in people})
    parties = [
        Party(id=name, organisation=organisation.get(name, name), class_=PARTIES[name], name=name)  # type: ignore[arg-type]
        for name in names
    ]
    made: Root = root(parties=parties, persons=[person(name) for name in sorted(people)])
    return stand(made, digest(made))


def under(name: str) -> tuple[Policy, Standing]:
    held = standing(PEOPLE[name], **({"ops": "lab-a"} if name == "single-lab" else {}))
    return compile_policy(READY[name], held, None, BEGIN), held


@pytest.mark.parametrize("name", PEOPLE)
def test_a_ready_policy_holds_under_a_root_that_fits(name: str) -> None:
    found, held = under(name)
    report = check(found, held, BEGIN)
    assert report.faults == ()
    assert [one.may_be_away >= 0 for one in report.tiers] == [True] * len(found.tiers)
    assert [one.outage_s for one in report.tiers] == [one.lease_s for one in found.tiers]
    assert all(one.stop_latest_s == 1800 + one.outage_s > one.stop_reachable_s for one in report.tiers)
    assert (found.deployment, found.root, found.version, found.previous) == (NAME, held.hash, 1, None)


def test_every_ready_policy_is_held_by_a_test() -> None:
    assert sorted(READY) == sorted(PEOPLE)


def test_compute_is_exact() -> None:
    found, _ = under("lab-regulator")
    assert [one.above.budget_tflop for one in found.tiers] == [10**11, 10**13, 10**14]
    assert found.allowance.organisation_tflop == 5 * 10**10


def test_the_next_version_follows_the_one_in_force() -> None:
    found, held = under("single-lab")
    after = compile_policy(READY["single-lab"], held, ("a" * 64, found), BEGIN)
    assert (after.version, after.previous) == (2, "a" * 64)


GOOD = READY["single-lab"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "single lab"', "name = 5", "name: not text (expected text of one line, got 5)"),
        ('name = "single lab"', "", "name: is missing"),
        ('requesters = ["lab"]', 'requesters = ["l\u0430b"]', "requesters[0]: no such word (expected lab or operator"),
        ('requesters = ["lab"]', 'requesters = ["lab", "lab"]', "requesters: a word stands twice"),
        ("budget_flop = 1e23", "budget_flop = 1e11", "tier[0].above.budget_flop: not compute (expected FLOP such as"),
        ("budget_flop = 1e23", "budget_flop = 1.5e12", "tier[0].above.budget_flop"),
        ("budget_flop = 1e23", "budget_flop = -1e23", "tier[0].above.budget_flop"),
        ("budget_flop = 1e23", "budget_flop = inf", "tier[0].above.budget_flop"),
        ("budget_flop = 1e23", "budget_flop = nan", "tier[0].above.budget_flop"),
        ("budget_flop = 1e23", "budget_flop = true", "tier[0].above.budget_flop"),
        ("budget_flop = 1e23", "budget_flop = 1e999999999", "tier[0].above.budget_flop"),
        ("budget_flop = 1e23", "budget = 1e23", "tier[0].above.budget: unknown key (expected budget_flop, chips"),
        (
            "persons = 2",
            "persons = 0",
            "tier[0].approve.persons: not a whole number (expected one from 1",
        ),
        ("persons = 2, ", "", "tier[0].approve.persons: is missing"),
        ("persons = 2", "persons = 2.0", "tier[0].approve.persons"),
        ("persons = 2", "persons = true", "tier[0].approve.persons"),
        ("minimum = { lab = 1 }", "minimum = { labs = 1 }", "tier[0].approve.minimum.labs: unknown class"),
        ("minimum = { lab = 1 }", "minimum = { lab = 0 }", "tier[0].approve.minimum.lab"),
        ("minimum = { lab = 1 }", "minimum = {}", "tier large: no class whose consent it takes"),
        ('decide = "3d"', "decide = 3", 'tier[0].decide: not a span (expected a span such as "7d"'),
        ('decide = "3d"', 'decide = "3 days"', "tier[0].decide"),
        ('decide = "3d"', 'decide = "\u0663d"', "tier[0].decide"),
        ('decide = "3d"', 'decide = "0s"', "tier[0].decide: not a span in range"),
        ('decide = "3d"', 'decide = "99999d"', "tier[0].decide"),
        (
            "colleagues = true",
            'colleagues = "yes"',
            "tier[0].colleagues: neither true nor false",
        ),
        ('name = "large"', 'name = "Large"', "not canonical JSON"),
        ('name = "large"', 'name = "very-large"', "two tiers of one name"),
        ('verified = ["argv", "image"]', 'verified = ["weights"]', "tier[0].verified[0]"),
        ("[stop]", "[stops]", "stop: is missing"),
        ("[stop]", "[extra]\n[stop]", "extra: unknown key"),
        ("[allowance]", "[[allowance]]", "allowance: not a table (expected a table"),
        ("[[tier]]\n", "[tier]\n", "not TOML"),
        ("deny = 2 ", "deny = 1\ndeny = 2 ", "not TOML"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(old: str, new: str, said: str) -> None:
    assert old in GOOD
    held = standing(PEOPLE["single-lab"])
    with pytest.raises(ProtocolError) as found:
        compile_policy(GOOD.replace(old, new, 1), held, None, BEGIN)
    assert found.value.code is Code.BAD_POLICY
    assert said in str(found.value)


def test_a_huge_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError) as found:
        compile_policy("#" * (1024 * 1024 + 1), standing(LAB), None, BEGIN)
    assert found.value.code is Code.TOO_LARGE
    with pytest.raises(ProtocolError, match="not TOML"):
        compile_policy("a = " + "[" * 100_000, standing(LAB), None, BEGIN)


# What a policy comes to


def test_a_policy_that_can_never_approve_says_what_is_missing() -> None:
    found, _ = under("lab-regulator")
    held = standing([name for name in PEOPLE["lab-regulator"] if not name.startswith("evals")])
    report = check(found, held, BEGIN)
    missing = "can never approve: with all who could sign, 1 third-party, 1 more organisation(s) would be missing"
    assert report.faults == (f"tier systemic: {missing}", f"tier frontier: {missing}")
    assert [one.may_be_away for one in report.tiers] == [1, -1, -1]


@pytest.mark.parametrize(
    ("approve", "away"),
    [
        (Threshold(persons=2, organisations=1, minimum={"lab": 1}), 2),
        (Threshold(persons=7, organisations=1, minimum={"lab": 1}), 1),
        (Threshold(persons=3, organisations=3, minimum={"lab": 1}), 2),
        (Threshold(persons=4, organisations=4, minimum={"lab": 1}), 0),
        (Threshold(persons=2, organisations=2, minimum={"regulator": 2}), 0),
        (Threshold(persons=2, organisations=2, minimum={"lab": 4}), -1),
    ],
)
def test_how_many_may_be_away(approve: Threshold, away: int) -> None:
    """Of ada's three colleagues, two of the operator, one of the evaluators, two of the regulator."""
    held = standing((*LAB, "ops/eve", "ops/fay", "evals/pat", "office/ivy", "office/joe"))
    asked = policy("0" * 64, tiers=[tier(approve=approve)])
    assert check(asked, held, BEGIN).tiers[0].may_be_away == away


def test_a_policy_that_would_always_approve() -> None:
    """Nobody has a veto over the one who has it, and more must say no than there are."""
    alone = policy("0" * 64, requesters=["regulator"], tiers=[tier(veto=["regulator"], deny=6)])
    held = standing(("lab-a/ada", "lab-a/bob", "office/ivy", "ops/eve"))
    report = check(alone, held, BEGIN)
    assert any("can never refuse: 6 must say no, of 3, and nobody has a veto" in fault for fault in report.faults)


def test_keys_that_are_not_valid_any_more_leave_nobody() -> None:
    people = [person("lab-a/ada", person_key("lab-a/ada", valid_until_us=BEGIN)), person("office/ivy")]
    parties = [Party(id=name, organisation=name, class_=PARTIES[name], name="") for name in ("lab-a", "office")]  # type: ignore[arg-type]
    held = stand(root(parties=parties, persons=people), "0" * 64)
    report = check(policy("0" * 64), held, BEGIN)
    assert "tier large: can never approve: nobody who may ask has a valid key" in report.faults


def test_a_root_whose_policy_nobody_could_sign() -> None:
    nobody = Threshold(persons=2, organisations=2, minimum={"third-party": 1})
    two = Threshold(persons=2, organisations=2, minimum={})
    held = stand(root(thresholds=Thresholds(root=two, policy=nobody)), "0" * 64)
    assert root_faults(held, BEGIN) == (
        "thresholds.policy: can never be met: with all who could sign, 1 third-party would be missing",
    )
    assert root_faults(stand(root(), "0" * 64), BEGIN) == ()


def test_who_could_approve_a_request_and_what_is_missing() -> None:
    hall = Assembly()
    held = hall.switch.standing
    assert held is not None
    asked = hall.request(ancestors=[Ancestor(run="older", tflop=None, basis="")])
    lineage = tier(name="deep", above=changed(tier().above, budget_tflop=10**12, chips=2**15, lineage_tflop=10**13))
    found = simulate(policy(hall.root, tiers=[tier(), lineage]), held, asked, BEGIN, ["lab-a/bob", "lab-a/ada"])
    assert (found.tier.name, [str(one) for one in found.why]) == (
        "deep",
        ["lineage_tflop unknown is above 10,000,000,000,000"],
    )
    assert found.excluded == ("lab-a/ada",)
    assert found.approvers == ("lab-a/bob", "office/ivy", "office/joe", "operator-b/eve", "operator-b/fay")
    assert found.vetoers == ("office/ivy", "office/joe", "operator-b/eve", "operator-b/fay")
    assert (found.signed.persons, str(found.signed)) == (
        ("lab-a/bob",),
        "1 operator, 1 regulator, 2 more organisation(s)",
    )
    assert (found.possible.met, found.may_be_away, found.faults) == (True, 0, ())
    assert (found.stop_reachable_s, found.stop_latest_s) == (1800, 1800 + 48 * 3600)


def test_a_request_below_all_tiers_is_decided_by_the_lowest() -> None:
    hall = Assembly()
    assert hall.switch.standing is not None
    found = simulate(policy(hall.root), hall.switch.standing, hall.request(scope=scope(budget_tflop=1, chips=1)), BEGIN)
    assert (found.tier.name, found.why) == ("large", ())


def test_what_a_request_would_be_refused_for() -> None:
    hall = Assembly()
    assert hall.switch.standing is not None
    asked = hall.request(requester="office/ivy", scope=scope(not_after_us=BEGIN), spec={})
    found = simulate(policy(hall.root, tiers=[tier(verified=["argv"])]), hall.switch.standing, asked, BEGIN)
    assert found.faults == (
        "requester: only lab may ask for runs",
        "spec.argv: tier large asks for a commitment",
        "scope.not_after_us: the window is over",
    )


def test_what_is_compiled_is_what_is_signed() -> None:
    found, _ = under("lab-regulator")
    assert b'"version":1' in format_statement(found)
