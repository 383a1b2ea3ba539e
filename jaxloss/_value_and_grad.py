"""`value_and_grad`: of means over a whole batch, however it is cut or spread over devices."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike

from jaxloss._core import checks
from jaxloss._core.mapped import alike, varying
from jaxloss._core.numerics import compute_dtype, times
from jaxloss._core.reduce import per_size
from jaxloss._mean import Mean

AxisName = str | tuple[str, ...] | None


def value_and_grad(
    objective: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    *,
    weights: Mapping[str, ArrayLike] | None = None,
    microbatches: int | None = None,
    axis_name: AxisName = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""Value and gradient of an objective of means, over the whole batch.

    What `jax.value_and_grad` is for a number. With T and N the total and the size of a term, added
    up over all microbatches m and devices d, and w its weight:

        value = sum_i w_i * (sum_md T_imd) / (sum_md N_imd)

    and the gradient is that of this value, whatever microbatches or devices a batch is cut into
    and however unequal their sizes are.

    Args:
        objective: `objective(params, *batch, **others)` returns its terms: a `Mean` of a scalar,
            or a dictionary of names to such. Its sizes must not have a derivative by the
            parameters.
        argnums: which arguments are parameters, as in `jax.value_and_grad`: trees of floating
            point. All other positional arguments are the batch.
        weights: of terms, by name, numbers or scalars of any real dtype, which may be traced;
            1 for the others. Zero switches a term off, even an infinite one.
        microbatches: into how many parts to cut the batch, along the leading axis of all of its
            arrays, one after the other through the model. Part i has the rows i, i + microbatches,
            and so on, so that rows that are split over devices stay where they are; rows that
            belong together belong in one row, with an axis of their own.
        axis_name: inside `shard_map`, `pmap` or `vmap`, the mapped axes over which the batch is
            split. Results are then those of all devices. Not for batches that are split by their
            sharding, outside of `shard_map`: those need nothing.
        has_aux: whether `objective` returns `(terms, metrics)`, metrics being a tree of Means.

    Returns:
        A function of the arguments of `objective`; keyword arguments are handed to each microbatch
        as they are. It returns `(value, gradient)`, or with `has_aux`
        `((value, (terms, metrics)), gradient)`, with terms and metrics those of the whole batch,
        still as Means. The value has the dtype of the terms, at least float32; the gradient has
        the structure and the dtypes of the parameters, and adds up in float32 (float64 for
        float64). Where a term has no size, its value and gradient are 0.

    Raises:
        TypeError: the objective returns something else; parameters are not floating point.
        ValueError: microbatches do not divide the batch, or arrays of the batch have different
            leading axes; a weight for a term that is not there, or that is no scalar; a size that
            has a derivative by the parameters.

    With microbatches, sizes are added up by a pass of its own, of which XLA keeps only what sizes
    are made of: masks, not the model. Where a size does come from the model, as the number of
    tokens that it routes to an expert, that pass computes it.

    Where parameters differ over `axis_name`, each device gets the gradient by its own. That is
    read off their types, so that under `shard_map(check_vma=False)` parameters must be replicated.

    The result can be differentiated again, forward and reverse.

    References:
        Unsloth, Bugs in LLM Training: Gradient Accumulation Fix, 2024, unsloth.ai/blog/gradient.

    >>> import jax.numpy as jnp, jaxloss
    >>> loss = jaxloss.Loss(jaxloss.squared_error)
    >>> x, y = jnp.array([[1.0], [2.0], [3.0], [4.0]]), jnp.array([1.0, 0.0, 2.0, 1.0])
    >>> where = jnp.array([True, True, False, True])
    >>> objective = lambda w, x, y, where: loss.parts(x @ w, y, where=where)
    >>> step = jaxloss.value_and_grad(objective, microbatches=2)
    >>> value, gradient = step(jnp.array([0.5]), x, y, where)
    >>> print(value, gradient)
    0.75 [3.6666667]
    """
    if not callable(objective):
        raise TypeError(f"objective must be callable, got {type(objective).__name__}")
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(
            f"weights must be a dictionary of names of terms to numbers, got "
            f"{type(weights).__name__}; return {{'name': term}} to name a term"
        )
    if microbatches is not None and (microbatches := operator.index(microbatches)) < 1:
        raise ValueError(f"microbatches must be at least 1, or None, got {microbatches}")

    @functools.wraps(objective)
    def evaluate(*args: Any, **others: Any) -> tuple[Any, Any]:
        which = _positions(argnums, len(args))
        params = tuple(args[i] for i in which)
        batch = {i: arg for i, arg in enumerate(args) if i not in which}

        def terms_of(params: Any, batch: Any) -> tuple[dict[str, Mean], Any]:
            given = batch | dict(zip(which, params, strict=True))
            return _named(objective(*(given[i] for i in range(len(args))), **others), has_aux)

        parts = _Parts(terms_of, weights or {}, axis_name)
        local = tuple(_varying_over(axis_name, p) for p in params)
        if microbatches is None:
            terms, metrics, gradient = parts.at_once(local, batch)
        else:
            terms, metrics, gradient = parts.one_by_one(local, _cut(batch, microbatches))
        terms, metrics = _psum((terms, metrics), axis_name)
        value = parts.weighted(terms, _sizes(terms))
        gradient = jax.tree.map(partial(_whole_gradient, axis_name), params, gradient)
        terms = terms.get(_UNNAMED, terms)
        result = (value, (terms, metrics)) if has_aux else value
        return result, gradient if isinstance(argnums, Sequence) else gradient[0]

    return evaluate


