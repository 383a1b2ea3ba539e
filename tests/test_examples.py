"""The examples run, and what they show holds."""

import importlib.util
import math
from pathlib import Path

import jax
import pytest

pytest.importorskip("sklearn", reason="needs jaxloss[examples]")
pytest.importorskip("matplotlib", reason="needs jaxloss[examples]")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _defaults():
    """JAX as users have it: optax itself needs implicit promotions."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits(tmp_path):
    out = tmp_path / "digits.png"
    result = load("digits").main(["--epochs", "20", "--out", str(out)])
    assert result["accuracy"] > 0.95
    # On ordinary logits the naive formula is as good; on large ones it never starts.
    assert result["naive_accuracy"] == pytest.approx(result["accuracy"], abs=0.01)
    assert result["large_first_logit"] > 100
    assert result["large_naive_nan_step"] is not None
    assert result["large_naive_accuracy"] < 0.2
    assert math.isfinite(result["large_last_loss"])
    assert result["large_accuracy"] > 0.9
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size > 20_000


def test_breast_cancer():
    result = load("breast_cancer").main(["--splits", "3"])
    assert list(result) == ["no weights", "pos_weight", "weights"]
    for scores in result.values():
        assert all(0.5 < score <= 1 for score in scores.values())
    assert result["pos_weight"]["recall"] >= result["no weights"]["recall"]
    # The same objective but for a constant factor, which Adam does not see.
    for name, score in result["pos_weight"].items():
        assert result["weights"][name] == pytest.approx(score, abs=0.02)


@pytest.mark.slow
def test_keras_fit():
    # It chooses the backend itself; that jaxloss[examples] has Keras cannot be asked before that.
    result = load("keras_fit").main(["--epochs", "6", "--verbose", "0"])
    assert list(result) == ["object", "function", "name"]
    assert all(accuracy > 0.9 for accuracy in result.values())
    # A missing label and a weight of zero differ only in what the mean is divided by.
    assert result["object"] == pytest.approx(result["function"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx_sparse", "equinox_sparse"])
def test_sparse(name):
    plain, sparse = load(name).main(["--epochs", "6"]).values()
    assert plain["accuracy"] > 0.9
    assert sparse["accuracy"] > 0.9
    assert sparse["activity"] < plain["activity"] / 5


@pytest.mark.slow
def test_train_lm(tmp_path):
    for package in ("flax", "tokenizers"):
        pytest.importorskip(package, reason="needs jaxloss[examples]")
    out = tmp_path / "lm.png"
    few = "--steps 12 --vocab 1000 --megabytes 0.3 --batch 8 --length 32 --features 32 --layers 1"
    rest = ["--chunk", "16", "--rounds", "1", "--out", str(out)]
    result = load("train_lm").main([*few.split(), *rest])
    plain, fused = result["costs"]["plain"], result["costs"]["jaxloss"]
    assert fused.loss == pytest.approx(plain.loss, rel=1e-5)
    assert fused.loss == pytest.approx(math.log(result["vocab"]), abs=0.2)
    assert fused.megabytes < plain.megabytes
    logged, held_out = result["logged"], result["held_out"]
    assert all(len(curve) == 12 for curve in logged.values())
    assert list(held_out) == list(range(13))
    assert held_out[12]["loss"] < held_out[0]["loss"] - 0.1
    assert held_out[12]["perplexity"] == pytest.approx(math.exp(held_out[12]["loss"]), rel=1e-5)
    assert held_out[12]["accuracy"] > held_out[0]["accuracy"]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size > 20_000


def _draws(name, out, *options):
    result = load(name).main([*options, "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
    return result


def test_segmentation(tmp_path):
    scores = _draws("segmentation", tmp_path / "out.png", "--steps", "100")
    assert min(scores.values()) > 0.5


def test_ctc(tmp_path):
    result = _draws("ctc", tmp_path / "out.png", "--steps", "200")
    assert result["last"] < result["first"] / 10
    assert result["right"] > 0.5


def test_hessian(tmp_path):
    sizes = _draws("hessian", tmp_path / "out.png")
    assert sizes["Newton"][-1] < 1e-6 < sizes["gradient descent"][-1]


def test_distillation(tmp_path):
    scores = _draws("distillation", tmp_path / "out.png", "--epochs", "20")
    assert scores["teacher"] > 0.9
    assert scores["student, distilled"] > scores["student, labels"]


def test_contrastive(tmp_path):
    result = _draws("contrastive", tmp_path / "out.png", "--steps", "60")
    assert result["difference"] < 1e-4
    assert result["found"] > 0.8
