"""The drawing vocabulary of experiments.

It draws curves, predictions and dots over conditions and seeds.

Every function takes records and gives a `Figure`: the drawing, a caption that says how
to read it, and the plotted numbers. Records may be incomplete; what is missing is said
in the caption. Drawing never touches pyplot, so there is no global state and nothing to
close. A name is imported when it is first used; files are not called as functions are,
or the first import of one would hide the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.contract import Figure
from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.plots.boundary_figures import boundaries
    from nablab.plots.code_figures import CodeMap, code_maps, image_grids
    from nablab.plots.critical_points import outcomes, spectra
    from nablab.plots.curve_figures import curves, mean_curve, thin
    from nablab.plots.dot_figures import dots
    from nablab.plots.factors import metrics_side_by_side, side_by_side
    from nablab.plots.frame import canvas, drawing
    from nablab.plots.images import image_rows, mistake_arrays, mistakes
    from nablab.plots.line_panel_figures import LinePanel, line_panels, lines_of
    from nablab.plots.matrix_figures import confusion
    from nablab.plots.path_figures import Plane, paths
    from nablab.plots.plain_figures import default_figures
    from nablab.plots.prediction_figures import predictions
    from nablab.plots.scatters import scatter
    from nablab.plots.style import Style, palette, styles
    from nablab.plots.surface_figures import lines, surfaces
    from nablab.plots.text_figures import shaded_words
    from nablab.plots.tile_figures import filter_pictures, map_pictures, tiles
    from nablab.plots.trends import trend
    from nablab.plots.word_figures import Near, WordMap, neighbor_lists, word_maps

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "boundary_figures": "boundaries",
        "code_figures": "CodeMap code_maps image_grids",
        "critical_points": "outcomes spectra",
        "curve_figures": "curves mean_curve thin",
        "plain_figures": "default_figures",
        "dot_figures": "dots",
        "factors": "metrics_side_by_side side_by_side",
        "frame": "canvas drawing",
        "images": "image_rows mistake_arrays mistakes",
        "line_panel_figures": "LinePanel line_panels lines_of",
        "matrix_figures": "confusion",
        "path_figures": "Plane paths",
        "prediction_figures": "predictions",
        "scatters": "scatter",
        "text_figures": "shaded_words",
        "style": "Style palette styles",
        "surface_figures": "lines surfaces",
        "tile_figures": "filter_pictures map_pictures tiles",
        "trends": "trend",
        "word_figures": "Near WordMap neighbor_lists word_maps",
    },
)

__all__ = [
    "CodeMap",
    "Figure",
    "LinePanel",
    "Near",
    "Plane",
    "Style",
    "WordMap",
    "boundaries",
    "canvas",
    "code_maps",
    "confusion",
    "curves",
    "default_figures",
    "dots",
    "drawing",
    "filter_pictures",
    "image_grids",
    "image_rows",
    "line_panels",
    "lines",
    "lines_of",
    "map_pictures",
    "mean_curve",
    "metrics_side_by_side",
    "mistake_arrays",
    "mistakes",
    "neighbor_lists",
    "outcomes",
    "palette",
    "paths",
    "predictions",
    "scatter",
    "shaded_words",
    "side_by_side",
    "spectra",
    "styles",
    "surfaces",
    "thin",
    "tiles",
    "trend",
    "word_maps",
]
