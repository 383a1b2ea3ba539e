"""The devices that a test needs; where there are fewer, as on one GPU, it is skipped."""

import math

import jax
import pytest
from jax.sharding import AxisType, Mesh


def mesh(kind: AxisType = AxisType.Auto, **axes: int) -> Mesh:
    needed = math.prod(axes.values())
    if jax.device_count() < needed:
        pytest.skip(f"needs {needed} devices")
    devices = jax.devices()[:needed]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (kind,) * len(axes), devices=devices)
