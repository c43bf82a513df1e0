"""The command ``nablab`` and what its commands share. torch, numpy and matplotlib are
imported inside commands, so help is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from nablab.cli.consoles import SafeConsole
from nablab.version import VERSION

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="nablab",
    help="A laboratory for deep learning: ask a question, train over seeds, get a "
    "verdict.",
    version=VERSION,
    help_epilogue="Start with: nablab run deep-vs-shallow --preset quick",
)
data_app = App(name="data", help="List and fetch data sets.")
app.command(data_app)
output = SafeConsole(highlight=False)
errors = SafeConsole(stderr=True, highlight=False)

Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON, for programs.")
]
StoreOption = Annotated[
    Path | None,
    Parameter(help="The folder of runs [default: $NABLAB_STORE or ./runs]."),
]


def say_failure(message: str) -> None:
    """Say on standard error what went wrong while a command goes on."""
    errors.print(f"Failed: {message}", markup=False, style="red", soft_wrap=True)
