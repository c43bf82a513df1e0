"""Batches of one sample, on which some networks cannot be trained.

Found before the training, not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nablab.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


def has_single(samples: int, batch_size: int | None) -> bool:
    """Tell whether some batch of an epoch is one sample: the last one, or all of them.

    >>> has_single(51, 50), has_single(51, 25), has_single(51, None), has_single(51, 51)
    (True, True, False, False)
    """
    size = samples if batch_size is None else min(batch_size, samples)
    return size == 1 or samples % size == 1


def check_single(
    build: Callable[[], nn.Module],
    samples: int,
    batch_size: int | None,
    example: Callable[[], Tensor],
) -> None:
    """Refuse a batch of one sample that the network cannot be trained on.

    Networks with batch normalization are such.

    Statistics over a batch need two values: batch normalization after a dense layer has
    one of each unit, while after a convolution one image has many. So it is tried, on a
    fresh network in training mode. The state of the random generator is restored.

    Args:
        build: Builds the network.
        samples: Of the training set.
        batch_size: Samples per step; None for all.
        example: Gives a batch of one input (1, ...); asked where there is such a batch
            only.

    Raises:
        UsageError: It fails on one sample and not on two.
    """
    if not has_single(samples, batch_size):
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        one = example()
        failure = _failure(build, one)
        if failure is None or _failure(build, torch.cat([one, one])) is not None:
            # what fails on any batch is not the batch's fault, and is said elsewhere
            return
    size = samples if batch_size is None else min(batch_size, samples)
    which = (
        "Every batch"
        if size == 1
        else f"The last batch of an epoch ({samples:,} samples by {size:,})"
    )
    better = (
        next(s for s in range(max(size, 2), samples + 2) if not has_single(samples, s))
        if samples > 1
        else 0
    )
    remedy = (
        f"Take another batch size, such as {better:,}, or another number of samples."
    )
    raise UsageError(
        f"{which} is one sample, on which this network cannot be trained: {failure}. "
        f"{remedy if better else 'Give more samples.'}"
    ) from failure


def _failure(build: Callable[[], nn.Module], x: Tensor) -> Exception | None:
    """Return what a fresh network raises in training mode on a batch."""
    import torch

    try:
        with torch.no_grad():
            build().train()(x)
    except Exception as error:  # a network of the user's may raise anything
        return error
    return None
