"""The commands about runs against a real verifier: lists, screens, what is sent, and what it refuses."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.runs import Request
from tests.cli.conftest import Cli
from tests.cli.switch_desk import key_file
from tests.support.office import Office


def test_from_an_inbox_to_a_permit(office: Office, asking: Path, keyturn: Cli) -> None:
    run = office.request(label="aurora-2 \u0440re-training")
    for who, fills in (
        ("lab-a/bob", "lab 1 of 1"),
        ("operator-b/eve", "operator 1 of 1"),
        ("office/ivy", "regulator 1 of 1"),
    ):
        key = ("--key", key_file(asking, who))
        code, out, err = keyturn("inbox", *key)
        assert (code, f"r-{run[:8]}" in out, fills in out, "\\u0440" in out) == (0, True, True, True), out + err
        code, out, err = keyturn("approve", f"r-{run[:8]}", *key, "--expect", run)
        assert (code, fills in out) == (0, True), err
        assert "is leaf" in err
        assert "nothing waits for" in keyturn("inbox", *key)[2]
    assert "nothing waits for lab-a/ada" in keyturn("inbox", "--key", key_file(asking, "lab-a/ada"))[2]
    code, out, _ = keyturn("show", run[:6])
    assert (code, "APPROVED" in out, "0 of 1.00e24 FLOP (0 %, high end)" in out) == (0, True, True), out
    assert "at the latest in 48 h 30 min, reachable hosts in 30 min" in out
    assert [one["run"] for one in json.loads(keyturn("list", "--state", "approved", "--json")[1])["items"]] == [run]
    assert json.loads(keyturn("list", "--state", "pending", "--json")[1])["items"] == []
    shown = json.loads(keyturn("show", run, "--json")[1])
    assert (shown["run"]["state"], shown["as_served"]["left_tflop"]) == ("approved", 10**12)


def test_a_proposal_is_decided_on_by_its_hash(office: Office, asking: Path, keyturn: Cli) -> None:
    run = office.approved()
    for said in (
        ("suspend", run, "--key", key_file(asking, "office/ivy"), "--reason", "a drill"),
        ("resume", run, "--key", key_file(asking, "lab-a/ada"), "--reason", "over"),
    ):
        assert keyturn(*said, "--expect", run)[0] == 0
    (proposal,) = json.loads(keyturn("list", "--json")[1])["items"][0]["proposals"]
    code, out, _ = keyturn("inbox", "--key", key_file(asking, "operator-b/fay"))
    assert (code, f"resume --on {proposal['sha256'][:12]}" in out) == (0, True)
    for who in ("lab-a/bob", "operator-b/eve", "office/joe"):
        line: tuple[Any, ...] = (
            "approve",
            run,
            "--on",
            proposal["sha256"][:12],
            "--key",
            key_file(asking, who),
            "--expect",
            run,
        )
        code, out, err = keyturn(*line)
        assert code == 0, err
        if who == "lab-a/bob":
            assert "as long as their suspensions are fresh, office" in out
    assert office.view(run).state == "approved"


def test_what_only_the_verifier_can_refuse_is_explained(office: Office, asking: Path, keyturn: Cli) -> None:
    """A statement that was made for what is no longer so, sent late: its reason, and where to read about it."""
    run, made = office.request(), asking / "made"
    line = ("approve", run, "--key", key_file(asking, "lab-a/bob"), "--expect", run, "--out", made)
    assert keyturn(*line)[0] == 0
    office.decide(run, "office/ivy", verdict="veto")
    code, _, err = keyturn("statement", "send", made)
    assert (code, "over: the run is denied" in err, "keyturn explain over" in err) == (1, True, True), err
    code, _, err = keyturn("approve", run, "--key", key_file(asking, "lab-a/bob"), "--expect", run)
    assert (code, "over: the run is denied" in err) == (1, True)


def test_without_a_token_what_is_signed_is_shown_and_the_rest_is_said_to_be_missing(
    office: Office, asking: Path, keyturn: Cli
) -> None:
    run = office.approved()
    (asking / "config.toml").write_text(f'verifier = "{office.verifier.client.url}"\nroot = "sha256:{office.root}"\n')
    code, out, err = keyturn("show", run)
    assert (code, "APPROVED" in out, "left" in out, "--token-file" in err) == (0, True, False, True)
    code, _, err = keyturn("show", run[:8])
    assert (code, "token" in err) == (1, True)


@pytest.mark.parametrize("what", ["0" * 64, "0000", "zz", "r-"])
def test_a_run_that_there_is_not(office: Office, asking: Path, keyturn: Cli, what: str) -> None:
    code, out, err = keyturn("show", what)
    assert (code in (1, 2), out) == (True, ""), err


def test_the_bundle_is_verified_before_it_is_written(office: Office, asking: Path, keyturn: Cli) -> None:
    run = office.approved()
    assert keyturn("bundle", run, "--out", asking / "permit.json")[0] == 0
    assert keyturn("bundle", "authority", "--out", asking / "authority.json")[0] == 0
    code, out, _ = keyturn("verify-bundle", asking / "authority.json")
    assert (code, "version 1, three parties" in out) == (0, True)
    code, _, err = keyturn("bundle", run, "--out", asking / "never.json", "--root", "sha256:" + "1" * 64)
    assert (code, "not under the root that is pinned" in err) == (1, True)
    assert not (asking / "never.json").exists()


def on_a_terminal(line: list[Any], typed: bytes) -> tuple[int, str]:
    """Run the program with a terminal, type something, and read the screen."""
    master, slave = pty.openpty()
    program = [sys.executable, "-m", "keyturn_cli", *map(str, line)]
    # A dumb terminal has 80 columns unless both are said.
    environment = os.environ | {"COLUMNS": "60", "LINES": "25", "TERM": "dumb"}
    process = subprocess.Popen(program, stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True)
    os.close(slave)
    os.write(master, typed)
    screen = b""
    while True:
        try:
            piece = os.read(master, 65_536)
        except OSError:  # the program has closed its end
            break
        if not piece:
            break
        screen += piece
    os.close(master)
    return process.wait(timeout=60), screen.decode()


def test_at_a_terminal_the_beginning_of_the_hash_is_typed(office: Office, asking: Path, keyturn: Cli) -> None:
    run = office.request()
    line = ["approve", run, "--key", key_file(asking, "lab-a/bob")]
    wrong = bytes([run.encode()[0] ^ 1]) if run[0] != "a" else b"b"
    code, screen = on_a_terminal(line, wrong + run[1:8].encode() + b"\n")
    assert (code, "nothing was signed" in screen) == (1, True), screen
    assert office.view(run).signed == []
    code, screen = on_a_terminal(line, f"{run[:4]} {run[4:8]}\n".encode())
    assert (code, "type the first two groups of the run's hash" in screen) == (0, True), screen
    assert all(len(one) <= 60 for one in screen.splitlines() if not one.startswith("keyturn") and "to sign" not in one)
    assert [one.person for one in office.view(run).signed] == ["lab-a/bob"]


def test_a_request_is_sent_with_its_salts_kept(office: Office, asking: Path, keyturn: Cli) -> None:
    """Made without anybody at a terminal, in two steps; the second sends what the first one made."""
    made, signed = asking / "made.json", asking / "signed.json"
    (asking / "run.toml").write_text(
        'label = "a"\nlineage = "a"\nflop = 1e24\nchips = 8\ndtypes = ["bf16"]\nfrom = 2026-01-01\nto = 2090-01-01\n'
        '[spec]\nargv = ["true"]\n'
    )
    code, _, err = keyturn("request", asking / "run.toml", "--unsigned", "--person", "lab-a/ada", "--out", made)
    assert code == 0, err
    run = json.loads(keyturn("statement", made, "--json")[1])["sha256"]
    line = ("sign", made, "--key", key_file(asking, "lab-a/ada"), "--out", signed, "--expect", run)
    assert keyturn(*line, "--openings", asking / "made.openings.json")[0] == 0
    assert keyturn("statement", "send", signed)[0] == 0
    assert office.view(run).label == "a"
    assert isinstance(office.make_request(), Request)


def test_two_organisations_stop_a_run_now_and_the_screen_says_when(office: Office, asking: Path, keyturn: Cli) -> None:
    run = office.approved()

    def after_suspension(by: str) -> list[str]:
        words = ("suspend", run, "--key", key_file(asking, by), "--reason", "an incident", "--stop-at", "now")
        assert keyturn(*words, "--expect", run)[0] == 0
        code, out, _ = keyturn("show", run)
        assert (code, "to stop" in out) == (0, False)
        return out.splitlines()

    (line,) = [text for text in after_suspension("office/ivy") if text.startswith("stops ")]
    assert "any other at the latest" in line
    lines = after_suspension("operator-b/eve")
    (line,) = [text for text in lines if text.startswith("stopped ")]
    first, second = (text.split(", ")[2][:20] for text in lines if text.startswith("suspended"))
    # When the second one said so: before that was logged, perhaps in the second before.
    assert first <= line.split(" reached at ")[1][:20] <= second
