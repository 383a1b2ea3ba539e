"""What is known of a loss beside its docstring: names elsewhere, failures of others, costs."""

import functools
import tomllib
from pathlib import Path
from typing import Any

import optax

from benchmarks import failures, results
from benchmarks.works import NAIVE, OURS

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("losses.toml")
LIBRARIES = {
    "optax": "optax", "keras": "Keras", "tf": "TensorFlow", "torch": "PyTorch", "rax": "rax",
    "rlax": "rlax",
}  # fmt: skip
SPOKEN = {OURS: "jaxloss", NAIVE: "the formula as written", "keras": "Keras", "torch": "PyTorch"}


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """When to use a loss and when not, and its names elsewhere; a loss may be absent."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def elsewhere(name: str) -> dict[str, str]:
    """By library. That optax has the same name need not be said."""
    said = table().get(name, {})
    own = {"optax": f"optax.losses.{name}"} if hasattr(optax.losses, name) else {}
    return {k: v for k in LIBRARIES if (v := {**own, **said}.get(k))}


@functools.cache
def kept() -> dict[str, Any]:
    return results.load(ROOT / "benchmarks/results/cpu.json")


def wrong(name: str) -> list[dict[str, Any]]:
    """What others get wrong of what was measured: what, expected, and by whom what instead."""
    whats = {failure.what for failure in failures.FAILURES if failure.loss == name}
    out: dict[str, dict[str, Any]] = {}
    for row in kept()["failures"]:
        if row["what"] not in whats:
            continue
        about = {"what": row["what"], "expected": row["expected"], "ours": "", "others": []}
        about = out.setdefault(row["what"], about)
        if row["who"] == OURS:
            about["ours"] = row["got"]
        elif not row["right"]:
            about["others"].append((spoken(row["who"]), row["got"]))
    return [about for about in out.values() if about["others"]]


def costs(name: str) -> list[dict[str, Any]]:
    """Of value and gradient of a large batch, by who computes it: seconds, memory, worst errors."""
    at = {}
    for row in kept()["speed"]:
        if row["loss"] == name and row["at"] == "large" and row["mode"] == "returned":
            at[row["peer"]] = {
                "who": spoken(row["peer"]),
                "size": row["size"],
                "seconds": row.get("seconds"),
            }
    at.pop("limit", None)
    for row in kept()["memory"]:
        if row["loss"] == name and row["mode"] == "returned" and row["peer"] in at:
            at[row["peer"]].setdefault("memory", row.get("temporary"))
    for row in kept()["exactness"]:
        if row["loss"] == name and row["dtype"] == "float32" and row["peer"] in at:
            at[row["peer"]][row["quantity"]] = row.get("worst")
    return list(at.values())


def spoken(who: str) -> str:
    return SPOKEN.get(who, who)
