from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nablab.errors import UsageError
from nablab.instruments import Closure
from nablab.instruments.base.replicas import Replicas
from nablab.instruments.curvature.hessian_matrix import hessian_matrix
from nablab.instruments.curvature.inertia import in_threads, inertia, wilson_interval


class Vector(nn.Module):
    """Parameters without a network; the closures below are functions of them."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(start, dtype=torch.float64))


def measure(function, start, **options):
    options = {"neighbors": 0} | options
    loss = Closure(lambda model, batch: function(model.w))
    return inertia(Vector(start), loss, torch.zeros(1), **options)


def quadratic(matrix):
    return lambda w: w @ matrix @ w / 2


def orthogonal(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(
        torch.randn(size, size, generator=generator, dtype=torch.float64)
    )[0]


def test_a_positive_semidefinite_matrix_of_rank_60_has_no_negative_eigenvalue():
    """The naive ratio reads about .65: half of the 140 zeros are rounded up."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(200, 60, generator=generator, dtype=torch.float64)
    found = measure(quadratic(factor @ factor.T), torch.zeros(200))
    assert found.triple == (60, 140, 0)
    assert found.minimal_ratio == 0.3
    assert found.minimal_ratio_nonzero == 1.0
    assert found.uncertain == 0
    assert (found.eigenvalues > 0).mean() > 0.5


@pytest.mark.parametrize(
    "triple", [(5, 0, 3), (1, 6, 1), (0, 8, 0), (0, 3, 5), (8, 0, 0)]
)
def test_quadratics_have_their_prescribed_inertia_and_keep_it_under_congruence(triple):
    positive, zero, negative = triple
    values = torch.tensor(
        [3.0] * positive + [0.0] * zero + [-2.0] * negative, dtype=torch.float64
    )
    basis = orthogonal(8)
    matrix = basis @ torch.diag(values) @ basis.T
    # Sylvester: a change of variables keeps the signs, here one of condition 1,000.
    change = (
        orthogonal(8, 1)
        @ torch.diag(torch.logspace(0, 3, 8, dtype=torch.float64))
        @ orthogonal(8, 2)
    )
    assert measure(quadratic(matrix), torch.zeros(8)).triple == triple
    assert (
        measure(quadratic(change.T @ matrix @ change), torch.zeros(8)).triple == triple
    )


@pytest.mark.parametrize(
    ("point", "triple"),
    [((0.0, 0.0), (1, 0, 1)), ((1.0, 1.0), (1, 1, 0)), ((4.0, 0.25), (1, 1, 0))],
)
def test_the_deep_linear_network_of_two_weights(point, triple):
    found = measure(lambda w: (w[0] * w[1] - 1) ** 2 / 2, point)
    assert found.triple == triple
    assert found.gradient_norm == 0
    assert found.is_critical()
    assert np.isnan(found.flatness)


def test_the_monkey_saddle_is_flat_at_its_center():
    def saddle(w):
        return w[0] ** 3 - 3 * w[0] * w[1] ** 2

    found = measure(saddle, (0.0, 0.0), neighbors=500, radii=(0.1,))
    assert found.triple == (0, 2, 0)
    assert np.isnan(found.minimal_ratio_nonzero)
    low, high = found.neighbor_interval[0]
    assert low < 0.5 < high  # three sectors up, three down
    assert measure(saddle, (1.0, 0.0)).triple == (1, 0, 1)


def test_a_gradient_flat_point_is_not_critical():
    found = measure(lambda w: 2 * w[0] + w[1] ** 2, (0.3, 0.0))
    assert found.gradient_norm == 2
    assert found.flatness == 0
    assert not found.is_critical()
    assert found.is_critical(gradient_tolerance=2.0)
    assert measure(
        lambda w: w[0] ** 2 + w[1] ** 2 / 10, (0.5, 0.0)
    ).flatness == pytest.approx(1.0)


def test_eigenvalues_agree_with_the_matrix_and_numpy():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    data = (
        torch.randn(20, 2, dtype=torch.float64),
        torch.randn(20, 1, dtype=torch.float64),
    )
    found = inertia(module, "mse", data, neighbors=0)
    matrix = hessian_matrix(module, "mse", data).matrix
    assert found.eigenvalues == pytest.approx(np.linalg.eigvalsh(matrix), abs=1e-13)
    eps = np.finfo(np.float64).eps
    least = eps * 17 * np.abs(found.eigenvalues).max()
    assert found.noise_floor == pytest.approx(least + found.asymmetry + found.rounding)
    wide = inertia(module, "mse", data, neighbors=0, noise_factor=1e16)
    assert wide.triple == (0, 17, 0)
    floored = inertia(module, "mse", data, neighbors=0, absolute_floor=0.1)
    values = found.eigenvalues
    assert floored.triple == (
        (values > 0.1).sum(),
        (abs(values) <= 0.1).sum(),
        (values < -0.1).sum(),
    )


