"""What a command says it could do without a verifier: something that this command takes."""

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.switch_desk import key_file

OFFLINE = "hint: or --bundle FILE, offline\n"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (("whoami", "--key", "KEY"), OFFLINE),
        (("root",), OFFLINE),
        (("policy",), OFFLINE),
        (("policy", "check"), OFFLINE),
        (("policy", "check", "1"), OFFLINE),
        (("policy", "check", "p.toml"), "hint: or --under ROOT, a root in a file, or --bundle FILE, offline\n"),
        (("policy", "new", "p.toml", "--out", "p"), OFFLINE),
        (("show", "r-1234"), OFFLINE),
        (("veto", "r-1234", "--key", "KEY", "--reason", "x", "--out", "v"), OFFLINE),
        (("veto", "r-1234", "--key", "KEY", "--reason", "x"), "hint: or --bundle FILE and --out FILE, offline\n"),
        (("veto", "--bundle", "b", "--key", "KEY", "--reason", "x"), "hint: or --out FILE, and send it later\n"),
    ],
)
def test_without_a_verifier_each_command_says_what_it_takes_instead(
    keyturn: Cli, tmp_path: Path, line: tuple[str, ...], hint: str
) -> None:
    words = [key_file(tmp_path, "office/ivy") if word == "KEY" else word for word in line]
    code, out, err = keyturn(*words)
    assert (code, out, err) == (2, "", f"keyturn: error: --verifier: missing\nkeyturn: {hint}")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (("deny", "r-1234"), "keyturn deny"),
        (("policy", "check", "--bogus"), "keyturn policy check"),
        (("root", "--bogus"), "keyturn root show"),
        (("list", "--verifier", "http://127.0.0.1:9", "--state", "bogus"), "keyturn list"),
        (("bogus",), "keyturn"),
    ],
)
def test_a_wrong_line_names_the_help_of_its_own_command(keyturn: Cli, line: tuple[str, ...], command: str) -> None:
    code, _, err = keyturn(*line)
    assert (code, err.splitlines()[-1]) == (2, f"keyturn: hint: {command} --help")
    assert "Value error" not in err
    assert keyturn(*command.split()[1:], "--help")[0] == 0
