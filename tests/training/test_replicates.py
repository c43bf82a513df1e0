"""Networks of different seeds are replicates: other weights, nothing shared; or it is
said, or refused.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nablab import training
from nablab.errors import UsageError

X = torch.linspace(-1, 1, 16)[:, None]


def fit(
    build: Callable[[], nn.Module], *, seeds: Any = (1, 2, 3), **options: Any
) -> tuple[Any, list[str]]:
    notes: list[str] = []
    settings: dict[str, Any] = {
        "steps": 3,
        "replicas": "sequential",
        "on_note": notes.append,
        **options,
    }
    result = training.fit(build, (X, X**2), seeds=seeds, **settings)
    return result, [note for note in notes if "every seed" in note]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def seeded_by_torch() -> nn.Module:
    torch.manual_seed(0)
    return network()


def filled(draw: Callable[[int], Any]) -> nn.Module:
    module = network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(
                torch.tensor(draw(parameter.numel()), dtype=torch.float32).view_as(
                    parameter
                )
            )
    return module


def from_numpy() -> nn.Module:
    return filled(lambda n: np.random.normal(size=n))  # noqa: NPY002


def seeded_by_numpy() -> nn.Module:
    np.random.seed(0)  # noqa: NPY002
    return from_numpy()


def from_python() -> nn.Module:
    return filled(lambda n: [random.random() for _ in range(n)])


def seeded_by_python() -> nn.Module:
    random.seed(0)
    return from_python()


def from_a_generator_of_its_own() -> nn.Module:
    generator = np.random.default_rng(0)
    return filled(lambda n: generator.normal(size=n))


def zeros() -> nn.Module:
    return filled(lambda n: [0.0] * n)


class Dropping(nn.Module):
    """Dropout that no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = zeros()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(nn.functional.dropout(x, 0.5, self.training))


def of_copies() -> Callable[[], nn.Module]:
    one = network()
    return lambda: copy.deepcopy(one)


@pytest.mark.parametrize("build", [network, from_numpy, from_python])
def test_weights_follow_the_seed_whatever_generator_they_are_drawn_from(
    build: Any,
) -> None:
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    result, notes = fit(build)
    assert notes == []
    assert len(set(result.train_loss[:, 0])) == 3
    again, _ = fit(build, seeds=[3])
    assert again.train_loss[0, 0] == result.train_loss[2, 0]
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("seeds", [(1, 2, 3), (1,)], ids=["three", "one"])
@pytest.mark.parametrize(
    ("build", "library"),
    [
        (seeded_by_torch, "PyTorch"),
        (seeded_by_numpy, "NumPy"),
        (seeded_by_python, "Python's random"),
    ],
)
def test_a_function_that_seeds_itself_is_refused(
    build: Any, library: str, seeds: Any
) -> None:
    with pytest.raises(
        UsageError, match=f"sets the seed of .*{library}.* itself.*Remove that line"
    ):
        fit(build, seeds=seeds, batch_size=4)


@pytest.mark.parametrize("build", [from_a_generator_of_its_own, zeros, of_copies()])
def test_one_draw_for_all_seeds(build: Any) -> None:
    with pytest.raises(UsageError, match="the trials would be copies of each other"):
        fit(build)
    for varying in (
        {"batch_size": 4},
        {"optimizer": training.SGD(learning_rate=(0.1, 0.2, 0.3))},
    ):
        result, notes = fit(build, **varying)
        assert len(notes) == 1
        assert "the same weights under every seed" in notes[0]
        assert len(set(result.final.tolist())) == 3
    assert len(fit(build, seeds=[1])[1]) == 1


def test_labels_and_dropout_of_each_seed_are_something_that_varies() -> None:
    own = torch.stack([X, X**2, X**3])
    _, notes = _fit_own(zeros, own)
    assert len(notes) == 1
    _, notes = fit(Dropping)
    assert len(notes) == 1


def _fit_own(build: Any, labels: torch.Tensor) -> tuple[Any, list[str]]:
    notes: list[str] = []
    options: Any = {
        "steps": 3,
        "replicas": "sequential",
        "per_replica_targets": True,
        "on_note": notes.append,
    }
    result = training.fit(build, (X, labels), seeds=[1, 2, 3], **options)
    return result, [note for note in notes if "every seed" in note]


