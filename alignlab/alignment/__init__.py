"""Alignment of two models over all pairs of their layers, with nulls and intervals."""

from alignlab.alignment.compare import Comparison, compare
from alignlab.alignment.engine import align
from alignlab.alignment.result import Alignment, Best, MetricResult, plain_pair

__all__ = ["Alignment", "Best", "Comparison", "MetricResult", "align", "compare", "plain_pair"]
