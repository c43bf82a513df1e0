"""The loss and metrics of a model at many points of a line or plane.

Points are given by coefficients over a few basis points, such as ``(1 - alpha, alpha)``
over two models, so that a block of points can be measured at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import vmap

from nablab.errors import UsageError, unknown
from nablab.instruments.base.batches import Batches
from nablab.instruments.base.losses import Closure, Loss, split
from nablab.instruments.base.objective import Objective
from nablab.instruments.landscape.dense_blocks import DenseBlocks
from nablab.instruments.landscape.image_blocks import ImageBlocks

Floats: TypeAlias = npt.NDArray[np.float64]
Metric: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Predictor: TypeAlias = Callable[[dict[str, Tensor], Tensor], Tensor]
Metrics: TypeAlias = str | Sequence[str] | Mapping[str, str | Metric]

# With more parameters behind the first layer, one network's products fill the
# processor.
MOST_DENSE = 100_000
# With more parameters times samples, vmap on a CPU was slower than a loop.
MOST_WORK = 3_000_000
BLOCK = 64  # points per vmap; from 25 to 125 took the same time
IGNORED = -100  # PyTorch's mark of a sample that does not count
BLOCK_NUMBERS = 2**22  # numbers of weights in a block


def accuracy(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the share of samples whose largest output is at the target's class.

    For one output, its sign must be right.

    Args:
        outputs: (N, C) scores of classes, or (N,) or (N, 1) logits.
        target: (N,) class numbers; for logits 0 and 1, shaped like them.
    """
    if outputs.ndim > 1 and outputs.shape[1] > 1:
        return (outputs.argmax(1) == target).double().mean()
    return ((outputs > 0) == (target > 0.5)).double().mean()


def error(outputs: Tensor, target: Tensor) -> Tensor:
    """Return one minus `accuracy`."""
    return 1 - accuracy(outputs, target)


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "error": error}


def read_metrics(metrics: Metrics, loss: Loss) -> dict[str, Metric]:
    """Return the metrics beside the loss, by name.

    Args:
        metrics: Names, or a mapping of names to names or functions ``(outputs, target)
            -> mean over the batch``. ``"loss"`` is always measured and may be left out.
        loss: The loss; a closure gives no outputs, so there are no metrics with it.

    Raises:
        UsageError: A name without a function, or metrics with a closure.
    """
    names = [metrics] if isinstance(metrics, str) else metrics
    given: Mapping[str, Any] = (
        names if isinstance(names, Mapping) else {name: name for name in names}
    )
    found: dict[str, Metric] = {}
    for name, metric in given.items():
        if name == "loss":
            continue
        if isinstance(metric, str) and metric not in METRICS:
            raise unknown(
                "metric", metric, ["loss", *METRICS], remedy="Or give {name: function}."
            )
        found[name] = METRICS[metric] if isinstance(metric, str) else metric
    if found and isinstance(loss, Closure):
        raise UsageError(
            f"Metrics ({', '.join(found)}) need outputs and targets; a Closure gives "
            "only the loss. Give a loss(output, target) and batches (inputs, target)."
        )
    return found


def data_sets(data: Any) -> dict[str, Any]:
    """Return the data sets by name; one without a name is called "data".

    A mapping of which no value is a tensor, such as ``{"train": ..., "test": ...}``,
    holds several data sets; any other mapping is one batch.
    """
    if (
        isinstance(data, Mapping)
        and data
        and not any(isinstance(part, Tensor) for part in data.values())
    ):
        return {str(name): part for name, part in data.items()}
    return {"data": data}


def model_tensors(objective: Objective) -> dict[str, Tensor]:
    """Return the model's parameters and floating-point buffers, by name."""
    rest = {
        name.removeprefix("model."): t
        for name, t in objective.fixed.items()
        if name.startswith("model.")
    }
    return {
        **objective.values,
        **{name: tensor for name, tensor in rest.items() if tensor.is_floating_point()},
    }


