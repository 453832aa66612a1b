"""Openings: a value is what was signed, or it is refused."""

import re
from typing import Any

import pytest

from keyturn_protocol.canonical import encode
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import OPENINGS_BYTES
from keyturn_protocol.openings import check_openings, commitment, format_openings, parse_openings
from tests.protocol.test_spec import page

IMAGE = {"salt": "02" * 32, "value": "sha256:" + "3" * 64}
ARGV = {"salt": "01" * 32, "value": ["python", "train.py"]}


def openings(**parts: Any) -> bytes:
    return encode({"parts": parts, "v": 1})


SUM = "37deef1372891b9a2fb7a84b8e06887eb17ec6b5b5699ea005379f19eda1826c"
"""``(printf 'keyturn/commit/v1\\n'; 32 bytes of 0x02; printf '{"field":"image","value":…}') | sha256sum``."""


def test_the_example_of_the_page() -> None:
    (example,) = re.findall(r"<!-- openings -->\n```\n(.*?)\n```", page("start-switch"), flags=re.DOTALL)
    assert example.encode() == openings(argv=ARGV, image=IMAGE)
    parsed = parse_openings(example.encode())
    assert format_openings(parsed) == example.encode()
    assert commitment("image", parsed.parts["image"]).hex() == SUM


def test_what_opens_its_commitment_is_known_and_the_rest_is_not() -> None:
    parsed = parse_openings(openings(argv=ARGV, image=IMAGE))
    spec: Any = {part: commitment(part, opening).hex() for part, opening in parsed.parts.items()}
    assert check_openings(parsed, spec | {"config": "4" * 64, "data": None}) == ("config", "data")


@pytest.mark.parametrize(
    "parts",
    [
        {"image": IMAGE | {"salt": "03" * 32}},
        {"image": IMAGE | {"value": "sha256:" + "4" * 64}},
        {"argv": ARGV | {"value": ["python", "train.py", ""]}},
        {"argv": ARGV | {"value": ["python train.py"]}},
        {"config": IMAGE},  # the same value and salt, under another name
        {"data": IMAGE},  # nothing was committed to
    ],
)
def test_another_value_is_refused(parts: dict[str, Any]) -> None:
    parsed = parse_openings(openings(argv=ARGV, image=IMAGE))
    spec: Any = {part: commitment(part, opening).hex() for part, opening in parsed.parts.items()}
    spec["config"] = spec["image"]
    with pytest.raises(ProtocolError, match="doesn't open"):
        check_openings(parse_openings(openings(**parts)), spec)


@pytest.mark.parametrize(
    "data",
    [
        openings(image=IMAGE | {"value": ["sha256"]}),
        openings(argv=ARGV | {"value": "sha256:" + "3" * 64}),
        openings(argv=ARGV | {"value": []}),
        openings(argv=ARGV | {"value": ["a\0b"]}),
        openings(argv=ARGV | {"value": [1]}),
        openings(argv=ARGV | {"value": ["x"] * 4_097}),
        openings(argv=ARGV | {"value": ["x" * OPENINGS_BYTES]}),
        openings(image=IMAGE | {"value": "sha256:" + "A" * 64}),
        openings(image=IMAGE | {"salt": "02" * 31}),
        openings(image={"value": IMAGE["value"]}),
        openings(weights=IMAGE),
        encode({"parts": {}, "v": 2}),
        encode({"parts": {}}),
        openings(image=IMAGE) + b"\n",
        b"",
        b"[]",
    ],
)
def test_what_is_refused_whatever_it_opens(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_openings(data)
