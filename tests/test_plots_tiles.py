"""Drawings of filters, maps and confusions: pixels, numbers and words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nablab import plots

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_filters_become_pictures_and_stay_as_they_are(channels: int) -> None:
    weights = DRAW.normal(size=(5, channels, 3, 3)).astype(np.float32)
    weights[3] = 0
    weights[4] /= 1e6
    before = weights.copy()
    found = plots.filter_pictures(weights)
    np.testing.assert_array_equal(weights, before)
    assert found.dtype == np.uint8
    assert found.shape == (5, 1 if channels == 2 else channels, 3, 3)
    assert (found[3] == 128).all()
    for kept, picture in zip(before, found, strict=True):
        seen = kept.mean(axis=0, keepdims=True) if channels == 2 else kept
        size = abs(seen).max() or 1.0
        np.testing.assert_allclose(picture, 127.5 + 127.5 * seen / size, atol=0.51)


def test_maps_go_from_black_to_white() -> None:
    maps = np.stack([np.arange(6.0).reshape(2, 3), np.full((2, 3), 7.0)])
    found = plots.map_pictures(maps)
    assert found.shape == (2, 1, 2, 3)
    assert found[0].ravel().tolist() == [0, 51, 102, 153, 204, 255]
    assert not found[1].any()


def test_tiles_stand_in_rows_with_gaps_between() -> None:
    gray = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 20, 20))
    color = np.full((1, 3, 20, 20), 9, dtype=np.uint8)
    color[:, 1] = 5
    panels = {"gray": gray.astype(np.uint8), "color": color, "no": gray[:0]}
    figure = plots.tiles(panels, columns=2, title="Tiles", caption="See.")
    first, second, third = figure.figure.axes
    titles = [ax.get_title(loc="left") for ax in (first, second, third)]
    assert titles == ["gray", "color", "no: none"]
    pixels: Any = first.images[0].get_array()
    assert pixels.shape == (42, 42, 4)
    assert pixels[0, 0].tolist() == [0, 0, 0, 255]
    assert pixels[0, 41].tolist() == [1, 1, 1, 255]
    assert pixels[41, 0].tolist() == [2, 2, 2, 255]
    assert pixels[41, 41, 3] == 0  # no tile is there
    assert pixels[20, 0, 3] == 0
    assert second.images[0].get_array()[0, 0].tolist() == [9, 5, 9, 255]
    assert figure.table == {
        "panel": ["gray"] * 3 + ["color"],
        "tile": [0, 1, 2, 0],
    }
    assert "3 of gray" in figure.alt
    assert plots.tiles({}).table["tile"] == []


def test_small_filters_are_enlarged_without_new_colors() -> None:
    pictures = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    (ax,) = plots.tiles({"one": pictures}, columns=1).figure.axes
    pixels: Any = ax.images[0].get_array()
    assert pixels.shape == (12, 12, 4)
    np.testing.assert_array_equal(pixels[::4, ::4, 0], pictures[0, 0])


def test_confusion_shows_shares_of_each_class() -> None:
    matrices = [np.array([[3, 1], [0, 0]]), np.array([[3, 1], [0, 200]])]
    figure = plots.confusion(matrices, ("cat", "dog"), title="Taken", caption="See.")
    (ax,) = figure.figure.axes
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert [text.get_text() for text in ax.texts] == ["75", "25", "100"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("answer", "class")
    assert figure.table["share"] == [0.75, 0.25, 0.0, 1.0]
    assert figure.table["answer"] == ["cat", "dog"] * 2
    assert figure.caption.startswith("See. Each row is a class")
    assert "99 percent" in figure.alt


def test_many_classes_and_none_that_were_seen() -> None:
    names = [f"class number {i}" for i in range(60)]
    (ax,) = plots.confusion([np.zeros((60, 60))], names).figure.axes
    assert len(ax.get_xticklabels()) == 20
    assert not ax.texts
