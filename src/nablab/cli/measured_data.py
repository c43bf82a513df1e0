"""The data of a measurement, read by name and checked against the network.

A name stands for a target, for images, or for arrays in a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nablab import data as targets
from nablab.data import ImageSet
from nablab.data.names import holds_no_images
from nablab.data.user.arrays import array_names, read_array
from nablab.errors import UsageError
from nablab.files.places import is_file, place
from nablab.models.factory import output_of
from nablab.models.targets import OF_NUMBERS, check_targets

# what the arrays of a data file may be called
NAMES = (("x", "y"), ("inputs", "targets"))
TRIED = 2  # samples that a network is tried on before the measurement
Pair = tuple[Tensor, Tensor]


def read_data(names: Sequence[str]) -> list[Pair]:
    """Read the batches of these names: inputs and targets.

    Raises:
        UsageError: No name, nothing of that name, or a file that cannot be read.
    """
    if not names:
        raise UsageError(
            "Which data? Give --data with a file.npz that holds x and y, with images "
            f"({', '.join(targets.image_set_names())}), or with a target "
            f"({', '.join(targets.TARGETS)})."
        )
    return [_batch(name) for name in names]


def as_loss_needs(batches: Sequence[Pair], loss: object) -> list[Pair]:
    """Turn whole numbers into decimals where a loss of numbers compares them."""
    if loss not in OF_NUMBERS:
        return list(batches)
    return [
        (x, y if y.is_floating_point() or y.is_complex() else y.float())
        for x, y in batches
    ]


def check_fit(
    module: nn.Module, loss: object, batches: Sequence[Pair], names: Sequence[str]
) -> None:
    """Try the network on a few samples of every batch.

    Its outputs are held against the targets.

    Args:
        module: The network, where it is to be measured.
        loss: The loss's name; a function of the user's own is not checked.
        batches: Inputs and targets.
        names: The batches' names, for messages.

    Raises:
        UsageError: The network cannot take the inputs, or the loss not its outputs and
            the targets.
    """
    if not isinstance(loss, str):
        return
    parameter = next(module.parameters())
    wanted = (
        f"for {loss} it must return one tensor: the logits or the predictions alone"
    )
    for (x, y), name in zip(batches, names, strict=True):
        few = x[:TRIED].to(
            parameter.device, parameter.dtype if x.is_floating_point() else None
        )
        try:
            check_targets(
                loss, output_of(module, few, wanted=wanted + _whole_inputs(x)), y
            )
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def _whole_inputs(x: Tensor) -> str:
    """Say what to do about whole-number inputs, which only an embedding takes."""
    kind = str(x.dtype).removeprefix("torch.")
    return (
        ""
        if x.is_floating_point()
        else f". The inputs are {kind}: if they are not indices, store float32"
    )


def _batch(name: str) -> Pair:
    if images := _images(name):
        return images.normalize(images.images), images.labels
    if not name.endswith(".npz"):
        return targets.target(name).train()
    path = place(name)
    if not is_file(path):
        raise UsageError(
            f"The data file '{name}' cannot be read: there is no such file."
        )
    here = array_names(path)
    keys = next((pair for pair in NAMES if set(pair) <= set(here)), None)
    if keys is None:
        raise UsageError(
            f"The data file '{name}' holds {', '.join(here) or 'nothing'}; it must "
            "hold x and y, or inputs and targets."
        )
    x, y = (_tensor(read_array(path, key), f"{name}: {key}") for key in keys)
    if len(x) != len(y):
        raise UsageError(
            f"The data file '{name}' holds {len(x)} inputs and {len(y)} targets."
        )
    return x, y


def _tensor(array: npt.NDArray[np.generic], where: str) -> Tensor:
    """Convert an array into a tensor as PyTorch takes it.

    Whole numbers of any width become int64, as classes and tokens must be.

    Raises:
        UsageError: Text, dates and the like; or a single number.
    """
    if array.dtype.kind in "US":
        raise UsageError(
            f"{where} holds text ({str(array.reshape(-1)[:1].tolist())[1:-1]} comes "
            "first); classes are whole numbers from 0, which np.unique(y, "
            "return_inverse=True)[1] gives."
        )
    if array.dtype.kind not in "fiubc":
        raise UsageError(
            f"{where} holds {array.dtype}, which is not a kind of number. Store numbers."
        )
    if not array.ndim:
        raise UsageError(
            f"{where} is a single number; its first axis must count the samples."
        )
    if array.dtype.kind in "iub":
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    exact = {"f": np.float64, "c": np.complex128}[array.dtype.kind]
    native = (
        array.dtype.newbyteorder("=")
        if array.dtype.itemsize <= np.dtype(exact).itemsize
        else exact
    )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=native))


def _images(name: str) -> ImageSet | None:
    """Load the images of ``NAME``, ``NAME:test`` or ``NAME:test@SAMPLES``.

    The result is None if the text names no images.

    Raises:
        UsageError: A split or a number of samples that does not exist.
    """
    where, _, samples = name.partition("@")
    source, _, split = where.rpartition(":") if ":" in where else (where, "", "train")
    if holds_no_images(source):
        targets.check_image_set(source)  # says what it is instead
    if source.endswith(".npz") or not targets.is_image_set(source):
        if difflib.get_close_matches(source, targets.image_set_names(), n=1):
            targets.check_image_set(source)  # a typing mistake: says what was meant
        return None
    found = targets.load(source, split=split)
    if samples and not (samples.isdecimal() and 0 < int(samples[:20]) <= len(found)):
        raise UsageError(
            f"'@{samples}' in '{name}' is not a number of samples from 1 to "
            f"{len(found):,}."
        )
    return found.first(int(samples)) if samples else found
