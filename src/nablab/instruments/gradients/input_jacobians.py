"""Jacobians of outputs in inputs, sample by sample, from passes over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.batches import (
    count_samples,
    map_tensors,
    part_of,
    read_batches,
    tensors_in,
)
from nablab.instruments.base.losses import MISFITS, Closure, Loss, call, split
from nablab.instruments.base.objective import Objective

Method = Literal["auto", "exact", "projections"]
Of = Literal["logits", "probabilities"]

# On a CPU, 25 to 100 samples per pass keep LeNet's activations in the cache, 1,000 do
# not.
SAMPLES_AT_ONCE = 100
JACOBIAN_ENTRIES = 2**24  # numbers of Jacobians held at once by the spectral norm
# An exact Jacobian of more passes is estimated by projections under "auto".
MOST_PASSES = 256
SAMPLES_CHECKED = 4  # samples that the checks look at
_INDEPENDENCE = {torch.float64: 1e-8}  # relative; other dtypes 1e-3


class Jacobian:
    """The Jacobians of one batch; methods give values and uncertainty, (n,) each."""

    def __init__(self, objective: Objective, of: Of) -> None:
        self.objective, self._of = objective, of
        batch = part_of(objective.batches.items[0], 0, SAMPLES_CHECKED)
        self.share = count_samples(batch) / objective.batches.total
        self._layout: Callable[[Tensor], Tensor] = torch.Tensor.detach
        self._use_channels_last(batch)
        leaves, outputs = self.forward(batch)
        self.outputs = outputs.shape[1]
        self.inputs = sum(leaf[0].numel() for leaf in leaves)

    def _use_channels_last(self, batch: Any) -> None:
        """Lay images out channels last, where the model runs with that.

        On a CPU, backward passes of convolutions with few channels take half the time.
        """
        objective = self.objective
        if objective.device.type != "cpu" or all(
            tensor.ndim != 4 for tensor in objective.fixed.values()
        ):
            return
        before = dict(objective.fixed)
        objective.fixed = {
            name: _channels_last(tensor) for name, tensor in before.items()
        }
        self._layout = _channels_last
        try:
            leaves, outputs = self.forward(batch)
            torch.autograd.grad(outputs.sum(), leaves, materialize_grads=True)
        # A .view() of a tensor, for example, may expect another layout.
        except (RuntimeError, UsageError):
            objective.fixed = before
            self._layout = torch.Tensor.detach

    def choose(self, method: Method) -> str:
        """Choose the way to all entries of the Jacobian."""
        # A forward-mode pass computes the value again.
        forward = 2 * self.inputs < self.outputs + 1
        passes = 2 * self.inputs if forward else self.outputs + 1
        if method == "projections" or (method == "auto" and passes > MOST_PASSES):
            if method == "auto":
                self.objective.notes += (
                    f"The norms are estimated by random projections: {self.outputs} "
                    f"outputs and {self.inputs} inputs are many for exact ones "
                    "(method='exact').",
                )
            return "projections"
        if forward and not self._has_forward_mode():
            self.objective.notes += (
                "Reverse mode was used: the model has no forward-mode derivative.",
            )
            forward = False
        return "forward" if forward else "reverse"

    def _has_forward_mode(self) -> bool:
        try:
            with self.objective.quiet():
                next(self._columns(part_of(self.objective.batches.items[0], 0, 1)))
        except (RuntimeError, NotImplementedError):
            return False
        return True

    def _leaves(self, batch: Any) -> list[Tensor]:
        found = variables(split(batch)[0], count_samples(batch))
        return [self._layout(tensor).requires_grad_() for tensor in found]

    def forward(self, batch: Any) -> tuple[list[Tensor], Tensor]:
        """Return inputs that ask for a gradient, and outputs (n, C)."""
        leaves = self._leaves(batch)
        with self.objective.quiet(), torch.enable_grad(), _apart():
            outputs = self._evaluate(batch, leaves)
        self.objective.spent += self.share / 3
        if not outputs.requires_grad:
            raise UsageError(
                "The outputs do not depend on the inputs in a way that has a "
                "derivative. Is the output detached, rounded, or computed under "
                "no_grad?"
            )
        return leaves, outputs

    def _evaluate(self, batch: Any, values: list[Tensor]) -> Tensor:
        length = count_samples(batch)
        inputs, target = split(batch)
        remaining = iter(values)
        given = map_tensors(
            inputs,
            lambda tensor: next(remaining) if _varies(tensor, length) else tensor,
        )
        return flat(
            self.objective.batch_outputs(self.objective.values, (given, target)),
            length,
            self._of,
        )

    def _pull(
        self,
        outputs: Tensor,
        leaves: list[Tensor],
        vector: Tensor,
        *,
        last: bool = False,
    ) -> Tensor:
        """Return each sample's transposed Jacobian times its row, (n, D).

        The rows are ``vector`` (n, C).
        """
        found = torch.autograd.grad(
            outputs, leaves, vector, retain_graph=not last, materialize_grads=True
        )
        self.objective.spent += self.share / 3
        return torch.cat([part.flatten(1) for part in found], dim=1)

    def _rows(self, batch: Any) -> Iterator[Tensor]:
        """Yield row c (n, D) of every sample's Jacobian, for c = 0 to C - 1."""
        leaves, outputs = self.forward(batch)
        count = outputs.shape[1]
        for place in range(count):
            unit = torch.zeros_like(outputs)
            unit[:, place] = 1
            yield self._pull(outputs, leaves, unit, last=place == count - 1)

    def _columns(self, batch: Any) -> Iterator[Tensor]:
        """Yield column d (n, C) of every Jacobian, d = 0 to D - 1, in forward mode."""
        given = variables(split(batch)[0], count_samples(batch))
        for place, variable in enumerate(given):
            for entry in range(variable[0].numel()):
                tangents = [torch.zeros_like(other) for other in given]
                tangents[place].flatten(1)[:, entry] = 1
                yield torch.func.jvp(
                    lambda *at: self._evaluate(batch, list(at)),
                    tuple(given),
                    tuple(tangents),
                )[1]
                self.objective.spent += 2 / 3 * self.share

    def frobenius_by_rows(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute exact norms by one backward pass per output."""
        return _exact(sum(row.square().sum(dim=1) for row in self._rows(batch)))

    def frobenius_by_columns(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute exact norms by one forward-mode pass per input."""
        return _exact(
            sum(column.square().sum(dim=1) for column in self._columns(batch))
        )

    def projected(
        self, batch: Any, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Estimate norms from ``count`` random projections, with standard errors."""
        leaves, outputs = self.forward(batch)
        squares = []
        for _ in range(count):
            vector = torch.randn(
                outputs.shape,
                generator=generator,
                device=outputs.device,
                dtype=outputs.dtype,
            )
            squares.append(self._pull(outputs, leaves, vector).square().sum(dim=1))
        stacked = torch.stack(squares).double()
        norms = stacked.mean(dim=0).sqrt()
        # Since d sqrt(s) = ds / (2 sqrt(s)); a norm of exactly 0 has no error.
        errors = stacked.std(dim=0) / math.sqrt(count) / (2 * norms)
        return norms, errors.nan_to_num(0.0)

    def spectral(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute exact norms from the singular values of whole Jacobians.

        A few samples are taken at a time.
        """
        passes = self._rows if self.choose("exact") == "reverse" else self._columns
        step = max(1, JACOBIAN_ENTRIES // (self.outputs * self.inputs))
        length = count_samples(batch)
        share, found = self.share, []
        for start in range(0, length, step):
            part = part_of(batch, start, start + step)
            self.share = share * count_samples(part) / length
            found.append(
                torch.linalg.matrix_norm(torch.stack(list(passes(part)), dim=1), ord=2)
            )
        return torch.cat(found), torch.zeros_like(torch.cat(found))

    def power_iteration(
        self, batch: Any, iterations: int, tolerance: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the largest singular value with the residual's bound.

        It comes from power iteration on J times J^T.
        """
        leaves, outputs = self.forward(batch)
        vector = torch.randn(
            outputs.shape,
            generator=generator,
            device=outputs.device,
            dtype=outputs.dtype,
        )
        # J^T u is linear in u, so its derivative in u, applied to w, is J w: no forward
        # mode needed.
        dual = torch.zeros_like(outputs, requires_grad=True)
        found = torch.autograd.grad(
            outputs, leaves, dual, create_graph=True, materialize_grads=True
        )
        pulled = torch.cat([part.flatten(1) for part in found], dim=1)
        for _ in range(iterations):
            vector = nn.functional.normalize(vector, dim=1)
            back = self._pull(outputs, leaves, vector)
            value = back.norm(dim=1)
            image = torch.autograd.grad(pulled, dual, back, retain_graph=True)[0]
            self.objective.spent += 2 / 3 * self.share
            # Some eigenvalue of J J^T lies within the residual of value^2.
            residual = (image - value[:, None].square() * vector).norm(dim=1)
            vector = image
            if bool((residual <= tolerance * value.square()).all()):
                break
        return value, (residual / (2 * value)).nan_to_num(0.0)

    def loss_gradients(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the norm of the gradient of each sample's loss in its input."""
        length = count_samples(batch)
        inputs, target = split(batch)
        leaves = self._leaves(batch)
        remaining = iter(leaves)
        given = map_tensors(
            inputs,
            lambda tensor: next(remaining) if _varies(tensor, length) else tensor,
        )
        with _apart():
            value = self.objective.batch_loss(self.objective.values, (given, target))
        found = torch.autograd.grad(value, leaves, materialize_grads=True)
        self.objective.spent += 2 / 3 * self.share
        norms = length * torch.cat([part.flatten(1) for part in found], dim=1).norm(
            dim=1
        )
        return norms, torch.zeros_like(norms)

    def check_independence(self) -> None:
        """Refuse models that mix samples, and losses that are not a mean over them."""
        batch = part_of(self.objective.batches.items[0], 0, SAMPLES_CHECKED)
        length = count_samples(batch)
        if length < 2:
            return
        leaves, outputs = self.forward(batch)
        last = torch.zeros_like(outputs)
        # The entries are unequal: the sum of a softmax has no gradient.
        last[-1] = torch.linspace(0.5, 1.5, outputs.shape[1])
        leak = float(self._pull(outputs, leaves, last, last=True)[:-1].abs().max())
        if leak:
            raise UsageError(
                "The outputs of one sample depend on other samples of its batch (by up "
                f"to {leak:.2g}), so a sample has no Jacobian of its own. Batch "
                "statistics or a batch axis that is not the first do this: call "
                "model.eval(), and give tensors whose first axis is the sample."
            )
        if not self.objective.is_closure:
            self._check_loss(batch, length)

    def _check_loss(self, batch: Any, length: int) -> None:
        with self.objective.quiet(), torch.enable_grad():
            together = self.loss_gradients(batch)[0]
            alone = torch.cat(
                [
                    self.loss_gradients(part_of(batch, i, i + 1))[0]
                    for i in range(length)
                ]
            )
        tolerance = _INDEPENDENCE.get(self.objective.dtype, 1e-3)
        if float((together - alone).norm()) > tolerance * float(alone.norm()):
            raise UsageError(
                "The loss of a batch is not the mean over its samples: a sample's "
                "gradient depends on its batch. Use reduction='mean' and no class "
                "weights."
            )


@contextmanager
def _apart() -> Iterator[None]:
    """Explain a model that fails on some samples of a batch, not on all."""
    try:
        yield
    except MISFITS as error:
        if isinstance(error, torch.OutOfMemoryError | UsageError):
            raise
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UsageError(
            f"The model fails on some samples of a batch by themselves ({why}): they "
            "are tied together, as the nodes of a graph are, or a tensor of the batch "
            "has no row for each of them. Wrap the model in a module that takes one "
            "tensor whose first axis is the sample."
        ) from error


class _Anchored(nn.Module):
    """A model beside a parameter of its own, as `Objective` asks for one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = model
        tensors = [*model.parameters(), *model.buffers()]
        like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
        self.anchor = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.network(*inputs, **named)


def prepare(
    model: nn.Module,
    data: Any,
    of: Of,
    loss: Loss | None,
    dtype: torch.dtype | None,
    batch_size: int | None,
) -> Objective:
    """Return the model and its data as an `Objective` whose weights are fixed.

    Raises:
        UsageError: The data lack targets or inputs that have a derivative; see
            `Objective` for the rest.
    """
    anchored = _Anchored(model)
    device = anchored.anchor.device
    size = batch_size or (
        SAMPLES_AT_ONCE if device.type == "cpu" else 10 * SAMPLES_AT_ONCE
    )
    batches = read_batches(
        data, device=device, dtype=dtype or anchored.anchor.dtype, batch_size=size
    )
    pairs = [_pair(batch, needs_target=loss is not None) for batch in batches.items]

    def mean_output(module: Any, batch: Any) -> Tensor:
        return flat(call(module, batch[0]), count_samples(batch), of).mean()

    return Objective(
        anchored, loss or Closure(mean_output), pairs, parameters="anchor", dtype=dtype
    )


def _pair(batch: Any, *, needs_target: bool) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(batch) > 1:
        inputs, target = split(batch)
    elif needs_target:
        raise UsageError(
            "The loss gradient needs targets: give batches (inputs, target)."
        )
    else:
        inputs, target = (batch[0] if isinstance(batch, tuple | list) else batch), None
    length = count_samples(inputs)
    if not variables(inputs, length):
        raise UsageError(
            "The inputs hold no floating-point tensor with one row per sample, so "
            "there is nothing to differentiate by. For token numbers, give the model's "
            "embeddings as inputs."
        )
    return inputs, torch.zeros(length) if target is None else target


def _channels_last(tensor: Tensor) -> Tensor:
    # .contiguous() would leave the strides of one-channel tensors as they are, and
    # convolutions go by them.
    return (
        tensor.clone(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    )


def _varies(tensor: Tensor, length: int) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0 and len(tensor) == length


def variables(inputs: Any, length: int) -> list[Tensor]:
    """Return the floating-point inputs that have one row per sample, detached."""
    return [tensor.detach() for tensor in tensors_in(inputs) if _varies(tensor, length)]


def flat(outputs: Any, length: int, of: Of) -> Tensor:
    """Return outputs or probabilities as (n, C).

    Raises:
        UsageError: They are not one tensor with a row per sample, or no logits of
            classes.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != length:
        what = (
            f"shape {tuple(outputs.shape)}"
            if isinstance(outputs, Tensor)
            else f"a {type(outputs).__name__}"
        )
        raise UsageError(
            f"The model returns {what} for {length} samples; sensitivity needs one "
            "tensor whose first axis is the sample. Wrap the model in a module that "
            "returns that tensor."
        )
    if of == "probabilities":
        if outputs.ndim < 2 or outputs.shape[1] < 2:
            raise UsageError(
                "of='probabilities' needs the logits of at least two classes on axis "
                f"1; the outputs have shape {tuple(outputs.shape)}. Use of='logits'."
            )
        outputs = outputs.softmax(dim=1)
    rows: Tensor = outputs.reshape(length, -1)
    return rows


def _exact(squares: Any) -> tuple[Tensor, Tensor]:
    norms: Tensor = squares.sqrt()
    return norms, torch.zeros_like(norms)
