"""What people hand to a training by habit and what it cannot take, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nablab.errors import UsageError
from nablab.training.optimizers import Specification


def check_builder(build: Any) -> None:
    """Refuse what does not build a network.

    Raises:
        UsageError: It is a network itself, or cannot be called.
    """
    if isinstance(build, nn.Module):
        name = type(build).__name__
        raise UsageError(
            f"A function that builds {name} is needed, and this is {name} itself: every "
            f"seed needs first weights of its own. Give lambda: {name}(...)."
        )
    if not callable(build):
        raise UsageError(
            f"A function that builds one untrained network is needed, got a "
            f"{type(build).__name__}."
        )


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is not a specification of an optimizer.

    Raises:
        UsageError: It is a name, a class or an object of `torch.optim`.
    """
    if isinstance(optimizer, Specification):
        return
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    said = repr(optimizer) if isinstance(optimizer, str) else kind.__name__
    raise UsageError(
        f"optimizer={said} is not an optimizer specification. Give one, such as "
        "training.Adam(learning_rate=1e-3). There are SGD, RMSprop, Adam, AdamW and Muon. "
        "Any other optimizer steps in a Learner of your own."
    )


def check_seeds(seeds: Any, starts: Any = None) -> None:
    """Refuse seeds that are not a sequence, one per trial.

    Args:
        seeds: Of the trials.
        starts: Of their first weights, if not the same.

    Raises:
        UsageError: It is one number, or nothing that has a length; or there are more of
            one than of the other.
    """
    _check_countable("seeds", seeds)
    if starts is None:
        return
    _check_countable("starts", starts)
    if len(starts) != len(seeds):
        raise UsageError(
            f"starts has {len(starts)} entries for {len(seeds)} seeds. Give the seed of "
            "the first weights once per trial; it may be the same one."
        )


def _check_countable(name: str, seeds: Any) -> None:
    try:
        countable = not isinstance(seeds, str) and len(seeds) >= 0
    except TypeError:
        countable = False
    if not countable:
        raise UsageError(
            f"{name}={seeds!r} is not a sequence of seeds: give one per trial, such as "
            "range(3)."
        )


def check_pair(data: Any) -> None:
    """Refuse data that are not inputs and targets, as `Supervised` takes them.

    Raises:
        UsageError: It is a loader, a dictionary, or has several inputs.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise UsageError(
            f"Supervised takes a pair (x, y) of tensors or arrays, got a "
            f"{type(data).__name__}: samples lie in memory and are drawn by index, "
            "without a loader. A learner of another kind takes tensors by name."
        )
    for name, part in zip("xy", data, strict=True):
        if isinstance(part, dict) or (
            isinstance(part, Iterable) and _holds_tensors(part)
        ):
            raise UsageError(
                f"{name} must be one tensor or array, got a {type(part).__name__} of "
                "several. A network of several inputs is trained by Minimize, with "
                "tensors by name."
            )


def _holds_tensors(part: Any) -> bool:
    return isinstance(part, (tuple, list)) and any(
        isinstance(one, torch.Tensor) and one.ndim > 0 for one in part
    )
