"""Tasks: one form for functions and images, compared with what `target` and `load`
give.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data
from nablab.data.user import load as own
from nablab.errors import UsageError


def test_a_function_is_its_target() -> None:
    task, target = data.task("x*sin(x)@-3..3@50"), data.target("x*sin(x)@-3..3@50")
    assert (task.loss, task.shape, task.outputs, task.held_out_name) == (
        "mse",
        (1,),
        1,
        "held_out",
    )
    assert (task.data_set, task.prepare, task.notes, task.loss_name) == (
        "",
        None,
        (),
        "MSE",
    )
    for found, expected in (
        (task.train(), target.train()),
        (task.held_out(), target.held_out()),
    ):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert torch.equal(task.prepared(7)[0], target.train()[0][:7])
    assert task.constant_loss() == pytest.approx(
        float(target.train()[1].double().var(correction=0))
    )


def test_images_are_their_set_in_the_form_of_the_networks() -> None:
    task = data.task("digits")
    assert (task.loss, task.shape, task.outputs) == ("cross_entropy", (1, 28, 28), 10)
    assert (task.data_set, task.held_out_name, task.loss_name) == (
        "digits",
        "test",
        "cross-entropy",
    )
    for split, pair in (("train", task.train()), ("test", task.held_out())):
        expected = data.load("digits", split=split, size=28, channels=1)
        assert pair[0].dtype == torch.uint8
        assert torch.equal(pair[0], expected.images)
        assert torch.equal(pair[1], expected.labels)
    train = data.load("digits", size=28, channels=1)
    assert task.prepare == train.normalize
    x, y = task.prepared(20, held_out=True)
    test = data.load("digits", split="test", size=28, channels=1).first(20)
    assert torch.equal(x, train.normalize(test.images))
    assert torch.equal(y, test.labels)
    assert data.task("digits", size=8, channels=3).shape == (3, 8, 8)


def test_the_best_constant_gives_the_entropy_of_the_classes(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], [30, 10])
    arrays = {"x_train": np.zeros((40, 9, 9), np.uint8), "y_train": labels}
    np.savez(
        tmp_path / "own.npz",
        **arrays,
        x_test=np.ones((4, 9, 9), np.uint8),
        y_test=[0, 1, 0, 1],
    )
    task = data.task(str(tmp_path / "own.npz"), size=9)
    assert task.outputs == 2
    assert task.constant_loss() == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    assert task.held_out()[0].shape == (4, 1, 9, 9)


def test_some_of_the_images_are_drawn_once() -> None:
    few, all_of_them = data.task("digits@300"), data.load("digits", size=28, channels=1)
    x, y = few.train()
    assert x.shape == (300, 1, 28, 28)
    assert torch.equal(x, data.task("digits@300").train()[0])
    # the smaller part of the larger one
    assert torch.equal(x[:100], data.task("digits@100").train()[0])
    images, labels = all_of_them.images, all_of_them.labels
    label_of = {
        tuple(i.flatten().tolist()): int(label)
        for i, label in zip(images, labels, strict=True)
    }
    assert [label_of[tuple(image.flatten().tolist())] for image in x] == y.tolist()
    assert not torch.equal(y, all_of_them.labels[:300])
    assert few.prepare == all_of_them.normalize  # of the whole training split
    assert len(few.held_out()[0]) == 500
    assert few.data_set == "digits"


def parts(images: data.ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    return images.images, images.labels


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog", "emu"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        for number in range(5):
            image = Image.fromarray(np.full((6, 6), number, np.uint8))
            image.save(tmp_path / "zoo" / name / f"{number}.png")
    task = data.task(str(tmp_path / "zoo"), size=6)
    assert (task.outputs, len(task.train()[0]), len(task.held_out()[0])) == (3, 12, 3)
    first = data.load(str(tmp_path / "zoo"), size=6)
    # by class, so the first are no sample
    assert first.labels.tolist() == sorted(first.labels.tolist())
    x, y = task.train()
    assert y.tolist() != sorted(y.tolist())
    pairs = [
        sorted(zip(images.sum((1, 2, 3)).tolist(), labels.tolist(), strict=True))
        for images, labels in ((x, y), parts(first))
    ]
    assert pairs[0] == pairs[1]
    assert "a fifth of each class was cut off" in task.notes[0]


def test_known_sets_are_not_read_to_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(data, "load", refuse)
    for name in data.image_set_names():
        assert data.task(f"{name}@500").outputs == 10
    with pytest.raises(AssertionError, match="read"):
        data.task("mnist").train()


def test_checking_a_task_costs_no_torch() -> None:
    program = (
        "import sys; from nablab import data; data.task('mnist@5'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnits", "There is no target or image set 'mnits'. Did you mean 'mnist'"),
        ("snic@40", "Did you mean 'sinc'"),
        ("./nothing", "There is nothing at ./nothing"),
        ("none.npz", "There is nothing at none.npz"),
        ("digits@0", "'digits@0' asks for no image"),
        ("sinc@1", "neither a domain such as"),
        ("1/x@-1..1@301", "is inf at x = 0"),
    ],
)
def test_what_cannot_be_learned(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        data.task(spec)
    assert message in str(error.value)


def test_more_images_than_there_are() -> None:
    task = data.task("digits@2000")
    with pytest.raises(
        UsageError, match=r"asks for 2,000 training images, but digits has 1,297"
    ):
        task.train()


def test_a_folder_does_not_hide_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sinc", "x"):
        (tmp_path / name).mkdir()
        assert data.task(name).loss == "mse"
    assert data.task("x/2").loss == "mse"


def test_your_own_images_are_read_once_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def watched(*given: Any, **options: Any) -> Any:
        calls.append(options["split"])
        return load_own(*given, **options)

    load_own = own.load_own
    monkeypatch.setattr(own, "load_own", watched)
    path = tmp_path / "own.npz"
    for classes in (4, 5):
        images = np.zeros((40, 8, 8), dtype=np.uint8)
        images[::2] = classes
        np.savez(path, images=images, labels=np.arange(40) % classes)
        os.utime(path, ns=(0, classes))
        calls.clear()
        assert [data.task(f"{path}@9", size=8).outputs for _ in range(3)] == [
            classes
        ] * 3
        assert calls == ["test"]


def test_a_folder_whose_name_ends_in_a_number_is_itself(tmp_path: Path) -> None:
    from tests.data.test_own_data import folder_of

    place = str(folder_of(tmp_path / "good@12", {"a": 5, "b": 5}))
    assert data.data_set_of(place) == place
    assert len(data.image_task(place).images()) == 8
    assert len(data.image_task(f"{place}@6").images()) == 6
    assert data.data_set_of("digits@12") == "digits"


def test_a_number_that_may_belong_to_the_name_or_not_is_refused(tmp_path: Path) -> None:
    from tests.data.test_own_data import folder_of

    for name, count in (("good", 20), ("good@12", 5)):
        folder_of(tmp_path / name, {"a": count, "b": count})
    with pytest.raises(
        UsageError,
        match=r"may mean the folder of this name or 12 images of .*good: both are there",
    ):
        data.image_task(f"{tmp_path}/good@12")
    assert len(data.image_task(f"{tmp_path}/good@12/").images()) == 8
    assert len(data.image_task(f"{tmp_path}/good/@12").images()) == 12


def test_gray_images_are_no_color(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), np.uint8)
    labels = np.arange(20) % 2
    color, gray, equal = (tmp_path / name for name in ("c.npz", "g.npz", "e.npz"))
    np.savez(color, images=images, labels=labels)
    np.savez(gray, images=images[..., 0], labels=labels)
    np.savez(equal, images=images[..., :1].repeat(3, axis=-1), labels=labels)
    data.check_color(str(color), 3)
    data.check_color(str(gray), 1)
    for spec in (str(gray), str(equal), "mnist@100"):
        with pytest.raises(UsageError, match="are gray"):
            data.check_color(spec, 3)
