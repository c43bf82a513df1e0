"""The fused kernel: PyTorch in float64 is the truth, and each replica is alone in the
world, bit for bit.
"""

import copy
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.training.engine import Unsupported
from nablab.training.fused import compiler
from nablab.training.fused import dense as fused
from nablab.training.fused.dense import FusedEngine
from nablab.training.optimizers import SGD, Adam, AdamW, RMSprop

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
OPTIMIZERS = {
    "sgd": SGD(0.05),
    "sgd-decay": SGD(0.05, weight_decay=0.1),
    "momentum": SGD(0.02, momentum=0.9, weight_decay=0.01),
    "nesterov": SGD(0.02, momentum=0.9, nesterov=True),
    "rmsprop": RMSprop(0.003, smoothing=0.9, epsilon=1e-5, weight_decay=0.01),
    "rmsprop-momentum": RMSprop(0.002, momentum=0.8),
    "adam": Adam(0.01, betas=(0.8, 0.99), epsilon=1e-6, weight_decay=0.1),
    "adamw": AdamW(0.01, weight_decay=0.2),
}
STATE = ("weights", "first", "second", "taken", "active")


def network(
    widths, activation="leaky", *, seed=0, bias=True, dtype=torch.float64, last=False
):
    torch.manual_seed(seed)
    parts = []
    for inputs, outputs in itertools.pairwise(widths):
        parts += [
            nn.Linear(inputs, outputs, bias=bias, dtype=dtype),
            ACTIVATIONS[activation](),
        ]
    return nn.Sequential(*(parts if last else parts[:-1]))


