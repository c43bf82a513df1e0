"""One battery over learners of every kind, on the engines that serve them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nablab.errors import Interrupted, UsageError
from nablab.training import (
    SGD,
    Accuracy,
    Adam,
    Arrays,
    Bucketed,
    Checkpoint,
    Cosine,
    EarlyStopping,
    Learner,
    Minimize,
    Moment,
    PerReplicaTargets,
    PerTrial,
    Recipe,
    State,
    Subset,
    Supervised,
    Threshold,
    Training,
    fit,
    train,
)
from tests.learners import _gan as gan
from tests.learners import _recurrent as recurrent
from tests.learners import _vae as vae

Case = tuple[Learner, Any, Recipe]


def of_gan(trials: int) -> Case:
    recipe = Recipe(
        steps=12,
        batch_size=32,
        optimizer=Adam(learning_rate=2e-3),
        schedule=Cosine(),
        train_samples=0,
        held_out={"test": {"x": gan.ring(100, 1)}},
        metrics={"modes": gan.Modes()},
        best="test_modes",
        eval_every=4,
    )
    return gan.RingGan(), {"x": gan.ring(300, 0)}, recipe


def of_vae(trials: int, learner: Callable[[], Learner] = vae.learner) -> Case:
    recipe = Recipe(
        epochs=3,
        batch_size=40,
        optimizer=Adam(learning_rate=3e-3),
        schedule=Cosine(),
        hyper={"beta": [0.5 + k for k in range(trials)]},
        held_out={"test": vae.digits(50)},
        eval_every=4,
    )
    return learner(), vae.digits(180), recipe


def of_dropout(trials: int) -> Case:
    return of_vae(trials, vae.with_dropout)


def of_recurrent(trials: int) -> Case:
    data = recurrent.sequences(90, 0)
    recipe = Recipe(
        epochs=2,
        sampler=Bucketed(data.lengths, 8, batches_per_pool=3),
        optimizer=SGD(learning_rate=0.1, momentum=0.9),
        held_out={"test": recurrent.sequences(40, 1)},
        metrics={"accuracy": Accuracy()},
        eval_every=5,
    )
    return recurrent.learner(), data, recipe


CASES: dict[str, tuple[Callable[[int], Case], str]] = {
    "GAN": (of_gan, "sequential"),
    "VAE": (of_vae, "sequential"),
    "VAE, batched": (of_vae, "batched"),
    "VAE with dropout": (of_dropout, "sequential"),
    "recurrent": (of_recurrent, "sequential"),
}
SEEDS = [11, 12, 13]
every_case = pytest.mark.parametrize("name", CASES)


def run(name: str, seeds: list[int] = SEEDS, **options: Any) -> Training:
    make, replicas = CASES[name]
    learner, data, recipe = make(len(seeds))
    changed = {
        field: options.pop(field) for field in list(options) if hasattr(recipe, field)
    }
    recipe = dataclasses.replace(recipe, **changed)
    return train(learner, data, recipe, seeds=seeds, replicas=replicas, **options)


def contents(result: Training) -> dict[str, bytes]:
    """All that a training left, as bytes."""
    arrays = {
        "loss": result.train_loss,
        **result.measures,
        **result.evaluations,
        "final": result.final,
    }
    found = {name: array.tobytes() for name, array in arrays.items()}
    for at in ("final", "best"):
        tensors = result.parameters(at=at).items()
        found |= {f"{at} {name}": tensor.numpy().tobytes() for name, tensor in tensors}
    return found | {
        "ended": repr(
            (result.stop_reason, result.steps_taken, result.best_step)
        ).encode()
    }


@every_case
def test_the_same_bytes_come_out_twice_and_no_generator_is_moved(name: str) -> None:
    state = torch.get_rng_state()
    assert contents(run(name)) == contents(run(name))
    assert torch.equal(torch.get_rng_state(), state)


@every_case
@pytest.mark.parametrize("calls", [1, 3])
def test_interrupted_and_resumed_it_ends_with_the_same_bytes(
    name: str, calls: int, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tmp_path / "state.safetensors")
    left = iter(range(calls - 1, -1, -1))
    with pytest.raises(Interrupted):
        run(name, checkpoint=checkpoint, should_stop=lambda: next(left, 1) == 0)
    notes: list[str] = []
    resumed = run(name, checkpoint=checkpoint, on_note=notes.append)
    assert any("goes on from step" in note for note in notes)
    assert contents(resumed) == contents(run(name))


@every_case
def test_a_checkpoint_of_other_numbers_is_not_used(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.safetensors")
    with pytest.raises(Interrupted):
        run(name, checkpoint=checkpoint, should_stop=lambda: True)
    notes: list[str] = []
    changed = run(
        name,
        checkpoint=checkpoint,
        on_note=notes.append,
        optimizer=Adam(learning_rate=1e-4),
    )
    assert any("these differ: optimizer" in note for note in notes)
    assert contents(changed) == contents(run(name, optimizer=Adam(learning_rate=1e-4)))


@every_case
def test_a_trial_does_not_depend_on_who_shares_its_run(name: str) -> None:
    together, alone = (
        run(name),
        run(name, seeds=[12], **({"hyper": {"beta": 1.5}} if "VAE" in name else {})),
    )
    exact = "batched" not in name
    for curve, values in together.evaluations.items():
        mine, other = values[1], alone.evaluations[curve][0]
        assert (
            np.array_equal(mine, other)
            if exact
            else np.allclose(mine, other, rtol=1e-5)
        )
    for key, tensor in together.parameters().items():
        assert torch.allclose(
            tensor[1], alone.parameters()[key][0], rtol=0, atol=0 if exact else 1e-5
        )


@every_case
def test_a_value_that_is_not_finite_ends_one_trial_only(name: str) -> None:
    rates = [1e-3, math.inf, 1e-3]
    found = run(name, optimizer=SGD(learning_rate=rates))
    usual = run(name, optimizer=SGD(learning_rate=[1e-3] * 3))
    assert [outcome.stop_reason for outcome in found] == [
        "budget",
        "diverged",
        "budget",
    ]
    assert found[1].steps_taken < usual[1].steps_taken
    for k in (0, 2):
        for curve, values in usual.evaluations.items():
            assert np.allclose(values[k], found.evaluations[curve][k], rtol=1e-5)


@every_case
def test_outcomes_are_what_the_stacked_arrays_say(name: str) -> None:
    result = run(name)
    assert len(result) == len(SEEDS)
    for k, outcome in enumerate(result):
        assert outcome.steps[0] == 0
        assert outcome.last() == {
            curve: values[k, -1] for curve, values in result.evaluations.items()
        }
        assert (
            len(next(iter(outcome.measures.values())))
            == outcome.steps_taken
            == result.train_loss.shape[1]
        )
        module = outcome.module()
        assert not module.training
        for key, parameter in module.named_parameters():
            assert torch.equal(parameter, result.parameters()[key][k])


def test_batched_trials_agree_with_one_after_the_other() -> None:
    learner, data, recipe = of_vae(4)
    recipe = dataclasses.replace(
        recipe, optimizer=Adam(learning_rate=[1e-3, 3e-3, 1e-2, 3e-3])
    )
    clipped = dataclasses.replace(learner, clip_norm=5.0)  # type: ignore[type-var]
    for kind in (learner, clipped):
        ways = [
            train(kind, data, recipe, seeds=range(4), replicas=way)
            for way in ("batched", "sequential")
        ]
        assert [way.engine for way in ways] == ["batched", "sequential"]
        for curve, values in ways[0].evaluations.items():
            assert np.allclose(values, ways[1].evaluations[curve], rtol=2e-5), curve
        for measure, steps in ways[0].measures.items():
            assert np.allclose(steps, ways[1].measures[measure], rtol=2e-5), measure
    assert not np.allclose(
        train(learner, data, recipe, seeds=range(4)).train_loss,
        train(clipped, data, recipe, seeds=range(4)).train_loss,
    )


def test_supervised_by_minimize_agrees_with_fit() -> None:
    """The same networks, batches and steps as the engines for output and target."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=draw), torch.randint(3, (30,), generator=draw)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def loss(net: nn.Module, batch: Any, moment: Moment) -> Mapping[str, torch.Tensor]:
        return {"loss": cross_entropy(net(batch["x"]), batch["y"])}

    options: dict[str, Any] = {
        "batch_size": 7,
        "optimizer": Adam(learning_rate=1e-2),
        "eval_every": 10,
    }
    ours = train(
        Minimize(build, loss),
        {"x": x, "y": y},
        Recipe(steps=40, **options),
        seeds=[5],
        replicas="sequential",
    )
    theirs = fit(
        build,
        (x, y),
        seeds=[5],
        steps=40,
        loss="cross_entropy",
        replicas="sequential",
        **options,
    )
    assert np.allclose(ours.train_loss, theirs.train_loss, rtol=1e-6)
    assert np.allclose(
        ours.evaluations["train_loss"], theirs.evaluations["train_loss"], rtol=1e-6
    )


