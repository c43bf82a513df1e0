"""Which display fits: a terminal's, a notebook's, lines, or none.

It imports rich only where something will be shown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nablab.display.plain import PlainLines
    from nablab.lab.runner import Observer

NOTEBOOK_SHELL = "ZMQInteractiveShell"  # of Jupyter; that of Colab is derived from it


@contextmanager
def shown(progress: bool | None, *, jobs: int = 1) -> Iterator[Observer | None]:
    """Show a run that is called from Python, on standard error.

    Args:
        progress: Whether to show it; None does so in a notebook, and where both
            standard output and error are a terminal.
        jobs: Number of processes that work.
    """
    observer = _display(progress, jobs)
    try:
        yield observer
    finally:
        if observer is not None:
            observer.close()


def _display(progress: bool | None, jobs: int) -> PlainLines | Any | None:
    if progress is False:
        return None
    display = notebook_display()
    if display is not None:
        from nablab.display.notebook import NotebookTable

        return NotebookTable(display, jobs=jobs)
    if not progress and not (in_terminal(sys.stdout) and in_terminal(sys.stderr)):
        return None
    from nablab.display.consoles import SafeConsole
    from nablab.display.live import LiveTable
    from nablab.display.plain import PlainLines

    console = SafeConsole(stderr=True, highlight=False, emoji=False)
    kind = LiveTable if console.is_terminal else PlainLines
    return kind(console, jobs=jobs, alone="jobs=1")


def in_terminal(stream: Any) -> bool:
    """Tell whether a stream goes to a terminal.

    A stream that is closed or missing does not.
    """
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def notebook_display() -> Callable[..., Any] | None:
    """Return IPython's ``display`` if this program runs in a notebook.

    IPython is not imported: whoever runs in a notebook has it already.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if NOTEBOOK_SHELL not in (base.__name__ for base in type(shell).__mro__):
        return None
    # imported by name, since types are checked without IPython
    display: Callable[..., Any] = import_module("IPython.display").display
    return display
