"""Muon against singular values, PyTorch's own Muon and SGD."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nablab import training
from nablab.errors import UsageError
from nablab.training import Muon, Unsupported
from nablab.training.muon import Orthogonalized, orthogonalized


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7)])
def test_singular_values_become_about_one_and_directions_stay(
    shape: tuple[int, int],
) -> None:
    matrix = seeded(*shape)
    found = orthogonalized(matrix)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.25
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    # U^T (found) V is diagonal: an odd polynomial changes the singular values alone.
    inside = left.T @ found @ right.T
    torch.testing.assert_close(inside, torch.diag(inside.diag()), atol=1e-10, rtol=0)
    torch.testing.assert_close(orthogonalized(1e3 * matrix), found)


def test_it_is_the_polynomial_applied_again_and_again() -> None:
    matrix = seeded(4, 9)
    current = matrix / matrix.norm()
    for _ in range(5):
        gram = current @ current.T
        current = (
            3.4445 * current - 4.775 * gram @ current + (2.0315 * gram @ gram @ current)
        )
    torch.testing.assert_close(orthogonalized(matrix), current)
    single = orthogonalized(matrix.float())
    torch.testing.assert_close(single.double(), current, atol=1e-3, rtol=0)


def test_nothing_is_made_of_nothing() -> None:
    assert not orthogonalized(torch.zeros(2, 3)).any()


def fresh() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return fresh().double()


def walk(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        output = net(seeded(6, 2, 4, 4, seed=step))
        (output**2).mean().backward()
        optimizer.step()


def test_matrices_step_as_pytorchs_muon() -> None:
    ours, theirs = seeded(6, 9).requires_grad_(), seeded(6, 9).requires_grad_()
    head = torch.zeros(1, 1, requires_grad=True)
    spec = Muon(learning_rate=0.1, momentum=0.8, weight_decay=0.3)
    made = spec.torch_optimizer([ours, head], 0)  # type: ignore[list-item]
    their = torch.optim.Muon(
        [theirs],
        lr=0.1,
        momentum=0.8,
        weight_decay=0.3,
        adjust_lr_fn="original",
    )
    for step in range(5):
        ours.grad = seeded(6, 9, seed=step)
        theirs.grad = ours.grad.clone()
        made.step()
        their.step()
    # PyTorch's orthogonalizes in bfloat16.
    assert (ours - theirs).abs().max() < 0.02
    assert (ours - seeded(6, 9)).abs().max() > 0.2


def test_everything_else_is_trained_by_sgd() -> None:
    ours, theirs = network(), network()
    spec = Muon(
        learning_rate=0.5, others_learning_rate=0.05, others_momentum=0.7, momentum=0.6
    )
    optimizer = spec.torch_optimizer(ours.parameters(), 0)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.7, nesterov=True)
    walk(ours, optimizer, 1)
    walk(theirs, sgd, 1)
    for place in ("0.bias", "3.weight", "3.bias"):
        torch.testing.assert_close(
            ours.get_parameter(place), theirs.get_parameter(place)
        )
    changed = ours.get_parameter("0.weight") - network().get_parameter("0.weight")
    values = torch.linalg.svdvals(changed.flatten(1).detach())
    assert 0.3 < values.min() <= values.max() < 0.65


def test_the_others_keep_their_ratio_under_a_schedule() -> None:
    full, half = network(), network()
    for net, rate in ((full, 1.0), (half, 0.5)):
        made = Muon().torch_optimizer(net.parameters(), 0)
        made.param_groups[0]["lr"] *= rate
        walk(net, made, 1)
    for name, before in network().named_parameters():
        whole = full.get_parameter(name) - before
        torch.testing.assert_close(half.get_parameter(name) - before, whole / 2)


def test_a_fixed_norm_is_the_root_of_the_rows() -> None:
    net = network()
    weight = net.get_parameter("0.weight")
    with torch.no_grad():
        weight.mul_(9)
    spec = Muon(learning_rate=1e-9, fixed_norm=True)
    walk(net, spec.torch_optimizer(net.parameters(), 0), 1)
    assert weight.norm().item() == pytest.approx(2.0)  # four filters


def test_a_training_takes_it_and_says_why_it_is_not_batched() -> None:
    notes: list[str] = []
    x, y = seeded(40, 2, 4, 4).float(), torch.arange(40) % 3
    found = training.train(
        training.Supervised(fresh, "cross_entropy"),
        (x, y),
        training.Recipe(epochs=4, batch_size=10, optimizer=Muon()),
        seeds=[1, 2, 3],
        starts=[1, 2, 3],
        on_note=notes.append,
    )
    assert "sequential" in notes[-1]
    assert "Muon needs the shape of each weight" in notes[-1]
    assert (found.final < found.evaluations["train_loss"][:, 0]).all()


def test_bad_uses_are_refused() -> None:
    with pytest.raises(UsageError, match="has none"):
        Muon().torch_optimizer(nn.Linear(3, 2).parameters(), 0)
    with pytest.raises(UsageError, match="above 0"):
        Muon(learning_rate=0.0).torch_optimizer(network().parameters(), 0)
    with pytest.raises(UsageError, match="must not be negative"):
        Muon(momentum=-0.1)
    with pytest.raises(Unsupported, match="shape"):
        Muon().slots()
    assert isinstance(Muon().torch_optimizer(network().parameters(), 0), Orthogonalized)
