"""Scores at which the losses of scores, margin and Fenchel-Young, are to be exact."""

import jax
import numpy as np
from mpmath import mpf

SCORES = np.float32([0.0, 1e-30, 0.25, 0.999, 1.5, 40.0, -0.5, -3.0, -1e4])
ROWS = [
    np.float32(row)
    for row in ([3.0], [0.5, 2.0], [1.0, -0.25, 2.5], [0.25, 0.5, 0.125, -9.0], [7.0, 0.5, -8.0])
]
INTEGER_POINTS = [(s, k) for s in ROWS for k in range(len(s))]


def hinged(x):
    return x if x > 0 else mpf(0)


def one_hot(s, k):
    return jax.nn.one_hot(k, s.shape[-1], dtype=s.dtype)
