"""What a number rests on is known, tested where a mistake would show, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import IterableDataset

from nablab.errors import UsageError
from nablab.instruments import (
    Closure,
    HessianOperator,
    Objective,
    gradient_norm,
    hessian_eigenvalues,
    trace_of,
)
from nablab.instruments.base.losses import counter


def common_data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, 4), torch.randint(0, 3, (12,))


def small(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))


# A mean over something other than samples


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def language_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7), Turned())


def language_data() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    ids, full = torch.randint(0, 7, (8, 6)), torch.randint(0, 7, (8, 6))
    masked = full.clone()
    masked[:, 2:] = -100
    return ids, full, masked


def test_ignored_targets_do_not_weigh() -> None:
    ids, full, masked = language_data()
    whole = torch.cat([ids, ids.flip(0)]), torch.cat([full, masked])
    model = language_model()
    expected = float(F.cross_entropy(model(whole[0]), whole[1]).detach())
    assert expected == pytest.approx(2.07901, abs=2e-5)
    for data, options in (
        ([(ids, full), (ids.flip(0), masked)], {}),
        (whole, {"batch_size": 8}),
        (whole, {"batch_size": 5}),
        ([(ids, full), (ids.flip(0), masked), (ids, torch.full_like(full, -100))], {}),
    ):
        found = Objective(model, "cross_entropy", data, **options)
        assert found.loss() == pytest.approx(expected, rel=1e-6)
        top = hessian_eigenvalues(model, "cross_entropy", data, count=1, **options)
        assert top.values[0] == pytest.approx(0.47695, abs=5e-5)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2])),
            torch.arange(12) // 4,
        ),
        (nn.CrossEntropyLoss(ignore_index=2), torch.arange(12) // 4),
        (
            nn.CrossEntropyLoss(label_smoothing=0.1),
            torch.arange(12) // 4 - 100 * (torch.arange(12) % 3 == 0).long(),
        ),
        (nn.CrossEntropyLoss(), torch.softmax(torch.arange(36.0).reshape(12, 3), 1)),
        (F.mse_loss, torch.randn(12, 3)),
        (nn.HuberLoss(), torch.randn(12, 3)),
        (
            nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])),
            torch.rand(12, 3),
        ),
    ],
)
def test_known_losses_know_what_their_mean_is_over(
    loss: object, target: Tensor
) -> None:
    x, _ = common_data()
    if isinstance(loss, nn.CrossEntropyLoss) and loss.label_smoothing:
        target = torch.where(torch.arange(12) % 3 == 0, -100, torch.arange(12) // 4)
    assert counter(loss) is not None
    model = small()
    whole = Objective(model, loss, (x, target), dtype=torch.float64)
    for size in (5, 7):
        cut = Objective(model, loss, (x, target), dtype=torch.float64, batch_size=size)
        torch.testing.assert_close(
            cut.gradient(), whole.gradient(), rtol=1e-10, atol=1e-13
        )


def test_losses_of_ones_own_that_normalize_by_batch_are_refused_over_several() -> None:
    (x, y), model = common_data(), small()
    weight = torch.tensor([1.0, 5.0, 0.2])
    order = y.argsort()  # each batch holds few classes, so nothing shows inside a batch
    batches = [(x[part], y[part]) for part in order.split(4)]

    def weighted(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, weight=weight.to(output))

    def masked(output: Tensor, target: Tensor) -> Tensor:
        kept = target > 0
        return F.cross_entropy(output[kept], target[kept])

    # The first and the last batch show nothing.
    partly = torch.tensor([1, 1, 1, 1, 0, 2, 0, 1, 2, 2, 2, 2])
    unequal = [(x[k : k + 4], partly[k : k + 4]) for k in (0, 4, 8)]
    for loss, data in ((weighted, batches), (masked, unequal)):
        Objective(model, loss, (x, y))
        with pytest.raises(UsageError, match="not the mean over its samples"):
            Objective(model, loss, data)
    samples = Closure(
        lambda m, batch: weighted(m(batch[0]), batch[1]),
        samples=lambda batch: float(weight[batch[1]].sum()),
    )
    expected = Objective(model, weighted, (x, y), dtype=torch.float64).gradient()
    found = Objective(model, samples, batches, dtype=torch.float64).gradient()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_closures_over_several_batches_are_checked() -> None:
    (x, y), model = common_data(), small()
    summed = Closure(
        lambda m, batch: F.cross_entropy(m(batch[0]), batch[1], reduction="sum")
    )
    with pytest.raises(UsageError, match="not the mean over its samples"):
        Objective(model, summed, [(x[:6], y[:6]), (x[6:], y[6:])])
    fixed = torch.rand(6)
    weighted = Closure(
        lambda m, b: (
            fixed.to(b[0]) * F.cross_entropy(m(b[0]), b[1], reduction="none")
        ).mean()
    )
    checked = Objective(model, weighted, [(x[:6], y[:6]), (x[6:], y[6:])])
    assert any("could not be checked" in note for note in checked.notes)


def test_sequences_laid_out_time_first_are_counted_along_the_second_axis() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.r, self.o = nn.LSTM(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.r(x)[0].mean(0))

    torch.manual_seed(0)
    x, y = torch.randn(5, 9, 3), torch.randint(0, 3, (9,))
    own = lambda output, target: F.cross_entropy(output, target)  # noqa: E731
    for loss in ("cross_entropy", own):
        whole = Objective(TimeFirst(), loss, (x, y), dtype=torch.float64)
        parts = [(x[:, :5], y[:5]), (x[:, 5:], y[5:])]
        found = Objective(TimeFirst(), loss, parts, dtype=torch.float64)
        torch.testing.assert_close(
            found.gradient(), whole.gradient(), rtol=1e-10, atol=1e-13
        )


@pytest.mark.parametrize("case", ["drift", "blocks", "sorted"])
def test_one_batch_is_cut_only_where_the_mean_is_known(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nablab.instruments.curvature import operators

    monkeypatch.setattr(operators, "CACHE_BYTES", 2000)
    torch.manual_seed(0)
    x, y = torch.randn(400, 4), torch.randint(0, 3, (400,))
    model: nn.Module = small()
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    if case == "drift":
        model = nn.Sequential(
            nn.Linear(4, 6),
            nn.BatchNorm1d(6, track_running_stats=False),
            nn.Linear(6, 3),
        )
        x = x + 2 * torch.sin(torch.arange(400)[:, None] / 400 * 4 * np.pi)
    if case == "blocks":
        y = torch.where((torch.arange(400) // 50) % 4 == 1, -100, y)
    if case == "sorted":
        y = torch.cat([y[:200].sort().values] * 2)
        weight = torch.tensor([1.0, 5.0, 0.2])
        loss = lambda o, t: F.cross_entropy(o, t, weight=weight.to(o))  # noqa: E731
    operator = HessianOperator(model.double(), loss, (x, y))
    assert (len(operator.objective.batches) > 1) is (case == "blocks")
    whole = HessianOperator(model, loss, (x, y), batch_size=400)
    vector = torch.randn(operator.shape[0], dtype=torch.float64)
    torch.testing.assert_close(
        operator @ vector, whole @ vector, rtol=1e-10, atol=1e-13
    )


# Shapes that broadcast


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "l1",
        F.smooth_l1_loss,
        nn.MSELoss(),
        nn.HuberLoss(),
        lambda o, t: (o - t).square().mean(),
        lambda o, t: torch.mean(torch.abs(torch.sub(o, t))),
    ],
)
def test_targets_that_would_be_broadcast_are_refused(loss: object) -> None:
    x, y = torch.randn(30, 4), torch.randn(30)
    with pytest.raises(UsageError, match=r"\(30, 1\).*\(30,\).*unsqueeze"):
        gradient_norm(small(1), loss, (x, y))
    assert gradient_norm(small(1), loss, (x, y[:, None])).norm > 0


def test_losses_that_compare_all_pairs_on_purpose_are_taken() -> None:
    x, y = torch.randn(30, 4), torch.randn(30)

    def ranked(output: Tensor, target: Tensor) -> Tensor:
        later = target[:, None] > target[None]
        return (F.softplus(output - output.T) * later).mean()

    assert gradient_norm(small(1), ranked, (x, y)).norm > 0


# Derivatives inside the forward pass


def test_a_physics_informed_loss() -> None:
    t = torch.linspace(0, 1, 12)[:, None]
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))

    def residual(model: nn.Module, batch: Tensor) -> Tensor:
        s = batch.detach().requires_grad_()
        u = model(s)
        slope = torch.autograd.grad(u.sum(), s, create_graph=True)[0]
        return (slope + u).square().mean() + (
            model(torch.zeros_like(s[:1])) - 1
        ).square().mean()

    asking = t.clone().requires_grad_()
    given = Closure(
        lambda m, s: (
            (torch.autograd.grad(m(s).sum(), s, create_graph=True)[0] + m(s))
            .square()
            .mean()
        )
    )
    assert gradient_norm(net, Closure(residual), t).norm == pytest.approx(
        1.98742, abs=2e-5
    )
    top = hessian_eigenvalues(net, Closure(residual), t, count=1)
    assert top.values[0] == pytest.approx(7.65934, abs=1e-4)
    assert gradient_norm(net, given, asking).norm > 0
    with torch.no_grad():
        assert Objective(net, Closure(residual), t).loss() > 0


# Randomness


class Dropped(nn.Module):
    """A layer left out in one pass of a hundred, drawn from one of three generators."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.a, self.b, self.draw = nn.Linear(4, 4), nn.Linear(4, 3), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x if self.draw() < 0.01 else x + self.a(x))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: float(torch.rand(())),
        lambda: float(np.random.rand()),  # noqa: NPY002, the generator that users have
        random.random,
    ],
)
def test_randomness_that_fires_seldom_is_refused_every_time(
    draw: Callable[[], float],
) -> None:
    for _ in range(5):
        with pytest.raises(UsageError, match="forward pass is random: it draws"):
            Objective(Dropped(draw), "cross_entropy", common_data())


