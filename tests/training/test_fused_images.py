"""The compiled engine for images against plain PyTorch, and the contract of engines."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nablab import data, models
from nablab.errors import UsageError
from nablab.training import SGD, Adam, AdamW, RMSprop, Unsupported, build_replicas, fit
from nablab.training.fused.images import FusedImageEngine
from nablab.training.inputs import Inputs

SAMPLES, CLASSES = 75, 4
STEPS = 12
RATES = 1 / (1 + np.arange(STEPS) / 6)
NORMALIZE = data.Normalize((0.4, 0.5), (0.25, 0.3))


def convolutional():
    """Every layer there is: padded and not, of three kernels, poolings that leave
    pixels over.
    """
    return nn.Sequential(
        nn.Conv2d(2, 7, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(7, 5, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(5, 9, 2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 21),
        nn.ReLU(),
        nn.Linear(21, CLASSES, bias=False),
    )


def large_kernels():
    return nn.Sequential(
        nn.Conv2d(2, 3, 7),
        nn.Conv2d(3, 6, 4, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(54, 4),
    )


def dense():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(288, 30),
        nn.ReLU(),
        nn.Linear(30, 11),
        nn.Linear(11, CLASSES),
    )


def smooth():
    """ELU behind and before every kind of layer; means of windows that leave pixels
    over.
    """
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 5, 2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Conv2d(5, 7, 2, padding=1),
        nn.ELU(),
        nn.Conv2d(7, 4, 2),
        nn.ELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 9),
        nn.ELU(),
        nn.Linear(9, CLASSES),
    )


BUILDS = {
    "convolutional": convolutional,
    "large kernels": large_kernels,
    "dense": dense,
    "smooth": smooth,
}


@contextmanager
def threads(count):
    """PyTorch itself stays on one thread: two would wait for each other where other
    tests hold the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _double():
    """Double precision shows any difference from PyTorch that is not rounding."""
    torch.set_default_dtype(torch.float64)
    with threads(1):
        yield
    torch.set_default_dtype(torch.float32)


both = pytest.mark.parametrize("count", [1, 2], ids=["one thread", "two threads"])


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (SAMPLES, 2, 12, 12), dtype=torch.uint8, generator=generator)
    return x, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def prepared(x):
    """As `NORMALIZE`, in double precision."""
    mean, std = (
        torch.tensor(part)[:, None, None] for part in (NORMALIZE.mean, NORMALIZE.std)
    )
    return (x.double() / 255 - mean) / std


def batches_of(size, replicas=3):
    generator = torch.Generator().manual_seed(1)
    orders = torch.stack(
        [torch.randperm(SAMPLES, generator=generator) for _ in range(STEPS * replicas)]
    )
    return orders[:, :size].reshape(STEPS, replicas, size)


ADAM = Adam(0.01)


def engine_of(build, pair, seeds=(1, 2, 3), optimizer=ADAM, **options):
    settings = {
        "per_replica_targets": False,
        "inputs": Inputs(prepared),
        "loss": "cross_entropy",
        **options,
    }
    return FusedImageEngine(
        build_replicas(build, seeds), *pair, optimizer=optimizer, **settings
    )


def plain_loop(build, pair, seeds, make_optimizer, batches, per_replica_targets=False):
    losses, modules = np.empty((STEPS, len(seeds))), build_replicas(build, seeds)
    for k, module in enumerate(modules):
        y = pair[1][k] if per_replica_targets else pair[1]
        optimizer = make_optimizer(module.parameters())
        for step, rate in enumerate(RATES):
            chosen = torch.arange(SAMPLES) if batches is None else batches[step, k]
            optimizer.zero_grad()
            loss = functional.cross_entropy(
                module(prepared(pair[0][chosen])), y[chosen]
            )
            loss.backward()
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * rate
            optimizer.step()
            losses[step, k] = loss.item()
    return losses, modules


OPTIMIZERS = {
    "adam": (
        Adam(0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    ),
    "adamw": (AdamW(0.01), lambda p: torch.optim.AdamW(p, lr=0.01)),
    "sgd": (
        SGD(0.05, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    ),
    "rmsprop": (RMSprop(0.003), lambda p: torch.optim.RMSprop(p, lr=0.003)),
}


@both
@pytest.mark.parametrize("size", [None, 40, 5])
@pytest.mark.parametrize("name", BUILDS)
def test_losses_weights_and_predictions_equal_plain_pytorch(name, size, images, count):
    batches = None if size is None else batches_of(size)
    expected, modules = plain_loop(
        BUILDS[name], images, (1, 2, 3), OPTIMIZERS["adam"][1], batches
    )
    engine = engine_of(BUILDS[name], images, optimizer=OPTIMIZERS["adam"][0])
    with threads(count):
        np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=1e-9)
    for key, tensor in engine.parameters().items():
        wanted = torch.stack([module.get_parameter(key).detach() for module in modules])
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-8)
    outputs = torch.stack([module(prepared(images[0])) for module in modules]).detach()
    with threads(count):
        torch.testing.assert_close(
            engine.predict(images[0]), outputs, rtol=1e-6, atol=1e-8
        )


