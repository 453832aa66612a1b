"""``enroll --replaces``: the statement first, or nothing."""

from pathlib import Path

import pytest

from keyturn_agent.errors import RefusedError, UnreachableError, UsageError
from keyturn_agent.ports import Answer
from keyturn_agent.replace import make_node, node_argument, read_statement
from keyturn_protocol.api import ProblemCode
from tests.agent.fakes import DEPLOYMENT, FakeVerifier, refusal
from tests.agent.hosts import Host
from tests.support.people import ANNA, replaces

OLD = node_argument("0" * 31 + "1")


@pytest.fixture
def verifier() -> FakeVerifier:
    return FakeVerifier()


@pytest.fixture
def host(tmp_path: Path, verifier: FakeVerifier) -> Host:
    return Host(tmp_path / "state", verifier)


def test_the_key_is_made_once_and_the_host_is_enrolled_with_it(host: Host, verifier: FakeVerifier) -> None:
    node = make_node(host.folder)
    assert make_node(host.folder) == node
    assert verifier.calls == []
    statement = replaces(OLD, node, deployment=DEPLOYMENT)
    host.enroll(statement=statement)
    assert verifier.said == [statement]
    assert verifier.calls[:3] == ["statement", "join", "segment"]
    assert [name.split("/")[-2] for name in verifier.logs] == [node]
    # A host that is enrolled shows it again, if it is asked to.
    host.enroll(statement=statement)
    assert verifier.said == [statement, statement]


@pytest.mark.parametrize("code", [ProblemCode.BAD_SIGNATURE, ProblemCode.STATEMENT_REFUSED, ProblemCode.BAD_STATEMENT])
def test_a_refused_statement_enrols_nobody(host: Host, verifier: FakeVerifier, code: ProblemCode) -> None:
    node = make_node(host.folder)
    verifier.interfere = lambda call, answer: refusal(code) if call == "statement" else answer
    with pytest.raises(RefusedError, match="refuses the statement"):
        host.enroll(statement=replaces(OLD, node, deployment=DEPLOYMENT))
    assert verifier.calls == ["statement"]
    assert sorted(path.name for path in host.folder.iterdir()) == ["key", "lock"]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, "application/problem+json", 2, b""),
        Answer(404, "text/html", None, b"<html>"),
        Answer(429, "application/problem+json", 2, refusal(ProblemCode.BUSY).body),
        Answer(200 + 4, "", None, b""),
    ],
)
def test_no_answer_is_no_refusal(host: Host, verifier: FakeVerifier, answer: Answer) -> None:
    node = make_node(host.folder)
    verifier.interfere = lambda call, given: answer if call == "statement" else given
    with pytest.raises(UnreachableError, match="run the command again"):
        host.enroll(statement=replaces(OLD, node, deployment=DEPLOYMENT))
    assert verifier.calls == ["statement"]


def test_a_statement_for_anything_else_is_not_shown(host: Host, verifier: FakeVerifier, tmp_path: Path) -> None:
    node = make_node(host.folder)
    path = tmp_path / "statement.json"
    other = "0" * 31 + "2"
    for data, why in (
        (replaces(OLD, other, deployment=DEPLOYMENT), "is replaced by"),
        (replaces(other, node, deployment=DEPLOYMENT), "is replaced by"),
        (replaces(node, OLD, deployment=DEPLOYMENT), "is replaced by"),
        (replaces(OLD, node, deployment="kt.example.net"), "another deployment"),
        (replaces(OLD, node, ANNA, deployment=DEPLOYMENT, root="00" * 32), "another root"),
        (replaces(OLD, node, deployment=DEPLOYMENT) + b"\n", "not canonical"),
        (b"", "not canonical"),
        (b"a" * 600_000, "over its cap"),
    ):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=why):
            read_statement(path, verifier.pinned, OLD, node)
    path.unlink()
    with pytest.raises(UsageError, match="No such file"):
        read_statement(path, verifier.pinned, OLD, node)


@pytest.mark.parametrize("text", ["", "x", "0" * 31, "A" * 32, "0" * 32 + "\n", "\uff10" * 32, "kt.example/node/1"])
def test_a_node_is_named_by_its_id(text: str) -> None:
    with pytest.raises(UsageError, match="not a node id"):
        node_argument(text)
