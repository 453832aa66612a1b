"""Signing offline through files: with a key in a file, an SSH key, or one that an agent holds."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from keyturn_protocol.api import TrustWithOperators
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.dsse import key_set, parse_envelope, verify
from keyturn_protocol.public_keys import parse_public_key
from tests.cli.conftest import Cli
from tests.support.bundles import Site
from tests.support.optional import require_program
from tests.support.people import operator, replaces
from tests.vectors.people import FileKey

OLD, NEW = "0" * 31 + "1", "0" * 31 + "2"
SAID = ("--deployment", "kt.example", "--reason", "new disk")


def made(keyturn: Cli, folder: Path, name: str = "key") -> tuple[Path, str]:
    """A new key in a file, and its public text."""
    code, out, err = keyturn("key", "new", folder / name)
    assert code == 0, err
    return folder / name, out.strip()


def ssh_key(folder: Path, *kind: str) -> tuple[Path, str]:
    path = folder / "id"
    subprocess.run(
        [require_program("ssh-keygen"), "-q", *kind, "-N", "", "-C", "someone", "-f", path], check=True, timeout=60
    )
    return path, " ".join(path.with_suffix(".pub").read_text().split()[:2])


def signers(path: Path, *texts: str) -> list[str]:
    envelope = parse_envelope(path.read_bytes())
    return [str(key) for key in verify(envelope, key_set(map(parse_public_key, texts)))]


def test_a_new_key_is_for_nobody_else_and_never_overwritten(keyturn: Cli, tmp_path: Path) -> None:
    path, text = made(keyturn, tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keyturn("key", "show", path)[1].strip() == text
    shown = json.loads(keyturn("key", path, "--json")[1])
    assert shown == {"id": parse_public_key(text).id, "key": text}
    before = path.read_bytes()
    assert keyturn("key", "new", path)[0] == 2
    assert path.read_bytes() == before
    path.chmod(0o640)
    code, _, err = keyturn("replace", OLD, NEW, *SAID, "--key", path, "--out", tmp_path / "out")
    assert (code, "others can read this key" in err) == (2, True)


def test_a_replacement_in_one_go(keyturn: Cli, tmp_path: Path) -> None:
    key, text = made(keyturn, tmp_path)
    out = tmp_path / "statement.json"
    code, _, err = keyturn("replace", OLD, NEW, *SAID, "--key", key, "--out", out)
    assert code == 0, err
    assert signers(out, text) == [text]
    assert keyturn("replace", OLD, NEW, *SAID, "--key", key, "--out", out)[0] == 2


@pytest.mark.parametrize("kind", [("-t", "ed25519"), ("-t", "ecdsa", "-b", "384")], ids=" ".join)
def test_with_an_ssh_key(keyturn: Cli, tmp_path: Path, kind: tuple[str, ...]) -> None:
    key, text = ssh_key(tmp_path, *kind)
    assert keyturn("key", "show", key)[1].strip() == keyturn("key", "show", f"{key}.pub")[1].strip() == text
    out = tmp_path / "statement.json"
    assert keyturn("replace", OLD, NEW, *SAID, "--key", key, "--out", out)[0] == 0
    assert signers(out, text) == [text]
    Path(f"{key}.pub").unlink()
    assert keyturn("key", "show", key)[1].strip() == text


def test_with_a_key_that_only_an_agent_holds(keyturn: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = ssh_key(tmp_path, "-t", "ed25519")
    agent, add = require_program("ssh-agent"), require_program("ssh-add")
    socket = tmp_path / "agent"
    process = subprocess.Popen([agent, "-D", "-a", str(socket)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert process.poll() is None
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        subprocess.run([add, "-q", key], check=True, timeout=60, env=dict(os.environ), stderr=subprocess.DEVNULL)
        key.unlink()
        out = tmp_path / "statement.json"
        assert keyturn("replace", OLD, NEW, *SAID, "--key", f"{key}.pub", "--out", out)[0] == 0
        assert signers(out, text) == [text]
    finally:
        process.terminate()
        process.wait()
    code, _, err = keyturn("replace", OLD, NEW, *SAID, "--key", f"{key}.pub", "--out", tmp_path / "none")
    assert (code, "did not sign" in err) == (3, True)
    assert not (tmp_path / "none").exists()


def test_made_here_and_signed_elsewhere_by_two(keyturn: Cli, tmp_path: Path) -> None:
    """Export, carry, show, sign, carry back: files only."""
    one, one_text = made(keyturn, tmp_path, "one")
    two, two_text = made(keyturn, tmp_path, "two")
    request, first, both = (tmp_path / name for name in ("request", "first", "both"))
    assert keyturn("replace", OLD, NEW, *SAID, "--out", request)[0] == 0
    digest = json.loads(keyturn("statement", request, "--json")[1])["sha256"]

    code, _, err = keyturn("sign", request, "--key", one, "--out", first)
    assert (code, f"--expect {digest}" in err) == (2, True)
    code, out, err = keyturn("sign", request, "--key", one, "--out", first, "--expect", "0" * 64)
    assert (code, "another one" in err) == (1, True)
    assert not first.exists()
    code, out, _ = keyturn("sign", request, "--key", one, "--out", first, "--expect", f"sha256:{digest}")
    assert code == 0
    # What is signed was shown: every field, the hash in groups.
    for shown in (OLD, NEW, "kt.example", "new disk", "replacement", digest[:4] + " " + digest[4:8], one_text):
        assert shown in out
    assert keyturn("sign", first, "--key", two, "--out", both, "--expect", digest)[0] == 0
    assert sorted(signers(both, one_text, two_text)) == sorted([one_text, two_text])
    assert parse_envelope(both.read_bytes()).hash.hex() == digest
    code, _, err = keyturn("sign", both, "--key", two, "--out", tmp_path / "again", "--expect", digest)
    assert (code, "signed by this key already" in err) == (1, True)


def test_show_checks_against_the_operators_of_a_trust_file(keyturn: Cli, tmp_path: Path) -> None:
    anna = FileKey("anna")
    trust = Site().trust
    pinned = TrustWithOperators(
        v=2,
        deployment=trust.deployment,
        log_vkey=trust.log_vkey,
        receipt_vkey=trust.receipt_vkey,
        operators=[operator(anna, "Anna")],
    )
    (tmp_path / "trust.json").write_bytes(encode_record(pinned))
    (tmp_path / "v1.json").write_bytes(encode_record(trust))
    (tmp_path / "good").write_bytes(replaces(OLD, NEW, anna))
    (tmp_path / "bad").write_bytes(replaces(OLD, NEW, FileKey("mallory")))
    code, out, _ = keyturn("statement", tmp_path / "good", "--trust", tmp_path / "trust.json")
    assert (code, "Anna" in out) == (0, True)
    code, out, _ = keyturn("statement", tmp_path / "good")
    assert (code, "(not checked)" in out) == (0, True)
    for name, file in (("bad", "trust.json"), ("good", "v1.json")):
        code, _, err = keyturn("statement", tmp_path / name, "--trust", tmp_path / file)
        assert (code, "may not sign" in err) == (1, True)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [(OLD, OLD, "x"), (OLD, "x", "x"), (OLD.upper() + "A", NEW, "x"), (OLD, NEW, ""), (OLD, NEW, "a\u202eb")],
)
def test_what_nobody_should_sign_is_not_made(keyturn: Cli, tmp_path: Path, old: str, new: str, reason: str) -> None:
    out = tmp_path / "out"
    done = keyturn("replace", old, new, "--deployment", "kt.example", "--reason", reason, "--out", out)
    assert done[0] == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("zz", "yy", "OLD: expected 32 hex digits, got 'zz'"),
        (OLD, "yy", "NEW: expected 32 hex digits, got 'yy'"),
        (OLD.upper()[:-1] + "A", NEW, "OLD: expected 32 hex digits"),
    ],
)
def test_a_node_that_is_none_is_named(keyturn: Cli, tmp_path: Path, old: str, new: str, wrong: str) -> None:
    code, out, err = keyturn("replace", old, new, *SAID, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"keyturn: error: {wrong}")


def test_a_replacement_as_json(keyturn: Cli, tmp_path: Path) -> None:
    key, _ = made(keyturn, tmp_path)
    for more, signed in (((), 0), (("--key", key), 1)):
        path = tmp_path / f"out-{signed}"
        code, out, err = keyturn("replace", OLD, NEW, *SAID, *more, "--out", path, "--json")
        assert (code, err) == (0, "")
        digest = json.loads(keyturn("statement", path, "--json")[1])["sha256"]
        assert json.loads(out) == {"kind": "replacement", "sha256": digest, "signed": signed}


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b'{"type":"wish"}', b'{"payload":"","signatures":[]}'])
def test_what_is_no_statement_is_not_signed(keyturn: Cli, tmp_path: Path, data: bytes) -> None:
    key, _ = made(keyturn, tmp_path)
    (tmp_path / "file").write_bytes(data)
    code, _, err = keyturn("sign", tmp_path / "file", "--key", key, "--out", tmp_path / "out", "--expect", "00")
    assert code in (1, 2)
    assert err.startswith("keyturn: error: ")
    assert not (tmp_path / "out").exists()


def test_keys_that_sign_no_statements(keyturn: Cli, tmp_path: Path) -> None:
    rsa, _ = ssh_key(tmp_path, "-t", "rsa")
    (tmp_path / "text").write_text("hello\n")
    for path in (rsa, Path(f"{rsa}.pub"), tmp_path / "text", tmp_path / "nowhere"):
        assert keyturn("key", "show", path)[0] == 2
