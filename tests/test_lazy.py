"""Packages that import their names when asked: all there, nothing else, and nothing
before.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("nablab", "nablab.data", "nablab.models", "nablab.training")


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
