"""Batch-norm statistics against PyTorch's own, closed forms, and invariances."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.losses import Closure
from nablab.instruments.landscape.batch_norm import batch_norm_statistics


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
    ]
    return (
        nn.Sequential(*layers, nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2))
        .double()
        .eval()
    )


def images(samples: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 2 + torch.randn(samples, 2, 6, 6, generator=generator).double(), torch.zeros(
        samples
    )


def test_one_batch_gives_what_training_mode_keeps_with_momentum_one() -> None:
    model, data = cnn(), images()
    found = batch_norm_statistics(model, data)
    twin = copy.deepcopy(model)
    for place in (1, 4):
        twin[place].momentum = 1.0
        twin[place].train()
    twin(data[0])
    assert set(found) == {
        f"{place}.running_{name}" for place in (1, 4) for name in ("mean", "var")
    }
    for name, value in found.items():
        torch.testing.assert_close(
            value, twin.state_dict()[name], rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("cuts", [(12,), (5, 5, 2), (1, 11)])
def test_first_layers_see_all_data_however_they_are_cut(cuts: tuple[int, ...]) -> None:
    """Moments are pooled: late batches weigh no more, and differences count."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(72)).double().eval()
    (x, y) = images()
    batches = list(zip(x.split(list(cuts)), y.split(list(cuts)), strict=True))
    if 1 in cuts:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            batch_norm_statistics(model, batches)
        return
    found = batch_norm_statistics(model, batches)
    torch.testing.assert_close(
        found["1.running_mean"], x.flatten(1).mean(0), rtol=1e-12, atol=1e-13
    )
    torch.testing.assert_close(
        found["1.running_var"], x.flatten(1).var(0), rtol=1e-12, atol=1e-13
    )


def test_a_mean_far_from_zero_loses_no_digits_of_the_variance() -> None:
    model, (x, y) = nn.Sequential(nn.BatchNorm2d(2)).double().eval(), images()
    found = batch_norm_statistics(model, (x + 1e6, y), batch_size=5)
    torch.testing.assert_close(
        found["0.running_var"], x.transpose(0, 1).flatten(1).var(1), rtol=1e-8, atol=0
    )


def test_the_model_is_not_changed_and_nothing_else_is_set_to_train() -> None:
    model, data = cnn(), images()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = batch_norm_statistics(model, data)
    second = batch_norm_statistics(model, data)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()
    )
    assert not any(
        module.training or module._forward_pre_hooks for module in model.modules()
    )


def test_the_statistics_can_be_loaded_and_make_outputs_normal() -> None:
    model, (x, y) = nn.Sequential(nn.BatchNorm2d(2)).double().eval(), images()
    model.load_state_dict(batch_norm_statistics(model, (x, y)), strict=False)
    torch.testing.assert_close(
        model(x).mean((0, 2, 3)), torch.zeros(2).double(), rtol=0, atol=1e-12
    )


def test_batches_of_any_form_go_through_a_closure() -> None:
    model, (x, y) = cnn(), images()
    loss = Closure(lambda model, batch: model(batch["image"]).square().mean())
    found = batch_norm_statistics(model, {"image": x}, loss=loss)
    expected = batch_norm_statistics(model, (x, y))
    assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_a_model_without_running_statistics_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    with pytest.raises(
        UsageError, match="Sequential has no batch-norm layer with running statistics"
    ):
        batch_norm_statistics(model, (torch.zeros(4, 3), torch.zeros(4)))
