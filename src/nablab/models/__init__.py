"""Architectures, nothing else. Importing this package costs nothing until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nablab.models.dense_network import Activation as Activation
    from nablab.models.dense_network import dense as dense
    from nablab.models.dense_network import parameter_count as parameter_count
    from nablab.models.dense_network import parse_widths as parse_widths
    from nablab.models.dense_network import sawtooth_network as sawtooth_network
    from nablab.models.factory import check_output as check_output
    from nablab.models.factory import load_factory as load_factory
    from nablab.models.factory import source_hash as source_hash

_HOME = {
    "Activation": "dense_network",
    "check_output": "factory",
    "dense": "dense_network",
    "load_factory": "factory",
    "parameter_count": "dense_network",
    "parse_widths": "dense_network",
    "sawtooth_network": "dense_network",
    "source_hash": "factory",
}

__all__ = [
    "Activation",
    "check_output",
    "dense",
    "load_factory",
    "parameter_count",
    "parse_widths",
    "sawtooth_network",
    "source_hash",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
