"""Asking for a run: from TOML, from options over it, with the salts beside it."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from keyturn_protocol.openings import check_openings, parse_openings
from keyturn_protocol.runs import Request
from keyturn_protocol.statements import parse_payload
from tests.cli.conftest import Cli
from tests.cli.switch_desk import Desk

TOML = """
label = "aurora-2"
purpose = "a language model"
lineage = "aurora"
flop = 2.4e24
chips = 16_384
dtypes = ["fp8", "bf16"]
sites = ["FRA1"]
from = 2026-01-01
to = 2099-01-01T12:00:00Z

[spec]
config = "train.yaml"
argv = ["torchrun", "train.py"]

[[ancestor]]
run = "aurora-1"
flop = 3000000000001
basis = "metered"

[[ancestor]]
run = "web"
basis = "a stranger's weights"
"""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "run.toml").write_text(TOML)
    (tmp_path / "train.yaml").write_text("lr: 1e-4\n")
    return Desk(tmp_path)


def ask(keyturn: Cli, desk: Desk, *more: object, who: str = "lab-a/ada") -> tuple[int, str, str]:
    where = ("--bundle", desk.file(), "--root", desk.pin, "--out", desk.folder / "asked.json")
    return keyturn("request", desk.folder / "run.toml", *where, "--unsigned", "--person", who, *more)


def asked(desk: Desk) -> Request:
    said = parse_payload("request", (desk.folder / "asked.json").read_bytes())
    assert isinstance(said, Request)
    return said


def test_from_a_file_to_a_pending_run(keyturn: Cli, desk: Desk) -> None:
    code, out, err = ask(keyturn, desk)
    assert code == 0, err
    said = asked(desk)
    assert (said.scope.budget_tflop, said.scope.dtypes, said.scope.sites) == (24 * 10**11, ["bf16", "fp8"], ["FRA1"])
    assert [one.tflop for one in said.ancestors] == [4, None]
    openings = parse_openings((desk.folder / "asked.openings.json").read_bytes())
    assert check_openings(openings, said.spec) == ("image", "data")
    assert openings.parts["config"].value == "sha256:" + sha256(b"lr: 1e-4\n").hexdigest()
    assert len({one.salt for one in openings.parts.values()}) == 2
    for shown in (
        "2.40e24 FLOP",
        "at FRA1",
        "torchrun train.py",
        "image, data: nothing is committed",
        "counts as unbounded",
    ):
        assert shown in out, shown
    digest = json.loads(keyturn("statement", desk.folder / "asked.json", "--json")[1])["sha256"]
    line = ("sign", desk.folder / "asked.json", "--key", desk.key("lab-a/ada"), "--out", desk.folder / "signed")
    where = ("--bundle", desk.file(), "--root", desk.pin, "--expect", digest)
    code, out, err = keyturn(*line, *where, "--openings", desk.folder / "asked.openings.json")
    assert (code, "torchrun train.py" in out) == (0, True), err
    run = desk.sent(desk.folder / "signed")
    assert desk.state(run) == "pending"


def test_options_go_over_the_file(keyturn: Cli, desk: Desk) -> None:
    options = ("--flop", "1e20", "--site", "FRA2", "--site", "FRA1", "--command", "python 'a b.py'", "--label", "x")
    code, _, err = ask(keyturn, desk, *options)
    assert code == 0, err
    said = asked(desk)
    assert (said.label, said.scope.budget_tflop, said.scope.sites) == ("x", 10**8, ["FRA1", "FRA2"])
    openings = parse_openings((desk.folder / "asked.openings.json").read_bytes())
    assert openings.parts["argv"].value == ["python", "a b.py"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flop = 2.4e24", "flop = 'lots'", "flop: must be a number of FLOP"),
        ("flop = 2.4e24", "flop = true", "flop: must be a number of FLOP"),
        ("flop = 2.4e24", "flop = -1e24", "flop: must be a number of FLOP"),
        ("flop = 2.4e24", "flop = nan", "flop: must be a number of FLOP"),
        ("chips = 16_384", "chips = 0", "at `$.scope.chips`"),
        ("chips = 16_384", "chip = 1", "object contains unknown field `chip`"),
        ('lineage = "aurora"', "", "missing required field `lineage`"),
        ('["fp8", "bf16"]', '["fp3"]', "not a type of the tensor pipe"),
        ("to = 2099-01-01T12:00:00Z", "to = 2025-01-01", "a window that ends before it begins"),
        ("to = 2099-01-01T12:00:00Z", "to = 2026-01-02", "too_late: the window is over"),
        ('config = "train.yaml"', 'config = "none.yaml"', "spec.config: "),
        ('config = "train.yaml"', 'image = "latest"', "spec.image: must be sha256:<hex>"),
        ('["torchrun", "train.py"]', '"torchrun train.py"', "spec.argv: must be a list of words"),
        ('["torchrun", "train.py"]', "[]", "argv"),
        ('"aurora-1"', '"web"', "an ancestor is listed twice"),
        ('label = "aurora-2"', 'label = "a\\u202eb"', "label"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_written(
    keyturn: Cli, desk: Desk, old: str, new: str, message: str
) -> None:
    assert old in TOML
    (desk.folder / "run.toml").write_text(TOML.replace(old, new, 1))
    code, out, err = ask(keyturn, desk)
    assert code in (1, 2)
    assert (out, message in err.replace("\n", " ")) == ("", True), err
    assert not (desk.folder / "asked.json").exists()
    assert not (desk.folder / "asked.openings.json").exists()


@pytest.mark.parametrize(("who", "why"), [("office/ivy", "not_entitled"), ("lab-a/zoe", "not_a_person")])
def test_who_may_not_ask(keyturn: Cli, desk: Desk, who: str, why: str) -> None:
    code, out, err = ask(keyturn, desk, who=who)
    assert (code, out, why in err) == (1, "", True)


def test_openings_are_never_written_over(keyturn: Cli, desk: Desk) -> None:
    (desk.folder / "asked.openings.json").write_text("precious")
    code, _, err = ask(keyturn, desk)
    assert (code, "is there already" in err) == (2, True)
    assert (desk.folder / "asked.openings.json").read_text() == "precious"
    assert not (desk.folder / "asked.json").exists()
