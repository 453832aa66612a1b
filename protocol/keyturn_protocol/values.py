"""Values of single fields that several formats share: words, clocks, names of chips and of what a run is made of."""

from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.limits import MAX_TIME_US

Slug = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]{0,63}\Z")]
"""A lower-case word for programs: a cause, a data type, a field."""
Micros = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_US)]
"""A reading of a clock, in µs."""
BootId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
OriginText = Annotated[str, msgspec.Meta(max_length=255)]
NodeIdText = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
ChipUuid = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"\A[!-~]+\Z")]
"""Names a metered unit: a GPU, or a MIG instance of one."""

SpecPart = Literal["image", "config", "argv", "data"]
"""What a run is made of, each part behind a commitment of its own."""
SPEC_PARTS: Final[tuple[SpecPart, ...]] = ("image", "config", "argv", "data")
