"""What may follow a model's name: `@random` (same architecture, fresh weights) and `[:K]` (its first K blocks)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SUFFIX = re.compile(r"@random|\[:(?P<blocks>[^\]]*)\]")


@dataclass(frozen=True)
class Variant:
    """A name taken apart; `blocks` is None where the whole model is meant."""

    base: str
    random: bool = False
    blocks: int | None = None


def parse(name: str) -> Variant:
    """Take a model's name apart; the two suffixes come in any order, each at most once.

    Raises ValueError for a suffix that is given twice and for K that is not a whole number of 1 or more.

    >>> parse("smollm2")
    Variant(base='smollm2', random=False, blocks=None)
    >>> parse("smollm2[:8]@random")
    Variant(base='smollm2', random=True, blocks=8)
    """
    base, random, blocks = name, False, None
    while found := [m for m in _SUFFIX.finditer(base) if m.end() == len(base)]:
        suffix = found[0]
        given = suffix["blocks"]
        if (given is None and random) or (given is not None and blocks is not None):
            raise ValueError(f"{name!r} has {suffix[0]} twice; give it once")
        if given is None:
            random = True
        elif not re.fullmatch(r"[1-9]\d*", given):
            raise ValueError(f"{name!r}: [:K] must hold a whole number of blocks, 1 or more, got {given!r}")
        else:
            blocks = int(given)
        base = base[: suffix.start()]
    return Variant(base, random, blocks)
