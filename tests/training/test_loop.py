"""`fit`: numbers against closed forms and plain loops, events, stopping, divergence."""

import numpy as np
import pytest
import torch
from torch import nn

from nablab import training
from nablab.errors import Interrupted, UsageError
from nablab.training import (
    SGD,
    Adam,
    Constant,
    EarlyStopping,
    Plateau,
    Probe,
    Threshold,
    fit,
)


def line():
    return nn.Linear(2, 1, bias=False).double()


def small():
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, generator=draw)
    return x, torch.sin(x.sum(1, keepdim=True))


def test_gradient_descent_on_a_quadratic_follows_its_closed_form():
    """With loss |Xw - y|^2 / N the error contracts: w_t - w* = (I - 2 lr X'X / N)^t
    (w_0 - w*).
    """
    draw = torch.Generator().manual_seed(0)
    x, truth = (
        torch.randn(20, 2, generator=draw).double(),
        torch.tensor([[1.5], [-0.5]]).double(),
    )
    result = fit(line, (x, x @ truth), seeds=[4, 5], steps=30, optimizer=SGD(0.1))

    contraction = torch.eye(2).double() - 2 * 0.1 * x.T @ x / 20
    for replica, module in enumerate(training.build_replicas(line, [4, 5])):
        error = module.weight.detach().T - truth
        for step in range(30):
            expected = (x @ error).square().mean().item()
            assert result.train_loss[replica, step] == pytest.approx(
                expected, rel=1e-10
            )
            error = contraction @ error
        assert result.final[replica] == pytest.approx(
            (x @ error).square().mean().item(), rel=1e-9
        )
        torch.testing.assert_close(
            result.module(replica).weight.detach().T,
            truth + error,
            rtol=1e-9,
            atol=1e-12,
        )


@pytest.mark.parametrize("replicas", ["auto", "sequential"])
def test_minibatches_follow_a_plain_loop(replicas):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(10, 2, generator=draw).double()
    y = x.prod(1, keepdim=True)
    schedule = training.Cosine(warmup_steps=3)
    result = fit(
        line,
        (x, y),
        seeds=[6, 7, 8],
        steps=12,
        batch_size=4,
        schedule=schedule,
        optimizer=Adam(0.1),
        replicas=replicas,
    )

    module = training.build_replicas(line, [7])[0]
    optimizer = torch.optim.Adam(module.parameters())
    for step, rate in enumerate(schedule.multipliers(12)):
        epoch, position = divmod(step, 3)
        order = torch.randperm(
            10, generator=training.generator(training.derive(7, "order", epoch))
        )
        chosen = order[4 * position : 4 * position + 4]
        loss = nn.functional.mse_loss(module(x[chosen]), y[chosen])
        assert result.train_loss[1, step] == pytest.approx(loss.item(), rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        optimizer.step()
    assert result.final[1] == pytest.approx(
        nn.functional.mse_loss(module(x), y).item(), rel=1e-9
    )


def test_evaluations_best_and_predictions_belong_together(data):
    held_out = (data[0][:5] + 1, data[1][:5])
    result = fit(
        small,
        data,
        seeds=range(3),
        steps=25,
        eval_every=10,
        optimizer=SGD([0.9, 0.05, 0.4]),
        held_out={"shifted": held_out},
    )
    assert result.evaluation_steps.tolist() == [0, 10, 20, 25]
    assert set(result.evaluations) == {"train_loss", "shifted_loss"}
    np.testing.assert_allclose(
        result.evaluations["train_loss"][:, :3], result.train_loss[:, :21:10], rtol=1e-5
    )
    np.testing.assert_array_equal(
        result.best, result.evaluations["train_loss"].min(axis=1)
    )
    lowest = result.evaluations["train_loss"].argmin(axis=1)
    assert len(set(lowest)) > 1, "the case must tell the best from the last"
    np.testing.assert_array_equal(result.best_step, result.evaluation_steps[lowest])
    np.testing.assert_array_equal(result.final, result.evaluations["train_loss"][:, -1])
    for at, expected in {"final": result.final, "best": result.best}.items():
        losses = (result.predict(data[0], at=at) - data[1]).square().mean((1, 2))
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        for replica in range(3):
            torch.testing.assert_close(
                result.module(replica, at=at)(data[0]),
                result.predict(data[0], at=at)[replica],
            )
    losses = (result.predict(held_out[0]) - held_out[1]).square().mean((1, 2))
    np.testing.assert_allclose(
        losses, result.evaluations["shifted_loss"][:, -1], rtol=1e-5
    )
    assert result.stop_reason == ("budget",) * 3
    assert not result.converged.any()


def test_steps_to_is_infinite_where_the_threshold_is_never_met(data):
    result = fit(small, data, seeds=range(2), steps=30, optimizer=Adam([0.05, 0.0]))
    threshold = result.train_loss[0, 20]
    first = np.flatnonzero(result.train_loss[0] <= threshold)[0]
    assert result.steps_to(threshold).tolist() == [first, np.inf]


def test_dropout_and_batch_norm_train_with_the_sequential_engine(data):
    def build():
        return nn.Sequential(
            nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 1)
        )

    notes = []
    result = fit(
        build, data, seeds=range(3), steps=20, batch_size=5, on_note=notes.append
    )
    assert result.engine == "sequential"
    assert "buffers" in notes[0]
    losses = (result.predict(data[0]) - data[1]).square().mean((1, 2))
    np.testing.assert_allclose(losses, result.final, rtol=1e-5)
    alone = fit(build, data, seeds=[1], steps=20, batch_size=5)
    np.testing.assert_array_equal(alone.train_loss[0], result.train_loss[1])


