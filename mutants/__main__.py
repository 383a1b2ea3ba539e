"""Change the code in many small ways, and count what the tests notice."""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxloss
from mutants.changes import Change, changes

ROOT = Path(__file__).parents[1]
PACKAGES = ("_core", "_families", "linear")
# By the declaration or the case table, of every loss.
GENERIC = [
    f"tests/test_{name}.py"
    for name in ("exact", "masks", "edges", "transforms", "everywhere", "precision", "checks")
]
TIME_LIMIT = 900  # Seconds, after which a change that makes the tests hang is taken as noticed.


def tests_of(module: str) -> list[str]:
    """Arguments of pytest: the tests of a module's family, or for the core all of the library's."""
    package, _, name = module.removeprefix("jaxloss/").removesuffix(".py").rpartition("/")
    if package == "_families":
        home = f"jaxloss._families.{name}"
        own = [n for n in jaxloss.__all__ if getattr(jaxloss, n).__module__ == home]
        file = f"tests/families/test_{name}.py"
        files = [file] if (ROOT / file).exists() else []
        return [*files, *GENERIC, module, "-k", " or ".join([f"test_{name}", name, *own])]
    if package.startswith("linear"):
        return ["tests/linear", *GENERIC, module, "-k", "linear"]
    return ["tests", "jaxloss", *(f"--ignore=tests/{n}" for n in ("aot", "keras", "test_docs.py"))]


def sample(size: int, seed: int) -> list[Change]:
    """So many changes, of a line each: long expressions do not count more than short ones."""
    by_line = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / "jaxloss" / package).rglob("*.py")):
            module = str(path.relative_to(ROOT))
            for change in changes(module, path.read_text()):
                by_line[module, change.line].append(change)
    rng = random.Random(seed)
    lines = rng.sample(sorted(by_line), min(size, len(by_line)))
    return [rng.choice(by_line[line]) for line in lines]


def copy_of_the_tree() -> Path:
    copy = Path(tempfile.mkdtemp(prefix="mutants-"))
    for name in ("jaxloss", "tests", "benchmarks", "aot", "examples", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    return copy


def tried(change: Change, tree: Path, suite: list[str]) -> dict:
    path = tree / change.module
    source = path.read_text()
    command = [sys.executable, "-m", "pytest", "-x", "-n0", "-p", "no:cacheprovider", *suite]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    start = time.perf_counter()
    try:
        path.write_text(change.applied(source))
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
        )
        # 5: pytest found no tests.
        noticed, output = done.returncode not in (0, 5), done.stdout
    except subprocess.TimeoutExpired:
        noticed, output = True, ""
    finally:
        path.write_text(source)
    by = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    seconds = round(time.perf_counter() - start, 1)
    return {**asdict(change), "noticed": noticed, "by": by[:200], "seconds": seconds}


def main():
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="how many changes (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--jobs", type=int, default=2, help="changes tried at once (2)")
    parser.add_argument("--module", help="only changes of modules whose path contains this")
    parser.add_argument("--results", type=Path, help="a JSON file; what it has is not run again")
    parser.add_argument("--list", action="store_true", help="print the sample, and run nothing")
    options = parser.parse_args()
    chosen = [c for c in sample(options.sample, options.seed) if (options.module or "") in c.module]
    if options.list:
        print(*chosen, sep="\n")
        return
    results = options.results
    rows = json.loads(results.read_text()) if results and results.exists() else []
    known = {(r["module"], r["start"], r["after"]) for r in rows}
    chosen = [c for c in chosen if (c.module, c.start, c.after) not in known]
    trees: SimpleQueue[Path] = SimpleQueue()
    for _ in range(options.jobs):
        trees.put(copy_of_the_tree())

    def run(change):
        tree = trees.get()
        try:
            return tried(change, tree, tests_of(change.module))
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(options.jobs) as pool:
        for row in track(pool.map(run, chosen), "Changes", total=len(chosen)):
            rows.append(row)
            if results:
                results.write_text(json.dumps(rows, indent=1))
    for _ in range(options.jobs):
        shutil.rmtree(trees.get())
    report(rows)


def report(rows):
    table = Table("noticed", "of", "modules", title="Changes that the tests notice")
    by_package = defaultdict(list)
    for row in rows:
        for key in (row["module"], "all"):
            by_package[key].append(row["noticed"])
    for name, noticed in sorted(by_package.items()):
        table.add_row(str(sum(noticed)), str(len(noticed)), name)
    console = Console()
    console.print(table)
    for row in rows:
        if not row["noticed"]:
            fields = {k: row[k] for k in Change.__dataclass_fields__}
            console.print(f"not noticed: {Change(**fields)}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