def test_what_draws_in_evaluation_mode_is_told_what_else_it_may_be() -> None:
    (x, y), model = common_data(), small().eval()
    with pytest.raises(
        UsageError,
        match=r"in evaluation mode, so it is something else.*functional.dropout",
    ):
        Objective(model, lambda o, t: F.cross_entropy(F.dropout(o, 0.5), t), (x, y))


def test_noise_that_is_seeded_at_every_call_is_no_randomness() -> None:
    def noisy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        torch.manual_seed(5)
        own = torch.Generator().manual_seed(4)
        x = (
            batch[0]
            + torch.randn_like(batch[0])
            + torch.randn(batch[0].shape, generator=own).to(batch[0])
        )
        return F.cross_entropy(model(x), batch[1])

    model, data = small(), common_data()
    state = torch.get_rng_state()
    assert gradient_norm(model, Closure(noisy), data).norm > 0
    assert torch.equal(torch.get_rng_state(), state)


# Buffers that change


class Counting(nn.Module):
    def __init__(self, used: bool) -> None:
        super().__init__()
        self.l, self.used = nn.Linear(4, 3), used
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.l(x) * (self.seen if self.used else 1)


def test_a_counter_may_count_but_not_decide() -> None:
    data = common_data()
    model = Counting(False).train()
    model.seen = torch.zeros((), dtype=torch.int64)
    assert gradient_norm(model, "cross_entropy", data).norm > 0
    assert int(model.seen) == 0
    with pytest.raises(
        UsageError, match=r"depends on buffers that every forward pass changes \(seen\)"
    ):
        Objective(Counting(True).eval(), "cross_entropy", data)


