"""What the compiled engines have in common.

K replicas in flat memory, and threads that work on them.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablab.training.engine import FloatArray
from nablab.training.fused.optimizer import OptimizerNumbers

# Each replica's steps are cut so that threads with unequal numbers of replicas end
# together.
_CHUNKS = 8
_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Job(ctypes.Structure):
    """As in job.h."""

    _fields_ = [
        ("network", _POINTER),
        ("data", _POINTER),
        ("optimizer", _POINTER),
        ("replicas", _INT),
        ("steps", _INT),
        ("chunks", _INT),
        ("threads", _INT),
        ("rates", _POINTER),
        ("parameters", _POINTER),
        ("first", _POINTER),
        ("second", _POINTER),
        ("taken", _POINTER),
        ("active", _POINTER),
        ("loss", _POINTER),
        ("finished", _POINTER),
        ("held", _POINTER),
        ("arrived", _INT),
        ("places", _INT),
        ("gradient", _POINTER * 2),
        ("part_loss", ctypes.c_double * 2),
    ]
    kept: Any


class FusedReplicas:
    """The weights of K replicas and their optimizer's two memories.

    Each is a tensor (K, stored).

    Rows are as long as whole vectors of the processor; numbers behind the weights stay
    zero.
    """

    replicas: int
    _library: ctypes.CDLL
    _network: Any
    _optimizer: OptimizerNumbers

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

    def _train(
        self, rates: FloatArray, data: Any, kept: Any, threads: int
    ) -> FloatArray:
        """Take ``len(rates)`` steps and return the losses (steps, K).

        Args:
            rates: (steps,): multiplies the learning rate at each step.
            data: The kernel's structure of the samples.
            kept: Whatever ``data`` points to.
            threads: How many work.
        """
        rates = np.ascontiguousarray(rates, dtype=np.float64)
        losses = np.full((len(rates), self.replicas), np.nan)
        finished = np.zeros(self.replicas, dtype=np.int64)
        held = np.zeros(self.replicas, dtype=np.uint8)
        job = _Job(
            network=ctypes.addressof(self._network),
            data=ctypes.addressof(data),
            optimizer=self._optimizer.address,
            replicas=self.replicas,
            steps=len(rates),
            chunks=min(_CHUNKS, len(rates)),
            threads=threads,
            rates=rates.ctypes.data,
            parameters=self._weights.data_ptr(),
            first=self._first.data_ptr(),
            second=self._second.data_ptr(),
            taken=self._taken.data_ptr(),
            active=self._active.data_ptr(),
            loss=losses.ctypes.data,
            finished=finished.ctypes.data,
            held=held.ctypes.data,
        )
        # The threads hold the job, and so this memory, even if an interrupt ends this
        # call before them.
        job.kept = self, rates, losses, finished, held, data, kept
        reference = ctypes.byref(job)
        self._work(
            threads,
            lambda space: self._library.nablab_advance(reference, _POINTER(space)),
        )
        return losses

    def _work(self, threads: int, task: Callable[[int], object]) -> None:
        """Run ``task`` on this thread and on ``threads - 1`` others.

        Each gets the address of its own memory.

        ctypes releases the GIL.
        """
        size = int(self._library.nablab_scratch_bytes(ctypes.byref(self._network)))
        self._scratch = [space for space in self._scratch if len(space) == size]
        missing = threads - len(self._scratch)
        self._scratch += [torch.zeros(size, dtype=torch.uint8) for _ in range(missing)]

        # holds its memory, even if an interrupt ends this call before it
        def work(space: Tensor) -> None:
            task(space.data_ptr())

        spaces = self._scratch[:threads]
        others = [threading.Thread(target=work, args=(space,)) for space in spaces[1:]]
        for thread in others:
            thread.start()
        work(spaces[0])
        for thread in others:
            thread.join()

    def freeze(self, replicas: Sequence[int]) -> None:
        """See `Engine.freeze`."""
        self._active[list(replicas)] = False

    def load_weights(self, flat: Tensor) -> None:
        """Take over weights (K, P) alone.

        Each row is as `torch.nn.utils.parameters_to_vector` gives it.
        """
        self._weights[:, : self._size] = flat

    def state(self) -> dict[str, Tensor]:
        """See `Engine.state`."""
        flat = {"weights": self._weights, "first": self._first, "second": self._second}
        exact = {"taken": self._taken.clone(), "active": self._active.clone()}
        return {
            name: tensor[:, : self._size].clone() for name, tensor in flat.items()
        } | exact

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.load_state`."""
        for name, tensor in (
            ("weights", self._weights),
            ("first", self._first),
            ("second", self._second),
        ):
            tensor[:, : self._size] = state[name]
        self._taken.copy_(state["taken"])
        self._active.copy_(state["active"])


def check_indices(batches: Tensor | None, samples: int) -> Tensor | None:
    """Return the batches as the kernels read them: int64, contiguous, on the CPU.

    Raises:
        IndexError: An index is not one of a sample.
    """
    if batches is None:
        return None
    indices = batches.to("cpu", torch.int64).contiguous()
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < samples:
        raise IndexError(f"batches must hold indices from 0 to {samples - 1}")
    return indices