def test_the_gan_finds_most_modes() -> None:
    learner, data, recipe = of_gan(1)
    found = train(
        learner, data, dataclasses.replace(recipe, steps=500, eval_every=50), seeds=[3]
    )
    assert found[0].best >= 6
    assert found[0].curves["test_modes"][0] <= 2


def test_rules_and_best_know_that_a_higher_accuracy_is_better() -> None:
    learner, data, recipe = of_recurrent(2)
    longer: dict[str, Any] = {
        "epochs": 30,
        "optimizer": Adam(learning_rate=1e-2),
        "best": "test_accuracy",
    }
    reached = Threshold(0.9, metric="test_accuracy", above=True)
    result = train(
        learner,
        data,
        dataclasses.replace(recipe, **longer, stop=[reached]),
        seeds=[1, 2],
    )
    for outcome in result:
        assert outcome.stop_reason == "threshold"
        assert outcome.best == max(outcome.curves["test_accuracy"]) >= 0.9
        assert outcome.last()["test_accuracy"] == outcome.best
    patient = EarlyStopping("test_accuracy", patience=4)
    result = train(
        learner,
        data,
        dataclasses.replace(recipe, **longer, stop=[patient]),
        seeds=[1, 2],
    )
    for outcome in result:
        curve = outcome.curves["test_accuracy"]
        best = int(curve.argmax())
        assert outcome.stop_reason == "early stopping"
        assert len(curve) - 1 - best == 4
        assert outcome.best_step == outcome.steps[best]


