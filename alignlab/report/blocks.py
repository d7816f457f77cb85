"""What a page is made of: sections of paragraphs, tables, figures and pictures. The template gives each its HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number it is sorted by where it has one. `quiet` is what is not from here."""

    text: str
    sort: float | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; `numeric` columns are set to the right. `note` stands below."""

    block = "table"
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Text; `kind` is "", "reading" (a sentence made of the numbers), "note" or "gap" (something is not there)."""

    block = "paragraph"
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Lines:
    """Short sentences, one below the other."""

    block = "lines"
    items: Sequence[str]
    kind: str = ""
    title: str = ""
    show: int = 0  # of them, the rest behind a heading that opens; 0 for all


@dataclass(frozen=True)
class Hover:
    """Values under the pointer of a heatmap: `box` is left, top, width, height of its cells as shares of the figure,
    row 0 at the bottom; `rows` and `columns` name them, `values` are written out.
    """

    box: tuple[float, float, float, float]
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[str]]
    beside: str = ""


@dataclass(frozen=True)
class Figure:
    """An SVG with what it shows in words, `least` pixels wide at least."""

    block = "figure"
    svg: Markup
    alt: str
    caption: str
    least: int = 420
    hover: Hover | None = None


@dataclass(frozen=True)
class Picture:
    """A raster picture as a data URI."""

    block = "picture"
    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Slides:
    """Pictures with several versions each, two of which are compared with a slider: label -> data URI of each."""

    block = "slides"
    title: str
    labels: Sequence[str]
    pictures: Sequence[Sequence[str]]  # [picture][label]
    left: str
    right: str
    caption: str = ""


@dataclass(frozen=True)
class Said:
    """A picture and the texts that go with it: (label, text)."""

    uri: str
    alt: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Captions:
    """Pictures with what was said of them."""

    block = "captions"
    title: str
    cards: Sequence[Said]
    caption: str = ""


@dataclass(frozen=True)
class Fold:
    """Blocks behind a heading that opens."""

    block = "fold"
    title: str
    blocks: Sequence[Block]
    open: bool = False


Block = Table | Paragraph | Lines | Figure | Picture | Slides | Captions | Fold


@dataclass
class Section:
    """A part of the page. `answers` are what it contributes to the answer at the top: clauses without a capital or a stop."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    lead: str = ""
    answers: list[str] = field(default_factory=list)


# --- numbers in words ---


def number(x: float | None, digits: int = 3, signed: bool = False) -> str:
    """A figure with so many decimals; an en dash where there is none.

    >>> number(0.12345), number(2.5, 1, signed=True), number(None)
    ('0.123', '+2.5', '–')
    """
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:+,.{digits}f}" if signed else f"{x:,.{digits}f}"


def with_interval(x: float | None, interval: tuple[float, float] | None, digits: int = 3, signed: bool = False) -> str:
    """
    >>> with_interval(0.5, (0.25, 0.75), 2), with_interval(0.5, None, 2)
    ('0.50 (0.25 to 0.75)', '0.50')
    """
    if interval is None or x is None:
        return number(x, digits, signed)
    low, high = (number(end, digits, signed) for end in interval)
    return f"{number(x, digits, signed)} ({low} to {high})"


def cell(x: float | None, digits: int = 3, signed: bool = False, quiet: bool = False) -> Cell:
    return Cell(number(x, digits, signed), x, quiet)


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plural(count: int, one: str, many: str = "") -> str:
    """
    >>> plural(1, "row"), plural(2, "row")
    ('1 row', '2 rows')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
