"""Who may have a lease of an allowance at all: an organisation that a party of the root in force is of, by its exact
name. Whatever else a join token says gets nothing, however much it looks like one."""

from typing import Any

import pytest

from keyturn_protocol.authority import Refused
from keyturn_protocol.lease import AllowanceName, Lease
from keyturn_protocol.leases import Asked
from keyturn_protocol.root import Party
from tests.support.assembly import Assembly
from tests.support.leasing import Books, asking, log
from tests.support.parties import changed, root

HOST = log("a")
ACCENTED = "acm\N{COMBINING ACUTE ACCENT}e"


class Counter:
    """Where a host of an organisation asks for an allowance."""

    def __init__(self) -> None:
        self.hall = Assembly()

    @property
    def index(self) -> int:
        return self.hall.switch.index + 1

    def lease(self, organisation: str, kind: Any = "allowance") -> tuple[Lease, Asked]:
        name = AllowanceName(kind=kind, organisation=organisation, lineage="aurora" if kind == "allowance" else None)
        fields = {"root": self.hall.root, "policy": self.hall.policy, "time_us": self.hall.now_us}
        lease = Books().lease(HOST, 10, subject=name, **fields)
        listed = frozenset(lease.chips)
        return lease, Asked(HOST, 1, lease.boot_id, asking(lease), organisation, "hall 1", listed, self.index - 1)

    def refusal(self, organisation: str, kind: Any = "allowance") -> Refused:
        lease, asked = self.lease(organisation, kind)
        with pytest.raises(Refused) as caught:
            self.hall.switch.check_lease(lease, asked, self.index, self.hall.now_us)
        return caught.value

    def taken(self, organisation: str, kind: Any = "allowance") -> None:
        lease, asked = self.lease(organisation, kind)
        self.hall.switch.check_lease(lease, asked, self.index, self.hall.now_us)

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
