"""Drawings of images in rows: every image and the words below it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, plots
from nablab.contract import Condition, Curve, Record, Records


def texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_every_image_is_drawn_as_it_is_with_its_words() -> None:
    draw = np.random.default_rng(0)
    gray, color = (
        draw.integers(256, size=(2, 1, 5, 4)),
        draw.integers(256, size=(1, 3, 5, 4)),
    )
    rows = {
        "first": [(gray[0], "a"), (gray[1], "b")],
        "second": [(color[0].astype(np.uint8), "c")],
        "no": [],
    }
    figure = plots.image_rows(rows, title="Images", caption="See.")
    axes = figure.figure.axes
    assert len(axes) == 6
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == ["first", "", "second", "", "no: none", ""]
    np.testing.assert_array_equal(axes[0].images[0].get_array(), gray[0, 0])
    np.testing.assert_array_equal(axes[1].images[0].get_array(), gray[1, 0])
    np.testing.assert_array_equal(
        axes[2].images[0].get_array(), color[0].transpose(1, 2, 0)
    )
    assert axes[0].images[0].get_clim() == (0, 255)
    assert [texts(ax) for ax in axes] == [["a"], ["b"], ["c"], [], [], []]
    assert figure.table == {
        "row": ["first", "first", "second"],
        "place": [0, 1, 0],
        "text": ["a", "b", "c"],
    }
    assert (figure.title, figure.caption) == ("Images", "See.")
    assert "first, second, no" in figure.alt


def test_no_rows_and_too_many_images() -> None:
    assert plots.image_rows({}).table["text"] == []
    many = [(np.zeros((1, 2, 2)), str(i)) for i in range(30)]
    assert len(plots.image_rows({"row": many}).table["text"]) == 10


@pytest.mark.parametrize(
    "words", ["automobile → airplane", "Ankle boot → T-shirt/top", "x" * 60, "7 → 1"]
)
@pytest.mark.parametrize("columns", [1, 6, 8, 10])
def test_words_of_any_length_stand_apart_and_leave_the_images_their_room(
    words: str, columns: int
) -> None:
    figure = plots.image_rows(
        {"one": [(np.zeros((1, 4, 4)), words)] * columns, "none": []}
    ).figure
    figure.draw_without_rendering()
    axes = figure.axes[:columns]
    boxes = [ax.texts[0].get_window_extent() for ax in axes]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert all(
        box.y1 <= ax.get_window_extent().y0 for ax, box in zip(axes, boxes, strict=True)
    )
    assert boxes[0].x0 >= 0
    assert boxes[-1].x1 <= figure.bbox.x1
    assert (
        min(ax.get_window_extent().width for ax in axes) > 0.6 * figure.bbox.width / 10
    )


def image_set() -> data.ImageSet:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 3, 3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    return data.ImageSet(
        "toy", "test", images, labels, ("null", "eins", "zwölf"), (0.5,), (0.5,)
    )


def test_mistakes_come_back_from_the_arrays_that_an_experiment_keeps() -> None:
    arrays = plots.mistake_arrays(
        image_set(), torch.tensor([4, 1]), torch.tensor([2, 0])
    )
    assert all(array.dtype.kind in "ui" for array in arrays.values())
    records = [
        Record(Condition(network="one"), 0, {}),
        Record(Condition(network="one"), 1, {}, arrays=arrays),
        Record(
            Condition(network="one"), 2, {}, arrays=dict.fromkeys(arrays, np.zeros(0))
        ),
        Record(Condition(network="two"), 0, {}),
    ]
    figure = plots.mistakes(
        Records(records), by="network", title="Wrong", caption="See."
    )
    assert figure.table["row"] == ["one", "one"]
    assert figure.table["text"] == ["eins → zwölf", "eins → null"]
    assert [int(ax.images[0].get_array()[0, 0]) for ax in figure.figure.axes] == [4, 1]
    assert figure.caption == "See. Below each image: its class → the answer."


def test_curves_stand_side_by_side_under_one_name() -> None:
    up, down = (
        Curve(np.arange(2), np.array([0.0, 1.0])),
        Curve(np.arange(2), np.array([1.0, 0.0])),
    )
    both = Record(
        Condition(network="one"), 3, {"x": 1.0}, curves={"up": up, "down": down}
    )
    half = Record(Condition(network="two"), 4, {}, curves={"down": down})
    names = {"rising": "up", "falling": "down"}
    found = plots.side_by_side(
        Records([both, half]), names, curve="value", factor="way"
    )
    assert [(str(r.condition), r.seed) for r in found] == [
        ("network=one, way=rising", 3),
        ("network=one, way=falling", 3),
        ("network=two, way=falling", 4),
    ]
    assert [r.curves["value"] is up for r in found] == [True, False, False]
