"""Batch-norm statistics for given weights, which they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nablab.errors import UsageError
from nablab.instruments.base.batches import Batches, read_batches
from nablab.instruments.base.losses import Closure, Evaluation, Loss, call, split
from nablab.instruments.base.placement import copied


@dataclass
class _Moments:
    """Count, mean and squared deviations by channel, merged (Chan et al. 1979)."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Moments:
        # The axes are channels, and what the mean is over.
        columns = values.detach().double().transpose(0, 1).flatten(1)
        mean = columns.mean(1)
        return cls(columns.shape[1], mean, (columns - mean[:, None]).square().sum(1))

    def merge(self, other: _Moments) -> _Moments:
        count, difference = self.count + other.count, other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        squares = (
            self.squares
            + other.squares
            + difference.square() * (self.count * other.count / count)
        )
        return _Moments(count, mean, squares)


class BatchNormEstimator:
    """Estimates the running statistics of a model's batch-norm layers for any weights.

    One forward pass with the batch-norm layers in training mode and everything else as
    it is (no dropout). Mean and variance are those of all values that reach a layer,
    pooled over batches of any size, where PyTorch's moving average would weigh late
    batches more and lose the variance between batches. With one batch they are the
    exact statistics of the data. With several, a layer behind another batch norm sees
    values that were normalized batch by batch, as in training.

    The model is copied, never written to.

    Args:
        model: A model with batch-norm layers that track statistics.
        batches: The data.
        loss: A `Closure` if batches need one; otherwise batches are ``(inputs,
            target)``.

    Raises:
        UsageError: No layer has running statistics.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, loss: Loss | None = None
    ) -> None:
        layers = [name for name, module in model.named_modules() if tracks(module)]
        if not layers:
            raise UsageError(
                f"The model {type(model).__name__} has no batch-norm layer with "
                "running statistics: there is nothing to re-estimate. Leave "
                "reestimate_batch_norm out."
            )
        self.passes = 0
        self._layers, self._batches = layers, batches
        own = copied(model).requires_grad_(False)  # its weights may be written to
        for module in own.modules():
            if tracks(module):
                module.train()
        self._model = own
        self._evaluation = Evaluation(own, loss) if isinstance(loss, Closure) else None

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return running means and variances at weights, by name of their buffers."""
        found: dict[str, _Moments] = {}
        modules = dict(self._model.named_modules())
        handles = [
            modules[name].register_forward_pre_hook(_keep(name, found))
            for name in self._layers
        ]
        own = dict(self._model.named_parameters()) | dict(self._model.named_buffers())
        for name, tensor in tensors.items():
            own[name].data = tensor.detach().clone()  # of the dtype of the measurement
        try:
            with torch.no_grad():
                for batch, _ in self._batches:
                    self._pass(batch)
        finally:
            for handle in handles:
                handle.remove()
        self.passes += 1
        statistics: dict[str, Tensor] = {}
        for name, moments in found.items():
            like = modules[name].running_mean
            assert isinstance(like, Tensor)
            # PyTorch keeps the variance without bias.
            variance = moments.squares / max(moments.count - 1, 1)
            statistics[f"{name}.running_mean"] = moments.mean.to(like)
            statistics[f"{name}.running_var"] = variance.to(like)
        return statistics

    def _pass(self, batch: Any) -> None:
        if self._evaluation is not None:
            self._evaluation(batch)
        else:
            call(self._model, split(batch)[0])


def batch_norm_statistics(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Return the running statistics that batch-norm layers should have on data.

    See `BatchNormEstimator`.

    They can be given to ``model.load_state_dict(statistics, strict=False)``. The model
    is not changed.

    Args:
        model: The model.
        data: Batches ``(inputs, target)`` in any form that `read_batches` takes.
        loss: A `Closure`, where batches have another form.
        batch_size: Cut batches into pieces of at most this many samples.

    Raises:
        UsageError: No layer has running statistics.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> statistics = batch_norm_statistics(model, batch)
    >>> statistics["0.running_mean"], statistics["0.running_var"]
    (tensor([2.]), tensor([2.]))
    """
    first = next(iter(model.parameters()), next(model.buffers(), torch.zeros(())))
    samples = loss.samples if isinstance(loss, Closure) else None
    batches = read_batches(
        data,
        device=first.device,
        dtype=first.dtype,
        batch_size=batch_size,
        samples=samples,
    )
    return BatchNormEstimator(model, batches, loss)({})


def tracks(module: nn.Module) -> bool:
    """Return whether a module is a batch-norm layer that keeps running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _keep(
    name: str, found: dict[str, _Moments]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moments = _Moments.of(inputs[0])
        found[name] = found[name].merge(moments) if name in found else moments

    return hook
