"""How analyses are put in words, on the terminal and in reports alike."""

from __future__ import annotations

# What Table 6's measures are called, and the paper's name for those that it has.
ROWS = {
    "distance": ("L", "L"),
    "ratio": ("L / mean square of A", None),
    "diagonal_mean": ("D", "D"),
    "diagonal_median": ("median diagonal ratio", None),
    "alpha": ("best alpha", None),
    "rank_entropy": ("effective rank", None),
    "rank_participation": ("participation ratio", None),
    "singular_largest": ("largest singular", None),
    "singular_median": ("median singular", None),
}
UNBOUNDED = ("diagonal_mean", "diagonal_median")  # inf over a zero; of the others None is what cannot be told
MEASURES = (
    "L: mean squared entry of A - alpha I, alpha the best. Divided by the mean squared entry of A it is 0 for alpha I and "
    "about 1 for random layers; 1 minus it is the share of A's squares that alpha I makes up.",
    "D: mean of |A_ii / A_ij|, i != j; the median of these ratios is 1 where the diagonal does not stand out. Ranks: of "
    "the singular values' entropy, and (sum s^2)^2 / sum s^4.",
)


# What components' analysis compares with the true tokens.
COMPARED = {"given": "as given", "written": "as written", "told": "reading the true ones"}


def measure(name: str, x: float | None, digits: int = 3) -> str:
    """One of Table 6's measures; None is infinity where a ratio can be that, else nothing that can be told.

    >>> measure("ratio", 0.98765), measure("ratio", None), measure("diagonal_mean", None), measure("distance", 15300.0)
    ('0.988', '-', 'inf', '1.53e+04')
    """
    if x is None:
        return "inf" if name in UNBOUNDED else "-"
    return f"{x:.{digits if abs(x) < 100 else 3}g}"


def si(x: float) -> str:
    """5740000000000.0 -> "5.74 T".

    >>> si(5.74e12), si(25.56e9), si(0.0)
    ('5.74 T', '25.56 G', '0')
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= size:
            return f"{x / size:.2f} {unit}"
    return f"{x:.0f}"


def percent(x: float | None) -> str:
    """
    >>> percent(0.1234), percent(0.000512), percent(8.959), percent(None)
    ('12.3%', '0.0512%', '896%', '-')
    """
    return "-" if x is None else f"{100 * x:.3g}%" if abs(x) < 10 else f"{100 * x:.0f}%"
