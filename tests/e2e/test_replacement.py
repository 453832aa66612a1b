"""A host is set up again: its new node, an operator's signature by file and by SSH, the verifier, the audit."""

import json
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from keyturn_agent.cli import main as agent_main
from keyturn_protocol.canonical import encode_record
from keyturn_verifier import operators
from tests.support.optional import require_program
from tests.support.verifier import DEPLOYMENT, Verifier

Programs = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes]) -> Programs:
    """Run a program of ours in this process."""
    from keyturn_cli import output
    from keyturn_cli.main import main

    def run(program: str, *arguments: object) -> tuple[int, str, str]:
        output.results.cache_clear()
        output.talk.cache_clear()
        capfdbinary.readouterr()
        words = [str(argument) for argument in arguments]
        try:
            code = agent_main(words) if program == "keyturn-agent" else main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


def test_a_host_that_was_set_up_again_is_linked_to_its_past(tmp_path: Path, call: Programs) -> None:
    with Verifier(tmp_path / "v") as verifier:
        trust = verifier.state / "trust.json"
        # An operator with a key in a file, and one with an SSH key.
        code, text, err = call("keyturn", "key", "new", tmp_path / "operator.pem")
        assert code == 0, err
        operators.add(verifier.state, text.strip(), "operator")
        keygen = [require_program("ssh-keygen"), "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "id")]
        subprocess.run(keygen, check=True, timeout=60)
        operators.add(verifier.state, " ".join((tmp_path / "id.pub").read_text().split()[:2]), "shift lead")

        def enroll(host: str, *more: object) -> tuple[int, str, str]:
            token = tmp_path / "token"
            token.write_text(verifier.join_token())
            place = ("--state", tmp_path / host, "--verifier", verifier.client.url, "--trust", trust)
            return call("keyturn-agent", "enroll", *place, "--token-file", token, "--json", *more)

        def node_of(answer: tuple[int, str, str], code: int = 0) -> dict[str, str]:
            assert answer[0] == code, answer
            found: dict[str, str] = json.loads(answer[1])
            return found

        nodes = [node_of(enroll("host"))["node_id"]]
        for life, key in ((1, tmp_path / "operator.pem"), (2, tmp_path / "id")):
            host = f"host-{life}"
            wanted = node_of(enroll(host, "--replaces", nodes[-1]), 3)
            assert (wanted["old"], wanted["deployment"]) == (nodes[-1], DEPLOYMENT)
            statement = tmp_path / f"statement-{life}.json"
            said = ("--deployment", DEPLOYMENT, "--reason", f"disk {life}", "--key", key, "--out", statement)
            code, _, err = call("keyturn", "replace", nodes[-1], wanted["new"], *said)
            assert code == 0, err
            assert call("keyturn", "statement", statement, "--trust", trust)[0] == 0
            done = node_of(enroll(host, "--replaces", nodes[-1], "--statement", statement))
            assert done["node_id"] == wanted["new"]
            nodes.append(done["node_id"])

        # The same statement again is no other host's, and not another node's.
        uses = sorted(row[5] for row in verifier.dump()["join_token"])  # type: ignore[type-var]
        other = enroll("host-3", "--replaces", nodes[0], "--statement", tmp_path / "statement-1.json")
        assert (other[0], "is replaced by" in other[2]) == (2, True)
        # Signed by nobody who may: the verifier refuses, and no token is used up.
        call("keyturn", "key", "new", tmp_path / "mallory.pem")
        third = node_of(enroll("host-3", "--replaces", nodes[2]), 3)["new"]
        forging = ("--deployment", DEPLOYMENT, "--reason", "me", "--key", tmp_path / "mallory.pem")
        assert call("keyturn", "replace", nodes[2], third, *forging, "--out", tmp_path / "forged.json")[0] == 0
        forged = enroll("host-3", "--replaces", nodes[2], "--statement", tmp_path / "forged.json")
        assert (forged[0], "may not sign" in forged[2]) == (1, True)
        assert sorted(row[5] for row in verifier.dump()["join_token"] if row[5]) == [use for use in uses if use]  # type: ignore[type-var]

        token = tmp_path / "reader"
        token.write_text(verifier.reader_token())
        asking = ("--verifier", verifier.client.url, "--token-file", token)
        code, out, err = call("keyturn", "node", nodes[1], *asking, "--json")
        assert code == 0, err
        assert [(link["old"], link["new"]) for link in json.loads(out)["replacements"]] == [
            (nodes[0], nodes[1]),
            (nodes[1], nodes[2]),
        ]
        code, out, _ = call("keyturn", "node", nodes[1], *asking)
        assert f"replaces {nodes[0]}: disk 1" in out
        assert f"replaced by {nodes[2]}: disk 2" in out
        assert len(call("keyturn", "statement", "list", *asking)[1].splitlines()) == 2
        code, _, err = call("keyturn", "statement", "send", tmp_path / "forged.json", "--verifier", asking[1])
        assert (code, "may not sign" in err) == (1, True)
        assert call("keyturn", "statement", "send", tmp_path / "statement-1.json", "--verifier", asking[1])[0] == 0

        bundle = verifier.export(tmp_path / "bundle")
        code, out, err = call("keyturn", "audit", bundle, "--trust", trust, "--json")
        report = json.loads(out)
        assert (code, report["reasons"]) == (0, [])
        assert [(link["old"], link["new"]) for link in report["replacements"]] == list(pairwise(nodes))
        # A trust file of before there were operators decides nothing about them.
        (tmp_path / "v1.json").write_bytes(encode_record(verifier.trust))
        code, out, _ = call("keyturn", "audit", bundle, "--trust", tmp_path / "v1.json", "--json")
        assert (code, json.loads(out)["outcome"]) == (3, "undecided")
