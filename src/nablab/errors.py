"""The errors that a user of nablab meets: what happened, why, and the remedy."""

from __future__ import annotations

import difflib
import site
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

HERE = str(Path(__file__).parent)
LONGEST_NAME = 200  # characters of a name that a message repeats
TRACEBACK = "NABLAB_TRACEBACK"  # the environment variable that shows tracebacks


class NablabError(Exception):
    """Something that the user can mend; shown as one message, without a traceback."""


class UsageError(NablabError, ValueError):
    """A wrong command, name, key or value, found before any work (exit code 2)."""


class StoreError(NablabError):
    """The store cannot be read or written: no space, no permission, newer format."""


class DataError(NablabError):
    """A data set is unavailable or cannot be read.

    No source answers, a file is damaged, or the disk is full.
    """


class CodeError(NablabError):
    """The user's code, or a library's, raised an error at work (exit code 1)."""


class Interrupted(NablabError):
    """The user asked to stop; what was done is saved."""


def unknown(
    kind: str, name: str, choices: Iterable[str], *, remedy: str = ""
) -> UsageError:
    """Build the error for a name that does not exist.

    It holds the nearest name and the choices.

    >>> print(unknown("preset", "qiuck", ["quick", "standard"]))
    There is no preset 'qiuck'. Did you mean 'quick'? Choices: quick, standard.
    """
    choices = list(choices)
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = f" Choices: {', '.join(choices)}." if choices else ""
    return UsageError(
        f"There is no {kind} '{name}'.{hint}{listed}{' ' + remedy if remedy else ''}"
    )


def raised(doing: str, error: BaseException) -> CodeError:
    """Build the one sentence for an error that nobody foresaw.

    The traceback can still be seen.

    >>> print(raised("Reading a.py", ValueError("no such name")))  # doctest: +ELLIPSIS
    Reading a.py raised ValueError: no such name. To see the traceback, set NABLAB_...
    """
    return CodeError(
        f"{doing} raised {in_short(error)}. To see the traceback, set {TRACEBACK}=1."
    )


def in_short(error: BaseException) -> str:
    """Describe an error in one line: its kind, its first line, and its place.

    The place is the line of a user's file where it was raised.

    >>> in_short(SystemExit(0))
    'SystemExit: 0'
    """
    lines = str(error).strip().splitlines()
    text = f": {lines[0].rstrip('.')}" if lines else ""
    return f"{type(error).__name__}{text}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """Name the innermost line of a traceback that is the user's own, in brackets.

    If no line is the user's, the innermost of all.
    """
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith("<frozen")
    ]
    own = [f for f in frames if not f.filename.startswith(_libraries())]
    place = (own or frames)[-1:]
    return "".join(f" ({frame.filename}, line {frame.lineno})" for frame in place)


def _libraries() -> tuple[str, ...]:
    """Return the folders of code that is not the user's.

    These are nablab itself, installed packages and Python's library.
    """
    folders = [
        HERE,
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        *site.getsitepackages(),
    ]
    return tuple(folder for folder in folders if folder)
