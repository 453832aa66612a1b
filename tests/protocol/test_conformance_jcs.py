"""RFC 8785 vectors: equal bytes inside of our restricted domain, refused outside of it.

Whether a vector is inside is decided by its content: no floats, no integers beyond 2^53-1, only ASCII keys.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.errors import Code, ProtocolError

NAMES = ["arrays", "french", "structures", "unicode", "values", "weird"]


def in_domain(value: Any) -> bool:
    match value:
        case float():
            return False
        case bool() | None | str():
            return True
        case int():
            return abs(value) < 2**53
        case list():
            return all(map(in_domain, value))
        case dict():
            return all(key.isascii() and in_domain(item) for key, item in value.items())
    raise AssertionError(type(value))


def test_names_are_all_vectors(shared_vectors: Path) -> None:
    assert [p.stem for p in sorted((shared_vectors / "jcs" / "input").iterdir())] == NAMES


def test_both_sides_of_the_border_are_there(shared_vectors: Path) -> None:
    inside = [in_domain(json.loads((shared_vectors / "jcs" / "output" / f"{n}.json").read_bytes())) for n in NAMES]
    assert {*inside} == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_outhex_is_output(shared_vectors: Path, name: str) -> None:
    folder = shared_vectors / "jcs"
    text = (folder / "outhex" / f"{name}.txt").read_text()
    assert bytes.fromhex("".join(text.split())) == (folder / "output" / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_encode_of_the_input(shared_vectors: Path, name: str) -> None:
    value = json.loads((shared_vectors / "jcs" / "input" / f"{name}.json").read_bytes())
    if in_domain(value):
        assert encode(value) == (shared_vectors / "jcs" / "output" / f"{name}.json").read_bytes()
    else:
        with pytest.raises(ProtocolError) as refused:
            encode(value)
        assert refused.value.code is Code.NOT_CANONICAL


@pytest.mark.parametrize("name", NAMES)
def test_decode_of_the_output(shared_vectors: Path, name: str) -> None:
    data = (shared_vectors / "jcs" / "output" / f"{name}.json").read_bytes()
    if in_domain(json.loads(data)):
        assert decode(data, Any) == json.loads(data)
    else:
        with pytest.raises(ProtocolError) as refused:
            decode(data, Any)
        assert refused.value.code is Code.NOT_CANONICAL


@pytest.mark.parametrize("name", NAMES)
def test_decode_of_the_input_is_refused(shared_vectors: Path, name: str) -> None:
    """All inputs are laid out for people."""
    with pytest.raises(ProtocolError) as refused:
        decode((shared_vectors / "jcs" / "input" / f"{name}.json").read_bytes(), Any)
    assert refused.value.code is Code.NOT_CANONICAL