@both
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_replica_with_every_optimizer(name, images, count):
    specification, make = OPTIMIZERS[name]
    batches = batches_of(33, 1)
    expected, _ = plain_loop(convolutional, images, (4,), make, batches)
    engine = engine_of(convolutional, images, (4,), specification)
    with threads(count):
        np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=1e-8)


def test_per_replica_targets_and_labels_that_do_not_count(images):
    x, y = images
    own = torch.stack([(y + k) % CLASSES for k in range(3)])
    own[:, ::3] = -100
    batches = batches_of(20)
    expected, _ = plain_loop(
        convolutional, (x, own), (1, 2, 3), OPTIMIZERS["sgd"][1], batches, True
    )
    engine = engine_of(
        convolutional,
        (x, own),
        optimizer=OPTIMIZERS["sgd"][0],
        per_replica_targets=True,
    )
    np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("network", "activation"), [("lenet", "relu"), ("conv6k5-mean2-conv8k3-30", "elu")]
)
def test_networks_in_float32_differ_by_rounding_only(network, activation):
    torch.set_default_dtype(torch.float32)
    digits = data.load("digits", size=28)
    options = {
        "loss": "cross_entropy",
        "steps": 20,
        "batch_size": 64,
        "prepare": digits.normalize,
        "seeds": [0],
    }
    pair = digits.images, digits.labels
    found, plain = (
        fit(
            lambda: models.image_network(network, activation=activation),
            pair,
            replicas=way,
            **options,
        )
        for way in ("auto", "sequential")
    )
    assert (found.engine, plain.engine) == ("fused-images", "sequential")
    np.testing.assert_allclose(found.train_loss, plain.train_loss, rtol=2e-4)
    for name, curve in plain.evaluations.items():
        np.testing.assert_allclose(
            found.evaluations[name], curve, rtol=2e-3, err_msg=name
        )


def test_elu_in_float32_has_the_precision_of_float32():
    def build():
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 4))
        with torch.no_grad():
            for layer in (net[1], net[3]):
                layer.weight.copy_(torch.eye(4))
                layer.bias.zero_()
        return net.float()

    near = torch.linspace(-1, 1, 2_000)
    far = torch.linspace(-200, 20, 2_000)
    tiny = torch.logspace(-30, -2, 2_000)
    x = torch.cat([near, far, tiny, -tiny]).float().reshape(-1, 4)
    pair = x, torch.arange(len(x)) % 4
    engine = engine_of(build, pair, inputs=Inputs())
    expected = functional.elu(x.double())
    for found in engine.predict(x).double():
        torch.testing.assert_close(found, expected, rtol=4e-7, atol=0)


def test_numbers_depend_neither_on_threads_nor_on_neighbors_nor_on_chunks(images):
    batches, alone = batches_of(40), engine_of(convolutional, images, (2,))
    with threads(2):
        losses_alone = alone.advance(RATES, batches[:, 1:2])
    three = engine_of(convolutional, images)
    losses = np.concatenate(
        [three.advance(RATES[:5], batches[:5]), three.advance(RATES[5:], batches[5:])]
    )
    np.testing.assert_array_equal(losses[:, 1], losses_alone[:, 0])
    for key, tensor in three.parameters().items():
        assert torch.equal(tensor[1], alone.parameters()[key][0]), key


def test_a_saved_state_goes_on_bit_for_bit(images):
    batches = batches_of(40)
    whole, first, second = (engine_of(convolutional, images) for _ in range(3))
    expected = whole.advance(RATES, batches)
    first.advance(RATES[:7], batches[:7])
    second.load_state(first.state())
    np.testing.assert_array_equal(second.advance(RATES[7:], batches[7:]), expected[7:])


def test_frozen_and_diverging_replicas_leave_the_others_untouched(images):
    batches = batches_of(40)
    whole = engine_of(convolutional, images).advance(RATES, batches)
    engine = engine_of(convolutional, images, optimizer=Adam([0.01, 0.01, 1e200]))
    before = {key: tensor[1].clone() for key, tensor in engine.parameters().items()}
    engine.freeze([1])
    losses = engine.advance(RATES, batches)
    np.testing.assert_array_equal(losses[:, 0], whole[:, 0])
    assert np.isnan(losses[:, 1]).all()
    assert not np.isfinite(losses[-1, 2])
    assert all(
        torch.equal(tensor[1], before[key])
        for key, tensor in engine.parameters().items()
    )


def test_one_diverging_replica_on_two_threads_ends(images):
    engine = engine_of(convolutional, images, (1,), Adam(1e200))
    with threads(2):
        losses = engine.advance(RATES, batches_of(40, 1))
    assert np.isfinite(losses[0, 0])
    assert not np.isfinite(losses[1:, 0]).any()


