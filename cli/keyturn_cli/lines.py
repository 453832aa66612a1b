"""A screen of labelled lines: what it is on the left, what is said of it on the right."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from keyturn_cli.output import clean

_GAP = "  "


class Lines:
    """Rows for people. Everything is cleaned on the way in; names are spelled out by the caller."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, Text]] = []

    def add(self, label: str, *texts: str, style: str = "") -> None:
        """A label and its lines; the label stands at the first."""
        for at, text in enumerate(texts):
            self._rows.append((label if at == 0 else "", Text(clean(text, 20_000), style)))

    def extend(self, label: str, texts: Iterable[str], style: str = "") -> None:
        """:meth:`add` of so many lines as there are."""
        self.add(label, *texts, style=style)

    def print(self, console: Console) -> None:
        """Folded to a terminal's width; elsewhere a line each, as long as it is. Nothing is cut off."""
        wide = max((len(label) for label, _ in self._rows), default=0)
        for label, text in self._rows:
            room = max(20, console.width - wide - len(_GAP))
            pieces = text.wrap(console, room, overflow="fold") if console.is_terminal else [text]
            for at, piece in enumerate(pieces):
                piece.rstrip()
                head = (label if at == 0 else "").ljust(wide)
                console.print(Text.assemble((head, "bold"), _GAP, piece), soft_wrap=True)