def test_a_loss_per_token_is_a_mean_over_tokens() -> None:
    class Counting(Learner):
        def start(self, optimizer: Any) -> State:
            net = nn.Linear(1, 1)
            return State(net, {"": optimizer(net.parameters())})

        def step(
            self, state: State, batches: tuple[Any, ...], moment: Moment
        ) -> Mapping[str, torch.Tensor]:
            return {"loss": state.net.weight.sum().detach()}  # type: ignore[union-attr, operator]

        def evaluate(self, state: State, batch: Any, moment: Moment) -> Any:
            x = batch["x"]
            return {
                "per_sample": x.mean(),
                "per_token": ((x * batch["n"]).sum(), batch["n"].sum()),
            }

    x, n = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 1.0, 8.0])
    found = train(
        Counting(), {"x": x, "n": n}, Recipe(steps=1, batch_size=2), seeds=[0]
    )[0].last()
    assert found["train_per_sample"] == pytest.approx(3.0)
    assert found["train_per_token"] == pytest.approx((1 + 2 + 48) / 10)


def test_each_trial_may_have_its_own_evaluated_set() -> None:
    learner, data, recipe = of_vae(2)
    parts = [Subset(data, torch.arange(20)), Subset(data, torch.arange(20, 60))]
    both = {"own": PerTrial(tuple(parts)), "first": parts[0], "second": parts[1]}
    plain = dataclasses.replace(recipe, held_out=both)
    found = train(learner, data, plain, seeds=[1, 2], replicas="sequential")
    # What an evaluation draws depends on its name, so only means without noise can
    # agree.
    learner, data, recipe = of_recurrent(2)
    parts = [Subset(data, torch.arange(20)), Subset(data, torch.arange(20, 60))]
    both = {"own": PerTrial(tuple(parts)), "first": parts[0], "second": parts[1]}
    found = train(
        learner, data, dataclasses.replace(recipe, held_out=both), seeds=[1, 2]
    )
    assert np.array_equal(
        found.evaluations["own_loss"][0], found.evaluations["first_loss"][0]
    )
    assert np.array_equal(
        found.evaluations["own_loss"][1], found.evaluations["second_loss"][1]
    )


def draws_itself(net: Any, batch: Any, moment: Moment) -> Mapping[str, torch.Tensor]:
    noise = torch.randn(batch["x"].shape, generator=moment.generator)
    return {"loss": (net(batch["x"] + noise) - batch["x"]).square().mean()}


@pytest.mark.parametrize(
    ("learner", "why"),
    [
        (gan.RingGan(), "RingGan takes its own steps"),
        (Minimize(vae.Vae, draws_itself), "the loss draws from moment.generator"),
        (vae.with_dropout(), "the network has dropout"),
    ],
)
def test_what_cannot_be_batched_says_why_and_trains_one_by_one(
    learner: Learner, why: str
) -> None:
    notes: list[str] = []
    recipe = Recipe(steps=2, batch_size=8, hyper={"beta": 1.0}, train_samples=0)
    width = 2 if isinstance(learner, gan.RingGan) else 64
    data = {"x": torch.rand(20, width)}
    result = train(learner, data, recipe, seeds=[1, 2, 3], on_note=notes.append)
    assert result.engine == "sequential"
    assert any(why in note for note in notes), notes
    with pytest.raises(UsageError, match=why.split()[0]):
        train(learner, data, recipe, seeds=[1, 2, 3], replicas="batched")


def no_mapping(net: Any, batch: Any, moment: Moment) -> Any:
    return net(batch["x"]).mean()


