"""What a measurement borrows and gives back: generators, kernels, autograd's state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import CheckpointFunction

from nablab.instruments.base import interrupts


class Generators:
    """The states of all random generators that a model or a data set may draw from.

    Args:
        others: Generators beside the global ones of PyTorch, NumPy and Python, such as
            a data loader's.
        only_torch: Leave NumPy's and Python's out, which take a tenth of a millisecond.
    """

    def __init__(
        self, others: tuple[torch.Generator, ...] = (), *, only_torch: bool = False
    ) -> None:
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
        self._only_torch = only_torch
        if not only_torch:
            self.numpy = np.random.get_state(legacy=False)  # noqa: NPY002, the user's global generator
            self.python = random.getstate()
        self._others = [(generator, generator.get_state()) for generator in others]

    def restore(self) -> None:
        """Give every generator the state it had."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        if not self._only_torch:
            np.random.set_state(self.numpy)  # noqa: NPY002
            random.setstate(self.python)
        for generator, state in self._others:
            generator.set_state(state)

    def differences(self, other: Generators) -> set[str]:
        """Return the global generators whose states differ from another moment's."""
        found = set()
        if not torch.equal(self.torch, other.torch):
            found.add("torch")
        if not all(
            torch.equal(mine, yours)
            for mine, yours in zip(self.cuda, other.cuda, strict=True)
        ):
            found.add("cuda")
        mine, yours = self.numpy["state"], other.numpy["state"]
        if mine["pos"] != yours["pos"] or not np.array_equal(mine["key"], yours["key"]):
            found.add("numpy")
        if self.python != other.python:
            found.add("python")
        return found


def seed_all(seed: int) -> None:
    """Seed every global generator; inside `preserved_generators` only."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def preserved_generators(
    others: tuple[torch.Generator, ...] = (),
) -> Iterator[Generators]:
    """Leave all random generators as they were, whatever is drawn inside."""
    before = Generators(others)
    try:
        yield before
    finally:
        before.restore()


@dataclass(frozen=True)
class Uses:
    """What a model's passes use of the process; the unknown counts as used.

    Attributes:
        recurrence: It has recurrent layers.
        attention: It calls PyTorch's attention.
        numpy_or_python: It draws from the global generators of NumPy or Python.
        compiled: It holds modules of `torch.compile`.
    """

    recurrence: bool = True
    attention: bool = True
    numpy_or_python: bool = True
    compiled: bool = False

    @classmethod
    def of(cls, model: torch.nn.Module) -> Uses:
        """Find what can be known of a model without running it."""
        modules = list(model.modules())
        return cls(
            recurrence=any(isinstance(module, torch.nn.RNNBase) for module in modules),
            compiled=any(
                type(module).__name__ == "OptimizedModule"
                or getattr(module, "_compiled_call_impl", None)
                for module in modules
            ),
        )


class Kernels:
    """The process-wide switches that decide which kernels run, as they were.

    Inside a measurement: attention on the math kernel and recurrent layers without
    cuDNN, since the fused ones have no second derivative; no inference-only path of
    `torch.nn.MultiheadAttention`; the reentrant form of activation checkpointing calls
    its function directly, as it cuts the graph (and so silently gives its layer no
    gradient where the inputs need none) and refuses `torch.autograd.grad`; compiled
    modules run as they were written, for their code has no second derivative.
    """

    def __init__(self, uses: Uses) -> None:
        self._fast_path = torch.backends.mha.get_fastpath_enabled()
        self._cudnn = torch.backends.cudnn.enabled
        self._attention = (
            [(switch, is_on()) for is_on, switch in _ATTENTION]
            if uses.attention
            else []
        )
        self._checkpoint = CheckpointFunction.__dict__.get("apply")
        self._gradients = torch.is_grad_enabled()
        self._stance: Any = None

    def switch(self, uses: Uses) -> None:
        """Take the kernels that can be differentiated twice."""
        torch.set_grad_enabled(True)
        if uses.recurrence:  # convolutions keep cuDNN, which is faster
            torch.backends.cudnn.enabled = False
        if uses.attention:
            torch.backends.mha.set_fastpath_enabled(False)
            for _, switch in _ATTENTION:
                switch(switch is torch.backends.cuda.enable_math_sdp)
        if uses.compiled:
            self._stance = torch.compiler.set_stance("force_eager")
        setattr(CheckpointFunction, "apply", staticmethod(_call_directly))  # noqa: B010, typed as a method

    def restore(self) -> None:
        """Give the switches the positions they had."""
        torch.set_grad_enabled(self._gradients)
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
        torch.backends.mha.set_fastpath_enabled(self._fast_path)
        torch.backends.cudnn.enabled = self._cudnn
        for switch, on in self._attention:
            switch(on)
        if self._checkpoint is not None:
            setattr(CheckpointFunction, "apply", self._checkpoint)  # noqa: B010
        elif "apply" in CheckpointFunction.__dict__:
            del CheckpointFunction.apply


class Surroundings:
    """Generators and kernels together, given back after a measurement or Ctrl-C."""

    def __init__(self, uses: Uses) -> None:
        self._generators = Generators(only_torch=not uses.numpy_or_python)
        self._kernels, self._uses = Kernels(uses), uses
        self._borrowed = False

    def borrow(self) -> None:
        """Switch the kernels; must be followed by `restore`."""
        self._borrowed = True
        interrupts.opened(self.restore)
        self._kernels.switch(self._uses)

    def restore(self) -> None:
        """Give everything back; doing it twice does no harm."""
        if self._borrowed:
            self._kernels.restore()
            self._generators.restore()
            interrupts.closed(self.restore)
            self._borrowed = False


def function_modes() -> int:
    """Count the modes between PyTorch's functions and their callers."""
    return int(torch._C._len_torch_function_stack())


def leave_modes(count: int) -> None:
    """Leave the modes beyond ``count``, which an interrupt kept from being left."""
    while function_modes() > count:
        torch._C._pop_torch_function_stack()


_ATTENTION: tuple[tuple[Callable[[], bool], Callable[[bool], None]], ...] = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _call_directly(
    function: Callable[..., Any], preserve: bool, *arguments: Any
) -> Any:
    return function(*arguments)
