"""Figures start from the settings that matplotlib ships, whatever a program around has
set.
"""

from __future__ import annotations

import matplotlib as mpl
import pytest

from nablab import plots
from nablab.plots.style import SETTINGS
from nablab.report import exports

THEIRS = {
    "text.usetex": True,
    "font.size": 30.0,
    "axes.grid": True,
    "lines.linewidth": 9.0,
}


def drawn() -> tuple[str, bytes]:
    with plots.drawing():
        figure, ((axes,),) = plots.canvas()
        axes.plot([0, 1], [2, 3])
        axes.set_xlabel("steps")
    one = plots.Figure("a", "b", figure)
    return exports.svg(one, "a"), exports.png(one)


def test_a_programs_settings_change_no_figure() -> None:
    plain = drawn()
    with mpl.rc_context(THEIRS):
        assert drawn() == plain
        # and they are left as they were
        assert {key: mpl.rcParams[key] for key in THEIRS} == THEIRS


@pytest.mark.parametrize(
    "key", ["text.usetex", "axes.grid", "lines.linewidth", "font.family"]
)
def test_while_drawing_all_is_as_shipped_but_for_the_style(key: str) -> None:
    with mpl.rc_context({**THEIRS, "font.family": ["monospace"]}), plots.drawing():
        assert mpl.rcParams[key] == mpl.rcParamsDefault[key]
        assert mpl.rcParams["font.size"] == SETTINGS["font.size"]
