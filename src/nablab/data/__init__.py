"""Data sets and functions to learn, as tensors. Importing this package costs nothing until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nablab.data.expressions import parse_expression as parse_expression
    from nablab.data.functions import TARGETS as TARGETS
    from nablab.data.functions import Target as Target
    from nablab.data.functions import sawtooth_depth as sawtooth_depth
    from nablab.data.functions import target as target

_HOME = {
    "TARGETS": "functions",
    "Target": "functions",
    "sawtooth_depth": "functions",
    "target": "functions",
    "parse_expression": "expressions",
}

__all__ = ["TARGETS", "Target", "parse_expression", "sawtooth_depth", "target"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