def test_one_network_handed_out_again_is_refused() -> None:
    one, backbone = network(), nn.Linear(1, 4)
    frozen = nn.Linear(1, 4).requires_grad_(False)
    with pytest.raises(UsageError, match=r"handed out '0.weight' before"):
        fit(lambda: one, batch_size=4)
    with pytest.raises(UsageError, match=r"handed out '0.weight' before"):
        fit(lambda: nn.Sequential(backbone, nn.Linear(4, 1)))
    fit(lambda: nn.Sequential(frozen, nn.Linear(4, 1)))


def test_a_trained_network_handed_out_to_the_next_training_is_refused() -> None:
    one = network()
    assert len(fit(lambda: one, seeds=[1], batch_size=4)[1]) == 1
    with pytest.raises(UsageError, match="handed out"):
        fit(lambda: one, seeds=[1], batch_size=4)


def test_statistics_of_a_shared_normalization_are_something_that_is_trained() -> None:
    norm = nn.BatchNorm1d(1, affine=False)
    with pytest.raises(UsageError, match="running_mean"):
        fit(lambda: nn.Sequential(norm, network()))


def test_starts_that_are_shared_on_purpose_are_neither_noted_nor_refused() -> None:
    result, notes = fit(network, starts=[7, 7, 7], batch_size=4)
    assert notes == []
    assert len(set(result.final.tolist())) == 3
    # The losses before any step are those of the first weights.
    before = result.evaluations["train_loss"][:, 0]
    assert len(set(before.tolist())) == 1
    assert fit(network, starts=[8], seeds=[3], batch_size=4)[1] == []


def test_a_start_decides_the_weights_and_a_seed_the_order_of_samples() -> None:
    apart, _ = fit(network, seeds=[1, 2, 1, 2], starts=[7, 7, 8, 8], batch_size=4)
    before = apart.evaluations["train_loss"][:, 0]
    assert before[0] == before[1] != before[2] == before[3]
    alone, _ = fit(network, seeds=[7], batch_size=4)
    assert alone.evaluations["train_loss"][0, 0] == before[0]
    assert alone.final[0] not in apart.final
    same, _ = fit(network, seeds=[1, 2, 1, 2], starts=[1, 2, 1, 2], batch_size=4)
    usual, _ = fit(network, seeds=[1, 2], batch_size=4)
    assert same.final[:2].tolist() == usual.final.tolist()


def test_a_learner_has_starts_of_its_own_too() -> None:
    def loss(net: Any, batch: Any, moment: Any) -> Any:
        return {"loss": (net(batch["x"]) - batch["y"]).square().mean()}

    def train(**options: Any) -> Any:
        return training.train(
            training.Minimize(network, loss),
            {"x": X, "y": X**2},
            training.Recipe(steps=3, batch_size=4),
            **options,
        )

    apart = train(seeds=[1, 2, 3], starts=[7, 7, 8])
    before = apart.evaluations["train_loss"][:, 0]
    assert before[0] == before[1] != before[2]
    assert len(set(apart.final.tolist())) == 3


def test_starts_that_make_copies_of_one_trial_are_refused() -> None:
    with pytest.raises(UsageError, match="copies of each other"):
        fit(network, starts=[7, 7, 7])
    with pytest.raises(UsageError, match="copies of each other"):
        fit(network, starts=[7, 8, 7])
    fit(network, starts=[7, 8, 9])
    with pytest.raises(UsageError, match="2 entries for 3 seeds"):
        fit(network, starts=[7, 8], batch_size=4)
    with pytest.raises(UsageError, match="starts=7 is not a sequence of seeds"):
        fit(network, starts=7, batch_size=4)
    with pytest.raises(UsageError, match="sets the seed of PyTorch"):
        fit(seeded_by_torch, starts=[7, 8, 9], batch_size=4)


def test_equal_seeds_are_equal_on_purpose() -> None:
    rates = training.SGD(learning_rate=(0.1, 0.2))
    result, notes = fit(network, seeds=[1, 1], optimizer=rates)
    assert notes == []
    assert result.train_loss[0, 0] == result.train_loss[1, 0]
