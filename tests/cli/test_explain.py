"""Every code that a person is shown is explained."""

import json

import pytest

from keyturn_cli.explanations import KINDS, codes, explain
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.authority import Why
from keyturn_protocol.findings import FindingCode
from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("kind", "enum"),
    [("the switch refuses", Why), ("the verifier answers", ProblemCode), ("finding", FindingCode)],
)
def test_every_code_has_one_and_no_other(kind: str, enum: type[Why] | type[ProblemCode] | type[FindingCode]) -> None:
    assert list(KINDS[kind]) == list(enum), "cli/keyturn_cli/explanations: in the order of the enum"
    for means, do in KINDS[kind].values():
        assert means.endswith(".")
        assert do.endswith((".", "?"))
        assert len(means) < 200
        assert len(do) < 200


def test_a_word_of_two_kinds_is_explained_twice(keyturn: Cli) -> None:
    assert [one.kind for one in explain("fork")] == ["the verifier answers", "finding"]
    code, out, _ = keyturn("explain", "fork")
    assert (code, out.count("fork (")) == (0, 2)
    code, out, _ = keyturn("explain", "requester", "--json")
    assert (code, [one["code"] for one in json.loads(out)["items"]]) == (0, ["requester"])


def test_all_of_them(keyturn: Cli) -> None:
    code, out, _ = keyturn("explain", "all", "--json")
    assert code == 0
    assert {one["code"] for one in json.loads(out)["items"]} == set(codes())


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("reqester", "did you mean requester"),
        ("gate_mismach", "did you mean gate_mismatch?"),
        ("would_relock", "explain all"),  # not what would_stop or would_refuse mean
        ("\x1b[2Jx", "explain all"),
    ],
)
def test_a_code_that_there_is_not(keyturn: Cli, word: str, hint: str) -> None:
    code, out, err = keyturn("explain", word)
    assert (code, out) == (2, "")
    assert hint in err
    assert "\x1b" not in err
