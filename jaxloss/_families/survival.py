"""Survival: who of a cohort an event happens to first, by hazards of which the scale is unknown."""

from functools import partial
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.declare import takes
from jaxloss._core.lists import (
    ends,
    in_order,
    infinite,
    inverse,
    leads,
    lists_of,
    sound,
    span,
    starts,
)
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.numerics import softplus
from jaxloss._core.rows import logsumexp, softmax
from jaxloss._core.rules import jit_when_eager

Ties = Literal["efron", "breslow"]


@takes(
    log_hazards="members",
    times=("members", "positive"),
    events=("members", "bit"),
    segments=("members", "integer"),
)
def cox_loss(
    log_hazards: ArrayLike,
    times: ArrayLike,
    events: ArrayLike,
    *,
    ties: Ties = "efron",
    segments: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Array:
    r"""Negative log partial likelihood of Cox's proportional hazards, one loss an event.

    With x the log-hazards of a cohort, and R_i all whose time is at least that of i:

        loss_i = log(sum over j in R_i of exp(x_j) - c_i * sum over j in D_i of exp(x_j)) - x_i

    where D_i are the events at the time of i. If i is the k-th of these d in the order given, c_i
    is (k - 1) / d by Efron, and 0 by Breslow. Where there is no event, the loss is 0.

    Args:
        log_hazards: x, floating, a cohort along the last axis.
        times: of the event, or of the end of observation (censoring), in any order: real numbers
            of the shape of `log_hazards`. Only their order counts; whoever is censored at the time
            of an event is still at risk.
        events: 1 where the event was seen, 0 where not: bool, integer or floating, of the same
            shape, a scalar, or of the same rank with axes of size 1, as may be `times`.
        ties: "efron" or "breslow", how events at one time are counted. Without such both are the
            same.
        segments: integers shaped like `times`, the strata: only members of one row with the same
            number are at risk together.
        where: booleans shaped like `times`, or without the last axis; other members do not exist.

    Returns:
        The losses in nats, of the shape of the operands together, in float32 (float64 for float64
        log-hazards), exact also where they are tiny.

    Raises:
        TypeError: log-hazards are not floating point, `where` is not boolean, or `segments` are
            not integers.
        ValueError: shapes do not match, there is no axis of members, or there are no such `ties`.

    Their sum is the whole partial likelihood, whatever the order of ties. For its mean over events
    weigh by these, `Loss(cox_loss, "weighted_mean")(..., weights=events)`: a member of weight 0 is
    at risk all the same.

    The derivative by x is the member's share in the hazard of those at risk, summed over the
    events, less 1 for one's own; by times and events it is 0. A NaN, or an event that is neither 0
    nor 1, makes all losses of its stratum and their derivatives NaN. Infinite hazards are equal, so
    that an event costs log 2 beside one other; against finite ones it costs 0, and those cost inf.

    References:
        Cox, Regression Models and Life-Tables, 1972. Breslow, Covariance Analysis of Censored
        Survival Data, 1974. Efron, The Efficiency of Cox's Likelihood Function for Censored Data,
        1977. Katzman et al., DeepSurv, 2018, arXiv:1606.00931.

    >>> import jax.numpy as jnp, jaxloss
    >>> log_hazards, times = jnp.array([0.5, 0.0, 1.0]), jnp.array([2.0, 3.0, 1.0])
    >>> print(jaxloss.cox_loss(log_hazards, times, jnp.array([1, 0, 1])))
    [0.474077   0.         0.68026966]
    """
    if ties not in get_args(Ties):
        raise ValueError(
            f"ties must be one of {', '.join(map(repr, get_args(Ties)))}, got {ties!r}"
        )
    x = checks.predictions("log_hazards", log_hazards)
    t = jnp.asarray(times)
    t, e = checks.numeric("times", t, t.dtype), checks.numeric("events", events, x.dtype)
    shape = checks.common_shape("log_hazards", x, "times", t)
    x = jnp.broadcast_to(x, shape)
    shape = checks.common_shape("log_hazards", x, "events", e)
    if not shape:
        raise ValueError(
            f"log_hazards of shape {x.shape}, times of shape {t.shape} and events of shape "
            f"{e.shape} have no axis of members; a cohort of one has shape (1,)"
        )
    x, t, e = (jnp.broadcast_to(a, shape) for a in (x, t, e))
    x, _, live = inputs.rows("log_hazards", x, -1, where)
    return _cox(x, t, e, live, lists_of(segments, "log_hazards", shape), ties=ties)


@partial(jit_when_eager, static_argnames="ties")
@left_to_xla(None)
def _cox(x, t, e, live, strata, *, ties):
    axis = x.ndim - 1
    x, factor = sound(x, (t != t) | ((e != 0) & (e != 1)), live, strata)
    censored = inputs.exclude(live, e == 0, True)
    members = in_order(t, live, strata, later=censored)
    x, censored = (jnp.take_along_axis(a, members.order, axis) for a in (x, censored))
    # The events of one time are a run, and who is censored is one alone.
    first = starts(members.number, members.keys) | censored
    start, last = span(first)
    alone, is_last = jnp.all(first), ends(starts(members.number))
    tied = partial(_tied, ties=ties)
    # Without ties an event is against those at risk later.
    losses = passes.unless(alone, softplus(leads(x, is_last)), tied, x, is_last, start, last)
    losses = jnp.where(censored, 0, infinite(losses))
    return inputs.masked(live, jnp.take_along_axis(losses, inverse(members.order), axis) * factor)


def _tied(x: Array, is_last: Array, start: Array, last: Array, *, ties: Ties) -> Array:
    axis = x.ndim - 1
    of_run = softmax(x, axis, start).nll
    if ties == "efron":
        before = lax.broadcasted_iota(jnp.int32, x.shape, axis) - start
        of_run += jnp.log1p(-before.astype(x.dtype) / (last - start + 1).astype(x.dtype))
    return jnp.squeeze(logsumexp(jnp.stack([of_run, leads(x, is_last, last)]), 0), 0)
