"""The loss on a plane through weight space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.instruments.base.batches import tensors_in
from nablab.instruments.base.losses import Loss
from nablab.instruments.base.measurement import Expected, Measurement, instrument
from nablab.instruments.base.objective import Objective
from nablab.instruments.base.rehearsals import Call, Trial, Trials, by_trials
from nablab.instruments.landscape.directions import (
    Biases,
    Normalization,
    random_directions,
)
from nablab.instruments.landscape.partial_results import PartialResults, fingerprint
from nablab.instruments.landscape.plane_geometry import geometry_of, grid_axes
from nablab.instruments.landscape.scan import (
    Metrics,
    Scan,
    by_name,
    data_sets,
    points_at_once,
    read_metrics,
)
from nablab.instruments.landscape.subsets import random_subset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Values = dict[str, dict[str, Floats]]

CHUNK = 64  # points between two looks at the clock
# Above these resolutions, the small planes that tell the cost are a third of the
# points.
COARSE, FINE = (9, 21)
LEVELS = 18


@dataclass(frozen=True, kw_only=True)
class LossPlane(Measurement):
    r"""The result of `loss_plane` at :math:`\theta + \alpha_i d_1 + \beta_j d_2`.

    Attributes:
        alphas: float64 (R,), along the first direction, ascending; 0 is among them,
            exactly.
        betas: float64 (R,), along the second.
        values: By data set, then by metric ("loss" first): float64 (R, R), ``[j, i]``
            at ``betas[j], alphas[i]``.
        standard_errors: In the same form, for a subset of the data; empty without one.
        center: (j, i) of the model itself; its values are those of the model to the
            bit.
        directions: float64 (2, P).
        kind: ``"random"``, ``"given"``, ``"path"`` or ``"models"``.
        path: float64 (T, 2), the coordinates of a path's points in the plane; empty (0,
            2) without one.
        path_error: float64 (T,), the distance of each from the plane.
        explained: Of a path: the shares of the squared distances from the model along
            the two directions.
        models: float64 (3, 2), the coordinates of three models; empty (0, 2) otherwise.
        model_losses: float64 (3,), the loss of each on the first data set, measured on
            the models themselves.
        degrees_of_freedom: Of the standard errors.
    """

    alphas: Floats
    betas: Floats
    values: Values
    standard_errors: Values
    center: tuple[int, int]
    directions: Floats
    kind: str
    path: Floats
    path_error: Floats
    explained: Floats
    models: Floats
    model_losses: Floats
    degrees_of_freedom: int

    @property
    def losses(self) -> Floats:
        """The loss on the first data set, (R, R)."""
        return next(iter(self.values.values()))["loss"]

    def interval(
        self, metric: str = "loss", *, data: str | None = None
    ) -> tuple[Floats, Floats]:
        """Return the 95 % confidence interval at each point, from a subset's values.

        Args:
            metric: ``"loss"`` or another one that was measured.
            data: The data set's name, where there are several.

        Raises:
            UsageError: All data were measured.
        """
        if not self.standard_errors:
            raise UsageError(
                "There is no interval: all data were measured. It belongs to a random "
                "subset=N of them."
            )
        mean = _chosen(self.values, metric, data)
        half = stdtrit(self.degrees_of_freedom, 0.975) * _chosen(
            self.standard_errors, metric, data
        )
        return mean - half, mean + half

    def plot(self, metric: str = "loss", *, data: str | None = None) -> Figure:
        """Plot contours of a metric, logarithmic over decades.

        The model and what else lies there are marked.

        The circles around the points of a path show their distance from the plane, to
        scale.

        Args:
            metric: ``"loss"`` or another one that was measured.
            data: The data set's name, where there are several.
        """
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        ax = figure.subplots()
        filled, label = self._contours(ax, _chosen(self.values, metric, data), metric)
        bar = figure.colorbar(filled, ax=ax, label=label)
        if "logarithmic" in label:
            low, high = (10**level for level in bar.ax.get_ylim())
            shown = nice_numbers(low, high)
            bar.set_ticks(
                [math.log10(tick) for tick in shown],
                labels=[f"{tick:g}" for tick in shown],
            )
        else:
            bar.locator = MaxNLocator(6)
            bar.update_ticks()
        self._marks(ax)
        names = {"path": "principal component", "models": "distance along direction"}
        share = [f" ({part:.0%} of the path)" for part in self.explained] or ["", ""]
        ax.set_xlabel(f"{names.get(self.kind, 'direction')} 1{share[0]}")
        ax.set_ylabel(f"{names.get(self.kind, 'direction')} 2{share[1]}")
        if self.kind in names:
            ax.set_aspect("equal")
        return figure

    def _contours(self, ax: Axes, values: Floats, name: str) -> tuple[Any, str]:
        shown = np.ma.masked_invalid(values)
        low, high = float(shown.min()), float(shown.max())
        logarithmic = low > 0 and high > 30 * low
        if logarithmic:
            shown, low, high = np.ma.log10(shown), math.log10(low), math.log10(high)
        levels = np.linspace(low, high if high > low else low + 1, LEVELS)
        filled = ax.contourf(self.alphas, self.betas, shown, levels, cmap="viridis")
        ax.contour(
            self.alphas,
            self.betas,
            shown,
            levels,
            colors="white",
            linewidths=0.3,
            linestyles="solid",
        )
        # Circles that reach beyond the plane must not widen the frame.
        ax.set(
            xlim=(self.alphas[0], self.alphas[-1]), ylim=(self.betas[0], self.betas[-1])
        )
        return filled, f"{name} (logarithmic)" if logarithmic else name

    def _marks(self, ax: Axes) -> None:
        if len(self.path):
            from matplotlib.patches import Circle

            ax.plot(*self.path.T, ".-", color="#d55e00", lw=1.4, ms=5)
            for x, y, radius in zip(*self.path.T, self.path_error, strict=True):
                ax.add_patch(
                    Circle((x, y), radius, fill=False, ec="#d55e00", lw=0.4, alpha=0.5)
                )
        for name, point in zip("ABC", self.models, strict=False):
            ax.plot(*point, "o", color="#d55e00", ms=7, mec="white")
            ax.annotate(
                name,
                (point[0], point[1]),
                (6, 6),
                textcoords="offset points",
                color="white",
                weight="bold",
            )
        if not len(self.models):
            ax.plot(0, 0, "x", color="#d55e00", ms=9, mew=2.5)


def nice_numbers(low: float, high: float) -> list[float]:
    """Return about three to nine round numbers for a logarithmic scale.

    >>> nice_numbers(0.3, 40)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    >>> nice_numbers(1e-6, 10)
    [1e-06, 1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low)
    mantissas = (1, 2, 5) if decades < 3 else (1,)
    every = max(1, round(decades / 8))
    ticks = [
        float(f"{m}e{power}")
        for power in range(first, last + 1, every)
        for m in mantissas
    ]
    return [tick for tick in ticks if low <= tick <= high]


