"""Verdicts: claims and records in, intervals, tests and plain words out. Pure.

The decision rule is in ``judging.py``; what the records say about one claim in ``evidence.py`` and
``values.py``; effects, intervals and tests in ``contrasts.py``, ``agreement.py`` and ``resampling.py``; how
many seeds it takes in ``planning.py``; words in ``wording.py``.
"""

from nablab.verdicts.judging import Outcome, Verdict, judge
from nablab.verdicts.resampling import interval_of_mean

__all__ = ["Outcome", "Verdict", "interval_of_mean", "judge"]
