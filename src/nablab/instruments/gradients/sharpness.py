"""How far the loss rises near a minimum: three definitions of sharpness.

They measure different neighborhoods, and none of them predicts generalization reliably
(Andriushchenko et al. 2023): Keskar's box depends on how weights are scaled, the
adaptive ball does not change when a ReLU network is rescaled without changing its
function, and the Gaussian average sees typical directions, not the worst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nablab.errors import UsageError, unknown
from nablab.instruments.base.losses import Loss
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.base.objective import Objective
from nablab.instruments.base.rehearsals import Call
from nablab.instruments.gradients.sharpness_searches import (
    Norm,
    search_ball,
    search_box,
)
from nablab.instruments.gradients.stand_ins import by_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Definition = Literal["keskar", "average", "adaptive"]
Floats = npt.NDArray[np.float64]

BLUE, ORANGE = "#0072b2", "#d55e00"
RADII = {"keskar": 1e-3, "average": 1e-2, "adaptive": 5e-3}
SETTLED = 0.01  # converged: the last step raised the rise by less than this share
COARSE = 0.01  # of a step may be lost to the rounding of the weights
LOST = (
    "About {lost:.0%} of a step is lost to the rounding of the weights in {dtype}: "
    "they are large beside the radius. Measure with {remedy}."
)
HIDDEN = (
    "The rise of {rise:.2g} is within the rounding of the loss ({loss:.4g} in "
    "{dtype}), and may not be a rise at all. Measure with {remedy}."
)
LINE_SEARCH = (
    "How many gradients the line searches take is known only when they end: one or two "
    "for each iteration, seldom more."
)


@dataclass(frozen=True, kw_only=True)
class Sharpness(Measurement):
    """What `sharpness` found.

    Attributes:
        sharpness: The value of the definition: for ``"keskar"`` 100 (largest - loss) /
            (1 + loss), for the others the rise of the loss itself. Worst cases are
            lower bounds, as good as the search, and never below 0: the model's own
            point counts.
        standard_error: Of the average over draws; NaN for worst cases, which are
            searched, not sampled.
        definition: ``"keskar"``, ``"average"`` or ``"adaptive"``.
        loss: At the model's own point.
        largest: The largest loss that was found (for ``"average"``: of the draws).
        values: Worst cases: the largest loss so far after each iteration, from the
            start; ``"average"``: the rise of each draw.
        iterations: Steps of the search, or draws.
        bound_share: The share of coordinates at the bound of the box, for a ball the
            used share of the radius; NaN for ``"average"``.
        radius: Size of the neighborhood.
        converged: The search ended by itself, or its last step added less than a
            hundredth of the rise; for ``"average"`` always True.
    """

    sharpness: float
    standard_error: float
    definition: str
    loss: float
    largest: float
    values: Floats
    iterations: int
    bound_share: float
    radius: float
    converged: bool

    def plot(self) -> Figure:
        """Plot the search's progress, or the distribution of the rises."""
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=(5.4, 3.3), layout="constrained")
        ax: Any = figure.subplots()
        if self.definition == "average":
            ax.hist(
                self.values, bins=max(8, len(self.values) // 5), color=BLUE, alpha=0.6
            )
            ax.axvline(self.sharpness, color=ORANGE, label="mean")
            ax.set_xlabel(f"rise of the loss (radius {self.radius:g})")
            ax.set_ylabel("draws")
        else:
            ax.plot(
                range(len(self.values)),
                self.values,
                "o-",
                ms=3.5,
                color=BLUE,
                label="largest loss so far",
            )
            ax.axhline(self.loss, color=ORANGE, ls="--", label="loss of the model")
            ax.set_xlabel("iterations of the search")
            ax.set_ylabel(f"loss (radius {self.radius:g})")
        ax.legend(frameon=False, fontsize=9)
        return figure


def _expected(
    size: Size,
    *,
    definition: Definition = "keskar",
    iterations: int | None = None,
    draws: int = 50,
    subspace: int | None = None,
    **_: Any,
) -> Expected:
    if definition == "average":
        return Expected(gradients=2 * draws / 3, numbers=3.0 * size.parameters)
    # L-BFGS-B needs two evaluations a step on average, and keeps ten pairs of vectors.
    steps = iterations or (10 if definition == "keskar" else 20)
    evaluations = 2.0 if definition == "keskar" else 1.0
    return Expected(
        gradients=evaluations * steps + 1,
        numbers=(25.0 + (subspace or 0)) * size.parameters,
    )


def _by_scipy(call: Call) -> bool:
    return bool(call.options["definition"] == "keskar")


def _notes(call: Call) -> tuple[str, ...]:
    return (LINE_SEARCH,) if _by_scipy(call) else ()


@instrument(
    expected=_expected,
    rehearse=by_losses(lambda: _sharpness_of, arrays=_by_scipy, notes=_notes),
)
def sharpness(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    definition: Definition = "keskar",
    radius: float | None = None,
    iterations: int | None = None,
    subspace: int | None = None,
    draws: int = 50,
    relative: bool = False,
    norm: Norm = "linf",
    parameters: str | Sequence[str] = "*",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Sharpness:
    r"""Measure how far the loss rises in a neighborhood of the model's weights.

    Args:
        model: Any module, with weights :math:`x`, in the mode in which it is to be
            measured.
        loss: A name, ``loss(output, target)`` or a `Closure`; see `Objective`.
        data: One batch, batches of any sizes, or a data set.
        definition: ``"keskar"``: :math:`100 (\max_z f(x + z) - f(x)) / (1 + f(x))` over
            the box :math:`|z_i| \le \epsilon (|x_i| + 1)`, by ten iterations of
            L-BFGS-B (Keskar et al. 2017, :math:`\epsilon` = 1e-3 and 5e-4).
            ``"average"``: the mean of :math:`f(x + z) - f(x)` over :math:`z \sim N(0,
            \sigma^2 I)`. ``"adaptive"``: the largest :math:`f(x + z) - f(x)` with
            :math:`\|z / |x|\| \le \rho`, by Auto-PGD (Kwon et al. 2021; Andriushchenko
            et al. 2023).
        radius: :math:`\epsilon` (default 1e-3), :math:`\sigma` (1e-2) or :math:`\rho`
            (5e-3).
        iterations: Of the search; 10 for ``"keskar"``, 20 for ``"adaptive"``.
        subspace: For ``"keskar"``: search a random subspace of this many dimensions,
            the box being :math:`|y_i| \le \epsilon (|(A^+ x)_i| + 1)` for :math:`z = A
            y` with orthonormal columns of A.
        draws: For ``"average"``: pairs :math:`\pm z`; a pair cancels the gradient's
            part of the rise.
        relative: For ``"average"``: :math:`\sigma |x_i|` as the standard deviation of
            each weight.
        norm: For ``"adaptive"``: ``"linf"`` (each weight changes by at most :math:`\rho
            |x_i|`) or ``"l2"``.
        parameters: Names or glob patterns of the parameters that may move.
        dtype: The dtype of the loss; the search itself is in float64. Half precision
            would round the steps away and is refused; a model in half precision is
            measured in float32.
        batch_size: Cut batches, to bound the memory.
        seed: For draws, subspaces and random starts.

    Raises:
        UsageError: See `Objective`; an unknown definition or norm, a number that cannot
            work, or half precision.

    Keskar et al., "On large-batch training for deep learning", ICLR 2017,
    arXiv:1609.04836. Kwon et al., "ASAM", ICML 2021, arXiv:2102.11600. Croce and Hein,
    "Reliable evaluation of adversarial robustness", ICML 2020, arXiv:2003.01690
    (Auto-PGD). Andriushchenko et al., "A modern look at the relationship between
    sharpness and generalization", ICML 2023, arXiv:2302.07011.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(1.0)
    >>> batch = (torch.ones(4, 1), torch.ones(4, 1))
    >>> result = sharpness(model, "mse", batch, radius=0.1, dtype=torch.float64)
    >>> round(result.sharpness, 6)  # 100 (0.2^2 - 0) / (1 + 0)
    4.0
    """
    # Options are checked before the model runs.
    _check_options(definition, norm, radius, iterations, subspace, draws)
    return _sharpness_of(
        Objective(
            model, loss, data, parameters=parameters, dtype=dtype, batch_size=batch_size
        ),
        definition=definition,
        radius=radius,
        iterations=iterations,
        subspace=subspace,
        draws=draws,
        relative=relative,
        norm=norm,
        seed=seed,
    )


def _sharpness_of(
    objective: Objective,
    *,
    definition: Definition,
    radius: float | None,
    iterations: int | None,
    subspace: int | None,
    draws: int,
    relative: bool,
    norm: Norm,
    seed: int,
) -> Sharpness:
    """Return the sharpness of any loss."""
    radius = _check_options(definition, norm, radius, iterations, subspace, draws)
    generator = torch.Generator().manual_seed(seed)
    _note_lost_steps(objective, definition, radius, subspace, relative, norm)
    value = objective.loss()
    if definition == "average":
        return _average(objective, value, radius, draws, relative, generator)
    if definition == "keskar":
        allowed = iterations or 10
        found, steps, share = search_box(
            objective, radius, allowed, subspace, generator
        )
    else:
        allowed = iterations or 20
        found, steps, share = search_ball(objective, radius, allowed, norm, generator)
    values = np.maximum.accumulate([value, *found])
    rise = float(values[-1]) - value
    last = float(values[-1] - values[-2]) if len(values) > 1 else math.inf
    _note_hidden_rise(objective, rise, value)
    return Sharpness(
        sharpness=100 * rise / (1 + value) if definition == "keskar" else rise,
        standard_error=math.nan,
        definition=definition,
        loss=value,
        largest=float(values[-1]),
        values=values,
        iterations=steps,
        bound_share=share,
        radius=radius,
        converged=steps < allowed or last <= SETTLED * rise,
        gradients=objective.spent,
        notes=objective.notes,
    )


def _average(
    objective: Objective,
    value: float,
    radius: float,
    draws: int,
    relative: bool,
    generator: torch.Generator,
) -> Sharpness:
    point = objective.point
    scale = radius * (point.abs() if relative else torch.ones_like(point))
    rises, largest = [], value
    for _ in range(draws):
        # Drawn on the CPU in float64, so that every device and dtype sees the same
        # directions.
        normal = torch.randn(len(point), generator=generator, dtype=torch.float64)
        step = scale * normal.to(point)
        pair = [objective.loss(point + step), objective.loss(point - step)]
        largest = max(largest, *pair)
        rises.append(sum(pair) / 2 - value)
    values = np.array(rises)
    _note_hidden_rise(objective, float(values.mean()), value)
    return Sharpness(
        sharpness=float(values.mean()),
        standard_error=float(values.std(ddof=1)) / math.sqrt(draws),
        definition="average",
        loss=value,
        largest=largest,
        values=values,
        iterations=draws,
        bound_share=math.nan,
        radius=radius,
        converged=True,
        gradients=objective.spent,
        notes=objective.notes,
    )


def _note_lost_steps(
    objective: Objective,
    definition: str,
    radius: float,
    subspace: int | None,
    relative: bool,
    norm: str,
) -> None:
    """Say so if the weights' last digits are no longer small beside the steps."""
    point = objective.point.double()
    length = float(point.norm())
    if definition == "keskar" and subspace is None:
        step = radius * float((point.abs() + 1).norm())
    elif definition == "keskar":
        step = radius * (length + math.sqrt(min(subspace or 0, len(point))))
    elif definition == "average":
        step = radius * (length if relative else math.sqrt(len(point)))
    else:  # in the ball, every weight moves by the same share of the radius
        step = radius * length / (math.sqrt(len(point)) if norm == "l2" else 1.0)
    digit = torch.finfo(objective.dtype).eps / 2 * length
    if digit > COARSE * step:
        lost = min(digit / step, 1.0) if step else 1.0
        note = LOST.format(
            lost=lost, dtype=_name(objective.dtype), remedy=_remedy(objective.dtype)
        )
        objective.notes += (note,)


def _note_hidden_rise(objective: Objective, rise: float, value: float) -> None:
    """Say so if the loss in its dtype cannot tell the rise from none."""
    if value and abs(rise) <= 10 * torch.finfo(objective.dtype).eps * abs(value):
        kinds = {"dtype": _name(objective.dtype), "remedy": _remedy(objective.dtype)}
        objective.notes += (HIDDEN.format(rise=rise, loss=value, **kinds),)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _remedy(dtype: torch.dtype) -> str:
    return (
        "a larger radius="
        if dtype == torch.float64
        else "dtype=torch.float64, or a larger radius="
    )


def _check_options(
    definition: str,
    norm: str,
    radius: float | None,
    iterations: int | None,
    subspace: int | None,
    draws: int,
) -> float:
    if definition not in RADII:
        raise unknown("definition of sharpness", definition, RADII)
    if norm not in get_args(Norm):
        raise unknown("norm", norm, get_args(Norm))
    radius = RADII[definition] if radius is None else radius
    if not 0 < radius < math.inf:
        raise UsageError(
            f"radius={radius} is not a neighborhood: it must be above 0 and finite."
        )
    for name, value, least in (
        ("iterations", iterations, 1),
        ("subspace", subspace, 1),
        ("draws", draws, 2),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name}={value} is too few: at least {least}.")
    if subspace is not None and definition != "keskar":
        raise UsageError(
            f"A subspace is for definition='keskar'; '{definition}' has "
            "none. Leave it out."
        )
    return radius
