from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from nablab.errors import UsageError
from nablab.instruments import Closure
from nablab.instruments.base.replica_objective import ReplicaObjective
from nablab.instruments.base.replicas import Replicas
from nablab.instruments.curvature.hessian_matrix import hessian_matrix
from nablab.instruments.curvature.hessian_methods import (
    DOUBLE_BACKWARD,
    PAST_ARGUMENTS,
    TIED,
    choose_way,
    hessian_blocks,
)
from tests.instruments.networks import Sine

METHODS = ["dense", "forward-over-reverse", "double-backward"]
GENERAL = METHODS[1:]


def network(seed=0, *widths, activation=nn.Tanh):
    torch.manual_seed(seed)
    widths = widths or (2, 4, 3)
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), activation())]
    return nn.Sequential(*layers[:-1]).double()


def batch(samples=12, inputs=2, outputs=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    return torch.randn(samples, inputs, **options), torch.randn(
        samples, outputs, **options
    )


def dense_truth(module, loss, data, names=None):
    """`torch.func.hessian` of the loss in one vector, with the loss written by hand."""
    own = {
        n: p.detach()
        for n, p in module.named_parameters()
        if names is None or n in names
    }

    def value(vector):
        parts = vector.split([p.numel() for p in own.values()])
        given = {
            n: v.reshape(p.shape) for (n, p), v in zip(own.items(), parts, strict=True)
        }
        return loss(functional_call(module, given, (data[0],)), data[1])

    return torch.func.hessian(value)(
        torch.cat([p.reshape(-1) for p in own.values()])
    ).numpy()


def squared(output, target):
    return (output - target).square().mean()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ReLU])
def test_networks_agree_with_the_dense_truth(method, activation):
    module, data = network(activation=activation), batch()
    found = hessian_matrix(module, "mse", data, method=method)
    assert found.method == method
    assert found.matrix == pytest.approx(
        dense_truth(module, squared, data), rel=1e-12, abs=1e-14
    )
    assert found.asymmetry < 1e-14
    assert 0 < found.rounding < 1e-14
    assert (found.matrix == found.matrix.T).all()


