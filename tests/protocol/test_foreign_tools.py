"""What others wrote agrees: openssl on signatures, sha256sum and printf on links, rfc8785 on canonical bytes.

The commands are those of protocol/spec, so that whoever reads it can type them.
"""

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol.canonical import check_plain, decode, encode
from keyturn_protocol.checkpoint import parse_checkpoint
from keyturn_protocol.cosignature import ed25519_message, parse_cosignature
from keyturn_protocol.entries import parse_entry
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.note import parse_note, parse_signature
from keyturn_protocol.segment import parse_segment
from tests.support.optional import require_program
from tests.support.vectors import content, names, vector

SPKI = bytes.fromhex("302a300506032b6570032100")
"""RFC 8410: an Ed25519 key as SubjectPublicKeyInfo is these bytes and the key."""
WHOLE = vector("segments/good_whole")["input"]
SEGMENT = parse_segment(content(WHOLE["segments"][0]))


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-euc", script], cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def openssl_verifies(folder: Path, public_key: bytes, signature: bytes, message: bytes) -> bool:
    openssl = require_program("openssl")
    (folder / "key.der").write_bytes(SPKI + public_key)
    (folder / "signature").write_bytes(signature)
    (folder / "message").write_bytes(message)
    done = shell(
        f"{openssl} pkeyutl -verify -rawin -pubin -keyform DER -inkey key.der -sigfile signature -in message", folder
    )
    assert ("Signature Verified Successfully" in done.stdout) == (done.returncode == 0), done
    return done.returncode == 0


def test_openssl_verifies_a_checkpoint(tmp_path: Path) -> None:
    signature = SEGMENT.note.signatures[0].signature
    public_key = bytes.fromhex(WHOLE["public_key"])
    assert openssl_verifies(tmp_path, public_key, signature, SEGMENT.note.text)
    assert not openssl_verifies(tmp_path, public_key, signature, SEGMENT.note.text + b"\n")
    assert not openssl_verifies(tmp_path, public_key, signature[::-1], SEGMENT.note.text)


def test_openssl_verifies_a_cosignature(tmp_path: Path) -> None:
    given = vector("cosignatures/good_ed25519")["input"]
    key = parse_vkey(given["vkey"])
    cosignature = parse_cosignature(parse_signature(given["line"]).signature, key.kind)
    message = ed25519_message(content(given["checkpoint"]), cosignature.time_s)
    assert openssl_verifies(tmp_path, key.public_key, cosignature.signature, message)
    message = ed25519_message(content(given["checkpoint"]), cosignature.time_s + 1)
    assert not openssl_verifies(tmp_path, key.public_key, cosignature.signature, message)


def test_the_commands_of_the_specification(repo: Path, tmp_path: Path) -> None:
    """segment.md shows them; run them as they stand, on the segment that it shows."""
    for program in ("openssl", "sha256sum", "base64", "sed", "cut", "tail", "head"):
        require_program(program)
    page = (repo / "protocol" / "spec" / "segment.md").read_text()
    script = page.split("```sh\n")[1].split("```")[0]
    (tmp_path / "segment").write_bytes(content(WHOLE["segments"][0]))
    (tmp_path / "public_key").write_bytes(bytes.fromhex(WHOLE["public_key"]))
    done = shell(script, tmp_path)
    assert done.returncode == 0, done
    first = parse_entry(SEGMENT.lines[1]).prev
    assert done.stdout.splitlines() == ["Signature Verified Successfully", first]


@pytest.mark.parametrize("at", range(len(SEGMENT.lines)))
def test_sha256sum_gives_every_link(at: int, tmp_path: Path) -> None:
    """`{ printf '\\0'; printf %s "$entry"; } | sha256sum`, and for the first entry of the origin."""
    require_program("sha256sum")
    before = SEGMENT.lines[at - 1].decode() if at else WHOLE["origin"]
    (tmp_path / "before").write_text(before)
    done = shell("entry=$(cat before); { printf '\\0'; printf %s \"$entry\"; } | sha256sum", tmp_path)
    assert done.stdout.split()[0] == parse_entry(SEGMENT.lines[at]).prev


def test_shell_takes_a_segment_apart(tmp_path: Path) -> None:
    """A segment is text: sed finds the checkpoint, base64 the signature behind its 4-byte key id."""
    for program in ("sed", "base64", "tail"):
        require_program(program)
    (tmp_path / "segment").write_bytes(SEGMENT.to_bytes())
    done = shell("sed '1,/^$/d' segment | sed -n '1,3p'", tmp_path)
    assert parse_checkpoint(done.stdout.encode()) == SEGMENT.checkpoint
    done = shell("tail -n 1 segment | cut -d' ' -f3 | base64 -d | tail -c +5 | base64", tmp_path)
    assert base64.b64decode(done.stdout) == SEGMENT.note.signatures[0].signature


def plain(value: Any) -> bool:
    try:
        check_plain(value)
    except ProtocolError:
        return False
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INT, MAX_INT) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=400)
@given(VALUES)
def test_rfc8785_writes_the_same_bytes(value: Any) -> None:
    assert encode(value) == rfc8785.dumps(value)


@settings(deadline=None, max_examples=400)
@given(
    st.recursive(
        st.integers(-(2**65), 2**65) | st.floats() | st.text(st.characters(exclude_categories=())),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )
)
def test_what_rfc8785_refuses_is_refused(value: Any) -> None:
    """Ours is a restriction of theirs: it accepts no more, and what it accepts has one form."""
    if plain(value):
        assert encode(value) == rfc8785.dumps(value)


def test_rfc8785_writes_every_entry_of_the_vectors() -> None:
    seen = 0
    for name in names("entries"):
        case = vector(name)
        if "value" in case["want"]:
            line = content(case["input"])
            assert rfc8785.dumps(decode(line, Any)) == line
            seen += 1
    assert seen > 20


def test_notes_are_signed_over_the_text_alone(tmp_path: Path) -> None:
    given = vector("notes/good_empty_lines")["input"]
    note, key = parse_note(content(given["note"])), parse_vkey(given["vkeys"][0])
    assert openssl_verifies(tmp_path, key.public_key, note.signatures[0].signature, note.text)
