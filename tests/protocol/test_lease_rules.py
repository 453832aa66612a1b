"""Who may have a lease at all.

Of an allowance: an organisation that a party of the root in force is of, by its exact name; whatever else a join token
says gets nothing, however much it looks like one. Of anything: a node that no other one replaced.
"""

from typing import Any

import pytest

from keyturn_protocol.authority import Refused
from keyturn_protocol.claims import Claims
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.lease import AllowanceName, Lease
from keyturn_protocol.leases import Asked
from keyturn_protocol.root import Party
from keyturn_protocol.statements import Replacement
from tests.support.assembly import Assembly
from tests.support.leasing import Books, asking, log
from tests.support.parties import NAME, changed, root, scope

HOST = log("a")
ACCENTED = "acm\N{COMBINING ACUTE ACCENT}e"


class Counter:
    """Where a host of an organisation asks for an allowance."""

    def __init__(self) -> None:
        self.hall = Assembly()

    @property
    def index(self) -> int:
        return self.hall.switch.index + 1

    def lease(self, organisation: str, kind: Any = "allowance", origin: Origin = HOST) -> tuple[Lease, Asked]:
        """Of an allowance, or of the run if ``kind`` is its hash."""
        fields: dict[str, Any] = {"root": self.hall.root, "policy": self.hall.policy, "time_us": self.hall.now_us}
        subject: str | AllowanceName = kind
        if kind in ("allowance", "diagnostics"):
            lineage = "aurora" if kind == "allowance" else None
            subject = AllowanceName(kind=kind, organisation=organisation, lineage=lineage)
        else:
            fields["dtypes"] = scope().dtypes
        lease = Books().lease(origin, 10, subject=subject, **fields)
        listed = frozenset(lease.chips)
        return lease, Asked(origin, 1, lease.boot_id, asking(lease), organisation, "hall 1", listed, self.index - 1)

    def refusal(self, organisation: str, kind: Any = "allowance", origin: Origin = HOST) -> Refused:
        lease, asked = self.lease(organisation, kind, origin)
        with pytest.raises(Refused) as caught:
            self.hall.switch.check_lease(lease, asked, Claims(), self.index, self.hall.now_us)
        return caught.value

    def taken(self, organisation: str, kind: Any = "allowance", origin: Origin = HOST) -> None:
        lease, asked = self.lease(organisation, kind, origin)
        self.hall.switch.check_lease(lease, asked, Claims(), self.index, self.hall.now_us)

    def next_root(self, parties: list[Party]) -> None:
        before = self.hall.root
        made = changed(root(parties=parties), version=2, previous=before, root=before)
        self.hall.root = self.hall.say(made, "lab-a/ada", "operator-b/eve")


@pytest.fixture
def counter() -> Counter:
    return Counter()


def test_an_organisation_that_nobody_in_the_root_is_of(counter: Counter) -> None:
    assert counter.refusal("initech").why == "organisation"


@pytest.mark.parametrize("kind", ["allowance", "diagnostics"])
def test_no_kind_of_allowance_is_for_an_invented_organisation(counter: Counter, kind: str) -> None:
    assert counter.refusal("initech", kind).why == "organisation"


@pytest.mark.parametrize(
    "lookalike",
    [
        "Acme",
        "ACME",
        "acme ",
        " acme",
        "acme\N{NO-BREAK SPACE}",
        "acme\N{ZERO WIDTH SPACE}",
        "acme\N{SOFT HYPHEN}",
        "\N{CYRILLIC SMALL LETTER A}cme",
        "a\N{CYRILLIC SMALL LETTER ES}me",
        "\N{FULLWIDTH LATIN SMALL LETTER A}cme",
        "ac\N{MATHEMATICAL SANS-SERIF SMALL M}e",
        "acm\N{LATIN SMALL LETTER E WITH ACUTE}",
        ACCENTED,
        "acme.",
        "acme-",
        "acme%20",
        "acme/x",
        "a",
    ],
    ids=ascii,
)
def test_a_name_that_looks_like_a_partys_organisation(counter: Counter, lookalike: str) -> None:
    assert counter.refusal(lookalike).why == "organisation"


