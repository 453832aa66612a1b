"""Rows for people: a table where it fits, else a block a row. Nothing is ever cut off to make it fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

FOLD_AT: Final = 36
"""A column that may fold keeps this much, so that a log's name stays on one line."""
_BETWEEN: Final = 2


@dataclass(frozen=True, slots=True)
class Block:
    """One row where a table doesn't fit: a title line, and indented lines under it."""

    title: Text
    lines: Sequence[str]


class Rows:
    """A plain table without a box, or the same rows as blocks, by the width of the console.

    :param columns: their names; columns keep their lines, but for those in ``folds``.
    """

    def __init__(self, *columns: str, folds: Sequence[str] = ()) -> None:
        self._columns, self._folds = columns, folds
        self._rows: list[tuple[Text, ...]] = []
        self._blocks: list[Block] = []

    def add(self, *cells: Text | str, block: Block | None = None) -> None:
        """A row; without a block of its own it becomes one of its columns' names and its cells."""
        row = tuple(Text(cell) if isinstance(cell, str) else cell for cell in cells)
        self._rows.append(row)
        self._blocks.append(block or self._plain_block(row))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._least_width() <= options.max_width:
            yield self._table()
            return
        for block in self._blocks:
            title = block.title.copy()
            title.stylize("bold")
            yield title
            for line in block.lines:
                yield Padding(Text(line), (0, 0, 0, 4), expand=False)

    def _least_width(self) -> int:
        least = 0
        for at, name in enumerate(self._columns):
            width = max((row[at].cell_len for row in self._rows), default=0)
            least += max(len(name), min(width, FOLD_AT) if name in self._folds else width)
        return least + _BETWEEN * (len(self._columns) - 1)

    def _table(self) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _BETWEEN, 0, 0))
        for name in self._columns:
            made.add_column(name, overflow="fold", no_wrap=name not in self._folds)
        for row in self._rows:
            made.add_row(*row)
        return made

    def _plain_block(self, row: Sequence[Text]) -> Block:
        longest = max(map(len, self._columns))
        lines = [f"{name.lower():<{longest}}  {cell.plain}" for name, cell in zip(self._columns, row, strict=True)]
        return Block(row[0], lines[1:])
