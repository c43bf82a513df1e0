r"""Products with the Hessian of a loss, without forming it.

A product costs two gradient evaluations if the graph of the gradient is kept between
products (`cached`), three if it is built again (Pearlmutter 1994), and two by finite
differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.batch_parts import few_samples
from nablab.instruments.base.batches import Batches, map_tensors, part_of
from nablab.instruments.base.graphs import (
    counting_saved_bytes,
    free_memory,
    has_dead_end,
)
from nablab.instruments.base.objective import Objective
from nablab.instruments.curvature.verification import (
    CONTRADICTED,
    WRONG,
    Claim,
    examine,
    rounds_inside,
)

Method = Literal["auto", "double-backward", "finite-difference"]

# What autograd keeps of one piece of a batch; LeNet was as fast with 20 MB as with 50,
# slower with 10 or 200.
CACHE_BYTES = 32 * 2**20
FEW_FOR_CHECK = 16  # samples that the second derivative is checked on
SMALLEST_PIECE = 16  # samples; below, calls cost more than the cache saves
CACHE_SHARE = 0.25  # of the free memory may be kept as graphs
FINITE_DIFFERENCE = (
    "Products are central differences of the gradient, since {why}: "
    "about {digits} digits."
)


class Operator:
    """A symmetric matrix (P, P) known by its products.

    Attributes:
        objective: The loss, with the point at which it is measured.
        shape: (P, P).
        dtype: The dtype of vectors.
        device: Where vectors live.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.shape = (objective.size, objective.size)
        self.dtype, self.device = objective.dtype, objective.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return the product with a vector (P,) or each column of (P, k)."""
        if vectors.shape[:1] != (self.shape[1],) or vectors.ndim not in (1, 2):
            raise UsageError(
                f"A block of shape {tuple(vectors.shape)} does not fit a matrix of "
                f"shape {self.shape}."
            )
        columns = vectors.to(self.device, self.dtype).reshape(self.shape[1], -1).T
        with self.objective.quiet():
            product = self._products(columns).T
        return product.reshape(vectors.shape)

    def _products(self, rows: Tensor) -> Tensor:
        """Return the product with each row of (k, P), as rows."""
        raise NotImplementedError

    def to_scipy(self) -> LinearOperator:
        """Return the operator for NumPy vectors and blocks, in its own dtype."""

        def product(vectors: Any) -> Any:
            return (self @ torch.from_numpy(np.asarray(vectors))).cpu().numpy()

        kind = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(
            self.shape, matvec=product, matmat=product, rmatvec=product, dtype=kind
        )


@dataclass
class _Graph:
    """A batch's gradient as a function of what it was computed from."""

    leaves: list[Tensor]
    gradients: list[Tensor]


