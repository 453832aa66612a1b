"""Options that hold what people will read: refused where they are typed, by their names."""

from typing import Annotated

import typer

from keyturn_protocol.canonical import fit_text
from keyturn_protocol.limits import TEXT_CHARS


def text(value: str | None) -> str | None:
    """The value of an option, if it is text as statements and records hold it.

    :raises typer.BadParameter: bytes that are no UTF-8, control characters, or too many.
    """
    if value is not None and fit_text(value) != value:
        expected = f"UTF-8 text of at most {TEXT_CHARS:,} characters, no control characters among them"
        raise typer.BadParameter(f"expected {expected}, got {value[:80]!a}")
    return value


def reason(value: str) -> str | None:
    """:func:`text` that says something."""
    if not value:
        raise typer.BadParameter("expected a reason, got nothing")
    return text(value)


ReasonOption = Annotated[str, typer.Option("--reason", callback=reason, help="for whoever reads it later")]
ReasonMaybe = Annotated[str, typer.Option("--reason", callback=text, help="for whoever reads it later")]
