"""Docstrings in Google's style, taken apart.

The summary, the rest, the entries of a section.
"""

from __future__ import annotations

import inspect
import re


def summary(doc: str | None) -> str:
    r"""Return the first paragraph of a docstring on one line.

    >>> summary("Ask a question\n    of two lines?\n\n    And a text.")
    'Ask a question of two lines?'
    """
    first, _, _ = inspect.cleandoc(doc or "").partition("\n\n")
    return " ".join(first.split())


def description(doc: str | None) -> str:
    r"""Return a docstring without its summary and without its section on fields.

    >>> description("Why?\n\nBecause.\n\nAttributes:\n    a: One.\n")
    'Because.'
    """
    _, _, rest = inspect.cleandoc(doc or "").partition("\n\n")
    section = r"(?m)^(Attributes|Args):\n(?:[ \t]+.*\n?|[ \t]*\n)*"
    return re.sub(section, "", rest).strip("\n")


def entries(doc: str | None, section: str) -> dict[str, str]:
    r"""Return the texts of a section such as ``Attributes`` by name.

    A continuation line is indented deeper than the name that it belongs to.

    >>> entries("Do.\n\nArgs:\n    a: One\n        thing.\n    b: Two.", "Args")
    {'a': 'One thing.', 'b': 'Two.'}
    """
    lines = inspect.cleandoc(doc or "").splitlines()
    if f"{section}:" not in lines:
        return {}
    texts: dict[str, str] = {}
    name, indent = "", 0
    for line in lines[lines.index(f"{section}:") + 1 :]:
        if line and not line.startswith(" "):
            break
        depth = len(line) - len(line.lstrip())
        head = re.match(r"\s+\*{0,2}(\w+)(?: \([^)]*\))?:\s+(.*)", line)
        if head and (not texts or depth <= indent):
            name, indent = head[1], depth
            texts[name] = head[2].strip()
        elif name:
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts
