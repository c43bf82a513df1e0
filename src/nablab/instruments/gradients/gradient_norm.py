r"""Norms of weight gradients: of all data, each layer, each batch and each sample.

The gradient of a batch is the full gradient plus noise. For B samples drawn at random
:math:`E\|g_B\|^2 = \|g\|^2 + \mathrm{tr}(\Sigma) / B`, so the norm of a minibatch
gradient stays large where the full gradient vanishes. They are different quantities,
and both are reported here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from nablab.errors import UsageError
from nablab.instruments.base.batches import (
    count_samples,
    map_tensors,
    part_of,
    tensors_in,
)
from nablab.instruments.base.losses import MISFITS, Closure, Loss
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.base.objective import Objective
from nablab.instruments.base.rehearsals import Call, Trial, Trials, by_trials
from nablab.instruments.gradients.gradient_monitor import ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Numbers of per-sample gradients held at once: 64 MB in float32.
GRADIENT_ENTRIES = 2**24
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
MANY_BATCHES = 10  # from this many on, a few tell what all of them cost
_TOLERANCE = {torch.float64: 1e-8}  # relative; other dtypes 1e-3
PARAMETERS_SHOWN = 24  # parameters that a figure has room for
LOOP = (
    "Per-sample gradients were taken one by one: torch.func.vmap cannot run this "
    "model or loss ({why})."
)
BATCH_NOISE = (
    "The noise was measured between the batches as they came: they should "
    "be random samples."
)


@dataclass(frozen=True, kw_only=True)
class GradientNorm(Measurement):
    r"""What `gradient_norm` found.

    Attributes:
        loss: The mean loss over all data.
        norm: :math:`\|g\|`, the Euclidean norm of the gradient of the mean loss over
            all data.
        relative: :math:`\|g\| / \|\theta\|`; infinite at the origin.
        parts: The norm of each parameter's part of the gradient.
        relative_parts: Each of them divided by the norm of its parameter; infinite for
            a parameter of zeros.
        batch_norms: float64 (K,), the norm of each batch's own gradient.
        batch_samples: int64 (K,), the samples of each batch.
        sample_norms: float64 (N,), the norm of each sample's gradient; empty if not
            asked for.
        noise: An unbiased estimate of :math:`\mathrm{tr}(\Sigma)`, the variance of one
            sample's gradient summed over parameters, with the data as a sample of more;
            NaN if not asked for.
        noise_error: Its standard error.
        noise_scale: :math:`\mathrm{tr}(\Sigma) / \|G\|^2` (McCandlish et al. 2018), the
            batch size up to which larger batches pay; :math:`\|G\|^2` is the unbiased
            :math:`\|g\|^2 - \mathrm{tr}(\Sigma)/N`. Infinite where the gradient cannot
            be told from noise.
        noise_scale_error: Its standard error, to first order.
    """

    loss: float
    norm: float
    relative: float
    parts: dict[str, float]
    relative_parts: dict[str, float]
    batch_norms: Floats
    batch_samples: Integers
    sample_norms: Floats
    noise: float
    noise_error: float
    noise_scale: float
    noise_scale_error: float

    def plot(self) -> Figure:
        """Plot the parameters' norms, and those of samples or batches."""
        from matplotlib.figure import Figure as Canvas
        from matplotlib.ticker import NullFormatter

        several = len(self.batch_norms) > 1 or len(self.sample_norms) > 0
        largest = sorted(self.parts.items(), key=lambda item: -item[1])[
            :PARAMETERS_SHOWN
        ]
        shown = [name for name in self.parts if name in dict(largest)]
        figure = Canvas(
            figsize=(8.4 if several else 5.2, 1.6 + 0.2 * len(shown)),
            layout="constrained",
        )
        axes: Any = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
        axes[0].plot(
            [self.parts[name] for name in shown], range(len(shown)), "o", color=BLUE
        )
        axes[0].axvline(self.norm, color=ORANGE, label="all parameters")
        axes[0].set_yticks(range(len(shown)), shown)
        axes[0].invert_yaxis()
        norms = [self.parts[name] for name in shown]
        if 0 < 10 * min(norms) < max(norms):
            axes[0].set_xscale("log")
            axes[0].xaxis.set_minor_formatter(NullFormatter())
        hidden = len(self.parts) - len(shown)
        axes[0].set_xlabel(
            "gradient norm" + (f" (the {hidden} smallest not shown)" if hidden else "")
        )
        axes[0].legend(frameon=False, fontsize=9)
        if several:
            self._draw_spread(axes[1])
        return figure

    def _draw_spread(self, ax: Any) -> None:
        kind, norms = (
            ("samples", self.sample_norms)
            if len(self.sample_norms)
            else ("batches", self.batch_norms)
        )
        ax.hist(norms, bins=min(40, max(8, len(norms) // 10)), color=BLUE, alpha=0.6)
        ax.axvline(self.norm, color=ORANGE, label="full gradient")
        root = math.sqrt(float(np.mean(norms**2)))
        ax.axvline(root, color=GREEN, ls="--", label=f"root mean square of {kind}")
        ax.set_xlabel(f"gradient norm of single {kind}")
        ax.set_ylabel(kind)
        ax.legend(frameon=False, fontsize=9)


def _expected(
    size: Size, *, per_sample: bool = False, noise: bool = False, **_: Any
) -> Expected:
    held = 3.0 * size.parameters + (
        max(GRADIENT_ENTRIES, size.parameters) + size.samples if per_sample else 0
    )
    return Expected(gradients=2.0 if per_sample or noise else 1.0, numbers=held)


def _trials(call: Call) -> Trials:
    """Return trials of a few of many batches.

    Of few batches, the trial is the call itself, which is short.
    """
    samples = call.sets.samples()
    few = (
        [sum(samples[:count]) for count in (2, 3)]
        if len(samples) >= MANY_BATCHES
        else [sum(samples)]
    )
    return Trials(
        (sum(samples),), tuple(Trial((count,), samples=count) for count in few)
    )


@instrument(expected=_expected, rehearse=by_trials(_trials))
def gradient_norm(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    parameters: str | Sequence[str] = "*",
    per_sample: bool = False,
    noise: bool = False,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> GradientNorm:
    """Measure gradient norms: of all data, per parameter, batch and sample.

    Args:
        model: Any module, in the mode in which it is to be measured.
        loss: A name, ``loss(output, target)`` or a `Closure`; see `Objective`.
        data: One batch, batches of any sizes, or a data set. The batches are those of
            `batch_norms`.
        parameters: Names or glob patterns of the parameters that count.
        per_sample: Measure the gradient of every sample too, and the gradient noise
            from them.
        noise: Without ``per_sample``: measure the noise between the batches, for one
            more gradient.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches into pieces of at most this many samples, each with its
            own norm.

    Raises:
        UsageError: See `Objective`; or noise is asked for of a single batch or sample.

    McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training",
    2018, arXiv:1812.06162.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(0.0)
    >>> data = torch.ones(2, 1), torch.tensor([[1.0], [3.0]])
    >>> result = gradient_norm(model, "mse", data, per_sample=True)
    >>> result.norm, result.sample_norms, result.noise
    (4.0, array([2., 6.]), 8.0)
    """
    objective = Objective(
        model, loss, data, parameters=parameters, dtype=dtype, batch_size=batch_size
    )
    total = objective.batches.total
    units = total if per_sample else len(objective.batches)
    if (per_sample or noise) and units < 2:
        kind = "samples" if per_sample else "batches"
        raise UsageError(
            f"The gradient noise is a spread and needs two {kind} at least; the data "
            f"hold {units}. Give more data, or a batch_size below {total}, or "
            "per_sample=True."
        )
    value, gradient, batch_norms = _batch_pass(objective)
    spread = _Spread(gradient.double(), total)
    if per_sample:
        counts = loss.samples if isinstance(loss, Closure) else None
        for rows, weights in _sample_gradients(objective, counts):
            spread.add(rows, weights)
        spread.check_mean(objective.dtype)
    elif noise:
        for batch, samples in zip(
            objective.batches.items, objective.batches.samples, strict=True
        ):
            spread.add(_gradient_of(objective, batch)[1][None], [samples])
        objective.notes += (BATCH_NOISE,)
    objective.spent += per_sample or noise
    parts = {
        name: float(part.double().norm())
        for name, part in objective.unflatten(gradient).items()
    }
    sizes = {
        name: float(part.double().norm()) for name, part in objective.values.items()
    }
    return GradientNorm(
        loss=value,
        norm=spread.norm,
        relative=ratio(spread.norm, float(objective.point.double().norm())),
        parts=parts,
        relative_parts={name: ratio(parts[name], sizes[name]) for name in parts},
        batch_norms=batch_norms,
        batch_samples=np.array(objective.batches.samples, dtype=np.int64),
        sample_norms=np.array(spread.norms if per_sample else []),
        **spread.noise(),
        gradients=objective.spent,
        notes=objective.notes,
    )


def _batch_pass(objective: Objective) -> tuple[float, Tensor, Floats]:
    """Return mean loss, gradient (P,) and the batches' own norms (K,)."""
    total, gradient, norms = 0.0, torch.zeros_like(objective.point), []
    for batch, weight in objective.batches:
        value, own = _gradient_of(objective, batch)
        norms.append(float(own.double().norm()))
        total += weight * value
        gradient += weight * own
    objective.spent += 1
    return total, gradient, np.array(norms)


def _gradient_of(objective: Objective, batch: Any) -> tuple[float, Tensor]:
    leaves = objective.leaves()
    with objective.quiet():
        value = objective.batch_loss(leaves, batch)
        return float(value.detach()), objective.flatten(
            objective.gradients_of(value, leaves)
        )


class _Spread:
    """Squared distances of gradients (of samples or batches) from their mean.

    Everything is in units of a power of two near the gradient's norm: squares neither
    overflow nor vanish, and no digit changes.
    """

    def __init__(self, gradient: Tensor, total: int) -> None:
        self.norm = float(gradient.norm())
        self._unit = (
            math.ldexp(1.0, math.frexp(self.norm)[1])
            if math.isfinite(self.norm)
            else 1.0
        )
        self._gradient, self._total = gradient / self._unit, total
        self.norms: list[float] = []
        self._weights: list[float] = []
        self._distances: list[float] = []
        self._products: list[float] = []
        self._sum = torch.zeros_like(gradient)

    def add(self, rows: Tensor, weights: Sequence[float]) -> None:
        """Take gradients (n, P), each the mean over ``weights`` samples."""
        rows = rows.double() / self._unit
        away = rows - self._gradient
        self.norms += (rows.norm(dim=1) * self._unit).tolist()
        self._distances += away.square().sum(dim=1).tolist()
        self._products += (away @ self._gradient).tolist()
        self._weights += list(weights)
        self._sum += rows.new_tensor(weights) @ rows

    def check_mean(self, dtype: torch.dtype) -> None:
        """Raise `UsageError` unless the gradients' mean is the whole's gradient."""
        apart = self._unit * float(
            (self._sum / sum(self._weights) - self._gradient).norm()
        )
        if apart > _TOLERANCE.get(dtype, 1e-3) * (self.norm + max(self.norms)):
            raise UsageError(
                f"The gradient over the data (norm {self.norm:.6g}) is not the mean of "
                f"the samples' own gradients: they differ by {apart:.2g}. A loss that "
                "sums, class weights, or a model that mixes the samples of a batch do "
                "this. Use reduction='mean', or leave per_sample=False."
            )

    def noise(self) -> dict[str, float]:
        """Return covariance trace and noise scale with standard errors.

        The errors come from the influence of each unit.
        """
        units = len(self._weights)
        if units < 2:
            return dict.fromkeys(
                ("noise", "noise_error", "noise_scale", "noise_scale_error"), math.nan
            )
        weights = np.array(self._weights)
        traces = weights * np.array(self._distances) * units / (units - 1)
        trace = float(traces.mean())
        found = {
            "noise": trace * self._unit * self._unit,
            "noise_error": float(traces.std(ddof=1))
            / math.sqrt(units)
            * self._unit
            * self._unit,
        }
        signal = float(self._gradient.square().sum()) - trace / self._total
        if signal <= 0:
            return {**found, "noise_scale": math.inf, "noise_scale_error": math.nan}
        slope = (
            2 * weights * units / self._total * np.array(self._products)
            - (traces - trace) / self._total
        )
        influence = (traces - trace) / signal - trace / signal**2 * slope
        error = float(influence.std(ddof=1)) / math.sqrt(units)
        return {**found, "noise_scale": trace / signal, "noise_scale_error": error}


def _sample_gradients(
    objective: Objective, counts: Any
) -> Iterator[tuple[Tensor, list[float]]]:
    """Yield gradients (n, P) of single samples, with their weights in the mean."""
    vectorized = True
    chunk = max(1, GRADIENT_ENTRIES // objective.size)
    for batch in objective.batches.items:
        length = count_samples(batch)
        own = [
            bool(tensor.ndim) and len(tensor) == length for tensor in tensors_in(batch)
        ]
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            weights = [
                1.0 if counts is None else counts(part_of(batch, i, i + 1))
                for i in range(start, stop)
            ]
            if vectorized:
                try:
                    yield (
                        _vectorized(objective, part_of(batch, start, stop), own),
                        weights,
                    )
                    continue
                except MISFITS as error:
                    if isinstance(error, torch.OutOfMemoryError | UsageError):
                        raise
                    vectorized = False
                    objective.notes += (
                        LOOP.format(why=str(error).strip().splitlines()[0][:120]),
                    )
            for place, weight in zip(range(start, stop), weights, strict=True):
                yield _alone(objective, batch, place)[None], [weight]


def _alone(objective: Objective, batch: Any, place: int) -> Tensor:
    """Return the gradient (P,) of one sample of a batch."""
    try:
        return _gradient_of(objective, part_of(batch, place, place + 1))[1]
    except MISFITS as error:
        if isinstance(error, torch.OutOfMemoryError | UsageError):
            raise
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UsageError(
            f"Sample {place} of a batch cannot be measured by itself ({why}): the "
            "samples of this batch are tied together, as the nodes of a graph or "
            "packed sequences are. Leave per_sample=False, or give several batches and "
            "noise=True."
        ) from error


def _vectorized(objective: Objective, batch: Any, own: Sequence[bool]) -> Tensor:
    """Return the gradient (n, P) of every sample of a batch.

    ``own`` says which tensors have one row per sample.
    """
    mapped = [
        tensor for tensor, is_own in zip(tensors_in(batch), own, strict=True) if is_own
    ]

    def loss(leaves: dict[str, Tensor], rows: list[Tensor]) -> Tensor:
        remaining, kinds = iter(rows), iter(own)
        sample = map_tensors(
            batch, lambda tensor: next(remaining)[None] if next(kinds) else tensor
        )
        return objective.batch_loss(leaves, sample)

    with objective.quiet(), warnings.catch_warnings():
        # Operations without a batching rule run in a hidden loop and warn that it is
        # slow. The loop over whole samples would be slower still, and the warning made
        # an error keeps the tensors of the pass in memory for good (PyTorch 2.13).
        warnings.filterwarnings("ignore", message=".*batching rule.*")
        found = vmap(grad(loss), in_dims=(None, 0), randomness="different")(
            objective.values, mapped
        )
    return objective.flatten(found)