# Data of other forms


@dataclass
class Record:
    x: Tensor
    y: Tensor


class Stream(IterableDataset):
    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(zip(*common_data(), strict=True))


def test_usual_forms_of_data() -> None:
    (x, y), model = common_data(), small()
    expected = gradient_norm(model, "cross_entropy", (x, y)).norm
    record = Closure(lambda m, batch: F.cross_entropy(m(batch.x), batch.y))
    assert gradient_norm(model, record, Record(x, y)).norm == pytest.approx(expected)
    assert gradient_norm(model, "cross_entropy", Stream()).norm == pytest.approx(
        expected
    )
    nested = Closure(lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]["labels"]))
    assert gradient_norm(model, nested, (x, {"labels": y})).norm == pytest.approx(
        expected
    )
    mask = torch.zeros(12, 3)
    mask[:, 2] = -torch.inf
    masked = gradient_norm(
        model, lambda o, t: F.cross_entropy(o, t.clamp(max=1)), (x, y)
    ).norm
    assert masked > 0
    added = Closure(lambda m, b: F.cross_entropy(m(b[0]) + b[1], b[2].clamp(max=1)))
    assert gradient_norm(model, added, (x, mask, y)).norm > 0
    divergence = nn.KLDivLoss(reduction="batchmean")
    logs = nn.Sequential(model, nn.LogSoftmax(1))
    assert (
        gradient_norm(logs, divergence, (x, torch.softmax(torch.randn(12, 3), 1))).norm
        > 0
    )


