"""Models and data at which nothing can be measured: everything must say why."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.instruments.battery.case import EITHER, REFUSAL, VALUE, Model
from tests.instruments.battery.models.layers import (
    Embedded,
    convolutional,
    dense,
    images,
    regression,
    sentences,
)
from tests.instruments.battery.models.reparametrized import _spectral_norm

# They look at weights, at inputs or at a step that the user takes: not at the loss.
_WEIGHTS_ALONE = {
    "trajectory_pca": VALUE,
    "match_units": EITHER,
    "GradientMonitor": VALUE,
}


class StochasticDepth(nn.Module):
    """Leaves a block out now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(()) > 0.1
        return self.head(x + torch.tanh(self.block(x)) if bool(kept) else x)


def one_output() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))


ROWS = {
    "batch norm, training": Model(
        build=lambda: convolutional().train(),
        data=images,
        loss="cross_entropy",
        answer=REFUSAL,
        answers=_WEIGHTS_ALONE,
        matchable=True,
    ),
    "spectral norm, training": Model(
        build=lambda: _spectral_norm(True).train(),
        data=regression,
        answer=REFUSAL,
        answers={**_WEIGHTS_ALONE, "GradientMonitor": EITHER},
    ),
    "dropout, training": Model(
        build=lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)),
        data=regression,
        answer=REFUSAL,
        answers={**_WEIGHTS_ALONE, "GradientMonitor": EITHER},
    ),
    "stochastic depth": Model(
        build=StochasticDepth,
        data=regression,
        answer=REFUSAL,
        answers={**_WEIGHTS_ALONE, "GradientMonitor": EITHER},
    ),
    "embedding that the forward pass rescales": Model(
        build=lambda: Embedded(max_norm=0.5),
        data=sentences,
        loss="cross_entropy",
        answer=REFUSAL,
        answers={**_WEIGHTS_ALONE, "GradientMonitor": EITHER},
        token_inputs=True,
    ),
    "shapes that broadcast": Model(
        build=one_output,
        data=lambda: (torch.randn(6, 3), torch.randn(6)),
        answer=REFUSAL,
        answers={**_WEIGHTS_ALONE, "input_sensitivity": VALUE},
        matchable=True,
    ),
    "everything frozen": Model(
        build=lambda: dense().requires_grad_(False),
        data=regression,
        answer=REFUSAL,
        answers={
            "trajectory_pca": VALUE,
            "match_units": VALUE,
            "input_sensitivity": EITHER,
            "interpolate": EITHER,
        },
        matchable=True,
    ),
}
