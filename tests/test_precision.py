"""Dtypes: half precision computes in float32, float64 stays, labels may be of any kind."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests.cases import CASES
from tests.programs import as_users
from tests.rows import each_kind, follows_its_kind, over, slow
from tests.test_transforms import close, rng, sweep

HALVES = pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16], ids=["f16", "bf16"])
INTEGER = [
    jaxloss.softmax_cross_entropy_with_integer_labels,
    jaxloss.categorical_cross_entropy_with_integer_labels,
]


def spacing(a, dtype):
    """The distance of neighbouring numbers of `dtype` near `a`, NumPy's for any dtype."""
    info = jnp.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(np.asarray(a, np.float64)), float(info.tiny)))
    return np.ldexp(float(info.eps), exponent - 1)


def halved(case, half):
    """A batch in half precision, integer labels aside, and the same batch in float32."""
    x, y = case.random(rng(), 16)
    batch = x.astype(half), y if case.integer else y.astype(half)
    return batch, tuple(a.astype(np.float32) if a.dtype == half else a for a in batch)


@each_kind
@pytest.mark.few(6)
def test_half_precision_computes_in_float32(case):
    run = jax.jit(sweep(case))
    for half in (jnp.float16, jnp.bfloat16):
        batch, upcast = halved(case, half)
        losses, gradients = run(*batch)
        want, exact = run(*upcast)
        assert losses.dtype == jnp.float32
        close(losses, want, 1e-6, 1e-7)
        for got, gradient in zip(gradients, exact, strict=True):
            assert got.dtype == half
            error = np.abs(np.asarray(got, np.float64) - np.asarray(gradient, np.float64))
            assert np.all(error <= spacing(gradient, half))


@each_kind
@pytest.mark.few(12)
def test_dtypes_of_results(case):
    """float64 stays, and float32 too where float64 is enabled; of half losses are float32."""
    wide_floats = {jnp.float64: jnp.float64, jnp.float32: jnp.float32}
    halves = {jnp.float16: jnp.float32, jnp.bfloat16: jnp.float32}
    with jax.enable_x64(True):
        for dtype, result in {**wide_floats, **halves}.items():
            x, y = case.random(rng(), 2, dtype=dtype)
            losses, gradients = jax.eval_shape(sweep(case), x, y)
            assert losses.dtype == result
            assert all(g.dtype == dtype for g in gradients)


@slow
@over([c for c in CASES if not c.integer])
def test_targets_of_another_dtype(case):
    x, y = case.random(rng(), 4, dtype=jnp.bfloat16)
    floats = x.astype(np.float32)
    fn = jax.jit(case.fn)
    close(fn(x, y.astype(np.float32)), fn(floats, y.astype(np.float32)))
    close(fn(x.astype(np.float16), y), fn(x.astype(np.float16).astype(np.float32), y))
    hard = y > 0.3
    for labels in (hard, hard.astype(np.int32), hard.astype(np.uint8)):
        close(fn(x, labels), fn(floats, hard.astype(np.float32)))
    with jax.enable_x64(True):
        assert case.fn(floats, y.astype(np.float64)).dtype == jnp.float32


@pytest.mark.parametrize("classes", [32000, pytest.param(1000, marks=slow)])
@over([c for c in CASES if "softmax" in c.name], follows_its_kind)
def test_sums_over_many_classes(case, classes):
    if classes not in case.sizes:
        pytest.skip("more than its sums are for")
    x, y = case.random(rng(), 2, size=classes)
    got = as_users(sweep(case))(x, y)
    with jax.enable_x64(True):
        targets = y if case.integer else y.astype(np.float64)
        want = jax.jit(sweep(case))(x.astype(np.float64), targets)
    bound = 8 + math.log2(classes)
    for a, b in zip(jax.tree.leaves(got), map(np.asarray, jax.tree.leaves(want)), strict=True):
        scale = np.abs(b)
        if b.shape == x.shape and not case.integer:
            scale = scale + y  # Of p - y, the terms.
        elif b.shape == x.shape and "options" in case.name:
            scale = np.max(scale, -1, keepdims=True)  # Here there are many terms.
        assert np.all(np.abs(np.float64(a) - b) <= bound * spacing(scale, np.float32))


def test_a_vocabulary_in_half_precision():
    fn = jaxloss.softmax_cross_entropy_with_integer_labels
    loss = fn(jnp.zeros(128256, jnp.float16), 7)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, math.log(128256), rtol=3e-7)
    assert f"{loss:.4f}" == "11.7618"


def loss_and_gradient(fn):
    return jax.jit(jax.value_and_grad(lambda x, k: fn(x, k).sum()))


@pytest.mark.parametrize("fn", INTEGER)
def test_integer_label_dtypes(fn):
    """With more classes than int8 has numbers."""
    x = rng().uniform(0.1, 0.9, size=(4, 200)).astype(np.float32)
    run = loss_and_gradient(fn)
    for dtype in "bBhHiIlL":
        labels = np.array([0, 1, 100, 126 if dtype == "b" else 199], np.int32)
        with jax.enable_x64(np.dtype(dtype).itemsize == 8):
            close(run(x, labels.astype(dtype)), run(x, labels), 0, 0)


@pytest.mark.parametrize("fn", INTEGER)
def test_labels_out_of_range_do_not_wrap(fn):
    x = np.full((1, 200), 0.5, np.float32)
    run = loss_and_gradient(fn)
    bad = [np.int8(-1), np.uint8(200), np.int16(200), np.uint32(2**32 - 1)]
    with jax.enable_x64(True):
        for label in [*bad, np.int64(2**32), np.int64(-(2**32)), np.uint64(2**64 - 1)]:
            loss, gradient = run(x, label[None])
            assert np.isnan(loss), label
            assert np.all(np.isnan(gradient)), label


@pytest.mark.parametrize("fn", INTEGER)
@HALVES
def test_settings_in_half_precision(fn, half):
    """Half-precision logits at sizes where half precision itself could not count."""
    x = np.full((2, 5000), 1 / 4096).astype(half)
    labels = np.array([0, 4999], np.uint16)
    options = {"label_smoothing": 0.1} if fn is INTEGER[0] else {}
    got = partial(fn, **options)(x, labels)
    close(got, np.full(2, math.log(5000 if options else 4096)), 1e-6)
