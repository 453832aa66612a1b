"""Edge cases of Ed25519 and ECDSA, of C2SP/CCTV and Wycheproof.

Refused are exactly the keys of low order, the keys that aren't canonically encoded, and the signatures that fail
the cofactorless check of RFC 8032. What to expect comes from the vectors' flags and from a verifier in plain
Python, not from the code under test. The integers of an ECDSA signature have the same octets in DER as in SSH.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.keys import SignatureType, VerifierKey, ed25519_public_key, verify_ed25519
from keyturn_protocol.public_keys import Algorithm, PublicKey
from keyturn_protocol.sshsig import verify_ecdsa
from tests.support import ed25519_reference as reference
from tests.support.ssh_signer import string


def outcome(key: bytes, signature: bytes, message: bytes) -> Code | None:
    try:
        verify_ed25519(key, signature, message)
    except ProtocolError as error:
        return error.code
    return None


@pytest.fixture(scope="module")
def cctv(shared_vectors: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((shared_vectors / "signatures" / "cctv_ed25519.json").read_text())
    assert len(found) == 914
    return found


WEAK = {"low_order_A", "non_canonical_A"}
"""Flags of a key that is refused whatever it signed."""
FAILS = {"low_order_residue", "non_canonical_R", "reencoded_k"}
"""Flags of a signature that fails the cofactorless check: a residue outside of the prime-order group, an R that no
encoder writes, a challenge hashed over re-encoded points."""


def test_cctv(cctv: list[dict[str, Any]]) -> None:
    seen = set()
    for vector in cctv:
        flags = set(vector["flags"] or [])
        want = Code.BAD_KEY if flags & WEAK else Code.BAD_SIGNATURE if flags & FAILS else None
        got = outcome(bytes.fromhex(vector["key"]), bytes.fromhex(vector["sig"]), vector["msg"].encode())
        assert got == want, vector
        seen.add(want)
    assert seen == {Code.BAD_KEY, Code.BAD_SIGNATURE, None}


def test_cctv_flags_agree_with_the_plain_verifier(cctv: list[dict[str, Any]]) -> None:
    keys = {vector["key"] for vector in cctv}
    low = {key: reference.has_low_order(bytes.fromhex(key)) for key in keys}
    canonical = {key: reference.is_canonical(bytes.fromhex(key)) for key in keys}
    for vector in cctv:
        flags, key = set(vector["flags"] or []), vector["key"]
        assert ("low_order_A" in flags) == low[key], vector
        assert ("non_canonical_A" in flags) == (not canonical[key]), vector
        if not flags & WEAK:
            valid = reference.verify(bytes.fromhex(key), bytes.fromhex(vector["sig"]), vector["msg"].encode())
            assert valid == (not flags & FAILS), vector


def test_cctv_weak_keys_have_no_vkey(cctv: list[dict[str, Any]]) -> None:
    for key in {bytes.fromhex(vector["key"]) for vector in cctv if set(vector["flags"] or []) & WEAK}:
        for kind in (SignatureType.ED25519, SignatureType.COSIGNATURE_ED25519):
            with pytest.raises(ProtocolError) as refused:
                VerifierKey("example.org", kind, key)
            assert refused.value.code is Code.BAD_KEY


def test_all_fourteen_encodings_of_low_order_points_are_refused() -> None:
    """Eight points; three of them (y = 0, 1, -1) can also be written with y + p or with a sign that x = 0 lacks."""
    found = set()
    for y in [0, 1, reference.P - 1, reference.P, reference.P + 1]:
        found |= {(y | sign << 255).to_bytes(32, "little") for sign in (0, 1)}
    eighth = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
    for y in (eighth, reference.P - eighth):
        found |= {(y | sign << 255).to_bytes(32, "little") for sign in (0, 1)}
    assert len(found) == 14
    for key in sorted(found):
        assert reference.has_low_order(key)
        with pytest.raises(ProtocolError) as refused:
            ed25519_public_key(key)
        assert refused.value.code is Code.BAD_KEY


def test_wycheproof(shared_vectors: Path) -> None:
    suite = json.loads((shared_vectors / "signatures" / "wycheproof_ed25519.json").read_text())
    count = 0
    for group in suite["testGroups"]:
        key = bytes.fromhex(group["publicKey"]["pk"])
        for vector in group["tests"]:
            message, signature = bytes.fromhex(vector["msg"]), bytes.fromhex(vector["sig"])
            got = outcome(key, signature, message)
            assert vector["result"] in ("valid", "invalid")
            assert (got is None) == (vector["result"] == "valid") == reference.verify(key, signature, message), vector
            assert got in (None, Code.BAD_SIGNATURE)
            count += 1
    assert count == suite["numberOfTests"]


def integers(der: bytes) -> list[bytes] | None:
    """The octets of r and s in a DER signature; None for what isn't two integers in a sequence, in shortest lengths."""

    def take(data: bytes, tag: int) -> tuple[bytes, bytes] | None:
        if len(data) < 2 or data[0] != tag:
            return None
        size, at = data[1], 2
        if size == 0x81:
            if len(data) < 3 or data[2] < 0x80:
                return None
            size, at = data[2], 3
        elif size > 0x80:
            return None
        return (data[at : at + size], data[at + size :]) if len(data) >= at + size else None

    whole = take(der, 0x30)
    if whole is None or whole[1]:
        return None
    first = take(whole[0], 0x02)
    second = None if first is None else take(first[1], 0x02)
    return None if first is None or second is None or second[1] else [first[0], second[0]]


@pytest.mark.parametrize(
    ("file", "algorithm"),
    [("ecdsa_p256_sha256", "ecdsa-sha2-nistp256"), ("ecdsa_p384_sha384", "ecdsa-sha2-nistp384")],
)
def test_wycheproof_ecdsa(shared_vectors: Path, file: str, algorithm: Algorithm) -> None:
    data = json.loads((shared_vectors / "signatures" / f"wycheproof_{file}.json").read_text())
    valid = invalid = 0
    for group in data["testGroups"]:
        key = PublicKey(algorithm, bytes.fromhex(group["publicKey"]["uncompressed"]))
        for case in group["tests"]:
            pair = integers(bytes.fromhex(case["sig"]))
            if pair is None:
                assert case["result"] == "invalid", case
                continue
            wire = b"".join(map(string, pair))
            if case["result"] == "valid":
                verify_ecdsa(key, wire, bytes.fromhex(case["msg"]))
                valid += 1
                continue
            with pytest.raises(ProtocolError) as error:
                verify_ecdsa(key, wire, bytes.fromhex(case["msg"]))
            assert error.value.code in (Code.BAD_SSHSIG, Code.BAD_SIGNATURE), case
            invalid += 1
    assert valid > 150
    assert invalid > 100
