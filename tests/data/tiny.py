"""A set as MNIST is, of 30 and 10 images of 4 x 4 pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path

import numpy as np

from nablab.data.fetching.progress import Step
from nablab.data.fetching.sources import Files, Source
from nablab.data.known import File, KnownSet
from nablab.data.known.idx import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from nablab.data.known.mnist import MNIST

SIDE = 4


class Said(list[Step]):
    """Collects what a fetch says."""

    def __call__(self, step: Step) -> None:
        self.append(step)

    @property
    def text(self) -> str:
        return "\n".join(step.text for step in self)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def idx(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def tiny_arrays() -> dict[str, np.ndarray]:
    """The content of the four files."""
    draw = np.random.default_rng(1)
    return {
        TRAIN_IMAGES: draw.integers(256, size=(30, SIDE, SIDE), dtype=np.uint8),
        TRAIN_LABELS: (np.arange(30) % 10).astype(np.uint8),
        TEST_IMAGES: draw.integers(256, size=(10, SIDE, SIDE), dtype=np.uint8),
        TEST_LABELS: np.arange(10, dtype=np.uint8),
    }


def tiny_files() -> dict[str, bytes]:
    """The four idx files."""
    return {name: idx(array) for name, array in tiny_arrays().items()}


def tiny_set(*addresses: str, sources: tuple[Source, ...] = ()) -> KnownSet:
    """The set, to be had at addresses or from other sources."""
    files = tuple(
        File(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in tiny_files().items()
    )
    train = tiny_arrays()[TRAIN_IMAGES] / 255
    return dataclasses.replace(
        MNIST,
        name="tiny",
        title="four by four",
        files=files,
        shape=(1, SIDE, SIDE),
        samples={"train": 30, "test": 10},
        mean=(float(train.mean()),),
        std=(float(train.std()),),
        sources=(*(Files(address) for address in addresses), *sources),
        folders=("Tiny/raw",),
    )


# What the cache holds when the set is there.
WHOLE = {*tiny_files(), "origin.json", "tiny.lock"}
