"""What `align` is asked for: which metrics, with which options, approximated how, and whether there are items enough."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from alignlab.alignment.graph_pairs import GRAPHS
from alignlab.metrics import Metric, check_name
from alignlab.metrics.inputs import check_k
from alignlab.metrics.registry import REGISTRY

# Metrics that read the lists of neighbours which an index may find, and where ties matter.
LISTS = ("mutual_knn", "jaccard_knn", *GRAPHS)
APPROXIMATIONS = ("faiss", "minibatch")


def entries_of(metrics: Sequence[str]) -> list[Metric]:
    """The metrics of these names, each once; ValueError for an unknown name and for none."""
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be a list of names, got {metrics!r}; write [{metrics!r}]")
    if not metrics:
        raise ValueError("metrics is empty; name one metric at least")
    return [REGISTRY[check_name(name)] for name in dict.fromkeys(metrics)]


def settle(metric: Metric, k: int, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the metric is called with: its defaults, k, and the caller's options."""
    given = dict(options.get(metric.name, {}))
    known = {name: value for name, value in metric.options.items() if name != "distance"}  # align keeps scores
    unknown = set(given) - set(known)
    if unknown:
        listed = ", ".join(known) or "none"
        raise ValueError(f"{metric.name} has no option {', '.join(sorted(unknown))} here; its options: {listed}")
    return {**known, **({"k": k} if "k" in known else {}), **given}


def choose_approximations(approximate: str | Sequence[str] | None, entries: list[Metric]) -> dict[str, str]:
    """Which metric is approximated how; ValueError for what applies to none of them."""
    chosen = {}
    for name in (approximate,) if isinstance(approximate, str) else approximate or ():
        if name not in APPROXIMATIONS:
            raise ValueError(f"approximate must be among {', '.join(APPROXIMATIONS)}, got {name!r}")
        if name == "faiss":
            able = [m.name for m in entries if m.name in LISTS]
        else:
            able = [m.name for m in entries if m.name == "unbiased_cka"]
        if not able:
            what = "a metric of neighbours" if name == "faiss" else "unbiased_cka"
            raise ValueError(f"approximate={name!r} is for {what}, got metrics {', '.join(m.name for m in entries)}")
        chosen.update(dict.fromkeys(able, name))
    return chosen


def need_faiss() -> None:
    if importlib.util.find_spec("faiss") is None:
        raise ValueError("approximate='faiss' needs the package faiss-cpu: pip install 'alignlab[faiss]'")


def rehearse(
    metrics: Sequence[str],
    n: int,
    *,
    k: int,
    halves: bool,
    approximate: str | Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """ValueError where `align` would refuse what it is asked for, of any features of `n` items: said before they are computed.

    Every metric is tried on a few random items.
    """
    entries = entries_of(metrics)
    settings = {m.name: settle(m, k, options or {}) for m in entries}
    if "faiss" in choose_approximations(approximate, entries).values():
        need_faiss()
    check_sizes(entries, settings, n, halves)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(24, width, generator=generator) for width in (4, 3))
    for m in entries:
        few = {name: min(value, 8) if name == "k" else value for name, value in settings[m.name].items()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                m.function(x, y, **few)
        except TypeError as error:
            given = ", ".join(f"{name}={value!r}" for name, value in (options or {}).get(m.name, {}).items())
            raise ValueError(f"{m.name} cannot be computed with {given or 'its options'}: {error}") from error


def check_sizes(entries: Iterable[Metric], settings: Mapping[str, Mapping[str, Any]], n: int, halves: bool) -> None:
    """ValueError where n items, or half of them, are too few."""
    if halves and n < 8:
        raise ValueError(f"halves of {n} items are too few to measure; use resamples=0 without split_half, or 8 items")
    for m in entries:
        if "k" not in m.options:
            continue
        k = settings[m.name]["k"]
        check_k(k, n)
        if halves and k > n // 2 - 1:
            raise ValueError(
                f"k must be at most {n // 2 - 1} for halves of N={n} items, got {k}; "
                "lower k, add items, or do without resamples and splits"
            )
