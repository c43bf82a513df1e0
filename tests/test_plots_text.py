"""Words with a shade behind each."""

from __future__ import annotations

import pytest

from nablab import plots


def test_every_word_is_drawn_and_shaded() -> None:
    words = ["a", "good", "film", *["very"] * 40, "bad"]
    values = [0.0, 2.0, -1.0, *[0.5] * 40, 1.0]
    figure = plots.shaded_words({"effect": (words, values)}, title="Words")
    ax = figure.figure.axes[0]
    drawn = [text.get_text() for text in ax.texts]
    assert drawn == ["effect", *words]
    shades = [patch.get_alpha() for patch in ax.patches]
    assert shades[:3] == [0, 0.75, 0]
    assert shades[-1] == pytest.approx(0.375)
    assert figure.table["word"] == words
    # Long texts go on in further lines, and nothing runs out of the figure.
    assert len({text.get_position()[1] for text in ax.texts[1:]}) > 1
    right = max(patch.get_x() + patch.get_width() for patch in ax.patches)
    assert right <= ax.get_xlim()[1]


def test_a_text_without_effects() -> None:
    figure = plots.shaded_words({"none": (["a", "b"], [0.0, -1.0])})
    assert [patch.get_alpha() for patch in figure.figure.axes[0].patches] == [0, 0]
