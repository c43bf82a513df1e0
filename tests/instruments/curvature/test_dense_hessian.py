"""The Hessian by units: closed forms, `torch.func.hessian`, and what it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from nablab import models
from nablab.instruments.curvature import dense_hessian
from nablab.instruments.curvature.dense_hessian import dense_hessians, dense_layers

mse = nn.functional.mse_loss
Loss = Callable[[Tensor, Tensor], Tensor]


def stacked(networks: list[nn.Module]) -> dict[str, Tensor]:
    every = [dict(network.named_parameters()) for network in networks]
    return {
        name: torch.stack([own[name].detach() for own in every]) for name in every[0]
    }


def truth(network: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    named = dict(network.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def total(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in named.values()])
        tensors = {
            name: part.view_as(p)
            for (name, p), part in zip(named.items(), parts, strict=True)
        }
        return loss(functional_call(network, tensors, (x,)), y)

    return hessian(total)(flat)


def build(make: Callable[[], nn.Module], replicas: int = 1) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return [make().double() for _ in range(replicas)]


def points(inputs: int, outputs: int, samples: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(width: int) -> Tensor:
        return torch.randn(samples, width, generator=generator, dtype=torch.float64)

    return draw(inputs), draw(outputs)


def measure(
    networks: list[nn.Module], x: Tensor, y: Tensor, loss: Loss, **options: Any
) -> Tensor:
    layers = dense_layers(networks[0])
    assert layers is not None
    found = dense_hessians(layers, stacked(networks), x, y, loss, **options)
    assert found is not None
    return found


def assert_exact(networks: list[nn.Module], x: Tensor, y: Tensor, loss: Loss) -> None:
    found = measure(networks, x, y, loss)
    for network, matrix in zip(networks, found, strict=True):
        expected = truth(network, x, y, loss)
        torch.testing.assert_close(
            matrix, expected, rtol=1e-11, atol=1e-13 * float(expected.abs().max())
        )
        assert torch.equal(matrix, matrix.T)


def test_linear_regression_has_the_hessian_of_the_textbook() -> None:
    x, y = points(3, 1)
    found = measure(build(lambda: nn.Linear(3, 1)), x, y, mse)[0]
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    torch.testing.assert_close(found, 2 * design.T @ design / len(x))


def test_softmax_regression_has_the_hessian_of_the_textbook() -> None:
    x, _ = points(2, 1)
    network = nn.Linear(2, 3, bias=False).double()
    labels = torch.arange(len(x)) % 3
    p = network(x).softmax(dim=1).detach()
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = torch.einsum("nab,nj,nq->ajbq", inner, x, x).reshape(6, 6) / len(x)
    torch.testing.assert_close(
        measure([network], x, labels, nn.functional.cross_entropy)[0], expected
    )


def test_two_scalar_layers_have_the_hessian_of_the_textbook() -> None:
    """For (w1 w2 - 1)^2: 2 w2^2 and 2 w1^2 on the diagonal, 4 w1 w2 - 2 beside it."""
    network = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    ).double()
    with torch.no_grad():
        network[0].weight.fill_(0.5)
        network[1].weight.fill_(3.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    expected = torch.tensor([[18.0, 4.0], [4.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(measure([network], one, one, mse)[0], expected)


@pytest.mark.parametrize(
    "activation", ["leaky_relu", "relu", "tanh", "sigmoid", "gelu", "silu", "elu"]
)
def test_every_activation_of_the_models(activation: Any) -> None:
    assert_exact(
        build(lambda: models.dense("2-4-5-3-1", activation), 2), *points(2, 1), mse
    )


@pytest.mark.parametrize(
    "kind", dense_hessian.ELEMENTWISE, ids=lambda kind: kind.__name__
)
def test_every_elementwise_module(kind: type[nn.Module]) -> None:
    module = kind()
    network = build(
        lambda: nn.Sequential(
            nn.Linear(2, 4), module, nn.Linear(4, 3), module, nn.Linear(3, 1)
        )
    )
    assert_exact(network, *points(2, 1), mse)
    one, other = points(1, 1, samples=9)
    both = module(torch.cat([one, other], dim=1))  # no number acts on another
    torch.testing.assert_close(
        both, torch.cat([module(one), module(other)], dim=1), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize(
    "widths", ["1-1", "3-1", "1-2-1", "2-7-1", "1-3-1-4-1", "1-5-10-10-10-10-10-5-1"]
)
def test_widths(widths: str) -> None:
    inputs = int(widths[0])
    assert_exact(
        build(lambda: models.dense(widths, "tanh"), 2), *points(inputs, 1), mse
    )


def test_several_outputs_and_an_activation_after_the_last_layer() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 3), nn.Sigmoid())

    assert_exact(build(make, 2), *points(2, 3), mse)


def test_cross_entropy_with_labels() -> None:
    x, _ = points(2, 1)
    labels = torch.arange(len(x)) % 4
    networks = build(lambda: models.dense("2-5-6-4", "tanh"), 3)
    assert_exact(networks, x, labels, nn.functional.cross_entropy)


def test_other_losses() -> None:
    networks = build(lambda: models.dense("2-5-4-2", "silu"))
    x, y = points(2, 2)
    assert_exact(
        networks, x, y.sigmoid(), nn.functional.binary_cross_entropy_with_logits
    )
    assert_exact(
        networks,
        x,
        y,
        lambda output, target: (output - target).pow(4).mean() + output.sum() / 7,
    )
    # This loss has no curvature of its own.
    assert_exact(networks, x, y, lambda output, target: (output * target).mean())
    assert_exact(networks, x, y, nn.functional.l1_loss)


def test_layers_without_bias_nested_and_with_two_activations() -> None:
    def make() -> nn.Module:
        inner = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Softplus())
        return nn.Sequential(
            nn.Linear(2, 3), nn.ReLU(inplace=True), inner, nn.Linear(4, 1, bias=False)
        )

    assert_exact(build(make, 2), *points(2, 1), mse)


def test_replicas_agree_with_one_at_a_time_in_any_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    networks = build(lambda: models.dense("1-6-5-1", "tanh"), 5)
    x, y = points(1, 1)
    whole = measure(networks, x, y, mse)
    # Pieces go from one sample of one replica to several replicas.
    for piece in (1, 800, 3_000, 6_000):
        monkeypatch.setattr(dense_hessian, "TANGENT_NUMBERS", piece)
        torch.testing.assert_close(
            measure(networks, x, y, mse), whole, rtol=1e-12, atol=1e-14
        )
    for k, network in enumerate(networks):
        torch.testing.assert_close(
            measure([network], x, y, mse)[0], whole[k], rtol=1e-12, atol=1e-14
        )


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = build(lambda: models.dense("1-6-5-1", "tanh"), 4)
    monkeypatch.setattr(dense_hessian, "TANGENT_NUMBERS", 3_000)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(measure(networks, *points(1, 1), mse))
            assert torch.get_num_threads() == threads
            # Threads that the caller starts later keep their number.
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_targets_of_their_own() -> None:
    networks = build(lambda: models.dense("1-4-1", "tanh"), 3)
    x, y = points(1, 3)
    own = y.T[..., None].contiguous()
    found = measure(networks, x, own, mse, per_replica_targets=True)
    for k, network in enumerate(networks):
        torch.testing.assert_close(
            found[k], truth(network, x, own[k], mse), rtol=1e-11, atol=1e-13
        )


def test_ragged_parts_add_up_to_the_whole() -> None:
    networks = build(lambda: models.dense("1-4-3-1", "tanh"), 2)
    x, y = points(1, 1)
    parts = [
        measure(networks, x[a:b], y[a:b], mse) * (b - a) / 23
        for a, b in ((0, 9), (9, 18), (18, 23))
    ]
    torch.testing.assert_close(
        sum(parts), measure(networks, x, y, mse), rtol=1e-12, atol=1e-14
    )


def test_float32_is_within_its_rounding() -> None:
    networks = build(lambda: models.dense("1-6-5-1", "tanh"), 2)
    x, y = points(1, 1)
    exact = measure(networks, x, y, mse)
    found = measure(
        [network.float() for network in networks], x.float(), y.float(), mse
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), exact, rtol=1e-3, atol=1e-6 * float(exact.abs().max())
    )


def test_the_network_is_left_alone() -> None:
    networks = build(
        lambda: nn.Sequential(nn.Linear(1, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    )
    before = stacked(networks)
    state = torch.get_rng_state()
    given = stacked(networks)
    layers = dense_layers(networks[0])
    assert layers is not None
    found = dense_hessians(layers, given, *points(1, 1), mse)
    assert found is not None
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in networks[0].parameters())
    assert all(torch.equal(before[name], given[name]) for name in before)
    assert torch.equal(state, torch.get_rng_state())


class Doubled(nn.Tanh):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_only_dense_networks_are_recognized() -> None:
    linear = nn.Linear(2, 2)
    tied = nn.Linear(2, 2)
    tied.weight = linear.weight
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    parametrized = nn.Sequential(nn.Linear(2, 2))
    nn.utils.parametrizations.weight_norm(parametrized[0])
    refused: list[nn.Module] = [
        nn.Sequential(nn.Tanh(), nn.Linear(2, 2)),
        nn.Sequential(),
        nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1)),
        nn.Sequential(nn.Linear(2, 2), nn.PReLU()),
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
        nn.Sequential(nn.Linear(2, 2), Doubled()),
        nn.Sequential(linear, nn.Tanh(), linear),
        nn.Sequential(linear, nn.Tanh(), tied),
        nn.RNN(2, 2),
        hooked,
        parametrized,
    ]
    assert [dense_layers(module) for module in refused] == [None] * len(refused)


def test_a_loss_that_ties_samples_together_is_left_to_the_general_way() -> None:
    networks = build(lambda: models.dense("1-4-1", "tanh"))
    layers = dense_layers(networks[0])
    assert layers is not None
    x, y = points(1, 1)
    tied = lambda output, target: mse(output, target) + output.mean().square()  # noqa: E731
    assert dense_hessians(layers, stacked(networks), x, y, tied) is None
    assert dense_hessians(layers, stacked(networks), x[None], y[None], mse) is None
