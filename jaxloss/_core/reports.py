"""What goes wrong at run time, for who asks `jax.experimental.checkify` for it.

`checkify.debug_check` would do, but it has an effect, and with an effect a compiled function is
called in JAX's slow way: 70 microseconds a call, to be paid by all who check nothing. So a report
is the identity on something that the loss goes on to use, and means something to `checkify` only.
The table of rules of that is private: where it is not found, a report is a `debug_check`.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import checkify
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_report = Primitive("jaxloss_report")


def report(x: Array, ok: Array, message: str, **numbers: Array) -> Array:
    """`x`; unless `ok`, `checkify` finds the message, formatted with the numbers, all scalars."""
    if KNOWN_TO_CHECKIFY:
        return _report.bind(x, ok, *numbers.values(), message=message, names=tuple(numbers))
    checkify.debug_check(ok, message, **numbers)
    return x


@_report.def_impl
@_report.def_abstract_eval
def _identity(x, *_, **__):
    return x


def _lower(_, x, *__, **___):
    return [x]


def _differentiate(primals, tangents, **params):
    return _report.bind(*primals, **params), tangents[0]


def _batch(operands, axes, **params):
    (x, *rest), (x_axis, *rest_axes) = operands, axes
    sizes = [a.shape[axis] for a, axis in zip(rest, rest_axes, strict=True) if axis is not None]
    if sizes:
        ok, *numbers = (
            batching.bdim_at_front(a, axis, sizes[0])
            for a, axis in zip(rest, rest_axes, strict=True)
        )
        # As `checkify` does it, the numbers of the last that fails; by sums, which may be sharded.
        place = lax.iota(jnp.int32, sizes[0])
        last = place == jnp.max(jnp.where(ok, -1, place), initial=-1)
        rest = [jnp.all(ok), *(jnp.sum(n, where=last, dtype=n.dtype) for n in numbers)]
    return _report.bind(x, *rest, **params), x_axis


def _functionalize(*operands, message, names):
    """The rule of `checkify`: of its own operands, and those of the report."""
    # Before the error there is a context in JAX 0.12, and nothing in 0.10.
    *context, error, enabled = operands[: -2 - len(names)]
    x, ok, *numbers = operands[-2 - len(names) :]

    def check(ok, *numbers):
        checkify.debug_check(ok, message, **dict(zip(names, numbers, strict=True)))

    jaxpr = jax.make_jaxpr(check)(ok, *numbers)
    error, _ = _private.checkify_jaxpr(*context, jaxpr, enabled, error, ok, *numbers)
    return error, x


mlir.register_lowering(_report, _lower)
ad.primitive_jvps[_report] = _differentiate
batching.primitive_batchers[_report] = _batch
try:
    from jax._src import checkify as _private

    _private.error_checks[_report] = _functionalize
    KNOWN_TO_CHECKIFY = callable(_private.checkify_jaxpr)
except (ImportError, AttributeError):
    KNOWN_TO_CHECKIFY = False