def data(samples, inputs, outputs, *, dtype=torch.float64, replicas=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    shape = (samples, outputs) if replicas is None else (replicas, samples, outputs)
    return x.to(dtype), torch.randn(shape, generator=generator, dtype=torch.float64).to(
        dtype
    )


def engine(modules, x, y, optimizer=None, *, per_replica_targets=False):
    return FusedEngine(
        modules,
        x,
        y,
        loss="mse",
        optimizer=optimizer or Adam(0.01),
        per_replica_targets=per_replica_targets,
    )


def torch_optimizer(spec, parameters, replica):
    """The optimizer of `torch.optim` with the same numbers."""

    def pick(value):
        return value[replica] if isinstance(value, tuple) else value

    common = {"lr": pick(spec.learning_rate), "weight_decay": pick(spec.weight_decay)}
    if isinstance(spec, SGD):
        return torch.optim.SGD(
            parameters, momentum=pick(spec.momentum), nesterov=spec.nesterov, **common
        )
    if isinstance(spec, RMSprop):
        smoothing, momentum = pick(spec.smoothing), pick(spec.momentum)
        return torch.optim.RMSprop(
            parameters,
            alpha=smoothing,
            eps=pick(spec.epsilon),
            momentum=momentum,
            **common,
        )
    kind = torch.optim.AdamW if isinstance(spec, AdamW) else torch.optim.Adam
    return kind(
        parameters,
        betas=tuple(pick(beta) for beta in spec.betas),
        eps=pick(spec.epsilon),
        **common,
    )


def torch_training(module, x, y, optimizer, *, replica=0, rates, batches=None):
    """Plain PyTorch: the losses before each step, and the trained module."""
    module = copy.deepcopy(module)
    stepper = torch_optimizer(optimizer, module.parameters(), replica)
    base = stepper.param_groups[0]["lr"]
    losses = []
    for step, rate in enumerate(rates):
        stepper.param_groups[0]["lr"] = base * rate
        rows = slice(None) if batches is None else batches[step, replica]
        stepper.zero_grad()
        loss = nn.functional.mse_loss(module(x[rows]), y[rows])
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    return np.array(losses), module


def assert_trains_like_torch(
    modules,
    x,
    y,
    optimizer,
    *,
    rates,
    batches=None,
    per_replica_targets=False,
    tolerance=1e-10,
):
    ours = engine(modules, x, y, optimizer, per_replica_targets=per_replica_targets)
    losses = ours.advance(np.array(rates), batches)
    parameters = ours.parameters()
    for k, module in enumerate(modules):
        labels = y[k] if per_replica_targets else y
        truth, trained = torch_training(
            module, x, labels, optimizer, replica=k, rates=rates, batches=batches
        )
        np.testing.assert_allclose(losses[:, k], truth, rtol=tolerance)
        assert set(parameters) == {name for name, _ in trained.named_parameters()}
        for name, value in trained.named_parameters():
            scale = float(value.detach().abs().max())
            torch.testing.assert_close(
                parameters[name][k], value.detach(), rtol=0, atol=tolerance * scale
            )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float64_equals_autograd_and_torch_optim(activation, optimizer):
    x, y = data(37, 3, 2)
    modules = [network([3, 5, 17, 1, 6, 2], activation, seed=seed) for seed in range(2)]
    rates = [1.0, 0.5, 2.0, 1.0, 0.1, 1.0]
    assert_trains_like_torch(modules, x, y, OPTIMIZERS[optimizer], rates=rates)


@pytest.mark.parametrize("samples", [1, 3, 8, 130, 700])
@pytest.mark.parametrize(
    "widths",
    [[1, 1], [1, 33, 1], [5, 17, 33, 3], [2, 7, 8, 9, 10, 11, 12, 13, 2], [33, 64, 5]],
)
@pytest.mark.parametrize("bias", [True, False])
def test_every_width_and_number_of_samples(monkeypatch, widths, samples, bias):
    # so that 700 samples are several tiles
    monkeypatch.setattr(fused, "TILE_BYTES", 1024)
    x, y = data(samples, widths[0], widths[-1])
    assert_trains_like_torch(
        [network(widths, bias=bias)], x, y, Adam(0.01), rates=[1.0] * 3
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_after_the_last_layer(activation):
    x, y = data(20, 2, 3)
    assert_trains_like_torch(
        [network([2, 6, 3], activation, last=True)], x, y, SGD(0.1), rates=[1.0] * 4
    )


@pytest.mark.parametrize("activation", ["relu", "leaky"])
def test_the_slope_at_zero_is_that_of_torch(activation):
    module = network([1, 3, 1], activation)
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.zero_()
    x, y = data(9, 1, 1)
    assert_trains_like_torch([module], x, y, SGD(0.1), rates=[1.0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_stays_near_torch(activation):
    x, y = data(300, 1, 1, dtype=torch.float32)
    modules = [network([1, 5, 10, 10, 5, 1], activation, dtype=torch.float32)]
    assert_trains_like_torch(
        modules, x, y, SGD(0.05, momentum=0.9), rates=[1.0] * 20, tolerance=2e-5
    )


def test_float32_tanh_is_accurate_over_its_range():
    x = torch.cat(
        [
            torch.linspace(-12, 12, 20001),
            torch.logspace(-30, 0, 1000),
            torch.tensor([0.0, 80.0, -1e30]),
        ]
    )
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh())
    nn.init.ones_(module[0].weight)
    output = engine([module], x[:, None], x[:, None]).predict(x[:, None])[0, :, 0]
    truth = torch.tanh(x.double())
    torch.testing.assert_close(output.double(), truth, rtol=4e-7, atol=0)
    assert output.abs().max() <= 1


def test_each_replica_has_its_own_numbers():
    x, y = data(40, 2, 1)
    modules = [network([2, 5, 1], seed=seed) for seed in range(3)]
    adam = AdamW(
        learning_rate=(0.001, 0.01, 0.1),
        betas=((0.9, 0.5, 0.1), 0.99),
        epsilon=1e-6,
        weight_decay=(0.0, 0.1, 1.0),
    )
    for optimizer in (
        adam,
        SGD((0.1, 0.01, 0.001), momentum=(0.0, 0.5, 0.9), weight_decay=(0.0, 0.1, 0.2)),
    ):
        assert_trains_like_torch(modules, x, y, optimizer, rates=[1.0] * 5)


@pytest.mark.parametrize("per_replica_targets", [False, True])
@pytest.mark.parametrize("batch_sizes", [(8, 8, 3), (1, 20), (300,)])
def test_batches_and_per_replica_targets(monkeypatch, batch_sizes, per_replica_targets):
    monkeypatch.setattr(fused, "TILE_BYTES", 1024)
    x, y = data(50, 3, 2, replicas=2 if per_replica_targets else None)
    modules = [network([3, 7, 2], "tanh", seed=seed) for seed in range(2)]
    ours = engine(modules, x, y, per_replica_targets=per_replica_targets)
    generator = torch.Generator().manual_seed(5)
    batches = [
        torch.randint(50, (1, 2, size), generator=generator) for size in batch_sizes
    ]
    losses = np.concatenate([ours.advance(np.ones(1), batch) for batch in batches])
    ours_trained = ours.parameters()
    for k, module in enumerate(modules):
        rows = [batch[0, k] for batch in batches]
        module = copy.deepcopy(module)
        stepper = torch_optimizer(Adam(0.01), module.parameters(), k)
        for step, row in enumerate(rows):
            stepper.zero_grad()
            loss = nn.functional.mse_loss(
                module(x[row]), (y[k] if per_replica_targets else y)[row]
            )
            loss.backward()
            stepper.step()
            np.testing.assert_allclose(losses[step, k], loss.item(), rtol=1e-10)
        for name, value in module.named_parameters():
            torch.testing.assert_close(
                ours_trained[name][k], value.detach(), rtol=1e-9, atol=1e-10
            )


def test_full_batch_with_per_replica_targets():
    x, y = data(50, 3, 2, replicas=3)
    modules = [network([3, 7, 2], seed=seed) for seed in range(3)]
    assert_trains_like_torch(
        modules, x, y, Adam(0.01), rates=[1.0] * 4, per_replica_targets=True
    )


def test_nested_sequential_and_names():
    class Named(nn.Sequential):
        pass

    torch.manual_seed(0)
    module = Named()
    module.add_module(
        "body", nn.Sequential(nn.Identity(), nn.Linear(2, 4), nn.Tanh(), nn.Identity())
    )
    module.add_module("head", nn.Linear(4, 1, bias=False))
    module = module.double()
    x, y = data(10, 2, 1)
    assert_trains_like_torch([module], x, y, Adam(), rates=[1.0] * 2)
    ours = engine([module], x, y)
    assert {name: tuple(value.shape) for name, value in ours.parameters().items()} == {
        "body.1.weight": (1, 4, 2),
        "body.1.bias": (1, 4),
        "head.weight": (1, 1, 4),
    }
    torch.testing.assert_close(
        ours.predict(x)[0], module(x).detach(), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("samples", [1, 5, 300, 1111])
def test_predict_on_other_samples(samples):
    x, y = data(20, 3, 2)
    modules = [network([3, 9, 21, 2], "tanh", seed=seed) for seed in range(2)]
    ours = engine(modules, x, y)
    others = torch.randn(samples, 3, dtype=torch.float64)
    predicted = ours.predict(others)
    assert predicted.shape == (2, samples, 2)
    for module, output in zip(modules, predicted, strict=True):
        torch.testing.assert_close(
            output, module(others).detach(), rtol=1e-11, atol=1e-12
        )


def trained(seeds, *, x, y, steps=25, threads=1, optimizer=None, batches=None):
    modules = [
        network([1, 5, 10, 10, 3, 1], seed=seed, dtype=x.dtype) for seed in seeds
    ]
    ours = engine(modules, x, y, optimizer)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return ours, ours.advance(np.ones(steps), batches)
    finally:
        torch.set_num_threads(before)


def assert_same_bits(one, other, *, rows=slice(None)):
    for name in STATE:
        assert torch.equal(one.state()[name][rows], other.state()[name][rows]), name


@pytest.mark.parametrize("with_batches", [False, True])
def test_bits_depend_neither_on_replicas_nor_on_threads(with_batches):
    x, y = data(300, 1, 1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    batches = (
        torch.randint(300, (25, 7, 33), generator=generator) if with_batches else None
    )
    together, losses = trained(range(7), x=x, y=y, batches=batches)
    for threads in (2, 3, 16):
        other, other_losses = trained(
            range(7), x=x, y=y, threads=threads, batches=batches
        )
        assert_same_bits(together, other)
        np.testing.assert_array_equal(losses, other_losses)
    for k in range(7):
        alone, alone_losses = trained(
            [k], x=x, y=y, batches=None if batches is None else batches[:, k : k + 1]
        )
        assert torch.equal(alone.predict(x)[0], together.predict(x)[k])
        assert torch.equal(alone.state()["weights"][0], together.state()["weights"][k])
        np.testing.assert_array_equal(alone_losses[:, 0], losses[:, k])


def test_bits_do_not_depend_on_how_steps_are_cut_into_calls():
    x, y = data(100, 1, 1, dtype=torch.float32)
    whole, losses = trained(range(3), x=x, y=y, steps=25)
    parts, first = trained(range(3), x=x, y=y, steps=11)
    np.testing.assert_array_equal(
        np.concatenate([first, parts.advance(np.ones(14), None)]), losses
    )
    assert_same_bits(whole, parts)


def test_freezing_leaves_the_frozen_and_the_others_alone():
    x, y = data(100, 1, 1, dtype=torch.float32)
    whole, losses = trained(range(3), x=x, y=y, steps=20)
    ours, _ = trained(range(3), x=x, y=y, steps=8)
    frozen = ours.state()["weights"][1]
    ours.freeze([1])
    rest = ours.advance(np.ones(12), None)
    assert np.isnan(rest[:, 1]).all()
    np.testing.assert_array_equal(rest[:, [0, 2]], losses[8:, [0, 2]])
    assert torch.equal(ours.state()["weights"][1], frozen)
    for row in (0, 2):
        assert torch.equal(ours.state()["weights"][row], whole.state()["weights"][row])


def test_divergence_stops_one_replica_only():
    x, y = data(100, 1, 1, dtype=torch.float32)
    quiet, expected = trained(range(3), x=x, y=y, optimizer=SGD(0.01))
    wild, losses = trained(range(3), x=x, y=y, optimizer=SGD((0.01, 1e6, 0.01)))
    failed = int(np.argmin(np.isfinite(losses[:, 1])))
    assert failed > 0
    assert np.isfinite(losses[:failed, 1]).all()
    assert np.isnan(losses[failed + 1 :, 1]).all()
    np.testing.assert_array_equal(losses[:, [0, 2]], expected[:, [0, 2]])
    for row in (0, 2):
        assert torch.equal(wild.state()["weights"][row], quiet.state()["weights"][row])
    assert wild.state()["active"].tolist() == [True, False, True]
    assert np.isnan(wild.advance(np.ones(2), None)[:, 1]).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_goes_on_bit_for_bit(optimizer):
    x, y = data(100, 1, 1, dtype=torch.float32)
    whole, losses = trained(
        range(2), x=x, y=y, steps=20, optimizer=OPTIMIZERS[optimizer]
    )
    half, _ = trained(range(2), x=x, y=y, steps=9, optimizer=OPTIMIZERS[optimizer])
    saved = half.state()
    half.advance(np.ones(3), None)  # what was saved must be a copy
    resumed, _ = trained(
        range(5, 7), x=x, y=y, steps=2, optimizer=OPTIMIZERS[optimizer]
    )
    resumed.load_state(saved)
    np.testing.assert_array_equal(resumed.advance(np.ones(11), None), losses[9:])
    assert_same_bits(whole, resumed)


def test_no_steps_are_no_steps():
    x, y = data(10, 1, 1)
    ours, losses = trained([0], x=x, y=y, steps=0)
    assert losses.shape == (0, 1)
    assert ours.state()["taken"].tolist() == [0]


class Shared(nn.Sequential):
    def __init__(self):
        inner = nn.Linear(2, 2)
        super().__init__(inner, nn.ReLU(), inner, nn.ReLU(), nn.Linear(2, 1))


class OwnForward(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def frozen_layer():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].weight.requires_grad_(False)
    return module


def hooked():
    module = nn.Sequential(nn.Linear(2, 1))
    module[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return module


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 1)),
            "no Dropout",
        ),
        (
            lambda: nn.Sequential(
                nn.Linear(2, 3), nn.ReLU(), nn.Tanh(), nn.Linear(3, 1)
            ),
            "does not follow",
        ),
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), "does not follow"),
        (lambda: nn.Sequential(nn.Identity()), "no linear layer"),
        (
            lambda: nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(-0.1), nn.Linear(3, 1)),
            "negative slope",
        ),
        (lambda: nn.Sequential(nn.Linear(3, 1)), "are not (N, 3)"),
        (lambda: nn.Sequential(nn.Linear(2, 3)), "are not (9, 3)"),
        (lambda: nn.Sequential(nn.Linear(2, 1)).double(), "not all float32"),
        (
            lambda: nn.Sequential(
                nn.Linear(2, 3000), nn.Linear(3000, 3000), nn.Linear(3000, 1)
            ),
            "PyTorch is faster",
        ),
        (OwnForward, "no OwnForward"),
        (Shared, "share their weights"),
        (frozen_layer, "do not train"),
        (hooked, "has hooks"),
    ],
)
def test_refuses_with_a_reason(build, reason):
    x, y = data(9, 2, 1, dtype=torch.float32)
    with pytest.raises(Unsupported) as caught:
        engine([build()], x, y)
    assert reason in str(caught.value)


