"""Every parser of protocol, with inputs that it takes; test_parsers damages them, tests/fuzz makes up more."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keyturn_protocol import api, ids
from keyturn_protocol.bundle import MANIFEST, parse_manifest
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.checkpoint import parse_checkpoint
from keyturn_protocol.cosignature import parse_cosignature, parse_receipt
from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.entries import format_entry, parse_entry
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.keys import SignatureType, parse_vkey
from keyturn_protocol.lease import parse_lease
from keyturn_protocol.leaves import parse_leaf
from keyturn_protocol.merkle import Frontier
from keyturn_protocol.note import parse_note, parse_signature
from keyturn_protocol.openings import format_openings, parse_openings
from keyturn_protocol.permit import parse_permit_bundle
from keyturn_protocol.public_keys import parse_public_key
from keyturn_protocol.segment import (
    ChainState,
    parse_segment,
    start_of,
)
from keyturn_protocol.sshsig import format_armor, parse_armor, parse_sshsig
from keyturn_protocol.statements import format_statement, parse_payload, parse_statement
from keyturn_protocol.tar import format_member, parse_member
from keyturn_protocol.tiles import decode_bundle, decode_hashes, encode_bundle, encode_hashes, parse_tile_path
from keyturn_protocol.usage import FoldState, Totals
from tests.support.assembly import every_kind
from tests.support.bundles import small
from tests.support.vectors import content, names, vector

CASES = [vector(name) for name in names()]


def inputs(check: str, *path: str) -> list[bytes]:
    """The valid inputs that the vectors have for a check, as bytes; ``path`` leads to the part that is meant."""
    found = []
    for case in CASES:
        if case["check"] == check and "value" in case["want"]:
            given = case["input"]
            for step in path:
                given = given[0] if step == "first" else given[step]
            found.append(given.encode() if isinstance(given, str) else content(given))
    assert found, check
    return [data for data in found if len(data) < 20_000]


def text(data: bytes) -> str:
    """Text of any kind, lone surrogates included."""
    return data.decode("utf-8", "surrogatepass" if b"\xed" in data else "surrogateescape")


def as_text(data: bytes) -> str:
    try:
        return text(data)
    except UnicodeDecodeError:
        return data.decode("latin-1")


@dataclass(frozen=True)
class Parser:
    """``read`` raises ProtocolError or returns what the bytes re-encode to."""

    read: Callable[[bytes], object]
    """Returns the re-encoding."""
    like: list[bytes]
    """Valid inputs."""
    text: bool = False


def of_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(as_text(data))


def of_json(kind: Any) -> Callable[[bytes], object]:
    return lambda data: encode(decode(data, kind))


def bundle(data: bytes) -> object:
    count = data[0] if data else 0
    return bytes([count]) + encode_bundle(decode_bundle(data[1:], count)) if data else b""


def hashes(data: bytes) -> object:
    count = data[0] if data else 0
    return bytes([count]) + encode_hashes(decode_hashes(data[1:], count)) if data else b""


def frontier(data: bytes) -> object:
    size = int.from_bytes(data[:8], "big")
    found = Frontier.from_bytes(size, data[8:])
    assert len(found.root()) == 32
    return found.size.to_bytes(8, "big") + found.to_bytes() if len(data) >= 8 else data


def member(data: bytes) -> object:
    found = parse_member(data)
    return format_member(found.path, found.size) if found else bytes(512)


def cosignature(kind: SignatureType) -> Callable[[bytes], object]:
    return lambda data: parse_cosignature(data, kind).to_bytes()


def statement(data: bytes) -> object:
    envelope, found = parse_statement(data)
    assert format_statement(found) == envelope.payload
    return envelope.to_bytes()


def payload(data: bytes) -> object:
    """Of the kind that it says it is."""
    kind = re.search(rb'"type":"([a-z]+)"', data)
    return format_statement(parse_payload("replacement" if kind is None else kind[1].decode(), data))


HALL = every_kind()
TRUST = api.Trust(v=1, deployment="keyturn.example.org", log_vkey="a", receipt_vkey="b")
SITE, BUNDLE = small()
SEGMENTS = inputs("receive", "segments", "first")
ENTRIES = inputs("parse_entry")
HEADS = inputs("open_checkpoint", "note")
NOTES = inputs("open_note", "note") + HEADS
ENVELOPES = inputs("open_statement", "envelope")
ARMORS = inputs("verify_sshsig", "armor")
PAYLOADS = [parse_envelope(data).payload for data in ENVELOPES]
PARSERS: dict[str, Parser] = {
    "canonical": Parser(of_json(Any), inputs("decode") + ENTRIES),
    "entry": Parser(lambda data: format_entry(parse_entry(data)), ENTRIES),
    "segment": Parser(lambda data: parse_segment(data).to_bytes(), SEGMENTS),
    "note": Parser(lambda data: parse_note(data).to_bytes(), NOTES),
    "checkpoint": Parser(lambda data: parse_checkpoint(data).to_text(), [parse_note(n).text for n in HEADS]),
    "receipt": Parser(lambda data: parse_receipt(data).to_bytes(), inputs("parse_receipt")),
    "signature": Parser(
        of_text(lambda line: str(parse_signature(line))), inputs("verify_cosignature", "line"), text=True
    ),
    "cosignature_ed25519": Parser(cosignature(SignatureType.COSIGNATURE_ED25519), [bytes(72)]),
    "cosignature_mldsa44": Parser(cosignature(SignatureType.COSIGNATURE_MLDSA44), [bytes(2428)]),
    "vkey": Parser(of_text(lambda t: str(parse_vkey(t))), inputs("parse_vkey"), text=True),
    "origin": Parser(of_text(lambda t: parse_origin(t).origin), inputs("parse_origin"), text=True),
    "deployment": Parser(of_text(ids.deployment), [b"keyturn.example.org", b"a/b.c_d"], text=True),
    "node_id": Parser(of_text(ids.node_id), [b"0123456789abcdef" * 2], text=True),
    "workload": Parser(of_text(ids.workload_id), inputs("workload_id"), text=True),
    "tile_path": Parser(of_text(lambda t: parse_tile_path(t).path), inputs("parse_tile_path"), text=True),
    "bundle": Parser(bundle, [b"\x03" + data for data in inputs("decode_bundle", "bytes")]),
    "hashes": Parser(hashes, [b"\x03" + data for data in inputs("decode_hashes", "bytes")]),
    "frontier": Parser(frontier, [(5).to_bytes(8, "big") + bytes(64), bytes(8), (2**53 - 1).to_bytes(8, "big")]),
    "trust": Parser(of_json(api.Trust), [encode(TRUST)]),
    "join": Parser(of_json(api.JoinRequest), [encode(api.JoinRequest(token="t", vkey="v"))]),
    "chain_state": Parser(of_json(ChainState), [encode(start_of(Origin("o")))]),
    "fold_state": Parser(of_json(FoldState), [b'{"absent":[],"inventory_seq":0,"present":[],"retired":[]}']),
    "public_key": Parser(of_text(lambda t: str(parse_public_key(t))), inputs("parse_public_key"), text=True),
    "sshsig": Parser(lambda d: parse_sshsig(d).to_bytes(), [parse_armor(text.decode()) for text in ARMORS]),
    "armor": Parser(of_text(lambda t: format_armor(parse_armor(t))), ARMORS, text=True),
    "envelope": Parser(lambda data: parse_envelope(data).to_bytes(), ENVELOPES),
    "statement": Parser(statement, ENVELOPES),
    "payload": Parser(payload, [*PAYLOADS, *(said.envelope.payload for said in HALL.said)]),
    "permit_bundle": Parser(lambda data: parse_permit_bundle(data).to_bytes(), [HALL.bundle(), HALL.bundle(HALL.run)]),
    "openings": Parser(
        lambda data: format_openings(parse_openings(data)),
        [encode({"parts": {"argv": {"salt": "01" * 32, "value": ["a", "-b"]}}, "v": 1}), b'{"parts":{},"v":1}'],
    ),
    "lease": Parser(lambda data: parse_lease(data).to_bytes(), inputs("open_lease", "note")),
    "totals": Parser(of_json(Totals), [b'{"gaps":[],"usage_hour":[],"v":1}']),
    "leaf": Parser(lambda data: encode(parse_leaf(data)), SITE.leaves),
    "manifest": Parser(lambda data: encode(parse_manifest(data)), [BUNDLE.read(MANIFEST)]),
    "tar_member": Parser(member, [bytes(512), format_member("logs/a/1/0-2.segment", 300)]),
}


def held(parser: Parser, data: bytes) -> bool:
    """Whether ``data`` was accepted; fails if anything but ProtocolError escapes or the re-encoding differs."""
    refused: ProtocolError | None = None
    again: object = None
    try:
        again = parser.read(data)
    except ProtocolError as error:
        refused = error
    if refused is not None:
        assert isinstance(refused.code, Code)
        assert str(refused).isprintable()
        return False
    assert again == (as_text(data) if parser.text else data)
    return True
