"""nablab: a laboratory for deep learning.

Ask a question, train over seeds, get a verdict::

    import nablab

    run = nablab.run("deep-vs-shallow", preset="quick")
    run.verdicts, run.scalars, run.report("out.html")

Importing this module imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nablab.errors import NablabError, StoreError, UsageError
from nablab.experiment import Claim, Condition, Experiment, Published, Record, Records

if TYPE_CHECKING:
    from nablab.runs import Run, open_run, run

__version__ = "0.1.0"
__all__ = [
    "Claim",
    "Condition",
    "Experiment",
    "NablabError",
    "Published",
    "Record",
    "Records",
    "Run",
    "StoreError",
    "UsageError",
    "open_run",
    "run",
]

_LAZY = {"run": "nablab.runs", "open_run": "nablab.runs", "Run": "nablab.runs"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nablab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
