"""Typed settings: read from text and from Python, checked, and told in words.

What experiments write beside their fields::

    epochs: Epochs = 10                                    # a number with bounds
    shares: Annotated[tuple[Share, ...], Distinct()] = (0.0, 1.0)

Kinds of texts stand where they belong: `nablab.data.fields`, `nablab.models.fields`.
"""

from __future__ import annotations

from nablab.settings.bounds import (
    Epochs,
    Factor,
    NotNegative,
    Pixels,
    Positive,
    Samples,
    Share,
    Steps,
)
from nablab.settings.kinds import Distinct, Kind, Rising
from nablab.settings.limits import Ge, Gt, Le, Lt

__all__ = [
    "Distinct",
    "Epochs",
    "Factor",
    "Ge",
    "Gt",
    "Kind",
    "Le",
    "Lt",
    "NotNegative",
    "Pixels",
    "Positive",
    "Rising",
    "Samples",
    "Share",
    "Steps",
]
