"""Which tensor entries belong to which hidden units, and how to order them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown

# By group of units: the (tensor, axis) pairs along which these units are listed.
Specification: TypeAlias = Mapping[str, Sequence[tuple[str, int]]]

REMEDY = (
    "Give specification={group: [(parameter, axis), ...]}: for every group of hidden "
    "units, the axes of all parameters and buffers that list them, such as {'hidden': "
    "[('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]}."
)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
# They treat every unit by itself, or all alike.
ANYWHERE = (
    *(
        nn.ReLU,
        nn.LeakyReLU,
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.ReLU6,
        nn.RReLU,
    ),
    *(
        nn.Sigmoid,
        nn.Tanh,
        nn.LogSigmoid,
        nn.Softplus,
        nn.Softsign,
        nn.Softshrink,
        nn.Hardshrink,
    ),
    *(
        nn.Tanhshrink,
        nn.Hardtanh,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Threshold,
        nn.Softmax,
        nn.LogSoftmax,
    ),
    *(
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.Identity,
    ),
)
# They treat every channel by itself; after a linear layer they would mix units.
ON_CHANNELS = (
    *(
        nn.MaxPool1d,
        nn.MaxPool2d,
        nn.MaxPool3d,
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.AvgPool3d,
        nn.LPPool2d,
    ),
    *(
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveAvgPool3d,
        nn.AdaptiveMaxPool1d,
    ),
    *(
        nn.AdaptiveMaxPool2d,
        nn.AdaptiveMaxPool3d,
        nn.ZeroPad2d,
        nn.ReflectionPad2d,
        nn.Upsample,
    ),
)


def find_specification(model: nn.Module) -> dict[str, list[tuple[str, int]]]:
    """Find the groups of hidden units of an `nn.Sequential`.

    Each is named after the layer that makes them.

    Raises:
        UsageError: The model is not an `nn.Sequential`, holds a layer whose units
            cannot be told, shares weights between layers, or has no hidden layer.

    >>> find_specification(nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)))
    {'0': [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]}
    """
    if not isinstance(model, nn.Sequential):
        raise UsageError(
            f"The units of a {type(model).__name__} cannot be derived from its layers: "
            f"only those of nn.Sequential are found automatically. {REMEDY}"
        )
    leaves = _leaves(model)
    _check_unshared(leaves)
    walk = _Walk()
    for name, layer in leaves:
        walk.pass_layer(name, layer)
    return walk.hidden()


class _Walk:
    """The groups met so far on the way from the input to the output."""

    def __init__(self) -> None:
        self._groups: dict[str, list[tuple[str, int]]] = {}
        # The group of the units that arrive at the next layer; those of the input keep
        # their order.
        self._group = ""
        self._units = 0
        # "channels", "flattened" (a block of entries per channel) or "features"
        self._layout = ""

    def pass_layer(self, name: str, layer: Any) -> None:
        """Note which of the layer's axes list units."""
        own = [part for part, _ in [*layer.named_parameters(), *layer.named_buffers()]]
        kind = type(layer)
        plain = set(own) <= {"weight", "bias"} and getattr(layer, "groups", 1) == 1
        if kind is nn.Linear and plain and self._layout != "channels":
            self._new_group(
                name, own, layer.in_features, layer.out_features, "features"
            )
        elif kind in CONVOLUTIONS and plain and self._layout in ("", "channels"):
            self._new_group(
                name, own, layer.in_channels, layer.out_channels, "channels"
            )
        elif (
            kind in NORMS
            or kind is nn.PReLU
            or (kind is nn.LayerNorm and self._layout == "features")
        ):
            parts = [part for part in own if part != "num_batches_tracked"]
            if self._group and not (kind is nn.PReLU and layer.num_parameters == 1):
                self._groups[self._group] += [(f"{name}.{part}", 0) for part in parts]
        elif kind is nn.Flatten and layer.start_dim == 1:
            self._layout = "flattened" if self._layout == "channels" else self._layout
        elif not (
            kind in ANYWHERE
            or (kind in ON_CHANNELS and self._layout in ("", "channels"))
        ):
            shown = str(layer) if "\n" not in str(layer) else kind.__name__
            raise UsageError(
                f"Layer '{name}' ({shown}) may mix or reorder units. {REMEDY}"
            )

    def hidden(self) -> dict[str, list[tuple[str, int]]]:
        """Return all groups but the last: the outputs keep their order."""
        found = {
            group: entries
            for group, entries in self._groups.items()
            if group != self._group
        }
        if not found:
            raise UsageError(
                "The model has no hidden layer, so there are no units to match."
            )
        return found

    def _new_group(
        self, name: str, own: list[str], inputs: int, outputs: int, layout: str
    ) -> None:
        if self._group:
            if inputs % self._units or (
                inputs > self._units and self._layout != "flattened"
            ):
                raise UsageError(
                    f"Layer '{name}' takes {inputs} inputs, but {self._units} units "
                    "come before it, and which input belongs to which unit is unknown. "
                    f"{REMEDY}"
                )
            self._groups[self._group].append((f"{name}.weight", 1))
        self._groups[name] = [(f"{name}.{part}", 0) for part in own]
        self._group, self._units, self._layout = name, outputs, layout


