"""The probe of gradient norms against plain autograd on every engine, and across a
checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nablab.errors import Interrupted, UsageError
from nablab.training import SGD, Adam, Checkpoint, Threshold, build_replicas, fit
from nablab.training.gradients import GROUPS, GradientNorms, _drawn, _mean_product

X = torch.linspace(-1, 1, 21)[:, None].double()
Y = torch.sin(4 * X)
SEEDS = [3, 8, 5]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def train(probe: GradientNorms, steps: int = 12, **options: Any) -> Any:
    options = {
        "optimizer": SGD(learning_rate=0.1),
        "seeds": SEEDS,
        "build": build,
        "data": (X, Y),
        **options,
    }
    return fit(steps=steps, probes=[probe], **options)


def gradient(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    loss = nn.functional.mse_loss(module(x), y)
    found = torch.autograd.grad(loss, list(module.parameters()))
    return dict(zip(dict(module.named_parameters()), found, strict=True))


def norm(tensors: Any) -> float:
    return math.sqrt(sum(float(tensor.detach().square().sum()) for tensor in tensors))


@pytest.mark.parametrize("replicas", ["auto", "batched", "sequential"])
def test_full_gradients_and_updates_of_gradient_descent(replicas: str) -> None:
    """With plain gradient descent the update is the gradient times the learning rate."""
    probe = GradientNorms(build, (X, Y), every=4)
    train(probe, replicas=replicas)
    assert probe.steps.tolist() == [0, 4, 8, 12]
    short = [
        train(GradientNorms(build, (X, Y), every=4), steps=s, replicas=replicas)
        for s in (4, 8, 12)
    ]
    for column, result in enumerate(short, start=1):
        for k in range(3):
            truth = gradient(result.module(k), X, Y)
            assert probe.norms[k, column] == pytest.approx(
                norm(truth.values()), rel=1e-9
            )
            for name, part in truth.items():
                assert probe.parts[name][k, column] == pytest.approx(
                    norm([part]), rel=1e-9
                )
            if column < 3:
                weights = dict(result.module(k).named_parameters())
                expected = 0.1 * norm(truth.values()) / norm(weights.values())
                assert probe.ratios[k, column] == pytest.approx(expected, rel=1e-9)
                bias = 0.1 * norm([truth["0.bias"]]) / norm([weights["0.bias"]])
                assert probe.part_ratios["0.bias"][k, column] == pytest.approx(
                    bias, rel=1e-9
                )
    assert np.isnan(probe.ratios[:, -1]).all()  # no step follows the last one
    assert np.isfinite(probe.ratios[:, :-1]).all()


def test_the_minibatch_is_the_batch_of_the_next_step() -> None:
    """Its gradient times the learning rate is the update that training then makes."""
    probe = GradientNorms(build, (X, Y), every=1, minibatch=8)
    result = train(probe, steps=7, batch_size=8)
    sizes = [norm(build_replicas(build, SEEDS)[0].parameters())]
    for steps in (1, 2):
        short = train(GradientNorms(build, (X, Y), every=99), steps=steps, batch_size=8)
        sizes.append(norm(short.module(0).parameters()))
    for step, size in enumerate(sizes):
        assert probe.ratios[0, step] == pytest.approx(
            0.1 * probe.minibatch_norms[0, step] / size, rel=1e-9
        )
    assert not np.allclose(probe.minibatch_norms, probe.norms, rtol=0.01)
    assert probe.minibatch_norms.shape == (3, 8)
    assert result.steps_taken.tolist() == [7, 7, 7]


def test_watching_changes_no_number() -> None:
    probe = GradientNorms(build, (X, Y), every=5, minibatch=4)
    watched = train(probe, steps=23, optimizer=Adam(learning_rate=1e-2))
    plain = fit(
        build, (X, Y), seeds=SEEDS, steps=23, optimizer=Adam(learning_rate=1e-2)
    )
    np.testing.assert_array_equal(watched.train_loss, plain.train_loss)
    assert GradientNorms(build, (X, Y), every=5).every == 5


def test_ended_replicas_give_nan() -> None:
    probe = GradientNorms(build, (X, Y), every=2)
    result = train(
        probe,
        steps=60,
        eval_every=1,
        stop=[Threshold(0.44)],
        optimizer=SGD(learning_rate=0.3),
    )
    ends = result.steps_taken
    assert ends.min() < 60
    for k in range(3):
        np.testing.assert_array_equal(np.isnan(probe.norms[k]), probe.steps > ends[k])


def test_batch_norm_is_measured_in_eval_mode() -> None:
    def with_batch_norm() -> nn.Module:
        return nn.Sequential(
            nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)
        ).double()

    probe = GradientNorms(with_batch_norm, (X, Y), every=6, minibatch=5)
    result = train(probe, steps=6, build=with_batch_norm)
    for k in range(3):
        truth = gradient(result.module(k).eval(), X, Y)
        assert probe.norms[k, -1] == pytest.approx(norm(truth.values()), rel=1e-9)


def test_networks_and_labels_of_their_own_without_vmap() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * (1.0 if float(x.detach().sum()) < 1e9 else 2.0)

    labels = torch.stack([Y, -Y, 2 * Y])
    options: Any = {"per_replica_targets": True, "data": (X, labels), "steps": 4}
    fast = GradientNorms(
        build, (X, labels), every=2, minibatch=6, per_replica_targets=True
    )
    train(fast, **options)
    slow = GradientNorms(
        Looks, (X, labels), every=2, minibatch=6, per_replica_targets=True
    )
    result = train(slow, build=Looks, **options)
    np.testing.assert_allclose(slow.norms, fast.norms, rtol=1e-9)
    np.testing.assert_allclose(slow.minibatch_norms, fast.minibatch_norms, rtol=1e-9)
    truth = gradient(result.module(2), X, labels[2])
    assert slow.norms[2, -1] == pytest.approx(norm(truth.values()), rel=1e-9)


def images(samples: int) -> tuple[Tensor, Tensor]:
    """Most images are of class 0, so that the gradient stands out from its noise."""
    made = torch.Generator().manual_seed(0)
    x = torch.randint(256, (samples, 1, 6, 6), generator=made, dtype=torch.uint8)
    return x, (x[:, 0, 0, 0] > 200).long()


def halve(x: Tensor) -> Tensor:
    return x.double() / 128 - 1


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


@pytest.mark.parametrize("network", [convolutional, dense])
def test_stored_images_are_prepared_in_parts(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nablab.training.gradients.IMAGES_AT_ONCE", 7)
    monkeypatch.setattr("nablab.training.gradients.SAMPLES_AT_ONCE", 24)
    x, y = images(31)
    common: Any = {"loss": "cross_entropy", "prepare": halve}
    probe = GradientNorms(network, (x, y), every=2, minibatch=10, **common)
    options: Any = {"optimizer": SGD(learning_rate=0.1), "batch_size": 10, **common}
    result = fit(network, (x, y), seeds=SEEDS, steps=4, probes=[probe], **options)
    for k in range(3):
        module = result.module(k)
        loss = nn.functional.cross_entropy(module(halve(x)), y)
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        assert probe.norms[k, -1] == pytest.approx(norm(slopes), rel=1e-9)
        weights = build_replicas(network, SEEDS)[k].parameters()
        # The minibatch is the next step's: its gradient times the rate is the update.
        update = 0.1 * probe.minibatch_norms[k, 0] / norm(weights)
        assert probe.ratios[k, 0] == pytest.approx(update, rel=1e-9)
    assert probe.norm_errors.shape == (3, 0)


def test_a_sample_is_judged_by_its_groups() -> None:
    x, y = images(95)
    common: Any = {"loss": "cross_entropy", "prepare": halve}
    probe = GradientNorms(dense, (x, y), every=3, samples=47, **common)
    result = fit(
        dense,
        (x, y),
        seeds=SEEDS,
        steps=3,
        optimizer=SGD(learning_rate=0.1),
        probes=[probe],
        **common,
    )
    sample = _drawn(95, 47)
    assert sample is not None
    assert len(set(sample.tolist())) == 40
    module = result.module(1)
    groups = []
    for group in sample.split(4):
        loss = nn.functional.cross_entropy(module(halve(x[group])), y[group])
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        groups.append(torch.cat([slope.flatten() for slope in slopes]))

    def mean_product(among: list[Tensor]) -> float:
        pairs = [float(a @ b) for a in among for b in among if a is not b]
        return sum(pairs) / len(pairs)

    square = mean_product(groups)
    others = [mean_product(groups[:j] + groups[j + 1 :]) for j in range(GROUPS)]
    error = math.sqrt((GROUPS - 1) * np.var(others))
    assert square > 0
    assert probe.norms[1, -1] == pytest.approx(math.sqrt(square), rel=1e-9)
    assert probe.norm_errors[1, -1] == pytest.approx(
        error / (2 * math.sqrt(square)), rel=1e-9
    )
    again = GradientNorms(dense, (x, y), every=3, samples=47, **common)
    again.load_state(probe.state())
    np.testing.assert_array_equal(again.norm_errors, probe.norm_errors)


def test_the_estimate_has_no_bias_and_knows_its_error() -> None:
    """4,000 samples of ten noisy gradients: the mean is the square of the true one,
    |g|^2 = 9.
    """
    made = torch.Generator().manual_seed(0)
    truth = torch.full((30,), math.sqrt(9 / 30), dtype=torch.float64)
    gradients = truth + torch.randn(4_000, 10, 30, generator=made, dtype=torch.float64)
    squares, errors = _mean_product(gradients @ gradients.mT)
    standard_error = float(squares.std()) / math.sqrt(4_000)
    assert abs(float(squares.mean()) - 9) < 4 * standard_error
    # what one norm of all would give
    assert float(gradients.mean(dim=1).square().sum(dim=1).mean()) > 11.9
    # The jackknife's variance is known to lean to the safe side.
    assert 1 < float(errors.square().mean().sqrt() / squares.std()) < 1.15


def test_a_sample_of_everything_is_no_sample() -> None:
    probe = GradientNorms(build, (X, Y), every=4, samples=21)
    exact = GradientNorms(build, (X, Y), every=4)
    train(probe, steps=4)
    train(exact, steps=4)
    np.testing.assert_array_equal(probe.norms, exact.norms)
    assert probe.norm_errors.shape == (3, 0)


def test_an_interrupted_training_measures_the_same(tmp_path: Path) -> None:
    whole = GradientNorms(build, (X, Y), every=3, minibatch=5)
    train(whole, steps=20, batch_size=5)
    asked = 0

    def after_a_few_chunks() -> bool:
        nonlocal asked
        asked += 1
        # between a measurement and the step whose update it awaits, or just after
        return asked == 2

    options: Any = {
        "steps": 20,
        "batch_size": 5,
        "checkpoint": Checkpoint(tmp_path / "c"),
    }
    with pytest.raises(Interrupted):
        train(
            GradientNorms(build, (X, Y), every=3, minibatch=5),
            should_stop=after_a_few_chunks,
            **options,
        )
    resumed = GradientNorms(build, (X, Y), every=3, minibatch=5)
    train(resumed, **options)
    np.testing.assert_array_equal(resumed.steps, whole.steps)
    for name in ("norms", "minibatch_norms", "ratios"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))


def test_the_state_keeps_an_awaited_update() -> None:
    probe = GradientNorms(build, (X, Y), every=3)
    seen: list[dict[str, Tensor]] = []
    inner = probe.on_step_end

    def watch(context: Any) -> None:
        inner(context)
        seen.append({name: tensor.clone() for name, tensor in probe.state().items()})

    probe.on_step_end = watch  # type: ignore[method-assign]
    train(probe, steps=4)
    awaiting = next(
        state
        for state in seen
        if bool(state["awaited"]) and state["steps"].tolist() == [0, 3]
    )
    other = GradientNorms(build, (X, Y), every=3)
    other.load_state(awaiting)
    assert other.every == 1
    assert set(other.state()) == set(awaiting)
    np.testing.assert_array_equal(other.norms, probe.norms[:, :2])


def test_a_second_training_starts_anew() -> None:
    probe = GradientNorms(build, (X, Y), every=2, updates=False)
    train(probe, steps=4)
    first = probe.norms
    train(probe, steps=4)
    np.testing.assert_array_equal(probe.norms, first)
    assert probe.ratios.shape == (3, 0)


def test_usage_errors() -> None:
    with pytest.raises(UsageError, match="every=0 is impossible"):
        GradientNorms(build, (X, Y), every=0)
    with pytest.raises(UsageError, match="minibatch=0 is impossible"):
        GradientNorms(build, (X, Y), every=1, minibatch=0)
    with pytest.raises(
        UsageError, match="samples=9 is impossible: it must be at least 10"
    ):
        GradientNorms(build, (X, Y), every=1, samples=9)
