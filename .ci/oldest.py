"""Print the oldest versions that pyproject.toml claims to work with, as constraints of pip.

Of what the library and its extras stand on; of the tools that test them the newest are taken.
"""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = ("keras", "optax", "examples")

requirements = [*PROJECT["dependencies"]]
for extra in EXTRAS:
    requirements += PROJECT["optional-dependencies"][extra]
for requirement in requirements:
    if found := re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement):
        print(f"{found[1]}=={found[2]}")