class Permutations:
    """A specification held against a model: group sizes, and what to do with tensors.

    Attributes:
        sizes: The number of units by group.
        touched: The parameters (no buffers) that list any group.
        quadratic: Groups that one parameter lists along several axes.
    """

    def __init__(self, model: nn.Module, specification: Specification) -> None:
        parameters = dict(model.named_parameters())
        buffers = dict(model.named_buffers())
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in {**parameters, **buffers}.items()
        }
        self._axes: dict[str, list[tuple[int, str]]] = {}
        self._specification = {
            group: list(entries) for group, entries in specification.items()
        }
        self.sizes: dict[str, int] = {}
        for group, entries in self._specification.items():
            lengths = [_length(shapes, group, name, axis) for name, axis in entries]
            if not lengths:
                raise UsageError(
                    f"The group '{group}' of the specification lists no "
                    f"parameter. {REMEDY}"
                )
            # The smallest axis lists each unit once; others may give each unit a block
            # (after flattening).
            self.sizes[group] = min(lengths)
            for (name, axis), length in zip(entries, lengths, strict=True):
                if length % self.sizes[group]:
                    raise UsageError(
                        f"Axis {axis} of '{name}' has {length} entries, which is not a "
                        f"multiple of the {self.sizes[group]} units of group '{group}'."
                    )
                if any(axis == taken for taken, _ in self._axes.get(name, [])):
                    raise UsageError(
                        f"Axis {axis} of '{name}' is listed twice in the specification."
                    )
                self._axes.setdefault(name, []).append((axis, group))
        self._names = set(shapes)
        self.touched = tuple(name for name in parameters if name in self._axes)
        listed = [[group for _, group in axes] for axes in self._axes.values()]
        self.quadratic = {
            group for groups in listed for group in groups if groups.count(group) > 1
        }

    def apply(
        self, tensors: dict[str, Tensor], orders: Mapping[str, npt.NDArray[np.int64]]
    ) -> dict[str, Tensor]:
        """Return the tensors with the units of all groups in the given orders.

        They are new where anything moves.
        """
        strange = [name for name in tensors if name not in self._names]
        if strange:
            raise unknown("tensor in the model", strange[0], sorted(self._names))
        return {
            name: self._permuted(name, tensor.detach(), orders, -1)
            for name, tensor in tensors.items()
        }

    def benefit(
        self,
        group: str,
        a: dict[str, Tensor],
        b: dict[str, Tensor],
        orders: Mapping[str, Any],
    ) -> Tensor:
        """Return inner products of weights of units i of a and j of b, float64 (n, n).

        Weights that list another group without an order yet do not count.
        """
        size = self.sizes[group]
        total = torch.zeros(size, size, dtype=torch.float64)
        for name, axis in self._specification[group]:
            if name not in self.touched:
                continue
            others = [other for at, other in self._axes[name] if at != axis]
            if any(other not in orders for other in others):
                continue
            permuted = self._permuted(name, b[name], orders, axis)
            own = a[name].movedim(axis, 0).reshape(size, -1)
            theirs = permuted.movedim(axis, 0).reshape(size, -1)
            total += own @ theirs.T
        return total

    def sources(self) -> dict[str, str]:
        """Return, by group, the layer whose outputs are its units.

        It is that of the group's first weight listed along axis 0.

        Raises:
            UsageError: A group has none.
        """
        found = {}
        for group, entries in self._specification.items():
            names = [
                name for name, axis in entries if axis == 0 and name.endswith("weight")
            ]
            if not names:
                raise UsageError(
                    f"The group '{group}' lists no weight along axis 0, so no layer "
                    "gives its activations. Use method='weights'."
                )
            found[group] = names[0].rpartition(".")[0]
        return found

    def _permuted(
        self, name: str, tensor: Tensor, orders: Mapping[str, Any], but: int
    ) -> Tensor:
        """Return the tensor with all its listed axes in order, except axis ``but``."""
        for axis, group in self._axes.get(name, []):
            if axis == but or group not in orders:
                continue
            block = tensor.shape[axis] // self.sizes[group]
            # Entry u·block + p of unit u stays the p-th of its unit.
            index = torch.from_numpy(orders[group] * block)[:, None] + torch.arange(
                block
            )
            tensor = tensor.index_select(axis, index.reshape(-1).to(tensor.device))
        return tensor


def _leaves(model: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    # `named_children` would pass over a layer that comes again.
    for name, layer in model._modules.items():
        if isinstance(layer, nn.Sequential):
            found += _leaves(layer, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", layer))
    return found


def _check_unshared(leaves: list[tuple[str, nn.Module]]) -> None:
    every = [tensor for _, layer in leaves for tensor in layer.parameters()]
    if len({id(tensor) for tensor in every}) < len(every):
        raise UsageError(
            "Two layers of the model share weights, so their units must move together. "
            f"{REMEDY}"
        )


def _length(
    shapes: dict[str, tuple[int, ...]], group: str, name: str, axis: int
) -> int:
    if name not in shapes:
        raise unknown(
            f"parameter or buffer for the group '{group}' in the model", name, shapes
        )
    if not 0 <= axis < len(shapes[name]):
        raise UsageError(
            f"'{name}' of group '{group}' has no axis {axis}: its shape is "
            f"{shapes[name]}, with axes from 0 to {len(shapes[name]) - 1}."
        )
    return shapes[name][axis]
