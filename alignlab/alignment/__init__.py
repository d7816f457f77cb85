"""Alignment of two models over all pairs of their layers, with nulls and intervals."""

from alignlab.alignment.engine import align
from alignlab.alignment.result import Alignment, Best, MetricResult

__all__ = ["Alignment", "Best", "MetricResult", "align"]
