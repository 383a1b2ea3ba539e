"""Values and derivatives against mpmath, in ulps of the condition scale."""

import jax
import numpy as np
import pytest
from mpmath import mp, mpf

from tests.cases import CASES, FIRST_OF_EACH_KIND
from tests.cases._case import Case
from tests.cases._exact import exactly, groups, reference, target, ulps
from tests.cases._jets import OperandsCase
from tests.programs import as_users
from tests.rows import each_formula, every_row, over, repeats, slow


def assert_exact(case: Case, quantities: str | tuple[str, ...], fn, dtype):
    """`fn` returns the quantity, or several of them in one program."""
    run = as_users(fn)
    with jax.enable_x64(dtype is np.float64):
        got = [run(x, y) for x, y in groups(case, dtype)]
    if isinstance(quantities, str):
        quantities, got = (quantities,), [[x] for x in got]
    for quantity, results in zip(quantities, zip(*got, strict=True), strict=True):
        numbers = np.concatenate([np.asarray(x, np.float64).ravel() for x in results])
        exact = reference(case, quantity)
        errors = [ulps(float(a), *b, dtype) for a, b in zip(numbers, exact, strict=True)]
        worst = int(np.argmax(errors))  # A NaN counts as the largest.
        assert errors[worst] <= case.ulps, (
            f"{quantity} of {case}: {errors[worst]:.3g} ulps at result {worst}, "
            f"{numbers[worst]} for {mp.nstr(exact[worst][0])}"
        )


@each_formula
def test_value_and_gradients(case):
    """As a training step has them, and the value alone beside; by targets where these are real."""

    quantities = ("gradient",) if case.integer else ("gradient", "target_gradient")
    each = jax.vmap(jax.value_and_grad(case.fn, tuple(range(len(quantities)))))

    def run(x, y):
        value, gradients = each(x, y)
        return case.fn(x, y), value, *gradients

    assert_exact(case, ("value", "value", *quantities), run, np.float32)


@over([case for case in CASES if repeats(case)])
def test_value_of_other_settings(case):
    assert_exact(case, "value", case.fn, np.float32)


@slow
@every_row
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_alone(case, dtype):
    assert_exact(case, "value", case.fn, dtype)


@slow
@every_row
@pytest.mark.parametrize(("mode", "dtype"), [(jax.grad, np.float64), (jax.jacfwd, np.float32)])
def test_gradient_alone(case, mode, dtype):
    assert_exact(case, "gradient", jax.vmap(mode(case.fn)), dtype)


@each_formula
def test_hessian(case):
    assert_exact(case, "hessian", jax.vmap(jax.jacfwd(jax.grad(case.fn))), np.float32)


OTHER_HESSIANS = {
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
}


@slow
@over(FIRST_OF_EACH_KIND)
@pytest.mark.parametrize("mode", OTHER_HESSIANS)
def test_hessian_of_other_modes(case, mode):
    """That all modes agree for every row, `test_modes_agree_with_each_other...` shows."""
    assert_exact(case, "hessian", jax.vmap(OTHER_HESSIANS[mode](case.fn)), np.float32)


@slow
@every_row
def test_hessian_in_float64(case):
    assert_exact(case, "hessian", jax.vmap(jax.hessian(case.fn)), np.float64)


@slow
@over([case for case in CASES if not case.integer])
def test_target_gradient_alone(case):
    assert_exact(case, "target_gradient", jax.vmap(jax.grad(case.fn, 1)), np.float64)


@over([c for c in CASES if isinstance(c, OperandsCase) and c.mixed], repeats)
def test_second_derivatives_by_targets(case):
    """Also mixed ones; the table has those by predictions."""
    first, second = case.of
    points = np.stack([np.concatenate([x[:first], y[:second]]) for x, y in case.points])

    def loss(z):
        return case.fn(z[:first], z[first:])

    got = np.asarray(as_users(jax.vmap(jax.hessian(loss)))(points))
    for z, hessian in zip(points, got, strict=True):
        for i in range(first, first + second):
            for j in range(i + 1):
                terms = case.of_all(exactly(z), i, j)
                scale = sum(map(abs, terms))
                error = ulps(float(hessian[i, j]), sum(terms), scale, np.float32)
                assert error <= case.ulps, (z, i, j)


@slow
@over([c for c in CASES if c.gradient and c.hessian and c.differences])
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