class HessianOperator(Operator):
    """The Hessian of the mean loss over all data with respect to the chosen parameters.

    Args:
        model: Any module, in the mode in which it is measured.
        loss: See `Objective`.
        data: See `Objective`; batches may have unequal sizes.
        parameters: Names or glob patterns of the parameters: one layer's block of the
            Hessian, or all.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches to bound the memory.
        method: ``"double-backward"`` is exact; ``"finite-difference"`` needs first
            derivatives only; ``"auto"`` takes the second where the model has no second
            derivative or a wrong one, and says so in `notes`.
        cache: Keep the graphs of the gradient between products: a third less work for
            more memory. By default if they fit a quarter of the memory that is free.
        check: See `Objective`; and compare two products on the first batch with
            differences of the gradient and with each other (seven gradients of 16 of
            its samples; see `verification`).

    Raises:
        UsageError: See `Objective`; half precision; a gradient that is not the
            derivative of the loss.

    >>> from torch import nn
    >>> model = nn.Linear(2, 1, bias=False)
    >>> H = HessianOperator(model, "mse", (torch.eye(2), torch.ones(2, 1)))
    >>> H @ torch.tensor([1.0, 0.0])
    tensor([1., 0.])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Any,
        data: Any,
        *,
        parameters: Any = "*",
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        method: Method = "auto",
        cache: bool | None = None,
        check: bool = True,
    ) -> None:
        super().__init__(
            Objective(
                model,
                loss,
                data,
                parameters=parameters,
                dtype=dtype,
                batch_size=batch_size,
                check=check,
            )
        )
        if batch_size is None:
            suit_processor(self.objective)
        self._graphs: list[_Graph] = []
        self.cached = False
        self.method = method
        if method == "auto":
            self.method = self._usable_method()
        if check and self.method == "double-backward":
            self._verify(model, loss, parameters, may_change=method == "auto")
        if self.method == "double-backward":
            self.cached = self._worth_keeping() if cache is None else cache

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen automatically."""
        return self.objective.notes

    @property
    def gradients_per_product(self) -> float:
        """The cost of a product by the arithmetic, in gradient evaluations."""
        return 3.0 if self.method == "double-backward" and not self.cached else 2.0

    def _products(self, rows: Tensor) -> Tensor:
        if self.method == "finite-difference":
            differences = torch.empty_like(rows)
            for k, row in enumerate(rows):
                differences[k] = self._difference(row)
            return differences
        total = torch.zeros_like(rows)
        for place, (batch, weight) in enumerate(self.objective.batches):
            graph = self._graph(place, batch)
            for k, row in enumerate(rows):
                total[k] += weight * self._backward(
                    graph, row, last=not self.cached and k == len(rows) - 1
                )
        self.objective.spent += 2 * len(rows)
        return total

    def _graph(self, place: int, batch: Any) -> _Graph:
        if place < len(self._graphs):
            return self._graphs[place]
        graph = self._linearize(batch)
        self.objective.spent += self.objective.batches.weights[place]
        if self.cached:
            self._graphs.append(graph)
        return graph

    def _linearize(self, batch: Any) -> _Graph:
        return _linearized(self.objective, batch)

    def _backward(self, graph: _Graph, row: Tensor, *, last: bool) -> Tensor:
        return _pulled_back(self.objective, graph, row, last=last)

    def _difference(self, row: Tensor) -> Tensor:
        if not row.any():
            return torch.zeros_like(row)
        step = difference_step(self.objective.point, row)
        ahead = self.objective.gradient(self.objective.point + step * row)
        behind = self.objective.gradient(self.objective.point - step * row)
        difference: Tensor = (ahead - behind) / (2 * step)
        return difference

    def _usable_method(self) -> Method:
        """Choose differences where autograd fails or would leave out a part."""
        try:
            with self.objective.quiet():
                graph = self._linearize(self.objective.batches.items[0])
                if has_dead_end(graph.gradients):
                    raise NotImplementedError(
                        "a function in it may be differentiated once only"
                    )
                self._backward(graph, torch.ones_like(self.objective.point), last=True)
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = (
                "this model has no second derivative "
                f"({str(error).splitlines()[0][:120]})"
            )
            note = FINITE_DIFFERENCE.format(
                why=why, digits=digits_of_differences(self.dtype)
            )
            self.objective.notes += (note,)
            return "finite-difference"
        self.objective.spent += 3 * self.objective.batches.weights[0]
        return "double-backward"

    def _verify(
        self, model: nn.Module, loss: Any, parameters: Any, *, may_change: bool
    ) -> None:
        """Measure by differences if a product is found wrong, or say that it is."""
        batch = self.objective.batches.items[0]
        share = self.objective.batches.weights[0]
        with self.objective.quiet():
            # A formula that is wrong is wrong for few samples, too.
            few = few_samples(self.objective, batch, FEW_FOR_CHECK)
        share *= (
            min(1.0, FEW_FOR_CHECK / self.objective.batches.samples[0])
            if few is not batch
            else 1.0
        )
        objective = in_float64(model, loss, few, parameters) or self.objective
        with objective.quiet():
            try:
                graph = _linearized(objective, objective.batches.items[0])
            # A model may cast, or a device may lack float64.
            except (RuntimeError, TypeError):
                objective = self.objective
                graph = _linearized(objective, batch)
            before = objective.spent
            verdict = examine(
                _claim(objective, graph), differences=objective is not self.objective
            )
            spent = objective.spent - before
            objective.spent = before
        # The graph and two products with it take five gradients.
        self.objective.spent += share * (spent + 5)
        verdict.refuse_asymmetry()
        if verdict.wrong and may_change:
            self.method = "finite-difference"
            note = FINITE_DIFFERENCE.format(
                why=WRONG.format(gap=verdict.gap),
                digits=digits_of_differences(self.dtype),
            )
            self.objective.notes += (note,)
        elif verdict.wrong:
            self.objective.notes += (
                CONTRADICTED.format(part="the Hessian", gap=verdict.gap),
            )

    def _worth_keeping(self) -> bool:
        batches = self.objective.batches
        with self.objective.quiet():
            kept = kept_bytes(lambda: self._linearize(batches.items[0]))
        self.objective.spent += batches.weights[0]
        return kept is not None and kept / batches.weights[
            0
        ] < CACHE_SHARE * free_memory(self.device)


def _linearized(objective: Objective, batch: Any) -> _Graph:
    """Return the gradient of a batch's loss with its graph; call inside `quiet`."""
    leaves = objective.leaves()
    value = objective.batch_loss(leaves, batch)
    if not value.requires_grad:
        objective.gradients_of(value, leaves)  # raises the error that says why
    inputs = list(leaves.values())
    found = torch.autograd.grad(
        value, inputs, create_graph=True, materialize_grads=True
    )
    return _Graph(inputs, list(found))


