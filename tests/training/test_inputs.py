"""From stored samples to inputs: every engine prepares alike, augments repeatably, and
scores right.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nablab import data, training
from nablab.errors import Interrupted, UsageError
from nablab.training.engine import accuracy
from nablab.training.inputs import make_inputs, multiplies_bfloat16_fast

SAMPLES, CLASSES = 96, 3


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (SAMPLES, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return x, torch.randint(CLASSES, (SAMPLES,), generator=generator)


NORMALIZE = data.Normalize((0.5,), (0.25,))


def dense():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, CLASSES)
    )


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, CLASSES),
    )


def fit(pair, build=dense, **options):
    settings = {
        "steps": 12,
        "batch_size": 20,
        "loss": "cross_entropy",
        "seeds": [1, 2, 3],
        **options,
    }
    return training.fit(build, pair, **settings)


@pytest.mark.parametrize("replicas", ["batched", "sequential"])
@pytest.mark.parametrize("build", [dense, convolutional])
@pytest.mark.parametrize("batch_size", [20, None])
def test_preparing_batches_equals_preparing_all_before(
    images, replicas, build, batch_size
):
    x, y = images
    options = {
        "replicas": replicas,
        "batch_size": batch_size,
        "held_out": {"test": images},
    }
    stored = fit((x, y), build, prepare=NORMALIZE, **options)
    options["held_out"] = {"test": (NORMALIZE(x), y)}
    prepared = fit((NORMALIZE(x), y), build, **options)
    np.testing.assert_allclose(stored.train_loss, prepared.train_loss, rtol=1e-6)
    for name, curve in prepared.evaluations.items():
        np.testing.assert_allclose(
            stored.evaluations[name], curve, rtol=1e-6, err_msg=name
        )
    assert torch.allclose(stored.predict(x), prepared.predict(NORMALIZE(x)))


def test_accuracies_are_those_of_the_predictions(images):
    x, y = images
    result = fit(
        (x[:64], y[:64]), prepare=NORMALIZE, held_out={"test": (x[64:], y[64:])}
    )
    for name, part in {"train": slice(64), "test": slice(64, None)}.items():
        right = (result.predict(x[part]).argmax(2) == y[part]).double().mean(1)
        np.testing.assert_allclose(
            result.evaluations[f"{name}_accuracy"][:, -1], right, rtol=1e-6
        )


def test_labels_of_minus_100_are_not_counted():
    output = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 0.0]])
    assert accuracy(output, torch.tensor([0, 0, -100, -100])).item() == 0.5


def test_an_accuracy_reaches_a_threshold_that_it_equals():
    labels = torch.zeros(500, dtype=torch.int64)
    output = nn.functional.one_hot((torch.arange(500) >= 475).long(), 2).float()
    assert accuracy(output, labels).item() == 0.95


@pytest.mark.parametrize("replicas", ["batched", "sequential"])
def test_held_out_sets_may_have_labels_of_their_own_per_replica(images, replicas):
    x, y = images
    own = torch.stack([(y + k) % CLASSES for k in range(3)])
    counted = torch.where(torch.arange(SAMPLES) % 2 == 0, own, -100)
    result = fit(
        (x, own),
        per_replica_targets=True,
        prepare=NORMALIZE,
        replicas=replicas,
        held_out={"even": (x, training.PerReplicaTargets(counted)), "true": (x, y)},
    )
    predicted = result.predict(x).argmax(2)
    even = (predicted == own)[:, ::2].double().mean(1)
    np.testing.assert_allclose(
        result.evaluations["even_accuracy"][:, -1], even, rtol=1e-6
    )
    true = (predicted == y).double().mean(1)
    np.testing.assert_allclose(
        result.evaluations["true_accuracy"][:, -1], true, rtol=1e-6
    )


def test_per_replica_targets_of_a_held_out_set_are_one_set_per_replica(images):
    x, y = images
    with pytest.raises(UsageError, match="one set per seed: 3 sets, got 96"):
        fit(
            (x, y),
            prepare=NORMALIZE,
            held_out={"own": (x, training.PerReplicaTargets(y))},
        )


def test_evaluations_may_use_the_first_training_samples_only(images):
    x, y = images
    result = fit((x, y), prepare=NORMALIZE, train_samples=30)
    right = (result.predict(x[:30]).argmax(2) == y[:30]).double().mean(1)
    np.testing.assert_allclose(
        result.evaluations["train_accuracy"][:, -1], right, rtol=1e-6
    )


def test_augmentation_changes_training_alone_and_repeats(images):
    shift = data.Augment(shift=2, flip=True)
    plain = fit(images, convolutional, prepare=NORMALIZE, steps=6)
    first, again = (
        fit(images, convolutional, prepare=NORMALIZE, augment=shift, steps=6)
        for _ in range(2)
    )
    assert first.engine == "sequential"
    np.testing.assert_array_equal(first.train_loss, again.train_loss)
    assert not np.allclose(first.train_loss[:, 0], plain.train_loss[:, 0])
    # Before the first step the weights are equal, and evaluations see the samples as
    # they are.
    np.testing.assert_allclose(
        first.evaluations["train_loss"][:, 0],
        plain.evaluations["train_loss"][:, 0],
        rtol=1e-6,
    )


def test_a_replica_augments_the_same_whoever_trains_beside_it(images):
    options = {
        "prepare": NORMALIZE,
        "augment": data.Augment(shift=1),
        "replicas": "sequential",
    }
    three, one = fit(images, **options), fit(images, seeds=[2], **options)
    np.testing.assert_array_equal(three.train_loss[1], one.train_loss[0])


def test_an_interrupted_training_with_augmentation_ends_alike(images, tmp_path):
    options = {
        "prepare": NORMALIZE,
        "augment": data.Augment(shift=1),
        "replicas": "sequential",
        "steps": 40,
        "eval_every": 5,
    }
    whole = fit(images, **options)
    asked = iter([False, False, True])
    checkpoint = training.Checkpoint(tmp_path / "c.pt")
    with pytest.raises(Interrupted):
        fit(images, checkpoint=checkpoint, should_stop=lambda: next(asked), **options)
    resumed = fit(images, checkpoint=checkpoint, **options)
    np.testing.assert_array_equal(whole.train_loss, resumed.train_loss)
    np.testing.assert_array_equal(
        whole.evaluations["train_accuracy"], resumed.evaluations["train_accuracy"]
    )


@pytest.mark.parametrize("replicas", ["batched", "sequential"])
@pytest.mark.parametrize("build", [dense, convolutional])
def test_bfloat16_stays_near_float32(images, replicas, build):
    options = {"prepare": NORMALIZE, "replicas": replicas}
    wide, narrow = (
        fit(images, build, precision=p, **options) for p in ("float32", "bfloat16")
    )
    # Products have 8 significant bits; a loss of about 1.1 may be off by some
    # thousandths.
    np.testing.assert_allclose(narrow.train_loss, wide.train_loss, atol=0.03)
    assert not np.array_equal(narrow.train_loss, wide.train_loss)
    assert all(tensor.dtype == torch.float32 for tensor in narrow.parameters().values())


def test_precision_auto_asks_the_hardware():
    cpu = torch.device("cpu")
    assert make_inputs(None, None, "auto", cpu).bfloat16 == multiplies_bfloat16_fast(
        cpu
    )
    assert not make_inputs(None, None, "float32", cpu).bfloat16
    with pytest.raises(UsageError, match="Did you mean 'bfloat16'"):
        make_inputs(None, None, "bfloat", cpu)


def test_convolutions_agree_with_plain_pytorch(images):
    x, y = images
    [module] = training.build_replicas(convolutional, [5])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module((x.float() / 255 - 0.5) / 0.25), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    result = fit(
        images,
        convolutional,
        prepare=NORMALIZE,
        seeds=[5],
        steps=4,
        batch_size=None,
        optimizer=training.SGD(learning_rate=0.1),
        replicas="sequential",
    )
    np.testing.assert_allclose(result.train_loss[0], losses, rtol=1e-5)