def no_scalar(net: Any, batch: Any, moment: Moment) -> Any:
    return {"loss": net(batch["x"]).mean(dim=1)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": None}, "either steps or epochs"),
        ({"epochs": 2}, "either steps or epochs"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"train_samples": -1}, "train_samples must be at least 0"),
        ({"prepare": nn.Identity()}, "prepare of the recipe is not for a learner"),
        ({"hyper": {"beta": [1.0]}}, "hyper 'beta' has 1 values for 2 trials"),
        (
            {"held_out": {"test": PerTrial(())}},
            "held_out 'test' has 0 sets for 2 trials",
        ),
        ({"held_out": {"test": torch.ones(3)}}, "A learner's data are a data set"),
        (
            {"metrics": {"accuracy": Accuracy()}, "best": "train_acuracy"},
            "Did you mean 'train_accuracy'",
        ),
        ({"stop": [EarlyStopping("test_loss")]}, "no evaluated metric 'test_loss'"),
        (
            {"sampler": Bucketed(torch.ones(9), 3), "batch_size": 3},
            "The sampler has its own|sampler or",
        ),
    ],
)
def test_recipes_that_cannot_work_are_refused(
    change: dict[str, Any], text: str
) -> None:
    data = {"x": torch.rand(9, 64), "y": torch.zeros(9, dtype=torch.int64)}
    learner = Minimize(
        vae.Vae, lambda net, batch, moment: {"loss": net(batch["x"]).mean()}
    )
    with pytest.raises(UsageError, match=text):
        train(learner, data, Recipe(**{"steps": 2, **change}), seeds=[1, 2])


@pytest.mark.parametrize(
    ("learner", "text"),
    [
        (Minimize(vae.Vae, no_mapping), "must give scalars by name"),
        (Minimize(vae.Vae, no_scalar), "must give scalars; these have axes"),
        (Minimize(lambda: vae.Vae().requires_grad_(False), draws_itself), "grad"),
    ],
)
def test_losses_that_cannot_work_are_refused(learner: Learner, text: str) -> None:
    with pytest.raises((UsageError, RuntimeError), match=text):
        train(learner, {"x": torch.rand(9, 64)}, Recipe(steps=1), seeds=[1])


def test_options_for_learners_are_refused_for_supervised_and_the_other_way_round() -> (
    None
):
    x = torch.rand(9, 2)
    with pytest.raises(UsageError, match="hyper of the recipe is not for Supervised"):
        train(
            Supervised(lambda: nn.Linear(2, 2)),
            (x, x),
            Recipe(steps=1, hyper={"a": 1.0}),
            seeds=[1],
        )
    with pytest.raises(UsageError, match="same number of samples"):
        Arrays(x=x, y=x[:3])
    labels = PerReplicaTargets(x)
    with pytest.raises(UsageError, match="A learner's data are a data set"):
        train(gan.RingGan(), (x, labels), Recipe(steps=1), seeds=[1])


def test_a_metric_of_a_learner_without_outputs_is_refused() -> None:
    class Silent(Learner):
        def start(self, optimizer: Any) -> State:
            return State(nn.Linear(1, 1))

        def step(
            self, state: State, batches: tuple[Any, ...], moment: Moment
        ) -> Mapping[str, torch.Tensor]:
            return {"loss": torch.tensor(math.pi)}

    recipe = Recipe(steps=1, metrics={"accuracy": Accuracy()})
    with pytest.raises(UsageError, match="Silent does not define its outputs"):
        train(Silent(), {"x": torch.rand(4, 1)}, recipe, seeds=[1])


def test_a_training_without_evaluations_has_outcomes_without_curves() -> None:
    recipe = Recipe(steps=3, batch_size=8, train_samples=0)
    (outcome,) = train(gan.RingGan(), {"x": gan.ring(20, 0)}, recipe, seeds=[1])
    assert outcome.last() == outcome.at(epoch=1) == dict(outcome.curves) == {}
    assert outcome.steps_taken == len(outcome.measures["critic"]) == 3
    assert math.isnan(outcome.final)


def changes_its_mind(
    net: Any, batch: Any, moment: Moment
) -> Mapping[str, torch.Tensor]:
    """Uniform noise first, then normal noise of the same shape."""
    draw = moment.uniform if moment.step == 0 else moment.normal
    return {
        "loss": (net(batch["x"] + draw(*batch["x"].shape)) - batch["x"]).square().mean()
    }


def test_a_loss_that_draws_otherwise_later_gets_no_early_draws() -> None:
    learner, data = Minimize(vae.Vae, changes_its_mind), {"x": torch.rand(20, 64)}
    recipe = Recipe(steps=3, train_samples=0)
    with pytest.raises(UsageError, match="other random numbers at this step"):
        train(learner, data, recipe, seeds=[1, 2, 3], replicas="batched")
    train(learner, data, recipe, seeds=[1, 2, 3], replicas="sequential")
