"""Questions about lines and planes through weight space.

They ask which point each value belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.answers_cases import Data, Floats, tanh_network
from benchmarks.peers.tools import peer
from benchmarks.questions import Ask, Question, Reply
from nablab.instruments.landscape.directions import random_directions
from nablab.instruments.landscape.interpolation import interpolate
from nablab.instruments.landscape.planes import loss_plane

STEPS = 5  # of the plane whose points are told apart
RESOLUTION = 21


def questions(seeds: Sequence[int]) -> list[Question]:
    """List all questions of this file."""
    return [ends(), cells(), center(), directions(seeds), reach()]


def landscapes(
    name: str, model: nn.Module | Sequence[nn.Module], metric: Any, **options: Any
) -> Floats:
    """Call a function of loss-landscapes on copies of the models."""
    tool = peer("loss_landscapes", name="loss-landscapes")
    models = [model] if isinstance(model, nn.Module) else model
    with torch.no_grad():
        found: Floats = getattr(tool, name)(
            *models, metric, deepcopy_model=True, **options
        )
    return found


def loss_metric(loss: Any, data: Data) -> Any:
    """Make the metric of loss-landscapes that is a loss over data."""
    return peer("loss_landscapes.metrics", name="loss-landscapes").Loss(loss, *data)


def weights_metric() -> Callable[[Any], Floats]:
    """Make a metric for loss-landscapes that tells which weights it is called with."""
    peer("loss_landscapes", name="loss-landscapes")

    def metric(wrapped: Any) -> Floats:
        return (
            nn.utils.parameters_to_vector(wrapped.get_module_parameters().parameters)
            .detach()
            .double()
            .numpy()
        )

    return metric


def ends() -> Question:
    """Ask for the losses of the two models at the ends of the line between them."""
    first, data = tanh_network()
    second = _other(1)
    loss = nn.MSELoss()
    truth = [loss(model(data[0]), data[1]).item() for model in (first, second)]

    def judged(values: Floats) -> Reply:
        found = [float(values[0]), float(values[-1])]
        distance = max(abs(a - b) for a, b in zip(found, truth, strict=True))
        return Reply(
            " and ".join(f"{value:.7g}" for value in found), (distance,), "nothing"
        )

    def straight() -> Reply:
        models = [first, second]
        return judged(
            landscapes(
                "linear_interpolation", models, loss_metric(loss, data), steps=100
            )
        )

    return Question(
        "Interpolation: the loss at its two ends",
        "Two tanh networks with 1,201 parameters, mean squared error on 100 samples, "
        "float32, 100 points.",
        " and ".join(f"{value:.7g}" for value in truth) + ", the losses of the two "
        "models",
        "the larger distance",
        [
            Ask(
                "nablab",
                "interpolate(low=0, high=1, count=100)",
                lambda: judged(
                    interpolate(
                        first, second, "mse", data, low=0, high=1, count=100
                    ).losses
                ),
            ),
            Ask("loss-landscapes", "linear_interpolation(steps=100)", straight),
        ],
        [
            "loss-landscapes adds a step before it evaluates: the first value is that "
            "of alpha = 0.01."
        ],
    )


class Plane(nn.Module):
    """A model of two parameters that returns them: where it stands is measured."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Return the two parameters, for every sample (N, 2)."""
        return self.point.expand(len(x), 2)


def quadratic(point: Tensor, _: Tensor | None = None) -> Tensor:
    """Compute a quadratic without symmetry in the two coordinates.

    Points of shape (..., 2) give the mean over their leading axes.
    """
    a, b = point[..., 0], point[..., 1]
    return (a.square() + 10 * (b - 0.3).square()).mean()


def cells() -> Question:
    """Ask whether the values of a plane through three models lie where they should."""
    models = [Plane(0, 0), Plane(1, 0), Plane(0, 1)]
    data = (torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    grid = np.arange(STEPS) / STEPS

    def exact(points: Floats) -> Floats:
        return points[..., 0] ** 2 + 10 * (points[..., 1] - 0.3) ** 2

    def planar() -> Reply:
        said = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1)
        values = landscapes(
            "planar_interpolation", models, loss_metric(quadratic, data), steps=STEPS
        )
        points = landscapes(
            "planar_interpolation", models, weights_metric(), steps=STEPS
        )
        shifts = np.rint((points - said) * STEPS).astype(int)[:, :, 1]
        text = ", ".join(
            f"row {i}: {shift[0]:+d}"
            for i, shift in enumerate(shifts)
            if len(set(shift)) == 1
        )
        start = np.abs(points).sum(-1).min() < 1e-9
        says = f"the first model is {'evaluated' if start else 'never evaluated'}"
        return Reply(f"cells off: {text}", (_worst(values, exact(said)),), says)

    def ours() -> Reply:
        found = loss_plane(
            models[0], quadratic, data, through=models[1:], resolution=STEPS
        )
        alpha, beta = np.meshgrid(found.alphas, found.betas)
        said = (
            alpha[..., None] * found.directions[0]
            + beta[..., None] * found.directions[1]
        )
        distance = _worst(found.losses, exact(said))
        start = found.losses[found.center] == quadratic(models[0].point).item()
        says = f"the first model is {'evaluated' if start else 'never evaluated'}"
        return Reply(
            "cells off: none" if distance < 1e-9 else "cells off", (distance,), says
        )

    return Question(
        "A plane through three models: is each value that of its point",
        "A model whose two parameters (a, b) are all it is, with the loss a² + 10 (b - "
        "0.3)², in float64; the models (0, 0), (1, 0) and (0, 1); 5 x 5 points.",
        "the loss at the point where the documentation puts each cell",
        "largest distance, of the largest loss",
        [
            Ask("nablab", f"loss_plane(through=..., resolution={STEPS})", ours),
            Ask("loss-landscapes", f"planar_interpolation(steps={STEPS})", planar),
        ],
        [
            "loss-landscapes says in its source that cell (i, j) is start + i · first "
            "+ j · second. Its rows run there and back, with a step before every "
            "value: every other row is shifted by one cell against its neighbors."
        ],
    )


