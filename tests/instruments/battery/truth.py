"""What instruments should find, from plain PyTorch in float64.

Vectors are written into a model, and that is run. Gradients are those that training
would use (``backward()`` and ``.grad``); second derivatives are central differences of
them, so that a second derivative which PyTorch has wrong is found out.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tests.instruments.battery.case import (
    CRITERIA,
    Case,
    Model,
    doubled,
    make,
    run,
    split,
    tensors,
)

# Central differences have errors of 1e-10 from the third derivative and from rounding.
STEP = 1e-5


class Truth:
    """The mean loss of a row's model over its data, of one vector (P,), float64.

    Attributes:
        case: Its own model, loss and data.
        point: The model's trainable parameters; a complex entry is two numbers, its
            real part first.
    """

    def __init__(self, row: Model) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.case: Case = make(row, gradients=False)
            self.model = in_double(self.case.model)
            self.other = in_double(self.case.other)
            if isinstance(self.case.loss, nn.Module):
                in_double(self.case.loss)
        for module in self.model.modules():
            # That form refuses autograd.grad; the function is the same.
            if hasattr(module, "use_reentrant"):
                module.use_reentrant = False
        self.batches = [doubled(batch) for batch in self.case.batches]
        counts = [self.case.count(batch) for batch in self.case.batches]
        self.weights = [count / sum(counts) for count in counts]
        self._parameters = _trainable(self.model)
        self.names = [
            name for name, p in self.model.named_parameters() if p.requires_grad
        ]
        self.sizes = [_real(p.detach()).numel() for p in self._parameters]
        self.point = self._flat([p.detach() for p in self._parameters])

    # The function

    def loss(self, vector: Tensor) -> float:
        """The mean loss over all data."""
        self._write(vector)
        with torch.no_grad():
            parts = [
                w * self._batch_loss(b)
                for b, w in zip(self.batches, self.weights, strict=True)
            ]
        return float(torch.stack(parts).sum())

    def gradient(self, vector: Tensor) -> Tensor:
        """Its gradient (P,)."""
        self._write(vector)
        return self._backward(self.batches, self.weights)

    def outputs(self, vector: Tensor, batch: Any) -> Tensor:
        """The model's outputs on a batch."""
        self._write(vector)
        with torch.no_grad():
            return run(self.model, split(doubled(batch))[0])

    def sample_norms(self) -> list[float]:
        """The norm of each sample's own gradient."""
        pick = self.case.row.sample
        assert pick is not None
        self._write(self.point)
        samples = [
            pick(b, i) for b in self.batches for i in range(len(next(tensors(b))))
        ]
        return [float(self._backward([sample], [1.0]).norm()) for sample in samples]

    def on_line(self, alpha: float) -> float:
        """Return the loss of the model that lies between the two models."""
        self._write(self.point)
        own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        far = self.other.state_dict()
        mixed = {
            name: (1 - alpha) * tensor + alpha * far[name]
            if tensor.is_floating_point() or tensor.is_complex()
            else tensor
            for name, tensor in own.items()
        }
        self._load(mixed)
        with torch.no_grad():
            parts = [
                w * self._batch_loss(b)
                for b, w in zip(self.batches, self.weights, strict=True)
            ]
        self._load(own)
        return float(torch.stack(parts).sum())

    # At the model's own point

    @cached_property
    def value(self) -> float:
        """The loss."""
        return self.loss(self.point)

    @cached_property
    def slope(self) -> Tensor:
        """The gradient (P,)."""
        return self.gradient(self.point)

    @cached_property
    def hessian(self) -> Tensor:
        """The Hessian (P, P), central differences of the gradient."""
        columns = []
        for place in range(len(self.point)):
            step = torch.zeros_like(self.point)
            step[place] = STEP
            ahead = self.gradient(self.point + step)
            behind = self.gradient(self.point - step)
            columns.append((ahead - behind) / (2 * STEP))
        matrix = torch.stack(columns)
        return (matrix + matrix.T) / 2

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of the Hessian, ascending."""
        return torch.linalg.eigvalsh(self.hessian)

    @cached_property
    def norm(self) -> float:
        """The spectral norm of the Hessian."""
        return float(self.eigenvalues.abs().max())

    @cached_property
    def gauss_newton(self) -> Tensor:
        """Return the Gauss-Newton matrix (P, P) by central differences."""
        total = torch.zeros_like(self.hessian)
        criterion = (
            CRITERIA[self.case.loss]
            if isinstance(self.case.loss, str)
            else self.case.loss
        )
        for batch, weight in zip(self.batches, self.weights, strict=True):
            columns = []
            for place in range(len(self.point)):
                step = torch.zeros_like(self.point)
                step[place] = STEP
                ahead, behind = (
                    self.outputs(self.point + s, batch) for s in (step, -step)
                )
                columns.append(((ahead - behind) / (2 * STEP)).reshape(-1))
            jacobian = torch.stack(columns, dim=1)
            outputs, target = self.outputs(self.point, batch), split(batch)[1]
            bent = torch.autograd.functional.hessian(
                lambda o, t=target: criterion(o, t), outputs
            )
            total += weight * jacobian.T @ bent.reshape(len(jacobian), -1) @ jacobian
        return total

    def input_norms(self) -> list[float]:
        """The Frobenius norm of the Jacobian of outputs in inputs, at each sample."""
        self._write(self.point)
        found = []
        for batch in self.batches:
            inputs = split(batch)[0]
            parts = inputs if isinstance(inputs, tuple) else (inputs,)
            found += [self._input_norm(parts, i) for i in range(len(parts[0]))]
        return found

    # Inside

    def _input_norm(self, parts: tuple[Tensor, ...], sample: int) -> float:
        """The norm of one sample's Jacobian.

        Inputs that are whole numbers are held, and so is what all samples share, such
        as a mask.
        """
        shared = [len(part) != len(parts[0]) for part in parts]
        rows = [
            part if held else part[sample : sample + 1]
            for part, held in zip(parts, shared, strict=True)
        ]
        varies = [
            row.is_floating_point() and not held
            for row, held in zip(rows, shared, strict=True)
        ]
        free = tuple(row for row, one in zip(rows, varies, strict=True) if one)

        def outputs(*values: Tensor) -> Tensor:
            remaining = iter(values)
            given = [
                next(remaining) if one else row
                for row, one in zip(rows, varies, strict=True)
            ]
            found: Tensor = self.model(*given)
            return found

        jacobian = torch.autograd.functional.jacobian(outputs, free)
        return sum(float(part.square().sum()) for part in jacobian) ** 0.5

    def _batch_loss(self, batch: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.case.plain_loss(self.model, doubled(batch)).double()

    def _backward(self, batches: list[Any], weights: list[float]) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        for batch, weight in zip(batches, weights, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (weight * self._batch_loss(batch)).backward()
        found = [
            torch.zeros_like(p) if p.grad is None else p.grad.detach()
            for p in self._parameters
        ]
        return self._flat(
            [part.to_dense() if part.is_sparse else part for part in found]
        )

    def _write(self, vector: Tensor) -> None:
        with torch.no_grad():
            for parameter, part in zip(
                self._parameters, vector.split(self.sizes), strict=True
            ):
                target = _real(parameter.detach())
                target.copy_(part.reshape(target.shape))

    def _load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(state[name])

    @staticmethod
    def _flat(parts: list[Tensor]) -> Tensor:
        return torch.cat(
            [torch.zeros(0), *(_real(part).reshape(-1) for part in parts)]
        ).double()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def in_double(model: nn.Module) -> nn.Module:
    """Return the model in float64 and complex128, with what it holds unregistered."""
    model = model.double()
    for parameter in model.parameters():
        if parameter.is_complex():  # .double() leaves them as they are
            parameter.data = parameter.data.to(torch.complex128)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and value.is_leaf
            ):
                vars(module)[name] = value.double()
            elif isinstance(value, list):
                for part in value:
                    if isinstance(part, nn.Module):
                        in_double(part)
    return model
