"""Gradient norms and update ratios of your own training loop, at no extra gradient."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.measurement import Measurement
from nablab.instruments.base.objective import select_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

BLUE, ORANGE = "#0072b2", "#d55e00"


def update_ratio(
    before: nn.Module | Mapping[str, Tensor], after: nn.Module | Mapping[str, Tensor]
) -> dict[str, float]:
    r"""Return :math:`\|\theta' - \theta\| / \|\theta\|` of each parameter.

    A rule of thumb calls about 0.001 per step healthy.

    Args:
        before: A module, or its parameters by name (copies: an optimizer changes them
            in place).
        after: The same, after the update.

    Returns:
        By name; infinite for a parameter of zeros that moved, 0 for one that did not
        move.

    Raises:
        UsageError: Names or shapes differ.

    >>> update_ratio({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 4.5])})
    {'w': 0.1}
    """
    old, new = _named(before), _named(after)
    differing = [
        name for name in {**old, **new} if _shape(old, name) != _shape(new, name)
    ]
    if differing:
        name = differing[0]
        raise UsageError(
            f"The parameter '{name}' is {_shape(old, name)} before and "
            f"{_shape(new, name)} after the update. Compare one model with itself."
        )
    return {
        name: ratio(
            float((new[name] - old[name]).double().norm()),
            float(old[name].double().norm()),
        )
        for name in old
    }


def _named(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = (
        source.named_parameters() if isinstance(source, nn.Module) else source.items()
    )
    return {
        name: tensor.detach() for name, tensor in found if tensor.is_floating_point()
    }


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"


def ratio(part: float, whole: float) -> float:
    """Return ``part / whole``.

    Infinite for something of nothing, 0 for nothing of nothing.
    """
    if whole:
        return part / whole
    return math.inf if part else 0.0


@dataclass(frozen=True, kw_only=True)
class GradientHistory(Measurement):
    """What a `GradientMonitor` saw.

    Attributes:
        steps: int64 (T,), the number of each record, from 0.
        norms: float64 (T,), the gradient norm over all parameters.
        parts: By parameter, float64 (T,).
        update_ratios: By parameter, float64 (T,), NaN where no update was recorded.
    """

    steps: npt.NDArray[np.int64]
    norms: Floats
    parts: dict[str, Floats]
    update_ratios: dict[str, Floats]

    def plot(self) -> Figure:
        """Plot gradient norms, and update-to-weight ratios where recorded."""
        from matplotlib.figure import Figure as Canvas

        ratios = {
            name: values
            for name, values in self.update_ratios.items()
            if np.isfinite(values).any()
        }
        figure = Canvas(figsize=(8.4 if ratios else 5.2, 3.4), layout="constrained")
        axes: Any = figure.subplots(1, 2 if ratios else 1, squeeze=False)[0]
        for place, (ax, curves) in enumerate(
            zip(axes, (self.parts, ratios), strict=False)
        ):
            label = "single parameters"
            for values in curves.values():
                ax.plot(self.steps, values, color=BLUE, lw=0.8, alpha=0.6, label=label)
                label = "_"  # one entry in the legend
            if place == 0:
                ax.plot(
                    self.steps, self.norms, color=ORANGE, lw=1.8, label="all parameters"
                )
            ax.set_yscale("log")
            ax.set_xlabel("records (optimizer steps)")
            ax.set_ylabel(("gradient norm", "update-to-weight ratio")[place])
            ax.legend(frameon=False, fontsize=9)
        return figure


class GradientMonitor:
    """Gradient norms and update-to-weight ratios of your own training loop.

    They cost no extra gradient.

    It reads ``.grad`` and the weights when told to, and leaves nothing in the model.

    Args:
        model: The model that is trained.
        parameters: Names or glob patterns of the parameters to watch.
        updates: Whether `record` keeps a copy of the weights for `record_update`.
        keep: Records to keep, the latest ones; None for all. A record is one number per
            parameter.

    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = GradientMonitor(model)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(4, 1)).square().mean().backward()
    ...     monitor.record()
    ...     optimizer.step()
    ...     monitor.record_update()
    >>> monitor.history().norms.shape
    (3,)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        parameters: str | Sequence[str] = "*",
        updates: bool = True,
        keep: int | None = None,
    ) -> None:
        if keep is not None and keep < 1:
            raise UsageError(
                f"keep={keep} would keep no record: give at least 1, or None for all."
            )
        self.names = select_parameters(model, parameters)
        own = dict(model.named_parameters())
        self._parameters = [own[name] for name in self.names]
        self._updates = updates
        self._before: list[Tensor] = []
        self._count = 0
        # Kept on the device, so that no record waits for an accelerator.
        self._norms: deque[Tensor] = deque(maxlen=keep)
        self._ratios: deque[Tensor] = deque(maxlen=keep)

    def record(self) -> None:
        """Read ``.grad``.

        Call it after ``loss.backward()`` and before ``optimizer.step()``.

        A parameter without a gradient counts as 0. With a gradient scaler, unscale
        first.

        Raises:
            UsageError: No watched parameter has a gradient.
        """
        if all(parameter.grad is None for parameter in self._parameters):
            raise UsageError(
                "No watched parameter has a gradient. Call record() after "
                "loss.backward() and before optimizer.zero_grad()."
            )
        self._norms.append(
            _norms([parameter.grad for parameter in self._parameters], self._parameters)
        )
        self._ratios.append(torch.full_like(self._norms[-1], math.nan))
        self._count += 1
        if self._updates:
            self._before = [
                parameter.detach().clone() for parameter in self._parameters
            ]

    def record_update(self) -> None:
        """Compare the weights with those at `record`.

        Call it after ``optimizer.step()``.

        Raises:
            UsageError: There is nothing to compare with.
        """
        if not self._before:
            raise UsageError(
                "There are no weights from before the update. Create GradientMonitor "
                "with updates=True and call record() before every optimizer.step()."
            )
        moved = [
            parameter.detach() - before
            for parameter, before in zip(self._parameters, self._before, strict=True)
        ]
        lengths = _norms(moved, self._parameters)
        ratios = lengths / _norms(self._before, self._parameters)
        self._ratios[-1] = torch.where(lengths > 0, ratios, torch.zeros_like(ratios))
        self._before = []

    def history(self) -> GradientHistory:
        """Return all records that are kept.

        Raises:
            UsageError: Nothing was recorded.
        """
        if not self._norms:
            raise UsageError(
                "Nothing was recorded: call record() after every loss.backward()."
            )
        norms = torch.stack(list(self._norms)).double().cpu().numpy()
        ratios = torch.stack(list(self._ratios)).double().cpu().numpy()
        return GradientHistory(
            steps=np.arange(self._count - len(norms), self._count),
            norms=np.sqrt(np.square(norms).sum(axis=1)),
            parts={name: norms[:, place] for place, name in enumerate(self.names)},
            update_ratios={
                name: ratios[:, place] for place, name in enumerate(self.names)
            },
            gradients=0.0,
        )


def _norms(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    found = [
        own.new_zeros(()) if tensor is None else tensor.detach().norm()
        for tensor, own in zip(tensors, like, strict=True)
    ]
    return torch.stack([norm.to(found[0].device) for norm in found])
