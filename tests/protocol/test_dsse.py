"""Envelopes: what is signed is what OpenSSL and OpenSSH sign too, and nothing else is taken for it."""

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol.canonical import encode
from keyturn_protocol.dsse import Envelope, key_set, pae, parse_envelope, verify
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import ENVELOPE_BYTES, SIGNATURE_BYTES, STATEMENT_BYTES, STATEMENT_SIGNATURES
from keyturn_protocol.public_keys import PublicKey, parse_public_key
from keyturn_protocol.statements import check_place, format_statement, parse_payload, parse_statement
from tests.support.mutation import mutated
from tests.support.optional import require_program
from tests.support.ssh_signer import ALGORITHMS, SshKey, armor
from tests.support.vectors import content, vector
from tests.vectors.people import FileKey

GOOD = content(vector("statements/good_three_signers")["input"]["envelope"])
KEYS = key_set(map(parse_public_key, vector("statements/good_three_signers")["input"]["keys"]))


def test_openssl_makes_and_checks_the_signature_of_a_key_in_a_file(tmp_path: Path) -> None:
    openssl = require_program("openssl")

    def run(*arguments: str | Path) -> bytes:
        done = subprocess.run([openssl, *map(str, arguments)], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    envelope, _ = parse_statement(content(vector("statements/good_replacement")["input"]["envelope"]))
    message, private, public = tmp_path / "message", tmp_path / "key.pem", tmp_path / "key.der"
    message.write_bytes(pae(envelope.kind, envelope.payload))
    run("genpkey", "-algorithm", "ed25519", "-out", private)
    run("pkey", "-in", private, "-pubout", "-outform", "DER", "-out", public)
    key = PublicKey("ed25519", public.read_bytes()[-32:])
    signature = run("pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", message)
    made = Envelope(envelope.kind, envelope.payload, {}).with_signature(key, signature)
    assert verify(parse_envelope(made.to_bytes()), key_set([key])) == (key,)

    ours = FileKey("operator")
    public.write_bytes(bytes.fromhex("302a300506032b6570032100") + ours.point)
    (tmp_path / "signature").write_bytes(envelope.signatures[ours.id])
    run("pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER", "-inkey", public,
        "-sigfile", tmp_path / "signature", "-in", message)  # fmt: skip


def test_ssh_keygen_checks_a_statement_with_the_armor_folded_from_its_signature(tmp_path: Path) -> None:
    program = require_program("ssh-keygen")
    for algorithm in ALGORITHMS:
        key = SshKey(algorithm)
        name = "statements/good_" + algorithm.split("@")[0].replace("-", "_")
        envelope = parse_envelope(content(vector(name)["input"]["envelope"]))
        (tmp_path / "allowed").write_text(f"someone {key.text}\n")
        (tmp_path / "signature").write_text(armor(envelope.signatures[key.id]))
        done = subprocess.run(
            [program, "-Y", "verify", "-n", "keyturn", "-I", "someone", "-f", tmp_path / "allowed", "-s",
             tmp_path / "signature"],
            input=pae(envelope.kind, envelope.payload), capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (algorithm, done.stderr)


def test_signers_are_each_counted_once_whatever_wraps_their_key() -> None:
    key = SshKey("ssh-ed25519")
    file = parse_public_key(f"ed25519 {base64.b64encode(key.point).decode()}")
    with pytest.raises(ProtocolError, match="listed twice") as error:
        key_set([file, parse_public_key(key.text)])
    assert error.value.code is Code.BAD_KEY
    payload = parse_envelope(GOOD).payload
    made = Envelope("replacement", payload, {}).with_signature(file, key.raw(pae("replacement", payload)))
    with pytest.raises(ProtocolError, match="signed by this key already"):
        made.with_signature(parse_public_key(key.text), key.sshsig(pae("replacement", payload)))


def test_a_wrong_signature_is_never_added() -> None:
    payload = parse_envelope(GOOD).payload
    with pytest.raises(ProtocolError) as error:
        Envelope("replacement", payload, {}).with_signature(parse_public_key(FileKey("a").text), bytes(64))
    assert error.value.code is Code.BAD_SIGNATURE


def test_the_largest_statement_fits_into_an_envelope() -> None:
    signatures = {f"{i:064x}": bytes(SIGNATURE_BYTES) for i in range(STATEMENT_SIGNATURES)}
    data = Envelope("a" * 32, bytes(STATEMENT_BYTES), signatures).to_bytes()
    assert len(data) <= ENVELOPE_BYTES
    assert parse_envelope(data).signatures == signatures


def test_a_statement_is_for_one_deployment_and_one_root() -> None:
    _, statement = parse_statement(GOOD)
    check_place(statement, "keyturn.example.org", None)
    for deployment, root in (("keyturn.example.com", None), ("keyturn.example.org", "00" * 32)):
        with pytest.raises(ProtocolError, match="another") as error:
            check_place(statement, deployment, root)
        assert error.value.code is Code.BAD_STATEMENT
    assert parse_payload("replacement", format_statement(statement)) == statement


@settings(deadline=None, max_examples=300)
@given(data=mutated([GOOD]))
def test_a_damaged_statement_says_what_was_signed_or_nothing(data: bytes) -> None:
    """Signatures may be left out, since each stands for itself; nothing else may change."""
    try:
        envelope, _ = parse_statement(data)
        verify(envelope, KEYS)
    except ProtocolError:
        return
    good = parse_envelope(GOOD)
    assert (envelope.kind, envelope.payload) == (good.kind, good.payload)
    assert envelope.signatures.items() <= good.signatures.items()


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(*[st.sampled_from(["replacement", "replacemen", "t", "a1"]), st.binary(max_size=12)]),
    st.tuples(*[st.sampled_from(["replacement", "replacemen", "t", "a1"]), st.binary(max_size=12)]),
)
def test_two_statements_are_never_signed_as_one(one: tuple[str, bytes], other: tuple[str, bytes]) -> None:
    assert (pae(*one) == pae(*other)) == (one == other)


def test_no_kind_is_known_by_a_look_alike() -> None:
    envelope = encode({"payload": "", "payloadType": "application/vnd.keyturn.r\u0435placement+json", "signatures": []})
    with pytest.raises(ProtocolError):
        parse_envelope(envelope)
