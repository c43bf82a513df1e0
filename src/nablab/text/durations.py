"""Times for human readers."""

from __future__ import annotations


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