def test_refuses_networks_that_differ():
    x, y = data(9, 2, 1)
    with pytest.raises(Unsupported, match="differ in their layers"):
        engine([network([2, 3, 1], "relu"), network([2, 3, 1], "tanh")], x, y)


def test_wrong_inputs_and_indices_never_reach_the_kernel():
    x, y = data(9, 2, 1)
    ours = engine([network([2, 1])], x, y)
    with pytest.raises(UsageError, match=r"inputs of shape \(N, 2\), got \(9, 3\)"):
        ours.predict(torch.zeros(9, 3))
    for index in (-1, 9):
        with pytest.raises(IndexError, match="indices from 0 to 8"):
            ours.advance(np.ones(1), torch.full((1, 1, 4), index))
    assert ours.predict(torch.zeros(4, 2)).dtype == torch.float64
    with pytest.raises(UsageError, match="3 values for 1 replicas"):
        engine([network([2, 1])], x, y, SGD((0.1, 0.2, 0.3)))


def test_refuses_other_losses():
    x, y = data(9, 2, 1)
    with pytest.raises(Unsupported, match="mean squared error only"):
        FusedEngine(
            [network([2, 1])],
            x,
            y,
            loss="cross_entropy",
            optimizer=SGD(),
            per_replica_targets=False,
        )


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path))
    compiler._load.cache_clear()
    yield tmp_path / "kernels"
    compiler._load.cache_clear()


