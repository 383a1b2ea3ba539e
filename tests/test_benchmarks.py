"""The benchmarks run, compare equal work, and leave nothing out."""

import dataclasses
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aot import programs as aot_programs
from benchmarks import (
    compare,
    memory,
    models,
    peers,
    pictures,
    programs,
    report,
    results,
    speed,
    works,
)
from benchmarks.__main__ import REPEATS, parser, path_of
from benchmarks.works import NAIVE, OURS
from tests.cases import FIRST_ROWS
from tests.rows import slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def defaults():
    """optax does not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_quick(tmp_path):
    """As a newcomer runs it; a page without anything from elsewhere."""
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    data = results.load(path)
    losses = {row["loss"] for row in data["speed"]}
    assert len(losses) == 3
    for kind in ("memory", "compile", "exactness"):
        assert {row["loss"] for row in data[kind]} == losses
    assert all(row["right"] for row in data["failures"] if row["who"] == OURS)
    page = (tmp_path / "results" / "report.html").read_text()
    assert page.count("<img") == len(pictures.PICTURES) and not re.search(
        r'(src|href)="(?!data:)', page
    )
    # The second run compares with the first: nothing is missing.
    assert compare.missing(path, path) == []
    assert all(row["is"] == "same" for row in compare.changes(path, path))


def test_every_function_is_timed():
    named = {work.name for work in works.works()}
    assert named == {case.function for case in FIRST_ROWS}
    assert peers.peers().keys() <= named
    for work in works.works():
        optax_too = work.case.optax is not None and "optax" not in work.losses
        assert not optax_too, f"{work.name} has optax's function in the table, and not here"


@pytest.mark.parametrize(
    "size", [lambda work: work.sizes[0], pytest.param(lambda work: work.full, marks=slow)]
)
@pytest.mark.parametrize("work", works.works(), ids=str)
def test_every_function_takes_its_batch(work, size):
    batch = work.batch(size(work))
    for name in (OURS, NAIVE):
        losses = jax.eval_shape(programs.mean_of(work.losses[name]), *batch)
        assert losses.shape == () and losses.dtype == jnp.float32


def stub(**losses):
    (work,) = works.works(["squared_error"])
    return works.Work(
        **{f: getattr(work, f) for f in work.__dataclass_fields__ if f not in ("losses", "sizes")},
        losses={k: v for k, v in work.losses.items() if k in (OURS, NAIVE)} | losses,
        sizes=(works.Size("small", 16, 16), works.Size("large", 32, 16)),
    )


def fails(x, y):
    raise ValueError("not\nhere")


def test_a_peer_counts_only_if_it_computes_the_same():
    work = stub(
        another=lambda x, y: 2 * (x - y) ** 2,
        plausible=lambda x, y: jax.lax.stop_gradient((x - y) ** 2),
        broken=fails,
        same=lambda x, y: (x - y) * (x - y),
    )
    rows = list(speed.rows(work, repeats=1, quick=True))
    assert [row["peer"] for row in rows] == [*work.losses, programs.LIMIT]
    assert {row["peer"]: speed.equal(row) for row in rows} == {
        OURS: True, NAIVE: True, "another": False, "plausible": False, "broken": False,
        "same": True, programs.LIMIT: True,
    }  # fmt: skip
    best = speed.best_peer(rows)
    assert best is not None and best["peer"] == "same"
    shown = report._unequal(rows)
    assert all(name in shown for name in ("another", "plausible", "broken", "ValueError: not"))


@pytest.mark.parametrize("mode", programs.MODES)
@pytest.mark.parametrize("work", works.works(["huber_loss", "linear_cross_entropy"]), ids=str)
def test_the_programs_compute_the_same(work, mode):
    if work.name.startswith("linear"):
        pytest.importorskip("optax")
    batch = work.batch(work.sizes[0], mode)
    ours = programs._numbers(programs.runner(OURS, work.loss(OURS, mode), mode, batch)())
    for peer in work.losses:
        theirs = programs._numbers(programs.runner(peer, work.loss(peer, mode), mode, batch)())
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.max(np.abs(a)))


# XLA's CPU backend computes most losses in passes over their inputs alone, when the gradient is
# consumed. An array at full size, a tenth of the speed, is one select or one shared constant away.
# These write one, and why:
WRITES = {
    "softmax_cross_entropy_with_integer_labels": "a select of the label's class",
    "generalized_cross_entropy": "a select of the label's class",
    "binary_cross_entropy": "a term of no weight is 0, whatever its logarithm; selects",
    "categorical_cross_entropy": "a term of no weight is 0, whatever its logarithm; selects",
    "categorical_cross_entropy_with_integer_labels": "the labels as a row of numbers; selects",
    "softmax_focal_loss": "the complement of the largest probability, by a select",
    "asymmetric_loss": "clipping at a probability, and the side of a half, by selects",
    "absolute_error": "the difference, of which there are value and sign",
    "quantile_loss": "the difference, of which there are value and sign",
    "gaussian_nll": "the difference, of which there are square and slope",
    "absolute_percentage_error": "overflow and a target of 0, by selects",
    "squared_log_error": "a difference of logarithms that is exact",
    "wing_loss": "a select of the side of the kink",
    "hinge_loss": "a select of the side of the kink",
    "squared_hinge_loss": "what the margin is missed by, of which there are square and slope",
    "perceptron_loss": "a select of the side of the kink",
    "multiclass_hinge_loss": "selects of the label's class and of the largest scores",
    "multiclass_perceptron_loss": "selects of the label's class and of the largest scores",
    "categorical_hinge_loss": "a score of -inf is excluded, by selects",
    "sparsemax_loss": "selects of the sides of its corners",
    "multiclass_sparsemax_loss": "a select of the label's class",
    "entmax_loss": "the normaliser, by Newton's method, and the powers; selects",
    "entmax15_loss": "the normaliser, by Newton's method, and a select of the label's class",
    "general_robust_loss": "a logarithm and a power that are exact at every alpha, by selects",
    "smooth_l1_loss": "the error by beta, of which there are value and slope",
    "expectile_loss": "the difference, of which there are square and slope",
    "laplace_nll": "the difference, of which there are size and sign; its limits, by selects",
    "student_t_nll": "a logarithm that does not overflow, by selects",
    "negative_binomial_nll": "gamma functions of counts, by selects",
    "gamma_nll": "a deviance that is exact for good fits, by selects",
    "tweedie_loss": "a deviance that is exact for good fits, by selects",
    "gaussian_crps": "the error in scales, whose error function and density are wanted",
    "js_divergence": "the logarithm of a mixture, exact by selects",
    "distillation_loss": "a logit of -inf excludes a class, by selects; the gap of both rows",
}
# And these where the caller computes the targets: an array then, which their passes share.
WRITES_TARGETS = {
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "safe_softmax_cross_entropy",
    "poly_loss_cross_entropy",
    "poisson_nll",
    "squared_error",
    "l2_loss",
    "huber_loss",
    "log_cosh",
    "cosine_similarity",
    "cosine_distance",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "generalized_kl_divergence",
    "convex_kl_divergence",
    "ranking_softmax_loss",
}
# What a caller computes targets of a kind by.
COMPUTED = {
    "sign": lambda z: 2 * z - 1,
    "bit": lambda z: 1 - z,
    "distribution": lambda z: z / jnp.sum(z, -1, keepdims=True),
    "log distribution": lambda z: z - jax.nn.logsumexp(z, -1, keepdims=True),
    "probability": lambda z: 0.9 * z + 0.05,
    "positive": lambda z: 1.5 * z + 0.1,
    "real": lambda z: 1.5 * z + 0.1,
    "integer": lambda k: k % 1000,
}
ARRAYS = [work for work in works.works() if work.case.model is None]


def test_the_tables_of_what_writes_name_losses():
    assert not WRITES.keys() & WRITES_TARGETS
    assert WRITES.keys() | WRITES_TARGETS <= {work.name for work in ARRAYS}


@pytest.mark.parametrize("targets", ["given", pytest.param("computed", marks=slow)])
@pytest.mark.parametrize("work", ARRAYS, ids=str)
def test_no_pass_writes_an_array(work, targets):
    """But those that the tables name, which are exact: what no longer writes leaves them."""
    ours, computed = work.losses[OURS], COMPUTED[work.case.targets]
    loss = ours if targets == "given" else lambda x, z: ours(x, computed(z))
    batch = jax.tree.map(memory.shape_of, work.batch(work.full))
    compiled = programs.lowered(loss, "consumed", batch).compile()
    writes = compiled.memory_analysis().temp_size_in_bytes >= 0.2 * 4 * batch[0].size
    assert writes == (work.name in WRITES or (work.name in WRITES_TARGETS and loss is not ours))


def row(loss, peer, ratio, mode="layer", at="large", size="9 x 9"):
    about = {"loss": loss, "at": at, "size": size, "mode": mode, "peer": peer}
    return {**about, "difference": 0.0, "seconds": 1.0, "spread": 0.1, "ours_by_theirs": ratio}


def test_the_report_says_where_we_lose():
    rows = [
        row("slow", OURS, 1.0), row("slow", "optax", 1.2), row("slow", "keras", 1.05),
        row("fast", OURS, 1.0), row("fast", "optax", 0.1), row("fast", NAIVE, 1.4),
        row("plain", OURS, 1.0), row("plain", NAIVE, 1.6), row("plain", "torch", 3.0),
        row("fast", "optax", 1.3, at="small"), row("fast", "optax", 1.4, mode="forward"),
        row("fast", "keras", 1.7) | {"difference": 1.0},
    ]  # fmt: skip
    # Of the other JAX libraries the fastest, which here are equally fast, is the first.
    lost = [
        line.split(" | ")[:3] + line.split(" | ")[4:]
        for line in report._lost(rows).splitlines()[6:]
    ]
    assert lost == [
        ["| plain", "layer", "large", "naive", "1.60 |"],
        ["| fast", "forward", "large", "optax", "1.40 |"],
        ["| fast", "layer", "small", "optax", "1.30 |"],
        ["| slow", "layer", "large", "optax", "1.20 |"],
    ]
    assert "Nowhere" in report._lost(rows[3:6])


def test_the_report_has_a_line_of_each_mode_and_size():
    rows = [row("slow", "optax", 1.5), row("fast", "optax", 0.1)]
    rows += [row("fast", OURS, 1.0), row("fast", OURS, 1.0, at="small", size="3 x 3")]
    rows += [row("fast", "optax", 0.5, at="small", size="3 x 3"), row("fast", "optax", 2.0, "step")]
    shown = "\n".join(report._summary(rows))
    np.testing.assert_allclose(pictures.geometric_mean([1.5, 0.1]), 0.15**0.5)
    assert "| layer | large | 2 | 0.39 | 1 | 1.50 (slow) |" in shown
    assert "| layer | small | 1 | 0.50 | 0 | 0.50 (fast) |" in shown
    assert "| step | large | 1 | 2.00 | 1 | 2.00 (fast) |" in shown
    assert "small 3 x 3; large 9 x 9" in shown


def test_compare_sees_beyond_the_noise(tmp_path):
    def file(name, ours, temporary, spread=0.05):
        times = {OURS: ours, programs.LIMIT: 1.0}
        speeds = [row("a", p, 1.0) | {"seconds": t, "spread": t * spread} for p, t in times.items()]
        path = tmp_path / f"{name}.json"
        results.save(path, "speed", speeds, {})
        results.save(path, "memory", [row("a", OURS, 1.0) | {"temporary": temporary}], {})
        return path

    base = file("base", 2.0, 10**6)
    for name, args, expected in (
        ("same", (2.1, 10**6), {"same"}),
        ("slower", (2.6, 10**6), {"worse", "same"}),
        ("noisy", (2.6, 10**6, 0.3), {"same"}),
        ("larger", (2.0, 2 * 10**6), {"worse", "same"}),
        ("better", (1.0, 10**6), {"better", "same"}),
    ):
        assert {row["is"] for row in compare.changes(base, file(name, *args))} == expected, name
    gone = tmp_path / "gone.json"
    gone.write_text(json.dumps({"speed": {}, "memory": {}}))
    assert len(compare.missing(base, gone)) == 2


def test_results_of_another_machine_are_not_mixed(tmp_path):
    path = tmp_path / "r.json"
    speeds = [row("a", OURS, np.float32(1))]
    sizes = [row("a", OURS, 1.0) | {"temporary": jnp.finfo(jnp.float32).bits}]
    results.save(path, "speed", speeds, {})
    results.save(path, "memory", sizes, {})
    data = results.load(path)
    assert data.keys() == {"machine", "settings", "speed", "memory"} and data["speed"] == speeds
    data = json.loads(path.read_text()) | {"machine": {"device": "another"}}
    path.write_text(json.dumps(data))
    results.save(path, "memory", sizes, {})
    assert results.load(path).keys() == {"machine", "settings", "memory"}


def test_rows_are_kept_as_they_were():
    """But for the digits, and what a kind of row does not keep."""
    for kind, (names, columns) in results.COLUMNS.items():
        full = dict.fromkeys(names, "name") | {c: 1 + i / 10**6 for i, c in enumerate(columns)}
        bare = {**dict.fromkeys(names, "name"), names[0]: "another", "unknown": 1}
        assert list(results._rows(kind, results._table(kind, [full, bare]))) == [
            {k: 1.0 if k in columns else v for k, v in full.items()},
            {k: v for k, v in bare.items() if k != "unknown"},
        ]


@pytest.mark.parametrize(
    "options", ["--quick", "--loss=squared_error", "--peer=optax", f"--repeats={REPEATS - 1}"]
)
def test_a_part_is_never_written_over_the_whole(options):
    args = parser().parse_args(["speed", options])
    assert path_of(args).parent == results.PARTIAL
    for more in (f"--output={results.default_path()}", "--readme"):
        with pytest.raises(SystemExit):
            path_of(parser().parse_args(["speed", options, more]))
    assert path_of(parser().parse_args(["speed"])).parent == results.KEPT
    ignored = ["git", "check-ignore", str(results.PARTIAL / "cpu.json")]
    assert subprocess.run(ignored, cwd=ROOT, capture_output=True).returncode in (0, 128)


def test_what_is_kept_is_small():
    for path in results.KEPT.glob("*.json"):
        assert path.stat().st_size < 200_000, path
        lines = path.read_text().splitlines()
        rows = sum(len(of) for of in results.load(path).values() if isinstance(of, list))
        assert len(lines) < rows + 100, path
    for path in [*results.KEPT.glob("*/*.svg"), *ROOT.glob("docs/images/*.svg")]:
        assert path.stat().st_size < 100_000, path
        assert "prefers-color-scheme: dark" in path.read_text(), path


def test_models_are_timed_and_failures_shown(monkeypatch):
    case = aot_programs._head("head", 64, 32, 500)
    monkeypatch.setattr(models, "installed", lambda program: program.needs is None)
    broken = aot_programs.Program("broken", lambda mesh: lambda *_: fails(0, 0))
    case = dataclasses.replace(case, programs=(*case.programs, broken))
    rows = {row["program"]: row for row in models.rows(case, repeats=1)}
    ours = {"jaxloss tokens", "jaxloss stored", "jaxloss vocab"}
    assert rows.keys() == ours | {"naive", "broken", programs.LIMIT}
    assert rows["naive"]["difference"] < 0.02 and rows["naive"]["seconds"] > 0
    assert "ValueError" in rows["broken"]["error"]
    shown = report._models(list(rows.values()))
    assert all(name in shown for name in rows) and "ValueError" in shown


def test_every_model_has_operands():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    for case in models.cases():
        operands = jax.eval_shape(partial(models.operands, case, mesh))
        assert [o.shape for o in operands] == [s.shape for s in case.shapes(mesh)]
        assert all(case.classes for o in operands if o.dtype == jnp.int32)


def test_the_peak_is_of_a_process_alone():
    """Not of the one that starts it, which is larger."""
    large = np.ones(2**27)
    code = "from benchmarks import memory; print(memory.process_peak())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True)
    assert 2**20 < int(run.stdout) < large.nbytes
