"""The losses of JAX: exact values and derivatives, of any order, in any precision.

Functions take predictions first, then targets, and return one loss for each example, in
nats. `Loss` adds settings, weights, masks and a reduction to any of them. `jaxloss.tf`
has TensorFlow's names.
"""

# Binary
from jaxloss._binary import (
    binary_cross_entropy,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
)

# Categorical
from jaxloss._categorical import (
    categorical_cross_entropy,
    categorical_cross_entropy_with_integer_labels,
    safe_softmax_cross_entropy,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)

# Categorical, with easy and hard examples weighed differently
from jaxloss._focal import poly_loss_cross_entropy, softmax_focal_loss

# Settings, weights, masks, reductions
from jaxloss._loss import Loss

__version__ = "0.1.0"

__all__ = [
    "Loss",
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "categorical_cross_entropy_with_integer_labels",
    "poly_loss_cross_entropy",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_focal_loss",
]
