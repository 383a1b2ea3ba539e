"""What pages need of others, fetched once from npm, checked, and served with them.

    python -m website.vendor

KaTeX sets the formulas; the worker is for the search in pages that are opened from a disk. A page
so asks nothing of the network, nor does the build.
"""

import hashlib
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "vendor"
# By name and version, the digest of the archive.
PACKAGES = {
    "katex@0.19.1": "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd",
    "iframe-worker@1.0.4": "e8c5d12d87829c503afba01d67772ea9f4aba5b7ae57a0c98e1917711030efbb",
}
KATEX, WORKER = (CACHE / package for package in PACKAGES)


def assets() -> dict[str, bytes]:
    """By its path in the site: scripts, the style, and fonts of one format."""
    for package in PACKAGES:
        if not (CACHE / package).exists():
            raise FileNotFoundError(f"{package} is missing: run `python -m website.vendor` once")
    dist = KATEX / "package/dist"
    css = (dist / "katex.min.css").read_text()
    css = re.sub(r",url\([^)]*\.(?:woff|ttf)\) format\(\"\w+\"\)", "", css)
    fonts = (dist / "fonts").glob("*.woff2")
    return {
        "katex/katex.min.js": (dist / "katex.min.js").read_bytes(),
        "katex/katex.min.css": css.encode(),
        **{f"katex/fonts/{path.name}": path.read_bytes() for path in fonts},
        "iframe-worker.js": (WORKER / "package/shim/index.js").read_bytes(),
    }


def fetch(package: str, digest: str) -> None:
    if (CACHE / package).exists():
        return
    with tempfile.TemporaryDirectory() as temporary:
        command = ["npm", "pack", "--silent", package]
        subprocess.run(command, cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(temporary).glob("*.tgz")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{package} is not what it was")
        with tarfile.open(archive) as tar:
            tar.extractall(CACHE / package, filter="data")


if __name__ == "__main__":
    for package in PACKAGES.items():
        fetch(*package)
