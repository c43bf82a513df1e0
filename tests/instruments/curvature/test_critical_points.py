import numpy as np
import pytest
import torch
from scipy.sparse.linalg import minres as scipy_minres
from torch import nn

from nablab.errors import UsageError
from nablab.instruments import Closure
from nablab.instruments.base.replica_objective import ReplicaObjective
from nablab.instruments.base.replicas import Replicas
from nablab.instruments.curvature.critical_methods import spectral_norms
from nablab.instruments.curvature.critical_points import (
    DIVERGED,
    REACHED,
    USED_UP,
    find_critical_point,
)
from nablab.instruments.curvature.inertia import inertia
from nablab.instruments.curvature.minres import minres

METHODS = ["newton-minres", "levenberg-marquardt", "gradient-norm"]


class Vector(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(start, dtype=torch.float64))


def loss_of(function):
    return Closure(lambda model, batch: function(model.w))


def find(function, start, **options):
    return find_critical_point(
        Vector(start), loss_of(function), torch.zeros(1), **options
    )


def rosenbrock(w):
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


def deep_linear(w):
    return (w[0] * w[1] - 1) ** 2 / 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [0, 100])
def test_an_indefinite_quadratic_is_solved(method, first):
    basis = torch.linalg.qr(
        torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    )[0].double()
    values = torch.tensor([5.0, 3.0, 1.0, -0.5, -2.0, -4.0], dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ torch.linalg.inv(basis)
    matrix, right = (matrix + matrix.T) / 2, torch.arange(6).double()
    found = find(
        lambda w: w @ matrix @ w / 2 - right @ w,
        torch.zeros(6),
        method=method,
        lbfgs_iterations=first,
    )
    assert found.reached
    assert found.reason == REACHED
    assert found.gradient_norm <= 1e-8 < found.gradient_norm_before
    assert found.point == pytest.approx(
        torch.linalg.solve(matrix, right).numpy(), abs=1e-6
    )
    assert found.distance == pytest.approx(np.linalg.norm(found.point))


@pytest.mark.parametrize("method", METHODS)
def test_rosenbrock_has_one_critical_point(method):
    found = find(rosenbrock, (0.5, 0.0), method=method, max_iterations=1000)
    assert found.reached
    assert found.point == pytest.approx([1.0, 1.0], abs=1e-7)
    assert found.loss < 1e-15


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("start", "saddle"), [((0.2, -0.1), True), ((1.3, 0.9), False)]
)
def test_the_two_layer_linear_network_has_a_saddle_and_a_valley(method, start, saddle):
    found = find(deep_linear, start, method=method, lbfgs_iterations=20)
    assert found.reached
    if saddle:
        assert found.point == pytest.approx([0, 0], abs=1e-7)
        assert found.loss == pytest.approx(0.5)
    else:
        assert found.point[0] * found.point[1] == pytest.approx(1.0)
    triple = inertia(
        found.network(),
        loss_of(deep_linear),
        torch.zeros(1),
        neighbors=0,
        absolute_floor=1e-7,
    ).triple
    assert triple == ((1, 0, 1) if saddle else (1, 1, 0))


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_flat_point_is_never_called_critical(method):
    """The gradient's norm of w1 + w1^3 / 3 + w2^2 is least at the origin, 1."""
    found = find(lambda w: w[0] + w[0] ** 3 / 3 + w[1] ** 2, (0.7, 0.4), method=method)
    assert not found.reached
    assert found.reason.startswith("gradient-flat: ||Hg|| / (||H|| ||g||) = ")
    assert found.gradient_norm == pytest.approx(1.0, abs=1e-5)
    assert found.flatness <= 1e-3
    assert found.point == pytest.approx([0, 0], abs=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_a_kink_is_said_to_stall(method):
    """The gradient of 2 w^2 + |w| jumps from -1 to 1 at its minimum."""
    found = find(lambda w: 2 * w[0] ** 2 + w[0].abs(), (0.5,), method=method)
    assert not found.reached
    assert found.reason.startswith("stalled: no step lowers ||g||")
    assert found.flatness == pytest.approx(1.0)
    assert found.gradient_norm == pytest.approx(1.0, abs=1e-3)


def test_saddle_free_newton_leaves_a_saddle_and_finds_a_minimum():
    start = (0.2, -0.1)
    found = find(deep_linear, start, method="saddle-free-newton")
    assert found.reached
    assert found.loss < 1e-16
    assert find(deep_linear, start).loss == pytest.approx(0.5)
    assert find(rosenbrock, (-1.2, 1.0), method="saddle-free-newton").reached


def test_used_up_iterations_are_said():
    found = find(rosenbrock, (-1.2, 1.0), max_iterations=1, lbfgs_iterations=2)
    assert not found.reached
    assert found.reason == USED_UP.format(flatness=found.flatness)
    assert found.iterations == 3
    assert found.history.shape == (4,)
    assert (np.diff(found.history) < 0).all()
    assert found.history[-1] == pytest.approx(found.gradient_norm)


def test_a_start_at_zero_gradient_stays():
    found = find(deep_linear, (0.0, 0.0))
    assert found.reached
    assert found.iterations == 0
    assert found.distance == 0


def networks(count=5):
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        for _ in range(count)
    ]


