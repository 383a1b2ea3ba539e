"""Values and derivatives against mpmath, in ulps of the condition scale."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from tests.cases import CASES
from tests.cases._case import Case

CASES_BY_NAME = {case.name: case for case in CASES}
EXACT = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.xdist_group(c.name)) for c in CASES], ids=str
)


def exactly(a) -> list:
    return [mpf(float(v)) for v in np.ravel(a)]


def target(case: Case, y):
    return int(y) if case.integer else exactly(y)


def groups(case: Case, dtype):
    """The case's points in arrays, one pair for each number of classes."""
    for points in _by_size(case).values():
        kind = np.int32 if case.integer else dtype
        x = jnp.asarray(np.stack([p for p, _ in points]), dtype)
        yield x, jnp.asarray(np.stack([np.asarray(t, kind) for _, t in points]))


def _by_size(case: Case) -> dict[int, list]:
    by_size: dict[int, list] = {}
    for x, y in case.points:
        by_size.setdefault(np.size(x), []).append((x, y))
    return by_size


@functools.cache
def reference(name: str, quantity: str) -> list[tuple[mpf, mpf]]:
    """Exact results and their scales, in the order of `groups`, flattened."""
    case, out = CASES_BY_NAME[name], []
    rank = {"value": 0, "gradient": 1, "target_gradient": 1, "hessian": 2}[quantity]
    for n, points in _by_size(case).items():
        for x, y in points:
            for index in np.ndindex(*(n,) * rank):
                terms = case.terms(quantity, exactly(x), target(case, y), *index)
                total = sum(terms, mpf(0))
                out.append((total, sum((abs(t) for t in terms), mpf(0))))
    return out


def ulps(got: float, exact: mpf, scale: mpf, dtype) -> float:
    """The error of `got` in ulps of the scale, less what a few terms may flush to zero."""
    info = np.finfo(dtype)
    if abs(exact) > float(info.max):  # By a target it may be a huge number instead.
        return 0.0 if got * math.copysign(1, exact) >= float(info.max) / 8 else math.inf
    tiny = float(info.tiny)
    error = max(abs(mpf(got) - exact) - 4 * tiny, mpf(0))
    return float(error / mpf(float(np.spacing(dtype(min(max(scale, tiny), float(info.max)))))))


def assert_exact(case: Case, quantity: str, fn, dtype):
    got = [np.asarray(jax.jit(fn)(x, y), np.float64).ravel() for x, y in groups(case, dtype)]
    pairs = zip(np.concatenate(got), reference(case.name, quantity), strict=True)
    errors = [ulps(float(a), *b, dtype) for a, b in pairs]
    worst = int(np.argmax(errors))  # A NaN counts as the largest.
    assert errors[worst] <= case.ulps, (
        f"{quantity} of {case}: {errors[worst]:.3g} ulps at result {worst}, "
        f"{np.concatenate(got)[worst]} for {mp.nstr(reference(case.name, quantity)[worst][0])}"
    )


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@EXACT
def test_value(case, dtype):
    assert_exact(case, "value", case.fn, dtype)


@EXACT
@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_gradient(case, dtype, mode):
    assert_exact(case, "gradient", jax.vmap(mode(case.fn)), dtype)


HESSIANS = {
    "forward over reverse": lambda f: jax.jacfwd(jax.grad(f)),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
}


@EXACT
@pytest.mark.parametrize("mode", HESSIANS)
def test_hessian(case, mode):
    assert_exact(case, "hessian", jax.vmap(HESSIANS[mode](case.fn)), np.float32)


@EXACT
def test_hessian_in_float64(case):
    with jax.enable_x64(True):
        assert_exact(case, "hessian", jax.vmap(jax.hessian(case.fn)), np.float64)


@EXACT
def test_target_gradient(case, dtype):
    if not case.integer:
        assert_exact(case, "target_gradient", jax.vmap(jax.grad(case.fn, 1)), dtype)


@pytest.mark.parametrize("case", [c for c in CASES if c.gradient and c.hessian], ids=str)
def test_terms_are_derivatives(case):
    """The table itself: its gradient and Hessian terms are derivatives of its value."""
    for x, y in [p for p in case.points if np.all(np.abs(p[0]) < 10)][::7]:
        a, b = exactly(x), target(case, y)
        if case.predictions != "logits" and not all(0.01 < v < 0.99 for v in a):
            continue

        def total(*v, b=b):
            return sum(case.value(list(v), b), mpf(0))

        for i in range(len(a)):
            order = tuple(int(k == i) for k in range(len(a)))
            close(mp.diff(total, tuple(a), order), case.terms("gradient", a, b, i))
            for j in range(i + 1):
                order = tuple(int(k == i) + int(k == j) for k in range(len(a)))
                close(mp.diff(total, tuple(a), order), case.terms("hessian", a, b, i, j))


def close(numerical, terms):
    assert abs(numerical - sum(terms, mpf(0))) <= mpf("1e-15")
