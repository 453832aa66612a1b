"""SSH signatures: what OpenSSH makes is accepted here, what is made in software is accepted by OpenSSH."""

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.public_keys import parse_public_key
from keyturn_protocol.sshsig import format_armor, parse_armor, parse_sshsig, verify_sshsig
from tests.support.mutation import mutated
from tests.support.optional import require_program
from tests.support.ssh_signer import ALGORITHMS, SshKey, armor, mpint, string

MESSAGE = b"DSSEv1 12 text/example 5 hello"
REAL = [("ed25519", None), ("ecdsa", 256), ("ecdsa", 384), ("ecdsa", 521)]


def refused(key: SshKey, signature: bytes, message: bytes = MESSAGE) -> Code:
    with pytest.raises(ProtocolError) as error:
        verify_sshsig(parse_public_key(key.text), signature, message)
    assert str(error.value).isprintable()
    return error.value.code


def ssh_keygen(*arguments: str | Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    program = require_program("ssh-keygen")
    return subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False)


def openssh_accepts(folder: Path, key: SshKey, signature: bytes, message: bytes = MESSAGE) -> bool:
    (folder / "allowed").write_text(f"operator {key.text}\n")
    (folder / "signature").write_text(armor(signature))
    files = ("-f", folder / "allowed", "-I", "operator", "-n", "keyturn", "-s", folder / "signature")
    return ssh_keygen("-Y", "verify", *files, stdin=message).returncode == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("hash_algorithm", ["sha256", "sha512"])
def test_signatures_made_in_software_are_good_here_and_for_openssh(
    tmp_path: Path, algorithm: str, hash_algorithm: str
) -> None:
    key = SshKey(algorithm)
    signature = key.sshsig(MESSAGE, hash_algorithm=hash_algorithm)
    verify_sshsig(parse_public_key(key.text), signature, MESSAGE)
    assert openssh_accepts(tmp_path, key, signature)
    assert not openssh_accepts(tmp_path, key, signature, MESSAGE + b" ")


@pytest.mark.parametrize(("kind", "bits"), REAL)
def test_signatures_of_ssh_keygen_are_good_here(tmp_path: Path, kind: str, bits: int | None) -> None:
    size = () if bits is None else ("-b", str(bits))
    made = ssh_keygen("-q", "-t", kind, *size, "-N", "", "-C", "a comment", "-f", tmp_path / "key")
    assert made.returncode == 0, made.stderr
    (tmp_path / "message").write_bytes(MESSAGE)
    done = ssh_keygen("-Y", "sign", "-n", "keyturn", "-f", tmp_path / "key", tmp_path / "message")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "message.sig").read_text()
    signature = parse_armor(text)
    assert format_armor(signature) == text
    key = parse_public_key(" ".join((tmp_path / "key.pub").read_text().split()[:2]))
    verify_sshsig(key, signature, MESSAGE)
    with pytest.raises(ProtocolError) as error:
        verify_sshsig(key, signature, MESSAGE[:-1])
    assert error.value.code is Code.BAD_SIGNATURE


def test_what_ssh_keygen_signs_for_git_counts_for_nothing(tmp_path: Path) -> None:
    assert ssh_keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key").returncode == 0
    (tmp_path / "message").write_bytes(MESSAGE)
    assert ssh_keygen("-Y", "sign", "-n", "git", "-f", tmp_path / "key", tmp_path / "message").returncode == 0
    with pytest.raises(ProtocolError, match="another namespace"):
        parse_sshsig(parse_armor((tmp_path / "message.sig").read_text()))


@pytest.mark.parametrize("kind", ["rsa", "dsa"])
def test_rsa_and_dsa_are_no_keys_here(tmp_path: Path, kind: str) -> None:
    if ssh_keygen("-q", "-t", kind, "-N", "", "-f", tmp_path / "key").returncode:
        pytest.skip(f"this ssh-keygen makes no {kind} keys")
    with pytest.raises(ProtocolError, match="not a public key that signs statements") as error:
        parse_public_key(" ".join((tmp_path / "key.pub").read_text().split()[:2]))
    assert error.value.code is Code.BAD_KEY


def test_certificates_are_no_keys_here(tmp_path: Path) -> None:
    for name in ("authority", "key"):
        assert ssh_keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name).returncode == 0
    done = ssh_keygen("-q", "-s", tmp_path / "authority", "-I", "someone", "-n", "root", tmp_path / "key.pub")
    assert done.returncode == 0, done.stderr
    certificate = (tmp_path / "key-cert.pub").read_text().split()
    with pytest.raises(ProtocolError, match="not a public key that signs statements"):
        parse_public_key(" ".join(certificate[:2]))
    # Nor by calling its blob that of a plain key.
    with pytest.raises(ProtocolError, match="another algorithm"):
        parse_public_key(f"ssh-ed25519 {certificate[1]}")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_signature_is_good_under_another_key(algorithm: str) -> None:
    signature = SshKey(algorithm).sshsig(MESSAGE)
    for other in ALGORITHMS:
        assert refused(SshKey(other, seed="another"), signature) is Code.BAD_SIGNATURE
        if other != algorithm:
            assert refused(SshKey(other), signature) is Code.BAD_SIGNATURE


