"""A lease is for this node, this boot, this nonce, these chips, and newer than all that was seen; else it is none."""

from typing import Any

import pytest

from keyturn_agent.errors import RefusedError
from keyturn_agent.switch.lease_check import BehindError, Wanted, check_lease, check_place, check_run
from keyturn_agent.switch.pin import Pin
from keyturn_agent.words import count
from keyturn_protocol.keys import node_id_of
from keyturn_protocol.lease import AllowanceName, Lease
from keyturn_protocol.permit import Opened, open_permit_bundle, parse_permit_bundle
from tests.support.assembly import STARTER, Assembly, lease_note
from tests.support.hosts import BOOT, Key
from tests.support.parties import BEGIN, DAY, NAME, scope

NODE, NONCE = node_id_of(Key(STARTER).public), "5" * 64
CHIPS = tuple(f"GPU-{i}" for i in range(8))


class Place:
    """A run that was approved, suspended and resumed, and what a host asked for it."""

    def __init__(self) -> None:
        self.hall = Assembly()
        self.run = self.hall.approved()
        self.hall.start(self.run)
        self.hall.suspend(self.run)
        self.hall.resume(self.run, "lab-a/bob", "operator-b/eve", "office/ivy")
        self.wanted = Wanted("run", self.run, None, "acme", NODE, BOOT, NONCE, CHIPS)

    def opened(self, run: str | None) -> Opened:
        return open_permit_bundle(parse_permit_bundle(self.hall.bundle(run)), self.hall.root, NAME)

    def check(self, *, adopted: int = -1, charged_flop: int = 0, wanted: Wanted | None = None, **changes: Any) -> Lease:
        fields: dict[str, Any] = {
            "root": self.hall.root, "policy": self.hall.policy, "run": self.run, "epoch": 1
        } | changes  # fmt: skip
        root, policy, run = (fields.pop(name) for name in ("root", "policy", "run"))
        note = lease_note(root, policy, run, self.hall.now_us, **fields)
        wanted = self.wanted if wanted is None else wanted
        return check_lease(note, wanted, self.opened(wanted.run), 1, adopted, charged_flop)


@pytest.fixture(scope="module")
def place() -> Place:
    return Place()


def test_a_good_lease(place: Place) -> None:
    assert place.check().epoch == 1


