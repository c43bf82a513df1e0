"""Records brought into the form that a drawing takes."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

from nablab.contract import Condition, Record, Records


def side_by_side(
    records: Records, curves: Mapping[str, str], *, curve: str, factor: str
) -> Records:
    """Bring several curves of a trial under one name, so that they can have panels.

    A new factor tells them apart.

    Args:
        records: The trials.
        curves: By level of the new factor, the name of a curve.
        curve: The name that they get.
        factor: The new factor.
    """
    return Records(
        Record(
            Condition(**r.condition, **{factor: level}),
            r.seed,
            {},
            curves={curve: r.curves[name]},
        )
        for level, name in curves.items()
        for r in records
        if name in r.curves
    )


def metrics_side_by_side(
    records: Records, metrics: Mapping[str, str], *, metric: str, factor: str
) -> Records:
    """Bring several metrics of a trial under one name.

    A new factor tells them apart. The value is NaN where a trial lacks a metric.

    Args:
        records: The trials.
        metrics: By level of the new factor, the name of a metric.
        metric: The name that they get.
        factor: The new factor.

    >>> scalars = {"before": 2.0, "after": 1.0}
    >>> trials = Records([Record(Condition(model="deep"), 0, scalars)])
    >>> names = {"as trained": "before", "matched": "after"}
    >>> longer = metrics_side_by_side(trials, names, metric="distance", factor="units")
    >>> [(str(record.condition), record.scalars["distance"]) for record in longer]
    [('model=deep, units=as trained', 2.0), ('model=deep, units=matched', 1.0)]
    """
    return Records(
        Record(
            Condition(**r.condition, **{factor: level}),
            r.seed,
            {metric: r.scalars.get(name, nan)},
        )
        for level, name in metrics.items()
        for r in records
    )
