"""Instruments and measurements in the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nablab.cli.streams import print_json
from nablab.text.naming import words

SHORT = 12  # numbers of an array that the terminal lists
MEASURE_EXAMPLE = (
    "nablab measure hessian_trace --model my_network.py:build --data data.npz --figure "
    "trace.png"
)


def print_instruments(
    console: Console, facts: Sequence[Mapping[str, str]], *, as_json: bool
) -> None:
    """Print the list of instruments."""
    if as_json:
        print_json(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for one in facts:
        table.add_row(Text(one["name"], style="bold"), Text(one["purpose"]))
    console.print(table)
    console.print(
        "\n'nablab measure INSTRUMENT' lists its options; such as:", style="dim"
    )
    console.print(MEASURE_EXAMPLE, style="dim", soft_wrap=True)


def print_instrument(
    console: Console, facts: Mapping[str, Any], *, as_json: bool
) -> None:
    """Print what one instrument does and takes."""
    if as_json:
        print_json(facts)
        return
    console.print(Text(f"{facts['name']}: {facts['purpose']}", style="bold"))
    console.print(f"\nTakes {', '.join(facts['takes'])}. Options (key=value):\n")
    table = Table("option", "default", "takes", "meaning", box=None, pad_edge=False)
    for option in facts["options"]:
        table.add_row(
            *(Text(option[key]) for key in ("name", "default", "type", "help"))
        )
    console.print(table)
    console.print(f"\n{MEASURE_EXAMPLE}", style="dim", soft_wrap=True)


def print_measurement(
    console: Console, name: str, result: Any, *, as_json: bool
) -> None:
    """Print the numbers of a measurement, a line each.

    Long arrays give their shape, range and mean.
    """
    if as_json:
        print_json(result.to_dict())
        return
    console.print(Text(name, style="bold"))
    facts = {field: getattr(result, field) for field in result.to_dict()}
    notes = facts.pop("notes", ())
    table = Table(box=None, show_header=False, pad_edge=False)
    for field, value in facts.items():
        if text := _in_short(value):  # what was not asked for is empty
            table.add_row(words(field), Text(text))
    console.print(table)
    for note in notes:
        console.print(f"Note: {note}", markup=False)


def _in_short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_in_short(part)}" for key, part in value.items())
    if hasattr(value, "shape") and hasattr(value, "size"):
        return _array_in_short(value)
    if isinstance(value, (tuple, list)):
        return ", ".join(_in_short(part) for part in value)
    return str(value)


def _array_in_short(array: Any) -> str:
    if array.size <= SHORT:
        return ", ".join(_in_short(part) for part in array.reshape(-1).tolist())
    shape = " x ".join(map(str, array.shape))
    if array.dtype.kind not in "fiu":
        return f"{shape} values"
    return (
        f"{shape} numbers, {array.min():.4g} to {array.max():.4g}, mean "
        f"{array.mean():.4g}"
    )