def test_without_a_compiler(monkeypatch, fresh_cache):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    x, y = data(9, 1, 1)
    with pytest.raises(
        Unsupported, match=r"no C compiler found \(tried \$CC, cc, gcc and clang\)"
    ):
        engine([network([1, 1])], x, y)


def test_with_a_broken_compiler(monkeypatch, fresh_cache, tmp_path):
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\necho 'cc: fatal error: out of luck' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    with pytest.raises(Unsupported, match="fatal error: out of luck"):
        compiler.load("float")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        pytest.param(lambda content: b"", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_library_is_built_again(fresh_cache, damage):
    compiler.load("float")
    (library,) = fresh_cache.glob("*.so")
    content = library.read_bytes()
    # A new file: truncating one that this process has mapped would crash it.
    library.unlink()
    library.write_bytes(damage(content))
    compiler._load.cache_clear()
    compiler.load("float").nablab_lanes()
    (rebuilt,) = fresh_cache.glob("*.so")
    assert len(rebuilt.read_bytes()) == len(content)


def test_a_library_is_compiled_once(fresh_cache, monkeypatch):
    compiler.load("float")
    compiler._load.cache_clear()
    monkeypatch.setattr(compiler, "_build", lambda *_: pytest.fail("compiled again"))
    compiler.load("float")


@pytest.mark.slow
def test_an_unwritable_cache_is_no_obstacle(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path / "file"))
    compiler._load.cache_clear()
    assert compiler.load("float").nablab_lanes() >= 2
    compiler._load.cache_clear()


@pytest.mark.slow
def test_two_processes_may_compile_at_once(tmp_path):
    script = (
        "from nablab.training.fused import compiler; "
        "print(compiler.load('float').nablab_lanes())"
    )
    environment = os.environ | {"NABLAB_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()].count(".so") >= 1
