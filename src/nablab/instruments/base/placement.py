"""How tensors get into a user's model, and out again: one way for all instruments.

A model is measured at other weights than its own by putting other tensors in the place
of its parameters and buffers. `torch.func.functional_call` does so, too, but it leaves
its tensors behind where a module has two names, takes them out before a backward pass
that runs the forward pass again (activation checkpointing) has read them, and is not
safe against Ctrl-C. Here a `Placement` is opened before the forward pass and closed
after the backward pass; then the model holds what it held before, the same objects with
the same contents.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base import interrupts
from nablab.instruments.base.graphs import nodes_behind

# What `nn.Module` itself keeps in its `__dict__`; the rest are attributes of the user's
# class.
_OWN = frozenset(nn.Module().__dict__)
_MUTABLE = (list, dict, set, deque)
_DEEPEST = 3  # lists in lists of submodules or tensors that are looked through

Slot = tuple[dict[str, Any], str]


class Placement:
    """The places of a module tree that hold tensors, by name.

    A tensor that stands in several places (a module with two names, tied weights) has
    one name, the first that `torch.nn.Module.named_parameters` gives. Submodules and
    tensors in attributes and in lists that are not registered belong to the tree as
    well: they are copied and converted, so that a forward pass finds one dtype and
    changes nothing of the user's.

    Args:
        root: The module; nothing of it is changed until `open`.

    Raises:
        UsageError: The tree holds a scripted module, whose tensors Python cannot
            replace.
    """

    def __init__(self, root: nn.Module) -> None:
        self._modules = list(_tree(root))
        for module in self._modules:
            if isinstance(module, torch.jit.ScriptModule):
                raise UsageError(
                    f"The model holds a scripted module ({type(module).__name__}), "
                    "whose weights cannot be exchanged. Give the module that it was "
                    "scripted from."
                )
        named = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        self.originals: Mapping[str, Tensor] = named
        names = {id(tensor): name for name, tensor in named.items()}
        self._slots: dict[str, list[Slot]] = {name: [] for name in named}
        self._loose: list[tuple[Slot, Tensor]] = []
        self._containers: list[Slot] = []
        for module in self._modules:
            for slot, tensor in _tensor_slots(module):
                if id(tensor) in names:
                    self._slots[names[id(tensor)]].append(slot)
                else:
                    self._loose.append((slot, tensor))
            self._containers += [
                slot for slot in _attributes(module) if _holds_tensor(slot[0][slot[1]])
            ]
        self._names = names
        self._saved: list[_Contents] = []
        # Every `open` finds the places in lists again.
        self._listed: dict[str, list[tuple[Any, Any]]] = {}
        self._depth = 0

    @property
    def is_open(self) -> bool:
        """Whether the module holds other tensors than its own now."""
        return self._depth > 0

    def open(self, dtype: torch.dtype | None, device: torch.device) -> None:
        """Remember what the modules hold, and convert what has no name.

        It must be followed by `close`.
        """
        self._depth += 1
        if self._depth > 1:
            return
        self._saved = [_Contents(module) for module in self._modules]
        interrupts.opened(self.restore)
        for (place, key), tensor in self._loose:
            place[key] = converted(tensor, dtype, device)
        for place, key in self._containers:
            place[key] = self._converted_list(place[key], dtype, device)
        for module in self._modules:
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                # Sparse gradients have no second derivative.
                module.__dict__["sparse"] = False

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors in all places of their names, until the next `put` or `close`."""
        for name, tensor in tensors.items():
            for place, key in self._slots[name]:
                place[key] = tensor
            for values, position in self._listed.get(name, ()):
                values[position] = tensor

    def close(self) -> None:
        """Give the modules back what they held, in the outermost of nested calls."""
        if self._depth > 1:
            self._depth -= 1
            return
        self.restore()

    def restore(self) -> None:
        """Give the modules back what they held.

        Doing it twice does no harm, so it may be interrupted.
        """
        for contents in self._saved:
            contents.restore()
        interrupts.closed(self.restore)
        self._saved, self._listed, self._depth = [], {}, 0

    def reached_past(self, value: Tensor) -> list[str]:
        """Return the parameters whose own tensors a value's graph reads.

        It should read those put in their place.
        """
        leaves = [
            id(node.variable)
            for node in nodes_behind([value])
            if hasattr(node, "variable")
        ]
        return [self._names[number] for number in leaves if number in self._names]

    def _converted_list(
        self, value: Any, dtype: torch.dtype | None, device: torch.device
    ) -> Any:
        """Convert the tensors in a list or dictionary.

        Those with names get theirs by `put`.
        """
        if isinstance(value, Tensor):
            return (
                value if id(value) in self._names else converted(value, dtype, device)
            )
        if type(value) is tuple:
            return tuple(self._converted_list(part, dtype, device) for part in value)
        if type(value) not in (list, dict):
            return value
        copied = value.copy()
        for position, part in (
            copied.items() if isinstance(copied, dict) else enumerate(copied)
        ):
            copied[position] = self._converted_list(part, dtype, device)
            if id(part) in self._names:
                self._listed.setdefault(self._names[id(part)], []).append(
                    (copied, position)
                )
        return copied


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module.

    It may keep tensors with a graph, such as features or normalized weights.
    """
    placement = Placement(module)
    first = next(module.parameters(), torch.zeros(()))
    placement.open(None, first.device)
    try:
        return copy.deepcopy(module)
    finally:
        placement.close()


class _Contents:
    """What a module held: attributes, registered tensors, and the items of lists."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = dict(module.__dict__)
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        self._tables = [(table, dict(table)) for table in tables]
        self._lists = [
            (value, value.copy())
            for key, value in self._attributes.items()
            if key not in _OWN and type(value) in _MUTABLE
        ]

    def restore(self) -> None:
        attributes = self._module.__dict__
        for key in [key for key in attributes if key not in self._attributes]:
            del attributes[key]
        attributes.update(self._attributes)
        for table, before in self._tables:
            if table.keys() != before.keys():
                table.clear()
            table.update(before)
        for value, before in self._lists:
            if isinstance(value, list):
                value[:] = before
            elif isinstance(value, deque):
                value.clear()
                value.extend(before)
            else:
                value.clear()
                value.update(before)


