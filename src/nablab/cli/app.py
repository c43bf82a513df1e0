"""The command ``nablab`` and what its commands share.

Torch, numpy and matplotlib are imported inside commands, so help is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from nablab.display.consoles import SafeConsole
from nablab.text.docstrings import entries, summary
from nablab.version import VERSION

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="nablab",
    help="A laboratory for deep learning: ask a question, train over seeds, get a "
    "verdict.",
    version=VERSION,
    # Rendering Markdown loads a parser, which takes half of the time help may take.
    help_format="plaintext",
    help_epilogue="Start with: nablab run deep-vs-shallow --preset quick",
)
data_app = App(name="data", help="List and fetch data sets.")
app.command(data_app)
output = SafeConsole(highlight=False, emoji=False)
errors = SafeConsole(stderr=True, highlight=False, emoji=False)

Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON, for programs.")
]
StoreOption = Annotated[
    Path | None,
    Parameter(help="The folder of runs [default: $NABLAB_STORE or ./runs]."),
]


def described(command: Callable[..., int]) -> Callable[..., int]:
    """Join the lines of each text in a command's docstring.

    Plain help keeps the ends of lines, and a terminal has a width of its own.
    """
    doc = command.__doc__
    texts = [f"    {name}: {text}" for name, text in entries(doc, "Args").items()]
    command.__doc__ = "\n".join(
        [summary(doc), "", "Args:", *texts] if texts else [summary(doc)]
    )
    return command


def say_failure(message: str) -> None:
    """Say on standard error what went wrong while a command goes on."""
    errors.print(f"Failed: {message}", markup=False, style="red", soft_wrap=True)
