"""Canonical JSON: RFC 8785, restricted to what leaves no choice.

    {"body":{"reason":"stopped"},"seq":41,"type":"shutdown","v":1}

UTF-8, ASCII keys in sorted order, every field present (``null`` explicit), no white space, integers only
and within ±(2^53-1), no floats, no duplicate and no unknown keys. :func:`decode` accepts exactly the bytes
that :func:`encode` gives: it decodes, encodes again and compares, so that one value has one hash.
"""

import re
from functools import cache
from typing import Annotated, Any, Final, TypeVar

import msgspec

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import ENTRY_BYTES, MAX_INT, TEXT_CHARS

T = TypeVar("T")

UInt = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
"""0 … 2^53-1."""
Int = Annotated[int, msgspec.Meta(ge=-MAX_INT, le=MAX_INT)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]
Ppm = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
"""A share in parts per million."""
Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""32 bytes as 64 lower-case hex digits."""
_REFUSED: Final = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
_NOT_TEXT: Final = re.compile(f"[{_REFUSED}\ud800-\udfff]")
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS, pattern=rf"\A[^{_REFUSED}]*\Z")]
"""Text for people: no control characters, no line separators, no marks that turn its direction around.

A terminal, a web page and a database show and store it as it is.
"""

Decimal = Annotated[str, msgspec.Meta(pattern=r"\A(0|[1-9][0-9]{0,77})\Z")]
"""A non-negative integer that may pass 2^53-1, as decimal digits without sign or leading zeros."""

_ENCODER: Final = msgspec.json.Encoder(order="sorted")


def fit_text(value: str) -> str:
    """``value`` as :data:`Text` may hold it: what it refuses becomes a space, and the end is cut."""
    return _NOT_TEXT.sub(" ", value)[:TEXT_CHARS]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Base of every value on the wire: frozen, each field named and present."""


def encode(value: object) -> bytes:
    """The canonical bytes of ``value``: records, dicts, lists, strings, integers, booleans and ``None``.

    :raises ProtocolError: for floats, integers beyond 2^53-1, keys that aren't ASCII, lone surrogates.
    """
    check_plain(value)
    return _encode(value)


def encode_record(value: Record) -> bytes:
    """:func:`encode` for a record that was decoded or whose fields are known to be in range: no second walk."""
    return _encode(value)


def _encode(value: object) -> bytes:
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ProtocolError(Code.NOT_CANONICAL, f"has no canonical form: {error}") from None


def decode(data: bytes, kind: type[T] | Any, *, limit: int = ENTRY_BYTES) -> T:
    """The value whose canonical bytes are ``data``, as ``kind``.

    :param limit: cap on ``len(data)``, checked before anything is parsed.
    :raises ProtocolError: ``too_large``, or ``not_canonical`` for anything that :func:`encode` wouldn't write.
    """
    if len(data) > limit:
        raise ProtocolError(Code.TOO_LARGE, "JSON over its cap", expected=f"at most {limit} bytes", got=len(data))
    value: T = parse(data, kind)
    if not isinstance(value, msgspec.Struct):
        check_plain(value)
    again = _encode(value)
    if again != data:
        at = next((i for i, (x, y) in enumerate(zip(data, again, strict=False)) if x != y), min(len(data), len(again)))
        raise ProtocolError(
            Code.NOT_CANONICAL,
            f"not canonical JSON: differs from its re-encoding at byte {at}",
            expected=again[at : at + 32] or b"the end",
            got=data[at : at + 32] or b"the end",
        )
    return value


def decode_lines(data: bytes, kind: type[T] | Any) -> list[T] | None:
    """The values of canonical lines, each ended by a newline; None if any line is not canonical.

    One call for many lines: what is refused here is decoded line by line for its reason. The lines of ``data``
    are what it holds between newlines, and no canonical value holds one, so comparing the whole compares each.
    """
    try:
        values: list[T] = _decoder(kind).decode_lines(data)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None
    return values if _ENCODER.encode_lines(values) == data else None


def parse(data: bytes, kind: type[T] | Any) -> T:
    """Typed decoding without the comparison: for bytes that :func:`decode` has accepted before, and for JSON that
    nobody signs or hashes.
    """
    try:
        value: T = _decoder(kind).decode(data)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(Code.NOT_CANONICAL, f"not canonical JSON: {error}", got=bytes(data[:64])) from None
    return value


@cache
def _decoder(kind: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind, strict=True)


def check_plain(value: object, depth: int = 0) -> None:
    """Refuse what the canonical form has no bytes for, naming it.

    :raises ProtocolError: ``not_canonical``.
    """
    if depth > 64:
        raise ProtocolError(Code.NOT_CANONICAL, "nested too deeply", expected="at most 64 levels")
    match value:
        case None | bool():
            return
        case int():
            if abs(value) > MAX_INT:
                raise ProtocolError(Code.NOT_CANONICAL, "integer out of range", expected="|n| <= 2^53-1", got=value)
        case str():
            if any("\ud800" <= c <= "\udfff" for c in value):
                raise ProtocolError(Code.NOT_CANONICAL, "a lone surrogate has no UTF-8 form", got=ascii(value))
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or not key.isascii():
                    raise ProtocolError(Code.NOT_CANONICAL, "keys are ASCII strings", got=ascii(key))
                check_plain(item, depth + 1)
        case list() | tuple():
            for item in value:
                check_plain(item, depth + 1)
        case msgspec.Struct():
            for name in value.__struct_fields__:
                check_plain(getattr(value, name), depth + 1)
        case _:
            raise ProtocolError(
                Code.NOT_CANONICAL,
                "only strings, integers, booleans, null, lists and objects",
                got=type(value).__name__,
            )
