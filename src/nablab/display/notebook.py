"""What a run looks like in a notebook: the terminal's table, below its cell.

rich can draw in notebooks by itself, but redraws only with ipywidgets, and warns
without it at every frame. IPython alone is enough to change what a cell shows.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from io import StringIO
from typing import Any

from nablab.display.consoles import SafeConsole
from nablab.display.live import LiveTable

WIDTH = 88  # characters: what a cell shows without a scroll bar
EVERY_SECONDS = 0.5  # progress is not written more often


class NotebookTable(LiveTable):
    """An observer that draws its table as text below the cell and changes it.

    When the run has ended, what it said stays, and the table goes.

    Args:
        display: IPython's function of that name.
        jobs: Number of processes that work.
    """

    def __init__(self, display: Callable[..., Any], *, jobs: int = 1) -> None:
        self._said = StringIO()
        console = SafeConsole(
            file=self._said, width=WIDTH, force_jupyter=False, highlight=False
        )
        super().__init__(console, jobs=jobs, alone="jobs=1")
        self._display = display
        self._handle: Any = None
        self._ended = threading.Event()
        self._redrawing = threading.Thread(
            target=self._redraw, name="nablab-notebook", daemon=True
        )

    def close(self) -> None:
        """Replace the table with what was said."""
        self._ended.set()
        if self._handle is not None:
            self._redrawing.join()
            self._show(self._said.getvalue())
        elif self._said.getvalue():  # nothing was left to do
            self._show_first(self._said.getvalue())

    def _open(self) -> None:
        self._show_first(self._text())
        self._redrawing.start()

    def _show_first(self, text: str) -> None:
        self._handle = self._display(_bundle(text), raw=True, display_id=True)

    def _redraw(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._show(self._text())

    def _show(self, text: str) -> None:
        self._handle.update(_bundle(text), raw=True)

    def _text(self) -> str:
        """Return what was said so far, and the table as it is now."""
        page = StringIO()
        SafeConsole(file=page, width=WIDTH, force_jupyter=False, highlight=False).print(
            self
        )
        return self._said.getvalue() + page.getvalue()


def _bundle(text: str) -> dict[str, str]:
    """Give the text as such and as HTML, which keeps the columns."""
    return {
        "text/plain": text,
        "text/html": f'<pre style="line-height: 1.3">{html.escape(text)}</pre>',
    }
