"""The mean loss of a model over data as a function of chosen parameters."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.instruments.base import interrupts
from nablab.instruments.base.batches import read_batches
from nablab.instruments.base.checks import Checks
from nablab.instruments.base.losses import Closure, Evaluation, Loss, call, split
from nablab.instruments.base.mean_check import MeanCheck
from nablab.instruments.base.parameter_checks import check_modules, check_parameters
from nablab.instruments.base.placement import Placement
from nablab.instruments.base.surroundings import (
    Surroundings,
    Uses,
    function_modes,
    leave_modes,
)

HALF = (
    "The weights are {dtype}, but were measured in float32: in {dtype}, steps and "
    "differences below its rounding would be lost."
)


class Objective:
    r"""The mean loss :math:`f(\theta) = \frac1N \sum_i \ell(\theta; x_i, y_i)`.

    Weights and buffers are copied on construction; for a pass the copies stand in the
    places of the model's own (see `Placement`), and after it the model holds what it
    held before: the same objects with the same contents. Modes, ``.grad``, hooks and
    random generators stay as they are, after Ctrl-C as well.

    Args:
        model: Any module, in the mode in which it is to be measured (usually
            ``model.eval()``).
        loss: A name, a function ``loss(output, target)`` that gives the mean over its
            batch, or a `Closure`.
        data: One batch, an iterable of batches, or a data set; see `read_batches`.
        parameters: Names or glob patterns of the parameters that count as variables,
            such as ``"*.weight"``.
        dtype: The dtype to measure in; by default the widest of the parameters' own,
            and float32 for weights in half precision.
        batch_size: Cut batches into pieces of at most this many samples, to bound the
            memory.
        tensors: Values by name that stand for the model's own parameters and buffers.
        check: Verify that the loss is a deterministic mean over samples (a few passes
            of a batch).

    Attributes:
        names: Names of the chosen parameters.
        shapes: Their shapes.
        size: Number of their entries, P.
        point: The chosen parameters as one vector (P,).
        values: The chosen parameters by name.
        fixed: All other tensors of model and loss, by their names in `Evaluation`.
        batches: The data.
        dtype: The dtype of the measurement.
        device: Where the model is.
        spent: Gradient evaluations so far: full-data forward and backward passes; a
            forward pass counts 1/3.
        notes: What was chosen automatically.

    Raises:
        UsageError: No parameter matches or has a gradient, the loss is not a scalar or
            is NaN, the forward pass fails, is random, or depends on how samples share a
            batch.

    >>> model = nn.Linear(2, 1)
    >>> objective = Objective(model, "mse", (torch.zeros(5, 2), torch.ones(5, 1)))
    >>> objective.size, objective.gradient().shape
    (3, torch.Size([3]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        *,
        parameters: str | Sequence[str] = "*",
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        check: bool = True,
    ) -> None:
        self.names = select_parameters(model, parameters)
        self.spent = 0.0
        own = dict(model.named_parameters())
        check_parameters(own, self.names)
        check_modules(model, self.names)
        self.device = own[self.names[0]].device
        self.dtype, self.notes = measuring_dtype(own, dtype)
        self._module = Evaluation(model, loss)
        self._placement = Placement(self._module)
        self._uses = Uses.of(model)
        given = {f"model.{name}": tensor for name, tensor in (tensors or {}).items()}
        copies = {
            name: self._copy(given.get(name, tensor))
            for name, tensor in self._placement.originals.items()
        }
        self.values = {name: copies.pop(f"model.{name}") for name in self.names}
        self.fixed: dict[str, Tensor] = copies
        self.shapes = tuple(value.shape for value in self.values.values())
        self._counts = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self._counts)
        self.point = self.flatten(self.values)
        # The places of these names hold something else than `values` and `fixed`.
        self._put: set[str] = set()
        # These are the buffers that a forward pass changes, as they were.
        self._pristine: Mapping[str, Tensor] = {}
        samples = loss.samples if isinstance(loss, Closure) else None
        self.batches = read_batches(
            data,
            device=self.device,
            dtype=self.dtype,
            batch_size=batch_size,
            samples=samples,
            count=None if samples else self._module.count,
        ).without_empty()
        self.reads_model = False
        if check:
            with self.quiet():
                found = Checks(self).run()
            self._pristine, self.reads_model = found.pristine, found.loss_reads_model
            self._uses = replace(
                self._uses,
                attention=found.attention,
                numpy_or_python=bool(found.drawn & {"numpy", "python"}),
            )
            self.notes += found.notes

    # Vectors and tensors by name

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return one vector (P,) of tensors by parameter name.

        Leading axes beyond the parameters' own are kept.
        """
        parts = [
            tensors[name].reshape(
                (*tensors[name].shape[: tensors[name].ndim - len(shape)], count)
            )
            for name, shape, count in zip(
                self.names, self.shapes, self._counts, strict=True
            )
        ]
        return torch.cat(parts, dim=-1)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of ``vector`` (..., P) in the parameters' shapes.

        This is the inverse of `flatten`.
        """
        parts = torch.split(vector, self._counts, dim=-1)
        return {
            name: part.reshape((*part.shape[:-1], *shape))
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    # The function

    def batch_loss(self, tensors: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Return the mean loss of one batch at the given parameters.

        It is differentiable and pure.

        Run it and the backward passes through it in one `quiet`: some models read their
        weights in the backward pass again.

        Args:
            tensors: Parameters by name; others stay at the model's own point.
            batch: One batch of the data.
        """
        # The loss may hold derivatives, in the inputs say.
        with self._placed(tensors), torch.enable_grad():
            value: Tensor = self._module(batch)
            return value

    def batch_outputs(self, tensors: Mapping[str, Tensor], batch: Any) -> Any:
        """Return the model's outputs on a batch ``(inputs, target)``.

        It is differentiable and pure.
        """
        with self._placed(tensors), torch.enable_grad():
            return call(self.model, split(batch)[0])

    def place(self, tensors: Mapping[str, Tensor]) -> None:
        """Put parameters and buffers in the model until the next pass.

        Call it inside `quiet`.
        """
        interrupts.safe_point()
        given = {f"model.{name}": tensor for name, tensor in tensors.items()}
        stale = self._put - given.keys()
        self._placement.put({name: self._base(name) for name in stale})
        self._placement.put(given)
        self._placement.put(
            {name: tensor.clone() for name, tensor in self._pristine.items()}
        )
        self._put = set(given)

    @property
    def model(self) -> nn.Module:
        """The model itself; for looking, not for writing."""
        return self._module.model

    @property
    def is_closure(self) -> bool:
        """Whether outputs and targets are inseparable."""
        return self._module.is_closure

    def criterion(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of outputs.

        Raises:
            UsageError: The loss is a closure.
        """
        if self.is_closure:
            raise UsageError(
                "This instrument needs outputs and loss apart; a Closure gives only "
                "their composition. Give a loss(output, target) and batches (inputs, "
                "target)."
            )
        with self.quiet():
            value: Tensor = self._module.loss_of(outputs, target)
            return value

    def loss(self, vector: Tensor | None = None) -> float:
        """Return the mean loss at ``vector`` (P,), or at the model's own point."""
        tensors = self.values if vector is None else self.unflatten(vector)
        total = 0.0
        with self.quiet():
            for batch, weight in self.batches:
                total += weight * float(self.batch_loss(tensors, batch).detach())
        self.spent += 1 / 3
        return total

    def loss_and_gradient(self, vector: Tensor | None = None) -> tuple[float, Tensor]:
        """Return the mean loss over all data and its gradient (P,)."""
        leaves = self.leaves(vector)
        total, gradient = 0.0, torch.zeros_like(self.point)
        with self.quiet():
            for batch, weight in self.batches:
                value = self.batch_loss(leaves, batch)
                total += weight * float(value.detach())
                gradient += weight * self.flatten(self.gradients_of(value, leaves))
        self.spent += 1
        return total, gradient

    def gradient(self, vector: Tensor | None = None) -> Tensor:
        """Return the gradient of the mean loss over all data, (P,)."""
        return self.loss_and_gradient(vector)[1]

    def leaves(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """Return parameters at ``vector`` as new tensors that require a gradient."""
        tensors = self.values if vector is None else self.unflatten(vector)
        return {
            name: tensor.detach().clone().requires_grad_()
            for name, tensor in tensors.items()
        }

    def gradients_of(
        self, value: Tensor, leaves: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the gradients of a loss by name.

        Call it inside the `quiet` in which the loss was computed.

        Raises:
            UsageError: The loss does not depend on the parameters.
        """
        if not value.requires_grad:
            raise UsageError(_no_gradient(self.names))
        found = torch.autograd.grad(
            value, list(leaves.values()), materialize_grads=True
        )
        return {
            name: gradient.to_dense() if gradient.is_sparse else gradient
            for name, gradient in zip(leaves, found, strict=True)
        }

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Run the model inside, forward and backward.

        Everything it touches is given back after.

        Inside, the model holds the tensors of this objective, generators may be drawn
        from, and kernels are taken that can be differentiated twice. It may be nested.
        """
        if self._placement.is_open:
            interrupts.safe_point()
            yield
            return
        guards, modes = interrupts.guard(), function_modes()
        surroundings = Surroundings(self._uses)
        try:
            surroundings.borrow()
            self._placement.open(self.dtype, self.device)
            self._put = set()
            self._placement.put(
                {name: self._base(name) for name in self._placement.originals}
            )
            yield
        finally:
            try:
                self._placement.restore()
                surroundings.restore()
            # Something else than Ctrl-C, such as a timer's signal, came in between.
            except BaseException:
                self._placement.restore()
                surroundings.restore()
                raise
            finally:
                leave_modes(modes)
                if guards:
                    interrupts.release()

    @contextmanager
    def converted(self, dtype: torch.dtype) -> Iterator[None]:
        """Convert the model at its own point to another dtype, inside a `quiet`."""

        def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in tensors.items()
            }

        kept = self.values, self.fixed
        self.values, self.fixed = convert(self.values), convert(self.fixed)
        try:
            self._placement.put(
                {name: self._base(name) for name in self._placement.originals}
            )
            yield
        finally:
            self.values, self.fixed = kept
            self._placement.put(
                {name: self._base(name) for name in self._placement.originals}
            )

    @contextmanager
    def _placed(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        if self._placement.is_open:
            self.place(tensors)
            yield
            return
        with self.quiet():
            self.place(tensors)
            yield

    def _base(self, name: str) -> Tensor:
        """Return the tensor of a name (of `Evaluation`) that a pass starts from."""
        chosen = self.values.get(name.removeprefix("model."))
        if chosen is not None and name.startswith("model."):
            return chosen
        return self.fixed[name]

    def _copy(self, tensor: Tensor) -> Tensor:
        kind = self.dtype if tensor.is_floating_point() else None
        return tensor.detach().to(self.device, kind, copy=True)

    def may_be_cut(self) -> bool:
        """Return whether batches may be cut.

        The mean must be known, and samples must not mix.
        """
        if self.is_closure or self.batches.count is None:
            return False
        self.spent += 2 / 3 * self.batches.weights[0]
        with self.quiet():
            return MeanCheck(self).samples_are_apart()


def measuring_dtype(
    parameters: Mapping[str, Tensor], asked: torch.dtype | None
) -> tuple[torch.dtype, tuple[str, ...]]:
    """Return the dtype to measure in, and a note where it is not the parameters' own.

    Args:
        parameters: The model's parameters by name.
        asked: What the caller wants; None for the widest of the parameters' own.

    Raises:
        UsageError: A dtype that is not real and floating-point, or in half precision.
    """
    if asked is not None:
        if asked not in (torch.float32, torch.float64):
            name = str(asked).removeprefix("torch.")
            raise UsageError(
                f"dtype={name} is impossible: differences would be lost in its "
                "rounding. Measure in torch.float32 or torch.float64; the weights are "
                "converted."
            )
        return asked, ()
    kinds = [
        tensor.dtype for tensor in parameters.values() if tensor.is_floating_point()
    ]
    widest = kinds[0]
    for kind in kinds[1:]:
        widest = torch.promote_types(widest, kind)
    if torch.finfo(widest).bits < 32:
        return torch.float32, (HALF.format(dtype=str(widest).removeprefix("torch.")),)
    return widest, ()


def select_parameters(
    model: nn.Module, patterns: str | Sequence[str] = "*"
) -> tuple[str, ...]:
    """Return the trainable parameters that match any of the glob patterns.

    Names are in the model's order.

    Raises:
        UsageError: The model has no trainable parameter, or a pattern matches none.
    """
    every = dict(model.named_parameters())
    trainable = [name for name, parameter in every.items() if parameter.requires_grad]
    if not trainable:
        raise UsageError(
            f"The model {type(model).__name__} has no parameter that requires a "
            f"gradient{' (all ' + str(len(every)) + ' are frozen)' if every else ''}. "
            "Call requires_grad_(True) on those to be measured."
        )
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = fnmatch.filter(trainable, pattern)
        if not found and pattern in every:
            raise UsageError(
                f"The parameter '{pattern}' is frozen (requires_grad=False): it has no "
                "gradient."
            )
        if not found:
            raise unknown("trainable parameter", pattern, trainable)
        chosen.update(found)
    return tuple(name for name in trainable if name in chosen)


def _no_gradient(names: Sequence[str]) -> str:
    return (
        f"The loss does not depend on the chosen parameters ({', '.join(names[:3])}): "
        "it has no gradient. Is the output detached, computed under no_grad, or "
        "reached through another module than this one?"
    )
