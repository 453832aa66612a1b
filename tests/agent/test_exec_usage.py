"""What ``exec`` refuses before it asks anybody: who tries again what couldn't be decided doesn't try this again."""

import os
from pathlib import Path

import pytest

from keyturn_agent.cli import main
from keyturn_protocol.limits import ARGUMENTS

SMALL = ["--lineage", "aurora"]
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*SMALL, "--signal", "9" * 20, "--", "true"], "--signal: expected a name such as USR1, or 1 to 64"),
        ([*SMALL, "--signal", "9" * 5000, "--", "true"], "--signal: "),
        ([*SMALL, "--signal", "0", "--", "true"], "--signal: "),
        ([*SMALL, "--signal", "65", "--", "true"], "--signal: "),
        ([*SMALL, "--signal", "²", "--", "true"], "--signal: "),
        ([*SMALL, "--signal", "USR9", "--", "true"], "--signal: "),
        ([*SMALL, "--signal", "", "--", "true"], "--signal: "),
        ([*SMALL, "--", "echo", NOT_UTF8], "argument 1 of the command: must be UTF-8 (got 'caf\\udce9')"),
        (["--lineage", "", "--", "true"], "--lineage: expected a name, "),
        (["--lineage", NOT_UTF8, "--", "true"], "--lineage: must be UTF-8"),
        (["--lineage", "a\nb", "--", "true"], "--lineage: expected a name, "),
        ([*SMALL, "--group", NOT_UTF8, "--", "true"], "--group: must be UTF-8"),
        ([*SMALL, "--group", "a" * 5000, "--", "true"], "--group: expected a name, "),
        ([*SMALL, "--chips", "", "--", "true"], "--chips: "),
        ([*SMALL, "--chips", "GPU-1,,GPU-2", "--", "true"], "--chips: "),
        ([*SMALL, "--chips", NOT_UTF8, "--", "true"], "--chips: must be UTF-8"),
        ([*SMALL, "--", *["true"] * (ARGUMENTS + 1)], "exec: "),
        (["--run", NOT_UTF8, "--", "true"], "--run: "),
        ([*SMALL, "--image-digest", NOT_UTF8, "--", "true"], "--image-digest: "),
    ],
)
def test_it_is_a_wrong_command_line(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["exec", "--socket", str(tmp_path / "none.sock"), *words])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert f"keyturn-agent: error: {said}" in err
    err.encode()  # and can be printed


def test_a_short_name_of_a_run_is_answered_with_where_the_whole_one_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", "--run", "r-7f3a81c2", "--", "true"]) == 2
    assert "hint: keyturn show RUN has it in full" in capsys.readouterr().err


@pytest.mark.parametrize("signal", ["USR1", "sigusr1", "10", "64"])
def test_what_is_right_is_asked(tmp_path: Path, signal: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["exec", "--socket", str(tmp_path / "none.sock"), *SMALL, "--signal", signal, "--", "echo", "é"])
    assert (status, "no agent at" in capsys.readouterr().err) == (3, True)
