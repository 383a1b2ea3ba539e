"""Lists that lie in the rows of an array, in any order: which items are whose, and what follows.

The lists of a row are numbered, in [0, n); None stands for one list a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.numerics import clip_to_finite, largest, one_or_nan, sigmoid
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.split import total


def lists_of(segments: ArrayLike | None, to_name: str, shape: tuple[int, ...]) -> Array | None:
    """Check the numbers of the lists of what has a shape, and make them those in [0, n)."""
    if segments is None:
        return None
    segments = checks.integers("segments", segments, "number the lists of a row")
    checks.fits("segments", segments, to_name, shape)
    return _numbered(jnp.broadcast_to(segments, shape))


@jit_when_eager
@left_to_xla(None)
def _numbered(segments: Array) -> Array:
    def row(segments):
        return jnp.searchsorted(jnp.sort(segments), segments).astype(jnp.int32)

    return jnp.vectorize(row, signature="(n)->(n)")(segments)


def sum_each(x: Array, lists: Array) -> Array:
    """The sum over each list of a row, where its number says, and 0 elsewhere."""

    def row(x, lists):
        return jax.ops.segment_sum(x, lists, num_segments=x.size)

    return jnp.vectorize(row, signature="(n),(n)->(n)")(x, lists)


def of_own(of_lists: Array, lists: Array | None) -> Array:
    """What is of each list, at its number, for each of its items."""
    return of_lists if lists is None else jnp.take_along_axis(of_lists, lists, -1)


def sound(
    s: Array, undefined: Array, live: Array | None, lists: Array | None
) -> tuple[Array, Array]:
    """Scores as finite numbers, NaN in a list with what is undefined; and a factor for its losses.

    Infinities must not meet: as finite numbers they are equal, or far apart.
    """
    s = inputs.exclude(live, s, 0)
    undefined = inputs.exclude(live, jnp.isnan(s) | undefined, False)
    defined = total(undefined.astype(s.dtype), s.ndim - 1, lists) == 0
    factor = one_or_nan(defined, s.dtype)
    return clip_to_finite(s) * factor, factor


def infinite(losses: Array) -> Array:
    """Losses of differences between what were infinite scores."""
    limit = largest(losses.dtype) / 16
    return losses + lax.stop_gradient(jnp.where(losses > limit, jnp.inf, 0))


class Sorted(NamedTuple):
    order: Array  # which item is at each place
    number: Array  # of its list, one that no list has if it is masked
    keys: Array


def in_order(
    keys: Array, live: Array | None, lists: Array | None, later: Array | None = None
) -> Sorted:
    """List after list, the items with the smallest keys first.

    Of equal ones those that come `later`, if any do, come last; else they keep their order.
    """
    axis, n = keys.ndim - 1, keys.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, keys.shape, axis)
    number = jnp.zeros_like(place) if lists is None else lists
    number = inputs.exclude(live, number, n)
    one_list = live is None and lists is None
    by = [] if one_list else [number]
    by += [lax.stop_gradient(keys), place if later is None else jnp.where(later, place + n, place)]
    # No two are alike, so that the sort, which takes most of the time, need not be stable.
    *number_, keys, order = lax.sort(by, dimension=axis, num_keys=len(by), is_stable=False)
    return Sorted(jnp.where(order < n, order, order - n), number if one_list else number_[0], keys)


def inverse(order: Array) -> Array:
    """At which place each item is."""

    def row(order):
        place = lax.iota(jnp.int32, order.size)
        return jnp.zeros_like(order).at[order].set(place, unique_indices=True)

    return jnp.vectorize(row, signature="(n)->(n)")(order)


def starts(*of: Array) -> Array:
    """Where any of these differs from what is before it, and at the start of a row."""
    axis = of[0].ndim - 1
    first = lax.broadcasted_iota(jnp.int32, of[0].shape, axis) == 0
    for x in of:
        first |= x != jnp.roll(x, 1, axis)
    return first


def ends(first: Array) -> Array:
    """The last of each run."""
    return jnp.roll(first, -1, first.ndim - 1)


def span(first: Array) -> tuple[Array, Array]:
    """Where the run of each entry starts and ends, by which entries are the first of one."""
    axis, n = first.ndim - 1, first.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, first.shape, axis)
    start = lax.cummax(jnp.where(first, place, 0), axis)
    return start, lax.cummin(jnp.where(ends(first), place, n - 1), axis, reverse=True)


@jax.custom_jvp
def leads(s: Array, is_last: Array, after: Array | None = None) -> Array:
    """The log-sum-exp of all that comes after an item in its list, less its score.

    Or after the place of another item of the list. Of nothing it is -inf.
    """

    # That of some items is top + log(1 + tail), where the tail leaves the largest out.
    def join(later, earlier):
        (top, tail, _), (s, others, ends) = later, earlier
        above = s > top
        e = jnp.exp(-jnp.abs(s - top))
        joined = jnp.where(above, others + e * (1 + tail), tail + e * (1 + others))
        return (
            jnp.where(ends | above, s, top),
            jnp.where(ends, others, joined),
            later[2] | ends,
        )

    start = s, jnp.zeros_like(s), is_last
    top, tail, _ = lax.associative_scan(join, start, reverse=True, axis=s.ndim - 1)
    top, tail, is_last = _next(after, is_last, top, tail)
    return jnp.where(is_last, -jnp.inf, (top - s) + jnp.log1p(tail))


@leads.defjvp
def _leads_rule(primals, tangents):
    # Of what comes after, the derivative is the mean m under its softmax, in which an item has
    # the share p = sigmoid(-lead) of itself and all that follows: m = p v + (1 - p) m_next.
    (s, is_last, after), (v, *_) = primals, tangents
    lead = leads(s, is_last)

    def join(later, earlier):
        (share, mean, _), (rest, own, ends) = later, earlier
        # Another list's NaN, too, is kept out, in both directions.
        rest, share, mean = (jnp.where(ends, 0, a) for a in (rest, share, mean))
        return rest * share, own + rest * mean, later[2] | ends

    start = sigmoid(lead), sigmoid(-lead) * v, is_last
    _, mean, _ = lax.associative_scan(join, start, reverse=True, axis=s.ndim - 1)
    mean, is_last = _next(after, is_last, mean)
    return leads(s, *primals[1:]), jnp.where(is_last, 0, mean - v)


def _next(after: Array | None, is_last: Array, *of_rest: Array) -> list[Array]:
    """What is of the items from the next place on, and whether there are none."""
    next_ones = [*(jnp.roll(a, -1, a.ndim - 1) for a in of_rest), is_last]
    return [of_own(a, after) for a in next_ones]
