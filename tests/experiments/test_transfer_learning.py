"""Transfer learning: what each method trains, which images it sees, bad settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nablab.contract import Condition, Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments import transfer_learning
from nablab.experiments.transfer_learning import (
    DRIFTING,
    EVERYTHING,
    FROZEN,
    LAST,
    PIXELS,
    PROBE,
    RANDOM,
    SCRATCH,
    TransferLearning,
)
from nablab.lab.notebook import Notebook

SEEDS = (0,)
OWN_MODULE = """
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3)
        self.last = nn.Linear(4, 7)
    def features(self, x):
        return self.body(x).relu().mean(dim=(2, 3))
    def forward(self, x):
        return self.last(self.features(x))

def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> TransferLearning:
    values: dict[str, Any] = {
        "data": "digits@600",
        "widths": "4,5",
        "images": "3,6",
        "steps": 6,
        "batch_size": 8,
        "source_epochs": 1,
        "validation": 40,
        "test_images": 50,
    }
    return resolve(TransferLearning, "quick", {**values, **overrides})


def trained(experiment: TransferLearning) -> Records:
    found: list[Any] = []
    by_method: dict[str, list[Condition]] = {}
    for condition in experiment.conditions():
        by_method.setdefault(str(condition["method"]), []).append(condition)
    for conditions in by_method.values():
        for condition in conditions:
            trials = Trials([condition], SEEDS)
            lab = Notebook(experiment, trials)
            experiment.run(trials, lab)
            found += lab.records()
    return Records(found)


@pytest.fixture(scope="module")
def records() -> Records:
    return trained(small())


def test_each_method_trains_what_it_says(records: Records) -> None:
    # widths 4 and 5, 5 classes: convolutions without bias, batch norm of 2 per channel
    head = 5 * 5 + 5
    last = 4 * 5 * 9 + 2 * 5
    first = 1 * 4 * 9 + 2 * 4
    expected = {
        PIXELS: 64 * 5 + 5,
        RANDOM: head,
        PROBE: head,
        FROZEN: head,
        DRIFTING: head,
        LAST: last + head,
        EVERYTHING: first + last + head,
        SCRATCH: first + last + head,
    }
    for record in records:
        method = str(record.condition["method"])
        assert record.scalars["trained_parameters"] == expected[method]
    assert {str(record.condition["method"]) for record in records} == set(expected)


def test_only_the_mistake_moves_statistics() -> None:
    experiment = small()
    for method, moves in ((LAST, False), (DRIFTING, True)):
        net = experiment.network_of(Condition(method=method, images=3))
        assert isinstance(net, torch.nn.Module)
        norm: Any = net.get_submodule("net.blocks.0.2")
        before = norm.running_mean.clone()
        net.train()(torch.randn(6, 1, 8, 8))
        assert torch.equal(before, norm.running_mean) is not moves


def test_the_mistake_is_recorded(records: Records) -> None:
    # 0 where the best step is the first one: nothing had moved
    for record in records.where(method=DRIFTING):
        assert record.scalars["statistics_moved"] > 0
    assert all("statistics_moved" not in r.scalars for r in records.where(method=LAST))


def test_frozen_is_drifting_but_for_the_mode_of_batch_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = transfer_learning.models.FineTuned

    class Still(real):  # type: ignore[misc, valid-type]
        def __init__(self, net: Any, names: Any = None, **_: Any) -> None:
            super().__init__(net, names)

    monkeypatch.setattr(transfer_learning.models, "FineTuned", Still)
    monkeypatch.setattr(TransferLearning, "_record", _with_logits)
    KEPT.clear()
    trained(small(methods=f"{FROZEN},{DRIFTING}", images="6"))
    frozen, drifting = KEPT
    torch.testing.assert_close(frozen, drifting, rtol=1e-3, atol=1e-4)


KEPT: list[torch.Tensor] = []


def _with_logits(
    self: Any, trial: Any, lab: Any, target: Any, logits: Any, seconds: float
) -> None:
    KEPT.append(logits["test"])


def test_fewer_labeled_images_are_a_part_of_more() -> None:
    experiment = small()
    target, places = None, {}
    for count in (3, 6):
        trials = Trials([Condition(method=PROBE, images=count)], SEEDS)
        lab = Notebook(experiment, trials)
        target = transfer_learning._target(experiment, 0)
        (trial,) = trials
        places[count] = target.labeled(count, trial, lab)
        assert target.train.labels[places[count]].bincount().tolist() == [count] * 5
    assert set(places[3].tolist()) < set(places[6].tolist())


def test_splits_are_disjoint_and_the_source_has_other_classes() -> None:
    target = transfer_learning._target(small(), 0)
    assert target.source is not None
    assert not set(target.source.classes) & set(target.train.classes)
    parts = (target.train, target.validation, target.test)
    seen = [{image.numpy().tobytes() for image in part.images} for part in parts]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_your_own_network(tmp_path: Any) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN_MODULE, encoding="utf-8")
    methods = f"{PROBE},{EVERYTHING}"
    for record in trained(small(model=f"{file}:Own", methods=methods, images="6")):
        head = 4 * 5 + 5
        whole = record.condition["method"] == EVERYTHING
        expected = head + (4 * 9 + 4) * whole
        assert record.scalars["trained_parameters"] == expected
    with pytest.raises(UsageError, match="features"):
        small(model=f"{file}:bare")


def test_figures(records: Records) -> None:
    assert set(small().figures(records)) == {"accuracy", "mistake"}
    chosen = Records(r for r in records if r.condition["method"] == PROBE)
    assert set(small().figures(chosen)) == {"accuracy"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": "5,12"}, "none of"),
        ({"classes": "5"}, "nothing to tell apart"),
        ({"classes": "0,1,2,3,4,5,6,7,8"}, "two other classes"),
        ({"widths": ""}, "no layers"),
        ({"widths": "2,2,2,2,2"}, "cannot be halved"),
        ({"batch_size": 1}, "variance"),
        ({"trunk": "resnet18"}, "in color"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**settings)


def test_more_labeled_images_than_there_are() -> None:
    with pytest.raises(UsageError, match="asks for more than there are"):
        trained(small(images="500", methods=PROBE))
