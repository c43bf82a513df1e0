"""What the two compiled engines have in common: K replicas in flat memory, and threads that work on them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class FusedReplicas:
    """The weights of K replicas and their optimizer's two memories, each a tensor (K, stored).

    Rows are as long as whole vectors of the processor; numbers behind the weights stay zero.
    """

    replicas: int
    _library: ctypes.CDLL
    _network: Any

    def _hold(self, flat: Tensor, stored: int) -> None:
        """Take over the weights (K, P)."""
        self._size = flat.shape[1]
        self._weights, self._first, self._second = (
            torch.zeros(len(flat), stored, dtype=flat.dtype) for _ in range(3)
        )
        self._weights[:, : self._size] = flat
        self._taken = torch.zeros(len(flat), dtype=torch.int64)
        self._active = torch.ones(len(flat), dtype=torch.bool)
        self._scratch: list[Tensor] = []

    def _addresses(self) -> dict[str, int]:
        """Where all of it lies, by the names that the C structures have."""
        return {
            "parameters": self._weights.data_ptr(),
            "first": self._first.data_ptr(),
            "second": self._second.data_ptr(),
            "taken": self._taken.data_ptr(),
            "active": self._active.data_ptr(),
        }

    def _work(self, threads: int, task: Callable[[int], object]) -> None:
        """Run ``task`` on this thread and on ``threads - 1`` others, each with the address of its own memory.

        ctypes releases the GIL.
        """
        size = int(self._library.nablab_scratch_bytes(ctypes.byref(self._network)))
        missing = threads - len(self._scratch)
        self._scratch += [torch.zeros(size, dtype=torch.uint8) for _ in range(missing)]
        spaces = [space.data_ptr() for space in self._scratch[:threads]]
        others = [threading.Thread(target=task, args=(space,)) for space in spaces[1:]]
        for thread in others:
            thread.start()
        task(spaces[0])
        for thread in others:
            thread.join()

    def freeze(self, replicas: Sequence[int]) -> None:
        """See `Engine.freeze`."""
        self._active[list(replicas)] = False

    def load_weights(self, flat: Tensor) -> None:
        """Take over weights (K, P) alone, each row as `torch.nn.utils.parameters_to_vector` gives it."""
        self._weights[:, : self._size] = flat

    def state(self) -> dict[str, Tensor]:
        """See `Engine.state`."""
        flat = {"weights": self._weights, "first": self._first, "second": self._second}
        exact = {"taken": self._taken.clone(), "active": self._active.clone()}
        return {name: tensor[:, : self._size].clone() for name, tensor in flat.items()} | exact

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.load_state`."""
        for name, tensor in (("weights", self._weights), ("first", self._first), ("second", self._second)):
            tensor[:, : self._size] = state[name]
        self._taken.copy_(state["taken"])
        self._active.copy_(state["active"])
