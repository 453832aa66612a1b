"""What every statement by people names; its kinds are in modules of their own, and listed in ``statements``."""

from typing import Annotated, Literal

import msgspec

from keyturn_protocol.canonical import Hex32, Record, Text
from keyturn_protocol.values import Micros

Reason = Annotated[Text, msgspec.Meta(min_length=1)]


class Statement(Record, frozen=True, kw_only=True, tag_field="type"):
    """Where it holds, under which root (null before there is one), and when it was made.

    ``time_us`` is the word of whoever signs; when a statement counts from is the time of its leaf.
    """

    v: Literal[1]
    deployment: str
    root: Hex32 | None
    time_us: Micros


def kind_of(statement: Statement | type[Statement]) -> str:
    """The ``type`` of a statement, or of its class."""
    return str(statement.__struct_config__.tag)
