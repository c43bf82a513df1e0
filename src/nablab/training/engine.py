"""What an engine is: K networks of one architecture that train side by side.

The losses that engines share are here, too.

Six engines obey the contract: `SequentialEngine` (plain PyTorch, one network after the
other; the truth), `BatchedEngine` (stacked weights), and four in compiled code:
`FusedEngine` (dense networks, mean squared error), `FusedImageEngine` (networks for
images), `FusedBagsEngine` (dense ones for samples that are mostly zero) and
`FusedBfloat16Engine` (dense ones on matrix tiles).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn import functional

from nablab.errors import UsageError, unknown
from nablab.models.targets import check_equal_shapes

Loss = Literal["mse", "cross_entropy"] | Callable[[Tensor, Tensor], Tensor]
FloatArray = npt.NDArray[np.float64]

# Bounds the memory of one forward pass without gradients: a 16-channel 28x28 feature
# map of this many samples takes 0.8 GB in float32, and small dense networks still see
# large batches.
PREDICTED_AT_ONCE = 16384
# Feature maps of more samples leave the cache. On one core, from 128 to 8,192 at once:
# 12, 11, 15 and 30 µs a sample for conv16k5s2-bn-conv32k3-pool-128 in bfloat16, 74 to
# 198 µs for 343,000 parameters.
CONVOLVED_AT_ONCE = 256


class Unsupported(Exception):
    """An engine cannot serve these networks, this loss or this optimizer.

    The text says why.
    """


class Engine(Protocol):
    """K networks of one architecture that train side by side.

    One loop drives every engine.

    Constructors have the form ``Engine(modules, x, y, *, loss, optimizer,
    per_replica_targets, inputs)``: K freshly built modules, stored samples ``x`` of
    shape (N, ...), ``y`` of shape (N, ...) or, with per-replica targets, (K, N, ...),
    and the `Inputs` that make a network's input of stored samples. One that cannot
    serve raises `Unsupported`.

    Attributes:
        name: ``"fused"``, ``"fused-bags"``, ``"fused-bfloat16"``, ``"fused-images"``,
            ``"batched"`` or ``"sequential"``.
        replicas: K.
        measures: The names of what a step gives, the loss first; empty where it is the
            loss alone.
    """

    name: str
    replicas: int
    measures: tuple[str, ...]

    def advance(self, rates: FloatArray, batches: Tensor | None) -> FloatArray:
        """Take ``len(rates)`` optimizer steps.

        Args:
            rates: float64 (steps,), multiplies the learning rate at each step.
            batches: None for the full batch, else int64 (steps, K, batch_size): indices
                into the training set.

        Returns:
            float64 (steps, K): the loss on the step's batch at the weights before the
                step; or
            (steps, K, measures) where a step gives more than one number. A frozen
            replica is not touched and gives NaN. A replica whose loss is not finite at
            some step is frozen from that step on; that step's row shows the loss as
            computed.
        """
        ...

    def freeze(self, replicas: Sequence[int]) -> None:
        """Leave these replicas as they are from now on."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Compute the outputs (K, N, ...) of all replicas for stored samples (N, ...).

        The networks are in eval mode, and the outputs detached.
        """
        ...

    def parameters(self) -> dict[str, Tensor]:
        """Copy the stacked parameters (K, ...), and buffers where modules have any."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to go on, bit for bit: CPU tensors by name."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        ...


def loss_function(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (output, target) -> scalar of a loss.

    The loss is given by name or as a callable.

    Raises:
        UsageError: There is no loss of this name.

    >>> import torch
    >>> loss_function("mse")(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
    tensor(5.)
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise unknown(
            "loss",
            loss,
            LOSSES,
            remedy="A function (output, target) -> scalar tensor works too.",
        )
    return LOSSES[loss]


def mean_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean of the squared differences over all elements.

    Raises:
        UsageError: The shapes differ; PyTorch would broadcast (N, 1) against (N,) to
            (N, N).
    """
    check_equal_shapes("the mean squared error", output.shape, target.shape)
    return functional.mse_loss(output, target)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of logits with labels of which some probability is spread evenly.

    With label smoothing s and C classes the target of the label's class is 1 - s + s/C
    and that of each other one s/C (Szegedy et al., Rethinking the Inception
    architecture, 2016, section 7). Without smoothing it is ``"cross_entropy"``, which
    more engines can compute.

    Attributes:
        label_smoothing: s, from 0 to below 1.

    >>> import torch
    >>> CrossEntropy(label_smoothing=0.2)(torch.zeros(1, 2), torch.tensor([0]))
    tensor(0.6931)
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                "CrossEntropy: label_smoothing must be from 0 to below 1, got "
                f"{self.label_smoothing}."
            )

    def __call__(self, output: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean over samples of logits (N, C) and int64 labels (N,)."""
        return functional.cross_entropy(
            output, labels, label_smoothing=self.label_smoothing
        )


def classifies(loss: Loss) -> bool:
    """Tell whether a loss is of logits and labels, so that there is an accuracy."""
    return loss == "cross_entropy" or isinstance(loss, CrossEntropy)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mean_squared_error,
    "cross_entropy": functional.cross_entropy,
}

NOT_COUNTED = -100  # the label that cross-entropy ignores


def accuracy(output: Tensor, labels: Tensor) -> Tensor:
    """Compute the share of samples whose largest output is that of their label.

    Labels of -100 are not counted.

    Args:
        output: (N, classes).
        labels: int64 (N,).

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    >>> accuracy(logits, torch.tensor([0, 0, -100]))
    tensor(0.5000, dtype=torch.float64)
    """
    counted = labels != NOT_COUNTED  # in float32, 475 of 500 would fall short of 0.95
    return (output.argmax(1)[counted] == labels[counted]).double().mean()


def slices(samples: int, module: nn.Module, *, replicas: int = 1) -> Iterator[slice]:
    """Cut ``samples`` into slices that ``replicas`` networks can take at once.

    The networks are like ``module``.
    """
    convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
    size = max(1, (CONVOLVED_AT_ONCE if convolves else PREDICTED_AT_ONCE) // replicas)
    return (slice(start, start + size) for start in range(0, samples, size))


def mask_after_divergence(losses: FloatArray) -> FloatArray:
    """Set what follows a replica's first non-finite loss to NaN.

    ``losses`` is (steps, K).
    """
    failed_before = np.zeros_like(losses, dtype=bool)
    failed_before[1:] = np.logical_or.accumulate(~np.isfinite(losses), axis=0)[:-1]
    return np.where(failed_before, np.nan, losses)
