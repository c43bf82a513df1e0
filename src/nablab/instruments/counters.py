"""Counters of a language model's labels, for ``Closure(function, samples=...)``.

Batches are weighed by what their mean is over. For a language model that is the number
of targets that count, which differs between batches of one size: prompts and padding
are marked to be ignored, and a causal model shifts its labels, so that the first token
of a sequence is never predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nablab.errors import UsageError
from nablab.instruments.base.losses import IGNORED


def count_next_tokens(batch: Any) -> int:
    """Count the predicted tokens of a causal language model's batch, as of GPT.

    Args:
        batch: A mapping with ``"labels"``, or a tuple or list that ends with them:
            whole numbers (sequences, tokens), -100 where a token is not to be
            predicted. They are the tokens themselves; the model compares its output at
            each with the label after it.

    Raises:
        UsageError: The batch holds no such labels.

    >>> import torch
    >>> labels = torch.tensor([[5, 3, 8], [-100, -100, 2]])
    >>> count_next_tokens({"labels": labels})  # 3 and 8; 2
    3
    """
    return int((_labels(batch)[..., 1:] != IGNORED).sum())


def count_labels(batch: Any) -> int:
    """Count the labels where nothing is shifted, as for BERT or tagging.

    Args:
        batch: See `count_next_tokens`; labels of any shape.

    Raises:
        UsageError: The batch holds no such labels.

    >>> import torch
    >>> count_labels({"labels": torch.tensor([[-100, 3, -100], [-100, -100, 2]])})
    2
    """
    return int((_labels(batch) != IGNORED).sum())


def _labels(batch: Any) -> Tensor:
    found = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, tuple | list) and batch:
        found = batch[-1]
    if not isinstance(found, Tensor) or found.is_floating_point() or not found.ndim:
        raise UsageError(
            f"A batch of type {type(batch).__name__} holds no whole numbers under "
            "'labels' or as its last part, so what its loss is a mean over cannot be "
            "counted. Give samples= a function of your own."
        )
    return found
