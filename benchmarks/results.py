"""Results as JSON: rows of each kind of measurement, and the machine that they are from."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

Row = dict[str, Any]
# One file for each kind of device is kept.
KEPT = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "numpy", "optax", "keras", "rax", "tokamax", "torch")


def machine() -> Row:
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def default_path() -> Path:
    return KEPT / f"{jax.devices()[0].device_kind.lower().replace(' ', '-')}.json"


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def save(path: Path, kind: str, rows: list[Row], settings: Row) -> None:
    """Put the rows in place of those of their kind; of another machine, nothing is kept."""
    here = machine()
    old = load(path) if path.exists() else {}
    kept = old if old.get("machine") == here else {}
    settings = {**kept.get("settings", {}), kind: settings}
    data = {**kept, "machine": here, "settings": settings, kind: rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, default=_plain, sort_keys=True) + "\n")


def _plain(x: Any) -> Any:
    if isinstance(x, np.generic | np.ndarray):
        return x.tolist()
    raise TypeError(f"cannot write {type(x)} as JSON")
