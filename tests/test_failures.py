"""The benchmarks of exactness and of what others get wrong: they see errors, and ours has none."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import exactness, failures
from benchmarks.failures import FAILURES, Failure
from benchmarks.works import works

# What takes seconds to compile or to trace; the rest is tried every time.
LONG = "CTC", "MB", "linear"


def _long(failure):
    marks = [pytest.mark.slow] if any(word in failure.what for word in LONG) else []
    return pytest.param(failure, marks=marks, id=failure.what)


@pytest.mark.parametrize("failure", [_long(f) for f in FAILURES])
def test_ours_is_right(failure):
    ours = failures.rows([Failure(**{**vars(failure), "peers": {}})])
    assert [row["right"] for row in ours] == [True], ours


def test_every_failure_is_named_once_and_somebody_elses():
    names = [failure.what for failure in FAILURES]
    assert len(set(names)) == len(names)
    assert all(failure.peers for failure in FAILURES)


def _raises(error):
    def run():
        raise error("no (2,)")

    return run


NAN = float("nan")


@pytest.mark.parametrize(
    "right, got, correct",
    [
        (1.0, 1.0004, True),
        (1.0, 1.002, False),
        (1.0, NAN, False),
        ((2e-9, -2e-9), np.float32([2e-9, -2e-9]), True),
        ((2e-9, -2e-9), np.float32([2e-9, 0]), False),
        (0.0, 1e-4, True),
        (0.0, 0.1, False),
        (0.0, np.zeros(2), False),
        (0.0, np.zeros(0), False),
        (NAN, NAN, True),
        (NAN, 1.0, False),
        (float("inf"), float("inf"), True),
        (float("inf"), 1e5, False),
        (1.0, TypeError, False),
        ("ValueError", ValueError, True),
        ("ValueError", TypeError, False),
        ("ValueError", 1.0, False),
    ],
)
def test_what_a_peer_gets_is_judged(right, got, correct):
    run = _raises(got) if isinstance(got, type) else lambda: got
    failure = Failure(what="stub", right=right, ours=run, peers={"formula of a stub": run})
    ours, theirs = failures.rows([failure])
    assert (ours["who"], theirs["who"]) == ("jaxloss", "formula of a stub")
    assert ours["right"] == theirs["right"] == correct


def test_words_are_checked():
    def judged(got):
        stub = {"ours": lambda: got, "peers": {}, "holds": np.isfinite}
        (row,) = failures.rows([Failure(what="stub", right="finite", **stub)])
        return row["right"]

    assert judged(jnp.ones(2)) and not judged(jnp.array([1, NAN]))
    # An array of nothing says nothing.
    assert not judged(jnp.zeros(0))


def test_peers_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(failures, "installed", lambda who: who == "keras")
    stub = {"ours": lambda: 0.0, "peers": {"keras": lambda: 0.0, "torch, chunked": lambda: 0.0}}
    rows = failures.rows([Failure(what="stub", right=0.0, **stub)])
    assert [row["who"] for row in rows] == ["jaxloss", "keras"]


NAMES = ["sigmoid_binary_cross_entropy", "softmax_cross_entropy_with_integer_labels", "huber_loss"]


@pytest.fixture
def defaults():
    """Peers do not run under strict promotion."""
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("name", NAMES)
def test_quick_exactness(name):
    (work,) = works([name], ["optax"])
    rows = list(exactness.rows(work, quick=True))
    assert [(row["quantity"], row["peer"]) for row in rows] == [
        (quantity, peer) for quantity in ("value", "gradient") for peer in work.losses
    ]
    for row in rows:
        assert row["count"] >= 4 and row["median"] <= row["worst"]
        if row["peer"] == "jaxloss":
            assert row["worst"] <= work.case.ulps and not row["not_finite"]


@pytest.mark.usefixtures("defaults")
def test_wrong_results_of_a_peer_are_counted():
    (work,) = works(["sigmoid_binary_cross_entropy"])
    ours = work.losses["jaxloss"]
    one_percent = lambda x, y: ours(x, y) * jnp.asarray(1.01, x.dtype)
    sometimes = lambda x, y: jnp.where(x > 1e3, NAN, ours(x, y))

    def reversible(x, y):
        raise TypeError("no gradient")

    work.losses.clear()
    work.losses.update(a=one_percent, b=sometimes, c=reversible)
    rows = list(exactness.rows(work, dtypes=("float32",)))
    a, b, c = (next(r for r in rows if r["peer"] == peer) for peer in "abc")
    assert 0.01 * 2**22 < a["worst"] < 0.01 * 2**24
    # Of 144 points, those of logit 1e4 and any of six labels.
    assert (b["count"], b["not_finite"]) == (144, 6) and b["worst"] <= work.case.ulps
    assert c["error"] == "TypeError: no gradient" and "worst" not in c


@pytest.mark.usefixtures("defaults")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["hinge_loss", "squared_log_error", "binary_cross_entropy"])
def test_rounded_points_are_not_moved_to_kinks(name):
    (work,) = works([name], ["optax"])
    ours = [r for r in exactness.rows(work, dtypes=("bfloat16",)) if r["peer"] == "jaxloss"]
    assert len(ours) == 3 and all(r["count"] and not r["not_finite"] for r in ours)
    assert all(r["worst"] <= 1 for r in ours)
