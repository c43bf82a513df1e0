"""Print the project's requirements, or those of an extra, for pip's command line."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = sys.argv[1:]
chosen = [r for e in extras for r in project["optional-dependencies"][e]] or project["dependencies"]
print(" ".join(chosen))