class Recorder(Probe):
    def __init__(self, every=1):
        self.every, self.calls = every, []

    def on_train_begin(self, context):
        self.calls.append(("begin", context.step))

    def on_step_end(self, context):
        self.calls.append(("step", context.step))
        assert context.losses.shape == (len(context.seeds), context.step)
        assert np.isfinite(context.losses).all()

    def on_epoch_end(self, context):
        self.calls.append(("epoch", context.epoch))

    def on_train_end(self, context):
        self.calls.append(("end", context.step))


def test_probes_are_called_at_their_steps_and_change_nothing(data):
    probe = Recorder(every=4)
    watched = fit(small, data, seeds=range(3), steps=9, batch_size=4, probes=[probe])
    assert probe.calls == [
        ("begin", 0),
        ("epoch", 1),
        ("step", 4),
        ("epoch", 2),
        ("step", 8),
        ("epoch", 3),
        ("end", 9),
    ]
    unwatched = fit(small, data, seeds=range(3), steps=9, batch_size=4, eval_every=5)
    np.testing.assert_array_equal(watched.train_loss, unwatched.train_loss)


def test_a_probe_cannot_write_into_the_losses(data):
    class Careless(Probe):
        def on_step_end(self, context):
            context.losses[:] = 0

    with pytest.raises(ValueError, match="read-only"):
        fit(small, data, seeds=[0], steps=3, probes=[Careless()])


def test_a_probe_may_end_one_replica(data):
    class Ender(Probe):
        def on_step_end(self, context):
            if context.step == 7:
                context.stop(1)

    result = fit(small, data, seeds=range(3), steps=20, probes=[Ender()])
    free = fit(small, data, seeds=range(3), steps=20)
    assert result.stop_reason == ("budget", "probe", "budget")
    assert result.steps_taken.tolist() == [20, 7, 20]
    assert np.isnan(result.train_loss[1, 7:]).all()
    np.testing.assert_array_equal(result.train_loss[[0, 2]], free.train_loss[[0, 2]])
    np.testing.assert_allclose(result.final[1], free.train_loss[1, 7], rtol=1e-6)


def test_threshold_ends_each_replica_at_its_own_evaluation(data):
    free = fit(
        small, data, seeds=range(4), steps=60, eval_every=5, optimizer=Adam(0.02)
    )
    curve = free.evaluations["train_loss"]
    value = float(np.median(curve[:, 6]))
    result = fit(
        small,
        data,
        seeds=range(4),
        steps=60,
        eval_every=5,
        optimizer=Adam(0.02),
        stop=[Threshold(value)],
    )
    below = curve <= value
    expected = np.where(below.any(1), free.evaluation_steps[below.argmax(1)], 60)
    assert len(set(expected)) > 1, "the case must tell replicas apart"
    np.testing.assert_array_equal(result.steps_taken, expected)
    for replica, step in enumerate(expected):
        assert result.stop_reason[replica] == (
            "threshold" if below[replica].any() else "budget"
        )
        np.testing.assert_array_equal(
            result.train_loss[replica, :step], free.train_loss[replica, :step]
        )
        assert np.isnan(result.train_loss[replica, step:]).all()