def _chosen(values: Values, metric: str, data: str | None) -> Floats:
    name = next(iter(values)) if data is None else data
    if name not in values:
        raise unknown("data set", name, values)
    if metric not in values[name]:
        raise unknown("metric", metric, values[name])
    return values[name][metric]


def _expected(size: Any, *, resolution: int = 25, **_: Any) -> Expected:
    return Expected(gradients=resolution**2 / 3, numbers=3.0 * size.parameters)


def _trials(call: Call) -> Trials:
    """Return trials of two coarse planes for a fine one.

    Of a coarse plane, the trial is the plane itself.
    """
    names = "resolution", "extent", "directions", "through", "path"
    _check_options(*(call.options[name] for name in names))
    resolution = call.options["resolution"]
    few = (
        [(5, 7), (5, 11)][resolution >= FINE] if resolution > COARSE else (resolution,)
    )
    trials = [Trial((own**2,), {"resolution": own, "checkpoint": None}) for own in few]
    at_once = min(resolution**2, points_at_once(call.parameters))
    return Trials(
        (resolution**2,), tuple(trials), bytes_until=(at_once,), bytes_may_stop=True
    )


@instrument(expected=_expected, rehearse=by_trials(_trials))
def loss_plane(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    directions: npt.ArrayLike | None = None,
    through: Sequence[nn.Module] | None = None,
    path: Any = None,
    extent: float | None = None,
    resolution: int = 25,
    normalization: Normalization = "filter",
    biases: Biases = "zero",
    metrics: Metrics = (),
    subset: int | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    parameters: str | Sequence[str] = "*",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    batched: bool | None = None,
) -> LossPlane:
    r"""Measure the loss on a plane through a model's weights.

    By default along two random Gaussian directions, scaled filter by filter so that
    planes of different networks can be compared (see `random_directions`). With
    ``path``, along the two principal directions of the points of a training path around
    the model (Li et al. 2018, section 7); with ``through``, in the plane that holds
    three models (Garipov et al. 2018). The model is a point of the grid in all cases
    and is measured as it is. The rows are scanned in one sense: one well-known tool
    scans every other row backwards and shifts it by one cell.

    A plane costs :math:`R^2/3` gradient evaluations: 867 for 51 x 51 points.

    Source: Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018,
    arXiv:1712.09913;
        Garipov et al., "Loss surfaces, mode connectivity, and fast ensembling of DNNs",
        NeurIPS 2018, arXiv:1802.10026.

    Args:
        model: The model, in the mode in which it is to be measured (usually
            ``eval()``).
        loss: A name, a function ``loss(output, target)`` or a `Closure`.
        data: One batch, an iterable of batches, or a data set; or several of these by
            name.
        directions: Two directions of your own, (2, P).
        through: Two further models of the same architecture.
        path: The points of a training path: an array (T, P), or a sequence of vectors
            (P,) or of mappings from parameter names to tensors. The model is the center
            whether or not it is the last of them.
        extent: The plane reaches from -extent to extent along both directions. By
            default 1, and as far as it takes to show a path or three models.
        resolution: R, points along each direction: odd, so that the model is in the
            middle.
        normalization: Of random directions.
        biases: Of random directions.
        metrics: What is measured beside the loss: ``"accuracy"``, ``"error"``, or
            ``{name: function}``.
        subset: Measure on this number of random samples, with standard errors.
        checkpoint: A file to go on from after an interruption; what is there must be of
            the same plane.
        seed: Of random directions and of the subset.
        parameters: Names or glob patterns of the parameters that move.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches into pieces of at most this many samples.
        batched: Measure many points at once; None: for small models. Equal up to
            rounding.

    Raises:
        UsageError: Impossible options, models that do not match or span no plane, a
            path of another length than the parameters, a checkpoint of another plane;
            and what `Objective` raises.

    >>> batch = (torch.randn(9, 2), torch.randn(9, 1))
    >>> plane = loss_plane(nn.Linear(2, 1), "mse", batch, resolution=5)
    >>> plane.losses.shape, plane.center
    ((5, 5), (2, 2))
    """
    _check_options(resolution, extent, directions, through, path)
    functions = read_metrics(metrics, loss)
    objectives, correction = _objectives(
        model,
        loss,
        data,
        subset,
        seed,
        parameters=parameters,
        dtype=dtype,
        batch_size=batch_size,
    )
    first = next(iter(objectives.values()))
    point = first.point.double().cpu().numpy()
    draw = partial(
        random_directions,
        model,
        normalization=normalization,
        biases=biases,
        parameters=parameters,
        seed=seed,
    )
    geometry = geometry_of(model, first, point, directions, through, path, draw)
    alphas, betas = grid_axes(geometry.shown, extent, resolution)
    moves = first.unflatten(
        torch.as_tensor(geometry.directions, dtype=first.dtype, device=first.device)
    )
    basis = {
        name: torch.cat([value[None], moves[name]])
        for name, value in first.values.items()
    }
    scan = Scan(model, loss, objectives, basis, functions, batched=batched)
    own = np.stack(
        [np.stack(scan.own(objective)) for objective in objectives.values()], axis=1
    )
    means, errors, resumed = _scanned(scan, alphas, betas, own, checkpoint)
    grid = (*means.shape[:2], resolution, resolution)
    others = [
        Objective(m, loss, iter(first.batches.items), dtype=first.dtype)
        for m in through or ()
    ]
    losses = [float(scan.own(objective)[0][0]) for objective in others]
    spread = (
        by_name((errors * correction).reshape(grid), objectives, scan.measured)
        if subset
        else {}
    )
    return LossPlane(
        alphas=alphas,
        betas=betas,
        values=by_name(means.reshape(grid), objectives, scan.measured),
        standard_errors=spread,
        center=(
            int(np.flatnonzero(betas == 0)[0]),
            int(np.flatnonzero(alphas == 0)[0]),
        ),
        directions=geometry.directions,
        kind=geometry.kind,
        path=geometry.path,
        path_error=geometry.path_error,
        explained=geometry.explained,
        models=geometry.models,
        model_losses=np.array([float(own[0, 0, 0]), *losses])
        if through
        else np.empty(0),
        degrees_of_freedom=len(first.batches) - 1 if subset else 0,
        gradients=scan.spent
        + sum(objective.spent for objective in (*objectives.values(), *others)),
        notes=(*first.notes, *scan.notes, *geometry.notes, *resumed),
    )


