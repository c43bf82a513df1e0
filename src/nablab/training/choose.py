"""Which engine trains: the fastest that can serve, and the reason, said aloud."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nablab.errors import UsageError, unknown
from nablab.training import measured
from nablab.training.batched import BatchedEngine
from nablab.training.batches import Batches
from nablab.training.engine import Engine, Loss, Unsupported, loss_function
from nablab.training.fused.bags import LARGEST_SHARE, FusedBagsEngine
from nablab.training.fused.bfloat16 import FusedBfloat16Engine
from nablab.training.fused.dense import FusedEngine
from nablab.training.fused.images import FusedImageEngine
from nablab.training.inputs import Inputs
from nablab.training.optimizers import Specification
from nablab.training.seeding import derive
from nablab.training.sequential import SequentialEngine

# What each value of the option ``replicas`` tries, in order.
_COMPILED = ("fused", "fused-bags", "fused-bfloat16", "fused-images")
ORDERS = {
    "auto": (*_COMPILED, "batched", "sequential"),
    "batched": (*_COMPILED, "batched"),
    "sequential": ("sequential",),
}

# The same for learners that are not `Supervised`.
LEARNERS = {
    "auto": ("batched", "sequential"),
    "batched": ("batched",),
    "sequential": ("sequential",),
}

# The compiled engines serve one loss each; of the other one nothing is said.
_LOSS_OF = {
    "fused": "mse",
    "fused-bags": "cross_entropy",
    "fused-bfloat16": "cross_entropy",
    "fused-images": "cross_entropy",
}

# Stacked weights save calls, not arithmetic. Measured on two CPU cores: two replicas
# gain nothing (0.7 to 1.0 times the speed of one after the other); five gain 1.9 times
# at 8 million operations per replica and step, 1.2 times at 30 million, and lose (0.6
# times) above 100 million.
FEWEST_REPLICAS = 3
MOST_OPERATIONS = 50e6

# With fewer parameters the compiled engine for images won everywhere: LeNet (61,706,
# batch 64) took 1.6 ms a step on one core with AMX, PyTorch in bfloat16 5.1 ms. From
# some hundred thousand on either may win.
SURELY_FUSED = 70_000

# With fewer parameters an automatic precision stays float32: a network of 64-96-10
# takes a tenth of a millisecond a step, and there is nothing to gain from rounding.
FEWEST_ROUNDED = 20_000
MEASURED_BATCHES = 8
SEEN = 64  # samples that tell whether the others may be sparse


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an engine is asked to train.

    Attributes:
        modules: K modules of one architecture.
        x: Stored samples (N, ...).
        y: Targets (N, ...), or (K, N, ...) with per-replica targets.
        loss: Name or function.
        optimizer: Specification.
        per_replica_targets: Whether each replica has its own targets.
        seeds: One per replica.
        batch_size: Samples per step.
        inputs: How stored samples become inputs.
    """

    modules: Sequence[nn.Module]
    x: Tensor
    y: Tensor
    loss: Loss
    optimizer: Specification
    per_replica_targets: bool
    seeds: Sequence[int]
    batch_size: int
    inputs: Inputs = Inputs()  # noqa: RUF009 - immutable


def check_option(replicas: str) -> None:
    """Raise `UsageError` for an unknown value of the option ``replicas``."""
    if replicas not in ORDERS:
        raise unknown("way to train replicas", replicas, ORDERS)


def choose(
    order: Sequence[str], request: Request, on_note: Callable[[str], None]
) -> Engine:
    """Build the first engine of ``order`` that can serve.

    Say through ``on_note`` which and why.

    The choice depends on the request and the machine's compiler, and where these leave
    it open on a time that was measured once and kept, so that the same call gives the
    same numbers.

    Raises:
        UsageError: None of them can serve.
    """
    refusals: list[str] = []
    for name in order:
        if name in _LOSS_OF and (_LOSS_OF[name] != request.loss) and len(order) > 1:
            continue
        if name == "fused-bfloat16" and not _rounds(request):
            continue
        if name == "fused-bags" and not _is_sparse(request):
            continue
        try:
            engine = _make(name, request)
            if name == "batched" and "sequential" in order:
                _check_worthwhile(request)
            if name == "fused-images" and "sequential" in order:
                refusals += _check_faster(request)
        except Unsupported as reason:
            refusals.append(f"not {name}: {reason}")
            continue
        say(engine.name, engine.replicas, refusals, on_note)
        return engine
    raise UsageError(
        f"These networks cannot be trained as one batch ({'; '.join(refusals)}). "
        "Use replicas='sequential' or replicas='auto'."
    )


