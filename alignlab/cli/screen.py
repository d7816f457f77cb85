"""The console that commands print to: a table that does not fit the terminal is printed a row after another."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

NARROWEST = 12  # characters that a column which may go on in the next line needs


class Screen(Console):
    """Prints as rich does, but for tables of which a column would be cut off or left out: those as a list of their rows."""

    def print(self, *objects: Any, **options: Any) -> None:
        for one in objects:
            if isinstance(one, Table) and width(one) > self.width:
                return self._print_rows(one)
        super().print(*objects, **options)

    def _print_rows(self, table: Table) -> None:
        """Every row under its first cell, what is in the others after their headings."""
        if table.title:
            super().print(table.title, style="italic")
        first, *others = table.columns
        headings = [_text(column.header).plain.replace("-\n", "").split("\n") for column in others]
        for name, *cells in zip(*(column.cells for column in (first, *others)), strict=True):
            super().print(Text(" ").join(_text(name).split("\n")), style="bold")
            values = (" ".join(_text(cell).plain.split()) for cell in cells)
            groups: dict[str, list[str]] = {}  # a heading's first line, where it has two, is that of its neighbours too
            for (*group, heading), value in zip(headings, values, strict=True):
                if value:
                    groups.setdefault(" ".join(group), []).append(f"{heading} {value}".strip())
            for title, told in groups.items():
                super().print(Padding(Text(f"{title} {', '.join(told)}".strip()), (0, 0, 0, 2)))


def width(table: Table) -> int:
    """The characters that a table needs for every column to be read."""
    _, right, _, left = table.padding
    beside = sum(left + right + max(_widest(column), 1) + 1 for column in table.columns)
    return beside + 1 - (0 if table.pad_edge else left + right)


def _widest(column: Column) -> int:
    texts = [_text(cell).plain for cell in (column.header, *column.cells)]
    if column.no_wrap:
        return max((len(line) for text in texts for line in text.split("\n")), default=0)
    return min(max((len(word) for text in texts for word in text.split()), default=0), NARROWEST)


def _text(cell: Any) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))
