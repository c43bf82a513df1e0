"""Print the project's requirements, or those of an extra, for pip's command line.

With --alone: the packages that an extra takes without what they ask for (see
tool.nablab.alone).
"""

import sys
import tomllib
from pathlib import Path

settings = tomllib.loads(Path("pyproject.toml").read_text())
project, alone = settings["project"], settings["tool"]["nablab"]["alone"]
extras = [word for word in sys.argv[1:] if word != "--alone"]
if "--alone" in sys.argv:
    chosen = [r for e in extras for r in alone[e]]
else:
    chosen = [
        r for e in extras for r in project["optional-dependencies"][e]
    ] or project["dependencies"]
print(" ".join(chosen))