def test_the_first_of_equal_maxima_gets_the_gradient():
    """Constant images give equal pixels in every window, where no ReLU decides."""
    x = torch.full((SAMPLES, 2, 12, 12), 0.5)
    y = torch.arange(SAMPLES) % CLASSES

    def build():
        return nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 2, 2),
            nn.Flatten(),
            nn.Linear(32, 4),
        )

    expected, _ = plain_loop_of_numbers(build, (x, y))
    engine = engine_of(build, (x, y), (1,), SGD(0.1), inputs=Inputs())
    np.testing.assert_allclose(
        engine.advance(np.ones(STEPS), None)[:, 0], expected, rtol=1e-9
    )


def plain_loop_of_numbers(build, pair):
    [module] = build_replicas(build, (1,))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(pair[0]), pair[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(288, 4), nn.ReLU()),
            "end with a linear layer",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(288, 4)),
            "no Dropout",
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, 4)
            ),
            "BatchNorm2d",
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 4, 3, stride=2), nn.Flatten(), nn.Linear(100, 4)
            ),
            "stride 1 only",
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(400, 4)
            ),
            "stride 1 only",
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 4, 3, padding="same"), nn.Flatten(), nn.Linear(576, 4)
            ),
            "padded",
        ),
        (
            lambda: nn.Sequential(nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(50, 4)),
            "windows side by side",
        ),
        (
            lambda: nn.Sequential(
                nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(98, 4)
            ),
            "windows side by side",
        ),
        (
            lambda: nn.Sequential(
                nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(72, 4)
            ),
            "windows side by side",
        ),
        (
            lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(288, 4), nn.ELU(0.5), nn.Linear(4, 4)
            ),
            "alpha 1 only",
        ),
        (
            lambda: nn.Sequential(
                nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
            ),
            "ReLU does not follow",
        ),
        (
            lambda: nn.Sequential(
                nn.AvgPool2d(2), nn.ELU(), nn.Flatten(), nn.Linear(72, 4)
            ),
            "ELU does not follow",
        ),
        (
            lambda: nn.Sequential(nn.Linear(12, 4), nn.Flatten(), nn.Linear(96, 4)),
            "does not follow a Flatten",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(288, 8000)),
            "PyTorch is faster",
        ),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(make, reason, images):
    with pytest.raises(Unsupported, match=reason):
        engine_of(make, images)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loss": "mse"}, "cross-entropy only"),
        ({"inputs": Inputs(prepared, bfloat16=True)}, "precision of the weights"),
        ({"inputs": Inputs(prepared, augment=data.Augment(shift=1))}, "augmented"),
        (
            {"inputs": Inputs(lambda x: prepared(x) - prepared(x).mean())},
            "more than that value",
        ),
        (
            {"inputs": Inputs(lambda x: prepared(x).flip(3) * torch.arange(12))},
            "more than that value",
        ),
        ({"inputs": Inputs(lambda x: x.float())}, "another dtype"),
        ({"inputs": Inputs()}, "differ in their dtype"),
        ({"per_replica_targets": True}, "are not int64"),
    ],
)
def test_what_else_it_refuses(options, reason, images):
    with pytest.raises(Unsupported, match=reason):
        engine_of(convolutional, images, **options)


def test_labels_outside_the_classes_are_left_to_pytorch(images):
    x, y = images
    with pytest.raises(Unsupported, match="not all from 0 to 3"):
        engine_of(convolutional, (x, y + 1))


def test_indices_outside_the_samples_are_an_error(images):
    with pytest.raises(IndexError, match="from 0 to 74"):
        engine_of(convolutional, images).advance(RATES, batches_of(5) + 3 * SAMPLES)


def test_precision_left_to_the_laboratory_is_served_in_float32(images):
    engine = engine_of(
        convolutional, images, inputs=Inputs(prepared, bfloat16=True, automatic=True)
    )
    assert all(tensor.dtype == torch.float64 for tensor in engine.parameters().values())


def test_samples_of_another_type_are_prepared_before(images):
    """Floats with a fraction, which a byte cannot hold, as the other engines take them."""
    engine, x = engine_of(convolutional, images), images[0].double() / 3
    outputs = torch.stack(
        [module(prepared(x)) for module in build_replicas(convolutional, (1, 2, 3))]
    )
    torch.testing.assert_close(
        engine.predict(x), outputs.detach(), rtol=1e-9, atol=1e-10
    )


def test_samples_of_another_shape_are_an_error(images):
    with pytest.raises(
        UsageError, match=r"takes samples of shape \(2, 12, 12\), got \(2, 12, 13\)"
    ):
        engine_of(convolutional, images).predict(
            torch.zeros(3, 2, 12, 13, dtype=torch.uint8)
        )