def test_a_unit_without_influence_gives_zeros():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        # The unit is never active: its 2 weights, bias and outgoing weight do nothing.
        module[0].bias[1] = -100.0
    data = (
        torch.randn(30, 2, dtype=torch.float64),
        torch.randn(30, 1, dtype=torch.float64),
    )
    assert inertia(module, "mse", data, neighbors=0).zero >= 4


def test_the_sampling_definition_against_a_known_share():
    """On w1^2 - w2^2 about the origin, exactly half of all directions go up."""
    found = measure(
        lambda w: w[0] ** 2 - w[1] ** 2, (0.0, 0.0), neighbors=400, radii=(0.01, 1.0)
    )
    assert found.neighbor_ratio.shape == (2,)
    for share, (low, high) in zip(
        found.neighbor_ratio, found.neighbor_interval, strict=True
    ):
        assert low < 0.5 < high
        exact = binomtest(round(share * 400), 400).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((exact.low, exact.high))
    up = measure(lambda w: w @ w, torch.zeros(3), neighbors=50, radii=(0.1,))
    assert up.neighbor_ratio == [1.0]
    assert up.neighbor_interval[0, 0] == pytest.approx(
        wilson_interval(np.array(50), 50)[0]
    )


def test_the_seed_decides_the_neighbors():
    def function(w):
        return w[0] ** 2 - w[1] ** 2 + w[2] ** 2

    one, same, other = (
        measure(function, torch.zeros(3), neighbors=300, seed=s) for s in (1, 1, 2)
    )
    assert (one.neighbor_ratio == same.neighbor_ratio).all()
    assert (one.neighbor_ratio != other.neighbor_ratio).any()


def test_replicas_agree_with_one_at_a_time():
    torch.manual_seed(0)
    modules = [
        nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        for _ in range(7)
    ]
    x = torch.linspace(-1, 1, 15, dtype=torch.float64)[:, None]
    data = [(x[:4], x[:4] ** 2), (x[4:], x[4:] ** 2)]
    together = inertia(Replicas.stack(modules), "mse", data, neighbors=20)
    assert together.triple.shape == (7, 3)
    assert together.is_critical().shape == (7,)
    for k, module in enumerate(modules):
        alone = inertia(module, "mse", (x, x**2), neighbors=20)
        assert tuple(together.triple[k]) == alone.triple
        assert together.eigenvalues[k] == pytest.approx(alone.eigenvalues, abs=1e-14)
        assert together.flatness[k] == pytest.approx(alone.flatness)
        assert together.loss[k] == pytest.approx(alone.loss)
        assert (together.neighbor_ratio[k] == alone.neighbor_ratio).all()


def test_threads_give_the_same_and_are_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        matrices = torch.randn(5, 6, 6, dtype=torch.float64)
        found = in_threads(torch.linalg.eigvalsh, matrices)
        torch.testing.assert_close(torch.stack(found), torch.linalg.eigvalsh(matrices))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_results_are_plain_and_the_cost_is_known():
    from nablab.instruments.base.measurement import Size

    found = measure(lambda w: w @ w, torch.zeros(3), neighbors=10)
    said = found.to_dict()
    assert said["positive"] == 3
    assert said["flatness"] is None
    assert isinstance(found.minimal_ratio, float)
    expected = inertia.expected(Size(3, 1, 1), neighbors=10)
    assert found.gradients == pytest.approx(expected.gradients)


def test_wrong_options_are_refused():
    with pytest.raises(UsageError, match="noise_factor=-1 is impossible"):
        measure(lambda w: w @ w, torch.zeros(3), noise_factor=-1)
    with pytest.raises(UsageError, match="absolute_floor=-1 is impossible"):
        measure(lambda w: w @ w, torch.zeros(3), absolute_floor=-1)
    with pytest.raises(UsageError, match="neighbors=-2 is impossible: give 0"):
        measure(lambda w: w @ w, torch.zeros(3), neighbors=-2)
    with pytest.raises(UsageError, match=r"radii=\(0.1, 0\) are impossible"):
        measure(lambda w: w @ w, torch.zeros(3), radii=(0.1, 0))
    with pytest.raises(UsageError, match=r"takes 160 GB .*spectral_density"):
        inertia(
            nn.Linear(1000, 100), "mse", (torch.zeros(1, 1000), torch.zeros(1, 100))
        )


def test_the_figures_show_the_counts():
    one = (
        measure(lambda w: w[0] ** 2 - w[1] ** 2 + 0 * w[2], torch.zeros(3))
        .plot()
        .axes[0]
    )
    labels = one.get_legend_handles_labels()[1]
    assert labels[:3] == ["1 positive", "1 zero", "1 negative"]
    assert labels[3].startswith("noise floor")
    assert one.get_yscale() == "log"
    modules = [nn.Linear(1, 1).double() for _ in range(4)]
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    many = inertia(Replicas.stack(modules), "mse", (x, x), neighbors=0).plot().axes[0]
    assert many.get_xlabel() == "loss"
    assert [len(line.get_xdata()) for line in many.lines] == [0, 4]