def _objectives(
    model: nn.Module,
    loss: Loss,
    data: Any,
    subset: int | None,
    seed: int,
    **options: Any,
) -> tuple[dict[str, Objective], float]:
    found: dict[str, Objective] = {}
    correction = 1.0
    for name, part in data_sets(data).items():
        found[name] = Objective(model, loss, part, **options)
        if subset is not None:
            batches, correction = random_subset(found[name].batches, subset, seed)
            found[name] = Objective(model, loss, iter(batches), **options)
    return found, correction


def _scanned(
    scan: Scan,
    alphas: Floats,
    betas: Floats,
    own: Floats,
    checkpoint: str | Path | None,
) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Return means and errors at all points, (data sets, measured, R * R).

    The model's own are in their place.
    """
    one = np.ones(alphas.size * betas.size)
    grid = np.stack(
        [one, np.tile(alphas, betas.size), np.repeat(betas, alphas.size)], axis=1
    )
    shape = (*own.shape[1:], len(grid))
    identity = ""
    if checkpoint is not None:
        batches: list[Tensor] = []
        for objective in scan.objectives.values():
            for batch in objective.batches.items:
                batches += tensors_in(batch)
        names = [*scan.objectives, *scan.measured, str(scan.batched)]
        identity = fingerprint(
            scan.basis.values(), [alphas, betas, own[0]], batches, names
        )
    means, errors = np.full(shape, np.nan), np.full(shape, np.nan)
    partial = PartialResults(checkpoint, identity, means=means, errors=errors)
    notes = (
        (f"{partial.done} of {len(grid)} points were found in {checkpoint}.",)
        if partial.done
        else ()
    )
    with partial:
        while partial.done < len(grid):
            chunk = grid[partial.done : partial.done + CHUNK]
            found = scan(chunk)
            partial.add(len(chunk), means=found[0], errors=found[1])
    center = int(np.flatnonzero((grid[:, 1] == 0) & (grid[:, 2] == 0))[0])
    means[..., center], errors[..., center] = own
    return means, errors, notes


def _check_options(resolution: int, extent: float | None, *sources: Any) -> None:
    if resolution < 5 or resolution % 2 == 0:
        raise UsageError(
            f"resolution={resolution} is impossible: an odd number from 5 on, so that "
            "the model itself is a point."
        )
    if extent is not None and not 0 < extent < math.inf:
        raise UsageError(
            f"extent={extent} is impossible: it must be above 0 and finite."
        )
    if sum(source is not None for source in sources) > 1:
        raise UsageError(
            "directions, through and path each choose the plane: give only one of them."
        )
    through = sources[1]
    if through is not None and len(through) != 2:
        raise UsageError(
            f"through holds {len(through)} models: it takes two further ones."
        )
