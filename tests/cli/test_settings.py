"""The settings file: what it fills in, what goes before it, and its exact errors."""

from pathlib import Path

import pytest

from keyturn_cli import settings
from keyturn_protocol.api import NodeLog, Page
from keyturn_protocol.canonical import encode_record
from tests.cli.conftest import Answer, Cli, FakeVerifier

EMPTY = encode_record(Page[NodeLog](items=[], next=None))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv(settings.VARIABLE, str(path))
    return path


def test_it_fills_in_what_the_command_line_leaves_out(
    keyturn: Cli, config: Path, verifier: FakeVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier.give(Answer(body=EMPTY))
    config.write_text(f'verifier = "{verifier.url}"\ntoken_file = "reader.token"\n')
    (config.parent / "reader.token").write_text("from-the-settings\n")
    (config.parent / "other.token").write_text("from-an-option\n")
    assert keyturn("nodes")[0] == 0
    assert keyturn("nodes", "--token-file", config.parent / "other.token")[0] == 0
    assert keyturn("nodes", "--token", "from-the-line")[0] == 0
    monkeypatch.setenv("KEYTURN_TOKEN", "from-the-environment")
    assert keyturn("nodes")[0] == 0
    tokens = [asked.headers["authorization"].removeprefix("Bearer from-") for asked in verifier.asked]
    assert tokens == ["the-settings", "an-option", "the-line", "the-environment"]
    monkeypatch.setenv("KEYTURN_VERIFIER", "http://127.0.0.1:1")
    assert keyturn("nodes")[0] == 3


def test_in_the_home_folder_where_it_may_be_absent(
    keyturn: Cli, tmp_path: Path, verifier: FakeVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    code, _, err = keyturn("nodes")
    assert (code, "--verifier" in err) == (2, True)
    verifier.give(Answer(body=EMPTY))
    (tmp_path / "keyturn").mkdir()
    (tmp_path / "keyturn" / "config.toml").write_text(f'verifier = "{verifier.url}"\n')
    assert keyturn("nodes")[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('verifer = "https://v"', "verifer: unknown (expected verifier, root, key, token_file)"),
        ("verifier = 5", "verifier: must be text (got 5)"),
        ('key = ""', "key: must be text (got '')"),
        ('root = "5f0c"', "root: must be sha256: and 64 lower-case hex digits (got 5f0c)"),
        ("verifier =", "not TOML"),
        ("[verifier]\nurl = 'x'", "verifier: must be text"),
        ("\xff", "not TOML"),
    ],
)
def test_anything_else_is_named(keyturn: Cli, config: Path, text: str, message: str) -> None:
    config.write_text(text, encoding="latin-1")
    code, out, err = keyturn("explain", "gap")
    assert (code, out) == (2, "")
    assert f"{config}: " in err.replace("\n", "")
    assert message in err


def test_a_file_that_is_named_has_to_be_there(keyturn: Cli, config: Path) -> None:
    code, _, err = keyturn("explain", "gap")
    assert (code, "KEYTURN_CONFIG" in err) == (2, True)