@pytest.mark.parametrize("other", ["lab-a", "Lab-A", "lab", "lab-a/ada", "kt.example"])
def test_what_else_a_root_names_is_no_organisation(counter: Counter, other: str) -> None:
    """Ids, titles, classes and persons of parties."""
    assert counter.refusal(other).why == "organisation"


def test_an_organisation_that_left_the_root(counter: Counter) -> None:
    parties = [changed(party, organisation="globex") if party.id == "lab-a" else party for party in root().parties]
    counter.taken("acme")
    counter.next_root(parties)
    assert counter.refusal("acme").why == "organisation"
    counter.taken("globex")


def test_an_organisation_that_is_to_join_with_the_next_root(counter: Counter) -> None:
    assert counter.refusal("globex").why == "organisation"
    joined = Party(id="lab-z", organisation="globex", class_="lab", name="")
    counter.next_root([root().parties[0], joined, *root().parties[1:]])
    counter.taken("globex")


def test_the_refusal_says_what_was_expected_and_what_came_letter_by_letter(counter: Counter) -> None:
    said = str(counter.refusal("\N{CYRILLIC SMALL LETTER A}cme"))
    assert "expected acme, hosting or state" in said
    assert "got '\\u0430cme'" in said
    assert "root version 1" in said


@pytest.mark.parametrize("organisation", ["acme", "hosting", "state"])
@pytest.mark.parametrize("kind", ["allowance", "diagnostics"])
def test_every_partys_organisation_has_an_allowance(counter: Counter, organisation: str, kind: str) -> None:
    counter.taken(organisation, kind)


def replacement(counter: Counter, old: str, new: str) -> Replacement:
    ids = {"old": parse_origin(log(old)).node_id, "new": parse_origin(log(new)).node_id}
    return Replacement(v=1, deployment=NAME, root=counter.hall.root, time_us=0, reason="a new disk", **ids)


def replaces(counter: Counter, old: str, new: str) -> None:
    counter.hall.say(replacement(counter, old, new), "operator-b/eve")


@pytest.mark.parametrize("kind", ["run", "allowance", "diagnostics"])
def test_a_node_that_was_replaced(counter: Counter, kind: str) -> None:
    subject = counter.hall.approved() if kind == "run" else kind
    counter.taken("acme", subject)
    replaces(counter, "a", "b")
    refused = counter.refusal("acme", subject)
    assert refused.why == "replaced"
    old, new = (parse_origin(log(name)).node_id for name in "ab")
    assert str(refused) == f"another node is what this host became (expected {new}, got {old})"


def test_a_node_that_was_replaced_and_goes_on_in_another_log(counter: Counter) -> None:
    replaces(counter, "a", "b")
    assert counter.refusal("acme", origin=log("a", 2)).why == "replaced"


def test_a_node_that_replaced_another_and_was_replaced(counter: Counter) -> None:
    replaces(counter, "a", "b")
    replaces(counter, "b", "c")
    for name in "ab":
        assert counter.refusal("acme", origin=log(name)).why == "replaced"
    counter.taken("acme", origin=log("c"))


def test_a_node_that_was_replaced_before_there_was_a_root() -> None:
    """By operators of the trust file, whom the switch doesn't know: who verified that tells it."""
    counter = Counter()
    counter.hall.switch.replace(replacement(counter, "a", "b"))
    assert counter.refusal("acme").why == "replaced"


def test_no_lab_takes_the_leases_of_a_node_away(counter: Counter) -> None:
    with pytest.raises(Refused, match="not a person of an operator"):
        counter.hall.say(replacement(counter, "a", "b"), "lab-a/ada")
    counter.taken("acme")


def test_the_node_that_replaces_another_and_everybody_else_get_leases(counter: Counter) -> None:
    replaces(counter, "a", "b")
    for name in "bc":
        counter.taken("acme", origin=log(name))
