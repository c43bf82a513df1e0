import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nablab.errors import UsageError
from nablab.instruments import Closure, Objective
from nablab.instruments.base.replica_objective import (
    ONE_BY_ONE,
    ForwardDifferentiable,
    ReplicaObjective,
)
from nablab.instruments.base.replicas import Replicas


def networks(count=4, hidden=3, seed=0):
    torch.manual_seed(seed)
    return [
        nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        for _ in range(count)
    ]


def batch(samples=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, samples, 2, generator=generator, dtype=torch.float64).unbind()


def test_losses_and_gradients_equal_those_of_each_network_alone():
    modules, (x, y) = networks(), batch()
    ragged = [(x[:3], y[:3]), (x[3:], y[3:])]
    objective = ReplicaObjective(Replicas.stack(modules), "mse", ragged)
    losses, gradients = objective.losses_and_gradients()
    for k, module in enumerate(modules):
        loss, gradient = Objective(
            module, "mse", (x, y), dtype=torch.float64
        ).loss_and_gradient()
        assert losses[k] == pytest.approx(loss, rel=1e-14)
        torch.testing.assert_close(gradients[k], gradient, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(objective.losses(), losses, rtol=1e-14, atol=0)
    assert objective.spent == pytest.approx(4 + 4 / 3)


def test_hessian_products_equal_finite_differences_of_the_gradient():
    objective = ReplicaObjective(Replicas.stack(networks()), "mse", batch())
    vectors = torch.randn(objective.points.shape, dtype=torch.float64)
    found = objective.products(objective.points, vectors)
    ahead, back = (
        objective.gradients(objective.points + h * vectors) for h in (1e-5, -1e-5)
    )
    torch.testing.assert_close(found, (ahead - back) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pieces", [1, 2])
def test_gradients_and_products_are_the_gradient_and_the_product_with_it(pieces):
    x, y = batch()
    data = [(x, y)] if pieces == 1 else [(x[:7], y[:7]), (x[7:], y[7:])]
    objective = ReplicaObjective(Replicas.stack(networks()), "mse", data)
    gradients, products = objective.gradients_and_products(
        objective.points, lambda g: g
    )
    torch.testing.assert_close(gradients, objective.gradients(), rtol=1e-13, atol=1e-15)
    expected = objective.products(objective.points, objective.gradients())
    torch.testing.assert_close(products, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_each_replica_may_learn_targets_of_its_own(batch_size):
    modules, (x, _) = networks(), batch()
    targets = torch.randn(4, 10, 2, dtype=torch.float64)
    objective = ReplicaObjective(
        Replicas.stack(modules),
        "mse",
        (x, targets),
        per_replica_targets=True,
        batch_size=batch_size,
    )
    for chosen in (objective, objective.subset(torch.tensor([2, 1]))):
        losses = chosen.losses()
        which = [0, 1, 2, 3] if chosen is objective else [2, 1]
        for place, k in enumerate(which):
            alone = Objective(
                modules[k], "mse", (x, targets[k]), dtype=torch.float64
            ).loss()
            assert losses[place] == pytest.approx(alone, rel=1e-13)


def test_own_targets_need_a_row_for_each_replica():
    x, y = batch()
    with pytest.raises(
        UsageError,
        match=r"target of batch 0 has shape \(10, 2\).*needs \(4, samples, \.\.\.\)",
    ):
        ReplicaObjective(
            Replicas.stack(networks()), "mse", (x, y), per_replica_targets=True
        )


def test_chosen_parameters_vary_and_the_others_stay_each_replicas_own():
    modules, data = networks(), batch()
    objective = ReplicaObjective(Replicas.stack(modules), "mse", data, parameters="2.*")
    assert objective.points.shape == (4, 8)
    for k, module in enumerate(modules):
        alone = Objective(module, "mse", data, parameters="2.*", dtype=torch.float64)
        torch.testing.assert_close(
            objective.gradients()[k], alone.gradient(), rtol=1e-12, atol=1e-15
        )


def test_buffers_may_differ_between_replicas():
    modules = [
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval() for _ in range(3)
    ]
    for k, module in enumerate(modules):
        module[1].running_mean.fill_(k)
    data = batch()
    losses = ReplicaObjective(Replicas.stack(modules), "mse", data).losses()
    for k, module in enumerate(modules):
        assert losses[k] == pytest.approx(
            Objective(module, "mse", data, dtype=torch.float64).loss()
        )


class Branching(nn.Module):
    """A model whose code looks at its numbers, which `torch.func.vmap` refuses."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        out = self.linear(x)
        return out if float(out.detach().sum()) > 0 else 2 * out


def test_models_that_cannot_be_batched_are_measured_one_by_one_and_that_is_said():
    torch.manual_seed(0)
    modules, data = [Branching() for _ in range(3)], batch()
    objective = ReplicaObjective(Replicas.stack(modules), "mse", data)
    assert objective.notes[0].startswith(ONE_BY_ONE[:45])
    losses, gradients = objective.losses_and_gradients()
    for k, module in enumerate(modules):
        loss, gradient = Objective(
            module, "mse", data, dtype=torch.float64
        ).loss_and_gradient()
        assert losses[k] == pytest.approx(loss)
        torch.testing.assert_close(gradients[k], gradient)


def test_models_are_never_written_to():
    modules = networks()
    before = [p.detach().clone() for module in modules for p in module.parameters()]
    state = torch.get_rng_state()
    ReplicaObjective(Replicas.stack(modules), "mse", batch()).losses_and_gradients()
    after = [p for module in modules for p in module.parameters()]
    assert all(
        torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True)
    )
    assert torch.equal(state, torch.get_rng_state())


def test_a_replica_becomes_a_network_again():
    modules, (x, _) = networks(), batch()
    replicas = Replicas.stack(modules).select([2, 0])
    assert len(replicas) == 2
    torch.testing.assert_close(replicas.network(0)(x.float()), modules[2](x.float()))
    wide = Replicas(
        modules[0], {"0.weight": replicas.tensors["0.weight"].double()}
    ).network(1)
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


def test_architectures_must_agree():
    with pytest.raises(
        UsageError,
        match=r"Networks 0 and 1 differ: '0.weight' has shape \(3, 2\) in the first",
    ):
        Replicas.stack([*networks(1), *networks(1, hidden=5)])
    with pytest.raises(UsageError, match=r"'0.bias' is missing in the first"):
        Replicas.stack(
            [nn.Sequential(nn.Linear(2, 3, bias=False)), nn.Sequential(nn.Linear(2, 3))]
        )
    with pytest.raises(UsageError, match="No network to stack"):
        Replicas.stack([])


def test_stacked_tensors_must_fit_the_architecture():
    module = networks(1)[0]
    with pytest.raises(
        UsageError, match=r"'0.bias' has shape \(4, 2\); .* need \(K, 3\)"
    ):
        Replicas(module, {"0.bias": torch.zeros(4, 2)})
    with pytest.raises(
        UsageError, match=r"has no tensor 'bias'. It has: 0.weight, 0.bias"
    ):
        Replicas(module, {"bias": torch.zeros(4, 3)})
    with pytest.raises(UsageError, match=r"unequal numbers of replicas"):
        Replicas(module, {"0.bias": torch.zeros(4, 3), "2.bias": torch.zeros(5, 2)})
    with pytest.raises(UsageError, match="No stacked tensors"):
        Replicas(module, {})


def test_diverged_replicas_are_named():
    weights = torch.zeros(4, 3)
    weights[2, 1] = torch.nan
    with pytest.raises(
        UsageError, match=r"Replicas 2 of 4 hold weights that are NaN or infinite"
    ):
        Replicas(networks(1)[0], {"0.bias": weights})


def test_other_things_are_no_model():
    with pytest.raises(
        UsageError, match=r"A list is not a model. Give a torch.nn.Module, Replicas"
    ):
        ReplicaObjective(networks(), "mse", batch())


def test_a_loss_without_the_parameters_is_refused():
    loss = Closure(lambda model, batch: batch.mean())
    with pytest.raises(UsageError, match="does not depend on the chosen parameters"):
        ReplicaObjective(networks(1)[0], loss, torch.ones(3)).gradients()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_mean_squared_error_written_out_is_the_same_function(reduction):
    x, y = batch()
    expected = F.mse_loss(x, y, reduction=reduction)
    with ForwardDifferentiable():
        torch.testing.assert_close(F.mse_loss(x, y, reduction=reduction), expected)
        torch.testing.assert_close(nn.MSELoss(reduction=reduction)(x, y), expected)
        torch.testing.assert_close(F.mse_loss(x, y, reduction="none"), (x - y) ** 2)