# Losses that are others with the samples, or what is taken for samples, in another
# order


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(2, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0].mean(0))


class OneSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        def passed(h: Tensor) -> Tensor:
            return h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])

        return self.last(passed(self.first(passed(x)).tanh()))


class Masked(nn.Module):
    """Attention whose causal mask (T, T) stands in the batch, of T samples."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(
            self.attention(x, x, x, attn_mask=mask, need_weights=False)[0].mean(1)
        )


class Packed(nn.Module):
    """Sequences by descending length, as `pack_padded_sequence` asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.RNN(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.recurrent(packed)[1][0])


def cox(output: Tensor, events: Tensor) -> Tensor:
    """The partial likelihood of Cox, of rows sorted by time."""
    risk = output[:, 0]
    return -((risk - torch.logcumsumexp(risk, 0)) * events[:, 0]).mean()


def ordered(name: str) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(3)
    wide = {"dtype": torch.float64}
    x, t = torch.randn(8, 2, **wide), torch.randn(8, 1, **wide)
    labels = torch.randint(0, 3, (8,))
    weights = torch.rand(8, 1, **wide)
    network = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=1), nn.Linear(3, 1))
    upper = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    return {
        "time first": lambda: (
            TimeFirst(),
            "cross_entropy",
            (torch.randn(4, 8, 2, **wide), labels),
        ),
        "one sequence": lambda: (OneSequence(), "mse", (x, t)),
        "graph": lambda: (
            Graph(),
            "cross_entropy",
            (x, torch.randint(0, 8, (2, 15)), labels),
        ),
        "mask": lambda: (
            Masked(),
            "cross_entropy",
            (torch.randn(5, 5, 2, **wide), upper, labels[:5]),
        ),
        "lengths": lambda: (
            Packed(),
            "cross_entropy",
            (torch.randn(4, 5, 2, **wide), torch.tensor([5, 4, 4, 2]), labels[:4]),
        ),
        "weights": lambda: (
            network,
            lambda o, q: (weights * (o - q) ** 2).mean(),
            (x, t),
        ),
        "weights, dense": lambda: (
            nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)),
            lambda o, q: (weights * (o - q) ** 2).mean(),
            (x, t),
        ),
        "cox": lambda: (network, cox, (x, (torch.rand(8, 1) > 0.3).double())),
    }[name]()


ORDERED = [
    "time first",
    "one sequence",
    "graph",
    "mask",
    "lengths",
    "weights",
    "weights, dense",
    "cox",
]


@pytest.mark.parametrize("name", ORDERED)
def test_losses_that_are_others_in_another_order_keep_their_inertia(name: str) -> None:
    model, loss, data = ordered(name)
    found = inertia(model, loss, data, neighbors=0)
    assert found.rounding < 1e-11 * np.abs(found.eigenvalues).max()
    model, loss, data = ordered(name)
    criterion = (
        loss
        if callable(loss)
        else {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}[loss]
    )
    own = list(model.double().parameters())
    with sdpa_kernel(SDPBackend.MATH):
        value = criterion(model(*data[:-1]), data[-1])
        gradient = torch.cat(
            [g.flatten() for g in torch.autograd.grad(value, own, create_graph=True)]
        )
        rows = [
            torch.autograd.grad(g, own, retain_graph=True, materialize_grads=True)
            for g in gradient
        ]
    truth = np.linalg.eigvalsh(
        torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).numpy()
    )
    floor = 1e-11 * np.abs(truth).max()
    assert found.triple == (
        (truth > floor).sum(),
        (abs(truth) <= floor).sum(),
        (truth < -floor).sum(),
    )


def test_a_point_on_a_kink_is_counted_on_its_side_and_it_is_said() -> None:
    """For exclusive or, one unit's input is 1 - 1 for two of the samples."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[1.0, -2.0]]))
        model[2].bias.zero_()
    x = torch.tensor(
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64
    )
    found = inertia(
        model,
        "mse",
        (x, torch.tensor([[0.0], [1.0], [1.0], [0.0]]).double()),
        neighbors=0,
    )
    # At a loss of 0 the Hessian is J'J / 2, of the rank of the outputs' Jacobian: 4
    # samples.
    assert found.triple == (4, 5, 0)
    assert any("lies on a kink" in note for note in found.notes)


def test_few_digits_inside_the_model_are_counted_and_said() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).float().tanh().to(x.dtype))

    x, y = torch.randn(12, 2), torch.randn(12, 2)
    found = inertia(Casting(), "mse", (x, y), neighbors=0)
    assert found.noise_floor > 1e-9
    assert not any("contradicts" in note for note in found.notes)
