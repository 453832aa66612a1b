"""Text for people holds nothing that a terminal, a web page or a database acts upon."""

import pytest

from keyturn_protocol.canonical import Text, decode, encode, fit_text
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import TEXT_CHARS


@pytest.mark.parametrize("bad", ["\x00", "a\nb", "\x1b[31m", "\x7f", "\x9b", "\u202e", "\u2066", "\u2028"])
def test_control_characters_and_directional_marks_are_refused(bad: str) -> None:
    with pytest.raises(ProtocolError):
        decode(encode(bad), Text)
    assert decode(encode(fit_text(bad)), Text) == fit_text(bad)


@pytest.mark.parametrize("good", ["", "hall 1", "統一", "é – “quoted”", "x" * TEXT_CHARS])
def test_other_text_is_kept(good: str) -> None:
    assert decode(encode(good), Text) == good == fit_text(good)


def test_too_much_is_cut() -> None:
    assert fit_text("x" * (TEXT_CHARS + 1)) == "x" * TEXT_CHARS
