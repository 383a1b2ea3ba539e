import jax
import pytest


@pytest.fixture(autouse=True)
def defaults():
    """Other libraries do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
