"""Lines between models: exact ends, closed forms, barriers, and refusals."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.losses import Closure
from nablab.instruments.base.objective import Objective
from nablab.instruments.landscape.interpolation import Interpolation, interpolate


def network(
    seed: int, *, norm: bool = False, dtype: torch.dtype = torch.float32
) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 8), nn.BatchNorm1d(8)] if norm else [nn.Linear(3, 8)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    if norm:
        for _ in range(20):
            model(2 + 3 * torch.randn(50, 3, dtype=dtype))
    return model.eval()


def classes(
    samples: int = 40, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(samples, 3, generator=generator, dtype=dtype)
    return inputs, torch.randint(0, 4, (samples,), generator=generator)


def scalar_model(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def test_a_convex_quadratic_is_its_closed_form_and_has_no_barrier() -> None:
    """w -> mean (w x - y)²: a parabola along any line."""
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    result = interpolate(scalar_model(3), scalar_model(-1), "mse", (x, x), count=13)
    w = 3 - 4 * result.alphas
    np.testing.assert_allclose(result.losses, 2.5 * (w - 1) ** 2, rtol=1e-14)
    assert (result.barrier, result.barrier_alpha, result.distance) == (0.0, 0.0, 4.0)
    assert not result.monotone


def test_the_barrier_of_a_known_bump() -> None:
    """sin² between its zeros at 0 and pi rises by 1 at the middle."""
    tilted = Closure(
        lambda model, batch: model.weight.sum().sin() ** 2 + model.weight.sum()
    )
    result = interpolate(
        scalar_model(0),
        scalar_model(np.pi),
        tilted,
        torch.zeros(1, 1).double(),
        count=601,
    )
    assert result.barrier == pytest.approx(1, abs=1e-12)
    assert result.barrier_alpha == pytest.approx(0.5)
    assert result.barrier_of() == (result.barrier, result.barrier_alpha)


def test_a_descent_is_monotone_and_a_negative_rise_is_no_barrier() -> None:
    loss = Closure(lambda model, batch: -model.weight.sum().sin())
    result = interpolate(
        scalar_model(0), scalar_model(np.pi / 2), loss, torch.zeros(1, 1).double()
    )
    assert result.monotone
    assert result.barrier == 0.0


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_the_ends_are_the_models_own_losses_to_the_bit(
    batched: bool, norm: bool
) -> None:
    a, b = network(1, norm=norm), network(2, norm=norm)
    data = classes()
    parts = [(data[0][:33], data[1][:33]), (data[0][33:], data[1][33:])]
    result = interpolate(
        a, b, "cross_entropy", parts, batched=batched, metrics="accuracy", count=60
    )
    for alpha, model in ((0.0, a), (1.0, b)):
        assert alpha in result.alphas
        assert result.at(alpha) == Objective(model, "cross_entropy", parts).loss()
        with torch.no_grad():
            right = (model(data[0]).argmax(1) == data[1]).double().mean().item()
        assert result.at(alpha, metric="accuracy") == pytest.approx(right, abs=1e-15)


def test_the_ends_do_not_carry_the_rounding_of_blocks() -> None:
    """Products of blocks round in another order than those of a single network."""

    def wide(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(20, 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    data = torch.randn(400, 20), torch.arange(400) % 10
    models = [wide(seed) for seed in range(6)]
    own = [Objective(model, "cross_entropy", data).loss() for model in models]
    for k in range(5):
        result = interpolate(
            models[k], models[k + 1], "cross_entropy", data, count=4, batched=True
        )
        assert (result.at(0), result.at(1)) == (own[k], own[k + 1])


def test_every_alpha_is_the_loss_of_the_interpolated_model() -> None:
    a = network(1, norm=True, dtype=torch.float64)
    b = network(2, norm=True, dtype=torch.float64)
    x, y = classes(dtype=torch.float64)
    result = interpolate(a, b, "cross_entropy", (x, y), alphas=[-0.1, 0.3, 1.1])
    np.testing.assert_array_equal(result.alphas, [-0.1, 0, 0.3, 1, 1.1])
    middle = copy.deepcopy(a)
    for alpha, value in zip(result.alphas, result.losses, strict=True):
        for name, tensor in middle.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    (1 - alpha) * a.state_dict()[name] + alpha * b.state_dict()[name]
                )
        assert value == pytest.approx(
            nn.functional.cross_entropy(middle(x), y).item(), rel=1e-12
        )


class Odd(nn.Module):
    """Not a Sequential, a tied weight, a frozen part: not for the fast path."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 4)
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.first(x).tanh() * self.frozen).tanh())


