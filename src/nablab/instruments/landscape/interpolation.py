"""The loss along the straight line through two models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nablab.errors import UsageError, unknown
from nablab.instruments.base.batches import read_batches
from nablab.instruments.base.losses import Closure, Loss
from nablab.instruments.base.measurement import Expected, Measurement, instrument
from nablab.instruments.base.objective import Objective
from nablab.instruments.base.rehearsals import Call, Trial, Trials, by_trials
from nablab.instruments.landscape.batch_norm import BatchNormEstimator, tracks
from nablab.instruments.landscape.scan import (
    Metrics,
    Predictor,
    Scan,
    by_name,
    check_match,
    data_sets,
    model_tensors,
    points_at_once,
    read_metrics,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

FEW_POINTS = (4, 12)  # these tell what `MANY_POINTS` and more cost
MANY_POINTS = 36
COLORS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7")
# Relative; other dtypes 1e-3: one loss by two routes. In float64 more than rounding is
# allowed, for models of the transformers library compute their loss in float32 whatever
# they are in.
SAME_FUNCTION = {torch.float64: 1e-6}


@dataclass(frozen=True, kw_only=True)
class Interpolation(Measurement):
    r"""What `interpolate` found.

    Attributes:
        alphas: float64 (A,), ascending; 0 is the first model and 1 the second.
        values: By data set, then by metric ("loss" first): float64 (A,).
        barrier: The largest rise of the loss on the first data set above the straight
            line between the ends, for alpha from 0 to 1: :math:`\max_\alpha f(\alpha) -
            (1-\alpha) f(0) - \alpha f(1)`; at least 0, NaN if the loss of an end
            overflows.
        barrier_alpha: Where it is; 0 if there is none.
        monotone: Whether the loss on the first data set never rises from alpha = 0 to 1
            by more than rounding.
        distance: The Euclidean distance between the two models' parameters.
    """

    alphas: Floats
    values: dict[str, dict[str, Floats]]
    barrier: float
    barrier_alpha: float
    monotone: bool
    distance: float

    @property
    def losses(self) -> Floats:
        """The loss on the first data set, (A,)."""
        return next(iter(self.values.values()))["loss"]

    def at(
        self, alpha: float, *, metric: str = "loss", data: str | None = None
    ) -> float:
        """Return a value at an alpha, on the line that joins those measured.

        Args:
            alpha: 0 is the first model, 1 the second.
            metric: ``"loss"`` or another one that was measured.
            data: The data set's name, where there are several.

        Raises:
            UsageError: The alpha lies outside what was measured: there is no
                extrapolation.
        """
        low, high = float(self.alphas[0]), float(self.alphas[-1])
        if not low <= alpha <= high:
            raise UsageError(
                f"alpha={alpha} lies outside what was measured ({low:g} to {high:g}), "
                "and nothing is extrapolated. Call interpolate with alphas that reach "
                "it."
            )
        return float(np.interp(alpha, self.alphas, self._curve(metric, data)))

    def barrier_of(
        self, metric: str = "loss", *, data: str | None = None
    ) -> tuple[float, float]:
        """Return a metric's largest rise above the line between the ends, and where.

        "error" stands for accuracy.

        Args:
            metric: ``"loss"``, ``"error"`` or another one that was measured.
            data: The data set's name, where there are several.
        """
        return _barrier(self.alphas, self._curve(metric, data))

    def plot(self) -> Figure:
        """Plot the metrics against alpha, a panel each.

        One line is drawn per data set, and the two models are dots.
        """
        from matplotlib.figure import Figure

        metrics = list(next(iter(self.values.values())))
        figure = Figure(
            figsize=(8.0 if len(metrics) > 1 else 5.6, 3.4), layout="constrained"
        )
        grid = figure.subplots(1, len(metrics), squeeze=False)
        for ax, metric in zip(grid[0], metrics, strict=True):
            self._panel(ax, metric)
        if len(self.values) > 1:
            grid[0, 0].legend(frameon=False)
        return figure

    def _panel(self, ax: Axes, metric: str) -> None:
        ends = np.isin(self.alphas, (0.0, 1.0))
        drawn = []
        for color, (name, values) in zip(
            COLORS * len(self.values), self.values.items(), strict=False
        ):
            curve = values[metric]
            ax.plot(self.alphas, curve, color=color, lw=1.6, label=name)
            ax.plot(self.alphas[ends], curve[ends], "o", color=color, ms=6)
            drawn.append(curve[np.isfinite(curve)])
        finite = np.concatenate(drawn)
        if (
            metric == "loss"
            and finite.size
            and finite.min() > 0
            and finite.max() > 30 * finite.min()
        ):
            ax.set_yscale("log")
        for end in (0, 1):
            ax.axvline(end, color="#767676", lw=0.6, zorder=0)
        ax.set_xlabel("alpha (0: first model, 1: second)")
        ax.set_ylabel(metric)
        ax.spines[["top", "right"]].set_visible(False)

    def _curve(self, metric: str, data: str | None) -> Floats:
        name = next(iter(self.values)) if data is None else data
        if name not in self.values:
            raise unknown("data set", name, self.values)
        if metric not in self.values[name]:
            raise unknown("metric", metric, self.values[name])
        return self.values[name][metric]


def _expected(size: Any, *, count: int = 61, alphas: Any = None, **_: Any) -> Expected:
    points = count if alphas is None else len(alphas)
    return Expected(gradients=(points + 3) / 3, numbers=4.0 * size.parameters)


def _trials(call: Call) -> Trials:
    """Return trials of two short lines for a long one.

    Of a short line, the trial is the line itself.
    """
    asked = _alphas(
        *(call.options[name] for name in ("alphas", "low", "high", "count"))
    )
    points = len(asked)
    few = (
        [np.linspace(0, 1, own) for own in FEW_POINTS]
        if points >= MANY_POINTS
        else [asked]
    )
    trials = tuple(Trial((len(alphas),), {"alphas": alphas}) for alphas in few)
    at_once = min(points, points_at_once(call.parameters))
    return Trials((points,), trials, bytes_until=(at_once,), bytes_may_stop=True)


def _arguments(call: Call, data: Any) -> tuple[Any, ...]:
    return call.model, call.model, call.loss, data


@instrument(expected=_expected, rehearse=by_trials(_trials, _arguments))
def interpolate(
    model_a: nn.Module,
    model_b: nn.Module,
    loss: Loss,
    data: Any,
    *,
    alphas: npt.ArrayLike | None = None,
    low: float = -1.0,
    high: float = 2.0,
    count: int = 61,
    metrics: Metrics = (),
    reestimate_batch_norm: Any = False,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    batched: bool | None = None,
    predict: Predictor | None = None,
) -> Interpolation:
    r"""Measure the models on the straight line between two models.

    The models are :math:`\theta(\alpha) = (1-\alpha)\theta_a + \alpha\theta_b`.

    All parameters, frozen ones too, and all floating-point buffers (the running
    statistics of batch norm) are interpolated; integer buffers are those of the first
    model. The two ends are measured on the models themselves and are exact to the bit:
    adding ``alpha (b - a)`` to a would not give b. No interpolated model is trained.

    Halfway between two networks the interpolated batch-norm statistics are wrong for
    the interpolated weights: a barrier may be theirs alone. With
    ``reestimate_batch_norm`` they are collected again at every alpha, the ends included
    (see `BatchNormEstimator`), so that the curve has no jump there.

    Source: Goodfellow, Vinyals and Saxe, "Qualitatively characterizing neural network
    optimization
        problems", ICLR 2015, arXiv:1412.6544; Frankle et al., "Linear mode connectivity
        and the lottery ticket hypothesis", ICML 2020, arXiv:1912.05671 (barrier).

    Args:
        model_a: The model at alpha = 0, in the mode in which it is to be measured
            (usually ``eval()``).
        model_b: The model at alpha = 1; its tensors have the same names and shapes.
        loss: A name, a function ``loss(output, target)`` or a `Closure`.
        data: One batch, an iterable of batches, or a data set; or several of these as
            ``{"train": ..., "test": ...}``.
        alphas: The alphas to measure; 0 and 1 are added. Replaces ``low``, ``high`` and
            ``count``.
        low: The lowest alpha.
        high: The highest alpha.
        count: Number of evenly spaced alphas.
        metrics: What is measured beside the loss: ``"accuracy"``, ``"error"``, or
            ``{name: function}`` with functions (outputs, target) that give the mean
            over a batch.
        reestimate_batch_norm: False, True (on the first data set), or the data to
            collect statistics on.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches into pieces of at most this many samples.
        batched: Measure many alphas at once (`torch.func.vmap`); None: for small
            models. Equal up to rounding.
        predict: Computes the outputs (K, N, ...) of K models from their stacked tensors
            (K, ...) by name and inputs (N, ...), where you have something faster than
            PyTorch, such as `nablab.training.stacked_predictor`. The ends are predicted
            too, then, after a comparison with the models on the first batch. Not used
            where batch-norm statistics are re-estimated.

    Raises:
        UsageError: The models do not match (the tensor and both shapes are named) or
            compute different functions of the same tensors; alphas that are not
            numbers; and what `Objective` raises.

    >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> result = interpolate(a, b, "mse", (torch.ones(3, 1), torch.ones(3, 1)), count=7)
    >>> result.alphas
    array([-1. , -0.5,  0. ,  0.5,  1. ,  1.5,  2. ])
    >>> result.barrier  # the loss is convex along the line
    0.0
    """
    asked = _alphas(alphas, low, high, count)
    functions = read_metrics(metrics, loss)
    check_match(model_a, model_b)
    sets = data_sets(data)
    first = {
        name: Objective(model_a, loss, part, dtype=dtype, batch_size=batch_size)
        for name, part in sets.items()
    }
    second = {
        name: Objective(model_b, loss, iter(own.batches.items), dtype=own.dtype)
        for name, own in first.items()
    }
    own_a, own_b = next(iter(first.values())), next(iter(second.values()))
    tensors_a, tensors_b = model_tensors(own_a), model_tensors(own_b)
    basis = {
        name: torch.stack([tensor, tensors_b[name].to(tensor)])
        for name, tensor in tensors_a.items()
    }
    amend = _amend(model_a, loss, own_a, reestimate_batch_norm, batch_size)
    scan = Scan(
        model_a,
        loss,
        first,
        basis,
        functions,
        batched=batched,
        predict=predict,
        amend=amend,
    )
    means, _ = scan(np.stack([1 - asked, asked], axis=1))
    ends: dict[float, list[Floats]] = {}
    if scan.predicts:
        for alpha, own in ((0.0, own_a), (1.0, own_b)):
            loss_of_model, routed = scan.check_prediction(
                own, np.array([1 - alpha, alpha])
            )
            _check_function(
                routed,
                loss_of_model,
                own.dtype,
                by="predict" if alpha == 0 else "the first model",
            )
    else:
        for alpha, objectives in ((0.0, first), (1.0, second)):
            ends[alpha] = [scan.own(objective)[0] for objective in objectives.values()]
        if amend is None:
            _check_function(
                float(means[0, 0, asked == 1][0]), float(ends[1.0][0][0]), own_a.dtype
            )
            for alpha, values in ends.items():
                means[:, :, asked == alpha] = np.stack(values)[:, :, None]
    curve = means[0, 0]
    barrier, barrier_alpha = _barrier(asked, curve)
    squared = sum(
        float((basis[name][1] - basis[name][0]).double().square().sum())
        for name in dict(model_a.named_parameters())
    )
    spent = (
        scan.spent
        + sum(o.spent for o in (*first.values(), *second.values()))
        + (amend.passes / 3 if amend else 0)
    )
    return Interpolation(
        alphas=asked,
        values=by_name(means, first, scan.measured),
        barrier=barrier,
        barrier_alpha=barrier_alpha,
        monotone=_monotone(asked, curve, own_a.dtype),
        distance=math.sqrt(squared),
        gradients=spent,
        notes=(
            *own_a.notes,
            *scan.notes,
            *_notes(model_a, model_b, ends, amend),
            *_not_finite(model_a, curve),
        ),
    )


def _alphas(
    alphas: npt.ArrayLike | None, low: float, high: float, count: int
) -> Floats:
    if alphas is None:
        if not (low < high and math.isfinite(high - low)) or count < 2:
            raise UsageError(
                f"low={low}, high={high}, count={count} are impossible: low lies below "
                "high, and it takes two alphas."
            )
        alphas = np.linspace(low, high, count)
    asked = np.asarray(alphas, dtype=np.float64).ravel()
    if not asked.size or not np.isfinite(asked).all():
        raise UsageError(
            f"alphas={alphas!r} are impossible: give finite numbers, such as "
            "np.linspace(-1, 2, 61)."
        )
    for end in (0.0, 1.0):  # linspace may miss them by a rounding error
        asked = np.append(asked[np.abs(asked - end) > 1e-12], end)
    return np.unique(asked)


def _check_function(
    routed: float, own: float, dtype: torch.dtype, *, by: str = "the first model"
) -> None:
    """Check that a model's weights give its loss in the first model.

    ``predict`` takes the place of the first model where it is given.
    """
    tolerance = SAME_FUNCTION.get(dtype, 1e-3)
    overflowed = not (math.isfinite(routed) or math.isfinite(own))
    if overflowed or abs(routed - own) <= tolerance * max(abs(own), 1e-6):
        return
    if by == "predict":
        raise UsageError(
            "predict computes another function than the models: on the first batch it "
            f"gives a loss of {routed:.6g} for the first model, the model itself "
            f"{own:.6g}."
        )
    raise UsageError(
        "The models hold tensors of the same names and shapes but compute different "
        "functions: with the second one's weights the first gives a loss of "
        f"{routed:.6g}, the second {own:.6g}. Give models that differ in weights "
        "alone: the same activations, modes, integer buffers and unregistered layers."
    )


def _amend(
    model: nn.Module,
    loss: Loss,
    objective: Objective,
    asked: Any,
    batch_size: int | None,
) -> BatchNormEstimator | None:
    if asked is False or asked is None:
        return None
    batches = objective.batches
    if asked is not True:
        samples = loss.samples if isinstance(loss, Closure) else None
        batches = read_batches(
            asked,
            device=objective.device,
            dtype=objective.dtype,
            batch_size=batch_size,
            samples=samples,
        )
    return BatchNormEstimator(model, batches, loss)


def _notes(
    model_a: nn.Module, model_b: nn.Module, ends: Mapping[float, Any], amend: Any
) -> tuple[str, ...]:
    notes = []
    others = dict(model_b.named_buffers())
    for name, buffer in model_a.named_buffers():
        counts_batches = name.rpartition(".")[2] == "num_batches_tracked"
        if (
            not buffer.is_floating_point()
            and not counts_batches
            and not torch.equal(buffer, others[name].to(buffer))
        ):
            notes.append(
                f"The integer buffer '{name}' differs; between the models it "
                "is that of the first."
            )
    if amend is not None:
        notes.append(
            "Batch-norm statistics were collected again at every alpha. With their own "
            f"statistics the models have the losses {float(ends[0.0][0][0]):.6g} and "
            f"{float(ends[1.0][0][0]):.6g}."
        )
    return tuple(notes)


def _not_finite(model: nn.Module, curve: Floats) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if overflows := int(np.isinf(curve).sum()):
        notes = (f"The loss overflows at {overflows} of {len(curve)} alphas.",)
    count = int(np.isnan(curve).sum())
    if not count:
        return notes
    reason = ""
    if any(tracks(module) for module in model.modules()):
        reason = (
            " Beyond the ends an interpolated batch-norm variance can be negative; "
            "reestimate_batch_norm=True collects true ones."
        )
    return (
        *notes,
        f"The loss is not a number at {count} of {len(curve)} alphas.{reason}",
    )


def _barrier(alphas: Floats, curve: Floats) -> tuple[float, float]:
    inside = (alphas >= 0) & (alphas <= 1)
    alpha, values = alphas[inside], curve[inside]
    # An end without bounds leaves the barrier undefined.
    with np.errstate(invalid="ignore"):
        rise = values - ((1 - alpha) * values[0] + alpha * values[-1])
    rise[[0, -1]] = 0.0
    place = int(np.argmax(rise))  # NaN, a loss that overflows, is the largest
    return float(rise[place]), float(alpha[place])


def _monotone(alphas: Floats, curve: Floats, dtype: torch.dtype) -> bool:
    values = curve[(alphas >= 0) & (alphas <= 1)]
    if not np.isfinite(values).all():
        return False
    rounding = 10 * torch.finfo(dtype).eps * float(np.max(np.abs(values)))
    return bool(np.all(np.diff(values) <= rounding))
