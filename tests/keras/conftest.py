"""The backend of Keras, which reads it when it is imported."""

import os

import jax
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")  # Read when Keras is imported.


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def implicit_promotions():
    """JAX as users have it: Keras itself does not run under the settings of the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
