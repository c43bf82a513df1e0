"""Autograd's graphs: what they hold, where they lead, and the memory for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def nodes_behind(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Yield all nodes of the graphs that tensors come from, each once."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def has_dead_end(tensors: list[Tensor]) -> bool:
    """Return whether a graph holds a node that can only raise an error.

    `torch.autograd.grad` runs just the nodes on the way to its inputs. A
    ``once_differentiable`` function cuts the way and puts its error off it, so the
    second derivative through it silently comes out as zero.
    """
    return any(
        node.name().endswith(("::Error", "::NotImplemented"))
        for node in nodes_behind(tensors)
    )


def free_memory(device: torch.device) -> int:
    """Return the bytes of free memory on a device.

    For the CPU, it is what the operating system calls available.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        # macOS does not say; two gigabytes are free on any machine that runs PyTorch.
        return 2**31


@contextmanager
def counting_saved_bytes() -> Iterator[dict[str, int]]:
    """Count the bytes that autograd keeps for the graphs built inside.

    Each storage counts once.
    """
    seen: set[int] = set()
    total = {"bytes": 0}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total["bytes"] += storage.nbytes()
        # The tensor itself may be the node's own output: a cycle that is never freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