@pytest.mark.parametrize(
    "make", [lambda s: network(s), lambda s: network(s, norm=True), Odd]
)
@pytest.mark.parametrize(
    "loss", ["cross_entropy", nn.CrossEntropyLoss(label_smoothing=0.1)]
)
def test_blocks_equal_the_loop(
    make: Callable[[int], nn.Module], loss: str | nn.Module
) -> None:
    a, b = make(1).double(), make(2).double()
    x, y = classes(300, torch.float64)
    data = [(x[:200], y[:200]), (x[200:], y[200:])]
    first, second = (
        interpolate(a, b, loss, data, batched=batched, metrics=["accuracy", "error"])
        for batched in (True, False)
    )
    for metric in ("loss", "accuracy", "error"):
        np.testing.assert_allclose(
            first.values["data"][metric],
            second.values["data"][metric],
            rtol=1e-12,
            atol=1e-15,
        )
    assert interpolate(a, b, loss, data).at(0.5) == pytest.approx(
        second.at(0.5), rel=1e-12
    )


def test_ignored_samples_do_not_count_in_blocks_either() -> None:
    x, y = classes(30)
    y[::3] = -100
    first, second = (
        interpolate(network(1), network(2), "cross_entropy", (x, y), batched=b)
        for b in (True, False)
    )
    np.testing.assert_allclose(first.losses, second.losses, rtol=1e-5)


def test_ragged_batches_weigh_by_their_samples() -> None:
    x, y = classes(40)
    ragged = [(x[:33], y[:33]), (x[33:38], y[33:38]), (x[38:], y[38:])]
    whole = interpolate(
        network(1), network(2), "cross_entropy", (x, y), metrics="accuracy"
    )
    cut = interpolate(
        network(1), network(2), "cross_entropy", ragged, metrics="accuracy"
    )
    for metric in ("loss", "accuracy"):
        np.testing.assert_allclose(
            cut.values["data"][metric], whole.values["data"][metric], rtol=1e-5
        )


def test_several_data_sets_and_your_own_metric() -> None:
    x, y = classes()
    sets = {"train": (x[:30], y[:30]), "test": (x[30:], y[30:])}
    result = interpolate(
        network(1),
        network(2),
        "cross_entropy",
        sets,
        metrics={"top": lambda o, t: o.amax(1).mean()},
        count=5,
    )
    assert list(result.values) == ["train", "test"]
    assert list(result.values["test"]) == ["loss", "top"]
    with torch.no_grad():
        expected = network(2)(x[30:]).amax(1).mean().item()
    assert result.at(1.0, metric="top", data="test") == pytest.approx(
        expected, rel=1e-6
    )
    np.testing.assert_array_equal(result.losses, result.values["train"]["loss"])


def test_data_that_can_be_read_once_are_read_once() -> None:
    x, y = classes()
    assert interpolate(
        network(1), network(2), "cross_entropy", iter([(x, y)]), count=4
    ).losses.shape == (4,)
    loss = Closure(lambda model, batch: model(batch).square().mean())
    assert interpolate(
        network(1), network(2), loss, iter([x, x]), count=4
    ).losses.shape == (4,)
    both = Closure(
        lambda model, batch: nn.functional.cross_entropy(model(batch["x"]), batch["y"])
    )
    one = interpolate(network(1), network(2), both, {"x": x, "y": y}, count=5)
    named = interpolate(network(1), network(2), "cross_entropy", (x, y), count=5)
    np.testing.assert_allclose(one.losses, named.losses, rtol=1e-6)


def test_accuracy_of_a_single_logit() -> None:
    """The sign of one output against targets 0 and 1."""
    x = torch.tensor([[1.0], [2.0], [-1.0]]).double()
    y = torch.tensor([[1.0], [0.0], [0.0]]).double()
    result = interpolate(
        scalar_model(1),
        scalar_model(-1),
        "binary_cross_entropy",
        (x, y),
        metrics="accuracy",
    )
    assert result.at(0, metric="accuracy") == pytest.approx(2 / 3)
    assert result.at(1, metric="accuracy") == pytest.approx(1 / 3)


# Batch norm


def test_reestimated_statistics_are_those_of_training_mode() -> None:
    a = network(1, norm=True, dtype=torch.float64)
    b = network(2, norm=True, dtype=torch.float64)
    x, y = classes(200, torch.float64)
    result = interpolate(
        a,
        b,
        "cross_entropy",
        (x, y),
        alphas=[0.5],
        reestimate_batch_norm=True,
        metrics="accuracy",
    )
    for alpha in (0.0, 0.5, 1.0):
        middle = copy.deepcopy(a)
        for name, tensor in middle.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    (1 - alpha) * a.state_dict()[name] + alpha * b.state_dict()[name]
                )
        middle[1].momentum = 1.0
        middle.train()(x)
        expected = nn.functional.cross_entropy(middle.eval()(x), y).item()
        assert result.at(alpha) == pytest.approx(expected, rel=1e-12)
    own = Objective(a, "cross_entropy", (x, y)).loss()
    assert f"{own:.6g}" in result.notes[-1]
    assert abs(result.at(0.0) - own) > 1e-3


