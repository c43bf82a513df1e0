"""The errors that a user of nablab meets: what happened, why, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NablabError(Exception):
    """Something that the user can mend; shown as one message, without a traceback."""


class UsageError(NablabError, ValueError):
    """A wrong command, name, key or value: found before any work is done (exit code 2)."""


class StoreError(NablabError):
    """The store cannot be read or written: no space, no permission, or a newer format."""


class DataError(NablabError):
    """A data set cannot be had or read: no source answers, a file is damaged, or the disk is full."""


class Interrupted(NablabError):
    """The user asked to stop; what was done is saved."""


def unknown(kind: str, name: str, choices: Iterable[str], *, remedy: str = "") -> UsageError:
    """Build the error for a name that does not exist, with the nearest one and the choices.

    >>> print(unknown("preset", "qiuck", ["quick", "standard"]))
    There is no preset 'qiuck'. Did you mean 'quick'? Choices: quick, standard.
    """
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = f" Choices: {', '.join(choices)}." if choices else ""
    return UsageError(f"There is no {kind} '{name}'.{hint}{listed}{' ' + remedy if remedy else ''}")
