"""Two processes, each with devices of its own, give the loss and gradients of one."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss

PROCESSES, DEVICES = 2, 2  # Devices of each process.
N, D, V = 24, 6, 40
TIMEOUT = 300  # Seconds.
ROOT = Path(__file__).parents[2]


def operands():
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(N, D)).astype(np.float32)
    weight = draw.normal(size=(D, V)).astype(np.float32)
    labels = draw.integers(0, V, N).astype(np.int32)
    labels[::5] = -1
    return hidden, weight, labels


def loss(hidden, weight, labels, **settings):
    return jaxloss.linear_cross_entropy(
        hidden, weight, labels, ignore_index=-1, chunk_size=5, z_loss=1e-2, **settings
    )


def by_vocabulary(mesh):
    """Each device has some classes of the weight, and all tokens."""
    specs = P(), P(None, "i"), P()
    for sweep in ("tokens", "stored", "vocab"):
        local = lambda *args, sweep=sweep: loss(*args, axis_name="i", implementation=sweep)
        yield sweep, jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()), specs


def by_tokens(mesh):
    """Each device has some tokens, and the whole weight."""
    specs = P("i"), P(), P("i")

    def local(hidden, weight, labels):
        count = lax.psum(jnp.sum(labels != -1, dtype=jnp.float32), "i")
        return lax.psum(loss(hidden, weight, labels, reduction="sum"), "i") / count

    yield "shard_map", jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()), specs
    yield "automatic", loss, specs


def both_ways(mesh):
    for kind in (by_vocabulary, by_tokens):
        for name, fn, specs in kind(mesh):
            yield f"{kind.__name__}, {name}", fn, specs


def value_and_gradients(fn):
    return jax.value_and_grad(fn, (0, 1))


def worker(port: int, process: int) -> None:
    """What each process runs: all losses, compared by the parent with those of one process."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, process)
    assert jax.process_count() == PROCESSES
    assert len(jax.devices()) == PROCESSES * DEVICES
    mesh = jax.make_mesh((PROCESSES * DEVICES,), ("i",), axis_types=(AxisType.Auto,))
    arrays, results = operands(), {}
    for name, fn, specs in both_ways(mesh):
        shardings = [NamedSharding(mesh, spec) for spec in specs]
        # Of each array, a process makes the parts that its own devices hold.
        placed = [
            jax.make_array_from_callback(a.shape, s, lambda index, a=a: a[index])
            for a, s in zip(arrays, shardings, strict=True)
        ]
        everywhere = NamedSharding(mesh, P())
        run = jax.jit(value_and_gradients(fn), out_shardings=everywhere)
        value, gradients = run(*placed)
        results[name] = [np.asarray(x).tolist() for x in (value, *gradients)]
    print(json.dumps(results), flush=True)
    jax.distributed.shutdown()


def start(port: int, process: int, out: Path) -> subprocess.Popen:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    command = [sys.executable, "-m", "tests.linear.test_processes", str(port), str(process)]
    with out.open("w") as stdout, out.with_suffix(".err").open("w") as stderr:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def outputs(folder: Path) -> list[str]:
    """What the processes print; if one fails or hangs, an error with what each of them said."""
    files, port = [folder / f"{i}.out" for i in range(PROCESSES)], free_port()
    processes = [start(port, i, file) for i, file in enumerate(files)]
    end = time.monotonic() + TIMEOUT
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() for process in processes):
                end = min(end, time.monotonic() + 3)  # The others wait for the one that failed.
            time.sleep(0.1)
        statuses = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(status != 0 for status in statuses):
        said = [
            f"process {i}, exit status {status} (None: still running)\n{file.read_text()}"
            f"{file.with_suffix('.err').read_text()[-4000:]}"
            for i, (status, file) in enumerate(zip(statuses, files, strict=True))
        ]
        pytest.fail("\n\n".join(said), pytrace=False)
    return [file.read_text() for file in files]


def test_two_processes_are_as_one(tmp_path):
    want = [np.asarray(x) for x in jax.tree.leaves(jax.jit(value_and_gradients(loss))(*operands()))]
    for output in outputs(tmp_path):
        results = json.loads(output.splitlines()[-1])
        assert len(results) == 5
        for name, got in results.items():
            for x, exact in zip(got, want, strict=True):
                np.testing.assert_allclose(x, exact, rtol=1e-5, atol=1e-6, err_msg=name)


if __name__ == "__main__":
    worker(*map(int, sys.argv[1:]))
