"""Instruments: measure any PyTorch module, with error bars and certificates.

They need only PyTorch, NumPy and SciPy (matplotlib for ``plot()``) and are usable alone. A name is imported
when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nablab.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.instruments.costs import Cost, cost
    from nablab.instruments.losses import Closure
    from nablab.instruments.measurement import Measurement
    from nablab.instruments.objective import Objective
    from nablab.instruments.operators import GaussNewtonOperator, HessianOperator

# What `cost` and the command line can call, by the file it is in.
INSTRUMENTS: Mapping[str, str] = {}
_PARTS = {
    "costs": "Cost cost",
    "losses": "Closure",
    "measurement": "Measurement",
    "objective": "Objective",
    "operators": "GaussNewtonOperator HessianOperator",
}

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        file: " ".join([names, *(n for n, home in INSTRUMENTS.items() if home == file)])
        for file, names in {**dict.fromkeys(INSTRUMENTS.values(), ""), **_PARTS}.items()
    },
)

__all__ = [
    "INSTRUMENTS",
    "Closure",
    "Cost",
    "GaussNewtonOperator",
    "HessianOperator",
    "Measurement",
    "Objective",
    "cost",
]
