"""Packages that import their names when asked: all there, nothing else, and nothing
before.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

from nablab.importing.lazy import lazy_names

PACKAGES = (
    "nablab",
    "nablab.data",
    "nablab.instruments",
    "nablab.metrics",
    "nablab.models",
    "nablab.plots",
    "nablab.runs",
    "nablab.training",
    "nablab.verdicts",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_exists_and_is_listed(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__
    for public in package.__all__:
        assert getattr(package, public) is not None
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("name", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"{name}.*no attribute 'nothing'"):
        _ = importlib.import_module(name).nothing


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_the_package_imports_nothing_heavy(name: str) -> None:
    program = (
        f"import sys, {name}; sys.exit(bool({{'torch', 'numpy', 'scipy'}} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", PACKAGES)
def test_no_public_name_is_a_modules_too(name: str) -> None:
    # The first import of the module would hide the name, for whoever comes later.
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)


@pytest.mark.parametrize(
    "homes",
    [{"surfaces": "surfaces lines"}, {"a": "b", "b": "c"}, {"images.load": "images"}],
)
def test_a_name_that_a_module_has_is_refused(homes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"pack\.\w+ is a module"):
        lazy_names("pack", homes)
