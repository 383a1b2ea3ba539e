"""What surrounds a formula: converting, checking and masking its inputs, masking its result.

An elementwise loss has a value for each entry, the others one for each row of classes, or of
other entries along an axis. What is masked is replaced before anything is computed of it, so
that no derivative can see it, and the results after.
"""

import jax.numpy as jnp

from jaxloss._core import checks
from jaxloss._core.reports import report


def elementwise(x_name, x, z_name, z, where):
    """Check and convert a prediction, its label and the mask; broadcast them together."""
    (x, z), where = entries(where, **{x_name: x, z_name: z})
    return x, z, where


def entries(where, **operands):
    """Check and convert what each example has, and the mask; broadcast them together.

    The first are predictions, the others numbers, in their dtype.
    """
    (name, first), *others = operands.items()
    x = checks.predictions(name, first)
    converted = [(k, checks.numeric(k, v, x.dtype)) for k, v in others]
    for k, a in converted:
        x = jnp.broadcast_to(x, checks.common_shape(name, x, k, a))
    where = mask_of(where, name, x.shape)
    return [x, *(jnp.broadcast_to(a, x.shape) for _, a in converted)], where


def mask_of(where, name, shape):
    """Check the mask of what has a shape, and broadcast it to that; None stays None."""
    if where is None:
        return None
    where = checks.boolean("where", where)
    checks.fits("where", where, name, shape)
    return jnp.broadcast_to(where, shape)


def mask(where, *arrays):
    """Masked entries become 1/2, inside every domain, before anything is computed of them."""
    if where is None:
        return arrays
    return tuple(jnp.where(where, a, 0.5) for a in arrays)


def masked_setting(where, x):
    """A setting without what is masked; one that all entries have in common stays one number."""
    return mask(where, x)[0] if x.ndim else x


def residual(p, t, where):
    """Prediction less target, 0 where masked."""
    p, t = mask(where, p, t)
    return p - t


def masked(where, loss):
    return loss if where is None else jnp.where(where, loss, 0)


def rows(name, x, axis, where):
    """Make the class axes one, and the mask one over classes."""
    axes, shape = checks.axes(axis, x.ndim), x.shape
    if where is not None:
        where = checks.boolean("where", where)
        if where.ndim == x.ndim - len(axes) and where.ndim:
            checks.fits("where", where, f"rows of {name}", checks.without(shape, axes))
            where = jnp.expand_dims(where, axes)
        checks.fits("where", where, name, shape)
        where = jnp.broadcast_to(where, shape)
    if len(axes) == 1:
        return x, axes[0], where
    where = None if where is None else checks.classes_last(where, axes)
    return checks.classes_last(x, axes), len(shape) - len(axes), where


def dense(x_name, x, y_name, y, axis, where):
    """Check and convert predictions, targets over the same rows, and the mask."""
    x = checks.predictions(x_name, x)
    y = checks.numeric(y_name, given := y, x.dtype)
    integer = jnp.issubdtype(jnp.asarray(given).dtype, jnp.integer)
    # Of vectors, which are "predictions", there are no classes.
    of_classes = y_name in ("labels", "targets") and x_name != "predictions"
    if of_classes and y.ndim == x.ndim - 1 and integer:
        raise ValueError(
            f"{y_name} of shape {y.shape} and {x_name} of shape {x.shape} differ in rank; "
            f"{_one_hot(y_name, x.shape, axis)}"
        )
    shape = checks.common_shape(x_name, x, y_name, y)
    x, y = jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)
    axes = checks.axes(axis, x.ndim)
    x, axis, live = rows(x_name, x, axes, where)
    return x, y if len(axes) == 1 else checks.classes_last(y, axes), axis, live


def _one_hot(name, shape, axis):
    """What to write where integer labels came instead of those over the classes."""
    (axis,) = checks.axes(axis, len(shape)) if axis is not None else (len(shape) - 1,)
    along = "" if axis == len(shape) - 1 else f", axis={axis}"
    return (
        f"integer class labels become jax.nn.one_hot({name}, {shape[axis]}{along}), or are for a "
        f"function whose name ends in _with_integer_labels"
    )


def labels(name, x, labels, axis, ignore_index):
    """Check integer labels, and give them the class axis with size one."""
    labels = checks.integers(
        "labels", labels, "one-hot or soft labels are for the function without integer labels"
    )
    rows = checks.without(x.shape, (axis,))
    if labels.ndim != len(rows):
        raise ValueError(
            f"labels of shape {labels.shape} do not match {name} of shape {x.shape} with classes "
            f"along axis {axis}: expected labels of shape {rows}"
        )
    checks.fits("labels", labels, f"rows of {name}", rows)
    labels = reported_labels(labels, x.shape[axis], ignore_index)
    return jnp.expand_dims(jnp.broadcast_to(labels, rows), axis)


def reported_labels(labels, n, ignore_index):
    """The labels; `checkify` finds those that are not classes."""
    valid = (labels >= 0) & (labels < n)
    if ignore_index is not None:
        valid |= labels == ignore_index
    allowed = f"[0, {n})" if ignore_index is None else f"[0, {n}) or {ignore_index}"
    return report(
        labels,
        jnp.all(valid),
        f"labels must be in {allowed}, but reach from {{low}} to {{high}}",
        low=jnp.min(labels, initial=0),
        high=jnp.max(labels, initial=0),
    )


def labelled(name, x, y, axis, where, ignore_index=None):
    """Check and convert rows of predictions, their integer labels, and the mask."""
    x, axis, live = rows(name, checks.predictions(name, x), axis, where)
    return x, labels(name, x, y, axis, ignore_index), axis, live


def ignore(x, labels, axis, ignore_index):
    """Give rows with the ignored label harmless contents; also return which are kept."""
    if ignore_index is None:
        return x, labels, None
    kept = labels != ignore_index
    return jnp.where(kept, x, 0.5), jnp.where(kept, labels, 0), kept


def not_ignored(where, labels, ignore_index):
    """The mask of examples, without those whose label is ignored."""
    if ignore_index is None:
        return where
    kept = labels != ignore_index
    return kept if where is None else where & kept


def exclude(live, x, fill):
    return x if live is None else jnp.where(live, x, fill)


def live_classes(live, x, axis, fill, empty):
    """Replace what is excluded by `fill`; a row without classes is all `empty`.

    Such a row is dropped at the end (`live_rows`); until then it must stay finite.
    """
    if live is None:
        return x
    return jnp.where(jnp.any(live, axis, keepdims=True), jnp.where(live, x, fill), empty)


def live_rows(live, loss, axis):
    return loss if live is None else jnp.where(jnp.any(live, axis), loss, 0)


def are_probabilities(p, axis):
    """Whether all along the axis, which is kept, can be probabilities."""
    low, defined = jnp.min(p, axis, keepdims=True, initial=0), jnp.sum(p, axis, keepdims=True)
    return (low >= 0) & at_most_one(p, axis) & ~jnp.isnan(defined)


def at_most_one(p, axis):
    """Whether nothing along the axis, which is kept, is above one by more than rounding."""
    one = 1 + 4 * float(jnp.finfo(p.dtype).eps)
    return jnp.max(p, axis, keepdims=True, initial=0) <= one
