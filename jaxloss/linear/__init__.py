"""Losses of a linear layer's logits that never exist all at once."""

from jaxloss.linear._cross_entropy import linear_cross_entropy
from jaxloss.linear._formulas import LinearStatistics
from jaxloss.linear._statistics import linear_distillation, linear_statistics

__all__ = ["LinearStatistics", "linear_cross_entropy", "linear_distillation", "linear_statistics"]
