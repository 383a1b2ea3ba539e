"""Auxiliary losses of mixtures of experts: of a router's logits."""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.numerics import one_or_nan
from jaxloss._core.pairs import AxisName
from jaxloss._core.reduce import per_size
from jaxloss._core.reports import report
from jaxloss._core.rows import logsumexp, softmax
from jaxloss._core.rules import jit_when_eager


@takes(router_logits=("embeddings", "logits"), selected=("embeddings", "integer"))
def load_balancing_loss(
    router_logits: ArrayLike,
    selected: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""How unevenly a router spreads tokens over experts; 1 if evenly.

    With E experts, f_i the share of expert i in all selections, and P_i the mean over tokens of
    `softmax(router_logits)_i`:

        loss = E * sum_i f_i * P_i

    Args:
        router_logits: floating, [..., E]. A logit of -inf excludes an expert.
        selected: integers in [0, E), [..., k], the experts that each token takes, as of
            `jax.lax.top_k`. Any other makes the loss and its gradient NaN, unless it is masked;
            under `jax.experimental.checkify` it is reported.
        where: booleans shaped like the tokens, [...]: which there are.
        axis_name: mapped axes over which tokens are split. Shares and means are then those of all
            devices' tokens, and each device returns the whole loss.

    Returns:
        One number, in float32 (float64 for float64 logits); 0 if all tokens are masked.

    Raises:
        TypeError: logits are not floating point, `selected` not integers, `where` not boolean.
        ValueError: shapes do not match.

    The shares f have no derivative. The softmax is over all experts, not over those selected.

    f and P are over all tokens given, so call it once for each layer: their mean over layers
    differs from what HF transformers' `load_balancing_loss_func` computes, of the tokens of all
    layers at once; and that divides the selections by the tokens only, so that its balance is k.

    References:
        Fedus, Zoph and Shazeer, Switch Transformers, 2021, arXiv:2101.03961, for k = 1.

    >>> import jax.numpy as jnp, jaxloss
    >>> logits = jnp.array([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    >>> print(jaxloss.load_balancing_loss(logits, jnp.array([[0], [0]])))
    2.04465
    """
    x = checks.predictions("router_logits", router_logits)
    chosen = checks.integers("selected", selected, "they are numbers of experts, as of lax.top_k")
    if not x.ndim or chosen.ndim != x.ndim or chosen.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"selected of shape {chosen.shape} do not match router_logits of shape {x.shape}: "
            f"expected [..., k] and [..., E]"
        )
    where = inputs.mask_of(where, "tokens", x.shape[:-1])
    where = None if where is None else where[..., None]
    return _load_balancing(x, chosen, where, axis_name=axis_name)


@partial(jit_when_eager, static_argnames="axis_name")
@left_to_xla(0)
def _load_balancing(x, chosen, where, *, axis_name):
    tokens, (experts, k) = tuple(range(x.ndim - 1)), (x.shape[-1], chosen.shape[-1])
    p = inputs.masked(where, softmax(inputs.exclude(where, x, 0.5), x.ndim - 1).p)
    chosen = inputs.exclude(where, chosen, 0)
    valid = jnp.all((chosen >= 0) & (chosen < experts))
    p = report(
        p,
        valid,
        f"selected must be in [0, {experts}), but reach from {{low}} to {{high}}",
        low=jnp.min(chosen, initial=0),
        high=jnp.max(chosen, initial=0),
    )
    taken = chosen[..., None] == lax.broadcasted_iota(
        chosen.dtype, (1,) * x.ndim + (experts,), x.ndim
    )
    taken = inputs.masked(where, jnp.sum(taken, -2, dtype=jnp.int32))
    live = jnp.ones_like(p, bool, shape=(*p.shape[:-1], 1)) if where is None else where
    sums = (
        jnp.sum(taken, tokens).astype(p.dtype) * one_or_nan(valid, p.dtype),
        jnp.sum(p, tokens),
        jnp.sum(live, dtype=jnp.int32).astype(p.dtype),
    )
    counts, mass, size = sums if axis_name is None else lax.psum(sums, axis_name)
    return experts * jnp.sum(per_size(counts, k * size) * per_size(mass, size))


@takes(router_logits=("row", "logits"))
def router_z_loss(router_logits: ArrayLike, *, where: ArrayLike | None = None) -> Array:
    r"""Square of the log-sum-exp of a router's logits, which keeps them small.

        loss = (log sum_i exp(x_i))**2

    Args:
        router_logits: x, floating, [..., E]. A logit of -inf excludes an expert.
        where: booleans, shaped like the tokens, [...], to leave out tokens, or like the logits to
            leave out experts.

    Returns:
        The loss of each token, [...], in float32 (float64 for float64 logits); 0 where `where`
        leaves no expert.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative is `2 * logsumexp(x) * softmax(x)`.

    References:
        Zoph et al., ST-MoE, 2022, arXiv:2202.08906.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.router_z_loss(jnp.array([[0.0, 0.0], [1.0, -1.0]])))
    [0.48045  1.26997]
    """
    x = checks.predictions("router_logits", router_logits)
    return _router_z(*inputs.rows("router_logits", x, -1, where))


@partial(jit_when_eager, static_argnums=1)
def _router_z(x, axis, live):
    x = inputs.live_classes(live, x, axis, -jnp.inf, 0)
    lse = jnp.squeeze(logsumexp(x, axis), axis)
    return inputs.live_rows(live, lse * lse, axis)
