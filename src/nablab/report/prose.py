"""Docstrings as HTML: paragraphs, lists, ``code`` and indented blocks.

Everything else is plain text.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator

from markupsafe import Markup

_ITEM = re.compile(r"(?:[-*•]|\d+[.)])\s+")
_NUMBERED = re.compile(r"\d+[.)]\s")


def render(text: str) -> Markup:
    r"""Turn plain text into safe HTML; formulas stay as they are written.

    >>> print(render("See `x`:\n\n- one\n- two"))
    <p>See <code>x</code>:</p>
    <ul>
    <li>one</li>
    <li>two</li>
    </ul>
    """
    blocks = re.split(r"\n[ \t]*\n", inspect.cleandoc(text)) if text.strip() else []
    return Markup(
        "\n".join(part for block in blocks for part in _block(block.strip("\n")))
    )


def inline(text: str) -> Markup:
    """Render one line: `code`, *emphasis* and **weight**; the rest is escaped.

    >>> print(inline("`a<b` is *small*"))
    <code>a&lt;b</code> is <em>small</em>
    """
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    return Markup(
        "".join(
            _code(part) if i % 2 else _emphasis(part) for i, part in enumerate(parts)
        )
    )


def _code(part: str) -> str:
    return f"<code>{html.escape(part.strip('`').strip())}</code>"


def _emphasis(part: str) -> str:
    safe = html.escape(part)
    safe = re.sub(r"\*\*(?=\S)(.+?)(?<=\S)\*\*", r"<strong>\1</strong>", safe)
    # A star between spaces or digits is a product, not emphasis.
    return re.sub(
        r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=[^\s*])\*(?![\w*])", r"<em>\1</em>", safe
    )


def _block(block: str) -> Iterator[str]:
    """Render one block between blank lines.

    It is an indented block, or a paragraph that a list may follow.
    """
    lines = block.split("\n")
    if all(line.startswith("    ") for line in lines) and not _ITEM.match(
        lines[0].strip()
    ):
        yield f"<pre>{html.escape(inspect.cleandoc(block))}</pre>"
        return
    start = next(
        (i for i, line in enumerate(lines) if _ITEM.match(line.strip())), len(lines)
    )
    if start:
        yield f"<p>{inline(' '.join(line.strip() for line in lines[:start]))}</p>"
    if start < len(lines):
        yield from _list([line.strip() for line in lines[start:]])


def _list(lines: list[str]) -> Iterator[str]:
    kind = "ol" if _NUMBERED.match(lines[0]) else "ul"
    items: list[str] = []
    for line in lines:
        if _ITEM.match(line):
            items.append(_ITEM.sub("", line, count=1))
        else:
            items[-1] += f" {line}"
    yield f"<{kind}>"
    yield from (f"<li>{inline(item)}</li>" for item in items)
    yield f"</{kind}>"
