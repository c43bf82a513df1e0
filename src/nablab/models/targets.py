"""Whether targets fit what a network returns, under a loss that has a name.

Said before any work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nablab.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

OF_CLASSES = ("cross_entropy", "nll")
OF_NUMBERS = ("mse", "l1", "binary_cross_entropy")
NOT_COUNTED = -100  # the label that cross-entropy ignores
WHOLE = "y = y.astype('int64')"


def check_targets(loss: str, output: Tensor, target: Tensor) -> None:
    """Raise `UsageError` unless a loss takes these outputs and targets as meant.

    Args:
        loss: ``cross_entropy`` or ``nll`` for classes; ``mse``, ``l1`` or
            ``binary_cross_entropy`` for numbers; of any other nothing is known, and
            nothing is checked.
        output: What the network returns for a few samples, (n, ...).
        target: The targets of any number of samples, (N, ...).

    >>> import torch
    >>> check_targets("cross_entropy", torch.zeros(2, 3), torch.tensor([1, 2, 3, 1]))
    Traceback (most recent call last):
    nablab.errors.UsageError: The labels go from 1 to 3, but the network has 3 \
outputs: classes count from 0, so labels are from 0 to 2. Subtract 1 from each.
    """
    if loss in OF_CLASSES:
        _check_classes(loss, output, target)
    elif loss in OF_NUMBERS:
        _check_numbers(loss, output, target)


def _check_classes(loss: str, output: Tensor, target: Tensor) -> None:
    if output.ndim < 2:
        raise UsageError(
            f"The network returns {_each(output.shape)}; {loss} needs one output per "
            "class: (N, classes). Change its last layer, or take another loss, such as "
            "mse."
        )
    each, classes = tuple(target.shape[1:]), output.shape[1]
    places = (*output.shape[2:],)
    if target.is_floating_point():
        if loss == "cross_entropy" and each == tuple(output.shape[1:]):
            return  # shares of the classes
        raise UsageError(
            f"The targets are numbers with a decimal point ({_kind(target)}); classes "
            f"for {loss} are whole numbers. Convert them: {WHOLE}."
        )
    if each != places:
        remedy = (
            "Drop the last axis of y: y = y[:, 0]."
            if each == (*places, 1)
            else "Change one of them."
        )
        raise UsageError(
            f"The labels are {_each(target.shape)}, but for outputs of "
            f"{_each(output.shape)} {loss} needs one label per "
            f"{'sample' if not places else 'place'}: {_each((0, *places))}. {remedy}"
        )
    counted = target[target != NOT_COUNTED]
    if counted.numel():
        _check_range(int(counted.min()), int(counted.max()), classes)


def _check_range(low: int, high: int, classes: int) -> None:
    if low >= 0 and high < classes:
        return
    outputs = f"{classes} output{'' if classes == 1 else 's'}"
    message = f"The labels go from {low} to {high}, but the network has {outputs}: "
    if classes == 1:
        raise UsageError(
            message + "one output per class is needed. If y holds numbers and not "
            "classes, take the loss mse."
        )
    if (low, high) == (1, classes):
        raise UsageError(
            f"{message}classes count from 0, so labels are from 0 to {classes - 1}. "
            "Subtract 1 from each."
        )
    raise UsageError(
        f"{message}labels are from 0 to {classes - 1}. Number the classes this way "
        "(np.unique(y, return_inverse=True)[1] does), or change the network's last "
        "layer."
    )


def _check_numbers(loss: str, output: Tensor, target: Tensor) -> None:
    check_equal_shapes(loss, output.shape, target.shape, whole_numbers=_whole(target))
    if loss == "binary_cross_entropy" and not bool(
        ((target >= 0) & (target <= 1)).all()
    ):
        raise UsageError(
            f"The targets go from {float(target.min()):g} to {float(target.max()):g}; "
            "binary_cross_entropy takes 0, 1 and shares between them."
        )


def check_equal_shapes(
    loss: str,
    output: Sequence[int],
    target: Sequence[int],
    *,
    whole_numbers: bool = False,
) -> None:
    """Raise `UsageError` unless a sample's target has the shape of its output.

    PyTorch would broadcast (N, 1) against (N,) to (N, N), and the mean over that is
    another number.

    Args:
        loss: Its name, for the message.
        output: The shape of some outputs, (n, ...).
        target: The shape of some targets, (N, ...).
        whole_numbers: Whether the targets are whole numbers, which may be meant as
            classes.
    """
    if tuple(output[1:]) == tuple(target[1:]):
        return
    remedy = "Change the network's last layer, or the targets."
    if tuple(output[1:]) == (*target[1:], 1):
        remedy = "Give y one more axis: y = y[..., None]."
    elif (*output[1:], 1) == tuple(target[1:]):
        remedy = "Drop the last axis of y: y = y[..., 0]."
    elif len(target) == 1 and len(output) == 2 and whole_numbers:
        remedy = f"If y holds classes, store whole numbers, {WHOLE}, for cross_entropy."
    raise UsageError(
        f"The network gives outputs of {_each(output)}, but the targets are "
        f"{_each(target)}; {loss} needs equal shapes. {remedy}"
    )


def _whole(target: Tensor) -> bool:
    return bool((target == target.round()).all())


def _each(shape: Sequence[int]) -> str:
    """Write a shape with N for the number of samples.

    >>> _each((30, 3)), _each((30,))
    ('shape (N, 3)', 'shape (N,)')
    """
    return (
        "shape "
        f"({', '.join(['N', *map(str, shape[1:])])}{',' if len(shape) == 1 else ''})"
    )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
