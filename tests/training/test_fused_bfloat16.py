"""The compiled engine with matrix tiles against the same arithmetic written out, and
engines' contract.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nablab import data
from nablab.training import (
    SGD,
    Adam,
    AdamW,
    RMSprop,
    Unsupported,
    build_replicas,
    choose,
    fit,
)
from nablab.training.fused.bfloat16 import SLAB, FusedBfloat16Engine
from nablab.training.inputs import Inputs
from tests.training.test_fused_images import threads

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(),
    reason="the processor has no matrix tiles for bfloat16",
)

CLASSES, STEPS = 4, 6
RATES = 1 / (1 + np.arange(STEPS) / 3)
NORMALIZE = data.Normalize((0.4, 0.5), (0.25, 0.3))
TWO_SLABS = 2 * SLAB - 100
BFLOAT16 = Inputs(NORMALIZE, None, bfloat16=True)


@pytest.fixture(autouse=True)
def _one_thread():
    with threads(1):
        yield


def deep():
    """Widths of less and more than a tile, not all of them even; biases and ReLUs in
    some places only.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(70, 45),
        nn.ReLU(),
        nn.Linear(45, 33, bias=False),
        nn.ReLU(),
        nn.Linear(33, 32),
        nn.Linear(32, CLASSES, bias=False),
    )


def shallow():
    return nn.Sequential(nn.Flatten(), nn.Linear(70, CLASSES))