ATTACKS: dict[str, dict[str, Any]] = {
    "moved to another node": {"node_id": "f" * 32},
    "moved to another boot": {"boot_id": "0c6b1d9e-0000-4000-8000-00000000000a"},
    "an older one of this boot": {"nonce": "6" * 64},
    "for other chips": {"chips": ["GPU-0"]},
    "for chips of somebody else": {"chips": [*CHIPS[:-1], "GPU-9"]},
    "for another run": {"run": "9" * 64},
    "that lives longer than the policy lets it": {"ttl_s": 48 * 3600 + 1},
    "for more than the run's budget": {"upto_tflop": 2**52},
    "from before the suspension": {"epoch": 0},
    "for types that nobody approved": {"dtypes": ["fp8"]},
    "for any type": {"dtypes": []},
    "under the allowance": {
        "run": None,
        "allowance": AllowanceName(kind="allowance", organisation="acme", lineage="a"),
        "epoch": 0,
    },
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(place: Place, attack: str) -> None:
    with pytest.raises(RefusedError) as caught:
        place.check(**ATTACKS[attack])
    assert caught.value.code == "bad_lease"
    assert not isinstance(caught.value, BehindError)


@pytest.mark.parametrize(
    "changes", [{"root": "1" * 64}, {"policy": "1" * 64}, {"key": Key("service log")}, {"key": Key("nobody")}]
)
def test_what_may_only_be_newer_than_what_was_seen_makes_the_host_look_again(place: Place, changes: Any) -> None:
    with pytest.raises(BehindError):
        place.check(**changes)


def test_no_lease_is_adopted_twice(place: Place) -> None:
    assert place.check(adopted=-1).sequence == 0
    with pytest.raises(RefusedError, match=r"number 0 of .* was adopted before"):
        place.check(adopted=0)
    assert place.check(adopted=0, sequence=1).sequence == 1


def test_a_lease_under_which_nothing_is_left(place: Place) -> None:
    with pytest.raises(RefusedError) as caught:
        place.check(charged_flop=10**18)
    assert caught.value.code == "exhausted"


def test_an_allowance_of_another_organisation_or_lineage(place: Place) -> None:
    wanted = Wanted("allowance", None, "aurora", "acme", NODE, BOOT, NONCE, CHIPS)
    good = AllowanceName(kind="allowance", organisation="acme", lineage="aurora")
    fields: dict[str, Any] = {"wanted": wanted, "run": None, "epoch": 0, "dtypes": [], "ttl_s": 3600}
    assert place.check(**fields, allowance=good).allowance == good
    for other in (
        AllowanceName(kind="allowance", organisation="other", lineage="aurora"),
        AllowanceName(kind="allowance", organisation="acme", lineage="borealis"),
        AllowanceName(kind="diagnostics", organisation="acme", lineage=None),
    ):
        with pytest.raises(RefusedError):
            place.check(**fields, allowance=other)


@pytest.mark.parametrize("kind", ["allowance", "diagnostics"])
@pytest.mark.parametrize("invented", ["initech", "Acme", "\N{CYRILLIC SMALL LETTER A}cme"], ids=ascii)
def test_an_allowance_of_an_organisation_that_is_not_in_the_root(place: Place, invented: str, kind: Any) -> None:
    """Also where verifier and enrolment agree on the name: nobody who signed the root has heard of it."""
    lineage = "aurora" if kind == "allowance" else None
    name = AllowanceName(kind=kind, organisation=invented, lineage=lineage)
    fields: dict[str, Any] = {"run": None, "epoch": 0, "dtypes": [], "ttl_s": 3600, "allowance": name}
    with pytest.raises(RefusedError, match="expected acme, hosting or state, got '") as caught:
        place.check(wanted=Wanted(kind, None, lineage, invented, NODE, BOOT, NONCE, CHIPS), **fields)
    # There is nothing to look for again: this is the root that the host has.
    assert (caught.value.code, isinstance(caught.value, BehindError)) == ("organisation", False)


def test_wall_clock_gates_the_start(place: Place) -> None:
    """Set back before the window, or forward beyond it, the run isn't started; within it, it is."""
    hall = Assembly()
    run = hall.approved()
    opened = open_permit_bundle(parse_permit_bundle(hall.bundle(run)), hall.root, NAME).run
    assert opened is not None
    check_run(opened, hall.now_us)
    for moment in (BEGIN - DAY, BEGIN + 101 * DAY):
        with pytest.raises(RefusedError):
            check_run(opened, moment)


def test_a_run_has_its_place(place: Place) -> None:
    hall = Assembly()
    run = hall.say(hall.request(scope=scope(sites=["fra1"], chip_uuids=["GPU-0", "GPU-1"], chips=1)), "lab-a/ada")
    for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
        hall.say(hall.decision(run, who), who)
    opened = hall.switch.runs[run]
    check_place(opened, "fra1", ("GPU-0",))
    for site, chips in (("fra2", ("GPU-0",)), ("fra1", ("GPU-2",)), ("fra1", ("GPU-0", "GPU-1"))):
        with pytest.raises(RefusedError):
            check_place(opened, site, chips)


def test_what_is_one_is_said_as_one_and_who_is_missing_has_its_command(place: Place) -> None:
    """A person reads both on the way to a start."""
    hall = Assembly()
    pending = hall.switch.runs[hall.say(hall.request(), "lab-a/ada")]
    with pytest.raises(RefusedError) as caught:
        check_run(pending, hall.now_us)
    assert (caught.value.code, caught.value.hint) == ("not_approved", "keyturn show RUN says who is missing")
    assert [count(value, "chip") for value in (1, 2)] == ["1 chip", "2 chips"]


def test_a_pin_remembers_the_epoch(place: Place, tmp_path: Any) -> None:
    pin = Pin.first(tmp_path, NAME, place.hall.root, place.hall.bundle())
    pin.take(pin.open(place.hall.bundle(place.run)))
    assert pin.epoch(place.run) == 1
