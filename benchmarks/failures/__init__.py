"""What others get wrong, run live: a row turns right when its library mends it.

`rows()` has a row for us and for each peer of each failure: `what` is computed, what is `expected`
to within `tolerance`, `who` computed it, what they `got`, and whether that is `right`. A library
that is not installed is left out.
"""

import warnings
from typing import Any

import jax

from benchmarks.failures import binary, categorical, linear, others, post_training
from benchmarks.failures._failure import Failure, evaluated, shown
from benchmarks.peers import installed
from benchmarks.works import OURS

FAILURES: list[Failure] = [
    *binary.FAILURES,
    *categorical.FAILURES,
    *others.FAILURES,
    *linear.FAILURES,
    *post_training.FAILURES,
]


def rows(failures: list[Failure] | None = None) -> list[dict[str, Any]]:
    return [row for failure in failures or FAILURES for row in _rows(failure)]


def _rows(failure: Failure) -> list[dict[str, Any]]:
    about = {
        "what": failure.what,
        "expected": shown(failure.right),
        "tolerance": None if failure.holds else failure.tolerance,
    }
    peers = {who: run for who, run in failure.peers.items() if installed(who)}
    out = []
    for who, run in {OURS: failure.ours, **peers}.items():
        # Peers need JAX's defaults, and warn.
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            got = evaluated(run)
        out.append({**about, "who": who, "got": shown(got), "right": failure.holds_for(got)})
    return out


__all__ = ["FAILURES", "Failure", "rows"]
