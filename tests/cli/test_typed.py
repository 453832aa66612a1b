"""What people type for others to read: refused by its option's name, before anything is made or sent."""

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

NODE = "0" * 32
AWAY = ("--verifier", "http://127.0.0.1:1")
BROKEN = "a\udcff"
"""As Python has an argument with a byte that is no UTF-8."""


@pytest.mark.parametrize(
    "line",
    [
        ("findings", "close", NODE, "gap", *AWAY, "--reason"),
        ("maintenance", "add", "--from", "2026-01-01", "--to", "2026-01-02", *AWAY, "--reason"),
        ("maintenance", "add", "--from", "2026-01-01", "--to", "2026-01-02", *AWAY, "--reason", "x", "--site"),
        ("replace", NODE, "1" * 32, "--deployment", "kt.example", "--out", "never", "--reason"),
        ("bundle", "--out", "never", *AWAY, "--case"),
        ("veto", NODE, *AWAY, "--reason"),
        ("withdraw", NODE, *AWAY, "--reason"),
    ],
    ids=lambda line: " ".join(line[:2]) + line[-1],
)
@pytest.mark.parametrize("text", [BROKEN, "a\tb", "a\u202eb", "x" * 1025], ids=["bytes", "control", "turned", "long"])
def test_text_that_nobody_could_read(keyturn: Cli, line: tuple[str, ...], text: str) -> None:
    code, out, err = keyturn(*line, text)
    assert (code, out) == (2, "")
    assert err.startswith(f"keyturn: error: invalid value for '{line[-1]}': expected UTF-8 text of at most 1,024"), err
    assert f"got '{ascii(text)[1:5]}" in err
    assert not Path("never").exists()


@pytest.mark.parametrize("command", ["veto", "deny", "suspend", "resume", "revoke", "amend"])
def test_a_reason_that_says_nothing(keyturn: Cli, command: str) -> None:
    code, _, err = keyturn(command, NODE, "--reason", "")
    assert (code, "'--reason': expected a reason, got nothing" in err) == (2, True), err


def test_bytes_in_a_query(keyturn: Cli) -> None:
    code, out, err = keyturn("findings", "groups", "--state", BROKEN, *AWAY)
    assert (code, out, err) == (2, "", "keyturn: error: not UTF-8: 'a\\udcff'\n")
