"""The public face: names, signatures, docstrings, agreement with optax where it is right."""

import inspect
import operator
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxloss
import jaxloss.keras
import jaxloss.tf
from jaxloss._names import ELSEWHERE, short
from tests.cases import CASES
from tests.declared import FUNCTIONS

LOSSES = [fn.__name__ for fn in FUNCTIONS]
TOOLS = {"Loss", "Mean", "takes"}  # Their docstrings cite nothing.


def test_all_is_sorted_and_complete():
    assert jaxloss.__all__ == sorted(jaxloss.__all__)
    public = {
        name
        for name, value in vars(jaxloss).items()
        if getattr(value, "__module__", "").startswith("jaxloss.") and not name.startswith("_")
    }
    assert public == set(jaxloss.__all__)


LAZY = """
import sys
import jaxloss
assert {"keras", "tf"} <= set(dir(jaxloss))
assert not {"jaxloss.keras", "jaxloss.tf"} & set(sys.modules)
assert jaxloss.tf.__name__ == "jaxloss.tf" and "jaxloss.keras" not in sys.modules
print(jaxloss.keras.mean_squared_error([[1.0]], [[3.0]]), "keras" in sys.modules)
"""


def test_faces_are_loaded_on_first_use():
    run = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, timeout=300)
    assert run.stdout == "[4.] False\n", run.stderr[-2000:]


def suggested(module, name):
    with pytest.raises(AttributeError, match=f"no attribute {name!r}") as caught:
        getattr(module, name)
    return str(caught.value).rpartition("did you mean ")[2].removesuffix("?").split(" or ")


MODULES = [jaxloss, jaxloss.keras, jaxloss.tf]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_names_of_other_modules_are_suggested(module):
    """And what is suggested is there."""
    for other in MODULES:
        for name in (n for n in other.__all__ if not hasattr(module, n)):
            assert f"{other.__name__}.{name}" in suggested(module, name)
    for name in (n for n in ELSEWHERE if not hasattr(module, n)):
        for path in suggested(module, name):
            assert callable(operator.attrgetter(path.partition(".")[2])(jaxloss))
    assert not hasattr(module, "__wrapped__") and not hasattr(module, "quite_another_thing")


def test_no_name_elsewhere_is_ours():
    assert not {short(name) for name in jaxloss.__all__} & set(ELSEWHERE)
    assert all(short(name) == name for name in ELSEWHERE)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BCEWithLogitsLoss", "jaxloss.sigmoid_binary_cross_entropy"),
        ("binary_cross_entropy_with_logits", "jaxloss.sigmoid_binary_cross_entropy"),
        ("CrossEntropyLoss", "jaxloss.softmax_cross_entropy_with_integer_labels"),
        ("cross_entropy", "jaxloss.softmax_cross_entropy_with_integer_labels"),
        ("MSELoss", "jaxloss.squared_error"),
        ("SmoothL1Loss", "jaxloss.smooth_l1_loss"),
        ("CTCLoss", "jaxloss.ctc_loss"),
        ("MeanSquaredError", "jaxloss.keras.MeanSquaredError"),
        ("as_keras_loss", "jaxloss.keras.as_keras_loss"),
        ("softmax_cross_entropy_with_logits", "jaxloss.tf.softmax_cross_entropy_with_logits"),
        ("softmax_crossentropy", "jaxloss.softmax_cross_entropy"),
        ("tripletmargin_lss", "jaxloss.triplet_margin_loss"),
    ],
)
def test_an_unknown_name_suggests_what_is_meant(name, meant):
    assert suggested(jaxloss, name) == [meant]
    assert not hasattr(jaxloss, name)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_case(name):
    assert any(case.function == name for case in CASES)


@pytest.mark.parametrize("module", [jaxloss, jaxloss.tf], ids=["jaxloss", "tf"])
def test_docstrings(module):
    for name in module.__all__:
        doc = getattr(module, name).__doc__
        wanted = ["Args", "Raises:", ">>> "] if name in TOOLS else ["Args", "eturns", "Referen"]
        for part in wanted:
            assert part in doc, f"{name} lacks {part}"


def test_docstrings_of_keras_classes_and_functions():
    for name in set(jaxloss.keras.__all__) - {"LogitsWarning", "Reduction"}:
        assert ">>> " in getattr(jaxloss.keras, name).__doc__, name


def test_has_every_loss_of_optax():
    theirs = {name for name, value in vars(optax.losses).items() if inspect.isfunction(value)}
    assert theirs <= set(jaxloss.__all__)


@pytest.mark.parametrize("name", [n for n in jaxloss.__all__ if hasattr(optax.losses, n)])
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