def test_packed_sequences_are_one_batch() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.r, self.o = nn.GRU(3, 4), nn.Linear(4, 3)

        def forward(self, packed):  # type: ignore[no-untyped-def]
            return self.o(self.r(packed)[1][0])

    torch.manual_seed(0)
    packed = pack_padded_sequence(torch.randn(5, 3, 3), torch.tensor([5, 3, 2]))
    closure = Closure(lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]))
    y = torch.randint(0, 3, (3,))
    objective = Objective(Packed(), closure, (packed, y))
    assert objective.batches.samples == (3,)
    model = Packed()
    F.cross_entropy(model(packed), y).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(objective.gradient(), expected)
    with pytest.raises(UsageError, match="packed sequence cannot be cut"):
        Objective(Packed(), closure, (packed, y), batch_size=2)


def test_what_fails_in_the_first_pass_is_one_sentence() -> None:
    x, y = common_data()
    with pytest.raises(UsageError, match=r"\(12, 5\) float32.*mat1 and mat2"):
        Objective(small(), "cross_entropy", (torch.randn(12, 5), y))
    with pytest.raises(UsageError, match="returns a tuple"):
        Objective(TupleOut(), "cross_entropy", (x, y))
    with pytest.raises(UsageError, match="has no shape yet"):
        Objective(nn.LazyLinear(3), "cross_entropy", (x, y))
    with (
        torch.inference_mode(),
        pytest.raises(UsageError, match="Measure outside of it"),
    ):
        Objective(small(), "cross_entropy", (x, y))
    other = x.clone()
    other[0, 0] = torch.inf
    with pytest.raises(
        UsageError,
        match=r"batch 1 or its gradient is not finite. Tensor 0 of batch 1 .* 1 values",
    ):
        Objective(small(), "cross_entropy", [(x, y), (other, y)])
    with pytest.raises(
        UsageError, match="All targets in the data are marked as ignored"
    ):
        Objective(small(), "cross_entropy", (x, torch.full_like(y, -100)))


class TupleOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.l(x), x


def test_trace_of_a_loss_with_ignored_targets_in_blocks() -> None:
    ids, full, masked = language_data()
    model = language_model().double()
    parts = HessianOperator(model, "cross_entropy", [(ids, full), (ids, masked)])
    whole = HessianOperator(
        model, "cross_entropy", (torch.cat([ids, ids]), torch.cat([full, masked]))
    )
    size = parts.shape[0]
    torch.testing.assert_close(
        parts @ torch.eye(size).double(), whole @ torch.eye(size).double()
    )
    assert trace_of(parts, products=50).value == pytest.approx(
        trace_of(whole, products=50).value
    )