def test_statistics_may_come_from_other_data() -> None:
    a, b = network(1, norm=True), network(2, norm=True)
    x, y = classes()
    same = interpolate(
        a, b, "cross_entropy", (x, y), count=4, reestimate_batch_norm=[(x, y)]
    )
    other = interpolate(
        a, b, "cross_entropy", (x, y), count=4, reestimate_batch_norm=(x + 1, y)
    )
    own = interpolate(
        a, b, "cross_entropy", (x, y), count=4, reestimate_batch_norm=True
    )
    np.testing.assert_array_equal(same.losses, own.losses)
    assert abs(other.losses - own.losses).min() > 1e-4


def test_a_variance_extrapolated_below_zero_is_said() -> None:
    a, b = (nn.Sequential(nn.BatchNorm1d(1, affine=True)).eval() for _ in range(2))
    a[0].running_var.fill_(3.0)  # at alpha = 2 the variance is -1
    data = torch.ones(4, 1), torch.zeros(4, 1)
    result = interpolate(a, b, "mse", data, alphas=[0.5, 2.0])
    assert np.isnan(result.at(2.0))
    assert np.isfinite(result.barrier)
    assert "not a number at 1 of 4 alphas" in result.notes[0]
    assert "reestimate_batch_norm=True" in result.notes[0]


def test_batch_norm_without_layers_or_in_blocks_is_refused() -> None:
    with pytest.raises(
        UsageError, match="has no batch-norm layer with running statistics"
    ):
        interpolate(
            network(1),
            network(2),
            "cross_entropy",
            classes(),
            reestimate_batch_norm=True,
        )
    a, b = network(1, norm=True), network(2, norm=True)
    with pytest.raises(UsageError, match="batched=True cannot go with re-estimated"):
        interpolate(
            a, b, "cross_entropy", classes(), reestimate_batch_norm=True, batched=True
        )


# Purity, results, errors


def test_nothing_is_left_behind() -> None:
    a, b = network(1, norm=True), network(2, norm=True)
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in (a, b)]
    state = torch.get_rng_state()
    for reestimate in (False, True):
        interpolate(
            a, b, "cross_entropy", classes(), count=5, reestimate_batch_norm=reestimate
        )
    gc.collect()
    count = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    for _ in range(5):
        interpolate(
            a, b, "cross_entropy", classes(), count=5, reestimate_batch_norm=True
        )
    gc.collect()
    assert (
        sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        <= count
    )
    assert torch.equal(torch.get_rng_state(), state)
    for model, held in zip((a, b), before, strict=True):
        assert not any(module.training for module in model.modules())
        assert all(
            torch.equal(held[name], tensor)
            for name, tensor in model.state_dict().items()
        )
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_cost_is_counted_and_foretold() -> None:
    from nablab.instruments.base.measurement import Size

    result = interpolate(network(1), network(2), "cross_entropy", classes(), count=31)
    size = Size(parameters=68, samples=40, outputs=4)
    expected = interpolate.expected(size, count=31).gradients
    assert result.gradients == pytest.approx(expected, abs=3)
    assert interpolate.expected(size, alphas=[0.1, 0.2]).gradients < expected


def test_the_result_is_json_and_has_a_figure() -> None:
    x, y = classes()
    result = interpolate(
        network(1),
        network(2),
        "cross_entropy",
        {"train": (x, y), "test": (x, y)},
        metrics="accuracy",
    )
    assert set(json.loads(json.dumps(result.to_dict()))["values"]["train"]) == {
        "loss",
        "accuracy",
    }
    figure = result.plot()
    left, right = figure.axes
    assert [ax.get_ylabel() for ax in (left, right)] == ["loss", "accuracy"]
    assert left.get_xlabel() == "alpha (0: first model, 1: second)"
    lines = [line for line in left.lines if len(line.get_xdata()) == 61]
    np.testing.assert_array_equal(lines[0].get_ydata(), result.losses)
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "train",
        "test",
    ]


def curve() -> Interpolation:
    return interpolate(
        network(1), network(2), "cross_entropy", classes(), low=-0.5, high=1.5, count=21
    )


@pytest.mark.parametrize("alpha", [-0.6, 1.51, float("nan")])
def test_an_alpha_outside_what_was_asked_is_an_error(alpha: float) -> None:
    with pytest.raises(
        UsageError,
        match=r"outside what was measured \(-0.5 to 1.5\), and nothing is extrap",
    ):
        curve().at(alpha)


