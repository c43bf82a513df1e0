"""What is verified of parameters and layers before a model is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nablab.errors import UsageError


def check_parameters(
    parameters: Mapping[str, nn.Parameter], chosen: Sequence[str]
) -> None:
    """Refuse weights that nothing can be measured at.

    Raises:
        UsageError: A lazy, complex or non-finite parameter, or a call within inference
            mode.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError(
            "Instruments need derivatives, and torch.inference_mode() forbids them. "
            "Measure outside of it; torch.no_grad() is harmless."
        )
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UsageError(
                f"The parameter '{name}' has no shape yet: it belongs to a lazy layer. "
                "Run one batch through the model first."
            )
        if parameter.is_complex() and name in chosen:
            raise UsageError(
                f"The parameter '{name}' is complex; derivatives here are those of "
                "real numbers. Keep it as a real tensor with a last axis of 2 "
                "(torch.view_as_real gives that form) and use "
                "torch.view_as_complex(parameter) in the forward pass, or choose "
                "others with parameters=."
            )
        if not bool(parameter.isfinite().all()):
            bad = int((~parameter.isfinite()).sum())
            raise UsageError(
                f"The parameter '{name}' holds {bad} values that are NaN or infinite: "
                "the model has diverged. Measure an earlier checkpoint."
            )


def check_modules(model: nn.Module, chosen: Sequence[str]) -> None:
    """Refuse layers that write to the weights that are measured.

    Raises:
        UsageError: An embedding with ``max_norm``, which scales its rows down in every
            forward pass: the loss is not a function of the weights that has a
            derivative.
    """
    for name, module in model.named_modules():
        rescales = (
            isinstance(module, nn.Embedding | nn.EmbeddingBag)
            and module.max_norm is not None
        )
        weight = f"{name}.weight" if name else "weight"
        if rescales and weight in chosen:
            raise UsageError(
                f"The forward pass changes the parameter '{weight}' in place "
                f"(max_norm={module.max_norm}), so the loss is not a function of the "
                "weights. Set max_norm=None on that layer to measure, after one "
                "forward pass that scales its rows, or choose other parameters with "
                "parameters=."
            )
