"""Words and paragraphs in lines of the terminal's width."""

from __future__ import annotations

import re
from collections.abc import Sequence


def in_lines(parts: Sequence[str], width: int) -> list[str]:
    """Break words into lines of this width.

    A word that is longer is broken after commas, or anywhere if it must be.

    >>> in_lines(["steps=8", "targets=sinc,sign_sin,sawtooth"], 16)
    ['steps=8', 'targets=sinc,', 'sign_sin,', 'sawtooth']
    """
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 1 + len(part) <= width:
            lines[-1] += f" {part}"
            continue
        lines.append("")
        for piece in re.findall(rf"[^,;]{{1,{max(1, width - 1)}}}[,;]?|[,;]", part):
            if lines[-1] and len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    return lines


def reflow(text: str) -> str:
    r"""Join the lines of each paragraph, so that the terminal wraps them.

    Lists and indented blocks stay as they are.

    >>> reflow("one\ntwo\n\n- three\n- four")
    'one two\n\n- three\n- four'
    """
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    shaped = re.compile(r"^(\s{2,}|[-*] )", re.MULTILINE)
    return "\n\n".join(
        b.rstrip() if shaped.search(b) else " ".join(b.split()) for b in blocks
    )


def without_quotes(text: str) -> str:
    """Remove the backquotes of a docstring's markup.

    >>> without_quotes("``True`` is what `nablab.run` takes")
    'True is what nablab.run takes'
    """
    return text.replace("`", "")
