"""Whether networks that were built under different seeds are replicates.

Alike in kind, apart in weights.

Copies of one draw look like a perfectly certain result: an interval of no width that
says nothing.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from nablab.errors import UsageError
from nablab.training.seeding import Built, built, derive

RUNNING = ("running_mean", "running_var", "num_batches_tracked")
FRESH = (
    "Let the function build a new network at each call, and draw its weights from "
    "PyTorch's global generator, as PyTorch's layers do."
)

# What trains in a network that was handed out, and to which training; forgotten with
# the tensor.
_handed_out: MutableMapping[Tensor, weakref.ref[Any]] = WeakIdKeyDictionary()


def check_replicates(
    networks: Sequence[Built],
    build: Callable[[], nn.Module],
    seeds: Sequence[int],
    starts: Sequence[int],
    *,
    training: Any,
    varies: Callable[[], bool],
    on_note: Callable[[str], None],
) -> None:
    """Refuse networks that share weights or are copies of one draw.

    Say where only the rest differs by seed.

    Args:
        networks: What ``build`` made, one per trial.
        build: Builds one more where there is a single trial.
        seeds: Of the trials, for all but the first weights.
        starts: Of the first weights, one per trial; equal ones are equal on purpose.
        training: Stands for the training that they are for; may build again.
        varies: Whether anything but the first weights depends on the seed: batches,
            labels, dropout.
        on_note: Told where seeds share their first weights.

    Raises:
        UsageError: A network or trainable weight was handed out twice; the function
            seeds a generator, so that all seeds have the same weights; or all seeds
            would give the same trial.
    """
    _check_apart([network.module for network in networks], training)
    name = type(networks[0].module).__name__
    if len(set(starts)) < len(set(zip(starts, seeds, strict=True))) and not varies():
        raise UsageError(
            f"Some trials of {name} share one start, and nothing else depends on their "
            "seeds (all samples at each step, no dropout): they would be copies of "
            "each other. Give each a start of its own, or a batch_size below the "
            "number of samples."
        )
    first, other = networks[0], _another(networks, build, starts)
    if other is None or not _same(first.module, other.module):
        return
    generators = first.generators_equal(other)
    if generators:
        raise UsageError(
            f"The function that builds {name} sets the seed of "
            f"{' and '.join(generators)} itself, so every seed gets the same weights "
            f"and the trials are not repetitions. Remove that line. {FRESH}"
        )
    if len(networks) > 1 and not varies():
        raise UsageError(
            f"{name} starts from the same weights under every seed, and nothing else "
            "depends on the seed (all samples at each step, no dropout): the trials "
            f"would be copies of each other. {FRESH}"
        )
    on_note(
        f"{name} starts from the same weights under every seed: seeds differ only in "
        "the rest, such as the order of samples, and intervals say nothing about other "
        "weights."
    )


def draws_random_numbers(module: nn.Module, x: Tensor) -> bool:
    """Tell whether a training pass, as with dropout, draws random numbers."""
    trial = copy.deepcopy(module).train()
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        before = _states(x.device)
        trial(x)
        return any(
            not torch.equal(a, b)
            for a, b in zip(before, _states(x.device), strict=True)
        )


def _states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return (
        [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
    )


def _another(
    networks: Sequence[Built], build: Callable[[], nn.Module], starts: Sequence[int]
) -> Built | None:
    """Build a network of another start than the first.

    None where all starts are one on purpose.
    """
    if len(networks) == 1:
        return built(build, [derive(starts[0], "another network")])[0]
    return next(
        (networks[k] for k, start in enumerate(starts) if start != starts[0]), None
    )


def _check_apart(modules: Sequence[nn.Module], training: Any) -> None:
    """Refuse what would be trained twice, by two replicas or by two trainings."""
    seen: dict[int, int] = {}
    trained = [list(_trained(module)) for module in modules]
    for replica, tensors in enumerate(trained):
        for tensor in tensors:
            owner = _handed_out.get(tensor)
            earlier = owner is not None and owner() is not training
            if earlier or seen.setdefault(id(tensor), replica) != replica:
                module = modules[replica]
                raise UsageError(
                    f"The function that builds {type(module).__name__} handed out "
                    f"'{_name_of(tensor, module)}' before: what one training does to "
                    f"it, another one would start from. {FRESH}"
                )
    reference = weakref.ref(training)
    for tensors in trained:
        for tensor in tensors:
            _handed_out[tensor] = reference


def _trained(module: nn.Module) -> Iterator[Tensor]:
    """Yield what training changes: trainable parameters and running statistics.

    Frozen parts may be shared. Read from the layers themselves: PyTorch's walk by full
    names takes a tenth of a short training of many networks.
    """
    for layer in module.modules():
        for parameter in layer._parameters.values():
            if parameter is not None and parameter.requires_grad:
                yield parameter
        for name, buffer in layer._buffers.items():
            if buffer is not None and name.endswith(RUNNING):
                yield buffer


def _name_of(tensor: Tensor, module: nn.Module) -> str:
    """Return the name of a parameter or buffer of a network."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return next(name for name, own in named if own is tensor)


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether all parameters and buffers are equal, bit for bit up to NaN."""
    pairs = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in (one, other)]
    if pairs[0].keys() != pairs[1].keys():
        return False
    return all(_equal(pairs[0][name], pairs[1][name]) for name in pairs[0])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
