"""Small parts that every generator of vectors is made of."""

import base64
import json
from typing import Any

Case = dict[str, Any]
Json = dict[str, Any]


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def content(data: bytes) -> Json:
    """Bytes as a vector holds them: as text where they are text."""
    try:
        return {"utf8": data.decode()}
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def good(what: str, check: str, given: Any, value: Any) -> Case:
    return {"what": what, "check": check, "input": given, "want": {"value": value}}


def bad(what: str, check: str, given: Any, code: str) -> Case:
    return {"what": what, "check": check, "input": given, "want": {"error": code}}


def flip(data: bytes, at: int, bit: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
