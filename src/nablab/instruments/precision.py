"""Which precision a measurement may have: half precision is too coarse for steps and for curvature."""

from __future__ import annotations

import torch

from nablab.errors import UsageError

HALVES = (torch.bfloat16, torch.float16)


def refuse_half(dtype: torch.dtype, what: str) -> None:
    """Refuse to measure in half precision.

    Args:
        dtype: The dtype of the measurement.
        what: What is measured, as the beginning of a sentence.

    Raises:
        UsageError: ``dtype`` is bfloat16 or float16.

    >>> refuse_half(torch.float32, "Sharpness")
    """
    if dtype in HALVES:
        name, eps = str(dtype).removeprefix("torch."), torch.finfo(dtype).eps
        raise UsageError(
            f"{what} cannot be measured in {name}: it keeps {eps:.1g} of each number, which is more than the "
            "steps that are taken and the differences that are sought. Give dtype=torch.float32, which "
            "measures the same weights without rounding them; a model in half precision needs no change."
        )
