"""Result files are other people's: a value is asked for by what it must be, and what is not there is noted as a gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LARGEST = 1e100


@dataclass(frozen=True)
class Node:
    """A value in a result file, where it stands, and the list that gaps are noted in.

    >>> gaps = []
    >>> node = Node({"pairs": [{"score": float("nan"), "p": None}]}, gaps)
    >>> node["pairs"][0]["score"].number(), node["pairs"][0]["p"].number(optional=True), node["seed"].whole()
    (None, None, None)
    >>> gaps
    ['pairs[0].score is nan, not a number', 'seed is missing']
    """

    value: Any
    gaps: list[str] = field(default_factory=list)
    place: str = ""
    absent: str = ""  # the first part on the way here that is not there

    @property
    def there(self) -> bool:
        return not self.absent

    def __getitem__(self, key: str | int) -> Node:
        name = f"[{key}]" if isinstance(key, int) else f".{key}" if self.place else key
        try:
            return Node(self.value[key], self.gaps, self.place + name)
        except (KeyError, IndexError, TypeError):
            return Node(None, self.gaps, self.place + name, self.absent or self.place + name)

    def part(self, key: str) -> Node:
        """`self[key]` of what not every result has: of an object without it null, which is no gap where that may be."""
        absent = isinstance(self.value, dict) and key not in self.value
        return Node(None, self.gaps, f"{self.place}.{key}") if absent else self[key]

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def _lacks(self, wanted: str, optional: bool) -> None:
        if self.there and self.value is None and optional:
            return
        told = f"{self.value!r}"
        self.gaps.append(
            f"{self.place} is {told if len(told) < 60 else told[:57] + '...'}, not {wanted}"
            if self.there
            else f"{self.absent} is missing"
        )

    def number(self, optional: bool = False) -> float | None:
        """A finite number; None and a gap for anything else. Where `optional`, null says that there is none, and is no gap."""
        if finite(self.value):
            return float(self.value)
        self._lacks("a number", optional)
        return None

    def whole(self, optional: bool = False) -> int | None:
        found = self.number(optional)
        return None if found is None else int(found)

    def text(self, default: str = "?") -> str:
        if isinstance(self.value, str):
            return self.value
        self._lacks("text", optional=False)
        return default

    def texts(self) -> list[str]:
        """The strings of a list."""
        return [one.text() for one in self.each()]

    def each(self, optional: bool = False) -> Iterator[Node]:
        """The members of a list."""
        if isinstance(self.value, list):
            yield from (self[i] for i in range(len(self.value)))
        else:
            self._lacks("a list", optional)

    def entries(self, optional: bool = False) -> Iterator[tuple[str, Node]]:
        """The members of an object, by their names."""
        if isinstance(self.value, dict):
            yield from ((str(key), self[key]) for key in self.value)
        else:
            self._lacks("an object", optional)

    def interval(self) -> tuple[float, float] | None:
        """Two finite numbers; None for null, and with a gap for anything else."""
        found = self.value
        if isinstance(found, list) and len(found) == 2 and all(finite(x) for x in found):
            return float(found[0]), float(found[1])
        self._lacks("an interval", optional=True)
        return None

    def numbers(self) -> list[float | None]:
        """A list of numbers, None where one is null, and with a gap where one is anything else."""
        return [one.number(optional=True) for one in self.each()]

    def matrix(self) -> np.ndarray | None:
        """`[rows, columns]`, nan where a cell holds no number; None and a gap for what is no matrix."""
        rows = self.value
        if (
            isinstance(rows, list)
            and rows
            and all(isinstance(row, list) and row for row in rows)
            and len({len(row) for row in rows}) == 1
        ):
            found = np.array([[float(x) if finite(x) else np.nan for x in row] for row in rows])
            if not np.isfinite(found).all():
                missing = int((~np.isfinite(found)).sum())
                self.gaps.append(f"{self.place} has {missing} of {found.size} cells that are no numbers")
            return found if np.isfinite(found).any() else None
        self._lacks("a matrix", optional=False)
        return None


def finite(x: Any) -> bool:
    """Whether a value is a number that can be drawn: finite, and squared still so. True and false are none."""
    return isinstance(x, int | float) and not isinstance(x, bool) and -LARGEST < x < LARGEST
