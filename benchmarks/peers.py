"""The same functions in other libraries, by our names: (predictions, targets) -> losses.

What a library reduces to a mean, or over the last axis, it may: means are compared. A library
that is not installed is left out. Functions of torch take its tensors.
"""

import functools
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp

Losses = dict[str, Callable[..., Any]]


def _optax() -> Losses:
    import optax

    o = optax.losses
    return {
        "ntxent": lambda x, k: o.ntxent(x, k, temperature=0.25),
        "triplet_margin_loss": lambda x, _: o.triplet_margin_loss(*x, margin=8.0),
        "dice_loss": o.dice_loss,
        "binary_dice_loss": lambda x, t: o.binary_dice_loss(x[..., None], t[..., None]),
        "multiclass_generalized_dice_loss": o.multiclass_generalized_dice_loss,
        "ctc_loss": lambda x, y: o.ctc_loss(x, jnp.zeros(x.shape[:2]), y[0], y[1].astype(x.dtype)),
        "linear_cross_entropy": lambda x, k: o.softmax_cross_entropy_with_integer_labels(
            x[0] @ x[1], k
        ),
    }


def _keras() -> Losses:
    import keras

    f = keras.losses

    def swapped(name: str, **options: Any):
        loss = getattr(f, name)
        return lambda x, y: loss(y, x, **options)

    return {
        "sigmoid_binary_cross_entropy": swapped("binary_crossentropy", from_logits=True),
        "sigmoid_focal_loss": swapped("binary_focal_crossentropy", from_logits=True),
        "binary_cross_entropy": swapped("binary_crossentropy"),
        "softmax_cross_entropy_with_integer_labels": swapped(
            "sparse_categorical_crossentropy", from_logits=True
        ),
        "softmax_cross_entropy": swapped("categorical_crossentropy", from_logits=True),
        "softmax_focal_loss": swapped(
            "categorical_focal_crossentropy", from_logits=True, alpha=1.0, gamma=2.0
        ),
        "generalized_cross_entropy": lambda x, k: f.categorical_generalized_cross_entropy(
            k, jax.nn.softmax(x), 0.75
        ),
        "categorical_cross_entropy": swapped("categorical_crossentropy"),
        "categorical_cross_entropy_with_integer_labels": swapped("sparse_categorical_crossentropy"),
        "squared_error": swapped("mean_squared_error"),
        "absolute_error": swapped("mean_absolute_error"),
        "huber_loss": swapped("huber"),
        "log_cosh": swapped("log_cosh"),
        "absolute_percentage_error": swapped("mean_absolute_percentage_error"),
        "squared_log_error": swapped("mean_squared_logarithmic_error"),
        "cosine_similarity": lambda x, y: -f.cosine_similarity(y, x),
        "cosine_distance": lambda x, y: 1 + f.cosine_similarity(y, x),
        "hinge_loss": swapped("hinge"),
        "squared_hinge_loss": swapped("squared_hinge"),
        "categorical_hinge_loss": swapped("categorical_hinge"),
        "kl_divergence": lambda x, y: f.kl_divergence(y, jnp.exp(x)),
        "ctc_loss": lambda x, y: f.ctc(jnp.where(y[1], 0, y[0]), x),
    }


def _rax() -> Losses:
    rax = import_module("rax")

    def summed(loss: Callable[..., Any]):
        return lambda x, y: loss(x, y, reduce_fn=jnp.sum) / len(x)

    return {
        "ranking_softmax_loss": lambda x, y: rax.softmax_loss(x, y, reduce_fn=None),
        # By default a mean over all pairs of items, ordered or not.
        "pairwise_logistic_loss": summed(rax.pairwise_logistic_loss),
        "pairwise_hinge_loss": summed(rax.pairwise_hinge_loss),
    }


def _tokamax() -> Losses:
    tokamax = module("tokamax")

    def linear(x, k):
        return tokamax.linear_softmax_cross_entropy_loss(x[0], k, x[1], reduction="mean")

    return {"linear_cross_entropy": linear}


def _torch() -> Losses:
    torch = import_module("torch")
    f = torch.nn.functional

    def plain(name: str, **options: Any):
        loss = getattr(f, name)
        return lambda x, y: loss(x, y, reduction="none", **options)

    kl = partial(f.kl_div, reduction="none")

    def linear(x, k):
        return f.cross_entropy(x[0] @ x[1], k)

    def ctc(x, y):
        x = f.log_softmax(x, -1).transpose(0, 1)
        frames = torch.full((x.shape[1],), len(x), dtype=torch.long)
        return f.ctc_loss(x, y[0], frames, (~y[1]).sum(1), reduction="none")

    return {
        "sigmoid_binary_cross_entropy": plain("binary_cross_entropy_with_logits"),
        "binary_cross_entropy": plain("binary_cross_entropy"),
        "softmax_cross_entropy_with_integer_labels": plain("cross_entropy"),
        "softmax_cross_entropy": plain("cross_entropy"),
        "squared_error": plain("mse_loss"),
        "absolute_error": plain("l1_loss"),
        "huber_loss": plain("huber_loss"),
        "poisson_nll": plain("poisson_nll_loss"),
        "gaussian_nll": lambda x, y: f.gaussian_nll_loss(x, y, 2.5, reduction="none"),
        "cosine_similarity": f.cosine_similarity,
        "cosine_distance": lambda x, y: 1 - f.cosine_similarity(x, y),
        "kl_divergence": lambda x, y: kl(x, y).sum(-1),
        "kl_divergence_with_log_targets": lambda x, y: kl(x, y, log_target=True).sum(-1),
        "triplet_margin_loss": lambda x, _: f.triplet_margin_loss(*x, margin=8.0, reduction="none"),
        "ctc_loss": ctc,
        "linear_cross_entropy": linear,
    }


LIBRARIES = {"optax": _optax, "keras": _keras, "rax": _rax, "tokamax": _tokamax, "torch": _torch}


def installed(who: str) -> bool:
    """Whether the library is there; "keras, of logits" is one of Keras, and a formula always is."""
    peer = who.split(",")[0]
    return peer not in LIBRARIES or module(peer) is not None


def module(peer: str) -> Any:
    """The library, or None where it is not installed."""
    if find_spec(peer) is None:
        return None
    os.environ.setdefault("KERAS_BACKEND", "jax")
    found = import_module(peer)
    if peer == "tokamax":  # It would read the command line.
        import_module("absl.flags").FLAGS([__name__])
    return found if peer != "keras" or found.backend.backend() == "jax" else None


@functools.cache
def peers() -> dict[str, Losses]:
    """By our name, and by the library's."""
    out: dict[str, Losses] = {}
    for peer, losses in LIBRARIES.items():
        if installed(peer):
            for name, loss in losses().items():
                out.setdefault(name, {})[peer] = loss
    return out