# The name of a term that is alone.
_UNNAMED = ""


@dataclass(frozen=True)
class _Parts:
    """The parts of a batch that this device has."""

    terms_of: Callable[[Any, Any], tuple[dict[str, Mean], Any]]
    weights: Mapping[str, ArrayLike]
    axis_name: AxisName

    def at_once(self, params: Any, batch: Any) -> tuple[Any, Any, Any]:
        return self._part(params, batch, None)

    def one_by_one(self, params: Any, cut: Any) -> tuple[Any, Any, Any]:
        sizes = self.sizes_of_all(params, cut)

        def add(total: Any, i: Array) -> tuple[Any, Any]:
            terms, metrics, gradient = self._part(params, _part_of(cut, i), sizes)
            return jax.tree.map(_add_wide, total, gradient), (terms, metrics)

        start = jax.tree.map(_wide_zeros, params)
        gradient, each = lax.scan(add, start, _count(cut))
        return *_added_up(each), gradient

    def sizes_of_all(self, params: Any, cut: Any) -> dict[str, Array]:
        """The first pass. Of the model, XLA removes what the sizes are not made of."""

        def sizes_of(i: Array) -> dict[str, Array]:
            return _sizes(self.terms_of(params, _part_of(cut, i))[0])

        return _psum(_added_up(lax.map(sizes_of, _count(cut))), self.axis_name)

    def _part(self, params: Any, batch: Any, sizes: Any) -> tuple[Any, Any, Any]:
        """Terms and metrics of a part, and its share of the gradient."""

        def share(*params: Any) -> tuple[Array, Any]:
            terms, metrics = self.terms_of(params, batch)
            own = _sizes(terms)
            for name, size in own.items():
                _underived(name, size, jax.tree.leaves(params)[:1])
            whole = _psum(own, self.axis_name) if sizes is None else sizes
            return self.weighted(terms, whole), (terms, metrics)

        argnums = tuple(range(len(params)))
        (_, aux), gradient = jax.value_and_grad(share, argnums, has_aux=True)(*params)
        return *aux, gradient

    def weighted(self, terms: dict[str, Mean], sizes: dict[str, Array]) -> Array:
        """The sum of the terms by `sizes`, weighted."""
        self._check_names(terms)
        means = {name: per_size(term.total, sizes[name]) for name, term in terms.items()}
        for name, weight in self.weights.items():
            weight = checks.scalar(f"weights[{name!r}]", weight, means[name].dtype)
            means[name] = times(weight, means[name])
        first, *others = means.values()
        return sum(others, first)

    def _check_names(self, terms: Mapping[str, Mean]) -> None:
        for name in self.weights:
            if name not in terms:
                names = ", ".join(map(repr, terms))
                raise ValueError(
                    f"weights has {name!r}, but the terms of the objective are "
                    f"{names if _UNNAMED not in terms else 'one without a name'}"
                )


