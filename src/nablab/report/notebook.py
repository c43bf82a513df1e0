"""A run as a notebook shows it: the question, the answer, and a row per claim."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nablab.text.naming import sentence
from nablab.verdicts.answering import answer, bare_claim, shared_scope

if TYPE_CHECKING:
    from nablab.verdicts import Verdict

SIGNS = {"supported": "✓", "refuted": "✗", "inconclusive": "?"}


def summary(question: str, state: str, verdicts: Sequence[Verdict], page: Path) -> str:
    """Return HTML that needs no style and no script of the notebook.

    Args:
        question: Of the experiment.
        state: Of the run, as `nablab.runs.Run.state` says it.
        verdicts: Of its claims; none as long as nothing is finished.
        page: The report, which is named where it exists.
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
        parts.append(f"<p>Report: <code>{html.escape(str(page))}</code></p>")
    return f"<div>{''.join(parts)}</div>"


def _row(verdict: Verdict, claim: str) -> str:
    said = f"{claim}."
    if verdict.effect_text:
        said += f" {sentence(verdict.effect_text)}."
    cells = f"{SIGNS[verdict.outcome]} {verdict.outcome}", said
    left = 'style="text-align: left; vertical-align: top"'
    return f"<tr>{''.join(f'<td {left}>{html.escape(c)}</td>' for c in cells)}</tr>"