def _tree(root: nn.Module) -> Iterator[nn.Module]:
    """Yield the module and all below it, each once.

    Those in unregistered lists count as well.
    """
    seen: set[int] = set()
    waiting: list[nn.Module] = [root]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        waiting += [child for child in module._modules.values() if child is not None]
        for place, key in _attributes(module):
            waiting += _modules_in(place[key])


def _attributes(module: nn.Module) -> Iterator[Slot]:
    for key in list(module.__dict__):
        if key not in _OWN:
            yield module.__dict__, key


def _modules_in(value: Any, depth: int = 0) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    if depth == _DEEPEST:
        return []
    if type(value) is dict:
        value = list(value.values())
    if type(value) in (list, tuple):
        return [module for part in value for module in _modules_in(part, depth + 1)]
    return []


def _tensor_slots(module: nn.Module) -> Iterator[tuple[Slot, Tensor]]:
    """Yield every place of a module that holds a tensor.

    It is registered, or an attribute.
    """
    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for table in tables:
        for key, tensor in table.items():
            if tensor is not None:
                yield (table, key), tensor
    for place, key in _attributes(module):
        if isinstance(place[key], Tensor):
            yield (place, key), place[key]


def _holds_tensor(value: Any, depth: int = 0) -> bool:
    if depth == _DEEPEST or type(value) not in (list, tuple, dict):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return any(
        isinstance(part, Tensor) or _holds_tensor(part, depth + 1) for part in parts
    )


def converted(
    tensor: Tensor, dtype: torch.dtype | None, device: torch.device
) -> Tensor:
    """Return a copy without a graph, in another dtype if it is floating-point.

    None keeps its own dtype.
    """
    kind = dtype if tensor.is_floating_point() else None
    return tensor.detach().to(device, kind, copy=True)
