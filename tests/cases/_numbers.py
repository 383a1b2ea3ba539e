"""Rows of the losses of two numbers, a prediction and a target."""

import numpy as np

from tests.cases._case import Case

ERRORS = [1e-30, 1e-4, 0.01, 0.3, 0.75, 1.25, 3.0, 30.0, 1e4]
# Around zero, where an error is exact, and between numbers that are close or far apart.
POINTS = [(np.float32(s * x), np.float32(0)) for x in ERRORS for s in (1, -1)]
POINTS += [
    (np.float32(p), np.float32(t)) for p, t in ((1.5, 1.4), (-2, 7), (1e4, 9998), (3, 3.001))
]
POSITIVE = np.float32([1e-20, 1e-3, 0.4, 1.0, 2.5, 1e3])


def row(name, fn, naive, value, points=POINTS, **fields) -> Case:
    fields = {"predictions": "real", "targets": "real", "size": None} | fields
    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda p, t: value(p[0], t[0]),
        points=points,
        **fields,
    )
