"""Packages whose names are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package that imports on demand.

    Args:
        package: The package's ``__name__``.
        homes: By submodule, the names that it gives, separated by spaces.

    Raises:
        ValueError: When a name is a submodule's too. Importing that submodule sets the
            package's attribute to the module, and the name would then be one or the
            other, by who imported what before.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}
    for name in {module.partition(".")[0] for module in homes} & home.keys():
        raise ValueError(f"{package}.{name} is a module, so no name can be {name!r}")

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return get, names
