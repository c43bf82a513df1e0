"""The whole way in one call: experiment, trials, records, verdicts, report.

This is what ``nablab.run`` and the command line share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.runs.open import open_run as open_run
    from nablab.runs.open import open_store as open_store
    from nablab.runs.result import Run as Run
    from nablab.runs.sources import with_sources as with_sources
    from nablab.runs.start import check_device as check_device
    from nablab.runs.start import make_plan as make_plan
    from nablab.runs.start import rehearse as rehearse
    from nablab.runs.start import run as run
    from nablab.runs.start import run_plan as run_plan

__all__ = [
    "Run",
    "check_device",
    "make_plan",
    "open_run",
    "open_store",
    "rehearse",
    "run",
    "run_plan",
    "with_sources",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "open": "open_run open_store",
        "result": "Run",
        "sources": "with_sources",
        "start": "check_device make_plan rehearse run run_plan",
    },
)
