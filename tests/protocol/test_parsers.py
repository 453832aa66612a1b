"""Whatever bytes come: a parser gives a value that re-encodes to them, or it raises ProtocolError."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol import api, ids, keys
from keyturn_protocol.canonical import check_plain, decode, decode_lines, encode, parse
from keyturn_protocol.checkpoint import open_checkpoint, parse_checkpoint
from keyturn_protocol.cosignature import parse_cosignature, parse_receipt, verify_cosignature
from keyturn_protocol.entries import Entry, format_entry, parse_entry
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.keys import SignatureType, VerifierKey, parse_vkey, verify_ed25519, verify_mldsa44
from keyturn_protocol.limits import ENTRY_BYTES, MAX_INT, NOTE_BYTES, SEGMENT_BYTES
from keyturn_protocol.merkle import Frontier, leaf_hash
from keyturn_protocol.note import Signature, open_note, parse_note, parse_signature
from keyturn_protocol.segment import (
    ChainState,
    EntryError,
    follow,
    node_key,
    parse_segment,
    start_of,
    verify_head,
)
from keyturn_protocol.tiles import decode_bundle, decode_hashes, encode_bundle, encode_hashes, parse_tile_path
from keyturn_protocol.usage import FoldState, Totals
from tests.support.mutation import INTERESTING, mutated
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


def cosignature(kind: SignatureType) -> Callable[[bytes], object]:
    return lambda data: parse_cosignature(data, kind).to_bytes()


TRUST = api.Trust(v=1, deployment="keyturn.example.org", log_vkey="a", receipt_vkey="b")
SEGMENTS = inputs("receive", "segments", "first")
ENTRIES = inputs("parse_entry")
HEADS = inputs("open_checkpoint", "note")
NOTES = inputs("open_note", "note") + HEADS
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
    "totals": Parser(of_json(Totals), [b'{"gaps":[],"usage_hour":[],"v":1}']),
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


@pytest.mark.parametrize("name", PARSERS)
def test_valid_inputs_are_accepted(name: str) -> None:
    parser = PARSERS[name]
    assert any(held(parser, data) for data in parser.like)


@pytest.mark.parametrize("name", PARSERS)
@settings(deadline=None, max_examples=150)
@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    held(PARSERS[name], data)


@pytest.mark.parametrize("name", PARSERS)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_inputs(name: str, data: st.DataObject) -> None:
    parser = PARSERS[name]
    held(parser, data.draw(mutated(parser.like)))


@pytest.mark.parametrize("name", [name for name, parser in PARSERS.items() if parser.text])
@settings(deadline=None, max_examples=100)
@given(words=st.text(st.characters(), max_size=50))
def test_any_text(name: str, words: str) -> None:
    """Lone surrogates too: they come out of JSON escapes and file names."""
    held(PARSERS[name], words.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("piece", INTERESTING, ids=repr)
def test_each_piece_at_both_ends(name: str, piece: bytes) -> None:
    """The classics: what `$`, `isdigit` and a lenient base64 let pass."""
    for original in PARSERS[name].like[:4]:
        held(PARSERS[name], original + piece)
        held(PARSERS[name], piece + original)


@pytest.mark.parametrize("name", PARSERS)
def test_large_inputs_are_refused_before_they_are_worked_on(name: str) -> None:
    for filler in (b"a", b"\n", b"1", b"[", b"/", b"+", "—".encode(), b"x000/"):
        assert not held(PARSERS[name], filler * (5 * 1024 * 1024 // len(filler)))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INT, MAX_INT) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(PLAIN)
def test_canonical_round_trip(value: object) -> None:
    data = encode(value)
    found: object = decode(data, Any)
    assert found == value
    assert encode(found) == data


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), 2**53, -(2**53), 10**5000, "\ud800", {"é": 1}, {1: 2}, b"bytes", {1, 2}, object(), [[1.5]]],
    ids=lambda value: str(type(value)),
)
def test_no_canonical_form(value: object) -> None:
    with pytest.raises(ProtocolError) as refused:
        encode(value)
    assert refused.value.code is Code.NOT_CANONICAL


def test_a_value_that_holds_itself() -> None:
    value: list[object] = []
    value.append(value)
    for check in (encode, check_plain):
        with pytest.raises(ProtocolError, match="nested too deeply"):
            check(value)


@settings(deadline=None, max_examples=200)
@given(data=mutated(ENTRIES))
def test_parse_lets_only_our_error_out(data: bytes) -> None:
    """`parse` is for bytes that were accepted before; it must not fall over others either."""
    with suppress(ProtocolError):
        parse(data, Entry)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(ENTRIES) | mutated(ENTRIES), max_size=5))
def test_many_lines_are_accepted_as_each_is(lines: list[bytes]) -> None:
    """The one call for many lines accepts what a call for each would, if lines hold no newlines."""
    lines = [line.replace(b"\n", b" ") for line in lines]

    def accepts(line: bytes) -> bool:
        try:
            decode(line, Entry)
        except ProtocolError:
            return False
        return True

    values: list[Entry] | None = decode_lines(b"".join(line + b"\n" for line in lines), Entry)
    assert (values is not None) == all(map(accepts, lines))
    if values is not None:
        assert values == [decode(line, Entry) for line in lines]


WHOLE = vector("segments/good_whole")["input"]


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_damaged_segment_is_never_received(data: st.DataObject) -> None:
    """All bytes of a segment are under the root or the signature: no other bytes pass."""
    original = content(WHOLE["segments"][0])
    damaged = data.draw(mutated([original]))
    name, public_key = parse_origin(WHOLE["origin"]), bytes.fromhex(WHOLE["public_key"])
    try:
        segment = parse_segment(damaged)
        verify_head(segment, node_key(name.origin, public_key))
    except ProtocolError:
        return
    leaves = segment.leaf_hashes()
    if segment.start == 0 and Frontier().extend(leaves).root() == segment.checkpoint.root:
        assert damaged == original


def outcome(lines: list[bytes], step: int) -> object:
    """Where and why `follow` stops, taking ``step`` lines a call; else the state."""
    name, public_key = parse_origin(WHOLE["origin"]), bytes.fromhex(WHOLE["public_key"])
    state = start_of(name.origin)
    entries: list[Entry] = []
    for at in range(0, len(lines), step):
        some = lines[at : at + step]
        try:
            followed = follow(name, public_key, state, some, [leaf_hash(line) for line in some])
        except EntryError as error:
            return error.seq, error.code, error.reason
        entries += followed.entries
        state = followed.state
    return entries, state


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_follow_stops_at_the_same_entry_however_the_lines_are_cut(data: st.DataObject) -> None:
    lines = list(parse_segment(content(WHOLE["segments"][0])).lines)
    at = data.draw(st.integers(0, len(lines) - 1))
    match data.draw(st.sampled_from(["damage", "swap", "drop", "repeat", "none"])):
        case "damage":
            lines[at] = data.draw(mutated([lines[at]])).replace(b"\n", b" ")
        case "swap":
            other = data.draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        case "drop":
            del lines[at]
        case "repeat":
            lines.insert(at, lines[at])
        case _:
            pass
    assert outcome(lines, len(lines)) == outcome(lines, 1) == outcome(lines, data.draw(st.integers(2, 9)))


def test_follow_takes_a_hash_for_each_line() -> None:
    """Fewer hashes than lines would leave lines unchecked."""
    lines = parse_segment(content(WHOLE["segments"][0])).lines
    name, public_key = parse_origin(WHOLE["origin"]), bytes.fromhex(WHOLE["public_key"])
    for count in (len(lines) - 1, len(lines) + 1):
        with pytest.raises(ValueError, match="a hash for each line"):
            follow(name, public_key, start_of(name.origin), lines, [leaf_hash(b"")] * count)


def test_a_line_that_holds_two_entries_is_refused() -> None:
    lines = parse_segment(content(WHOLE["segments"][0])).lines
    name, public_key = parse_origin(WHOLE["origin"]), bytes.fromhex(WHOLE["public_key"])
    joined = b"\n".join(lines[:2])
    with pytest.raises(EntryError) as refused:
        follow(name, public_key, start_of(name.origin), [joined], [leaf_hash(joined)])
    assert (refused.value.seq, refused.value.code) == (0, Code.NOT_CANONICAL)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=40), st.binary(max_size=80), st.binary(max_size=40))
def test_verifying_nonsense(key: bytes, signature: bytes, message: bytes) -> None:
    for verify in (verify_ed25519, verify_mldsa44):
        with pytest.raises(ProtocolError):
            verify(key, signature, message)


GOOD_KEY = parse_vkey(vector("keys/good_ed25519")["input"])
COSIGNER = parse_vkey(vector("keys/good_cosignature")["input"])


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100))
def test_verifying_nonsense_under_good_keys(signature: bytes) -> None:
    with pytest.raises(ProtocolError):
        verify_ed25519(GOOD_KEY.public_key, signature, b"message")
    with pytest.raises(ProtocolError):
        verify_cosignature(b"a\n0\n\n", Signature(COSIGNER.name, COSIGNER.id, signature), COSIGNER)


@settings(deadline=None, max_examples=150)
@given(mutated(HEADS))
def test_a_damaged_note_says_what_was_signed_or_nothing(damaged: bytes) -> None:
    """Other signature lines may change; the text under a known key's signature can't."""
    known = {parse_note(head).text for head in HEADS}
    try:
        note = parse_note(damaged)
        open_note(note, [GOOD_KEY])
    except ProtocolError:
        return
    assert note.text in known
    open_checkpoint(damaged, GOOD_KEY)


def test_errors_are_one_line_whatever_is_in_them() -> None:
    nasty = "\x1b[31m\r\n\0\u202e" + "a" * 10**6
    error = ProtocolError(Code.BAD_NOTE, nasty, expected=nasty, got=nasty.encode())
    assert str(error).isprintable()
    assert len(str(error)) < 1000
    with pytest.raises(ProtocolError) as refused:
        decode(b'{"\\u001b[2J\\n":1}', api.Trust)
    assert str(refused.value).isprintable()


def test_caps_are_what_the_design_says() -> None:
    assert (ENTRY_BYTES, SEGMENT_BYTES, NOTE_BYTES) == (65_535, 4 * 1024 * 1024, 128 * 1024)


def test_key_names_do_not_depend_on_the_unicode_tables() -> None:
    """A character that no Unicode version has assigned yet is as good as any other letter."""
    public = GOOD_KEY.public_key
    assert VerifierKey("a\U0003fffd", SignatureType.ED25519, public).name.endswith("\U0003fffd")
    for code in [
        *range(0x21),
        *range(0x7F, 0xA1),
        0x1680,
        *range(0x2000, 0x2010),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
    ]:
        with pytest.raises(ProtocolError):
            VerifierKey(f"a{chr(code)}b", SignatureType.ED25519, public)


def test_a_key_id_names_one_type() -> None:
    assert len({keys.key_id("name", kind, GOOD_KEY.public_key) for kind in SignatureType}) == len(SignatureType)