def test_between_two_alphas_the_joining_line_is_read() -> None:
    result = curve()
    expected = (result.at(result.alphas[3]) + result.at(result.alphas[4])) / 2
    assert result.at((result.alphas[3] + result.alphas[4]) / 2) == pytest.approx(
        expected
    )


def test_unknown_names_are_answered_with_the_choices() -> None:
    with pytest.raises(
        UsageError, match=r"no metric 'acuracy'\. Did you mean 'accuracy'"
    ):
        interpolate(
            network(1), network(2), "cross_entropy", classes(), metrics="acuracy"
        )
    with pytest.raises(UsageError, match=r"no metric 'top'. Choices: loss"):
        curve().at(0, metric="top")
    with pytest.raises(UsageError, match=r"no data set 'test'. Choices: data"):
        curve().at(0, data="test")
    closure = Closure(lambda model, batch: model(batch[0]).square().mean())
    with pytest.raises(UsageError, match=r"Metrics \(error\) need outputs and targets"):
        interpolate(network(1), network(2), closure, classes(), metrics="error")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 2.0}, "low lies below high"),
        ({"count": 1}, "takes two alphas"),
        ({"high": float("inf")}, "low lies below high"),
        ({"alphas": [0, float("nan")]}, "give finite numbers"),
        ({"alphas": []}, "give finite numbers"),
    ],
)
def test_impossible_alphas_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        interpolate(network(1), network(2), "cross_entropy", classes(), **options)  # type: ignore[arg-type]


def test_models_that_do_not_match_are_named_with_both_shapes() -> None:
    other = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 4))
    with pytest.raises(
        UsageError,
        match=r"'0.weight' has the shape \(8, 3\) in the first and\s+\(9, 3\)",
    ):
        interpolate(network(1), other, "cross_entropy", classes())
    with pytest.raises(UsageError, match="the second one has no parameter 'weight'"):
        interpolate(
            nn.Linear(3, 4),
            nn.Sequential(nn.Flatten(), nn.Linear(3, 4)),
            "mse",
            classes(),
        )
    with pytest.raises(UsageError, match="the first one has no parameter 'bias'"):
        interpolate(
            nn.Linear(3, 4, bias=False), nn.Linear(3, 4), "cross_entropy", classes()
        )
    a = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    b = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)
    ).eval()
    with pytest.raises(
        UsageError, match=r"the second one has no parameter '1\.running_mean'"
    ):
        interpolate(a, b, "cross_entropy", classes())


def test_equal_tensors_in_different_functions_are_refused() -> None:
    other = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 4))
    with pytest.raises(UsageError, match="compute different functions"):
        interpolate(network(1), other, "cross_entropy", classes())


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Call model.eval"):
        interpolate(
            network(1, norm=True).train(),
            network(2, norm=True),
            "cross_entropy",
            classes(),
        )


class Branching(nn.Module):
    """Depends on a value, which vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if self.linear.weight.sum().item() < 100 else x


def test_models_that_vmap_does_not_take_are_measured_one_by_one() -> None:
    a, b = Branching(), Branching()
    result = interpolate(a, b, "cross_entropy", classes())
    assert "one by one, because the model does not run under vmap" in result.notes[0]
    np.testing.assert_array_equal(
        result.losses,
        interpolate(a, b, "cross_entropy", classes(), batched=False).losses,
    )
    with pytest.raises(
        UsageError, match="cannot be measured at several points at once"
    ):
        interpolate(a, b, "cross_entropy", classes(), batched=True)


def test_integer_buffers_that_differ_are_said() -> None:
    def with_table(value: int) -> nn.Module:
        model = nn.Linear(3, 4)
        model.register_buffer("table", torch.tensor([value]))
        return model

    result = interpolate(
        with_table(1), with_table(2), "cross_entropy", classes(), count=5
    )
    assert "The integer buffer 'table' differs" in result.notes[0]


def test_a_model_whose_loss_overflows_is_measured_and_not_refused() -> None:
    a, b = (nn.Linear(1, 1) for _ in range(2))
    with torch.no_grad():
        b.weight.fill_(1e15)
    batches = [(torch.full((3, 1), size), torch.ones(3, 1)) for size in (1.0, 1e10)]
    result = interpolate(a, b, "mse", batches, count=7)
    assert np.isinf(result.at(1.0))
    assert np.isnan(result.barrier)
    assert not result.monotone
    assert result.notes == ("The loss overflows at 6 of 7 alphas.",)


def test_a_prediction_that_is_not_a_number_is_refused() -> None:
    a, b = (nn.Linear(1, 1) for _ in range(2))

    def broken(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(weights), len(x), 1), torch.nan)

    with pytest.raises(UsageError, match="predict"):
        interpolate(
            a, b, "mse", (torch.ones(3, 1), torch.ones(3, 1)), count=7, predict=broken
        )
