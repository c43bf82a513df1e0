"""A run in short: for a notebook as HTML, for a Python prompt in a few lines."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from nablab.text.naming import sentence
from nablab.verdicts.answering import answer, bare_claim, shared_scope

if TYPE_CHECKING:
    from nablab.verdicts import Verdict

WIDTH = 80  # of a paragraph at a Python prompt
SIGNS = {"supported": "✓", "refuted": "✗", "inconclusive": "?"}


def summary(question: str, state: str, verdicts: Sequence[Verdict], page: Path) -> str:
    """Return HTML that needs no style and no script of the notebook.

    Args:
        question: Of the experiment.
        state: Of the run, as `nablab.runs.Run.state` says it.
        verdicts: Of its claims; none as long as nothing is finished.
        page: The report, which is linked where it exists.
    """
    shared = shared_scope(verdicts)
    rows = [_row(verdict, bare_claim(verdict, shared)) for verdict in verdicts]
    parts = [f"<b>{html.escape(question)}</b>"]
    if verdicts:
        parts.append(f"<p>{html.escape(answer(verdicts))}</p>")
        parts.append(f"<table>{''.join(rows)}</table>")
    if state != "done":
        parts.append(f"<p>This run is {html.escape(state)}.</p>")
    if page.exists():
        parts.append(f"<p>Report: {_link(page)}</p>")
    return f"<div>{''.join(parts)}</div>"


def in_lines(heading: str, said: Sequence[str], page: Path) -> str:
    """Return a few lines of text.

    Args:
        heading: The first line: what run it is, and how far.
        said: What follows, a paragraph each: the answer, or what went wrong.
        page: The report, which is named where it exists.
    """
    # A path is copied as a whole, so it is not broken.
    last = [f"Report: {page}"] if page.exists() else []
    return "\n".join([heading, *(textwrap.fill(text, WIDTH) for text in said), *last])


def _link(page: Path) -> str:
    """Link to a file, by a text from which its path can be copied.

    Notebooks resolve a relative link from their own folder, which is where their
    program runs; a browser opens no other file from within a notebook's page.
    """
    whole, here = page.resolve(), Path.cwd()
    inside = whole.is_relative_to(here)
    target = quote(whole.relative_to(here).as_posix()) if inside else whole.as_uri()
    return (
        f'<a href="{html.escape(target)}" target="_blank">'
        f"<code>{html.escape(str(page))}</code></a>"
    )


def _row(verdict: Verdict, claim: str) -> str:
    said = f"{claim}."
    if verdict.effect_text:
        said += f" {sentence(verdict.effect_text)}."
    cells = f"{SIGNS[verdict.outcome]} {verdict.outcome}", said
    left = 'style="text-align: left; vertical-align: top"'
    return f"<tr>{''.join(f'<td {left}>{html.escape(c)}</td>' for c in cells)}</tr>"
