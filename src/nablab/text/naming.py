"""Names in code as people say them, the same in verdicts, figures and tables."""

from __future__ import annotations

ACRONYMS = {"auc", "bleu", "fid", "kid", "mae", "mse", "rmse"}


def words(name: str) -> str:
    """Write a metric's or factor's name as words.

    >>> words("held_out_mse"), words("steps_to_threshold")
    ('held-out MSE', 'steps to threshold')
    """
    text = name.replace("held_out", "held-out").replace("_", " ")
    return " ".join(
        part.upper() if part in ACRONYMS else part for part in text.split(" ")
    )


def sentence(text: str) -> str:
    """Capitalize the first letter of a text.

    >>> sentence("held-out MSE")
    'Held-out MSE'
    """
    return text[:1].upper() + text[1:]