def _positions(argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    given = argnums if isinstance(argnums, Sequence) else (argnums,)
    which = tuple(operator.index(i) + count * (operator.index(i) < 0) for i in given)
    if not which or len(set(which)) < len(which) or not all(0 <= i < count for i in which):
        raise ValueError(f"argnums={argnums} does not name distinct ones of {count} arguments")
    return which


def _named(out: Any, has_aux: bool) -> tuple[dict[str, Mean], Any]:
    """What an objective returned: terms by name, and metrics."""
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"with has_aux, objective must return (terms, metrics), got {out!r}")
        terms, metrics = out
    else:
        terms, metrics = out, None
    terms = {_UNNAMED: terms} if type(terms) is Mean else terms
    if not (
        isinstance(terms, Mapping) and terms and all(type(term) is Mean for term in terms.values())
    ):
        raise TypeError(
            f"objective must return its terms, a jaxloss.Mean or a dictionary of names to Means, "
            f"as Loss.parts does (with has_aux: terms and metrics), got {terms!r}"
        )
    for name, term in terms.items():
        if jnp.shape(term.total):
            raise ValueError(
                f"term {name!r} has a total of shape {term.total.shape}, but must be a scalar: "
                f"sum it over the examples, as jaxloss.Mean.of does"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(metrics, is_leaf=_is_mean):
        if not _is_mean(leaf):
            raise TypeError(
                f"metrics{jax.tree_util.keystr(path)} must be a jaxloss.Mean, so that it can be "
                f"added up, got {leaf!r}; jaxloss.Mean.of makes one of the values of examples"
            )
    return dict(terms), metrics


def _is_mean(x: Any) -> bool:
    return isinstance(x, Mean)


def _sizes(terms: Mapping[str, Mean]) -> dict[str, Array]:
    return {name: term.size for name, term in terms.items()}


def _underived(name: str, size: Array, by: Any) -> None:
    """Refuse a size that has a derivative; `by` are parameters that have one for sure."""

    @jax.custom_jvp
    def look(size: Array, by: Any) -> Array:
        return size

    @partial(look.defjvp, symbolic_zeros=True)
    def _look_rule(primals, tangents):
        if not isinstance(tangents[0], SymbolicZero):
            term = f"the term {name!r}" if name != _UNNAMED else "the objective"
            raise ValueError(
                f"the size of {term} has a derivative by the parameters, so the mean over the "
                f"whole batch is not the sum of what its parts add: count examples or their "
                f"weights, or say by jax.lax.stop_gradient that the size is a constant"
            )
        return primals[0], jnp.zeros_like(primals[0])

    # The result is not used: this only looks at the derivative by the parameters, to which `by`
    # binds it, and not at those which a caller takes.
    look(size, by)


def _cut(batch: Any, microbatches: int) -> Any:
    """Each array of the batch with the microbatch along a second axis."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    shapes = {f"args{jax.tree_util.keystr(path)}": jnp.shape(leaf) for path, leaf in leaves}
    if not shapes:
        raise ValueError("microbatches needs a batch: an argument that argnums does not name")
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if not other:
            raise ValueError(
                f"{name} is a scalar, which microbatches cannot cut: hand it over by keyword, as "
                f"what is the same for all microbatches"
            )
        if other[0] != shape[0]:
            raise ValueError(
                f"{name} of shape {other} and {first} of shape {shape} differ in their leading "
                f"axis, along which microbatches are cut; what has no such axis goes by keyword"
            )
    rows = shape[0]
    if rows % microbatches:
        more = -rows % microbatches
        raise ValueError(
            f"microbatches={microbatches} does not divide the {rows} rows of the batch ({first} "
            f"of shape {shape}): add {more} masked rows, or choose a divisor of {rows}"
        )
    return jax.tree.map(
        lambda x: jnp.reshape(x, (rows // microbatches, microbatches, *jnp.shape(x)[1:])), batch
    )


def _count(cut: Any) -> Array:
    return jnp.arange(jax.tree.leaves(cut)[0].shape[1])


def _part_of(cut: Any, i: Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 1, keepdims=False), cut)


def _added_up(stacked: Any) -> Any:
    return jax.tree.map(lambda x: jnp.sum(x, 0), stacked)


def _wide(dtype: DTypeLike) -> Any:
    """The dtype that a gradient adds up in."""
    return compute_dtype(dtype) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _wide_zeros(param: ArrayLike) -> Array:
    like = jnp.asarray(param)
    return alike(jnp.zeros_like(like, dtype=_wide(like.dtype)), like)


def _add_wide(total: Array, gradient: Array) -> Array:
    return total + gradient.astype(total.dtype)


def _psum(tree: Any, axis_name: AxisName) -> Any:
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: lax.psum(x, axis_name), tree)


def _names(axis_name: AxisName) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())


def _varying_over(axis_name: AxisName, params: Any) -> Any:
    """A copy of the parameters for each device, so that a gradient is not added up at once."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    names = [name for name in _names(axis_name) if name in manual]

    def cast(x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        missing = tuple(name for name in names if name not in varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, params) if names else params


def _whole_gradient(axis_name: AxisName, param: ArrayLike, gradient: Array) -> Array:
    """Added up over the devices that share a parameter, in the dtype of the parameter."""
    param = jnp.asarray(param)
    shared = tuple(name for name in _names(axis_name) if name not in varying(param))
    gradient = lax.psum(gradient, shared) if shared else gradient
    return gradient.astype(param.dtype)
