"""Check what got installed.

The wheel and not the checkout, and no CUDA packages beside a CPU torch.
"""

import sys
from importlib import metadata
from pathlib import Path

import torch

import nablab

problems = []
checkout = Path(__file__).resolve().parents[1] / "src"
if Path(nablab.__file__).resolve().is_relative_to(checkout):
    problems.append(
        "the tests would import nablab from the checkout; 'make test' "
        "installs the wheel"
    )
names = {(dist.metadata["Name"] or "").lower() for dist in metadata.distributions()}
unwanted = sorted(
    n for n in names if n in ("torchvision", "triton") or n.startswith("nvidia-")
)
if torch.version.cuda is None and unwanted:
    problems.append(
        f"packages that a CPU build of torch does not need: {', '.join(unwanted)}"
    )
for problem in problems:
    print(f"check_install: {problem}", file=sys.stderr)
build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
print(f"nablab {nablab.__version__} (wheel), torch {torch.__version__} ({build} build)")
sys.exit(bool(problems))
