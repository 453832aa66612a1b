"""The commands that read from a verifier: pages, refusals, and answers that no verifier should give."""

import json
from pathlib import Path

import pytest

from keyturn_cli import client as http
from keyturn_protocol.api import FlopInterval, NodeLog, Page, ProblemCode, WorkloadTotal, problem
from keyturn_protocol.canonical import encode, encode_record
from keyturn_protocol.usage import RowKey, UsageRow, to_row
from tests.cli.conftest import Answer, Cli, FakeVerifier

COMMANDS = ("nodes", "workloads", "usage", "findings")


def page(items: list[object], following: str | None = None) -> Answer:
    return Answer(body=encode(Page(items=items, next=following)))


def total(workload: str, **changes: object) -> WorkloadTotal:
    fields: dict[str, object] = {
        "workload": workload,
        "class_": "exclusive",
        "declared_dtype": "bf16",
        "logs": 1,
        "chips": 8,
        "time_us": 36_000_000_000,
        "gap_us": 0,
        "energy_mj": "12960000000",
        "from_s": 0,
        "to_s": 3600,
        "undeclared": FlopInterval(low="1419999999999999", best="23954227200000000", high="55600000000000001"),
        "declared": FlopInterval(low="22693478400000000", best="23954227200000000", high="30468096000000000"),
    }
    return WorkloadTotal(**(fields | changes))  # type: ignore[arg-type]


def node() -> NodeLog:
    return NodeLog(
        origin="kt.example/node/" + "ab" * 16 + "/1",
        node_id="ab" * 16,
        incarnation=1,
        organisation="Example\x1b[2J",
        site="hall 1",
        vkey="",
        source=None,
        size=0,
        chips=0,
        last_entry_us=None,
        last_receipt_s=None,
        state="frozen",
        reason="fork",
    )


def row() -> UsageRow:
    key = RowKey("kt.example/node/x/1", "GPU-1", 0, "run:a", 1, 0)  # type: ignore[arg-type]
    return to_row(key, [10_000_000, 10] + [None] * 19)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_list(keyturn: Cli, verifier: FakeVerifier, command: str) -> None:
    verifier.give(page([]))
    assert keyturn(command, "--verifier", verifier.url, "--token", "t", "--json") == (0, '{"items":[]}\n', "")
    code, out, err = keyturn(command, "--verifier", verifier.url, "--token", "t")
    assert (code, out) == (0, "")
    assert "there are no" in err


def test_pages_are_read_to_the_end(keyturn: Cli, verifier: FakeVerifier) -> None:
    verifier.give(page([total("run:a")], "x&y="), page([total("run:b")], "z"), page([total("run:c")]))
    code, out, _ = keyturn("workloads", "--verifier", verifier.url, "--token", "secret", "--json")
    assert code == 0
    assert [w["workload"] for w in json.loads(out)["items"]] == ["run:a", "run:b", "run:c"]
    assert out.encode() == encode(json.loads(out)) + b"\n"
    assert [asked.path for asked in verifier.asked] == [
        "/v1/workloads?limit=1000",
        "/v1/workloads?limit=1000&after=x%26y%3D",
        "/v1/workloads?limit=1000&after=z",
    ]
    assert {asked.headers["authorization"] for asked in verifier.asked} == {"Bearer secret"}


def test_a_limit_stops_early(keyturn: Cli, verifier: FakeVerifier) -> None:
    verifier.give(page([total("run:a"), total("run:b")], "x"))
    code, out, _ = keyturn("workloads", "--verifier", verifier.url, "--limit", "1", "--json")
    assert (code, len(json.loads(out)["items"]), len(verifier.asked)) == (0, 1, 1)
    assert verifier.asked[0].path == "/v1/workloads?limit=1"


def test_a_page_that_points_to_itself(keyturn: Cli, verifier: FakeVerifier) -> None:
    verifier.give(page([total("run:a")], "x"))
    code, _, err = keyturn("workloads", "--verifier", verifier.url)
    assert code == 3
    assert "points to itself" in err


def test_intervals_are_as_large_as_the_best_estimate_and_rounded_outwards(keyturn: Cli, verifier: FakeVerifier) -> None:
    pools = [
        total("gap", class_=None, energy_mj=None, declared=None, declared_dtype=None),
        total("unattributed", class_=None, declared=None, declared_dtype=None),
    ]
    unknown = total("run:b", undeclared=FlopInterval(low="0", best="0", high=None), declared=None, declared_dtype=None)
    verifier.give(page([total("run:a"), unknown, *pools]))
    code, out, _ = keyturn("workloads", "--verifier", verifier.url)
    first, second, gap, rest = out.splitlines()[1:]
    assert code == 0
    assert "1.41e15 … 5.57e16" in first
    assert "2.26e16 … 3.05e16" in first
    assert "bf16" in first
    assert "0 … unbounded" in second
    assert "not declared" in second
    assert gap.startswith("gap: silent or not measured")
    assert "<= 5.57e16" in gap
    assert gap.count("not measured") == 3
    assert rest.startswith("unattributed: no visible workload")


