"""How the tests compile."""

import jax
import jax.numpy as jnp


def test_programs_share_a_context():
    """By a private name of JAX: without it the tests are right, and slower."""
    modules = [jax.jit(f).lower(1.0).compiler_ir() for f in (jnp.sin, jnp.cos, jnp.tan, jnp.exp)]
    # Two, should one be worn out here.
    assert len({id(module.context) for module in modules}) <= 2  # pyright: ignore
