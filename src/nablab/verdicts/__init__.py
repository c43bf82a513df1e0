"""Verdicts: claims and records in, intervals, tests and plain words out. Pure.

The decision rule is in ``judging.py``; what the records say about one claim in
``evidence.py`` and ``values.py``; whether the seeds vary at all in ``spread.py``; how
many seeds it takes in ``planning.py``, and whether so many can decide at all in
``floors.py`` and ``feasibility.py``; words in ``wording.py`` and ``effects.py``; what a
drawing needs in ``axis.py``; and the answer to the whole question in ``answering.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.verdicts.answering import answer
    from nablab.verdicts.axis import Axis
    from nablab.verdicts.feasibility import Undecidable, undecidable
    from nablab.verdicts.judging import Outcome, Verdict, judge

__all__ = [
    "Axis",
    "Outcome",
    "Undecidable",
    "Verdict",
    "answer",
    "judge",
    "undecidable",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "answering": "answer",
        "axis": "Axis",
        "feasibility": "Undecidable undecidable",
        "judging": "Outcome Verdict judge",
    },
)
