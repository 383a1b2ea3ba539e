"""KaTeX, which sets the formulas: fetched once from npm, checked, and served with the pages.

    python -m website.katex
"""

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.19.1"
SHA256 = "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd"
FOLDER = Path(__file__).parents[1] / ".cache" / f"katex-{VERSION}"


def assets() -> dict[str, bytes]:
    """What pages need, by its path: the script, the style, and fonts of one format."""
    if not FOLDER.exists():
        raise FileNotFoundError(f"{FOLDER} is missing: run `python -m website.katex` once")
    css = (FOLDER / "katex.min.css").read_text()
    css = re.sub(r",url\([^)]*\.(?:woff|ttf)\) format\(\"\w+\"\)", "", css)
    fonts = {f"fonts/{path.name}": path.read_bytes() for path in (FOLDER / "fonts").glob("*.woff2")}
    script = (FOLDER / "katex.min.js").read_bytes()
    return {"katex.min.js": script, "katex.min.css": css.encode(), **fonts}


def fetch() -> None:
    if FOLDER.exists():
        return
    with tempfile.TemporaryDirectory() as temporary:
        command = ["npm", "pack", "--silent", f"katex@{VERSION}"]
        subprocess.run(command, cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        archive = Path(temporary, f"katex-{VERSION}.tgz")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise ValueError(f"{archive.name} is not the one that is expected")
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        shutil.copytree(Path(temporary, "package/dist"), FOLDER)


if __name__ == "__main__":
    fetch()
