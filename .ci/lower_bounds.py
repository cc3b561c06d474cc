"""Print every direct dependency in pyproject.toml at its lower bound, as pip's requirements."""

import re
import tomllib
from pathlib import Path

# name or name[extra], and the number after >= or ==
BOUND = re.compile(r"([\w-]+(?:\[[\w,-]+\])?)[>=]=([\d.]+)")

project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
    for requirement in requirements:
        if found := BOUND.match(requirement):  # the package's own extras have none
            print("==".join(found.groups()))
