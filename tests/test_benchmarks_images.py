"""The benchmark of the image path: equal work on both sides, and it runs where
something is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from benchmarks import image_cases, images
from benchmarks.__main__ import main
from benchmarks.child import Cost
from benchmarks.image_cases import Images
from benchmarks.peers import Absent, image_loops
from nablab import data, errors, training


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads of PyTorch wait for each other at every operation when other tests
    hold the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few() -> Images:
    """90 images of MNIST's shape, 30 to test."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (120, 1, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.arange(120) % 10
    normalize = data.Normalize((image_cases.MEAN,), (image_cases.STD,))
    return Images("few", (x[:90], y[:90]), (x[90:], y[90:]), normalize)


@pytest.fixture
def colored() -> Images:
    """40 images of CIFAR-10's shape, 10 to test."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.arange(50) % 10
    normalize = data.Normalize((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    return Images("colored", (x[:40], y[:40]), (x[40:], y[40:]), normalize)


@pytest.mark.parametrize("name", ["few", "colored"])
def test_the_notebooks_transform_gives_what_the_whole_batch_gives(
    name: str, request: pytest.FixtureRequest
) -> None:
    few: Images = request.getfixturevalue(name)
    samples = image_loops.PerSample.of(few)
    x = torch.stack([samples[index][0] for index in range(len(samples))])
    torch.testing.assert_close(x, few.prepare(few.train[0]), rtol=1e-5, atol=1e-6)
    assert [samples[index][1] for index in range(12)] == few.train[1][:12].tolist()


def test_the_notebooks_evaluation_is_right_for_a_last_batch_that_is_smaller(
    few: Images,
) -> None:
    torch.manual_seed(0)
    model = image_cases.lenet().eval()
    loss, accuracy = image_loops.notebook_evaluation(model, few, batch_size=25)
    with torch.no_grad():
        output = model(few.prepare(few.test[0]))
    assert loss == pytest.approx(
        torch.nn.functional.cross_entropy(output, few.test[1]).item(), rel=1e-5
    )
    assert accuracy == (output.argmax(1) == few.test[1]).double().mean().item()


def test_both_sides_take_the_steps_of_an_epoch(
    few: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """90 samples in batches of 40 are 3 steps, for either side."""
    taken = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *a: (taken.append(1), step(self, *a))
    )
    image_loops.notebook_epoch(image_cases.lenet, few, 40)
    assert len(taken) == 3
    found = []
    fit = training.fit
    monkeypatch.setattr(training, "fit", lambda *a, **o: found.append(fit(*a, **o)))
    images.train(image_cases.lenet, few, seeds=2, epochs=1, batch_size=40)
    assert found[0].train_loss.shape == (2, 3)
    assert found[0].engine == "fused-images"
    assert np.isfinite(found[0].train_loss).all()


def test_without_mnist_random_bytes_stand_for_it_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise errors.DataError("The data set mnist cannot be fetched.\nTried: nothing")

    monkeypatch.setattr(data, "load", refuse)
    color = image_cases.load("cifar10", quick=True)
    assert color.train[0].shape == (1_000, 3, 32, 32)
    assert "CIFAR-10 is not here" in color.note
    found = image_cases.load(quick=True)
    assert found.name == "random bytes"
    assert "MNIST is not here: The data set mnist cannot be fetched." in found.note
    assert found.train[0].shape == (1_000, 1, 28, 28)
    assert found.train[0].dtype == torch.uint8


def test_peers_that_are_not_installed_are_absent(
    few: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(Absent, match="Lightning is not installed"):
        image_loops.lightning_epoch(image_cases.lenet, few, 64)
    with pytest.raises(Absent, match="Keras 3 on JAX is not installed"):
        image_loops.keras_epoch(few, 64)


def test_whole_runs_say_time_memory_and_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scripted(command: Sequence[str], **environment: str) -> Cost:
        if "sharpness" in command:
            return Cost(1.0, 1, 1, "it broke")
        return Cost(12.0, 500_000_000, 0, "")

    monkeypatch.setattr("benchmarks.images.cost", scripted)
    commands = [
        (("cnn-depth", "--preset", "standard"), ("20 s", "8 s")),
        (("sharpness",), None),
    ]
    found = images.measure_runs(commands, lambda text: None)
    assert found.tables[0].rows == [
        ("nablab run cnn-depth --preset standard", "12 s", "500 MB")
    ]
    assert found.tables[0].notes[0] == "nablab run sharpness ended with 1: it broke"
    assert [(goal.measured, goal.at_least) for goal in found.goals] == [
        ("12 s", "20 s"),
        ("0.5 GB", "3 GB"),
    ]


def test_the_quick_benchmark_prints_every_row(
    few: Images,
    colored: Images,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(name: str = "mnist", *, quick: bool) -> Images:
        return few if name == "mnist" else colored

    monkeypatch.setattr(images, "load", load)
    monkeypatch.setattr(
        images, "cost", lambda command, **environment: Cost(1.0, 1_000_000, 0, "")
    )
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    monkeypatch.setitem(sys.modules, "keras", None)
    main(["--quick", "--only", "images"])
    printed = capsys.readouterr().out
    for text in (
        "one epoch of LeNet on 90 images",
        "one epoch of conv32-pool-dense on 40 images (colored), batch 32",
        "2 widths of 784-h-10",
        "interpolation of LeNet",
        "No Keras",
    ):
        assert text in printed