def curve():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    return x, torch.sin(3 * x)


def ridge(model, batch):
    """Return squared error with weight decay, so that the best weights are finite."""
    decay = sum(p.square().sum() for p in model.parameters())
    return (model(batch[0]) - batch[1]).square().mean() + 0.01 * decay


@pytest.fixture(scope="module")
def minima():
    return find_critical_point(
        Replicas.stack(networks()),
        Closure(ridge),
        curve(),
        method="saddle-free-newton",
        max_iterations=60,
    )


def test_saddle_free_newton_brings_networks_to_minima(minima):
    assert minima.reached.all()
    assert (minima.loss < minima.loss_before).all()
    check = inertia(minima.replicas, Closure(ridge), curve(), neighbors=0)
    assert check.is_critical(1.001e-8).all()
    assert (check.triple == [10, 0, 0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_networks_reach_zero_gradient_and_the_certificate_agrees(minima, method):
    modules, (x, y) = [minima.network(k) for k in range(5)], curve()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (p for module in modules for p in module.parameters()):
            parameter += 0.003 * torch.randn_like(parameter)
    before = [p.detach().clone() for module in modules for p in module.parameters()]
    data = [(x[:10], y[:10]), (x[10:], y[10:])]
    found = find_critical_point(
        Replicas.stack(modules), Closure(ridge), data, method=method
    )
    assert found.reached.all()
    assert found.reason == (REACHED,) * 5
    assert found.point == pytest.approx(minima.point, abs=1e-5)
    check = inertia(found.replicas, Closure(ridge), (x, y), neighbors=0)
    assert check.gradient_norm == pytest.approx(found.gradient_norm, abs=1e-13)
    after = [p for module in modules for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_replicas_agree_with_one_at_a_time():
    """Ten iterations, for differences in rounding grow with every step."""
    modules, data = networks(), curve()
    options = {"max_iterations": 4, "lbfgs_iterations": 6}
    together = find_critical_point(Replicas.stack(modules), "mse", data, **options)
    for k, module in enumerate(modules):
        alone = find_critical_point(module, "mse", data, **options)
        assert together.point[k] == pytest.approx(alone.point, abs=1e-6)
        assert together.reason[k] == alone.reason
        own = together.history[: len(alone.history), k]
        assert own == pytest.approx(alone.history, rel=1e-4, abs=1e-9)


def test_a_diverged_replica_leaves_the_others_untouched():
    start = torch.tensor([[0.2, -0.1], [1e200, 1e200], [1.3, 0.9]], dtype=torch.float64)
    both = Replicas(Vector([0.0, 0.0]), {"w": start})
    good = Replicas(Vector([0.0, 0.0]), {"w": start[[0, 2]]})
    options = {"loss": loss_of(deep_linear), "data": torch.zeros(1)}
    found = find_critical_point(both, **options)
    without = find_critical_point(good, **options)
    assert found.reason[1] == DIVERGED
    assert found.reached.tolist() == [True, False, True]
    assert found.point[[0, 2]] == pytest.approx(without.point)
    assert found.point[1] == pytest.approx([1e200, 1e200])


def test_one_layer_may_be_moved_alone():
    module, data = networks(1)[0], curve()
    found = find_critical_point(module, "mse", data, parameters="2.*")
    assert found.reached
    assert found.point.shape == (4,)
    moved = found.network()
    assert torch.equal(moved[0].weight, module[0].weight)
    assert not torch.equal(moved[2].weight, module[2].weight)


def test_large_networks_are_solved_without_a_matrix():
    module = nn.Linear(3, 1)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    found = find_critical_point(module, "mse", (x, x[:, :1]), max_bytes=10)
    assert found.method == "newton-minres"
    assert found.reached
    with pytest.raises(UsageError, match=r"The Hessian of .*4 parameters takes"):
        find_critical_point(
            module, "mse", (x, x[:, :1]), max_bytes=10, method="levenberg-marquardt"
        )


def symmetric(count, size, rank=None):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(
        torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    )[0]
    values = torch.linspace(-2, 3, size, dtype=torch.float64).repeat(count, 1)
    if rank is not None:
        values[:, rank:] = 0
    return basis @ (values[:, :, None] * basis.mT)


def test_minres_solves_indefinite_systems_as_scipy_does():
    matrices = symmetric(4, 12)
    right = torch.randn(
        4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    right[3] = 0

    def product(v):
        return (matrices @ v[..., None])[..., 0]

    found = minres(product, right, torch.full((4,), 1e-12, dtype=torch.float64), 40)
    torch.testing.assert_close(product(found), right, rtol=0, atol=1e-9)
    few = minres(product, right, torch.zeros(4, dtype=torch.float64), 5)
    for k in range(3):
        theirs, _ = scipy_minres(
            matrices[k].numpy(), right[k].numpy(), maxiter=5, rtol=1e-14
        )
        assert few[k].numpy() == pytest.approx(theirs, rel=1e-8)


def test_minres_gives_a_least_squares_solution_of_singular_systems():
    matrices = symmetric(2, 10, rank=6)
    right = torch.randn(
        2, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    found = minres(
        lambda v: (matrices @ v[..., None])[..., 0],
        right,
        torch.full((2,), 1e-12, dtype=torch.float64),
        60,
    )
    residual = right - (matrices @ found[..., None])[..., 0]
    assert float((matrices @ residual[..., None]).norm()) < 1e-6
    assert found.isfinite().all()


def test_spectral_norms_against_numpy():
    matrices = symmetric(1, 8)
    objective = ReplicaObjective(
        Vector(torch.zeros(8)),
        loss_of(lambda w: w @ matrices[0] @ w / 2),
        torch.zeros(1),
    )
    found = spectral_norms(objective, objective.points, seed=0)
    assert float(found) == pytest.approx(3.0, rel=0.02)


def test_wrong_options_are_refused():
    with pytest.raises(
        UsageError, match=r"There is no method 'newton'. Did you mean 'newton-minres'"
    ):
        find(rosenbrock, (0.0, 0.0), method="newton")
    with pytest.raises(
        UsageError, match="tolerance=0 is impossible: no gradient in floating point"
    ):
        find(rosenbrock, (0.0, 0.0), tolerance=0)
    with pytest.raises(UsageError, match="max_iterations=-1 is impossible"):
        find(rosenbrock, (0.0, 0.0), max_iterations=-1)


def test_results_are_plain_and_the_figure_shows_every_replica():
    found = find_critical_point(
        Replicas.stack(networks(3)), "mse", curve(), max_iterations=3
    )
    said = found.to_dict()
    assert "replicas" not in said
    assert len(said["point"]) == 3
    axes = found.plot().axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "norm of the gradient"
    assert len(axes.lines) == 4
    assert find(rosenbrock, (0.5, 0.0)).plot().axes[0].lines
