"""Whatever bytes come: a parser gives a value that re-encodes to them, or it raises ProtocolError."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol import api, keys
from keyturn_protocol.canonical import check_plain, decode, decode_lines, encode, parse
from keyturn_protocol.checkpoint import open_checkpoint
from keyturn_protocol.cosignature import verify_cosignature
from keyturn_protocol.entries import Entry
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.keys import SignatureType, VerifierKey, parse_vkey, verify_ed25519, verify_mldsa44
from keyturn_protocol.limits import ENTRY_BYTES, MAX_INT, NOTE_BYTES, SEGMENT_BYTES
from keyturn_protocol.merkle import Frontier, leaf_hash
from keyturn_protocol.note import Signature, open_note, parse_note
from keyturn_protocol.segment import (
    EntryError,
    follow,
    node_key,
    parse_segment,
    start_of,
    verify_head,
)
from tests.support.mutation import INTERESTING, mutated
from tests.support.parsers import ENTRIES, HEADS, PARSERS, held
from tests.support.vectors import content, vector


@pytest.mark.parametrize("name", PARSERS)
def test_valid_inputs_are_accepted(name: str) -> None:
    parser = PARSERS[name]
    assert any(held(parser, data) for data in parser.like)


@pytest.mark.parametrize("name", PARSERS)
@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    held(PARSERS[name], data)


@pytest.mark.parametrize("name", PARSERS)
@settings(deadline=None, max_examples=100)
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
