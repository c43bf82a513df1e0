"""An optimizer's numbers, as the compiled engines read them."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import torch

from nablab.training.optimizers import SGD, Adam, AdamW, Number, RMSprop, Specification

RULES: dict[type[Specification], int] = {SGD: 0, RMSprop: 1, Adam: 2, AdamW: 3}
REALS = {torch.float32: "float", torch.float64: "double"}

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Optimizer(ctypes.Structure):
    _fields_ = [
        ("rule", _INT),
        ("nesterov", _INT),
        ("learning_rate", _POINTER),
        ("weight_decay", _POINTER),
        ("epsilon", _POINTER),
        ("first_decay", _POINTER),
        ("second_decay", _POINTER),
        ("l1", _POINTER),
        ("proximal_l1", _POINTER),
    ]


class OptimizerNumbers:
    """The structure that update.h reads, and the memory that it points to.

    Args:
        spec: One of `RULES`.
        replicas: K.
    """

    def __init__(self, spec: Specification, replicas: int) -> None:
        values = {
            field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)
        }
        first, second = values.get(
            "betas", (values.get("momentum", 0.0), values.get("smoothing", 0.0))
        )
        numbers = {
            "learning_rate": values["learning_rate"],
            "weight_decay": values["weight_decay"],
            "epsilon": values.get("epsilon", 0.0),
            "first_decay": first,
            "second_decay": second,
            "l1": values["l1"],
            "proximal_l1": values["proximal_l1"],
        }
        self._arrays = {
            name: _one_each(value, replicas) for name, value in numbers.items()
        }
        self._structure = _Optimizer(
            rule=RULES[type(spec)],
            nesterov=values.get("nesterov", False),
            **{name: array.ctypes.data for name, array in self._arrays.items()},
        )

    @property
    def address(self) -> int:
        """Where the structure lies; as long as this object lives."""
        return ctypes.addressof(self._structure)


def _one_each(
    value: Number, replicas: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return one float64 per replica."""
    return np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (replicas,)))
