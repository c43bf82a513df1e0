"""Maps of codes, and grids of images: what is drawn, and the labels."""

from __future__ import annotations

import numpy as np

from nablab import plots
from nablab.plots.code_figures import MOST_CODES


def test_every_code_is_a_dot_in_its_classs_color() -> None:
    codes = np.arange(12.0).reshape(6, 2)
    one = plots.CodeMap(codes, np.array([0, 0, 1, 1, 1, 0]), ("cat", "dog", "none"))
    figure = plots.code_maps({"first": one, "second": one}, title="Codes")
    axes = figure.figure.axes
    assert [ax.get_title("left") for ax in axes] == ["first", "second"]
    cats, dogs = axes[0].lines
    np.testing.assert_array_equal(cats.get_xdata(), [0, 2, 10])
    np.testing.assert_array_equal(dogs.get_ydata(), [5, 7, 9])
    assert cats.get_color() != dogs.get_color()
    names = {text.get_text(): text.get_position() for text in axes[0].texts}
    assert names == {"cat": (2, 3), "dog": (6, 7)}  # at the medians; no third class
    assert figure.table["class"][:6] == ["cat"] * 3 + ["dog"] * 3
    assert "first, second" in figure.alt or "first and second" in figure.alt


def test_of_many_codes_the_first_are_drawn() -> None:
    many = plots.CodeMap(np.zeros((4_000, 2)), np.zeros(4_000, int), ("a",))
    figure = plots.code_maps({"all": many})
    assert len(figure.table["x"]) == MOST_CODES
    assert "The first 3,000 of 4,000 codes are drawn." in figure.caption
    assert plots.code_maps({}).table["x"] == []


def test_a_grid_is_one_picture_in_the_order_of_its_rows() -> None:
    grid = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 1, 4, 5)
    figure = plots.image_grids(
        {"β = 1": grid, "color": np.zeros((1, 2, 3, 4, 4), np.uint8)}
    )
    shown = figure.figure.axes[0].images[0].get_array()
    # A line of gray to the right of each image and below it.
    assert shown.shape == (10, 18)
    np.testing.assert_array_equal(shown[5:9, 6:11], grid[1, 1, 0])
    assert (shown[4] == 128).all()
    assert (shown[:, 5] == 128).all()
    assert figure.figure.axes[0].images[0].get_clim() == (0, 255)
    assert figure.figure.axes[1].images[0].get_array().shape == (5, 10, 3)
    assert figure.table["panel"] == ["β = 1", "color"]
    assert plots.image_grids({}).table["panel"] == []
