"""What an instrument will cost, before it is called."""

from __future__ import annotations

import dataclasses
import inspect
import time
from importlib import import_module
from typing import Any

import torch
from torch import nn

from nablab.errors import unknown
from nablab.instruments.base.losses import Loss
from nablab.instruments.base.measurement import Instrument
from nablab.instruments.base.objective import select_parameters
from nablab.instruments.base.rehearsals import Call, read_sets
from nablab.instruments.base.rehearsals import Cost as Cost

SEVERAL_SETS = ("interpolate", "loss_plane")  # they take data sets by name


def find_instrument(name: str) -> Instrument[..., Any]:
    """Return the instrument of a name, written with underscores or hyphens.

    Raises:
        UsageError: There is none of that name.
    """
    package = import_module("nablab.instruments")
    name = name.replace("-", "_")
    if name not in package.INSTRUMENTS:
        raise unknown("instrument", name, package.INSTRUMENTS)
    found = getattr(package, name)
    assert isinstance(found, Instrument)
    return found


def cost(
    name: str,
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    parameters: str | tuple[str, ...] = "*",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Cost:
    """Predict an instrument's gradients, seconds and bytes from a rehearsal here.

    Instruments of curvature and sharpness make everything ready, a few products with
    the Hessian (or a few gradients), and run their own arithmetic on a stand-in with an
    eighth of the parameters. The others are called with options that make them short: a
    few points of a plane, a few batches. A rehearsal takes a small part of a long call;
    of a call that is hardly longer than its preparation, as `gradient_norm` on one
    batch, it takes as long as the call. The model and the random generators stay as
    they are.

    Args:
        name: The instrument.
        model: See `Objective`; of instruments that compare two models, the first.
        loss: See `Objective`.
        data: See `Objective`.
        parameters: See `Objective`.
        dtype: See `Objective`; by default the instrument's own default.
        batch_size: See `Objective`.
        options: The instrument's other options, as the call will have them.

    Raises:
        UsageError: No such instrument or option, or what the call would refuse.

    >>> batch = (torch.ones(8, 3), torch.ones(8, 1))
    >>> estimate = cost("hessian_trace", nn.Linear(3, 1), "mse", batch)
    >>> estimate.gradients > 0 and estimate.bytes > 0
    True
    """
    chosen = find_instrument(name)
    keywords = {
        key: parameter.default
        for key, parameter in inspect.signature(chosen.measure).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for key in options:
        if key not in keywords:
            raise unknown(f"option of {name}", key, keywords)
    own: dict[str, Any] = {"parameters": parameters, "batch_size": batch_size}
    if dtype is not None:
        own["dtype"] = dtype
    if "loss" in keywords:  # of the inputs' gradients only
        own["loss"] = loss if options.get("norm") == "loss-gradient" else None
    given = {key: value for key, value in own.items() if key in keywords}
    begin = time.perf_counter()
    sets = read_sets(data, batch_size, named=chosen.__name__ in SEVERAL_SETS)
    reading = time.perf_counter() - begin
    named = dict(model.named_parameters())
    size = sum(named[key].numel() for key in select_parameters(model, parameters))
    call = Call(
        chosen.measure, model, loss, sets, {**keywords, **given, **options}, size
    )
    found = chosen.rehearse(call)
    return dataclasses.replace(found, seconds=found.seconds + reading)
