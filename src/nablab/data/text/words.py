"""Texts as words: `tokenize`."""

from __future__ import annotations

import re

# A word: letters or digits, with apostrophes and hyphens inside ("don't", "well-made").
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
WORD_OR_MARK = re.compile(rf"{WORD.pattern}|[.,;:!?()\"]")


def tokenize(text: str, *, punctuation: bool = False) -> list[str]:
    """Split a text into words in lower case.

    Args:
        text: Any text.
        punctuation: Whether marks such as ``!`` count as words; otherwise they are left
            out.

    >>> tokenize("It isn't a well-made film!")
    ['it', "isn't", 'a', 'well-made', 'film']
    >>> tokenize("Why?", punctuation=True)
    ['why', '?']
    """
    pattern = WORD_OR_MARK if punctuation else WORD
    return pattern.findall(text.lower())
