"""What an instrument will cost, before it is called."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.instruments.base.graphs import counting_saved_bytes
from nablab.instruments.base.losses import Loss
from nablab.instruments.base.measurement import Instrument, Size
from nablab.instruments.base.objective import Objective

DENSE = ("find_critical_point", "hessian_matrix", "inertia")  # they multiply by the Hessian, too
COPIES = 5  # vectors of all parameters in any measurement: values, point, leaves, gradient, a product
REPEATS = 3  # timings of one batch's gradient; the fastest counts, the first one warms up


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a call is expected to take on this machine.

    Attributes:
        gradients: Gradient evaluations over all data.
        seconds_per_gradient: Measured on one batch and scaled to all data; for instruments of curvature, a
            third of a product with the Hessian.
        seconds: Their product. Eigenvalue problems of dense matrices, orthogonalization of vectors and the
            like come on top.
        bytes: Numbers held beside the model and the data: what the instrument keeps, the copies of the
            weights that every measurement makes, and the graph of one batch's gradient or Hessian product.
            Temporary copies of vectors come on top.

    It is the order of magnitude: with a million parameters on two busy cores, instruments took 1.5 to 3.6
    times the bytes and 3 to 10 times the seconds, sharpness 44 times, since its own arithmetic counts more
    than gradients there.
    """

    gradients: float
    seconds_per_gradient: float
    seconds: float
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return vars(self).copy()


def find_instrument(name: str) -> Instrument[..., Any]:
    """The instrument of a name, written with underscores or hyphens.

    Raises:
        UsageError: There is none of that name.
    """
    package = import_module("nablab.instruments")
    name = name.replace("-", "_")
    if name not in package.INSTRUMENTS:
        raise unknown("instrument", name, package.INSTRUMENTS)
    found = getattr(package, name)
    assert isinstance(found, Instrument)
    return found


def cost(
    name: str,
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    parameters: str | tuple[str, ...] = "*",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Cost:
    """Expected gradient evaluations, seconds and bytes of an instrument, by timing one gradient.

    Args:
        name: The instrument.
        model: See `Objective`.
        loss: See `Objective`.
        data: See `Objective`.
        parameters: See `Objective`.
        dtype: See `Objective`; by default the instrument's own default.
        batch_size: See `Objective`.
        options: The instrument's other options, as the call will have them.

    Raises:
        UsageError: No such instrument or option, or what `Objective` refuses.

    >>> estimate = cost("hessian_trace", nn.Linear(3, 1), "mse", (torch.ones(8, 3), torch.ones(8, 1)))
    >>> estimate.gradients > 0 and estimate.bytes > 0
    True
    """
    chosen = find_instrument(name)
    keywords = {
        key: parameter.default
        for key, parameter in inspect.signature(chosen.measure).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for key in options:
        if key not in keywords:
            raise unknown(f"option of {name}", key, keywords)
    dtype = dtype or keywords.get("dtype")
    objective = Objective(model, loss, data, parameters=parameters, dtype=dtype, batch_size=batch_size)
    curved = "operator" in keywords or name.replace("-", "_") in DENSE
    seconds, graph = _time_product(objective) if curved else _time_gradient(objective)
    outputs = _outputs_per_sample(objective)
    size = Size(objective.size, objective.batches.total, outputs)
    expected = chosen.expected(size, **{**keywords, **options})
    itemsize = objective.point.element_size()
    return Cost(
        gradients=expected.gradients,
        seconds_per_gradient=seconds,
        seconds=seconds * expected.gradients,
        bytes=int((expected.numbers + COPIES * objective.size) * itemsize) + graph,
    )


def _time_gradient(objective: Objective) -> tuple[float, int]:
    batch, weight = objective.batches.items[0], objective.batches.weights[0]
    fastest = float("inf")
    with objective.quiet():
        with counting_saved_bytes() as saved:
            objective.batch_loss(objective.leaves(), batch)
        for _ in range(REPEATS):
            _synchronize(objective.device)
            begin = time.perf_counter()
            leaves = objective.leaves()
            value = objective.batch_loss(leaves, batch)
            if not value.requires_grad:
                raise UsageError("The loss does not depend on the chosen parameters: it has no gradient.")
            torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            _synchronize(objective.device)
            fastest = min(fastest, time.perf_counter() - begin)
    return fastest / weight, saved["bytes"]


def _time_product(objective: Objective) -> tuple[float, int]:
    """A third of the seconds of a Hessian product over all data, and the bytes of one batch's graph."""
    batch, weight = objective.batches.items[0], objective.batches.weights[0]
    fastest = float("inf")
    with objective.quiet():
        with counting_saved_bytes() as saved:
            possible = _make_product(objective, batch)
        if not possible:  # differences of two gradients are taken instead
            return _time_gradient(objective)
        for _ in range(REPEATS):
            _synchronize(objective.device)
            begin = time.perf_counter()
            _make_product(objective, batch)
            _synchronize(objective.device)
            fastest = min(fastest, time.perf_counter() - begin)
    return fastest / weight / 3, saved["bytes"]


def _make_product(objective: Objective, batch: Any) -> bool:
    """Multiply the Hessian of a batch by its gradient; False where the model has no second derivative."""
    leaves = objective.leaves()
    value = objective.batch_loss(leaves, batch)
    if not value.requires_grad:
        objective.gradients_of(value, leaves)  # raises the error that says why
    inputs = list(leaves.values())
    try:
        found = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
        curved = [gradient for gradient in found if gradient.requires_grad]
        if curved:
            vectors = [gradient.detach() for gradient in curved]
            torch.autograd.grad(curved, inputs, vectors, materialize_grads=True)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return True


def _outputs_per_sample(objective: Objective) -> int:
    if objective.is_closure:
        return 1
    with objective.quiet(), torch.no_grad():
        outputs = objective.batch_outputs(objective.values, objective.batches.items[0])
    return max(1, outputs[0].numel()) if isinstance(outputs, Tensor) and outputs.ndim else 1


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
