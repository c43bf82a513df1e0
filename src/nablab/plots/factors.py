"""Records brought into the form that a drawing takes."""

from __future__ import annotations

from collections.abc import Mapping

from nablab.experiment import Condition, Record, Records


def side_by_side(records: Records, curves: Mapping[str, str], *, curve: str, factor: str) -> Records:
    """Several curves of a trial under one name, told apart by a new factor, so that they can have panels.

    Args:
        records: The trials.
        curves: By level of the new factor, the name of a curve.
        curve: The name that they get.
        factor: The new factor.
    """
    return Records(
        Record(Condition(**r.condition, **{factor: level}), r.seed, {}, curves={curve: r.curves[name]})
        for level, name in curves.items()
        for r in records
        if name in r.curves
    )