def _worst(values: Floats, truth: Floats) -> float:
    return float(np.abs(values - truth).max() / np.abs(truth).max())


def center() -> Question:
    """Ask for the loss in the middle of a random plane."""
    model, data = tanh_network()
    loss = nn.MSELoss()
    truth = loss(model(data[0]), data[1]).item()

    def random(steps: int) -> Reply:
        torch.manual_seed(0)
        values = landscapes("random_plane", model, loss_metric(loss, data), steps=steps)
        torch.manual_seed(0)
        points = landscapes("random_plane", model, weights_metric(), steps=steps)
        own = (
            nn.utils.parameters_to_vector(model.parameters()).detach().double().numpy()
        )
        away = np.linalg.norm(points - own, axis=-1) / np.linalg.norm(own)
        nearest = tuple(
            int(part) for part in np.unravel_index(away.argmin(), away.shape)
        )
        middle = float(values[steps // 2, steps // 2])
        where = (
            f"cell {nearest} is nearest to the model, {away.min():.2g} of its norm away"
        )
        return Reply(f"{middle:.7g}", (abs(middle - truth) / truth,), where)

    def ours() -> Reply:
        found = loss_plane(model, "mse", data, resolution=RESOLUTION)
        value = float(found.losses[found.center])
        return Reply(
            f"{value:.7g}",
            (abs(value - truth) / truth,),
            f"cell {found.center} is the model",
        )

    return Question(
        "A random plane: the loss in its middle",
        "A tanh network with 1,201 parameters, mean squared error on 100 samples, "
        "float32.",
        f"{truth:.7g}, the loss of the model",
        "distance, of the loss",
        [
            Ask("nablab", f"loss_plane(resolution={RESOLUTION})", ours),
            Ask(
                "loss-landscapes",
                "random_plane(): cell (10, 10) of 20 x 20",
                lambda: random(20),
            ),
            Ask(
                "loss-landscapes",
                f"random_plane(steps={RESOLUTION}): cell (10, 10)",
                lambda: random(RESOLUTION),
            ),
        ],
        says="where the model is",
    )


def directions(seeds: Sequence[int]) -> Question:
    """Ask whether random directions favor one orthant."""
    model, _ = tanh_network()
    entries = sum(parameter.numel() for parameter in model.parameters())

    def judged(pairs: list[Floats]) -> Reply:
        positive = [float((pair[0] > 0).sum() / (pair[0] != 0).sum()) for pair in pairs]
        cosines = [
            abs(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))) for a, b in pairs
        ]
        distances = tuple(abs(share - 0.5) for share in positive)
        return Reply(f"{positive[0]:.1%}", distances, f"{max(cosines):.2f}")

    def uniform() -> Reply:
        pairs = []
        for seed in seeds:
            torch.manual_seed(seed)
            points = landscapes("random_plane", model, weights_metric(), steps=3)
            pairs.append(
                np.stack([points[2, 0] - points[0, 0], points[0, 1] - points[0, 0]])
            )
        return judged(pairs)

    return Question(
        "Random directions: how many of their entries are positive",
        f"The directions of a random plane of a tanh network with {entries:,} "
        f"parameters, filter by filter; {len(seeds)} seeds.",
        "50 %: a Gaussian direction favors no side of any axis",
        "distance",
        [
            Ask(
                "nablab",
                "loss_plane()",
                lambda: judged([random_directions(model, seed=seed) for seed in seeds]),
            ),
            Ask("loss-landscapes", "random_plane()", uniform),
        ],
        [
            "loss-landscapes draws the first direction uniformly from [0, 1) and makes "
            "the second orthogonal to it before both are scaled filter by filter. "
            "nablab leaves biases where they are, as Li et al. do."
        ],
        "cosine of the two directions, at most",
    )


def reach() -> Question:
    """Ask how far a random line goes."""
    model, data = tanh_network()
    own = nn.utils.parameters_to_vector(model.parameters()).detach().double().numpy()
    asked = (0.1, 1.0, 2.0)

    def judged(lengths: Sequence[float]) -> Reply:
        text = ", ".join(f"{length / np.linalg.norm(own):.3g}" for length in lengths)
        ratio = lengths[2] / lengths[1]
        return Reply(
            text, (abs(ratio - 2),), f"the last is {ratio:.3g} times the one before"
        )

    def line(distance: float) -> float:
        torch.manual_seed(0)
        points = landscapes("random_line", model, weights_metric(), distance=distance)
        return float(np.linalg.norm(points[-1] - own))

    def ours(extent: float) -> float:
        found = loss_plane(model, "mse", data, extent=extent, resolution=5)
        return float(found.alphas[-1] * np.linalg.norm(found.directions[0]))

    return Question(
        "How far a random direction is followed",
        "A tanh network, asked for the distances 0.1, 1 and 2; the answers are in "
        "norms of its weights.",
        "twice the distance goes twice as far",
        "distance, of the factor 2",
        [
            Ask(
                "nablab",
                "loss_plane(extent=...)",
                lambda: judged([ours(extent) for extent in asked]),
            ),
            Ask(
                "loss-landscapes",
                "random_line(distance=...)",
                lambda: judged([line(value) for value in asked]),
            ),
        ],
        ["loss-landscapes divides by the distance where it would have to multiply."],
    )


def _other(seed: int) -> nn.Module:
    model, _ = tanh_network()
    torch.manual_seed(seed)
    for module in model:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return model
