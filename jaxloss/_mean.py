"""`Mean`: a mean as its total and its size, which add up."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks
from jaxloss._core.numerics import compute_dtype
from jaxloss._core.reduce import (
    Reduction,
    SequenceReduction,
    check_reduction,
    per_example,
    per_size,
    segments_of,
    total_and_size,
)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Mean:
    r"""A mean that is not divided yet: `total / size`.

    A mean of means is wrong where their sizes differ; the sum of the totals over the sum of the
    sizes is right. So means add up, over microbatches, devices and steps, and only `value`
    divides:

        (a + b).value = (a.total + b.total) / (a.size + b.size)

    A frozen pytree of two leaves: it goes through `jit`, `vmap`, `grad`, `scan` (as a carry, or
    stacked and summed over the leading axis by `jax.tree.map`) and `shard_map`.

    Args:
        total: the sum of what is averaged, real, of any shape; for a loss a scalar.
        size: over how many that is, or the sum of their weights: of the shape of `total`, or a
            scalar. It may be anything that adds up; zero if nothing counts.

    Both become floating point, of at least float32, and of the same dtype. `Mean()` is the mean
    of nothing, from which a sum starts.

    Raises:
        TypeError: `total` or `size` are not real; what is added is no `Mean`.
        ValueError: the shapes do not match.

    >>> import jax.numpy as jnp, jaxloss
    >>> short, long = jaxloss.Mean(2.0, 1), jaxloss.Mean(3.0, 9)
    >>> print((short + long).value, (short.value + long.value) / 2)
    0.5 1.1666667
    >>> print(sum([short, long, jaxloss.Mean()]).value, jaxloss.Mean().value)
    0.5 0.0
    """

    total: Array
    size: Array

    def __init__(self, total: ArrayLike = 0.0, size: ArrayLike = 0.0):
        total = _wide("total", total)
        size = checks.numeric("size", size, total.dtype)
        if size.shape not in ((), total.shape):
            raise ValueError(
                f"size of shape {size.shape} does not match total of shape {total.shape}: give "
                f"the same shape, or a scalar"
            )
        self._set(total, size)

    def _set(self, total: Any, size: Any) -> None:
        object.__setattr__(self, "total", total)
        object.__setattr__(self, "size", size)

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        reduction: Reduction | SequenceReduction = "mean",
        *,
        weights: ArrayLike | None = None,
        where: ArrayLike | None = None,
        segments: ArrayLike | None = None,
    ) -> "Mean":
        """The mean of `values`: losses of single examples, or what else is measured of them.

        Args:
            values: real numbers or booleans, of any shape.
            reduction: a mean of `Loss`: "mean" (over the examples in `where`), "weighted_mean"
                (over the sum of their weights), "sequence_mean" or "sequence_sum" (over the means,
                or sums, of sequences).
            weights, where: of the values or of their leading axes, as those of `Loss`. What is
                masked, or has weight zero, adds nothing, even if it is NaN.
            segments: which values of a row are a sequence, as in `Loss`.

        Raises:
            TypeError: values are not real, `where` is not boolean.
            ValueError: shapes do not match; the reduction is no mean.

        >>> import jax.numpy as jnp, jaxloss
        >>> right = jnp.array([True, False, True, True])
        >>> print(jaxloss.Mean.of(right, where=jnp.array([True, True, True, False])).value)
        0.6666667
        """
        check_reduction(reduction, sequences=True)
        values = _wide("values", values)
        if weights is not None:
            weights = checks.numeric("weights", weights, values.dtype)
            weights = per_example("weights", weights, values.shape)
        if where is not None:
            where = per_example("where", checks.boolean("where", where), values.shape)
        segments = segments_of(segments, values.shape)
        sizes = total_and_size(values, reduction, weights=weights, where=where, segments=segments)
        return cls(*sizes)

    @property
    def value(self) -> Array:
        """`total / size`; 0, with derivatives of 0, where nothing counts."""
        return per_size(self.total, jnp.broadcast_to(self.size, jnp.shape(self.total)))

    def psum(self, axis_name: str | tuple[str, ...]) -> "Mean":
        """The mean over mapped axes, of `shard_map`, `pmap` or `vmap`."""
        return jax.tree.map(lambda x: lax.psum(x, axis_name), self)

    def __add__(self, other: Any) -> "Mean":
        if isinstance(other, int) and other == 0:  # From which `sum` starts.
            return self
        if type(other) is not type(self):
            return NotImplemented
        return jax.tree.map(jnp.add, self, other)

    __radd__ = __add__

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey
        return ((key("total"), self.total), (key("size"), self.size)), None

    def tree_flatten(self):
        return (self.total, self.size), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        # Leaves may be anything: JAX also builds trees of types, axes and placeholders.
        self = object.__new__(cls)
        self._set(*leaves)
        return self


def _wide(name: str, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return checks.numeric(name, x, compute_dtype(x.dtype if floating else jnp.float32))
