"""The drawing vocabulary of experiments.

Curves, predictions and dots over conditions and seeds.

Every function takes records and gives a `Figure`: the drawing, a caption that says how
to read it, and the plotted numbers. Records may be incomplete; what is missing is said
in the caption. Importing this package imports neither numpy nor matplotlib, and drawing
never touches pyplot, so there is no global state and nothing to close.
"""

from nablab.contract import Figure
from nablab.plots.critical_points import outcomes, spectra
from nablab.plots.curves import curves, mean_curve, thin
from nablab.plots.dots import dots
from nablab.plots.factors import metrics_side_by_side, side_by_side
from nablab.plots.frame import canvas, drawing
from nablab.plots.images import image_rows, mistake_arrays, mistakes
from nablab.plots.line_panels import LinePanel, line_panels, lines_of
from nablab.plots.paths import Plane, paths
from nablab.plots.predictions import predictions
from nablab.plots.scatters import scatter
from nablab.plots.style import Style, palette, styles
from nablab.plots.surfaces import lines, surfaces
from nablab.plots.trends import trend
from nablab.statistics.summary import Summary, summarize

__all__ = [
    "Figure",
    "LinePanel",
    "Plane",
    "Style",
    "Summary",
    "canvas",
    "curves",
    "dots",
    "drawing",
    "image_rows",
    "line_panels",
    "lines",
    "lines_of",
    "mean_curve",
    "metrics_side_by_side",
    "mistake_arrays",
    "mistakes",
    "outcomes",
    "palette",
    "paths",
    "predictions",
    "scatter",
    "side_by_side",
    "spectra",
    "styles",
    "summarize",
    "surfaces",
    "thin",
    "trend",
]
