"""Manifest and trust file: what is accepted, and what isn't, field by field."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_protocol.api import OperatorKey, Trust
from keyturn_protocol.bundle import (
    MANIFEST,
    evidence_path,
    log_folder,
    operator_keys,
    parse_anchor,
    parse_manifest,
    parse_segment_name,
    parse_trust,
    receipt_path,
    segment_path,
)
from keyturn_protocol.canonical import encode, encode_record
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.keys import SignatureType, VerifierKey
from keyturn_protocol.leaves import LeftOut
from keyturn_protocol.limits import TRUST_BYTES
from tests.support.bundles import Site, large, small
from tests.support.hosts import Key
from tests.support.people import ANNA, BEN

BUNDLE = large()[1]
GOOD = BUNDLE.manifest
TRUST = BUNDLE.trust


def refused(data: bytes, kind: str = "manifest") -> Code:
    with pytest.raises(ProtocolError) as error:
        (parse_manifest if kind == "manifest" else parse_trust)(data)
    return error.value.code


def changed(**changes: object) -> bytes:
    return encode_record(msgspec.structs.replace(GOOD, **changes))


def test_what_was_written_is_read_and_nothing_else_has_these_bytes() -> None:
    assert encode_record(parse_manifest(BUNDLE.files[MANIFEST])) == BUNDLE.files[MANIFEST]
    assert encode_record(parse_trust(encode_record(TRUST))) == encode_record(TRUST)


@pytest.mark.parametrize(
    "path",
    ["../x", "/x", "a//b", "a/", "./a", "A", "a b", ".hidden", "", "a/../b", "a\\b", "ü", MANIFEST, "a/.b"],
)
def test_paths_that_no_bundle_has(path: str) -> None:
    assert refused(changed(files={path: "00" * 32})) is Code.BAD_BUNDLE


def test_a_path_over_its_cap() -> None:
    assert refused(changed(files={"a" * 401: "00" * 32})) is Code.NOT_CANONICAL


@pytest.mark.parametrize("digest", ["", "00" * 31, "AA" * 32, "zz" * 32])
def test_hashes_that_are_none(digest: str) -> None:
    assert refused(changed(files={"totals.json": digest})) is Code.NOT_CANONICAL


def test_one_log_twice() -> None:
    assert refused(changed(logs=[*GOOD.logs, GOOD.logs[0]])) is Code.BAD_BUNDLE
    left = [LeftOut(origin=GOOD.logs[0].origin, reason="x")]
    assert refused(changed(export=msgspec.structs.replace(GOOD.export, left_out=left))) is Code.BAD_BUNDLE


def test_another_deployments_verifier_or_logs() -> None:
    other = Site("other.example")
    assert refused(changed(verifier=other.trust)) is Code.BAD_BUNDLE
    assert refused(changed(deployment="other.example", verifier=other.trust)) is Code.BAD_BUNDLE
    assert refused(changed(deployment="Not A Name")) is not None


def test_a_log_under_a_key_of_another_name_or_kind() -> None:
    first = GOOD.logs[0]
    other = VerifierKey("someone", SignatureType.ED25519, Key("x").public)
    cosigner = VerifierKey(first.origin, SignatureType.COSIGNATURE_ED25519, Key("x").public)
    for key in (other, cosigner):
        assert refused(changed(logs=[msgspec.structs.replace(first, vkey=str(key))])) is Code.BAD_BUNDLE
    assert refused(changed(logs=[msgspec.structs.replace(first, vkey="nothing")])) is Code.BAD_KEY


@pytest.mark.parametrize("field", [f.encode_name for f in msgspec.structs.fields(type(GOOD))])
def test_every_field_is_there_once_and_no_other(field: str) -> None:
    plain = msgspec.json.decode(BUNDLE.files[MANIFEST])
    without = {k: v for k, v in plain.items() if k != field}
    for value in (without, plain | {"more": 1}, plain | {field: None}, plain | {field: 1.5}):
        assert refused(msgspec.json.encode(value, order="sorted")) is Code.NOT_CANONICAL


def test_trust_needs_two_keys_of_the_right_names_and_kinds() -> None:
    log, receipt = TRUST.log_vkey, TRUST.receipt_vkey
    same = Key("verifier log").public
    one_key = VerifierKey("kt.example/receipt", SignatureType.COSIGNATURE_ED25519, same)
    for changes in (
        {"log_vkey": receipt},
        {"receipt_vkey": log},
        {"log_vkey": receipt, "receipt_vkey": log},
        {"receipt_vkey": str(one_key)},
        {"deployment": "other.example"},
    ):
        trust: Trust = msgspec.structs.replace(TRUST, **changes)
        assert refused(encode_record(trust), "trust") is Code.BAD_TRUST


def test_trust_over_its_cap() -> None:
    assert refused(b" " * (TRUST_BYTES + 1), "trust") is Code.TOO_LARGE


def test_paths_of_segments() -> None:
    name = parse_origin(GOOD.logs[0].origin)
    path = segment_path(name, 0, 4)
    assert path == f"logs/{name.node_id}/{name.incarnation}/0-4.segment"
    assert path.startswith(log_folder(name))
    assert receipt_path(path) == f"logs/{name.node_id}/{name.incarnation}/0-4.receipt"
    assert evidence_path("ab" * 32) == f"evidence/{'ab' * 32}.segment"
    assert parse_segment_name("0-4.segment") == (0, 4)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0-0.segment",
        "4-4.segment",
        "5-4.segment",
        "00-4.segment",
        "0-04.segment",
        "-1-4.segment",
        "0-4",
        "0-4.segment\n",
        "0-4.receipt",
        "0-9007199254740992.segment",
        "\uff10-4.segment",
        "0-99999999999999999.segment",
    ],
)
def test_names_that_no_segment_has(name: str) -> None:
    with pytest.raises(ProtocolError) as error:
        parse_segment_name(name)
    assert error.value.code is Code.BAD_BUNDLE


@given(st.binary(max_size=200))
def test_only_the_projects_error_leaves_a_parser(data: bytes) -> None:
    for parse in (parse_manifest, parse_trust):
        with pytest.raises(ProtocolError):
            parse(data)


@given(st.data())
def test_nor_for_damaged_manifests(data: st.DataObject) -> None:
    good = small_manifest()
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 4)) :]
    try:
        again = parse_manifest(damaged)
    except ProtocolError:
        return
    assert encode_record(again) == damaged


def small_manifest(cache: list[bytes] = []) -> bytes:  # noqa: B006 -- one bundle is enough
    if not cache:
        cache.append(small()[1].files[MANIFEST])
    return cache[0]


def anchored(**changes: Any) -> bytes:
    """A trust file of version 2, as JSON."""
    value = msgspec.json.decode(encode_record(TRUST)) | {"v": 2, "operators": []} | changes
    return encode(value)


def test_a_trust_file_of_version_2_pins_operators_too() -> None:
    listed = [{"key": key.text, "name": "someone", "until_us": None} for key in (ANNA, BEN)]
    anchor = parse_anchor(anchored(operators=listed))
    assert anchor.trust == parse_trust(encode_record(TRUST)) == TRUST
    assert anchor.operators is not None
    assert list(operator_keys(anchor.operators)) == [ANNA.id, BEN.id]
    assert parse_anchor(encode_record(TRUST)).operators is None
    assert parse_anchor(anchored()).operators == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"v": 3}, Code.NOT_CANONICAL),
        ({"v": 1}, Code.NOT_CANONICAL),
        ({"operators": None}, Code.NOT_CANONICAL),
        ({"operators": [{"key": ANNA.text, "name": "", "until_us": None}]}, Code.NOT_CANONICAL),
        ({"operators": [{"key": ANNA.text, "name": "a"}]}, Code.NOT_CANONICAL),
        ({"operators": [{"key": ANNA.text, "name": "a", "until_us": -1}]}, Code.NOT_CANONICAL),
        ({"operators": [{"key": "ssh-rsa AAAA", "name": "a", "until_us": None}]}, Code.BAD_KEY),
        ({"operators": [{"key": ANNA.text, "name": n, "until_us": None} for n in "ab"]}, Code.BAD_KEY),
        ({"receipt_vkey": TRUST.log_vkey}, Code.BAD_TRUST),
        ({"deployment": "UPPER"}, Code.BAD_IDENTIFIER),
        ({"extra": 1}, Code.NOT_CANONICAL),
    ],
)
def test_a_trust_file_of_version_2_that_is_none(changes: dict[str, Any], code: Code) -> None:
    with pytest.raises(ProtocolError) as error:
        parse_anchor(anchored(**changes))
    assert error.value.code is code


def test_an_operators_key_counts_until_its_end() -> None:
    ended = OperatorKey(key=ANNA.text, name="anna", until_us=5)
    assert list(operator_keys([ended], 4)) == [ANNA.id]
    assert list(operator_keys([ended], 5)) == []
    with pytest.raises(ProtocolError, match="listed twice"):
        # Also where only one of the two would count.
        parse_anchor(
            anchored(operators=[msgspec.to_builtins(ended), {"key": ANNA.text, "name": "a", "until_us": None}])
        )
