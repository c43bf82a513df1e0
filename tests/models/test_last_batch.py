"""A last batch of one sample: refused before any training where the network cannot be
trained on it.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nablab import models, training
from nablab.contract import configuration
from nablab.errors import UsageError
from nablab.experiments.cnn_depth import CnnDepth
from nablab.experiments.gradient_norm import GradientNorm
from nablab.experiments.interpolation import Interpolation
from nablab.experiments.loss_landscape import LossLandscape
from nablab.experiments.random_labels import RandomLabels
from nablab.experiments.sensitivity import Sensitivity
from nablab.experiments.sharpness import Sharpness
from nablab.models.last_batch import check_single

DENSE = "flatten-8-bn"
CASES = [
    (RandomLabels, {"networks": (DENSE,), "batch_size": 50}),
    (Sharpness, {"network": DENSE, "batch_sizes": (20, 50)}),
    (Sensitivity, {"network": DENSE, "batch_sizes": (20, 50), "batch_size": 40}),
    (CnnDepth, {"networks": (DENSE,), "batch_size": 50}),
    (GradientNorm, {"networks": (DENSE,), "batch_size": 50}),
    (Interpolation, {"networks": (DENSE,), "batch_size": 50}),
    (LossLandscape, {"networks": (DENSE,), "batch_size": 50}),
]


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)
    )


class Squeezes(nn.Module):
    """Drops the axis of the batch where there is one sample only."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            self.last(x.flatten(1)).squeeze().T.reshape(2, -1).T
            + x.flatten(1).squeeze()[:, :2]
        )


def example() -> torch.Tensor:
    return torch.zeros(1, 1, 4, 4)


@pytest.mark.parametrize(("samples", "size"), [(51, 50), (51, 25), (7, 1), (1, None)])
def test_a_batch_of_one_sample_is_refused_where_the_network_fails_on_it(
    samples: int, size: int | None
) -> None:
    for build in (dense, Squeezes):
        with pytest.raises(
            UsageError, match="is one sample, on which this network cannot be trained"
        ):
            check_single(build, samples, size, example)
    # many values per channel; no statistics
    for build in (convolution, lambda: nn.Linear(4, 4)):
        check_single(build, samples, size, example)


@pytest.mark.parametrize(
    ("samples", "size"), [(50, 25), (52, 50), (51, 51), (51, 99), (51, None), (2, 2)]
)
def test_other_batches_are_not_tried(samples: int, size: int | None) -> None:
    check_single(dense, samples, size, lambda: pytest.fail("tried"))  # type: ignore[arg-type, return-value]


def test_the_remedy_works() -> None:
    with pytest.raises(
        UsageError, match="Take another batch size, such as 26, or"
    ) as error:
        check_single(dense, 51, 25, example)
    assert "The last batch of an epoch (51 samples by 25) is one sample" in str(
        error.value
    )
    check_single(dense, 51, 26, example)
    with pytest.raises(UsageError, match=r"Every batch is one sample.* such as 2, or"):
        check_single(dense, 50, 1, example)
    with pytest.raises(UsageError, match=r"Give more samples\."):
        check_single(dense, 1, 1, example)


def test_trying_leaves_the_random_generator() -> None:
    before = torch.get_rng_state()
    check_single(convolution, 51, 50, example)
    assert torch.equal(before, torch.get_rng_state())


def test_training_refuses_it_before_the_first_step() -> None:
    x, y = torch.randn(51, 1, 4, 4), torch.arange(51) % 2
    options = {"seeds": [0], "loss": "cross_entropy", "batch_size": 50}
    with pytest.raises(UsageError, match="51 samples by 50"):
        training.fit(dense, (x, y), steps=2, **options)  # type: ignore[arg-type]
    training.fit(dense, (x, y), steps=1, **options)  # type: ignore[arg-type]  # it is not reached
    training.fit(convolution, (x, y), steps=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("experiment", "settings"), CASES, ids=lambda case: getattr(case, "name", "")
)
def test_experiments_refuse_it_before_any_work(
    experiment: type, settings: dict[str, object]
) -> None:
    key = "targets" if experiment in (GradientNorm, LossLandscape) else "data"
    fields = {**settings, key: ("digits@51",) if key == "targets" else "digits@51"}
    with pytest.raises(UsageError, match=r"\(51 samples by 50\) is one sample"):
        configuration.resolve(experiment, "quick", fields)
    fields[key] = ("digits@52",) if key == "targets" else "digits@52"
    configuration.resolve(experiment, "quick", fields)


def test_a_network_of_ones_own_is_tried_too(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    text = (
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), {})\n"
    )
    (tmp_path / "bn.py").write_text(text.format("nn.BatchNorm1d(10)"))
    (tmp_path / "plain.py").write_text(text.format("nn.Identity()"))
    monkeypatch.chdir(tmp_path)
    fields = {"networks": (), "data": "digits@51", "batch_size": 50}
    with pytest.raises(UsageError, match="51 samples by 50"):
        configuration.resolve(RandomLabels, "quick", {**fields, "model": "bn.py:net"})
    configuration.resolve(RandomLabels, "quick", {**fields, "model": "plain.py:net"})
    assert models.load_factory("bn.py:net")() is not None
