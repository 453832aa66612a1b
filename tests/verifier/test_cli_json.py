"""``keyturn-verifier … --json``: the same as people are shown, for programs."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.public_keys import parse_public_key
from tests.support.verifier import DEPLOYMENT, Verifier, call


@pytest.fixture
def state(tmp_path: Path) -> Path:
    assert call("init", "--state", tmp_path / "state", "--deployment", DEPLOYMENT).returncode == 0
    return tmp_path / "state"


def said(state: Path, *command: str, status: int = 0) -> tuple[list[Any], str]:
    """The array, and what people are shown."""
    made = call(*command, "--state", state, "--json")
    assert (made.returncode, made.stdout.count("\n")) == (status, 1), made.stderr
    return json.loads(made.stdout), call(*command, "--state", state).stdout


def test_tokens(state: Path) -> None:
    assert said(state, "token", "list") == ([], "")
    secrets = [
        call("token", "create", "--state", state, *what).stdout.strip()
        for what in (["--organisation", "acme", "--site", "fra1", "--hosts", "3"], ["--role", "auditor"])
    ]
    assert call("token", "revoke", "--state", state, "reader-1").returncode == 0
    (join, reader), shown = said(state, "token", "list")
    assert (join["id"], join["what"], join["uses"], join["revoked_us"]) == (
        "join-1",
        "join acme / fra1",
        "0 of 3",
        None,
    )
    assert join["expires_us"] - join["created_us"] == 86_400_000_000
    assert (reader["id"], reader["what"], reader["revoked_us"] > reader["created_us"]) == ("reader-1", "auditor", True)
    assert not [secret for secret in secrets if secret in json.dumps([join, reader])]
    assert [line.split()[0] for line in shown.splitlines()] == ["join-1", "reader-1"]


def test_operators(state: Path) -> None:
    assert said(state, "operator", "list") == ([], "")
    key = "ed25519 11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    added = call("operator", "add", "--state", state, "--name", "Anna Ø", "--key", key)
    assert added.returncode == 0, added.stderr
    (one,), shown = said(state, "operator", "list")
    assert one == {"id": added.stdout.strip(), "name": "Anna Ø", "key": one["key"], "until_us": None}
    assert parse_public_key(one["key"]).id == one["id"]
    assert shown == f"{one['id']}  Anna Ø  {one['key']}\n"
    assert call("operator", "end", "--state", state, one["id"]).returncode == 0
    assert said(state, "operator", "list")[0][0]["until_us"] > 0


def test_doctor(state: Path) -> None:
    lines, shown = said(state, "doctor")
    assert [f"{one['level']:<5} {one['about']}: {one['text']}" for one in lines] == shown.splitlines()
    assert [one["about"] for one in lines] == ["database", "receipts", "log", "keys", "root", "totals"]
    with closing(sqlite3.connect(state / "verifier.db", isolation_level=None)) as other:
        other.execute("DROP TABLE rollup_state")
    lines, _ = said(state, "doctor", status=1)
    assert (lines[-1]["level"], lines[-1]["about"]) == ("fail", "database"), "what failed is in it, too"


def test_check(tmp_path: Path) -> None:
    with Verifier(tmp_path) as verifier:
        verifier.enrolled(usage=1)
    assert said(verifier.state, "check") == ([], "")
    with closing(sqlite3.connect(verifier.state / "verifier.db", isolation_level=None)) as other:
        other.execute("UPDATE usage_hour SET time_us = time_us + 1")
    found, shown = said(verifier.state, "check", status=1)
    assert found
    assert {one["table"] for one in found} == {"usage_hour"}
    assert [f"{one['table']}: {one['where']}: {one['what']}" for one in found] == shown.splitlines()
