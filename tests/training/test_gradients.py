"""The probe of gradient norms against plain autograd on every engine, and across a checkpoint."""

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
from nablab.training.gradients import GradientNorms

X = torch.linspace(-1, 1, 21)[:, None].double()
Y = torch.sin(4 * X)
SEEDS = [3, 8, 5]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def train(probe: GradientNorms, steps: int = 12, **options: Any) -> Any:
    options = {"optimizer": SGD(learning_rate=0.1), "seeds": SEEDS, "build": build, "data": (X, Y), **options}
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
    short = [train(GradientNorms(build, (X, Y), every=4), steps=s, replicas=replicas) for s in (4, 8, 12)]
    for column, result in enumerate(short, start=1):
        for k in range(3):
            truth = gradient(result.module(k), X, Y)
            assert probe.norms[k, column] == pytest.approx(norm(truth.values()), rel=1e-9)
            for name, part in truth.items():
                assert probe.parts[name][k, column] == pytest.approx(norm([part]), rel=1e-9)
            if column < 3:
                weights = dict(result.module(k).named_parameters())
                expected = 0.1 * norm(truth.values()) / norm(weights.values())
                assert probe.ratios[k, column] == pytest.approx(expected, rel=1e-9)
                bias = 0.1 * norm([truth["0.bias"]]) / norm([weights["0.bias"]])
                assert probe.part_ratios["0.bias"][k, column] == pytest.approx(bias, rel=1e-9)
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
        assert probe.ratios[0, step] == pytest.approx(0.1 * probe.minibatch_norms[0, step] / size, rel=1e-9)
    assert not np.allclose(probe.minibatch_norms, probe.norms, rtol=0.01)
    assert probe.minibatch_norms.shape == (3, 8)
    assert result.steps_taken.tolist() == [7, 7, 7]


def test_watching_changes_no_number() -> None:
    probe = GradientNorms(build, (X, Y), every=5, minibatch=4)
    watched = train(probe, steps=23, optimizer=Adam(learning_rate=1e-2))
    plain = fit(build, (X, Y), seeds=SEEDS, steps=23, optimizer=Adam(learning_rate=1e-2))
    np.testing.assert_array_equal(watched.train_loss, plain.train_loss)
    assert GradientNorms(build, (X, Y), every=5).every == 5


def test_ended_replicas_give_nan() -> None:
    probe = GradientNorms(build, (X, Y), every=2)
    result = train(probe, steps=60, eval_every=1, stop=[Threshold(0.44)], optimizer=SGD(learning_rate=0.3))
    ends = result.steps_taken
    assert ends.min() < 60
    for k in range(3):
        np.testing.assert_array_equal(np.isnan(probe.norms[k]), probe.steps > ends[k])


def test_batch_norm_is_measured_in_eval_mode() -> None:
    def with_batch_norm() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()

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
    options: Any = {"own_labels": True, "data": (X, labels), "steps": 4}
    fast = GradientNorms(build, (X, labels), every=2, minibatch=6, own_labels=True)
    train(fast, **options)
    slow = GradientNorms(Looks, (X, labels), every=2, minibatch=6, own_labels=True)
    result = train(slow, build=Looks, **options)
    np.testing.assert_allclose(slow.norms, fast.norms, rtol=1e-9)
    np.testing.assert_allclose(slow.minibatch_norms, fast.minibatch_norms, rtol=1e-9)
    truth = gradient(result.module(2), X, labels[2])
    assert slow.norms[2, -1] == pytest.approx(norm(truth.values()), rel=1e-9)


def test_an_interrupted_training_measures_the_same(tmp_path: Path) -> None:
    whole = GradientNorms(build, (X, Y), every=3, minibatch=5)
    train(whole, steps=20, batch_size=5)
    asked = 0

    def after_a_few_chunks() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2  # between a measurement and the step whose update it awaits, or just after

    options: Any = {"steps": 20, "batch_size": 5, "checkpoint": Checkpoint(tmp_path / "c")}
    with pytest.raises(Interrupted):
        train(GradientNorms(build, (X, Y), every=3, minibatch=5), should_stop=after_a_few_chunks, **options)
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
    awaiting = next(state for state in seen if bool(state["awaited"]) and state["steps"].tolist() == [0, 3])
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
