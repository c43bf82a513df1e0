"""Messages for Python: they name arguments instead of the command line's options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from nablab.errors import NablabError

OPTION = re.compile(
    r"(?<![\w-])--(?P<name>[a-z]+(?:-[a-z]+)*)(?P<value> (?:[A-Z]{2,}|[A-Z]|\d+)\b)?"
)
COMMAND = re.compile(r"(\bnablab [a-z]+ .*)")  # up to the end of its line
SWITCHES = ("fresh",)


def in_python(text: str) -> str:
    """Name the options in a message as ``nablab.run`` does.

    Whole commands stay: they are to be given in a terminal.

    >>> in_python("Choose a folder with --store FOLDER, or leave out --fresh.")
    'Choose a folder with store=FOLDER, or leave out fresh=True.'
    >>> in_python("Again, with fewer --jobs: nablab run toy --seeds 5")
    'Again, with fewer jobs: nablab run toy --seeds 5'
    """
    parts = COMMAND.split(text)
    return "".join(
        part if COMMAND.fullmatch(part) else OPTION.sub(_argument, part)
        for part in parts
    )


@contextmanager
def told_in_python() -> Iterator[None]:
    """Let errors that are raised inside name arguments, as a program gives them."""
    try:
        yield
    except NablabError as error:
        error.args = tuple(
            in_python(part) if isinstance(part, str) else part for part in error.args
        )
        raise


def _argument(option: re.Match[str]) -> str:
    name = option["name"].replace("-", "_")
    if option["value"]:
        return f"{name}={option['value'].strip()}"
    return f"{name}=True" if name in SWITCHES else name