def test_one_key_in_several_forms_has_one_id() -> None:
    plain, sk = SshKey("ssh-ed25519"), SshKey("sk-ssh-ed25519@openssh.com")
    other = SshKey("sk-ssh-ed25519@openssh.com", application="ssh:work")
    file = f"ed25519 {base64.b64encode(plain.point).decode()}"
    assert len({parse_public_key(text).id for text in (plain.text, sk.text, other.text, file)}) == 1
    assert parse_public_key(file).id == plain.id
    assert len({parse_public_key(SshKey(name).text).id for name in ALGORITHMS}) == 4


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name.startswith("sk-")])
def test_a_security_key_must_have_been_touched(algorithm: str) -> None:
    key = SshKey(algorithm)
    assert refused(key, key.sshsig(MESSAGE, flags=0)) is Code.BAD_SIGNATURE
    assert refused(key, key.sshsig(MESSAGE, flags=4)) is Code.BAD_SIGNATURE
    for flags in (0x01, 0x05, 0x1D):
        verify_sshsig(parse_public_key(key.text), key.sshsig(MESSAGE, flags=flags, counter=2**32 - 1), MESSAGE)
    for flags in (0x41, 0x81):
        assert refused(key, key.sshsig(MESSAGE, flags=flags)) is Code.BAD_SSHSIG


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name.startswith("sk-")])
def test_flags_and_counter_of_a_security_key_are_signed(algorithm: str) -> None:
    key = SshKey(algorithm)
    signature = key.sshsig(MESSAGE, flags=1, counter=5)
    for more in (b"\x05" + bytes(3) + b"\x05", b"\x01" + bytes(3) + b"\x06"):
        assert refused(key, signature[:-5] + more) is Code.BAD_SIGNATURE


def test_a_credential_of_a_web_site_is_no_key_here() -> None:
    for application in ("", "https://example.org", "ssh", "ssh: ", "ssh:" + "a" * 252, "ssh:\x00"):
        with pytest.raises(ProtocolError, match="another use"):
            parse_public_key(SshKey("sk-ssh-ed25519@openssh.com", application=application).text)


ECDSA = SshKey("ecdsa-sha2-nistp256")
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize(
    "inner",
    [
        b"",
        mpint(1),
        mpint(0) + mpint(1),
        string(b"") + mpint(1),
        string(b"\x00\x01") + mpint(1),
        string(b"\x80") + mpint(1),
        string(b"\x00" + b"\x80" + bytes(32)) + mpint(1),
        mpint(1) + mpint(1) + b"\0",
    ],
)
def test_integers_of_ecdsa_signatures_are_positive_and_as_short_as_can_be(inner: bytes) -> None:
    assert refused(ECDSA, ECDSA.sshsig(MESSAGE, inner=inner)) is Code.BAD_SSHSIG


@pytest.mark.parametrize("r_s", [(1, 1), (ORDER, 1), (1, ORDER), (ORDER - 1, ORDER - 1), (2**256 - 1, 1)])
def test_integers_out_of_range_verify_nothing(r_s: tuple[int, int]) -> None:
    assert refused(ECDSA, ECDSA.sshsig(MESSAGE, inner=b"".join(map(mpint, r_s)))) is Code.BAD_SIGNATURE


def ecdsa_text(point: bytes, curve: str = "nistp256") -> str:
    name = f"ecdsa-sha2-{curve}"
    return f"{name} {base64.b64encode(string(name) + string(curve) + string(point)).decode()}"


def test_points_are_on_the_curve_and_uncompressed() -> None:
    x, y = ECDSA.point[1:33], ECDSA.point[33:]
    field = 2**256 - 2**224 + 2**192 + 2**96 - 1
    # The point with x = 5 of P-256, which has a second encoding with x + p.
    small = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x02" + (5).to_bytes(32, "big"))
    small_y = small.public_numbers().y.to_bytes(32, "big")
    parse_public_key(ecdsa_text(b"\x04" + (5).to_bytes(32, "big") + small_y))
    for point in (
        b"",
        b"\x00",
        b"\x04" + bytes(64),
        bytes([2 + (y[-1] & 1)]) + x,
        bytes([6 + (y[-1] & 1)]) + x + y,
        b"\x04" + x + y[:-1] + bytes([y[-1] ^ 1]),
        b"\x04" + x + y + b"\0",
        b"\x04" + (5 + field).to_bytes(32, "big") + small_y,
    ):
        with pytest.raises(ProtocolError) as error:
            parse_public_key(ecdsa_text(point))
        assert error.value.code is Code.BAD_KEY


SIGNED = {name: SshKey(name).sshsig(MESSAGE) for name in ALGORITHMS}


@settings(deadline=None, max_examples=200)
@given(data=st.data(), algorithm=st.sampled_from(ALGORITHMS))
def test_no_damaged_signature_verifies(data: st.DataObject, algorithm: str) -> None:
    damaged = data.draw(mutated([SIGNED[algorithm]]))
    if damaged != SIGNED[algorithm]:
        refused(SshKey(algorithm), damaged)
