"""What measuring must leave as it was: model, data, generators, PyTorch's switches."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.instruments.battery.case import Case, tensors

# What a module of PyTorch keeps of itself; its entries are compared one by one.
TABLES = ("_parameters", "_buffers", "_modules")


class State:
    """The objects and the bits of a case, and the generators, at one moment."""

    def __init__(self, case: Case) -> None:
        self._things = dict(_things(case))
        self._bits = {
            name: _bits(thing)
            for name, thing in self._things.items()
            if isinstance(thing, Tensor)
        }
        self._random = _random_states()
        self._switches = _switches()

    def differences(self, case: Case) -> list[str]:
        """What is no longer as it was, one line each."""
        now = dict(_things(case))
        found = [f"{name} is gone" for name in self._things.keys() - now.keys()]
        found += [f"{name} is new" for name in now.keys() - self._things.keys()]
        for name in self._things.keys() & now.keys():
            before, after = self._things[name], now[name]
            if not _is_same(before, after):
                found.append(
                    f"{name} is another object: {_shown(before)} became {_shown(after)}"
                )
            elif isinstance(after, Tensor) and _bits(after) != self._bits[name]:
                found.append(f"{name} holds other numbers")
        random_now, switches_now = _random_states(), _switches()
        found += [
            f"the generator of {n} moved"
            for n, s in self._random.items()
            if random_now[n] != s
        ]
        found += [
            f"{n} was {s}, is {switches_now[n]}"
            for n, s in self._switches.items()
            if switches_now[n] != s
        ]
        return sorted(found)


def _things(case: Case) -> Iterator[tuple[str, Any]]:
    for label, module in (
        ("model", case.model),
        ("other", case.other),
        ("loss", case.loss),
    ):
        if isinstance(module, nn.Module):
            yield from _of_module(label, module, set())
    for place, tensor in enumerate(
        tensor for batch in case.batches for tensor in tensors(batch)
    ):
        yield f"data[{place}]", tensor
        yield f"data[{place}].requires_grad", tensor.requires_grad
        yield f"data[{place}].grad", tensor.grad


def _of_module(
    label: str, module: nn.Module, seen: set[int]
) -> Iterator[tuple[str, Any]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield f"{label}.__class__", type(module)
    for name, value in vars(module).items():
        yield f"{label}.{name}", value
        yield from _inside(f"{label}.{name}", value, seen)


def _inside(label: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Return what an attribute holds: tables of tensors, modules, hooks, lists."""
    if isinstance(value, Tensor):
        yield f"{label}.requires_grad", value.requires_grad
        yield f"{label}.dtype", value.dtype
        if value.is_leaf:
            yield f"{label}.grad", value.grad
    elif isinstance(value, nn.Module):
        yield from _of_module(label, value, seen)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield f"{label}[{key}]", part
            yield from _inside(f"{label}[{key}]", part, seen)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield f"{label}[{place}]", part
            yield from _inside(f"{label}[{place}]", part, seen)


def _is_same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    if type(before) is not type(after):
        return False
    if isinstance(before, weakref.ref):
        return before() is after()
    if isinstance(before, list | tuple | dict):
        return True  # what they hold is compared by itself
    return isinstance(after, bool | int | float | str) and before == after


def _shown(thing: Any) -> str:
    shape = f" of shape {tuple(thing.shape)}" if isinstance(thing, Tensor) else ""
    return f"{type(thing).__name__}{shape}"


def _bits(tensor: Tensor) -> bytes:
    found = tensor.detach()
    if found.is_sparse:
        found = found.to_dense()
    if found.is_complex():
        found = torch.view_as_real(found)
    return bytes(found.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _random_states() -> dict[str, Any]:
    kind, numbers, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": bytes(torch.get_rng_state().numpy().tobytes()),
        "numpy": (kind, np.asarray(numbers).tobytes(), *rest),
        "random": random.getstate(),
    }


def _switches() -> dict[str, Any]:
    """PyTorch's settings for the process, which instruments set for a while."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "fast attention": torch.backends.mha.get_fastpath_enabled(),
        "flash attention": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient attention": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math attention": torch.backends.cuda.math_sdp_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "function modes": len(torch.overrides._get_current_function_mode_stack()),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "saved tensors hooks": torch._C._autograd._saved_tensors_hooks_is_enabled(),
    }
