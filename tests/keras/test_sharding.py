"""Classes of `jaxloss.keras` of a batch that is split over devices, by the types of its arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss.keras as ours
from tests.devices import mesh
from tests.keras.test_parity import ARGUMENTS, CASES, IDS

pytestmark = [
    pytest.mark.usefixtures("implicit_promotions"),
    pytest.mark.filterwarnings("ignore::jaxloss.keras.LogitsWarning"),
]


@pytest.mark.parametrize(ARGUMENTS, CASES, ids=IDS)
@pytest.mark.few(4)
def test_explicit_sharding_of_the_batch(name, settings, t, p):
    loss = getattr(ours, name)(**settings)
    t, p = (np.concatenate([x] * 8) for x in (t, p))
    t, p = (x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for x in (t, p))
    weights = np.linspace(0, 2, len(p), dtype=np.float32)

    @jax.jit
    def run(t, p, weights):
        return jax.value_and_grad(lambda p: jnp.sum(loss(t, p, weights)))(p)

    # One number for the whole batch takes no weights.
    alone = jax.eval_shape(getattr(ours, name)(**settings, reduction="none"), t, p).ndim == 0
    batch = t, p, None if alone else weights
    want, eight = run(*batch), mesh(AxisType.Explicit, d=8)
    with jax.set_mesh(eight):
        rows = NamedSharding(eight, P("d"))
        got = run(*(None if x is None else jax.device_put(x, rows) for x in batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 1e-6), got, want)
