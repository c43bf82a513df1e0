"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure
from nablab.plots import frame

if TYPE_CHECKING:
    import numpy.typing as npt

SIDE, LEAST = 0.5, 2.2  # inches: of a cell, and of the matrix
MOST_WRITTEN = 12  # classes; numbers of more would not be readable
DARK = 0.55  # share from which a number is written in white


def confusion(
    matrices: Sequence[npt.NDArray[Any]],
    classes: Sequence[str],
    *,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw the share of each class that gets each answer, in percent.

    Several matrices, such as those of several seeds, are added up. A share below half a
    percent has no number.

    Args:
        matrices: Counts (classes, classes) with true classes in rows, as
            `nablab.metrics.confusion_matrix` gives them.
        classes: The names of the classes.
        title: Title.
        caption: What to see; how to read the figure is added.
    """
    import numpy as np

    count = len(classes)
    total = np.zeros((count, count)) + sum(np.asarray(m, float) for m in matrices)
    samples = total.sum(axis=1, keepdims=True)
    shares = total / np.where(samples > 0, samples, 1.0)
    table = frame.Table("class", "answer", "share")
    side = max(LEAST, SIDE * min(count, MOST_WRITTEN))
    with frame.drawing():
        figure, ((ax,),) = frame.canvas(
            1, 1, height=side + 1.0, width=min(frame.WIDE, side + 2.2)
        )
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for spine in ax.spines.values():
            spine.set_visible(False)
        names = [frame.shortened(str(name), 14) for name in classes]
        step = -(-count // (2 * MOST_WRITTEN))
        places = range(0, count, step)
        long = sum(len(name) + 2 for name in names) > 40
        shown = names[::step]
        ax.set_xticks(
            places,
            shown,
            rotation=30 if long else 0,
            ha="right" if long else "center",
        )
        ax.set_yticks(places, shown)
        ax.tick_params(length=0)
        ax.set_xlabel("answer")
        ax.set_ylabel("class")
        if count <= MOST_WRITTEN:
            _write(ax, shares)
        for row, name in enumerate(classes):
            table.extend(
                count,
                where={},
                **{"class": name, "answer": list(classes), "share": shares[row]},
            )
    how = "Each row is a class; its numbers are percent of its images."
    right = float(np.trace(total) / max(total.sum(), 1))
    alt = f"{title}. {100 * right:.0f} percent of all lie on the diagonal."
    return Figure(
        title,
        " ".join(part for part in (caption, how) if part),
        figure,
        table.columns,
        alt,
    )


def _write(ax: Any, shares: npt.NDArray[Any]) -> None:
    """Write the percents that are not about zero into their cells."""
    for (row, column), share in _entries(shares):
        if share >= 0.005:
            # The cells keep their colors in a dark page, and so do these letters.
            color = "#ffffff" if share > DARK else "#222222"
            ax.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                size=9,
                color=color,
            )


def _entries(shares: npt.NDArray[Any]) -> list[tuple[tuple[int, int], float]]:
    import numpy as np

    return [((row, column), float(v)) for (row, column), v in np.ndenumerate(shares)]