@pytest.mark.parametrize("restore_best", [True, False])
def test_early_stopping_restores_the_best_held_out_weights(data, restore_best):
    far = (data[0][:4] * 3, -data[1][:4])
    rule = EarlyStopping("far_loss", patience=3, restore_best=restore_best)
    options = {
        "seeds": range(3),
        "steps": 200,
        "eval_every": 2,
        "optimizer": Adam(0.05),
        "held_out": {"far": far},
    }
    result = fit(small, data, stop=[rule], **options)
    assert "early stopping" in result.stop_reason
    outputs = result.predict(far[0])
    for replica in range(3):
        curve = result.evaluations["far_loss"][replica]
        known = curve[np.isfinite(curve)]
        expected = known.min() if restore_best else known[-1]
        assert (outputs[replica] - far[1]).square().mean().item() == pytest.approx(
            expected, rel=1e-4
        )
        row = known.argmin() if restore_best else len(known) - 1
        assert result.final[replica] == result.evaluations["train_loss"][replica, row]


def test_a_convergence_rule_flags_and_does_not_stop(data):
    options = {
        "seeds": range(2),
        "steps": 100,
        "eval_every": 10,
        "optimizer": Adam([0.0, 0.05]),
    }
    flagged = fit(small, data, converged=Plateau(50), **options)
    assert flagged.converged.tolist() == [True, False]
    assert flagged.steps_taken.tolist() == [100, 100]
    stopped = fit(small, data, converged=Plateau(50), stop=[Plateau(50)], **options)
    assert stopped.converged.tolist() == [True, False]
    assert stopped.stop_reason == ("plateau", "budget")
    assert stopped.steps_taken.tolist() == [50, 100]


@pytest.mark.parametrize("replicas", ["auto", "batched", "sequential"])
def test_divergence_ends_one_replica_with_its_step_and_spares_the_rest(data, replicas):
    options = {"seeds": range(3), "steps": 40, "replicas": replicas, "eval_every": 7}
    wild = fit(small, data, optimizer=SGD([0.1, 1e25, 0.1]), **options)
    calm = fit(small, data, optimizer=SGD([0.1, 0.1, 0.1]), **options)
    assert wild.stop_reason == ("budget", "diverged", "budget")
    step = wild.steps_taken[1]
    assert 0 < step < 10
    assert np.isfinite(wild.train_loss[1, :step]).all()
    assert not np.isfinite(wild.train_loss[1, step:]).any()
    assert np.isnan(wild.final[1])
    assert not wild.converged[1]
    for field in ("train_loss", "final", "best"):
        np.testing.assert_array_equal(
            getattr(wild, field)[[0, 2]], getattr(calm, field)[[0, 2]]
        )


def test_when_all_replicas_ended_training_ends(data):
    result = fit(small, data, seeds=range(3), steps=10**6, optimizer=SGD(1e25))
    assert result.stop_reason == ("diverged",) * 3
    assert result.steps_taken.max() < 10


def test_per_replica_targets(data):
    labels = torch.stack([data[1], -data[1], 2 * data[1]])
    together = fit(
        small, (data[0], labels), seeds=[3, 4, 5], steps=20, per_replica_targets=True
    )
    for replica, seed in enumerate([3, 4, 5]):
        alone = fit(small, (data[0], labels[replica]), seeds=[seed], steps=20)
        np.testing.assert_allclose(
            together.train_loss[replica], alone.train_loss[0], rtol=1e-4
        )


def test_progress_is_reported_and_ends_at_the_budget(data):
    reports = []
    result = fit(small, data, seeds=range(3), steps=50, on_progress=reports.append)
    assert reports[-1].step == reports[-1].steps == 50
    assert reports[-1].train_loss == np.median(result.train_loss[:, -1])
    assert all(report.replica_steps_per_second > 0 for report in reports)


def test_a_request_to_stop_is_met(data):
    with pytest.raises(
        Interrupted, match=r"Stopped at step \d+ of 100; there is no checkpoint"
    ):
        fit(small, data, seeds=[0], steps=100, should_stop=lambda: True)


def test_numpy_arrays_are_welcome(data):
    arrays = tuple(part.numpy() for part in data)
    np.testing.assert_array_equal(
        fit(small, arrays, seeds=[0], steps=5).train_loss,
        fit(small, data, seeds=[0], steps=5).train_loss,
    )


