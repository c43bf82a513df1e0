"""nablab: a laboratory for deep learning.

Ask a question, train over seeds, get a verdict::

    import nablab

    run = nablab.run("deep-vs-shallow", preset="quick")
    run.verdicts, run.scalars, run.report("out.html")

Importing this module imports neither torch nor numpy. Import it before torch: then the
threads of PyTorch sleep while they wait, in your own program too, unless you have set
``OMP_WAIT_POLICY``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names
from nablab.threads import wait_passively
from nablab.version import VERSION

if TYPE_CHECKING:
    from nablab.contract import (
        Answer,
        Claim,
        Condition,
        Experiment,
        Published,
        Record,
        Records,
        Reported,
    )
    from nablab.errors import NablabError, StoreError, UsageError
    from nablab.runs import Run, open_run, run

wait_passively()  # before anything here can load PyTorch

__version__ = VERSION
__all__ = [
    "Answer",
    "Claim",
    "Condition",
    "Experiment",
    "NablabError",
    "Published",
    "Record",
    "Records",
    "Reported",
    "Run",
    "StoreError",
    "UsageError",
    "open_run",
    "run",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "contract": "Answer Claim Condition Experiment Published Record Records Reported",
        "errors": "NablabError StoreError UsageError",
        "runs": "Run open_run run",
    },
)