def test_what_is_missing_is_neither_zero_nor_blank(keyturn: Cli, verifier: FakeVerifier) -> None:
    verifier.give(page([row()]))
    _, out, _ = keyturn("usage", "--verifier", verifier.url)
    assert out.splitlines()[1].count("not measured") == 4
    verifier.give(page([node()]))
    _, out, _ = keyturn("nodes", "--verifier", verifier.url)
    assert "no entries yet" in out
    assert "frozen: fork" in out
    assert "\x1b" not in out
    assert "Example\\x1b[2J" in out


@pytest.mark.parametrize("code", [c for c in ProblemCode if c not in ("behind",)])
def test_a_refusal_says_what_the_verifier_says(keyturn: Cli, verifier: FakeVerifier, code: ProblemCode) -> None:
    said = problem(code, "because of\x07 this")
    headers = {"content-type": "application/problem+json"}
    verifier.give(Answer(said.status, encode_record(said), headers))
    exit_code, out, err = keyturn("nodes", "--verifier", verifier.url)
    assert exit_code == (3 if said.status >= 500 or said.status == 429 else 1)
    assert out == ""
    assert err.startswith(f"keyturn: error: {said.title}: because of\\x07 this ({said.status} {code})\n")


@pytest.mark.parametrize(
    ("answer", "exit_code", "says"),
    [
        (Answer(404, b"<html>", {"content-type": "text/html"}), 1, "answered 404 without saying why"),
        (Answer(502, b"", {}), 3, "answered 502 without saying why"),
        (Answer(400, b"{}", {"content-type": "application/problem+json"}), 1, "answered 400 without saying why"),
        (Answer(302, b"", {"location": "http://127.0.0.1:1/"}), 1, "which is not followed"),
        (Answer(200, b"<html>"), 3, "not a list as this version knows it"),
        (Answer(200, b'{"items":[{"new":1}],"next":null}'), 3, "not a list as this version knows it"),
        (Answer(200, b'{"items":[],"next":null,"more":1}'), 3, "not a list as this version knows it"),
    ],
    ids=["html", "bare", "shapeless", "redirect", "not json", "unknown item", "unknown field"],
)
def test_answers_that_no_verifier_gives(
    keyturn: Cli, verifier: FakeVerifier, answer: Answer, exit_code: int, says: str
) -> None:
    verifier.give(answer)
    code, out, err = keyturn("nodes", "--verifier", verifier.url, "--json")
    assert (code, out) == (exit_code, "")
    assert err.startswith("keyturn: error: ")
    assert says in err
    assert len(verifier.asked) == 1


def test_an_answer_without_end_is_cut(keyturn: Cli, verifier: FakeVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAGE_BYTES", 100_000)
    verifier.give(Answer(200, b" " * 1_000_000))
    code, _, err = keyturn("nodes", "--verifier", verifier.url)
    assert code == 3
    assert "over its cap of 100000 bytes" in err


def test_a_verifier_that_is_not_there(keyturn: Cli) -> None:
    code, _, err = keyturn("nodes", "--verifier", "http://127.0.0.1:1")
    assert code == 3
    assert "can't reach http://127.0.0.1:1: " in err
    assert "Connection refused" in err


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://verifier.example.org", "expected https"),
        ("ftp://127.0.0.1", "expected https://HOST[:PORT]"),
        ("verifier.example.org", "expected https://HOST[:PORT]"),
        ("https://user:hunter2@verifier.example.org", "no user and password"),
        ("https://verifier.example.org/?token=1", "no query"),
    ],
)
def test_addresses_that_are_refused(keyturn: Cli, url: str, says: str) -> None:
    code, _, err = keyturn("nodes", "--verifier", url)
    assert code == 2
    assert says in err
    assert "hunter2" not in err


class TestToken:
    def test_from_a_file(self, keyturn: Cli, verifier: FakeVerifier, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("kt_secret\n")
        verifier.give(page([]))
        keyturn("nodes", "--verifier", verifier.url, "--token-file", tmp_path / "token")
        assert verifier.asked[0].headers["authorization"] == "Bearer kt_secret"

    def test_from_the_environment(self, keyturn: Cli, verifier: FakeVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEYTURN_TOKEN", "kt_env")
        monkeypatch.setenv("KEYTURN_VERIFIER", verifier.url)
        verifier.give(page([]))
        assert keyturn("nodes")[0] == 0
        assert verifier.asked[0].headers["authorization"] == "Bearer kt_env"

    @pytest.mark.parametrize("token", ["a\r\nx-evil: 1", "ü", "a b", ""])
    def test_characters_that_no_token_has(self, keyturn: Cli, verifier: FakeVerifier, token: str) -> None:
        verifier.give(page([]))
        code, _, err = keyturn("nodes", "--verifier", verifier.url, f"--token={token}")
        assert code == 2
        assert "characters that no token has" in err
        assert verifier.asked == []


def test_without_arguments_it_shows_every_command(keyturn: Cli) -> None:
    code, out, _ = keyturn("--help")
    assert code == 0
    for command in (*COMMANDS, "audit", "demo"):
        assert f"  {command} " in out
    code, out, err = keyturn()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: keyturn ")
    assert "\\n" not in err
    assert keyturn("nonsense")[0] == 2
    assert keyturn("nodes")[0] == 2
    assert keyturn("--version")[1].startswith("keyturn 0")
