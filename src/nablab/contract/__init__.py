"""The contract of nablab: what an experiment, a condition, a record and a claim are.

An experiment is one file in ``nablab/experiments``: a frozen dataclass that derives
from `Experiment`. Its docstring is its page, its fields are its configuration. This
package imports neither torch nor numpy, so that listing the experiments costs nothing.
"""

from __future__ import annotations

from nablab.contract.claims import Answer, Claim, Kind, Published, Reported, Scale
from nablab.contract.conditions import (
    Condition,
    Level,
    Trial,
    Trials,
    grouped,
    levels_of,
    shared_levels,
    text_of,
)
from nablab.contract.experiment import TOPICS, Experiment, plain
from nablab.contract.figure import Figure
from nablab.contract.laboratory import Lab, Seeds
from nablab.contract.needs import Needs
from nablab.contract.records import Curve, Record, Records, Scalar

__all__ = [
    "TOPICS",
    "Answer",
    "Claim",
    "Condition",
    "Curve",
    "Experiment",
    "Figure",
    "Kind",
    "Lab",
    "Level",
    "Needs",
    "Published",
    "Record",
    "Records",
    "Reported",
    "Scalar",
    "Scale",
    "Seeds",
    "Trial",
    "Trials",
    "grouped",
    "levels_of",
    "plain",
    "shared_levels",
    "text_of",
]
