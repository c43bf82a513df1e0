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
from nablab.data.names import check_image_set, is_path
from nablab.errors import UsageError


def set_facts() -> list[dict[str, Any]]:
    """Collect everything `nablab data list` knows, as plain JSON types."""
    return [*map(_facts, KNOWN.values()), *map(_embedded_facts, EMBEDDED.values())]


def print_sets(console: Console, facts: list[dict[str, Any]]) -> None:
    """Print a row per set, and below the table where each lies or how to get it.

    Paths are never cut.
    """
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("name", "images", "pixels", "size", "license"):
        table.add_column(
            title,
            justify="right" if title in ("images", "size") else "left",
            no_wrap=True,
        )
    for fact in facts:
        samples = f"{sum(fact['samples'].values()):,}"
        channels, height, width = fact["shape"]
        pixels = f"{height}x{width}" + (f"x{channels}" if channels > 1 else "")
        size = (
            file_size(fact["bytes"] or fact.get("needs", 0))
            if fact["state"] != "embedded"
            else ""
        )
        style = "dim" if fact["state"] == "absent" else ""
        table.add_row(
            Text(fact["name"], style="cyan"),
            samples,
            pixels,
            size,
            fact["license"],
            style=style,
        )
    console.print(table)
    console.print()
    for fact in facts:
        line = Text.assemble((f"{fact['name']} ", "cyan"), _whereabouts(fact))
        console.print(line, soft_wrap=True)
    console.print(
        "\nWherever a data set is asked for, a folder of images or a file.npz will do.",
        style="dim",
    )


def get(console: Console, name: str) -> None:
    """Fetch a set, unless it is here, and print where it lies.

    Raises:
        UsageError: There is no such set, or it is the user's own.
        DataError: It is unavailable.
    """
    check_image_set(name)
    if is_path(name):
        raise UsageError(f"{name} is your own data; there is nothing to fetch.")
    if name in EMBEDDED:
        console.print(f"{name} comes with {EMBEDDED[name].package} and is always here.")
        return
    state = state_of(KNOWN[name])
    folder = Path(str(state["folder"])) if state["state"] == "yours" else fetch(name)
    console.print(str(folder), markup=False, soft_wrap=True)


def _facts(known: KnownSet) -> dict[str, Any]:
    return {
        "name": known.name,
        "title": known.title,
        "samples": dict(known.samples),
        "shape": list(known.shape),
        "needs": known.nbytes,
        **state_of(known),
        "license": known.license,
        "citation": known.citation,
        "classes": list(known.classes),
    }


def _embedded_facts(embedded: EmbeddedSet) -> dict[str, Any]:
    return {
        "name": embedded.name,
        "title": embedded.title,
        "samples": dict(embedded.samples),
        "shape": list(embedded.shape),
        "bytes": 0,
        "state": "embedded",
        "folder": "",
        "source": embedded.package,
        "license": embedded.license,
        "citation": embedded.citation,
        "classes": list(embedded.classes),
    }


def _whereabouts(fact: dict[str, Any]) -> str:
    """Say where a set is, or how to get it."""
    states = {
        "embedded": f"is always here: it comes with {fact['source']}",
        "yours": f"is yours, in {fact['folder']}",
        "cached": f"is in {fact['folder']}, from {fact['source']}",
        "incomplete": f"is in {fact['folder']} in part; 'nablab data get "
        f"{fact['name']}' fetches the rest",
        "absent": f"is not here; 'nablab data get {fact['name']}' fetches it",
    }
    return states[fact["state"]]
