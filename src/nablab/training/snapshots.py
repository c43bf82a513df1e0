"""The whole state of a network and its optimizers as CPU tensors by name, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Optimizers = Mapping[str, torch.optim.Optimizer]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name.

    Buffers that a state dictionary leaves out are among them.
    """
    return dict(module.named_parameters()) | dict(module.named_buffers())


def take(module: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """Copy a module's tensors and those of its optimizers.

    The module's are named ``module/<name>``, an optimizer's ``<own
    name>/<index>/<slot>``.
    """
    state = {
        f"module/{name}": _copy(tensor) for name, tensor in tensors_of(module).items()
    }
    for own_name, optimizer in optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            found = {slot: value for slot, value in slots.items() if value is not None}
            state |= {
                f"{own_name}/{index}/{slot}": _copy(value)
                for slot, value in found.items()
            }
    return state


@torch.no_grad()
def put(state: Mapping[str, Tensor], module: nn.Module, optimizers: Optimizers) -> None:
    """Go on from what `take` gave, in place."""
    for name, tensor in tensors_of(module).items():
        tensor.copy_(state[f"module/{name}"])
    for own_name, optimizer in optimizers.items():
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith(f"{own_name}/"):
                index, slot = name[len(own_name) + 1 :].split("/")
                slots.setdefault(int(index), {})[slot] = value.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _copy(value: Tensor | float) -> Tensor:
    return (
        torch.as_tensor(value)
        .detach()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
    )
