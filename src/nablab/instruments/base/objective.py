"""The mean loss of a model over data as a function of chosen parameters: what most instruments measure."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from nablab.errors import UsageError, unknown
from nablab.instruments.base.batches import count_samples, part_of, read_batches
from nablab.instruments.base.losses import Closure, Evaluation, Loss, Outputs, split

_SPLIT_TOLERANCE = {torch.float64: 1e-9}  # relative; other dtypes 1e-3: means of halves against the whole
ATTENTION = (
    "Attention was computed with PyTorch's math kernel: the fused ones have no second derivative. "
    "Values may differ from the fused kernel's in the last digits."
)


class Objective:
    r"""The mean loss :math:`f(\theta) = \frac1N \sum_i \ell(\theta; x_i, y_i)` and its gradient.

    The model is never written to: weights and buffers are copied on construction and given to the model by
    `torch.func.functional_call`. Modes, ``.grad``, hooks and random generators stay as they are.

    Args:
        model: Any module, in the mode in which it is to be measured (usually ``model.eval()``).
        loss: A name, a function ``loss(output, target)`` that gives the mean over its batch, or a `Closure`.
        data: One batch, an iterable of batches, or a data set; see `read_batches`.
        parameters: Names or glob patterns of the parameters that count as variables, such as ``"*.weight"``.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches into pieces of at most this many samples, to bound the memory.
        check: Verify that the loss is a deterministic mean over samples (three forward passes of a batch).

    Attributes:
        names: Names of the chosen parameters.
        shapes: Their shapes.
        size: Number of their entries, P.
        point: The chosen parameters as one vector (P,).
        batches: The data.
        dtype: The dtype of the measurement.
        device: Where the model is.
        spent: Gradient evaluations so far: full-data forward and backward passes; a forward pass counts 1/3.
        notes: What was chosen automatically.

    Raises:
        UsageError: No parameter matches or has a gradient, the loss is not a scalar or is NaN, the forward
            pass is random or depends on how samples share a batch.

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
        check: bool = True,
    ) -> None:
        self.names = select_parameters(model, parameters)
        self.spent = 0.0
        self.notes: tuple[str, ...] = ()
        own = dict(model.named_parameters())
        first = own[self.names[0]]
        self.dtype, self.device = dtype or first.dtype, first.device
        self._module = Evaluation(model, loss)
        self._outputs = Outputs(model)
        self._rnns = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
        _check_weights(own)
        tensors = dict(self._module.named_parameters()) | dict(self._module.named_buffers())
        copies = {name: self._copy(tensor) for name, tensor in tensors.items()}
        self.values = {name: copies.pop(f"model.{name}") for name in self.names}
        self.fixed = copies
        self.shapes = tuple(value.shape for value in self.values.values())
        self._counts = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self._counts)
        self.point = self.flatten(self.values)
        samples = loss.samples if isinstance(loss, Closure) else None
        self.batches = read_batches(
            data, device=self.device, dtype=self.dtype, batch_size=batch_size, samples=samples
        )
        if check:
            self._check()

    # Vectors and tensors by name

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """One vector (P,) of tensors by parameter name; leading axes beyond the parameters' own are kept."""
        parts = [
            tensors[name].reshape(*tensors[name].shape[: tensors[name].ndim - len(shape)], -1)
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """The inverse of `flatten`: views of ``vector`` (..., P) in the parameters' shapes."""
        parts = torch.split(vector, self._counts, dim=-1)
        return {
            name: part.reshape(*part.shape[:-1], *shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    # The function

    def batch_loss(self, tensors: dict[str, Tensor], batch: Any) -> Tensor:
        """The mean loss of one batch at the given values of the chosen parameters; differentiable, pure."""
        given = {**self.fixed, **{f"model.{name}": tensor for name, tensor in tensors.items()}}
        value: Tensor = functional_call(self._module, given, (batch,))
        return value

    def batch_outputs(self, tensors: dict[str, Tensor], batch: Any) -> Any:
        """What the model returns on the inputs of a batch ``(inputs, target)``; differentiable, pure."""
        given = {k: v for k, v in self.fixed.items() if k.startswith("model.")}
        given |= {f"model.{name}": tensor for name, tensor in tensors.items()}
        return functional_call(self._outputs, given, (split(batch)[0],))

    @property
    def model(self) -> nn.Module:
        """The model itself; for looking, not for writing."""
        return self._module.model

    @property
    def is_closure(self) -> bool:
        """Whether outputs and targets cannot be had apart."""
        return self._module.is_closure

    def criterion(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of outputs.

        Raises:
            UsageError: The loss is a closure.
        """
        if self.is_closure:
            raise UsageError(
                "This instrument needs outputs and loss apart; a Closure gives only their composition. "
                "Give a loss(output, target) and batches (inputs, target)."
            )
        loss = self._module.criterion
        if isinstance(loss, nn.Module):
            prefix = "criterion."
            own = {k.removeprefix(prefix): v for k, v in self.fixed.items() if k.startswith(prefix)}
            value: Tensor = functional_call(loss, own, (outputs, target))
            return value
        return cast("Callable[[Tensor, Tensor], Tensor]", loss)(outputs, target)

    def loss(self, vector: Tensor | None = None) -> float:
        """The mean loss over all data at ``vector`` (P,), or at the model's own point."""
        tensors = self.values if vector is None else self.unflatten(vector)
        total = 0.0
        with self.quiet(), torch.no_grad():
            for batch, weight in self.batches:
                total += weight * float(self.batch_loss(tensors, batch))
        self.spent += 1 / 3
        return total

    def loss_and_gradient(self, vector: Tensor | None = None) -> tuple[float, Tensor]:
        """The mean loss over all data and its gradient (P,)."""
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
        """The gradient of the mean loss over all data, (P,)."""
        return self.loss_and_gradient(vector)[1]

    def leaves(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """The chosen parameters at ``vector``, as new tensors that ask for a gradient."""
        tensors = self.values if vector is None else self.unflatten(vector)
        return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}

    def gradients_of(self, value: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of a loss by name.

        Raises:
            UsageError: The loss does not depend on the parameters.
        """
        if not value.requires_grad:
            raise UsageError(_no_gradient(self.names))
        found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Run the model inside: generators restored after, kernels that can be differentiated twice."""
        with ExitStack() as stack:
            devices = [self.device] if self.device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(_without_fast_attention())
            if self._rnns:  # cuDNN's recurrent kernels have no second derivative either
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                stack.callback(self._restore_rnns)
            yield

    def _restore_rnns(self) -> None:
        for module in self._rnns:  # they keep a list of the tensors of the latest call
            module._init_flat_weights()

    def _copy(self, tensor: Tensor) -> Tensor:
        kind = self.dtype if tensor.is_floating_point() else None
        return tensor.detach().to(self.device, kind, copy=True)

    # Checks before anything costly

    def _check(self) -> None:
        batch = self.batches.items[0]
        before = {name: tensor.clone() for name, tensor in self.fixed.items()}
        losses = []
        with self.quiet(), torch.no_grad(), _AttentionSeen() as attention:
            for seed in (0, 1):
                torch.manual_seed(seed)
                losses.append(self._checked_loss(batch))
        if attention.seen:
            self.notes += (ATTENTION,)
        changed = [name for name, tensor in before.items() if not _same(tensor, self.fixed[name])]
        if changed:
            shown = ", ".join(name.removeprefix("model.") for name in changed[:3])
            raise UsageError(
                f"A forward pass changes {len(changed)} buffers ({shown}): the model is in training mode, "
                "where batch norm depends on the batch. Call model.eval() before measuring."
            )
        if losses[0] != losses[1]:
            raise UsageError(
                f"The forward pass is random: two passes over one batch gave {losses[0]:.6g} and "
                f"{losses[1]:.6g}. Dropout in training mode does this: call model.eval() before measuring."
            )
        if not math.isfinite(losses[0]):
            raise UsageError(
                f"The loss of the first batch is {losses[0]}, with finite weights and data. "
                "Nothing can be measured at such a point."
            )
        if len(self.batches) > 1:
            self._check_mean(batch, losses[0])
        self.spent += 2 / 3 * self.batches.weights[0]

    def _checked_loss(self, batch: Any) -> float:
        value = self.batch_loss(self.values, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"The loss is not one real number ({what}). Give the mean over the batch: "
                "reduction='mean', or .mean()."
            )
        return float(value)

    def _check_mean(self, batch: Any, whole: float) -> None:
        """A loss that sums, or a model that mixes samples, makes the mean over batches wrong."""
        mean = None if self.is_closure else self._mean_of_halves(batch)
        if mean is not None and not self._agree(mean, whole):
            raise UsageError(
                f"The loss of a batch is not the mean over its samples: {whole:.6g} for "
                f"{count_samples(batch)} samples, {mean:.6g} as the mean of its halves. A loss that sums, "
                "class weights, or batch statistics do this. Use reduction='mean', give all data as one "
                "batch, or a Closure whose samples= counts what the mean is over."
            )

    def may_be_cut(self) -> bool:
        """Whether the first batch's loss is the mean of its parts' losses, so that batches may be cut."""
        batch = self.batches.items[0]
        if self.is_closure or count_samples(batch) < 2:
            return False
        with self.quiet(), torch.no_grad():
            whole = float(self.batch_loss(self.values, batch))
        mean = self._mean_of_halves(batch)
        self.spent += 2 / 3 * self.batches.weights[0]
        return mean is not None and self._agree(mean, whole)

    def _mean_of_halves(self, batch: Any) -> float | None:
        length = count_samples(batch)
        if length < 2:
            return None
        half = length // 2
        with self.quiet(), torch.no_grad():
            first = float(self.batch_loss(self.values, part_of(batch, 0, half)))
            second = float(self.batch_loss(self.values, part_of(batch, half, length)))
        return (half * first + (length - half) * second) / length

    def _agree(self, mean: float, whole: float) -> bool:
        return abs(mean - whole) <= _SPLIT_TOLERANCE.get(self.dtype, 1e-3) * max(abs(whole), abs(mean))


def select_parameters(model: nn.Module, patterns: str | Sequence[str] = "*") -> tuple[str, ...]:
    """Names of the trainable parameters that match any of the glob patterns, in the model's order.

    Raises:
        UsageError: The model has no trainable parameter, or a pattern matches none.
    """
    every = dict(model.named_parameters())
    trainable = [name for name, parameter in every.items() if parameter.requires_grad]
    if not trainable:
        raise UsageError(
            f"The model {type(model).__name__} has no parameter that asks for a gradient"
            f"{' (all ' + str(len(every)) + ' are frozen)' if every else ''}. "
            "Call requires_grad_(True) on those to be measured."
        )
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = fnmatch.filter(trainable, pattern)
        if not found and pattern in every:
            raise UsageError(
                f"The parameter '{pattern}' is frozen (requires_grad=False): it has no gradient."
            )
        if not found:
            raise unknown("trainable parameter", pattern, trainable)
        chosen.update(found)
    return tuple(name for name in trainable if name in chosen)


def _check_weights(parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if not bool(parameter.isfinite().all()):
            bad = int((~parameter.isfinite()).sum())
            raise UsageError(
                f"The parameter '{name}' holds {bad} values that are NaN or infinite: the model has "
                "diverged. Measure an earlier checkpoint."
            )


def _no_gradient(names: Sequence[str]) -> str:
    return (
        f"The loss does not depend on the chosen parameters ({', '.join(names[:3])}): it has no gradient. "
        "Is the output detached, computed under no_grad, or reached through another module than this one?"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


@contextmanager
def _without_fast_attention() -> Iterator[None]:
    """Switch off the inference-only path of `nn.MultiheadAttention`, which has no derivative."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _AttentionSeen(TorchFunctionMode):
    """Notes whether fused attention is called inside."""

    seen = False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # The second is a Python function: what it calls is not shown to a mode.
        fused = nn.functional.scaled_dot_product_attention, nn.functional.multi_head_attention_forward
        self.seen = self.seen or function in fused
        return function(*args, **(kwargs or {}))