@pytest.mark.parametrize("method", METHODS)
def test_linear_regression_has_the_closed_form(method):
    x, y = batch(outputs=1)
    model = nn.Linear(2, 1).double()
    if method == "dense":
        # This method reads the layers of an `nn.Sequential`.
        model = nn.Sequential(model)
    found = hessian_matrix(model, "mse", (x, y), method=method)
    rows = torch.cat([x, torch.ones(12, 1, dtype=torch.float64)], dim=1)
    assert found.matrix == pytest.approx((2 * rows.T @ rows / 12).numpy(), rel=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_softmax_regression_has_the_closed_form(method):
    x, _ = batch(inputs=2)
    classes = torch.arange(12) % 3
    module = nn.Sequential(nn.Linear(2, 3, bias=False)).double()
    found = hessian_matrix(module, "cross_entropy", (x, classes), method=method).matrix
    p = module(x).softmax(dim=1).detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = torch.einsum("nab,ni,nj->aibj", curvature, x, x).reshape(6, 6) / 12
    assert found == pytest.approx(expected.numpy(), rel=1e-12, abs=1e-15)


def test_logistic_regression_has_the_closed_form():
    x, _ = batch()
    y = (torch.arange(12) % 2).double()[:, None]
    module = nn.Linear(2, 1, bias=False).double()
    p = module(x).sigmoid().detach()
    found = hessian_matrix(module, "binary_cross_entropy", (x, y)).matrix
    assert found == pytest.approx(((x * p * (1 - p)).T @ x / 12).numpy(), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_ragged_batches_and_chunks_change_nothing(method, chunk):
    module, (x, y) = network(), batch()
    whole = hessian_matrix(module, "mse", (x, y), method=method).matrix
    ragged = hessian_matrix(
        module, "mse", [(x[:5], y[:5]), (x[5:], y[5:])], method=method, chunk=chunk
    )
    cut = hessian_matrix(module, "mse", (x, y), method=method, batch_size=7)
    assert ragged.matrix == pytest.approx(whole, rel=1e-12, abs=1e-15)
    assert cut.matrix == pytest.approx(whole, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_replicas_agree_with_one_at_a_time(method):
    modules, data = [network(seed) for seed in range(6)], batch()
    together = hessian_matrix(Replicas.stack(modules), "mse", data, method=method)
    assert together.matrix.shape == (6, 27, 27)
    assert together.asymmetry.shape == together.rounding.shape == (6,)
    for k, module in enumerate(modules):
        alone = hessian_matrix(module, "mse", data, method=method)
        assert together.matrix[k] == pytest.approx(alone.matrix, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_replicas_with_targets_of_their_own(method):
    modules, (x, _) = [network(seed) for seed in range(3)], batch()
    targets = torch.randn(3, 12, 3, dtype=torch.float64)
    found = hessian_matrix(
        Replicas.stack(modules),
        "mse",
        (x, targets),
        per_replica_targets=True,
        method=method,
    )
    for k, module in enumerate(modules):
        truth = dense_truth(module, squared, (x, targets[k]))
        assert found.matrix[k] == pytest.approx(truth, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("method", ["auto", *GENERAL])
def test_one_layer_gives_its_block(method):
    module, data = network(), batch()
    found = hessian_matrix(module, "mse", data, parameters="2.*", method=method)
    assert found.names == ("2.weight", "2.bias")
    assert found.sizes == (12, 3)
    whole = hessian_matrix(module, "mse", data).matrix
    assert found.matrix == pytest.approx(whole[-15:, -15:], rel=1e-12, abs=1e-14)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.block(x).mean(dim=1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 3, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0][:, -1]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


def convolution():
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)
    )


CASES = {
    "convolution": (convolution, (5, 1, 3, 3), 2),
    "attention": (Attention, (3, 4, 4), 4),
    "recurrent": (Recurrent, (4, 3, 2), 3),
    "tied": (Tied, (5, 3), 3),
}


@pytest.mark.parametrize("case", CASES)
def test_any_architecture_agrees_with_double_backward(case):
    build, shape, outputs = CASES[case]
    torch.manual_seed(0)
    module = build().double().eval()
    data = (
        torch.randn(shape, dtype=torch.float64),
        torch.randn(shape[0], outputs, dtype=torch.float64),
    )
    found = hessian_matrix(module, "mse", data)
    truth = hessian_matrix(module, "mse", data, method="double-backward")
    assert found.matrix == pytest.approx(truth.matrix, rel=1e-10, abs=1e-13)
    assert found.rounding < 1e-13


def test_a_loss_without_forward_derivative_falls_back_and_says_so():
    def huber(output, target):
        return F.huber_loss(output, target)

    module, data = network(), batch()
    found = hessian_matrix(nn.Sequential(module, nn.Softmax(dim=1)), huber, data)
    assert found.method == "double-backward"
    assert any(note.startswith(DOUBLE_BACKWARD[:60]) for note in found.notes)
    found = hessian_matrix(module, huber, data, method="double-backward")
    truth = hessian_matrix(module, huber, data, method="dense")
    assert found.matrix == pytest.approx(truth.matrix, rel=1e-12, abs=1e-15)


def test_a_closure_over_a_dictionary():
    module, (x, y) = network(), batch()
    loss = Closure(
        lambda model, batch: (model(batch["x"]) - batch["y"]).square().mean()
    )
    found = hessian_matrix(module, loss, {"x": x, "y": y})
    assert found.method == "forward-over-reverse"
    assert found.matrix == pytest.approx(
        dense_truth(module, squared, (x, y)), rel=1e-12, abs=1e-14
    )


@pytest.mark.parametrize("method", GENERAL)
def test_a_loss_that_is_linear_has_a_zero_hessian(method):
    module = nn.Linear(2, 1)
    found = hessian_matrix(
        module, lambda output, _: output.mean(), batch(outputs=1), method=method
    )
    assert (found.matrix == 0).all()
    assert found.asymmetry == found.rounding == 0


def test_a_wrong_derivative_shows_in_the_rounding():
    class Wrong(torch.autograd.Function):
        """A square whose forward derivative is 1 % off."""

        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.square()

        @staticmethod
        def setup_context(context, inputs, output):
            context.save_for_backward(*inputs)
            context.save_for_forward(*inputs)

        @staticmethod
        def backward(context, slope):
            return 2 * context.saved_tensors[0] * slope

        @staticmethod
        def jvp(context, tangent):
            return 2.02 * context.saved_tensors[0] * tangent

    module, data = network(), batch()
    loss = Closure(
        lambda model, batch: Wrong.apply(Wrong.apply(model(batch[0]) - batch[1])).mean()
    )
    assert (
        hessian_matrix(module, loss, data, method="forward-over-reverse").rounding
        > 1e-3
    )
    usual = hessian_matrix(module, loss, data)
    assert usual.method == "double-backward"
    assert any("contradicts reverse mode" in note for note in usual.notes)
    assert usual.rounding < 1e-12


@pytest.mark.parametrize("method", ["auto", "double-backward"])
def test_a_function_that_may_be_differentiated_once_only_is_refused(method):
    data = torch.randn(9, 3), torch.randn(9, 1)
    with pytest.raises(UsageError, match="differentiated once only"):
        hessian_matrix(Sine(exact=False), "mse", data, method=method)


def test_a_matrix_that_would_not_fit_is_refused_with_its_size():
    module = nn.Linear(1000, 100)
    with pytest.raises(
        UsageError,
        match=r"The Hessian of 100,100 parameters takes 160 GB .*hessian_eigenvalues",
    ):
        hessian_matrix(module, "mse", (torch.zeros(1, 1000), torch.zeros(1, 100)))
    with pytest.raises(
        UsageError, match=r"6 networks of 27 parameters takes .* 1e-06 GB are allowed"
    ):
        hessian_matrix(Replicas.stack([network()] * 6), "mse", batch(), max_bytes=1000)


def test_wrong_options_are_refused():
    with pytest.raises(
        UsageError, match=r"There is no method 'dens'. Did you mean 'dense'"
    ):
        hessian_matrix(network(), "mse", batch(), method="dens")
    with pytest.raises(
        UsageError, match="method='dense' needs a Sequential of Linear layers"
    ):
        hessian_matrix(
            nn.Sequential(network(), nn.Softmax(1)), "mse", batch(), method="dense"
        )
    with pytest.raises(UsageError, match="chunk=0 is impossible"):
        hessian_matrix(network(), "mse", batch(), chunk=0)


def test_the_expected_cost_is_the_cost():
    from nablab.instruments.base.measurement import Size

    module, data = network(), batch()
    found = hessian_matrix(module, "mse", data, method="forward-over-reverse", chunk=5)
    expected = hessian_matrix.expected(
        Size(27, 12, 3), chunk=5, method="forward-over-reverse"
    )
    assert found.gradients == pytest.approx(expected.gradients)
    assert expected.numbers == 2 * 27**2


def test_the_figure_names_the_parameters():
    figure = hessian_matrix(network(), "mse", batch()).plot()
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]
    assert axes.images[0].get_array().shape == (27, 27)
    assert hessian_matrix(Replicas.stack([network()] * 2), "mse", batch()).plot().axes


def held_penalty(strength):
    """Return a loss that penalizes the weights past its arguments."""
    held = {}

    def loss(output, target):
        return F.mse_loss(output, target) + strength * sum(
            p.square().sum() for p in held["model"].parameters()
        )

    return loss, held


@pytest.mark.parametrize("strength", [0.1, 1e-7])
def test_the_dense_method_is_left_where_the_loss_reaches_past_its_arguments(strength):
    module, data = network(), batch()
    loss, held = held_penalty(strength)
    held["model"] = module
    objective = ReplicaObjective(module, loss, data)
    held["model"] = objective.base.model
    way = choose_way(objective, "auto")
    assert way.method == "forward-over-reverse"
    assert way.notes == (PAST_ARGUMENTS,)
    (_, found), *_ = hessian_blocks(objective, way)
    truth = dense_truth(network(), squared, data) + 2 * strength * np.eye(27)
    assert found[0].numpy() == pytest.approx(truth, rel=1e-12, abs=1e-14)
    with pytest.raises(UsageError, match="sees nothing else"):
        choose_way(objective, "dense")


def test_samples_that_are_tied_on_a_later_batch_only():
    def loss(output, target):
        own = output[:, :1]
        tied = (own[2:] * own[:-2]).mean() if len(own) > 2 else 0.0
        return (output - target).square().mean() + tied

    module, (x, y) = network(), batch()
    found = hessian_matrix(module, loss, [(x[:2], y[:2]), (x[2:], y[2:])], check=False)
    parts = [dense_truth(module, loss, (x[a:b], y[a:b])) for a, b in ((0, 2), (2, 12))]
    assert found.matrix == pytest.approx(
        (2 * parts[0] + 10 * parts[1]) / 12, rel=1e-11, abs=1e-13
    )
    assert found.method == "forward-over-reverse"
    assert TIED in found.notes


def test_differences_are_near_the_exact_hessian_and_their_error_is_known():
    module, data = network(), batch()
    found = hessian_matrix(module, "mse", data, method="finite-difference")
    truth = hessian_matrix(module, "mse", data).matrix
    assert found.method == "finite-difference"
    error = abs(found.matrix - truth).max() / abs(truth).max()
    assert 1e-13 < error < 1e-8
    assert found.rounding > 1e-11
