"""Where a plane through weight space lies, and what is to be seen in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.objective import Objective
from nablab.instruments.landscape.directions import (
    directions_through,
    principal_directions,
    project,
)
from nablab.instruments.landscape.scan import check_match, model_tensors

Floats = npt.NDArray[np.float64]

MARGIN = 0.15  # of the spread of a path or of models, on every side


@dataclass(frozen=True)
class Geometry:
    """Where the plane lies, and what is to be seen in it."""

    kind: str
    directions: Floats
    shown: Floats  # (n, 2): the plane reaches at least these coordinates
    path: Floats
    path_error: Floats
    explained: Floats
    models: Floats
    notes: tuple[str, ...] = ()


def geometry_of(
    model: nn.Module,
    objective: Objective,
    point: Floats,
    directions: npt.ArrayLike | None,
    through: Sequence[nn.Module] | None,
    path: Any,
    draw: Callable[[], Floats],
) -> Geometry:
    """Return the plane of a path, of models, of directions, or of ``draw``.

    Raises:
        UsageError: Points or models that do not match, or that span no plane.
    """
    none = np.empty((0, 2))
    rest: dict[str, Any] = {
        "path": none,
        "path_error": np.empty(0),
        "explained": np.empty(0),
        "models": none,
    }
    if path is not None:
        points = _points(path, objective)
        found, shares = principal_directions([*points, point])
        coordinates, distances = project(points, point, found)
        rest |= {"path": coordinates, "path_error": distances, "explained": shares}
        return Geometry("path", found, coordinates, **rest)
    if through is not None:
        vectors, notes = _other_points(model, through, objective)
        found, coordinates = directions_through(point, vectors)
        return Geometry(
            "models", found, coordinates, **rest | {"models": coordinates}, notes=notes
        )
    found = draw() if directions is None else np.asarray(directions, dtype=np.float64)
    if found.shape != (2, objective.size) or not np.isfinite(found).all():
        raise UsageError(
            f"directions of the shape {found.shape} are not a plane: two finite "
            f"directions of the {objective.size} chosen parameters are needed, in the "
            "model's order."
        )
    project(np.empty((0, objective.size)), point, found)  # refuses parallel ones
    return Geometry("random" if directions is None else "given", found, none, **rest)


def _points(path: Any, objective: Objective) -> Floats:
    rows = []
    for index, item in enumerate(path):
        if isinstance(item, Mapping):
            missing = [name for name in objective.names if name not in item]
            if missing:
                raise UsageError(
                    f"Point {index} of the path has no parameter '{missing[0]}'."
                )
            item = torch.cat(
                [
                    torch.as_tensor(item[name]).detach().flatten()
                    for name in objective.names
                ]
            )
        rows.append(torch.as_tensor(item).detach().double().cpu().numpy().ravel())
        if len(rows[-1]) != objective.size:
            raise UsageError(
                f"Point {index} of the path has {len(rows[-1])} entries; the chosen "
                f"parameters have {objective.size}. Give whole points in the model's "
                "order, or mappings from names to tensors."
            )
    return np.stack(rows)


def _other_points(
    model: nn.Module, through: Sequence[nn.Module], objective: Objective
) -> tuple[list[Floats], tuple[str, ...]]:
    notes: dict[str, None] = {}
    own, vectors = model_tensors(objective), []
    for other in through:
        check_match(model, other)
        tensors = dict(other.named_parameters()) | dict(other.named_buffers())
        tensors = {
            name: tensors[name].detach().to(tensor) for name, tensor in own.items()
        }
        vectors.append(objective.flatten(tensors).double().cpu().numpy())
        if any(
            not torch.equal(own[name], tensors[name])
            for name in own
            if name not in objective.names
        ):
            notes[
                "The models differ in buffers or in parameters that do not move: on "
                "the plane these are the first model's, so that the losses of the "
                "other models are not those of the plane below them."
            ] = None
    return vectors, tuple(notes)


def grid_axes(
    shown: Floats, extent: float | None, resolution: int
) -> tuple[Floats, Floats]:
    """Return even coordinates that hold 0 exactly and reach all that is shown."""
    if extent is not None or not len(shown):
        half = 1.0 if extent is None else extent
        low, high = np.full(2, -half), np.full(2, half)
    else:
        low, high = np.minimum(shown.min(0), 0), np.maximum(shown.max(0), 0)
        # A thin plane would show nothing across: the shorter side is at least half as
        # long as the longer.
        span = np.maximum(high - low, 0.5 * (high - low).max()) * (1 + 2 * MARGIN)
        middle = (low + high) / 2
        low, high = middle - span / 2, middle + span / 2
    step = (high - low) / (resolution - 1)
    zero = np.round(-low / step)
    places = np.arange(resolution)
    alphas = (places - zero[0]) * step[0]
    betas = (places - zero[1]) * step[1]
    return alphas, betas
