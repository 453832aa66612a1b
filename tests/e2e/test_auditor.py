"""An operator and an auditor at work: every verb of the command line against a real verifier."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from keyturn_cli.client import proxy_of
from keyturn_protocol.segment import parse_segment
from tests.support.verifier import Verifier

Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def keyturn(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    from keyturn_cli import output
    from keyturn_cli.main import main

    def run(*arguments: object, verifier: Verifier, role: str = "auditor") -> tuple[int, bytes, str]:
        monkeypatch.setenv("KEYTURN_VERIFIER", verifier.client.url)
        monkeypatch.setenv("KEYTURN_TOKEN", verifier.reader_token(role))  # type: ignore[arg-type]
        output.results.cache_clear()
        output.talk.cache_clear()
        capfdbinary.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    return run


def test_every_verb(tmp_path: Path, keyturn: Run) -> None:
    with Verifier(tmp_path) as verifier:
        node = verifier.enrolled(chips=2, usage=4)
        for _ in range(3):
            node.usage(5)
            verifier.client.post(node.segment())
        name = node.name.node_id

        def items(*arguments: object) -> list[dict[str, object]]:
            code, out, err = keyturn(*arguments, "--json", verifier=verifier)
            assert code == 0, err
            found: list[dict[str, object]] = json.loads(out)["items"]
            assert keyturn(*arguments, verifier=verifier)[0] == 0
            return found

        assert [one["origin"] for one in items("node", name)] == [node.origin]
        segments = items("log", name)
        assert len(segments) == 4
        assert {one["by"] for one in items("usage", "--by", "site", "--bucket", "month")} == {"site"}
        assert items("usage")
        assert items("findings")
        (line,) = items("findings", "groups")
        assert (line["code"], line["state"]) == ("gap", "open")

        code, out, _ = keyturn("segment", name, segments[1]["start"], verifier=verifier)
        assert (code, parse_segment(out).start) == (0, segments[1]["start"])
        code, out, _ = keyturn("segment", name, segments[1]["start"], "--receipt", verifier=verifier)
        assert (code, out.startswith("— ".encode())) == (0, True)

        at_index, begins = ("--index", 3), ("--old-size", 3)
        for ask in (at_index, begins):
            for whose, size in (((), 1), (("--node", name), node.size)):
                asked = ask if whose else (ask[0], ask[1] - 3 if ask is at_index else 1)
                assert keyturn("proof", *asked, "--size", size, *whose, verifier=verifier)[0] == 0

        closing = ("findings", "close", name, "gap", "--reason", "known")
        assert keyturn(*closing, verifier=verifier)[0] == 1
        assert keyturn(*closing, verifier=verifier, role="operator")[0] == 0
        assert items("findings", "groups", "--state", "open") == []
        window = (
            "maintenance",
            "add",
            "--site",
            "fra1",
            "--reason",
            "work",
            "--from",
            "2026-01-31",
            "--to",
            "2026-02-01",
        )
        assert keyturn(*window, verifier=verifier, role="operator")[0] == 0
        assert [one["site"] for one in items("maintenance")] == ["fra1"]
        assert keyturn("maintenance", "cancel", 1, verifier=verifier, role="operator")[0] == 0

        evidence, trust = tmp_path / "evidence.tar", verifier.state / "trust.json"
        assert keyturn("bundle", "--out", evidence, "--trust", trust, verifier=verifier)[0] == 0
        assert keyturn("bundle", "--out", evidence, verifier=verifier)[0] == 2
        assert keyturn("audit", evidence, "--trust", trust, verifier=verifier)[0] == 0
        assert keyturn("audit", "trace", "slurm:1", evidence, "--trust", trust, verifier=verifier)[0] == 0
        assert keyturn("bundle", "--out", tmp_path / "no.tar", verifier=verifier, role="operator")[0] == 1
        assert list(tmp_path.glob("no.tar*")) == []

        assert keyturn("node", "x", verifier=verifier)[0] == 2
        assert keyturn("usage", "--from", "yesterday", verifier=verifier)[0] == 2
        assert keyturn("node", "0" * 32, verifier=verifier)[0] == 1
        assert keyturn("--ca", tmp_path / "none.pem", "nodes", verifier=verifier)[0] == 2


@pytest.mark.parametrize(
    ("base", "environment", "proxy"),
    [
        ("https://a.example", {}, None),
        ("https://a.example", {"https_proxy": "http://p:1"}, "http://p:1"),
        ("https://a.example", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "b.example,.example"}, None),
        ("https://a.example", {"https_proxy": "http://p:1", "NO_PROXY": "*"}, None),
        ("https://notexample", {"https_proxy": "http://p:1", "no_proxy": "example"}, "http://p:1"),
        ("http://127.0.0.1:8642", {"https_proxy": "http://p:1"}, None),
        ("https://localhost", {"ALL_PROXY": "http://p:1"}, None),
    ],
)
def test_which_proxy(base: str, environment: dict[str, str], proxy: str | None) -> None:
    assert proxy_of(base, environment) == proxy
