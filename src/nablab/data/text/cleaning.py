"""Texts without what is left of the page that they were taken from."""

from __future__ import annotations

import html
import re

# "&lt;", and what is left of it where a program has dropped the "&": "lt;", "#36;".
ENTITY = re.compile(
    r"&(\w+|#\d+|#x[\da-f]+);|(?<![\w&])(#\d+|#x[\da-f]+|quot|amp|lt|gt|nbsp|apos);",
    re.IGNORECASE,
)
# An apostrophe as AG News has it, with a space that was not there: "it #39;s".
APOSTROPHE = re.compile(
    r"\s*(?:&|(?<!\w))#39;(?=(?:s|t|d|m|re|ve|ll)\b)", re.IGNORECASE
)
# Elements of HTML. "<AAPL.O>" is none: a ticker symbol is text.
TAG = re.compile(
    r"</?(?:a|b|br|cite|em|font|i|img|li|meta|nobr|p|span|strong|table|td|tr|u|ul)"
    r"(?:[\s/][^<>]*)?>",
    re.IGNORECASE,
)
SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    r"""Return a text without entities, tags of HTML, and backslashes.

    >>> clean(r"It #39;s a &lt;b&gt;\$9&lt;/b&gt; deal\for Apple &lt;AAPL.O&gt;.")
    "It's a $9 deal for Apple <AAPL.O>."
    """
    text = APOSTROPHE.sub("'", text)
    text = ENTITY.sub(_character, text)
    text = TAG.sub(" ", text)
    return SPACE.sub(" ", re.sub(r"\\(?=\$)", "", text).replace("\\", " ")).strip()


def _character(entity: re.Match[str]) -> str:
    """Return the character that an entity means; what is none stays as it is."""
    return (
        html.unescape(f"&{entity[1] or entity[2]};") if _is_known(entity) else entity[0]
    )


def _is_known(entity: re.Match[str]) -> bool:
    name = f"&{entity[1] or entity[2]};"
    return html.unescape(name) != name
