"""Calls of PyTorch's functions that are watched while a model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class AttentionSeen(TorchFunctionMode):
    """Notes whether fused attention is called inside."""

    seen = False

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        # The second is a Python function: what it calls is not shown to a mode.
        fused = (
            nn.functional.scaled_dot_product_attention,
            nn.functional.multi_head_attention_forward,
        )
        self.seen = self.seen or function in fused
        return function(*args, **(kwargs or {}))


class Broadcasts(TorchFunctionMode):
    """Notes whether an output (N, 1) and a target (N,) meet in one operation."""

    def __init__(self, output: Tensor, target: Tensor) -> None:
        super().__init__()
        self.found: tuple[int, ...] = ()
        self._shapes = {tuple(output.shape), tuple(target.shape)}
        ordered = sorted(self._shapes, key=len)
        shorter, longer = ordered[0], ordered[-1]
        self._suspect = (
            len(self._shapes) == 2 and longer == (*shorter, 1) and shorter[-1:] != (1,)
        )

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        met = {tuple(part.shape) for part in args if isinstance(part, Tensor)}
        if (
            self._suspect
            and met == self._shapes
            and isinstance(result, Tensor)
            and result.ndim >= 2
        ):
            shape = tuple(result.shape)
            self.found = self.found or (() if shape in self._shapes else shape)
        return result
