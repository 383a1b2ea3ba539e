"""The public face: names, signatures, docstrings, agreement with optax where it is right."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxloss
import jaxloss.keras
import jaxloss.tf
from tests.cases import CASES

# A function of labels, one that makes losses, those that add them up, those of counts, and metrics.
NOT_LOSSES = (
    "smooth_labels",
    "make_fenchel_young_loss",
    "total_loss",
    "uncertainty_weighting",
    "value_and_grad",
    "class_weights_from_counts",
    "classification_metrics",
    "logit_adjustment",
)
CLASSES = ("Loss", "Mean")
LOSSES = [name for name in jaxloss.__all__ if name not in CLASSES]


def test_all_is_sorted_and_complete():
    assert jaxloss.__all__ == sorted(jaxloss.__all__)
    public = {
        name
        for name, value in vars(jaxloss).items()
        if getattr(value, "__module__", "").startswith("jaxloss.") and not name.startswith("_")
    }
    assert public == set(jaxloss.__all__)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in NOT_LOSSES])
def test_every_loss_has_a_case(name):
    assert any(case.function == name for case in CASES)


@pytest.mark.parametrize("module", [jaxloss, jaxloss.tf], ids=["jaxloss", "tf"])
def test_docstrings(module):
    for name in module.__all__:
        doc = getattr(module, name).__doc__
        wanted = ["Args", "Raises:", ">>> "] if name in CLASSES else ["Args", "eturns", "Referen"]
        for part in wanted:
            assert part in doc, f"{name} lacks {part}"


def test_docstrings_of_keras_classes_and_functions():
    for name in set(jaxloss.keras.__all__) - {"LogitsWarning", "Reduction"}:
        assert ">>> " in getattr(jaxloss.keras, name).__doc__, name


def test_has_every_loss_of_optax():
    theirs = {name for name, value in vars(optax.losses).items() if inspect.isfunction(value)}
    assert theirs <= set(jaxloss.__all__)


@pytest.mark.parametrize("name", [n for n in LOSSES if hasattr(optax.losses, n)])
def test_signature_begins_like_optax(name):
    ours = inspect.signature(getattr(jaxloss, name)).parameters
    theirs = inspect.signature(getattr(optax.losses, name)).parameters
    for parameter in theirs.values():
        assert ours[parameter.name].kind == parameter.kind
        if parameter.default is not parameter.empty:
            assert ours[parameter.name].default == parameter.default
    extra = [p for p in ours.values() if p.name not in theirs]
    assert all(p.kind is p.KEYWORD_ONLY for p in extra)
    positional = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [p.name for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("case", [c for c in CASES if c.optax], ids=str)
def test_agrees_with_optax(case):
    x, y = case.random(np.random.default_rng(0), 4, 7)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        results = []
        for f in (case.fn, case.optax):
            losses, pull = jax.vjp(jax.jit(lambda v, f=f: f(v, y)), x)
            results.append((losses, *pull(jnp.ones_like(losses))))
        (ours, our_gradient), (theirs, their_gradient) = results
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(our_gradient, their_gradient, rtol=2e-4, atol=1e-6)


def test_smooth_labels_agrees_with_optax():
    y = np.random.default_rng(0).dirichlet(np.ones(5), 7).astype(np.float32)
    for options in ({}, {"axis": 0}, {"where": np.tile([True, True, False, True, True], (7, 1))}):
        ours = jaxloss.smooth_labels(y, 0.1, **options)
        with jax.numpy_dtype_promotion("standard"):
            theirs = optax.losses.smooth_labels(y, 0.1, **options)
        live = options.get("where", True)
        np.testing.assert_allclose(np.where(live, ours, 0), np.where(live, theirs, 0), rtol=1e-6)
