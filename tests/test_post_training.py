"""The page on post-training: what it prints, and losses from hidden states against plain ones."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests.test_docs import ROOT, numbers, run_blocks

pytestmark = pytest.mark.xdist_group("post_training")  # One run of the page.
PAGE = "docs/post_training.md"
BATCH, LENGTH, FEATURES, VOCAB = 4, 5, 8, 50


@functools.cache
def names():
    """Of the page, after it ran."""
    run = {"__name__": "post_training"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run_blocks(PAGE, run)
    return run


def test_page_prints_what_it_says(capsys):
    names.cache_clear()
    names()
    printed = capsys.readouterr().out.splitlines()
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    said = re.findall(r"^(?:print\(.*\)  )?# ((?:\w+: )?[\d.]+.*)$", text, re.M)
    assert len(printed) == len(said) == 7
    for line, comment in zip(printed, said, strict=True):
        np.testing.assert_allclose(numbers(line), numbers(comment), rtol=0.02, err_msg=line)
    logits = 8 * 256 * 128_256 * 4 / 1e6
    for line in printed[3:6]:
        assert numbers(line)[0] < logits / 7


def plain(head, tokens, live):
    hidden, weight = head
    of_all = jax.nn.log_softmax(jnp.einsum("btd,dv->btv", hidden, weight))
    return jnp.where(live, jnp.take_along_axis(of_all, tokens[..., None], -1)[..., 0], 0)


@pytest.mark.parametrize("name", ["dpo", "orpo", "grpo"])
def test_losses_from_hidden_states(name):
    """Those of all logits, with their gradients; the reference has none."""
    rng = np.random.default_rng(0)
    shapes = (BATCH, LENGTH, FEATURES), (FEATURES, VOCAB)
    policy, reference = (
        tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes) for _ in range(2)
    )
    tokens = rng.integers(0, VOCAB, (BATCH, LENGTH))
    live = np.arange(LENGTH) < np.array([[5], [2], [3], [1]])
    old = plain(policy, tokens, live) + rng.normal(size=tokens.shape).astype(np.float32) / 8
    heads = (policy,) if name == "orpo" else (policy, reference)
    rest = (old, np.float32([1, -1, 0.5, 2])) if name == "grpo" else ()
    run = names()

    def value_and_gradients(log_probs):
        loss = run[name]
        given = {**loss.__globals__, "log_probs": log_probs}
        loss = type(loss)(loss.__code__, given)
        of_heads = lambda heads: loss(*heads, tokens, live, *rest)
        return jax.jit(jax.value_and_grad(of_heads))(heads)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        got, want = map(value_and_gradients, (run["log_probs"], plain))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, got, want)
    assert np.isfinite(got[0]) and np.any(got[1][0][1])
    for gradient in jax.tree.leaves(got[1][1:]):
        np.testing.assert_array_equal(gradient, 0)


def test_everything_of_the_families_is_on_the_page():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    for name in jaxloss.__all__:
        module = getattr(jaxloss, name).__module__.rpartition(".")[2]
        if module in ("preference", "policy", "experts"):
            assert f"`{name}`" in text or f"jaxloss.{name}" in text, name


@pytest.mark.slow
def test_example(tmp_path):
    """Both ways, right responses become more frequent, for a divergence from the first model."""
    for package in ("sklearn", "flax"):
        pytest.importorskip(package, reason="needs jaxloss[examples]")
    from tests.test_examples import load

    out = tmp_path / "post_training.png"
    few = "--digits 3 --pretraining 60 --steps 20 --prompts 16 --pairs 200 --features 32 --layers 1"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = load("post_training").main([*few.split(), "--out", str(out)])
    assert list(result["runs"]) == ["GRPO", "DPO"] and result["pairs"] > 100
    for scores in result["runs"].values():
        assert scores[20].reward > scores[0].reward + 0.03
        assert scores[0].kl == 0 and 0.01 < scores[20].kl < 1
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size > 20_000