def pair_of(samples):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (samples, 2, 5, 7), dtype=torch.uint8, generator=generator)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def batches_of(size, samples, replicas=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(samples, (STEPS, replicas, size), generator=generator)


def engine_of(build, pair, seeds=(1, 2, 3), optimizer=SGD(0.1), **options):  # noqa: B008
    settings = {
        "per_replica_targets": False,
        "inputs": BFLOAT16,
        "loss": "cross_entropy",
        **options,
    }
    return FusedBfloat16Engine(
        build_replicas(build, seeds), *pair, optimizer=optimizer, **settings
    )


class Rounded(torch.autograd.Function):
    """A product whose factors are rounded to bfloat16, going forward and backward."""

    @staticmethod
    def forward(ctx, a, weight):
        ctx.save_for_backward(a, weight)
        return round16(a) @ round16(weight).T

    @staticmethod
    def backward(ctx, delta):
        a, weight = ctx.saved_tensors
        return round16(delta) @ round16(weight), round16(delta).T @ round16(a)


def round16(values):
    return values.bfloat16().to(values)


def truth(module, x):
    """The network in double precision, with factors rounded."""
    for part in module:
        if isinstance(part, nn.Linear):
            x = Rounded.apply(x, part.weight)
            x = x if part.bias is None else x + part.bias
        else:
            x = part(x)
    return x


def true_losses(build, pair, seeds, make, batches, per_replica_targets=False):
    losses, modules = (
        np.empty((STEPS, len(seeds))),
        [m.double() for m in build_replicas(build, seeds)],
    )
    for k, module in enumerate(modules):
        optimizer = make(module.parameters())
        for step, rate in enumerate(RATES):
            chosen = torch.arange(len(pair[0])) if batches is None else batches[step, k]
            y = (pair[1][k] if per_replica_targets else pair[1])[chosen]
            optimizer.zero_grad()
            loss = functional.cross_entropy(
                truth(module, NORMALIZE(pair[0][chosen]).double()), y
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
    "sgd": (SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "rmsprop": (RMSprop(0.003), lambda p: torch.optim.RMSprop(p, lr=0.003)),
}


@pytest.mark.parametrize("count", [1, 2], ids=["one thread", "two threads"])
@pytest.mark.parametrize("size", [None, TWO_SLABS, 96, 5])
@pytest.mark.parametrize("build", [deep, shallow])
def test_losses_weights_and_predictions_are_those_of_rounded_factors(
    build, size, count
):
    pair = pair_of(SLAB + 77)
    batches = None if size is None else batches_of(size, len(pair[0]))
    expected, modules = true_losses(
        build, pair, (1, 2, 3), OPTIMIZERS["sgd"][1], batches
    )
    engine = engine_of(build, pair, optimizer=OPTIMIZERS["sgd"][0])
    with threads(count):
        np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=2e-4)
        outputs = engine.predict(pair[0])
    for key, tensor in engine.parameters().items():
        wanted = torch.stack([module.get_parameter(key).detach() for module in modules])
        torch.testing.assert_close(tensor.double(), wanted, rtol=2e-3, atol=2e-4)
    # Where a sum in float32 is rounded to the other bfloat16, a factor is 0.4 % off.
    wanted = torch.stack(
        [truth(module, NORMALIZE(pair[0]).double()) for module in modules]
    )
    torch.testing.assert_close(outputs.double(), wanted, rtol=1e-2, atol=1e-2)


def test_a_step_without_hidden_layers_is_exact_to_float32():
    """Nothing but weights and samples is rounded on the way forward, so that no
    rounding can flip.
    """
    pair = pair_of(50)
    expected, _ = true_losses(shallow, pair, (1, 2, 3), OPTIMIZERS["sgd"][1], None)
    engine = engine_of(shallow, pair, optimizer=OPTIMIZERS["sgd"][0])
    np.testing.assert_allclose(engine.advance(RATES[:1], None), expected[:1], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("size", [40, TWO_SLABS])
def test_every_optimizer(name, size):
    specification, make = OPTIMIZERS[name]
    pair = pair_of(SLAB)
    batches = batches_of(size, SLAB, 1)
    expected, _ = true_losses(deep, pair, (4,), make, batches)
    engine = engine_of(deep, pair, (4,), specification)
    np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=3e-3)


def test_per_replica_targets_and_labels_that_do_not_count():
    x, y = pair_of(80)
    own = torch.stack([(y + k) % CLASSES for k in range(3)])
    own[:, ::3] = -100
    batches = batches_of(50, 80)
    expected, _ = true_losses(
        deep,
        (x, own),
        (1, 2, 3),
        OPTIMIZERS["sgd"][1],
        batches,
        per_replica_targets=True,
    )
    engine = engine_of(
        deep, (x, own), optimizer=OPTIMIZERS["sgd"][0], per_replica_targets=True
    )
    np.testing.assert_allclose(engine.advance(RATES, batches), expected, rtol=2e-4)


def test_numbers_depend_neither_on_threads_nor_on_neighbors_nor_on_chunks():
    pair, batches = pair_of(100), batches_of(40, 100)
    alone = engine_of(deep, pair, (2,))
    losses_alone = alone.advance(RATES, batches[:, 1:2])
    three = engine_of(deep, pair)
    with threads(2):
        parts = [
            three.advance(RATES[:2], batches[:2]),
            three.advance(RATES[2:], batches[2:]),
        ]
    np.testing.assert_array_equal(np.concatenate(parts)[:, 1], losses_alone[:, 0])
    for key, tensor in three.parameters().items():
        assert torch.equal(tensor[1], alone.parameters()[key][0]), key


def test_batches_of_other_sizes_may_follow():
    pair = pair_of(SLAB + 77)
    engine, fresh = engine_of(deep, pair), engine_of(deep, pair)
    engine.advance(RATES[:1], None)
    engine.load_state(fresh.state())
    batches = batches_of(33, SLAB)
    np.testing.assert_array_equal(
        engine.advance(RATES, batches), fresh.advance(RATES, batches)
    )


def test_samples_that_are_kept_are_still_those_that_are_asked_for():
    pair = pair_of(30)
    engine = engine_of(deep, pair)
    others = [pair_of(20 + n)[0].flip(0) for n in range(6)]  # more than are kept
    for x in (*others, pair[0], *others):
        torch.testing.assert_close(
            engine.predict(x), engine.predict(x.clone()), rtol=0, atol=0
        )
    before = engine.predict(others[0])
    others[0].fill_(3)  # in place: the same object with other numbers
    assert not torch.equal(engine.predict(others[0]), before)


def test_a_saved_state_goes_on_bit_for_bit():
    pair, batches = pair_of(100), batches_of(40, 100)
    whole, first, second = (
        engine_of(deep, pair, optimizer=Adam(0.01)) for _ in range(3)
    )
    expected = whole.advance(RATES, batches)
    first.advance(RATES[:4], batches[:4])
    second.load_state(first.state())
    np.testing.assert_array_equal(second.advance(RATES[4:], batches[4:]), expected[4:])


def test_frozen_and_diverging_replicas_leave_the_others_untouched():
    pair, batches = pair_of(100), batches_of(40, 100)
    whole = engine_of(deep, pair).advance(RATES, batches)
    engine = engine_of(deep, pair, optimizer=SGD([0.1, 0.1, 1e30]))
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


@pytest.mark.parametrize("samples", [60, TWO_SLABS])
def test_a_loss_that_is_not_finite_changes_no_weight(samples):
    pair = pair_of(samples)
    engine = engine_of(deep, pair, (1,))
    state = engine.state()
    state["weights"][0, 5] = float("nan")
    engine.load_state(state)
    assert np.isnan(engine.advance(np.ones(2), None)).all()
    assert torch.equal(engine.state()["weights"].isnan(), state["weights"].isnan())
    assert not engine.state()["active"][0]


def test_one_sample_fewer_outputs_and_an_index_that_is_none():
    pair = pair_of(20)
    engine = engine_of(deep, pair)
    torch.testing.assert_close(
        engine.predict(pair[0][:1])[:, 0], engine.predict(pair[0])[:, 0]
    )
    with pytest.raises(IndexError, match="from 0 to 19"):
        engine.advance(RATES, torch.full((STEPS, 3, 2), 20))


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (deep, {"inputs": Inputs(NORMALIZE)}, "multiplies in bfloat16"),
        (lambda: deep().double(), {}, "float64"),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(45, 4)),
            {},
            "dense layers only",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(70, 4), nn.Tanh()),
            {},
            "no Tanh",
        ),
        (deep, {"loss": "mse"}, "cross-entropy only"),
        (
            lambda: nn.Sequential(
                nn.Flatten(), *[nn.Linear(70, 70) for _ in range(70)]
            ),
            {},
            "too many layers",
        ),
    ],
)
def test_what_it_does_not_serve_it_refuses(make, options, reason):
    with pytest.raises(Unsupported, match=reason):
        engine_of(make, pair_of(12), **options)


def test_samples_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr("nablab.training.fused.bfloat16.LARGEST_STORE", 12 * 70)
    with pytest.raises(Unsupported, match="in bfloat16 take more than"):
        engine_of(deep, pair_of(12))


def wide():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(70, 300), nn.ReLU(), nn.Linear(300, CLASSES)
    )


@pytest.mark.parametrize(
    ("build", "options", "engine"),
    [
        (wide, {"precision": "auto"}, "fused-bfloat16"),
        (wide, {"precision": "bfloat16"}, "fused-bfloat16"),
        (wide, {"precision": "float32"}, "fused-images"),
        (shallow, {"precision": "auto"}, "fused-images"),
        (shallow, {"precision": "bfloat16"}, "fused-bfloat16"),
        (wide, {"precision": "auto", "replicas": "sequential"}, "sequential"),
    ],
)
def test_where_it_is_chosen(build, options, engine):
    assert sum(p.numel() for p in wide().parameters()) > choose.FEWEST_ROUNDED
    settings = {
        "seeds": [1, 2],
        "steps": 2,
        "loss": "cross_entropy",
        "prepare": NORMALIZE,
        "batch_size": 16,
    }
    assert fit(build, pair_of(40), **settings, **options).engine == engine
