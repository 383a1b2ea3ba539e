"""Logits of two classes, and labels, at which the losses of a sigmoid are to be exact."""

from itertools import product

import jax.numpy as jnp
import numpy as np

_HALF = [0.0, 1e-30, 1e-4, 0.5, 1.0, 2.5, 5.0, 17.0, 30.0, 60.0, 80.0, 1e4]
LOGITS = [np.float32(s * x) for x in _HALF for s in (1, -1)]
LABELS = [0.0, 1.0, 0.5, 0.3, 1e-3, 0.999]
LOGIT_POINTS = list(product(LOGITS, map(np.float32, LABELS)))


def naive_sigmoid(x, z):
    """TensorFlow's formula as it is mostly transcribed."""
    return jnp.maximum(x, 0) - x * z + jnp.log1p(jnp.exp(-jnp.abs(x)))