def test_the_global_generator_is_left_alone(data):
    before = torch.get_rng_state()
    fit(small, data, seeds=range(3), steps=5, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_every": -1}, "eval_every must be at least 1"),
        ({"seeds": []}, "seeds is empty"),
        ({"replicas": "bached"}, "Did you mean 'batched'"),
        ({"device": "cdua"}, "Did you mean 'cuda'"),
        ({"loss": "msee"}, "Did you mean 'mse'"),
        ({"optimizer": Adam([0.1, 0.2])}, "learning_rate has 2 values for 3 replicas"),
        (
            {"stop": [EarlyStopping("val_loss")], "held_out": {}},
            "no evaluated metric 'val_loss'",
        ),
        ({"per_replica_targets": True}, "one set per seed: 3 sets, got 12"),
        ({"schedule": training.Cosine(warmup_steps=9)}, "does not fit into 5 steps"),
    ],
)
def test_wrong_options_are_refused_before_any_work(data, options, message):
    def build():
        raise AssertionError("the network must not be built")

    with pytest.raises(UsageError, match=message):
        fit(build, data, **({"seeds": range(3), "steps": 5} | options))


def test_data_that_do_not_fit_are_refused(data):
    with pytest.raises(UsageError, match="12 and 5"):
        fit(small, (data[0], data[1][:5]), seeds=[0], steps=1)
    with pytest.raises(UsageError, match=r"float64.*weights torch.float32"):
        fit(small, (data[0].double(), data[1]), seeds=[0], steps=1)
    with pytest.raises(
        UsageError, match=r"outputs of shape \(N, 1\).* \(N,\).*Give y one more axis"
    ):
        fit(small, (data[0], data[1][:, 0]), seeds=[0], steps=1, replicas="sequential")
    with pytest.raises(UsageError, match="no parameters"):
        fit(nn.Tanh, data, seeds=[0], steps=1)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="tells what happens without a GPU"
)
def test_a_missing_device_is_named(data):
    with pytest.raises(
        UsageError, match=r"'cuda' is not available here\. Choices: cpu"
    ):
        fit(small, data, seeds=[0], steps=1, device="cuda")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-0.1), "learning_rate must not be negative, got -0.1"),
        (lambda: Adam(betas=(0.9, [0.9, -1.0])), r"betas\[1\] must not be negative"),
        (lambda: SGD(nesterov=True), "needs a momentum above 0"),
        (lambda: Adam(float("nan")), "must not be negative, got nan"),
    ],
)
def test_wrong_optimizers_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_specifications_compare_and_hash():
    assert Adam([0.1, 0.2]) == Adam((0.1, 0.2)) == Adam(np.array([0.1, 0.2]))
    assert len({Adam([0.1, 0.2]), Adam(torch.tensor([0.5, 0.25])), Constant()}) == 3


def test_measured_speed(data):
    recipe = training.Recipe(steps=5, batch_size=4, eval_every=3, stop=[Threshold(0.1)])
    learner = training.Supervised(small)
    speed = training.measure_speed(
        learner, data, recipe, seeds=range(3), minimum_seconds=0.02
    )
    assert 0 < speed.seconds_per_step < 0.02
    assert speed.setup_seconds > 0
    assert speed.engine == fit(small, data, seeds=range(3), steps=5).engine


class Slow(nn.Module):
    """Counts how often it is asked."""

    asked = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        type(self).asked += 1
        return self.layer(x)


@pytest.mark.parametrize(("steps", "most"), [(40, 8), (1_000, 130)])
def test_a_twentieth_of_the_steps_tells_the_speed(monkeypatch, steps, most):
    monkeypatch.setattr(Slow, "asked", 0)
    recipe = training.Recipe(steps=steps, eval_every=steps)
    data = torch.zeros(4, 1), torch.zeros(4, 1)
    training.measure_speed(
        training.Supervised(Slow),
        data,
        recipe,
        seeds=[0],
        replicas="sequential",
        minimum_seconds=1e9,
    )
    evaluations = 2 * 3  # the first one warms up; of training and of nothing else
    assert steps / 20 <= Slow.asked <= most + evaluations


def test_importing_the_package_does_not_import_pytorch():
    import subprocess
    import sys

    code = "import sys, nablab.training; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"
