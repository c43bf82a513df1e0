"""Times for human readers."""

from __future__ import annotations

# What an estimate is rounded to, in seconds, by how long it is.
ROUNDED_TO = ((10, 1), (60, 5), (300, 30), (3600, 60), (36000, 300))
LONG = 3600  # of anything longer


def duration(seconds: float) -> str:
    """Write a time for human readers.

    >>> duration(0.44), duration(9.97), duration(75), duration(120), duration(7300)
    ('0.4 s', '10 s', '1 min 15 s', '2 min', '2 h 1 min')
    """
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def roughly(seconds: float) -> str:
    """Write an estimated time, without digits that nobody can know.

    >>> [roughly(seconds) for seconds in (0.2, 3.7, 33, 75, 700, 7300, 40_000)]
    ['1 s', '4 s', '35 s', '1 min', '12 min', '2 h', '11 h']
    """
    unit = next((unit for below, unit in ROUNDED_TO if seconds < below), LONG)
    rounded = max(1, round(seconds / unit)) * unit
    return f"{rounded} s" if rounded < 60 else duration(rounded)
