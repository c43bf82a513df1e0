"""Verdicts: claims and records in, intervals, tests and plain words out. Pure.

The decision rule is in ``judging.py``; what the records say about one claim in ``evidence.py`` and
``values.py``; whether the seeds vary at all in ``spread.py``; effects, intervals and tests in
``contrasts.py``, ``agreement.py``, ``shares.py`` and ``resampling.py``; how many seeds it takes in
``planning.py``; words in ``wording.py``.
"""

from nablab.verdicts.contrasts import interval_of_mean
from nablab.verdicts.judging import Outcome, Verdict, judge

__all__ = ["Outcome", "Verdict", "interval_of_mean", "judge"]