def _pulled_back(
    objective: Objective, graph: _Graph, row: Tensor, *, last: bool
) -> Tensor:
    """Return the product of a graph's Hessian with a vector (P,).

    Call it inside `quiet`.
    """
    directions = objective.unflatten(row).values()
    pairs = [
        (g, v)
        for g, v in zip(graph.gradients, directions, strict=True)
        if g.requires_grad
    ]
    if not pairs:  # the loss is linear in every parameter
        return torch.zeros_like(row)
    # Activation checkpointing runs the forward pass again here: with the tensors of
    # this graph, not others.
    objective.place(dict(zip(objective.names, graph.leaves, strict=True)))
    found = torch.autograd.grad(
        [g for g, _ in pairs],
        graph.leaves,
        [v for _, v in pairs],
        retain_graph=not last,
        materialize_grads=True,
    )
    return objective.flatten(dict(zip(objective.names, found, strict=True)))


def kept_bytes(work: Callable[[], Any]) -> int | None:
    """Return the bytes that autograd keeps for ``work``, or None if it cannot tell.

    Models that call `torch.func` inside do not allow PyTorch's hooks on saved tensors.
    """
    try:
        with counting_saved_bytes() as saved:
            work()
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        return None
    return saved["bytes"]


def in_float64(
    model: nn.Module, loss: Any, batch: Any, parameters: Any
) -> Objective | None:
    """Return the loss of one batch in float64, or None on a device that lacks it."""
    try:
        return Objective(
            model,
            loss,
            iter([batch]),
            parameters=parameters,
            dtype=torch.float64,
            check=False,
        )
    except (RuntimeError, TypeError):
        return None


def _claim(objective: Objective, graph: _Graph) -> Claim:
    """Return the gradient of a mean loss over one batch, and its products."""
    sizes = [shape.numel() for shape in objective.shapes]
    return Claim(
        point=objective.point,
        function=objective.gradient,
        product=lambda vector: _pulled_back(objective, graph, vector, last=False),
        parts=sizes,
        sizes=sizes,
        coarse=rounds_inside(graph.gradients),
    )


def suit_processor(objective: Objective) -> None:
    """Fit batches to a CPU's cache, and lay images out channels last.

    The products stay the same to rounding. On two cores and LeNet with 2,000 images a
    product took 0.33 s in one batch, 0.21 s in batches of 500 or 200, and 0.17 s
    channels last as well. Models that allow neither (batches that are not a mean over
    samples, ``view`` on a convolution's output) keep what was given.
    """
    if objective.device.type != "cpu":
        return
    with objective.quiet():
        kept = kept_bytes(
            lambda: objective.batch_loss(objective.leaves(), objective.batches.items[0])
        )
    if kept is None:
        return
    objective.spent += objective.batches.weights[0] / 3
    samples = objective.batches.samples[0]
    fits = max(SMALLEST_PIECE, int(samples * CACHE_BYTES / max(1, kept)))
    if fits < samples and objective.may_be_cut():
        objective.batches = objective.batches.cut(fits)
    convolves = any(
        isinstance(module, nn.Conv2d) for module in objective.model.modules()
    )
    if convolves and not objective.is_closure:
        _lay_channels_last(objective)


def _lay_channels_last(objective: Objective) -> None:
    few = part_of(objective.batches.items[0], 0, 2)
    try:
        expected = _twice(objective, few)
        found = _twice(objective, map_tensors(few, _channels_last))
    # No second derivative at all, view() on what a convolution returns, or two samples
    # that do not do alone.
    except (RuntimeError, IndexError, ValueError):
        return
    if torch.isclose(found, expected, rtol=1e-3):
        items = tuple(
            map_tensors(item, _channels_last) for item in objective.batches.items
        )
        objective.batches = Batches(items, objective.batches.samples)


def _twice(objective: Objective, batch: Any) -> Tensor:
    """Return the loss of a batch, after a gradient and a gradient of that."""
    leaves = objective.leaves()
    with objective.quiet():
        value = objective.batch_loss(leaves, batch)
        inputs = list(leaves.values())
        slopes = torch.autograd.grad(
            value, inputs, create_graph=True, allow_unused=True
        )
        bent = [
            slope.sum() for slope in slopes if slope is not None and slope.requires_grad
        ]
        if bent:
            torch.autograd.grad(torch.stack(bent).sum(), inputs, allow_unused=True)
    return value.detach()


def _channels_last(tensor: Tensor) -> Tensor:
    images = tensor.ndim == 4 and tensor.is_floating_point()
    return tensor.clone(memory_format=torch.channels_last) if images else tensor


def difference_step(point: Tensor, row: Tensor) -> Tensor:
    """Return the length of a central difference along ``row``."""
    information = torch.finfo(row.dtype)
    # The cube root of the unit roundoff balances truncation (h^2) and cancellation (eps
    # / h).
    step: Tensor = (
        information.eps ** (1 / 3)
        * (1 + point.norm())
        / row.norm().clamp_min(information.tiny)
    )
    return step


def digits_of_differences(dtype: torch.dtype) -> int:
    """Return the digits that central differences leave."""
    return 10 if dtype == torch.float64 else 4