def say(
    engine: str, replicas: int, refusals: Sequence[str], on_note: Callable[[str], None]
) -> None:
    """Tell which engine trains, and why those before it do not."""
    why = f" ({'; '.join(refusals)})" if refusals else ""
    on_note(f"Training {replicas} replicas with the {engine} engine{why}.")


def _make(name: str, request: Request) -> Engine:
    options: dict[str, Any] = {
        "loss": request.loss,
        "optimizer": request.optimizer,
        "per_replica_targets": request.per_replica_targets,
        "inputs": request.inputs,
    }
    if name in ("sequential", "fused-bags"):
        options["seeds"] = [derive(seed, "forward") for seed in request.seeds]
    if name == "fused-bags":
        return FusedBagsEngine(request.modules, request.x, request.y, **options)
    if name == "sequential":
        return SequentialEngine(request.modules, request.x, request.y, **options)
    if name == "fused":
        return FusedEngine(request.modules, request.x, request.y, **options)
    if name == "fused-bfloat16":
        return FusedBfloat16Engine(request.modules, request.x, request.y, **options)
    if name == "fused-images":
        return FusedImageEngine(request.modules, request.x, request.y, **options)
    return BatchedEngine(request.modules, request.x, request.y, **options)


def _rounds(request: Request) -> bool:
    """Tell whether these are dense networks whose products are to be in bfloat16."""
    module, inputs = request.modules[0], request.inputs
    if not inputs.bfloat16 or any(
        isinstance(part, nn.Conv2d) for part in module.modules()
    ):
        return False
    return (
        not inputs.automatic
        or sum(p.numel() for p in module.parameters()) >= FEWEST_ROUNDED
    )


def _is_sparse(request: Request) -> bool:
    """Tell whether the first samples are vectors that are mostly zero."""
    if request.x.ndim != 2:
        return False
    ready = request.inputs.ready(request.x[:SEEN])
    return int(ready.count_nonzero()) <= LARGEST_SHARE * ready.numel()


def _check_worthwhile(request: Request) -> None:
    """Raise `Unsupported` where stacking would not be faster.

    It is compared with one network after the other.
    """
    if len(request.modules) < FEWEST_REPLICAS:
        raise Unsupported(f"fewer than {FEWEST_REPLICAS} replicas gain nothing")
    if request.x.device.type != "cpu":
        return
    operations = _operations(request)
    if operations > MOST_OPERATIONS:
        millions = f"{operations / 1e6:.0f} million"
        raise Unsupported(
            f"with {millions} operations per step and replica it saves nothing"
        )


def _check_faster(request: Request) -> list[str]:
    """Check that the compiled engine for images is faster than bfloat16.

    Returns:
        What is to be said of the measurement.

    Raises:
        Unsupported: It was measured to be slower.
    """
    size = sum(parameter.numel() for parameter in request.modules[0].parameters())
    if not request.inputs.bfloat16 or size < SURELY_FUSED:
        return []
    layers = repr(request.modules[0]), tuple(request.x.shape[1:]), str(request.x.dtype)
    key = repr(
        (
            *layers,
            type(request.optimizer).__name__,
            request.batch_size,
            request.inputs.bfloat16,
        )
    )
    found = measured.milliseconds(
        key,
        {
            name: partial(_one_replica, name, request)
            for name in ("fused-images", "sequential")
        },
    )
    ours, plain = found["fused-images"], found["sequential"]
    if ours > plain:
        raise Unsupported(
            f"measured: {ours:.3g} against {plain:.3g} ms a step of the sequential one"
        )
    return [f"measured: {ours:.3g} against {plain:.3g} ms a step of the sequential one"]


def _one_replica(name: str, request: Request) -> tuple[Engine, Tensor]:
    """Make an engine for a copy of the first replica, and some batches."""
    part = dataclasses.replace(
        request,
        modules=[copy.deepcopy(request.modules[0])],
        y=request.y[:1] if request.per_replica_targets else request.y,
        optimizer=type(request.optimizer)(),
        seeds=request.seeds[:1],
    )
    batches = Batches(
        len(request.x), request.batch_size, request.seeds[:1], request.x.device
    )
    _, _, indices = next(
        batches.between(0, min(MEASURED_BATCHES, batches.steps_per_epoch))
    )
    everything = torch.arange(len(request.x), device=request.x.device)[None, None]
    return _make(name, part), everything if indices is None else indices


def _operations(request: Request) -> int:
    """Count the floating-point operations of one replica's passes.

    They are one forward and one backward pass.
    """
    module, size = request.modules[0], request.batch_size
    target = request.y[0] if request.per_replica_targets else request.y
    with FlopCounterMode(display=False) as counter:
        output = module(request.inputs.ready(request.x[:size]))
        loss_function(request.loss)(output, target[:size]).backward()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())
