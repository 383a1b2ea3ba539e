"""Cross-entropies of a linear layer, without its logits."""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from benchmarks.failures._failure import Failure, compared, gradient
from benchmarks.peers import module
from benchmarks.works import OURS

tokamax: Any = module("tokamax")
PALLAS = "tokamax, Pallas TPU kernel interpreted"


def _tokamax(h, w, k):
    return tokamax.linear_softmax_cross_entropy_loss(h, k, w, reduction="mean")


def _pallas(h, w, k):
    """The public function refuses to run it here, so its private kernel is called."""
    from jax.experimental.pallas import tpu

    package = "tokamax._src.ops.linear_softmax_cross_entropy_loss"
    kernel = import_module(f"{package}.pallas_mosaic_tpu_kernel")
    with tpu.force_tpu_interpret_mode():
        loss, _ = kernel.linear_softmax_cross_entropy_loss_fwd_pallas_mosaic_tpu(
            h, k, w, b_block_size=1024, h_block_size=128, v_block_size=512, reduction="mean"
        )
    return loss


LOSSES = {OURS: jaxloss.linear_cross_entropy, "tokamax": _tokamax}
RNG = np.random.default_rng(0)
H, W, V = RNG.normal(size=(3, 128, 128)).astype(np.float32) / 4
K = np.arange(128, dtype=np.int32)
LOGITS = np.float64(H) @ W
P = np.exp(LOGITS - np.max(LOGITS, 1, keepdims=True))
P /= np.sum(P, 1, keepdims=True)
ALONG = np.float64(V) @ W
# Of the mean loss along V: d = sum of p a - a[k]; and the mean of the variances of a under p.
SLOPE = np.mean(np.sum(P * ALONG, 1) - np.diagonal(ALONG))
CURVATURE = np.mean(np.sum(P * ALONG**2, 1) - np.sum(P * ALONG, 1) ** 2)


def _along(f):
    return jax.jit(lambda h: jax.jvp(lambda h: f(h, W, K), (h,), (V,))[1])(H)


def _twice_along(f):
    def slope(h):
        return jnp.sum(gradient(lambda h: f(h, W, K), h) * V)

    return jnp.sum(gradient(slope, H) * V)


def _half_gradients(f):
    gradients = jax.grad(f, (0, 1))(jnp.bfloat16(H), jnp.bfloat16(W), K)
    return [g.dtype.itemsize for g in gradients]


def _chunked(torch):
    options = torch.nn.LinearCrossEntropyOptions()
    w, k = torch.from_numpy(W.T.copy()), torch.from_numpy(K).long()
    return lambda h: torch.nn.functional.linear_cross_entropy(h, w, k, options=options)


def _torch_along():
    torch = module("torch")
    h, v = torch.from_numpy(H.copy()), torch.from_numpy(V.copy())
    return torch.func.jvp(_chunked(torch), (h,), (v,))[1].numpy()


def _torch_twice_along():
    torch = module("torch")
    h, v = torch.from_numpy(H.copy()).requires_grad_(True), torch.from_numpy(V.copy())
    (slope,) = torch.autograd.grad(_chunked(torch)(h), h, create_graph=True)
    return (torch.autograd.grad((slope * v).sum(), h)[0] * v).sum().numpy()


FAILURES: list[Failure] = [
    compared(
        "linear cross-entropy of a layer that is all 0, 300 classes",
        np.log(300),
        lambda f: f(jnp.ones((1024, 128)), jnp.zeros((128, 300)), jnp.arange(1024) % 300),
        {**LOSSES, PALLAS: _pallas},
    ),
    Failure(
        what="linear cross-entropy, forward mode by the states",
        right=float(SLOPE),
        ours=lambda: _along(LOSSES[OURS]),
        peers={"tokamax": lambda: _along(_tokamax), "torch, chunked": _torch_along},
    ),
    Failure(
        what="linear cross-entropy, second derivative along states",
        right=float(CURVATURE),
        ours=lambda: _twice_along(LOSSES[OURS]),
        peers={"tokamax": lambda: _twice_along(_tokamax), "torch, chunked": _torch_twice_along},
    ),
    compared(
        "bytes of a number of the gradients by bfloat16 states and weights",
        (2.0, 2.0),
        _half_gradients,
        LOSSES,
    ),
]
