r"""How strongly outputs react to inputs: norms of every sample's Jacobian.

The Jacobian of C outputs costs C backward passes for a whole batch, not for each
sample: samples do not mix, so the gradient of the sum over the batch of output c holds
row c of every sample's Jacobian. This is sensitivity to inputs; norms of weight
gradients are another quantity (`gradient_norm`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.instruments.base.losses import Closure, Loss
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.base.rehearsals import Call, Trial, Trials, by_trials
from nablab.instruments.gradients.input_jacobians import (
    JACOBIAN_ENTRIES,
    MOST_PASSES,
    SAMPLES_AT_ONCE,
    Jacobian,
    Method,
    Of,
    prepare,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Norm = Literal["frobenius", "spectral", "loss-gradient"]
Floats = npt.NDArray[np.float64]

BLUE, ORANGE = "#0072b2", "#d55e00"
MANY_PASSES = 6  # forward passes, of which one and two tell what all of them cost
MOST_ROWS = 64  # up to this many outputs, the spectral norm is that of the Jacobian


@dataclass(frozen=True, kw_only=True)
class InputSensitivity(Measurement):
    """What `input_sensitivity` found.

    Attributes:
        norms: float64 (N,), the norm at each sample.
        errors: float64 (N,): 0 for exact values, the standard error of a projection
            estimate, and for power iteration how far the nearest singular value can be.
        mean: The mean over samples.
        standard_error: Of the mean, over samples; NaN for one sample.
        root_mean_square: The root of the mean square; projections estimate the square
            without bias.
        norm: ``"frobenius"``, ``"spectral"`` or ``"loss-gradient"``.
        of: ``"logits"`` (the outputs as they are) or ``"probabilities"``.
        method: ``"reverse"`` or ``"forward"`` mode, ``"projections"`` or ``"power
            iteration"``.
        converged: Whether power iteration reached the tolerance at every sample; True
            for other methods.
    """

    norms: Floats
    errors: Floats
    mean: float
    standard_error: float
    root_mean_square: float
    norm: str
    of: str
    method: str
    converged: bool = True

    def plot(self) -> Figure:
        """Plot the distribution over samples with the mean and its 95 % interval."""
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=(5.6, 3.4), layout="constrained")
        ax: Any = figure.subplots()
        positive = self.norms[self.norms > 0]
        wide = len(positive) == len(self.norms) and positive.max() > 30 * positive.min()
        bins: Any = min(40, max(8, len(self.norms) // 10))
        if wide:
            bins = np.geomspace(positive.min(), positive.max(), bins + 1)
            ax.set_xscale("log")
        ax.hist(self.norms, bins=bins, color=BLUE, alpha=0.6)
        ax.axvline(self.mean, color=ORANGE, label="mean, 95 % interval")
        if math.isfinite(self.standard_error):
            half = 1.96 * self.standard_error
            ax.axvspan(
                self.mean - half, self.mean + half, color=ORANGE, alpha=0.25, lw=0
            )
        what = (
            "norm of the loss gradient"
            if self.norm == "loss-gradient"
            else f"{self.norm} norm of the Jacobian"
        )
        ax.set_xlabel(f"{what} in the input")
        ax.set_ylabel("samples")
        ax.legend(frameon=False, fontsize=9)
        return figure


def _expected(
    size: Size,
    *,
    norm: Norm = "frobenius",
    method: Method = "auto",
    projections: int = 16,
    iterations: int = 100,
    **_: Any,
) -> Expected:
    passes: float = size.outputs
    if norm == "loss-gradient":
        passes = 1
    elif norm == "spectral" and size.outputs > MOST_ROWS:
        passes = 2 * iterations
    elif norm == "frobenius" and (
        method == "projections" or (method == "auto" and size.outputs > MOST_PASSES)
    ):
        passes = projections
    return Expected(
        gradients=(1 + passes) / 3,
        numbers=JACOBIAN_ENTRIES if norm == "spectral" else size.samples,
    )


def _trials(call: Call) -> Trials:
    """Return trials of one and two forward passes of many.

    Of few passes, the trial is the call itself.
    """
    total = sum(call.sets.samples())
    few = (
        [SAMPLES_AT_ONCE, 2 * SAMPLES_AT_ONCE]
        if total >= MANY_PASSES * SAMPLES_AT_ONCE
        else [total]
    )
    return Trials((total,), tuple(Trial((count,), samples=count) for count in few))


def _arguments(call: Call, data: Any) -> tuple[Any, ...]:
    return call.model, data


@instrument(expected=_expected, rehearse=by_trials(_trials, _arguments))
def input_sensitivity(
    model: nn.Module,
    data: Any,
    *,
    norm: Norm = "frobenius",
    of: Of = "logits",
    method: Method = "auto",
    projections: int = 16,
    loss: Loss | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> InputSensitivity:
    r"""Measure a norm of the outputs' Jacobian in the input, at every sample.

    Args:
        model: Any module whose samples do not mix, usually ``model.eval()``; its
            weights may be frozen.
        data: Inputs (one tensor or a mapping), batches (inputs, target), or a data set.
            Targets are used by the loss gradient only. All floating-point inputs count
            as variables.
        norm: ``"frobenius"``; ``"spectral"``, the largest singular value; or
            ``"loss-gradient"``, the Euclidean norm of the gradient of the sample's loss
            in its input.
        of: ``"logits"`` differentiates the outputs as the model gives them;
            ``"probabilities"`` their softmax over axis 1, as Novak et al. 2018 do.
        method: For the Frobenius norm: ``"exact"``; ``"projections"``, from
            :math:`E\|J^\top v\|^2 = \|J\|_F^2` for :math:`v \sim N(0, I)`; ``"auto"``
            is exact up to 256 passes.
        projections: Number of random projections.
        loss: For the loss gradient: a name or ``loss(output, target)``.
        iterations: Power iterations of the spectral norm at most, where there are more
            than 64 outputs.
        tolerance: Relative residual at which power iteration ends.
        dtype: The dtype to measure in; by default the model's own.
        batch_size: Samples per forward pass, to bound the memory.
        seed: For random projections and starts.

    Returns:
        Costs count a backward pass to the inputs alone as a third of a gradient, like a
        forward pass.

    Raises:
        UsageError: An option that does not exist or fit, samples that mix, inputs
            without a derivative.

    Novak et al., "Sensitivity and generalization in neural networks", ICLR 2018,
    arXiv:1802.08760.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> input_sensitivity(model, torch.zeros(3, 2)).norms
    array([5., 5., 5.])
    """
    _check_options(norm, of, method, projections, iterations, loss)
    objective = prepare(
        model, data, of, loss if norm == "loss-gradient" else None, dtype, batch_size
    )
    # It spans backward passes too: checkpointed layers read their weights again.
    with objective.quiet():
        jacobian = Jacobian(objective, of)
        jacobian.check_independence()
    generator = torch.Generator(objective.device).manual_seed(seed)
    if norm == "loss-gradient":
        used, measure = "reverse", jacobian.loss_gradients
    elif norm == "frobenius":
        used = jacobian.choose(method)
        measure = {
            "reverse": jacobian.frobenius_by_rows,
            "forward": jacobian.frobenius_by_columns,
            "projections": lambda batch: jacobian.projected(
                batch, projections, generator
            ),
        }[used]
    elif min(jacobian.outputs, jacobian.inputs) <= MOST_ROWS:
        used, measure = jacobian.choose("exact"), jacobian.spectral
    else:
        used = "power iteration"

        def measure(batch: Tensor) -> tuple[Tensor, Tensor]:
            return jacobian.power_iteration(batch, iterations, tolerance, generator)

    found: list[tuple[Tensor, Tensor]] = []
    for batch, weight in objective.batches:
        jacobian.share = weight
        with objective.quiet(), torch.enable_grad():
            found.append(measure(batch))
    norms = torch.cat([values for values, _ in found]).double().cpu().numpy()
    errors = torch.cat([uncertain for _, uncertain in found]).double().cpu().numpy()
    converged = used != "power iteration" or bool(
        (errors <= tolerance * norms / 2).all()
    )
    return InputSensitivity(
        norms=norms,
        errors=errors,
        mean=float(norms.mean()),
        standard_error=float(norms.std(ddof=1)) / math.sqrt(len(norms))
        if len(norms) > 1
        else math.nan,
        root_mean_square=math.sqrt(float(np.mean(norms**2))),
        norm=norm,
        of=of,
        method=used,
        converged=converged,
        gradients=objective.spent,
        notes=objective.notes,
    )


def _check_options(
    norm: str,
    of: str,
    method: str,
    projections: int,
    iterations: int,
    loss: Loss | None,
) -> None:
    given = {"norm": (norm, Norm), "of": (of, Of), "method": (method, Method)}
    for kind, (value, choices) in given.items():
        if value not in get_args(choices):
            raise unknown(kind, value, get_args(choices))
    if projections < 2 or iterations < 1:
        raise UsageError(
            f"projections={projections}, iterations={iterations}: at least 2 "
            "projections (their spread is the error) and 1 iteration are needed."
        )
    if norm == "loss-gradient" and (loss is None or isinstance(loss, Closure)):
        raise UsageError(
            "norm='loss-gradient' needs loss=: a name such as 'cross_entropy', or a "
            "function loss(output, target)."
        )
