"""Rows of the losses of survival: an example is a cohort, of which every third is censored."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, Model
from tests.cases._jets import both_case, constant, exp, log1p

# Log-hazards and times; not at one time are the last two cohorts. Of few sizes: each is a program.
POINTS = [
    (np.float32(x), np.float32(t))
    for x, t in (
        ([0.5, -1.0, 2.0, 0.25, 0.0], [3, 1, 3, 2, 3]),
        ([0.0, 0.0, 0.0, 0.0, 0.0], [1, 1, 1, 1, 1]),
        ([20.0, 1.0, 0.0, -3.0, 0.5], [2, 2, 2, 4, 1]),
        ([100.0, 99.25, 40.0, -100.0, -60.0], [5, 4, 5, 4, 4]),
        ([1e7, 0.0, 1e7 - 2, 1e7, 3.0], [0.5, 2, 0.5, 0.25, 0.5]),
        ([1e-4, 0.0, -1e-30, 0.25, 0.25], [1, 3, 2, 0, 5]),
        ([1.5, -0.3, 2.25, 0.6, -4.0], [5, 4, 3, 2, 1]),
    )
]
# The losses count differently, so that it shows whose is whose.
WEIGHTS = 0.5, 2.0, 1.0


def _events(n):
    return np.arange(n) % 3 != 1


def _weighted(losses):
    w = jnp.array(WEIGHTS, losses.dtype)[np.arange(losses.shape[-1]) % 3]
    return jnp.sum(losses * w.reshape((1,) * (losses.ndim - 1) + (-1,)), -1)


def _total(jets):
    return sum(jets, constant(0))


def _log_sum(x):
    """Exact in its tail. Those at risk later and those tied have one each: a formula of its terms
    has an error in the curvature by two of them that is small beside those by either."""
    top = max(range(len(x)), key=lambda i: x[i].value)
    return x[top] + log1p(_total(exp(v - x[top]) for i, v in enumerate(x) if i != top))


def _exact(efron, strata):
    def of(v, _):
        n = len(v) // 2
        x, t = v[:n], [u.value for u in v[n:]]
        out = []
        for i in np.flatnonzero(_events(n)).tolist():
            risk = [j for j in range(n) if t[j] >= t[i] and strata(j) == strata(i)]
            tied = [j for j in risk if t[j] == t[i] and _events(n)[j]]
            later = [x[j] - x[i] for j in risk if j not in tied]
            share = 1 - mpf(tied.index(i)) / len(tied) if efron else mpf(1)
            of_tied = _log_sum([x[j] - x[i] for j in tied]) + mp.log(share)
            loss = _log_sum([of_tied, _log_sum(later)]) if later else of_tied
            out.append(WEIGHTS[i % 3] * loss)
        return _total(out)

    return of


def _naive(x, t, efron=True, strata=lambda i: 0 * i):
    """By the definition, of all pairs."""
    n = np.arange(x.size)
    e, mine = jnp.asarray(_events(x.size)), strata(n)
    risk = (t[None] >= t[:, None]) & (mine[None] == mine[:, None])
    tied = risk & (t[None] == t[:, None]) & e[None]
    before, d = (jnp.sum(a, 1, dtype=x.dtype) for a in (tied & (n[None] < n[:, None]), tied))
    off = before / jnp.maximum(d, 1) if efron else 0 * x
    all_at_risk, all_tied = (jnp.sum(jnp.where(a, jnp.exp(x)[None], 0), 1) for a in (risk, tied))
    whole = all_at_risk - off * all_tied
    return _weighted(jnp.where(e, jnp.log(whole) - x, 0))


def _case(name, ties, strata=lambda i: 0 * i, **fields) -> Case:
    def fn(x, t):
        n = np.arange(x.shape[-1])
        shape = (1,) * (x.ndim - 1) + (-1,)
        events, segments = (a.reshape(shape) for a in (_events(n.size), strata(n)))
        return _weighted(jaxloss.cox_loss(x, t, events, ties=ties, segments=segments))

    return both_case(
        name,
        fn,
        partial(_naive, efron=ties == "efron", strata=strata),
        _exact(ties == "efron", strata),
        POINTS,
        target_gradient=lambda x, y, i: [mpf(0)],
        predictions="real",
        targets="positive",
        sizes=(1, 7, 129),
        **fields,
    )


def _cohorts(rng, n):
    x, t = rng.normal(size=(2, n, 1024)).astype(np.float32)
    return x, (np.exp(t), (rng.uniform(size=t.shape) < 0.6).astype(np.float32))


def _without_ties(x, t, events):
    """As it is mostly written: sorted, and without a word about ties."""
    order = jnp.argsort(-t)
    x, events = x[order], events[order]
    return jnp.mean(events * (jnp.log(jnp.cumsum(jnp.exp(x))) - x))


MODEL = Model(
    fn=lambda x, y: jaxloss.cox_loss(x, *y),
    naive=lambda x, y: jax.vmap(_without_ties)(x, *y),
    sample=_cohorts,
    sizes=(1, 64, 256),
)

CASES = [
    _case("cox_loss", "efron", model=MODEL),
    _case("cox_loss(ties='breslow', segments)", "breslow", strata=lambda i: i // 2 % 2),
]
