"""The recorder of weights: every engine, every step asked for, and the same after an
interruption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nablab.errors import Interrupted, UsageError
from nablab.training import Checkpoint, Context, Probe, fit
from nablab.training.recording import WeightRecorder, path_array, path_from_array

X = torch.linspace(-1, 1, 12)[:, None]
SEEDS = [3, 4, 5]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))


def train(recorder: Probe, **options: Any) -> Any:
    return fit(
        build,
        (X, X**2),
        **{"seeds": SEEDS, "steps": 10, "probes": [recorder], **options},
    )


@pytest.mark.parametrize("replicas", ["sequential", "auto"])
def test_points_are_the_weights_of_shorter_trainings(replicas: str) -> None:
    recorder = WeightRecorder(every=4)
    train(recorder, replicas=replicas, batch_size=5)
    assert recorder.steps.tolist() == [0, 4, 8, 10]
    for index, steps in enumerate((4, 8, 10), start=1):
        expected = train(
            Probe(), replicas=replicas, batch_size=5, steps=steps
        ).parameters()
        assert set(recorder.weights) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(recorder.weights[name][index], tensor)
    torch.manual_seed(SEEDS[1])
    for name, tensor in build().state_dict().items():
        torch.testing.assert_close(recorder.path(1)[0][name], tensor, rtol=0, atol=0)


def test_paths_are_the_replicas() -> None:
    recorder = WeightRecorder(every=5)
    train(recorder)
    weights = recorder.weights
    assert weights["0.weight"].shape == (3, 3, 6, 1)
    for replica in range(3):
        path = recorder.path(replica)
        assert len(path) == 3
        for point, kept in enumerate(path):
            torch.testing.assert_close(
                kept["0.weight"], weights["0.weight"][point, replica]
            )


def test_chosen_parameters_only() -> None:
    recorder = WeightRecorder(every=5, parameters=["0.*", "2.bias"])
    train(recorder)
    assert set(recorder.weights) == {"0.weight", "0.bias", "2.bias"}


class Interrupting:
    """Says stop once, after ``after`` questions."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_training_ends_with_the_same_points(
    tmp_path: Path, after: int
) -> None:
    whole = WeightRecorder(every=3)
    train(whole, eval_every=2)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    with pytest.raises(Interrupted):
        train(
            WeightRecorder(every=3),
            eval_every=2,
            checkpoint=checkpoint,
            should_stop=Interrupting(after),
        )
    resumed = WeightRecorder(every=3)
    train(resumed, eval_every=2, checkpoint=checkpoint)
    np.testing.assert_array_equal(resumed.steps, [0, 3, 6, 9, 10])
    np.testing.assert_array_equal(resumed.steps, whole.steps)
    for name, tensor in whole.weights.items():
        assert torch.equal(resumed.weights[name], tensor)


def test_a_recorder_that_is_used_again_starts_anew() -> None:
    recorder = WeightRecorder(every=5)
    train(recorder)
    train(recorder, steps=5)
    assert recorder.steps.tolist() == [0, 5]


def test_points_do_not_change_as_training_goes_on() -> None:
    class Watching(WeightRecorder):
        def on_step_end(self, context: Context) -> None:
            super().on_step_end(context)
            self.seen = [
                *getattr(self, "seen", []),
                self.weights["0.weight"][-1].clone(),
            ]

    recorder = Watching(every=2)
    train(recorder, replicas="sequential")
    torch.testing.assert_close(
        recorder.weights["0.weight"][1:], torch.stack(recorder.seen), rtol=0, atol=0
    )
    assert not torch.equal(recorder.seen[0], recorder.seen[-1])


def test_bad_input_is_refused() -> None:
    with pytest.raises(UsageError, match=r"every=0 is impossible"):
        WeightRecorder(every=0)
    with pytest.raises(
        UsageError,
        match=r"no parameter '1.weight'.*Did you mean.*Choices: 0.weight, 0.bias",
    ):
        train(WeightRecorder(every=1, parameters="1.weight"))


def test_the_first_replicas_alone_can_be_kept() -> None:
    data = (
        torch.randn(12, 1, generator=torch.Generator().manual_seed(0)),
        torch.ones(12, 1),
    )
    some, every = WeightRecorder(every=2, replicas=2), WeightRecorder(every=2)
    fit(
        lambda: nn.Linear(1, 1),
        data,
        seeds=[0, 1, 2],
        steps=5,
        batch_size=4,
        probes=[some, every],
    )
    assert some.weights["weight"].shape == (4, 2, 1, 1)
    torch.testing.assert_close(
        some.weights["weight"], every.weights["weight"][:, :2], rtol=0, atol=0
    )
    # float32 of two, not of three
    assert some.path(0)[0]["weight"].untyped_storage().nbytes() == 8
    again = WeightRecorder(every=2, replicas=2)
    again.load_state(some.state())
    torch.testing.assert_close(again.path(1), some.path(1), rtol=0, atol=0)
    with pytest.raises(UsageError, match="replicas=0 is impossible"):
        WeightRecorder(every=2, replicas=0)


def test_a_path_survives_as_an_array() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    path = [
        {n: p.detach() + t for n, p in network.named_parameters()} for t in range(4)
    ]
    rows = path_array(path)
    assert rows.shape == (4, 13)
    assert rows[1] == pytest.approx(rows[0] + 1)
    assert rows[2, :6] == pytest.approx(path[2]["0.weight"].flatten().numpy())
    torch.testing.assert_close(path_from_array(rows, network), path, rtol=0, atol=0)
