"""The compiled engine for sparse samples: plain PyTorch, dropout in NumPy, and the
contract of engines.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nablab.errors import UsageError
from nablab.training import SGD, Adam, Unsupported, build_replicas, fit
from nablab.training.fused.bags import SLAB, FusedBagsEngine
from nablab.training.inputs import Inputs
from tests.training.test_fused_images import threads

SAMPLES, WORDS, CLASSES, STEPS = 90, 150, 4, 10
RATES = 1 / (1 + np.arange(STEPS) / 6)
DROPPED = 0.4


@pytest.fixture(autouse=True)
def _double():
    """Double precision shows any difference from PyTorch that is not rounding."""
    torch.set_default_dtype(torch.float64)
    with threads(1):
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def bags():
    """Counts of words, and a text without any."""
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(SAMPLES, WORDS, generator=generator) < 0.06
    x = (there * (1 + torch.rand(SAMPLES, WORDS, generator=generator) * 3)).byte()
    x[7] = 0
    return x, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def deep():
    """Widths of less and more than a vector; biases and ReLUs in some places only."""
    return nn.Sequential(
        nn.Linear(WORDS, 37),
        nn.ReLU(),
        nn.Sequential(nn.Linear(37, 70, bias=False), nn.ReLU()),
        nn.Linear(70, 9),
        nn.Linear(9, CLASSES),
    )


def linear():
    return nn.Sequential(nn.Linear(WORDS, CLASSES, bias=False))


def dropping():
    return nn.Sequential(
        nn.Linear(WORDS, 20),
        nn.ReLU(),
        nn.Dropout(DROPPED),
        nn.Linear(20, 17),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.2)),
        nn.Linear(17, CLASSES),
    )


BUILDS = {"deep": deep, "linear": linear}


def prepared(x):
    return torch.log1p(x.double())


def batches_of(size, replicas=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(SAMPLES, (STEPS, replicas, size), generator=generator)


def engine_of(build, pair, seeds=(1, 2, 3), optimizer=Adam(0.01), **options):  # noqa: B008
    settings = {
        "per_replica_targets": False,
        "inputs": Inputs(prepared),
        "loss": "cross_entropy",
        "seeds": seeds,
        **options,
    }
    modules = build_replicas(build, seeds)
    return FusedBagsEngine(modules, *pair, optimizer=optimizer, **settings)


def plain_loop(build, pair, seeds, batches, own_labels=False, forward=None):
    losses, modules = np.empty((STEPS, len(seeds))), build_replicas(build, seeds)
    for k, module in enumerate(modules):
        y = pair[1][k] if own_labels else pair[1]
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=0.1)
        for step, rate in enumerate(RATES):
            chosen = torch.arange(SAMPLES) if batches is None else batches[step, k]
            optimizer.zero_grad()
            x = prepared(pair[0][chosen])
            output = module(x) if forward is None else forward(module, x, k, step)
            loss = functional.cross_entropy(output, y[chosen])
            loss.backward()
            optimizer.param_groups[0]["lr"] = 0.01 * rate
            optimizer.step()
            losses[step, k] = loss.item()
    return losses, modules


DECAYING = Adam(0.01, weight_decay=0.1)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [None, 40, SLAB + 30])
@pytest.mark.parametrize("name", BUILDS)
def test_losses_weights_and_predictions_equal_plain_pytorch(name, size, count, bags):
    batches = None if size is None else batches_of(size)
    expected, modules = plain_loop(BUILDS[name], bags, (1, 2, 3), batches)
    engine = engine_of(BUILDS[name], bags, optimizer=DECAYING)
    with threads(count):
        np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=1e-9)
        outputs = engine.predict(bags[0])
    for key, tensor in engine.parameters().items():
        wanted = torch.stack([module.get_parameter(key).detach() for module in modules])
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-8)
    wanted = torch.stack([module(prepared(bags[0])) for module in modules]).detach()
    torch.testing.assert_close(outputs, wanted, rtol=1e-6, atol=1e-8)


def test_own_labels_and_labels_that_do_not_count(bags):
    own = torch.stack([(bags[1] + k) % CLASSES for k in range(3)])
    own[:, ::3] = -100
    batches = batches_of(20)
    pair = bags[0], own
    expected, _ = plain_loop(deep, pair, (1, 2, 3), batches, own_labels=True)
    engine = engine_of(deep, pair, optimizer=DECAYING, per_replica_targets=True)
    np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=1e-9)


def kept(seed, step, layer, shape, share, width):
    """Which values dropout lets through, as the head of `drop` in bags.c says."""

    def mixed(z):
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    key = mixed(mixed(mixed(seed) ^ step) ^ layer)
    places = np.arange(shape[0])[:, None] * width + np.arange(shape[1])
    x = places.astype(np.uint32) * np.uint32(0x9E3779B9) + np.uint32(key % 2**32)
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x ^= np.uint32(key >> 32)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return torch.from_numpy(x >= np.uint32(share * 2**32))


def test_dropout_is_that_of_numpy_and_autograd(bags):
    seeds, batches = (5, 6), batches_of(30, 2)
    lanes = int(engine_of(dropping, bags, seeds)._library.nablab_lanes())

    def forward(module, x, k, step):
        first, _, _, second, _, third = module
        for layer, (part, share) in enumerate(((first, DROPPED), (second, 0.2))):
            x = part(x).relu()
            width = -(-x.shape[1] // lanes) * lanes
            through = kept(seeds[k], step, layer, x.shape, share, width)
            x = x * through / (1 - share)
        return third(x)

    expected, _ = plain_loop(dropping, bags, seeds, batches, forward=forward)
    engine = engine_of(dropping, bags, seeds, DECAYING)
    np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=1e-9)


def test_dropout_drops_the_share_asked_for_independently():
    shape, width = (256, 64), 64
    first, other = (kept(9, step, 0, shape, 0.3, width) for step in (0, 1))
    for mask in (first, other):
        assert mask.double().mean() == pytest.approx(0.7, abs=0.012)
        # neither rows nor columns stand out, nor do neighbors agree
        assert mask.double().mean(0).std() == pytest.approx(0.029, abs=0.01)
        assert mask.double().mean(1).std() == pytest.approx(0.057, abs=0.02)
        pairs = (mask[:, 1:] & mask[:, :-1]).double().mean()
        assert pairs == pytest.approx(0.49, abs=0.02)
    assert (first & other).double().mean() == pytest.approx(0.49, abs=0.02)


def test_nothing_is_dropped_in_predictions(bags):
    engine = engine_of(dropping, bags)
    modules = build_replicas(dropping, (1, 2, 3))
    wanted = torch.stack([module.eval()(prepared(bags[0])) for module in modules])
    torch.testing.assert_close(engine.predict(bags[0]), wanted.detach())


def test_numbers_depend_neither_on_threads_nor_on_neighbors_nor_on_chunks(bags):
    batches, alone = batches_of(40), engine_of(dropping, bags, (2,))
    losses_alone = alone.advance(RATES, batches[:, 1:2])
    three = engine_of(dropping, bags)
    with threads(2):
        losses = np.concatenate(
            [
                three.advance(RATES[:4], batches[:4]),
                three.advance(RATES[4:], batches[4:]),
            ]
        )
    np.testing.assert_array_equal(losses[:, 1], losses_alone[:, 0])
    for key, tensor in three.parameters().items():
        assert torch.equal(tensor[1], alone.parameters()[key][0]), key


def test_a_saved_state_goes_on_bit_for_bit(bags):
    batches = batches_of(40)
    whole, first, second = (engine_of(dropping, bags) for _ in range(3))
    expected = whole.advance(RATES, batches)
    first.advance(RATES[:7], batches[:7])
    second.load_state(first.state())
    np.testing.assert_array_equal(second.advance(RATES[7:], batches[7:]), expected[7:])


def test_frozen_and_diverging_replicas_leave_the_others_untouched(bags):
    batches = batches_of(40)
    whole = engine_of(deep, bags).advance(RATES, batches)
    engine = engine_of(deep, bags, optimizer=Adam([0.01, 0.01, 1e200]))
    before = {key: tensor[1].clone() for key, tensor in engine.parameters().items()}
    engine.freeze([1])
    losses = engine.advance(RATES, batches)
    np.testing.assert_array_equal(losses[:, 0], whole[:, 0])
    assert np.isnan(losses[:, 1]).all()
    assert not np.isfinite(losses[-1, 2])
    for key, tensor in engine.parameters().items():
        assert torch.equal(tensor[1], before[key])


def test_weights_are_taken_over_as_pytorch_writes_them(bags):
    engine, modules = engine_of(deep, bags), build_replicas(deep, (7, 8, 9))
    flat = [nn.utils.parameters_to_vector(m.parameters()).detach() for m in modules]
    engine.load_weights(torch.stack(flat))
    for key, tensor in engine.parameters().items():
        assert torch.equal(tensor[2], modules[2].get_parameter(key))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: nn.Sequential(
                nn.Linear(WORDS, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)
            ),
            "dropout does not follow a ReLU",
        ),
        (
            lambda: nn.Sequential(
                nn.Linear(WORDS, 8), nn.Tanh(), nn.Linear(8, CLASSES)
            ),
            "no Tanh",
        ),
    ],
)
def test_what_it_cannot_serve_it_refuses(build, reason, bags):
    with pytest.raises(Unsupported, match=reason):
        engine_of(build, bags)


def test_samples_of_another_width_are_refused(bags):
    with pytest.raises(UsageError, match=r"samples of 150 numbers, got \(149,\)"):
        engine_of(deep, bags).predict(bags[0][:, 1:])


def test_fit_chooses_it_for_sparse_samples_alone(bags):
    torch.set_default_dtype(torch.float32)
    options = {
        "loss": "cross_entropy",
        "optimizer": SGD(0.1),
        "steps": 4,
        "seeds": [0, 1],
        "prepare": torch.Tensor.float,
        "batch_size": 30,
    }
    sparse = fit(deep, bags, **options)
    plain = fit(deep, bags, replicas="sequential", **options)
    dense = fit(deep, ((bags[0] + 1), bags[1]), **options)
    assert (sparse.engine, dense.engine) == ("fused-bags", "fused-images")
    np.testing.assert_allclose(sparse.train_loss, plain.train_loss, rtol=1e-5)
