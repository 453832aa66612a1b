"""Damage to bytes, as a hypothesis strategy: what wires, editors and attackers do to a valid input."""

from hypothesis import strategies as st

INTERESTING = [
    b"",
    b"\0",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\t",
    b" ",
    b"+",
    b"-",
    b"/",
    b"=",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b",",
    b":",
    b"0",
    b"00",
    b"1.0",
    b"1e3",
    b"9007199254740992",
    b"1" * 5000,
    b"null",
    b"true",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    "—".encode(),
    "– ".encode(),
    "\uff11".encode(),
    "\u0661".encode(),
    "\u00a0".encode(),
    "\u2028".encode(),
    "\u200b".encode(),
    b"\\u0041",
    b"\\ud800",
    b".p/1",
    b"x000/",
]


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of ``originals`` after one to three injuries."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        upto = min(len(data), at + draw(st.integers(0, 12)))
        match draw(st.sampled_from(["flip", "cut", "drop", "insert", "replace", "repeat", "splice"])):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "drop":
                data = data[:at] + data[upto:]
            case "insert":
                data = data[:at] + draw(st.sampled_from(INTERESTING)) + data[at:]
            case "replace":
                data = data[:at] + draw(st.sampled_from(INTERESTING)) + data[upto:]
            case "repeat":
                data = data[:upto] + data[at:]
            case "splice":
                other = draw(st.sampled_from(originals))
                data = data[:at] + other[draw(st.integers(0, len(other))) :]
            case _:
                pass
    return data
