"""Settings of the tests of `jaxloss.keras`."""

import os

import jax
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")  # Read when Keras is imported.


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
