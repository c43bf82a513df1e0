"""Verdicts: claims and records in, intervals, tests and plain words out. Pure.

The decision rule is in ``judging.py``. What the records say about one claim is in
``examining.py``, with a file for each kind of test: ``comparisons.py`` (differences
and bounds), ``rank_correlations.py`` (trends and correlations) and ``equivalence.py``;
they share ``evidence.py`` and ``values.py``. Whether the seeds vary at all is in
``spread.py``, how many seeds it takes in ``planning.py``, and whether that many can
decide at all in ``floors.py`` and ``feasibility.py``. Words are in ``wording.py`` and
``effects.py``, what a drawing needs in ``axis.py``, and the answer to the whole
question in ``answering.py``.
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