def check_match(model_a: nn.Module, model_b: nn.Module) -> None:
    """Refuse models that differ in a tensor's shape, naming the first."""
    a = dict(model_a.named_parameters()) | dict(model_a.named_buffers())
    b = dict(model_b.named_parameters()) | dict(model_b.named_buffers())
    for name in [*a, *b]:
        if name not in a or name not in b:
            where = "second" if name not in b else "first"
            raise UsageError(
                f"The models do not match: the {where} one has no parameter '{name}'. "
                "Only models of one architecture can be joined by a line."
            )
        if a[name].shape != b[name].shape:
            raise UsageError(
                f"The models do not match: the parameter '{name}' has the shape "
                f"{tuple(a[name].shape)} in the first and {tuple(b[name].shape)} in "
                "the second. Only models of one architecture can be joined by a line."
            )


def points_at_once(numbers: int) -> int:
    """Return how many points of this number of entries are measured at once."""
    return max(1, min(BLOCK, BLOCK_NUMBERS // numbers))


def blocks_of(
    model: nn.Module, basis: Mapping[str, Tensor]
) -> DenseBlocks | ImageBlocks | None:
    """Return what measures the model at many points, or None."""
    return DenseBlocks.of(model, basis) or ImageBlocks.of(model, basis)


def by_name(
    values: Floats, sets: Iterable[str], measured: Sequence[str]
) -> dict[str, dict[str, Floats]]:
    """Return values (data sets, measured, ...) by data set, then by quantity."""
    return {
        name: dict(zip(measured, own, strict=True))
        for name, own in zip(sets, values, strict=True)
    }


class Scan:
    r"""Measures a model at points :math:`\sum_b c_b \theta_b`, one by one or in blocks.

    Args:
        model: The model.
        loss: Its loss.
        objectives: By name of the data set; all of this model.
        basis: By name of a parameter or buffer, a tensor (B, ...) with its values at
            the basis points. Names that are left out keep the model's own values.
        metrics: What is measured beside the loss.
        batched: Measure points in blocks; None chooses by the size.
        predict: Computes outputs (K, N, ...) from stacked tensors (K, ...) and inputs
            (N, ...), in place of `torch.func.vmap`. If it has a method
            ``at_points(basis, factors)``, that is called once for each block and gives
            a function of inputs alone.
        amend: Gives further tensors for a point from its tensors (batch-norm
            statistics); then points are measured one by one.

    Attributes:
        measured: Names of what is measured, "loss" first.
        batched: What was chosen.
        spent: Gradient evaluations so far: a forward pass over a data set counts 1/3.
        notes: What was chosen automatically.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        objectives: Mapping[str, Objective],
        basis: Mapping[str, Tensor],
        metrics: Mapping[str, Metric],
        *,
        batched: bool | None = None,
        predict: Predictor | None = None,
        amend: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.objectives, self.measured = dict(objectives), ("loss", *metrics)
        self.spent = 0.0
        self.notes: tuple[str, ...] = ()
        self._loss = loss
        self.basis = dict(basis)
        self._metrics = dict(metrics)
        self._amend = amend
        first = next(iter(objectives.values()))
        self._numbers = sum(tensor[0].numel() for tensor in basis.values())
        self._largest = max(max(o.batches.samples) for o in objectives.values())
        # A loss that reads the weights itself, such as a penalty on a model that it
        # holds, is unavailable from outputs alone.
        self._whole = isinstance(loss, Closure) or any(
            o.reads_model for o in objectives.values()
        )
        self._blocks = None if self._whole else blocks_of(model, self.basis)
        # It holds what was made of the last block's coefficients.
        self._kept: tuple[Tensor, Any] | None = None
        self._predict = None if self._whole else predict
        self._dtype, self._device = first.dtype, first.device
        if batched and amend is not None:
            raise UsageError(
                "batched=True cannot go with re-estimated batch-norm "
                "statistics: leave it out."
            )
        self._may_fall_back = batched is None
        self.batched = self._worth_it(model) if batched is None else batched
        if amend is not None:
            self.batched = False

    def _worth_it(self, model: nn.Module) -> bool:
        if self._predict is not None:
            return True
        if self._device.type != "cpu":
            return self._numbers <= BLOCK_NUMBERS // BLOCK
        if isinstance(self._blocks, DenseBlocks):
            return self._blocks.later_numbers <= MOST_DENSE
        if self._blocks is not None:
            return True
        # Under vmap, convolutions are grouped, and recurrence has no rule.
        slow = nn.modules.conv._ConvNd | nn.RNNBase
        return self._numbers * self._largest <= MOST_WORK and not any(
            isinstance(m, slow) for m in model.modules()
        )

    @property
    def predicts(self) -> bool:
        """Whether outputs come from ``predict``."""
        return self._predict is not None and self.batched

    @property
    def block(self) -> int:
        """Points that are measured at once."""
        return points_at_once(self._numbers) if self.batched else 1

    def __call__(self, coefficients: Floats) -> tuple[Floats, Floats]:
        """Measure the points with these coefficients (K, B).

        Returns:
            Means over the data, (data sets, measured, K), and their standard errors
            from the spread over batches, NaN for a single batch. Points where the loss
            overflows are infinite or NaN.
        """
        parts = [
            self._block(coefficients[k : k + self.block])
            for k in range(0, len(coefficients), self.block)
        ]
        means = np.concatenate([part[0] for part in parts], axis=-1)
        errors = np.concatenate([part[1] for part in parts], axis=-1)
        return means, errors

    def own(self, objective: Objective) -> tuple[Floats, Floats]:
        """Measure a model at its own weights: (measured,) and standard errors.

        Its own objective is used.
        """
        with objective.quiet(), torch.no_grad():
            found = [
                self._one(objective, objective.values, batch)
                for batch, _ in objective.batches
            ]
        self.spent += 1 / 3
        means, errors = _mean(
            [np.array(values)[:, None] for values in found], objective.batches
        )
        return means[:, 0], errors[:, 0]

    def check_prediction(
        self, objective: Objective, row: Floats
    ) -> tuple[float, float]:
        """Return the first batch's losses: the model's own, and as predicted.

        The prediction is at a point (B,).
        """
        with objective.quiet(), torch.no_grad():
            batch = next(iter(objective.batches))[0]
            own = self._one(objective, objective.values, batch)[0]
            return own, float(self._many(objective, row[None], batch)[0, 0])

    def _block(self, coefficients: Floats) -> tuple[Floats, Floats]:
        found = [
            self._on(objective, coefficients) for objective in self.objectives.values()
        ]
        self.spent += len(coefficients) * len(found) / 3
        return np.stack([means for means, _ in found]), np.stack(
            [errors for _, errors in found]
        )

    def _on(self, objective: Objective, coefficients: Floats) -> tuple[Floats, Floats]:
        with objective.quiet(), torch.no_grad():
            if self.batched:
                try:
                    found = [
                        self._many(objective, coefficients, batch)
                        for batch, _ in objective.batches
                    ]
                    return _mean(found, objective.batches)
                except (RuntimeError, NotImplementedError) as problem:
                    self._fall_back(problem)
            points = [self._point(row) for row in coefficients]
            found = [
                np.array([self._one(objective, point, batch) for point in points]).T
                for batch, _ in objective.batches
            ]
        return _mean(found, objective.batches)

    def _fall_back(self, problem: Exception) -> None:
        reason = str(problem).strip().splitlines()[0][:150]
        if not self._may_fall_back:
            raise UsageError(
                f"The model cannot be measured at several points at once: {reason} "
                "Leave batched out, or False."
            ) from problem
        self.batched = False
        self.notes += (
            "Points were measured one by one, because the model does not run under "
            f"vmap: {reason}",
        )

    # One point

    def _point(self, row: Floats) -> dict[str, Tensor]:
        factors = torch.as_tensor(row, dtype=self._dtype, device=self._device)
        tensors = {
            name: torch.tensordot(factors, basis, 1)
            for name, basis in self.basis.items()
        }
        return tensors if self._amend is None else {**tensors, **self._amend(tensors)}

    def _one(
        self, objective: Objective, tensors: dict[str, Tensor], batch: Any
    ) -> list[float]:
        if not self._metrics:
            return [float(objective.batch_loss(tensors, batch).detach())]
        outputs, target = objective.batch_outputs(tensors, batch), split(batch)[1]
        functions = (objective.criterion, *self._metrics.values())
        return [
            float(torch.as_tensor(function(outputs, target)).detach())
            for function in functions
        ]

    # A block of points

    def _many(self, objective: Objective, coefficients: Floats, batch: Any) -> Floats:
        """Return what is measured on one batch, (measured, K)."""
        factors = torch.as_tensor(coefficients, dtype=self._dtype, device=self._device)
        if self._whole:
            losses = vmap(lambda t: objective.batch_loss(t, batch))(
                self._points(factors)
            )
            if not self._metrics:
                return _numbers(losses)[None]
        outputs, target = self._outputs(objective, factors, batch), split(batch)[1]
        found = [
            losses if self._whole else mean_loss(self._loss, objective, outputs, target)
        ]
        found += [
            vmap(lambda o, m=metric: m(o, target))(outputs)
            for metric in self._metrics.values()
        ]
        return np.stack([_numbers(values) for values in found])

    def _points(self, factors: Tensor) -> dict[str, Tensor]:
        return {
            name: torch.tensordot(factors, basis, 1)
            for name, basis in self.basis.items()
        }

    def _predictions(
        self, predict: Predictor, factors: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Return what gives outputs at a block's points, made once for all batches."""
        if self._kept is None or not torch.equal(self._kept[0], factors):
            if hasattr(predict, "at_points"):
                self._kept = factors, predict.at_points(self.basis, factors)
            else:
                self._kept = factors, partial(predict, self._points(factors))
        made: Callable[[Tensor], Tensor] = self._kept[1]
        return made

    def _outputs(self, objective: Objective, factors: Tensor, batch: Any) -> Tensor:
        inputs = split(batch)[0]
        if self._predict is not None:
            return self._predictions(self._predict, factors)(inputs)
        if self._blocks is not None and self._blocks.takes(inputs):
            return self._blocks.outputs(factors, inputs)
        found: Tensor = vmap(lambda t: objective.batch_outputs(t, batch))(
            self._points(factors)
        )
        return found


def mean_loss(
    loss: Loss, objective: Objective, outputs: Tensor, target: Tensor
) -> Tensor:
    """Return the mean loss of each of K outputs (K, N, ...), as (K,).

    The two common losses are written out: under vmap cross-entropy took as long as the
    network.
    """
    if loss == "mse" and outputs.shape[1:] == target.shape:
        return (outputs - target).square_().flatten(1).mean(1)
    if (
        loss == "cross_entropy"
        and outputs.ndim == 3
        and target.ndim == 1
        and not target.is_floating_point()
    ):
        scores, counted = outputs.transpose(1, 2), target != IGNORED
        likelihood = scores.gather(1, target.clamp(min=0).expand(len(scores), 1, -1))[
            :, 0
        ]
        return ((scores.logsumexp(1) - likelihood) * counted).sum(1) / counted.sum()
    found: Tensor = vmap(lambda o: objective.criterion(o, target))(outputs)
    return found


def _numbers(values: Tensor) -> Floats:
    return values.double().cpu().numpy()


def _mean(found: Sequence[Floats], batches: Batches) -> tuple[Floats, Floats]:
    """Return batches' weighted mean (measured, K), and its standard error.

    The loss, which comes first, weighs by what it is a mean over, such as targets that
    are not ignored; the metrics weigh by samples.
    """
    means = np.zeros_like(found[0], dtype=np.float64)
    others = len(found[0]) - 1
    weights = [
        np.array([own, *[share] * others])[:, None]
        for own, share in zip(batches.weights, batches.sample_weights, strict=True)
    ]
    for values, weight in zip(found, weights, strict=True):
        # Objective.loss adds in this order, too: the ends are equal to the bit.
        means += weight * values
    if len(found) < 2:
        return means, np.full_like(means, math.nan)
    with np.errstate(invalid="ignore"):
        squares = sum(
            weight**2 * (v - means) ** 2
            for v, weight in zip(found, weights, strict=True)
        )
        return means, np.sqrt(squares * len(found) / (len(found) - 1))
