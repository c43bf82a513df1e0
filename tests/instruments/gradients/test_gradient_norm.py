"""Gradient norms against closed forms, plain loops, and the identity of noise."""

from __future__ import annotations

import gc
import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.losses import Closure
from nablab.instruments.gradients.gradient_monitor import GradientMonitor, update_ratio
from nablab.instruments.gradients.gradient_norm import GradientNorm, gradient_norm


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def samples(count: int = 17, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 3, generator=draw, dtype=torch.float64),
        torch.randn(count, 2, generator=draw, dtype=torch.float64),
    )


def plain_gradient(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By autograd alone, on a copy of nothing: the truth of this file."""
    loss = nn.functional.mse_loss(model(x), y)
    found = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def norm_of(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))


def test_a_linear_model_in_closed_form() -> None:
    x, y = samples(9)
    model = nn.Linear(3, 2).double()
    residual = x @ model.weight.detach().T + model.bias.detach() - y
    truth = {
        "weight": residual.T @ x * 2 / y.numel(),
        "bias": residual.sum(0) * 2 / y.numel(),
    }
    result = gradient_norm(model, "mse", (x, y))
    assert result.parts == pytest.approx(
        {name: float(part.norm()) for name, part in truth.items()}, rel=1e-12
    )
    assert result.norm == pytest.approx(norm_of(truth), rel=1e-12)
    size = math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert result.relative == pytest.approx(result.norm / size, rel=1e-12)
    assert result.relative_parts["bias"] == pytest.approx(
        float(truth["bias"].norm() / model.bias.detach().norm())
    )
    assert result.loss == pytest.approx(float(residual.square().mean()), rel=1e-12)
    assert 1 <= result.gradients < 2
    assert math.isnan(result.noise)
    assert len(result.sample_norms) == 0


def test_ragged_batches_give_the_same_gradient_and_norms_of_their_own() -> None:
    model, (x, y) = network(), samples()
    whole = gradient_norm(model, "mse", (x, y))
    cuts = [(0, 7), (7, 8), (8, 17)]
    ragged = gradient_norm(model, "mse", [(x[a:b], y[a:b]) for a, b in cuts])
    assert ragged.norm == pytest.approx(whole.norm, rel=1e-12)
    assert ragged.batch_samples.tolist() == [7, 1, 9]
    own = [norm_of(plain_gradient(model, x[a:b], y[a:b])) for a, b in cuts]
    np.testing.assert_allclose(ragged.batch_norms, own, rtol=1e-12)
    cut = gradient_norm(model, "mse", (x, y), batch_size=6)
    assert cut.batch_samples.tolist() == [6, 6, 5]
    assert cut.norm == pytest.approx(whole.norm, rel=1e-12)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_sample_norms_and_noise_against_a_plain_loop(batch_size: int | None) -> None:
    model, (x, y) = network(), samples()
    result = gradient_norm(model, "mse", (x, y), per_sample=True, batch_size=batch_size)
    rows = [plain_gradient(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    np.testing.assert_allclose(
        result.sample_norms, [norm_of(row) for row in rows], rtol=1e-12
    )
    flat = torch.stack(
        [torch.cat([part.flatten() for part in row.values()]) for row in rows]
    )
    assert result.noise == pytest.approx(
        float(flat.var(dim=0, correction=1).sum()), rel=1e-12
    )
    signal = float(flat.mean(0).square().sum()) - result.noise / len(x)
    assert result.noise_scale == pytest.approx(result.noise / signal, rel=1e-10)
    distances = (flat - flat.mean(0)).square().sum(1) * len(x) / (len(x) - 1)
    assert result.noise_error == pytest.approx(
        float(distances.std() / math.sqrt(len(x))), rel=1e-10
    )


@pytest.mark.parametrize("factor", [1e150, 1e-150])
def test_losses_of_any_size_have_norms_and_noise(factor: float) -> None:
    model, (x, y) = network(), samples()
    usual = gradient_norm(model, "mse", (x, y), per_sample=True)
    scaled = gradient_norm(
        model,
        lambda output, target: nn.functional.mse_loss(output, target) * factor,
        (x, y),
        per_sample=True,
    )
    np.testing.assert_allclose(
        scaled.sample_norms, usual.sample_norms * factor, rtol=1e-12
    )
    assert scaled.noise == pytest.approx(usual.noise * factor * factor, rel=1e-9)
    assert scaled.noise_scale == pytest.approx(usual.noise_scale, rel=1e-9)
    assert scaled.noise_scale_error == pytest.approx(usual.noise_scale_error, rel=1e-9)


class Sequences(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], batch_first: bool = True) -> None:
        super().__init__()
        self.recurrent, self.head = kind(3, 4, batch_first=batch_first), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(nn.LSTM, marks=pytest.mark.slow),
        pytest.param(nn.GRU, marks=pytest.mark.slow),
        nn.RNN,
    ],
)
def test_sample_norms_of_sequences_leave_no_tensor_behind(
    kind: type[nn.RNNBase],
) -> None:
    torch.manual_seed(0)
    model, x, y = Sequences(kind), torch.randn(4, 3, 3), torch.tensor([0, 1, 1, 0])
    counts = []
    for _ in range(4):
        result = gradient_norm(model, "cross_entropy", (x, y), per_sample=True)
        gc.collect()
        counts.append(
            sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
        )
    assert counts[-1] == counts[1]
    for i in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        own = norm_of(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
        assert result.sample_norms[i] == pytest.approx(own, rel=1e-5)


def test_the_mean_square_over_minibatches_is_gradient_plus_noise() -> None:
    """Over all batches of size B, exactly: |g|^2 + tr(Sigma) (1/B - 1/N)."""
    model, (x, y) = network(), samples(7)
    full = gradient_norm(model, "mse", (x, y), per_sample=True)
    for size in (1, 2, 5):
        chosen = [list(group) for group in itertools.combinations(range(7), size)]
        batches = gradient_norm(
            model, "mse", [(x[group], y[group]) for group in chosen]
        )
        expected = full.norm**2 + full.noise * (1 / size - 1 / 7)
        assert np.mean(batches.batch_norms**2) == pytest.approx(expected, rel=1e-12)


def test_noise_between_batches_is_unbiased_and_its_error_is_right() -> None:
    model, (x, y) = network(), samples(600)
    truth = gradient_norm(model, "mse", (x, y), per_sample=True)
    draw, found = torch.Generator().manual_seed(3), []
    for _ in range(60):
        order = torch.randperm(600, generator=draw)
        found.append(
            gradient_norm(model, "mse", (x[order], y[order]), noise=True, batch_size=20)
        )
    estimates = np.array([result.noise for result in found])
    assert abs(estimates.mean() - truth.noise) < 4 * estimates.std() / math.sqrt(60)
    # Thirty batches each: the typical stated error must agree with the spread that is
    # seen.
    assert (
        0.7 < np.mean([result.noise_error for result in found]) / estimates.std() < 1.4
    )
    assert "random samples" in found[0].notes[-1]
    assert 2 <= found[0].gradients < 2.2


def test_noise_scale_and_its_error_over_fresh_data() -> None:
    draw = torch.Generator().manual_seed(11)
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    found = []
    # With y = x.(1, 1) + noise, G = -2 (1, 1), and the rest follows from Gaussian
    # moments.
    for _ in range(40):
        x = torch.randn(400, 2, generator=draw, dtype=torch.float64)
        y = x.sum(1, keepdim=True) + 0.5 * torch.randn(
            400, 1, generator=draw, dtype=torch.float64
        )
        found.append(gradient_norm(model, "mse", (x, y), per_sample=True))
    # With g_i = -2 y_i x_i, E|g_i|^2 = 4 (E[(x1 + x2)^2 |x|^2] + .25 E|x|^2) = 4 (8 +
    # .5), and |G|^2 = 8.
    scales = np.array([result.noise_scale for result in found])
    assert scales.mean() == pytest.approx((34 - 8) / 8, rel=0.03)
    assert (
        0.65
        < np.mean([result.noise_scale_error for result in found]) / scales.std()
        < 1.5
    )


def test_at_a_minimum_the_noise_scale_is_infinite() -> None:
    x, y = samples(40)
    model = nn.Linear(3, 2).double()
    solution = torch.linalg.lstsq(
        torch.cat([x, torch.ones(40, 1).double()], 1), y
    ).solution
    with torch.no_grad():
        model.weight.copy_(solution[:3].T)
        model.bias.copy_(solution[3])
    result = gradient_norm(model, "mse", (x, y), per_sample=True)
    assert result.norm < 1e-13
    assert result.noise > 0.01
    assert result.noise_scale == math.inf
    assert result.to_dict()["noise_scale"] is None


def test_models_that_vmap_cannot_run_are_measured_one_by_one() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * (1.0 if float(x.detach().sum()) < 1e9 else 2.0)

    model, (x, y) = Looks(), samples(6)
    looped = gradient_norm(model, "mse", (x, y), per_sample=True)
    np.testing.assert_allclose(
        looped.sample_norms,
        gradient_norm(model.inner, "mse", (x, y), per_sample=True).sample_norms,
        rtol=1e-12,
    )
    assert any("one by one" in note for note in looped.notes)


def test_dictionaries_with_shared_tensors_and_token_counts() -> None:
    torch.manual_seed(2)
    model = nn.Linear(3, 4).double()
    x, mask = torch.randn(5, 6, 3).double(), torch.rand(5, 6) > 0.4
    mask[:, 0] = True

    def mean_over_tokens(module: Any, batch: dict[str, Tensor]) -> Tensor:
        losses = (module(batch["x"]) * batch["scale"]).square().mean(-1)
        return (losses * batch["mask"]).sum() / batch["mask"].sum()

    # The scale has one row, not one per sample, and is kept whole.
    batch = {"x": x, "mask": mask, "scale": torch.full((1, 1, 4), 2.0).double()}
    loss = Closure(mean_over_tokens, samples=lambda batch: int(batch["mask"].sum()))
    result = gradient_norm(model, loss, batch, per_sample=True)
    counts, rows = mask.sum(1).double(), []
    for i in range(5):
        one = {"x": x[i : i + 1], "mask": mask[i : i + 1], "scale": batch["scale"]}
        found = torch.autograd.grad(
            mean_over_tokens(model, one), list(model.parameters())
        )
        rows.append(torch.cat([part.flatten() for part in found]))
    flat = torch.stack(rows)
    np.testing.assert_allclose(
        result.sample_norms, flat.norm(dim=1).numpy(), rtol=1e-12
    )
    mean = (counts[:, None] * flat).sum(0) / counts.sum()
    assert result.norm == pytest.approx(float(mean.norm()), rel=1e-12)
    assert result.noise == pytest.approx(
        float((counts * (flat - mean).square().sum(1)).sum() / 4), rel=1e-12
    )


def test_chosen_parameters_and_float32() -> None:
    model, (x, y) = network(torch.float32), samples()
    truth = plain_gradient(network(), x, y)
    result = gradient_norm(model, "mse", (x, y), parameters="2.*", per_sample=True)
    assert list(result.parts) == ["2.weight", "2.bias"]
    assert result.parts["2.weight"] == pytest.approx(
        float(truth["2.weight"].norm()), rel=1e-5
    )
    exact = gradient_norm(model, "mse", (x, y), parameters="2.*", dtype=torch.float64)
    assert exact.norm == pytest.approx(result.norm, rel=1e-5)


def test_recurrent_networks_and_convolutions() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    torch.manual_seed(0)
    x, y = torch.randn(4, 5, 3), torch.randn(4, 2)
    model = Last()
    result = gradient_norm(model, "mse", (x, y), per_sample=True)
    own = [norm_of(plain_gradient(model, x[i : i + 1], y[i : i + 1])) for i in range(4)]
    np.testing.assert_allclose(result.sample_norms, own, rtol=1e-5)
    conv = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    ).eval()
    x = torch.randn(4, 1, 4, 4)
    result = gradient_norm(
        conv, "cross_entropy", (x, torch.tensor([0, 1, 1, 0])), per_sample=True
    )
    assert not any("one by one" in note for note in result.notes)
    loss = nn.functional.cross_entropy(conv(x[2:3]), torch.tensor([1]))
    found = torch.autograd.grad(loss, list(conv.parameters()))
    assert result.sample_norms[2] == pytest.approx(
        math.sqrt(sum(float(f.square().sum()) for f in found)), rel=1e-5
    )


def test_nothing_is_left_behind() -> None:
    model, data = network(), samples()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    gradient_norm(model, "mse", data, per_sample=True)
    gc.collect()
    count = sum(issubclass(type(found), Tensor) for found in gc.get_objects())
    for _ in range(5):
        gradient_norm(model, "mse", data, per_sample=True)
    gc.collect()
    assert sum(issubclass(type(found), Tensor) for found in gc.get_objects()) == count
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        p.grad is None and torch.equal(p, before[name])
        for name, p in model.named_parameters()
    )


def test_usage_errors() -> None:
    model, (x, y) = network(), samples()
    with pytest.raises(
        UsageError, match=r"two batches at least; the data hold 1.*batch_size below 17"
    ):
        gradient_norm(model, "mse", (x, y), noise=True)
    with pytest.raises(UsageError, match=r"two samples at least; the data hold 1"):
        gradient_norm(model, "mse", (x[:1], y[:1]), per_sample=True)

    def total(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum()

    with pytest.raises(
        UsageError,
        match=r"not the mean of the samples' own gradients.*reduction='mean'",
    ):
        gradient_norm(model, total, (x, y), per_sample=True)


def test_the_expected_cost() -> None:
    from nablab.instruments.base.measurement import Size

    size = Size(parameters=100, samples=50, outputs=2)
    assert gradient_norm.expected(size).gradients == 1
    assert gradient_norm.expected(size, per_sample=True).gradients == 2


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_figure(per_sample: bool) -> None:
    result: GradientNorm = gradient_norm(
        network(), "mse", samples(60), per_sample=per_sample
    )
    axes = result.plot().axes
    assert len(axes) == 1 + per_sample
    assert [text.get_text() for text in axes[0].get_yticklabels()] == list(result.parts)
    np.testing.assert_allclose(
        axes[0].lines[0].get_xdata(), list(result.parts.values())
    )
    if per_sample:
        assert axes[1].get_xlabel() == "gradient norm of single samples"
        assert sum(patch.get_height() for patch in axes[1].patches) == 60


# Update ratios and the monitor of a training loop


def test_update_ratio() -> None:
    before = nn.Linear(2, 1)
    after = nn.Linear(2, 1)
    with torch.no_grad():
        before.weight.copy_(torch.tensor([[3.0, 4.0]]))
        after.weight.copy_(torch.tensor([[3.0, 4.5]]))
        before.bias.zero_()
        after.bias.zero_()
    assert update_ratio(before, after) == {"weight": pytest.approx(0.1), "bias": 0.0}
    with torch.no_grad():
        after.bias.fill_(1.0)
    assert update_ratio(before, dict(after.named_parameters()))["bias"] == math.inf
    with pytest.raises(
        UsageError,
        match=r"'bias' is of shape \(1,\) before and missing after.*one model",
    ):
        update_ratio(before, nn.Linear(2, 1, bias=False))
    with pytest.raises(
        UsageError, match=r"'weight' is of shape \(1, 2\) before and of shape \(1, 3\)"
    ):
        update_ratio(before, nn.Linear(3, 1))


def train(
    monitor: GradientMonitor | None, steps: int = 6
) -> tuple[nn.Module, list[dict[str, float]]]:
    model, (x, y) = network(), samples()
    monitor = GradientMonitor(model) if monitor is None else monitor
    optimizer, truth = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        monitor.record()
        expected = {
            f"norm {name}": float(p.grad.norm()) for name, p in model.named_parameters()
        }
        old = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        monitor.record_update()
        expected |= {
            f"ratio {name}": value for name, value in update_ratio(old, model).items()
        }
        truth.append(expected)
    train.history = monitor.history()  # type: ignore[attr-defined]
    return model, truth


def test_the_monitor_reads_what_the_loop_computed() -> None:
    _, truth = train(None)
    history = train.history  # type: ignore[attr-defined]
    assert history.gradients == 0
    assert history.steps.tolist() == list(range(6))
    for name in history.parts:
        np.testing.assert_allclose(
            history.parts[name], [t[f"norm {name}"] for t in truth], rtol=1e-12
        )
        np.testing.assert_allclose(
            history.update_ratios[name], [t[f"ratio {name}"] for t in truth], rtol=1e-12
        )
    squares = np.square(np.stack(list(history.parts.values()))).sum(0)
    np.testing.assert_allclose(history.norms, np.sqrt(squares), rtol=1e-12)
    axes = history.plot().axes
    assert [ax.get_ylabel() for ax in axes] == [
        "gradient norm",
        "update-to-weight ratio",
    ]
    np.testing.assert_allclose(axes[0].lines[-1].get_ydata(), history.norms)


def test_the_monitor_changes_nothing_and_can_forget() -> None:
    class Blind:
        def record(self) -> None: ...
        def record_update(self) -> None: ...
        def history(self) -> None: ...

    plain, _ = train(Blind())  # type: ignore[arg-type]
    watched, _ = train(None)
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )
    assert not watched._backward_hooks
    assert not watched._forward_hooks
    model = network()
    monitor = GradientMonitor(model, parameters="*.bias", keep=2, updates=False)
    for scale in (1.0, 2.0, 3.0):
        model.zero_grad()
        (model(torch.ones(1, 3).double()).sum() * scale).backward()
        monitor.record()
    history = monitor.history()
    assert list(history.parts) == ["0.bias", "2.bias"]
    assert history.steps.tolist() == [1, 2]
    np.testing.assert_allclose(
        history.parts["2.bias"], np.array([2.0, 3.0]) * math.sqrt(2)
    )
    assert len(history.plot().axes) == 1


def test_a_parameter_without_gradient_counts_as_zero() -> None:
    model = network()
    monitor = GradientMonitor(model)
    model[2](torch.ones(1, 5).double()).sum().backward()  # type: ignore[index]
    monitor.record()
    assert monitor.history().parts["0.weight"][0] == 0
    assert monitor.history().parts["2.bias"][0] == pytest.approx(math.sqrt(2))


def test_the_monitor_says_when_it_is_called_at_the_wrong_moment() -> None:
    model = network()
    monitor = GradientMonitor(model)
    with pytest.raises(
        UsageError, match=r"after loss.backward\(\) and before optimizer.zero_grad\(\)"
    ):
        monitor.record()
    with pytest.raises(UsageError, match=r"updates=True and call record\(\)"):
        monitor.record_update()
    with pytest.raises(UsageError, match=r"Nothing was recorded"):
        monitor.history()
    with pytest.raises(UsageError, match=r"keep=0"):
        GradientMonitor(model, keep=0)


def test_no_warning_is_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient_norm(network(), "mse", samples(), per_sample=True)
