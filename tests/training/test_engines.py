"""Every engine against a plain PyTorch loop, and the contract that all of them keep."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from nablab.errors import UsageError
from nablab.training import (
    SGD,
    Adam,
    AdamW,
    BatchedEngine,
    RMSprop,
    SequentialEngine,
    Unsupported,
    build_replicas,
)

# (specification, the PyTorch optimizer of replica k)
OPTIMIZERS = {
    "sgd": (SGD(0.1), lambda p, k: torch.optim.SGD(p, lr=0.1)),
    "momentum and decay": (
        SGD(0.05, momentum=0.9, weight_decay=0.1),
        lambda p, k: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    ),
    "nesterov, one each": (
        SGD(
            [0.1, 0.02, 0.05],
            momentum=(0.9, 0.5, 0.8),
            nesterov=True,
            weight_decay=[0.0, 0.1, 0.01],
        ),
        lambda p, k: torch.optim.SGD(
            p,
            lr=[0.1, 0.02, 0.05][k],
            momentum=[0.9, 0.5, 0.8][k],
            nesterov=True,
            weight_decay=[0.0, 0.1, 0.01][k],
        ),
    ),
    "rmsprop": (RMSprop(0.01), lambda p, k: torch.optim.RMSprop(p, lr=0.01)),
    "rmsprop, one each": (
        RMSprop(
            0.01,
            smoothing=[0.9, 0.99, 0.8],
            epsilon=1e-4,
            momentum=[0.0, 0.9, 0.5],
            weight_decay=0.1,
        ),
        lambda p, k: torch.optim.RMSprop(
            p,
            lr=0.01,
            alpha=[0.9, 0.99, 0.8][k],
            eps=1e-4,
            momentum=[0.0, 0.9, 0.5][k],
            weight_decay=0.1,
        ),
    ),
    "adam": (Adam(0.01), lambda p, k: torch.optim.Adam(p, lr=0.01)),
    "adam, one each": (
        Adam(
            [0.01, 0.1, 0.001],
            betas=([0.9, 0.5, 0.8], 0.99),
            epsilon=[1e-8, 1e-3, 1e-6],
            weight_decay=(0.1, 0, 0),
        ),
        lambda p, k: torch.optim.Adam(
            p,
            lr=[0.01, 0.1, 0.001][k],
            betas=([0.9, 0.5, 0.8][k], 0.99),
            eps=[1e-8, 1e-3, 1e-6][k],
            weight_decay=[0.1, 0, 0][k],
        ),
    ),
    "adamw": (AdamW(0.01), lambda p, k: torch.optim.AdamW(p, lr=0.01)),
    "adamw, one each": (
        AdamW((0.01, 0.1, 0.001), weight_decay=[0.5, 0.0, 1.0]),
        lambda p, k: torch.optim.AdamW(
            p, lr=[0.01, 0.1, 0.001][k], weight_decay=[0.5, 0.0, 1.0][k]
        ),
    ),
}
RATES = 1 / (1 + np.arange(50) / 25)


def draw_batches(steps, replicas, samples, size):
    orders = torch.stack([torch.randperm(samples) for _ in range(steps * replicas)])
    return orders[:, :size].reshape(steps, replicas, size)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_float64_every_engine_equals_a_plain_pytorch_loop(
    engine_class, name, batch_size, problem, stacked
):
    task = problem()
    specification, make_optimizer = OPTIMIZERS[name]
    batches = None if batch_size is None else draw_batches(50, 3, 11, batch_size)
    expected_losses, modules = task.plain_loop(make_optimizer, RATES, batches)

    engine = task.engine(engine_class, specification)
    losses = engine.advance(RATES, batches)

    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10, atol=1e-12)
    for key, expected in stacked(modules).items():
        torch.testing.assert_close(
            engine.parameters()[key], expected, rtol=1e-9, atol=1e-10
        )
    expected_outputs = torch.stack([module(task.x) for module in modules])
    torch.testing.assert_close(
        engine.predict(task.x), expected_outputs.detach(), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("batch_size", [None, 4])
def test_per_replica_targets(engine_class, batch_size, problem):
    task = problem(per_replica_targets=True)
    batches = None if batch_size is None else draw_batches(50, 3, 11, batch_size)
    expected, _ = task.plain_loop(OPTIMIZERS["adam"][1], RATES, batches)
    losses = task.engine(engine_class, Adam(0.01)).advance(RATES, batches)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", [BatchedEngine, SequentialEngine])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("per_replica_targets", [False, True])
def test_cross_entropy(kind, batch_size, per_replica_targets, problem):
    task = problem(loss="cross_entropy", per_replica_targets=per_replica_targets)
    batches = None if batch_size is None else draw_batches(50, 3, 11, batch_size)
    expected, _ = task.plain_loop(OPTIMIZERS["adam"][1], RATES, batches)
    np.testing.assert_allclose(
        task.engine(kind, Adam(0.01)).advance(RATES, batches), expected, rtol=1e-10
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_float32_engines_differ_by_rounding_only(engine_class, name, problem):
    """Fifty steps amplify the rounding of 6e-8 to at most 2e-4."""
    task = problem(dtype=torch.float32)
    specification, make_optimizer = OPTIMIZERS[name]
    expected, _ = task.plain_loop(make_optimizer, RATES, None)
    np.testing.assert_allclose(
        task.engine(engine_class, specification).advance(RATES, None),
        expected,
        rtol=2e-4,
    )


class Recurrent(nn.Module):
    """A recurrent network written out, since the cells of PyTorch have no batching
    rule.
    """

    def __init__(self):
        super().__init__()
        self.input, self.hidden, self.head = (
            nn.Linear(2, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        hidden = x.new_zeros(len(x), 5)
        for step in range(x.shape[1]):
            hidden = torch.tanh(self.input(x[:, step]) + self.hidden(hidden))
        return self.head(hidden)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(2, 12), nn.Linear(4, 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.head(self.norm(mixed).mean(dim=1))


def convolution():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 2, 2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


ARCHITECTURES = {
    "convolution": (convolution, (9, 1, 8, 8)),
    "recurrent": (Recurrent, (9, 6, 2)),
    "attention": (Attention, (9, 6, 2)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)),
        (9, 3),
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_serves_other_architectures(name):
    make, shape = ARCHITECTURES[name]
    torch.manual_seed(1)
    x = (
        torch.randint(7, shape)
        if name == "embedding"
        else torch.randn(shape, dtype=torch.float64)
    )
    y, batches = torch.randint(3, (9,)), draw_batches(20, 3, 9, 4)
    options = {
        "loss": "cross_entropy",
        "optimizer": Adam(0.01),
        "per_replica_targets": False,
    }
    engines = [
        kind(build_replicas(lambda: make().double(), range(3)), x, y, **options)
        for kind in (BatchedEngine, SequentialEngine)
    ]
    losses = [engine.advance(np.ones(20), batches) for engine in engines]
    np.testing.assert_allclose(*losses, rtol=1e-9)
    torch.testing.assert_close(
        engines[0].predict(x), engines[1].predict(x), rtol=1e-8, atol=1e-9
    )
    torch.testing.assert_close(
        engines[0].parameters(), engines[1].parameters(), rtol=1e-8, atol=1e-9
    )


class DropsInForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return functional.dropout(self.layer(x), 0.5, self.training)


class LooksAtValues(DropsInForward):
    def forward(self, x):
        output = self.layer(x)
        return output if output.sum() > 0 else -output


class HiddenLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(2, 3)

    def forward(self, x):
        return self.cell(x, x.new_zeros(len(x), 3))


def half_frozen():
    module = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
    module[0].requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "buffers"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)), "dropout"),
        (DropsInForward, "vmap"),
        (LooksAtValues, "vmap"),
        (HiddenLoop, "batching rule"),
        (half_frozen, "do not train"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3).half()), "dtypes"),
        (lambda: nn.Tanh(), "no parameters"),
    ],
)
def test_batched_refuses_what_it_cannot_serve_and_says_why(make, reason):
    with pytest.raises(Unsupported, match=reason):
        BatchedEngine(
            [make(), make()],
            torch.randn(4, 2),
            torch.randn(4, 3),
            loss="mse",
            optimizer=SGD(),
            per_replica_targets=False,
        )


def test_dropout_of_probability_zero_is_no_dropout():
    module = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.0))
    BatchedEngine(
        [module],
        torch.randn(4, 2),
        torch.randn(4, 3),
        loss="mse",
        optimizer=SGD(),
        per_replica_targets=False,
    )


def test_a_loss_may_be_a_function(problem):
    task = problem()
    task.loss = lambda output, target: (output - target).abs().mean()
    losses = [
        task.engine(kind, Adam(0.01)).advance(RATES, None)
        for kind in (BatchedEngine, SequentialEngine)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-9)


@pytest.mark.parametrize("kind", [BatchedEngine, SequentialEngine])
def test_mse_refuses_to_broadcast(kind, problem):
    task = problem()
    task.y = task.y[:, 0]
    with pytest.raises(UsageError, match="equal shapes"):
        task.engine(kind, SGD()).advance(np.ones(1), None)


def test_a_frozen_replica_does_not_change_and_the_others_do_not_notice(
    engine_class, problem
):
    task = problem(dtype=torch.float32)
    frozen, free = (
        task.engine(engine_class, Adam(0.01, weight_decay=0.1)) for _ in range(2)
    )
    for engine in (frozen, free):
        engine.advance(RATES[:5], None)
    before = frozen.parameters()
    frozen.freeze([1])
    losses, expected = frozen.advance(RATES[5:], None), free.advance(RATES[5:], None)

    assert np.isnan(losses[:, 1]).all()
    np.testing.assert_array_equal(losses[:, [0, 2]], expected[:, [0, 2]])
    for name, tensor in frozen.parameters().items():
        assert torch.equal(tensor[1], before[name][1])
        assert torch.equal(tensor[[0, 2]], free.parameters()[name][[0, 2]])


def test_a_diverging_replica_leaves_the_others_bitwise_untouched(engine_class, problem):
    task = problem(dtype=torch.float32)
    wild = task.engine(engine_class, SGD((0.1, 1e30, 0.1)))
    calm = task.engine(engine_class, SGD((0.1, 0.01, 0.1)))
    losses, expected = wild.advance(np.ones(20), None), calm.advance(np.ones(20), None)

    failed = np.flatnonzero(~np.isfinite(losses[:, 1]))
    assert 0 < failed[0] < 5
    assert len(failed) == 20 - failed[0]
    assert np.isnan(losses[failed[0] + 1 :, 1]).all()
    np.testing.assert_array_equal(losses[:, [0, 2]], expected[:, [0, 2]])
    for name, tensor in wild.parameters().items():
        assert torch.equal(tensor[[0, 2]], calm.parameters()[name][[0, 2]])
    assert np.isnan(wild.advance(np.ones(2), None)[:, 1]).all()


@given(cuts=st.lists(st.integers(0, 20), max_size=5), resume=st.booleans())
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_neither_chunks_nor_a_saved_state_change_a_byte(
    engine_class, problem, cuts, resume
):
    task, batches = problem(dtype=torch.float32), draw_batches(20, 3, 11, 4)
    whole = task.engine(engine_class, Adam(0.01))
    expected = whole.advance(RATES[:20], batches)

    engine, losses = task.engine(engine_class, Adam(0.01)), []
    edges = sorted({0, 20, *cuts})
    for start, end in itertools.pairwise(edges):
        losses.append(engine.advance(RATES[start:end], batches[start:end]))
        engine.predict(task.x)
        if resume:
            state = engine.state()
            engine = task.engine(engine_class, Adam(0.01))
            engine.load_state(state)
    np.testing.assert_array_equal(np.concatenate(losses), expected)
    for name, tensor in whole.parameters().items():
        assert torch.equal(engine.parameters()[name], tensor)


def noisy():
    return nn.Sequential(
        nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def sequential(seeds):
    torch.manual_seed(3)
    x, y = torch.randn(11, 2), torch.randn(11, 3)
    modules = build_replicas(noisy, seeds)
    return SequentialEngine(
        modules,
        x,
        y,
        loss="mse",
        optimizer=SGD(0.1, momentum=0.9),
        per_replica_targets=False,
        seeds=seeds,
    )


def test_sequential_replicas_with_dropout_do_not_depend_on_their_neighbors():
    three, one = sequential([7, 8, 9]), sequential([8])
    before = torch.get_rng_state()
    np.testing.assert_array_equal(
        three.advance(np.ones(10), None)[:, [1]], one.advance(np.ones(10), None)
    )
    for name, tensor in one.parameters().items():
        assert torch.equal(three.parameters()[name][[1]], tensor)
    assert "1.running_mean" in one.parameters()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_starts_where_a_plain_loop_after_manual_seed_starts():
    engine = sequential([8])
    module = build_replicas(noisy, [8])[0]
    torch.manual_seed(8)
    expected = functional.mse_loss(module.train()(engine._x), engine._y)
    assert engine.advance(np.ones(1), None)[0, 0] == expected.item()


def test_the_state_holds_generators_and_buffers():
    whole, first, second = (sequential([7, 8]) for _ in range(3))
    expected = whole.advance(np.ones(10), None)
    first.advance(np.ones(4), None)
    second.load_state(first.state())
    np.testing.assert_array_equal(second.advance(np.ones(6), None), expected[4:])
    for name, tensor in whole.parameters().items():
        assert torch.equal(second.parameters()[name], tensor)


def test_states_are_copies(engine_class, problem):
    engine = problem().engine(engine_class, Adam(0.1))
    engine.advance(np.ones(2), None)
    state, parameters = engine.state(), engine.parameters()
    kept = {name: tensor.clone() for name, tensor in (state | parameters).items()}
    engine.advance(np.ones(2), None)
    engine.freeze([0])
    for name, tensor in (state | parameters).items():
        assert torch.equal(tensor, kept[name]), name
