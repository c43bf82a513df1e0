"""The mean loss as a function of parameters: right, pure, clear about refusals."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nablab.errors import UsageError
from nablab.instruments import Closure, Objective
from tests.instruments.networks import CASES, case


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_backward(name: str) -> None:
    model, loss, data = case(name)
    objective = Objective(model, loss, data, dtype=torch.float64)
    value, gradient = objective.loss_and_gradient()
    model.double()
    if isinstance(loss, Closure):
        batch = {
            "inputs": {k: v.double() for k, v in data["inputs"].items()},
            "target": data["target"].double(),
        }
        plain = loss.function(model, batch)
    else:
        tensors = [t.double() if t.is_floating_point() else t for t in data]
        function = (
            loss
            if callable(loss)
            else {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}[loss]
        )
        plain = function(model(*tensors[:-1]), tensors[-1])
    plain.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert value == pytest.approx(plain.item(), rel=1e-12)
    assert objective.loss() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_ragged_batches_weigh_by_their_samples() -> None:
    model, loss, (x, y) = case("dense")
    whole = Objective(model, loss, (x, y), dtype=torch.float64)
    ragged = Objective(
        model, loss, [(x[:5], y[:5]), (x[5:], y[5:])], dtype=torch.float64
    )
    cut = Objective(model, loss, (x, y), dtype=torch.float64, batch_size=3)
    for other in (ragged, cut):
        assert other.loss() == pytest.approx(whole.loss(), rel=1e-13)
        torch.testing.assert_close(
            other.gradient(), whole.gradient(), rtol=1e-12, atol=1e-14
        )
    unweighted = np.mean(
        [Objective(model, loss, (x[a:b], y[a:b])).loss() for a, b in ((0, 5), (5, 7))]
    )
    # This is what a plain mean over batches would have given.
    assert abs(unweighted - whole.loss()) > 1e-3


def test_flatten_and_unflatten_are_inverse_with_leading_axes() -> None:
    model, loss, data = case("dense")
    objective = Objective(model, loss, data)
    block = torch.randn(4, 2, objective.size)
    assert torch.equal(objective.flatten(objective.unflatten(block)), block)
    assert objective.unflatten(block)["0.weight"].shape == (4, 2, 5, 3)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [("*", 4), ("*.weight", 2), (("0.*", "2.bias"), 3), ("2.bias", 1)],
)
def test_parameters_are_chosen_by_patterns(patterns: object, names: int) -> None:
    model, loss, data = case("dense")
    objective = Objective(model, loss, data, parameters=patterns)
    assert len(objective.names) == names
    full = Objective(model, loss, data)
    whole = full.unflatten(full.gradient())
    part = objective.unflatten(objective.gradient())
    for name in objective.names:
        torch.testing.assert_close(part[name], whole[name])


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_the_model_changes(name: str) -> None:
    model, loss, data = case(name)
    model[0].train() if isinstance(model, nn.Sequential) and name == "dense" else None
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(11)
    random.seed(11)
    before = torch.get_rng_state()
    objective = Objective(model, loss, data)
    objective.loss_and_gradient()
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad == 1).all())
        assert parameter.requires_grad
    assert not model._forward_hooks
    # Recurrent layers list the tensors of their latest call.
    for module in model.modules():
        for tensor in getattr(module, "_flat_weights", []):
            assert isinstance(tensor, nn.Parameter)


def test_measuring_a_thousand_times_leaks_nothing() -> None:
    model, loss, data = case("dense")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    Objective(model, loss, data).gradient()
    before = tensors()
    for _ in range(1000):
        Objective(model, loss, data, check=False).gradient()
    assert tensors() == before


def test_dropout_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 1))
    data = torch.randn(5, 3), torch.randn(5, 1)
    with pytest.raises(
        UsageError, match=r"forward pass is random.*Call|call model.eval\(\)"
    ):
        Objective(model, "mse", data)
    Objective(model.eval(), "mse", data)


def test_batch_norm_in_training_mode_is_refused_and_untouched() -> None:
    model, loss, data = case("convolutional")
    model.train()
    mean = model[1].running_mean.clone()
    with pytest.raises(UsageError, match=r"changes 3 buffers \(1.running_mean"):
        Objective(model, loss, data)
    assert torch.equal(model[1].running_mean, mean)


def test_batch_statistics_without_buffers_are_noticed_over_several_batches() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)
    ).eval()
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    Objective(model, "mse", (x, y))
    with pytest.raises(UsageError, match="not the mean over its samples"):
        Objective(model, "mse", [(x[:4], y[:4]), (x[4:], y[4:])])


def test_losses_that_are_no_mean_are_refused() -> None:
    model = nn.Linear(3, 1)
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    with pytest.raises(UsageError, match="reduction='sum'"):
        Objective(model, nn.MSELoss(reduction="sum"), (x, y))
    with pytest.raises(UsageError, match="not the mean over its samples"):
        Objective(
            model,
            lambda output, target: ((output - target) ** 2).sum(),
            [(x, y), (x, y)],
        )
    with pytest.raises(UsageError, match=r"not one real number \(shape \(8, 1\)\)"):
        Objective(model, lambda output, target: (output - target) ** 2, (x, y))
    with pytest.raises(UsageError, match=r"not one real number \(float\)"):
        Objective(model, lambda output, target: 1.0, (x, y))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda m: m.requires_grad_(False),
            "no parameter that requires a gradient .all 2 are frozen",
        ),
        (
            lambda m: m.weight.data.fill_(float("nan")),
            "'weight' holds 3 values that are NaN",
        ),
    ],
)
def test_bad_models_are_named(change: object, text: str) -> None:
    model = nn.Linear(3, 1)
    change(model)  # type: ignore[operator]
    with pytest.raises(UsageError, match=text):
        Objective(model, "mse", (torch.randn(8, 3), torch.randn(8, 1)))


def test_frozen_and_unknown_parameters_are_named() -> None:
    model = nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    data = torch.randn(8, 3), torch.randn(8, 1)
    with pytest.raises(UsageError, match="'bias' is frozen"):
        Objective(model, "mse", data, parameters="bias")
    with pytest.raises(UsageError, match="Did you mean 'weight'"):
        Objective(model, "mse", data, parameters="wieght")


def test_a_loss_that_does_not_depend_on_the_parameters() -> None:
    model = nn.Linear(3, 1)
    objective = Objective(
        model,
        lambda output, target: (output.detach() - target).square().mean(),
        (torch.randn(8, 3), torch.randn(8, 1)),
    )
    with pytest.raises(UsageError, match="does not depend on the chosen parameters"):
        objective.gradient()


def test_an_unknown_loss_and_a_batch_without_a_target() -> None:
    with pytest.raises(UsageError, match="Did you mean 'mse'"):
        Objective(nn.Linear(3, 1), "mes", (torch.randn(8, 3), torch.randn(8, 1)))
    with pytest.raises(UsageError, match="which part is the target"):
        Objective(nn.Linear(3, 1), "mse", {"x": torch.randn(8, 3)})


def test_class_weights_follow_the_dtype() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    objective = Objective(nn.Linear(3, 2), loss, (x, y), dtype=torch.float64)
    assert np.isfinite(objective.loss())
    assert loss.weight is not None
    assert loss.weight.dtype == torch.float32


def test_attention_is_said_to_run_on_the_math_kernel() -> None:
    model, loss, data = case("transformer")
    assert any("math kernel" in note for note in Objective(model, loss, data).notes)
    model, loss, data = case("dense")
    assert not Objective(model, loss, data).notes


def test_the_model_may_be_trained_on_between_measurements() -> None:
    model, loss, data = case("dense")
    objective = Objective(model, loss, data)
    before = objective.loss()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert objective.loss() == before
    assert Objective(model, loss, data).loss() != before


def test_spent_counts_gradient_evaluations() -> None:
    model, loss, data = case("dense")
    objective = Objective(model, loss, data, check=False)
    assert objective.spent == 0
    objective.gradient()
    objective.gradient(objective.point + 1)
    objective.loss()
    assert objective.spent == pytest.approx(2 + 1 / 3)
