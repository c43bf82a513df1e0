"""Data sets in the terminal and as JSON.

This file imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nablab.data.cache import fetch, state_of
from nablab.data.fetching.progress import file_size
from nablab.data.known import EMBEDDED, KNOWN, EmbeddedSet, KnownSet
from nablab.data.names import is_own
from nablab.errors import DataError, UsageError, unknown

# Characters in which all columns fit, and all but the number of classes.
WIDE, MEDIUM = 76, 68


def set_facts() -> list[dict[str, Any]]:
    """Collect everything `nablab data list` knows, as plain JSON types."""
    return [*map(_facts, KNOWN.values()), *map(_embedded_facts, EMBEDDED.values())]


def print_sets(console: Console, facts: list[dict[str, Any]]) -> None:
    """Print a row per set, and below the table where each lies or how to get it.

    Paths are never cut. A narrow terminal does without the number of classes, and a
    narrower one without the size.
    """
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    wide, medium = console.width >= WIDE, console.width >= MEDIUM
    sizes = ["size"] * medium
    for title in ("name", "samples", "of", *["classes"] * wide, *sizes, "license"):
        table.add_column(
            title,
            justify="right" if title in ("samples", "classes", "size") else "left",
            no_wrap=True,
        )
    for fact in facts:
        samples = f"{sum(fact['samples'].values()):,}"
        size = (
            file_size(fact["bytes"] or fact.get("needs", 0))
            if fact["state"] != "embedded"
            else ""
        )
        style = "dim" if fact["state"] == "absent" else ""
        table.add_row(
            Text(fact["name"], style="cyan"),
            samples,
            _content(fact),
            *[str(len(fact["classes"]) or "")] * wide,
            *[size] * medium,
            fact["license"],
            style=style,
        )
    console.print(table)
    console.print()
    for fact in facts:
        line = Text.assemble((f"{fact['name']} ", "cyan"), _whereabouts(fact))
        console.print(line, soft_wrap=True)
    console.print(
        "\nYour own: a folder of images or a file.npz; a table of texts (.csv, .tsv, "
        ".jsonl) or a folder of .txt files.",
        style="dim",
    )


def get(console: Console, name: str) -> None:
    """Fetch a set, unless it is here, and print where it lies.

    An edition in the user's folder is not the set: the canonical files are fetched.

    Raises:
        UsageError: There is no such set, or it is the user's own.
        DataError: It is unavailable.
    """
    if is_own(name):
        raise UsageError(f"{name} is your own data; there is nothing to fetch.")
    if name not in KNOWN and name not in EMBEDDED:
        raise unknown("data set", name, [*KNOWN, *EMBEDDED])
    if name in EMBEDDED:
        console.print(f"{name} comes with {EMBEDDED[name].package} and is always here.")
        return
    state = state_of(KNOWN[name])
    edition = state.get("edition")
    if state["state"] == "yours" and not edition:
        folder = Path(str(state["folder"]))
    else:
        try:
            folder = fetch(name)
        except DataError as error:
            if not edition:
                raise
            raise DataError(
                f"{error}\nWithout them {name} is what {state['folder']} has: {edition}."
            ) from error
    console.print(str(folder), markup=False, soft_wrap=True)


def _facts(known: KnownSet) -> dict[str, Any]:
    state: dict[str, Any] = state_of(known)
    return {
        "name": known.name,
        "title": known.title,
        "kind": known.kind,
        **_shape(known),
        "needs": known.nbytes,
        **state,
        "samples": {**known.samples, **state.get("samples", {})},
        "license": known.license,
        "citation": known.citation,
        "classes": list(known.classes),
    }


def _embedded_facts(embedded: EmbeddedSet) -> dict[str, Any]:
    return {
        "name": embedded.name,
        "title": embedded.title,
        "kind": embedded.kind,
        "samples": dict(embedded.samples),
        **_shape(embedded),
        "bytes": 0,
        "state": "embedded",
        "folder": "",
        "source": embedded.package,
        "license": embedded.license,
        "citation": embedded.citation,
        "classes": list(embedded.classes),
    }


def _shape(one: KnownSet | EmbeddedSet) -> dict[str, list[int]]:
    """Return the shape of a sample, where all samples have one."""
    shape = getattr(one, "shape", None)
    return {} if shape is None else {"shape": list(shape)}


def _content(fact: dict[str, Any]) -> str:
    """Say what a sample is: the pixels of an image, or the kind of anything else."""
    if "shape" not in fact:
        return str(fact["kind"]).split()[-1]  # "word vectors" would be wide
    channels, height, width = fact["shape"]
    return f"{height}x{width}" + (f"x{channels}" if channels > 1 else "")


def _whereabouts(fact: dict[str, Any]) -> str:
    """Say where a set is, or how to get it."""
    states = {
        "embedded": f"is always here: it comes with {fact['source']}",
        "yours": f"is yours, in {fact['folder']}"
        + (f"; {fact['edition']}" if fact.get("edition") else ""),
        "cached": f"is in {fact['folder']}, from {fact['source']}",
        "incomplete": f"is in {fact['folder']} in part; 'nablab data get "
        f"{fact['name']}' fetches the rest",
        "absent": f"is not here; 'nablab data get {fact['name']}' fetches it",
    }
    return states[fact["state"]]
