"""Metrics against a number: what is drawn, what is said, what the plotted numbers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from nablab import plots
from nablab.contract import Condition, Level, Record, Records
from nablab.plots.frame import short_number
from nablab.report import exports
from nablab.statistics.contrasts import interval_of_mean
from tests.test_plots import rows, texts


def trials(
    values: Mapping[float, Sequence[float]], metric: str = "error", **levels: Level
) -> Records:
    """One record per value, by the numeric factor ``width``; ``parameters`` is ten
    times the width.
    """
    return Records(
        Record(
            Condition(width=width, **levels),
            seed,
            {metric: value, "parameters": 10.0 * width},
        )
        for width, own in values.items()
        for seed, value in enumerate(own)
    )


def together(*parts: Records) -> Records:
    return Records(record for part in parts for record in part)


BOTH = Records(
    Record(
        Condition(width=width),
        seed,
        {"train_loss": 1 / width, "test_loss": 2 / width + seed},
    )
    for width in (1, 10, 100)
    for seed in range(3)
)


class TestNumbers:
    def test_every_seed_the_mean_and_the_interval_of_the_verdicts(self) -> None:
        values = {2.0: [1.0, 2.0, 4.0, 4.5], 8.0: [3.0, 3.5, 3.0, 4.0]}
        figure = plots.trend(trials(values), "error", x="width")
        for width, own in values.items():
            assert [
                row["value"] for row in rows(figure, series="seed", width=width)
            ] == own
            (mean,) = rows(figure, series="mean", width=width)
            assert (mean["low"], mean["high"]) == pytest.approx(interval_of_mean(own))
            assert mean["value"] == pytest.approx(sum(own) / len(own))

    def test_x_may_be_a_scalar_of_the_trials(self) -> None:
        figure = plots.trend(trials({2.0: [1.0, 2.0], 8.0: [3.0, 3.5]}), "error")
        assert [row["parameters"] for row in rows(figure, series="mean")] == [
            20.0,
            80.0,
        ]

    def test_points_are_joined_in_the_order_of_x_not_of_the_records(self) -> None:
        figure = plots.trend(
            trials({8.0: [3.0, 3.5], 2.0: [1.0, 2.0]}), "error", x="width"
        )
        (line,) = [
            line for line in figure.figure.axes[0].lines if line.get_linestyle() == "-"
        ]
        assert list(line.get_xdata()) == [2.0, 8.0]

    def test_the_mean_on_a_logarithmic_axis_is_geometric(self) -> None:
        figure = plots.trend(trials({2.0: [1e-4, 1e-2]}), "error", x="width")
        assert rows(figure, series="mean")[0]["value"] == pytest.approx(1e-3)
        linear = plots.trend(
            trials({2.0: [1e-4, 1e-2]}), "error", x="width", log_y=False
        )
        assert rows(linear, series="mean")[0]["value"] == pytest.approx(5.05e-3)

    def test_other_factors_are_pooled(self) -> None:
        both = together(
            trials({2.0: [1.0, 2.0]}, depth=1), trials({2.0: [3.0, 4.0]}, depth=2)
        )
        figure = plots.trend(both, "error", x="width")
        assert rows(figure, series="mean")[0]["value"] == pytest.approx(2.5)
        assert len(rows(figure, series="seed")) == 4

    def test_records_without_the_number_or_the_metric_are_not_drawn(self) -> None:
        other = Record(Condition(part="another"), 0, {"error": 5.0})
        figure = plots.trend(
            together(trials({2.0: [1.0, 2.0]}), Records([other])), "error", x="width"
        )
        assert [row["value"] for row in rows(figure, series="seed")] == [1.0, 2.0]

    @pytest.mark.parametrize(
        ("widths", "scale"),
        [
            ((1.0, 10.0, 100.0), "log"),
            ((0.0, 1.0, 10.0, 100.0), "symlog"),
            ((-10.0, -1.0, 0.0, 100.0), "symlog"),
            ((0.0, 0.5, 1.0), "linear"),
            ((0.0,), "linear"),
        ],
    )
    def test_zero_and_below_have_a_place_on_every_axis(
        self, widths: Sequence[float], scale: str
    ) -> None:
        values = trials({width: [1.0, 2.0] for width in widths})
        for log_x in (True, False):
            figure = plots.trend(values, "error", x="width", log_x=log_x)
            (ax,) = figure.figure.axes
            assert ax.get_xscale() == (scale if log_x else "linear")
            drawn = [row["width"] for row in rows(figure, series="mean")]
            assert drawn == sorted(widths)
            dots = [x for line in ax.lines for x in line.get_xdata()]
            assert set(dots) == set(widths)
            said = "To show 0 and below, the horizontal axis is linear up to 1 and"
            assert (said in figure.caption) == (ax.get_xscale() == "symlog")

    def test_the_ticks_of_an_axis_with_0_are_0_and_powers_of_ten(self) -> None:
        values = trials({width: [1.0, 2.0] for width in (0.0, 1e-4, 1e-3, 1e-2)})
        figure = plots.trend(values, "error", x="width")
        ax = figure.figure.axes[0]
        figure.figure.draw_without_rendering()
        low, high = ax.get_xlim()
        labels = [
            label.get_text()
            for place, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
            if low <= place <= high
        ]
        assert labels == ["0", "10⁻⁴", "10⁻³", "10⁻²"]

    def test_a_width_that_is_infinite_is_said(self) -> None:
        values = trials({1.0: [1.0, 2.0], math.inf: [1.0, 2.0]})
        figure = plots.trend(values, "error", x="width")
        assert "Not drawn, since not finite: 2 values of width." in figure.caption


class TestIncomplete:
    def test_an_infinite_value_is_a_triangle_and_the_line_goes_through_the_median(
        self,
    ) -> None:
        figure = plots.trend(
            trials({2.0: [1.0, 3.0, math.inf], 4.0: [1.0, 1.0, 1.0]}),
            "error",
            x="width",
        )
        (median,) = rows(figure, series="median")
        assert (median["width"], median["value"]) == (2.0, 3.0)
        assert "never reached the threshold" in figure.caption

    def test_nan_and_zero_on_a_log_axis_leave_no_mean_and_are_said(self) -> None:
        reasons = {
            math.nan: "since not finite: 1 value of error.",
            0.0: "logarithmic axis: 1 value of error.",
            -1.0: "logarithmic axis: 1 value of error.",
        }
        for bad, reason in reasons.items():
            figure = plots.trend(
                trials({2.0: [1.0, bad], 4.0: [1.0, 2.0]}),
                "error",
                x="width",
                log_y=True,
            )
            assert [row["width"] for row in rows(figure, series="mean")] == [4.0]
            assert figure.caption.endswith(reason)
            assert "there is no mean" in figure.caption

    def test_a_single_seed_has_no_interval_and_says_so(self) -> None:
        figure = plots.trend(trials({2.0: [1.0], 4.0: [2.0]}), "error", x="width")
        assert "A single seed, so no interval: error." in figure.caption

    def test_no_records_and_missing_levels(self) -> None:
        assert exports.svg(plots.trend(Records([]), "error"), "empty").startswith(
            "<svg"
        )
        empty = Record(Condition(width=2.0, model="b"), 0, {})
        figure = plots.trend(
            together(trials({2.0: [1.0, 2.0]}, model="a"), Records([empty])),
            "error",
            color_by="model",
        )
        assert "No runs yet: b." in figure.caption

    def test_names_on_the_horizontal_axis_are_refused(self) -> None:
        with pytest.raises(
            ValueError,
            match="'width' is 'wide' at width=wide: a horizontal axis needs num",
        ):
            plots.trend(
                Records([Record(Condition(width="wide"), 0, {"error": 1.0})]),
                "error",
                x="width",
            )


class TestLooks:
    def test_several_metrics_have_colors_and_names(self) -> None:
        figure = plots.trend(
            BOTH,
            ["train_loss", "test_loss"],
            x="width",
            names={"test_loss": "held out"},
        )
        assert {"train loss", "held out", "width"} <= texts(figure)
        colors = {line.get_color() for line in figure.figure.axes[0].lines}
        assert len(colors) == 2

    def test_with_a_color_factor_the_metrics_differ_in_line_and_marker(self) -> None:
        records = Records(
            Record(
                Condition(width=w, noise=noise),
                s,
                {"train_loss": w + s, "test_loss": 2.0 * w + s},
            )
            for w in (1, 10)
            for noise in (0.0, 0.2)
            for s in range(2)
        )
        figure = plots.trend(
            records, ["train_loss", "test_loss"], x="width", color_by="noise"
        )
        assert {"noise 0.0", "noise 0.2", "train loss", "test loss"} <= texts(figure)
        drawn = {
            (line.get_color(), line.get_linestyle())
            for line in figure.figure.axes[0].lines
        }
        assert len({pair for pair in drawn if pair[1] != "None"}) == 4

    def test_groups_of_metrics_have_panels_with_labels_of_their_own(self) -> None:
        names = {"train_loss": "error", "test_loss": "error"}
        groups = {"training": ["train_loss"], "test": ["test_loss"]}
        figure = plots.trend(BOTH, groups, x="width", names=names)
        assert [ax.get_ylabel() for ax in figure.figure.axes] == ["training", "test"]
        assert (
            len({line.get_color() for ax in figure.figure.axes for line in ax.lines})
            == 1
        )
        assert {row["panel"] for row in rows(figure)} == {"training", "test"}
        with pytest.raises(ValueError, match="not both"):
            plots.trend(BOTH, groups, x="width", panel_by="noise")

    def test_panels_are_the_levels_of_a_factor(self) -> None:
        both = together(
            trials({2.0: [1.0, 2.0]}, data="a"), trials({2.0: [3.0, 4.0]}, data="b")
        )
        figure = plots.trend(
            both, "error", x="width", panel_by="data", horizontal={"b": {"chance": 3.5}}
        )
        assert [ax.get_title(loc="left") for ax in figure.figure.axes] == ["a", "b"]
        assert [
            (row["panel"], row["value"]) for row in rows(figure, series="chance")
        ] == [("b", 3.5)]
        assert "Panels: a, b." in figure.alt

    def test_reference_lines_are_labeled_and_impossible_ones_are_named(self) -> None:
        figure = plots.trend(
            trials({2.0: [1.0, 2.0], 50.0: [1.0, 1.5]}),
            "error",
            x="width",
            horizontal={"chance": 3.0},
            vertical={"as many as samples": 10.0, "nowhere": 0.0},
        )
        assert {" chance ", "as many as samples"} <= texts(figure)
        assert "nowhere" not in texts(figure)
        assert "The nowhere (0) cannot be drawn on this axis." in figure.caption

    def test_ticks_of_a_short_logarithmic_axis_are_short(self) -> None:
        figure = plots.trend(
            trials({4_000.0: [1.0, 2.0], 160_000.0: [1.0, 2.0]}), "error"
        )
        assert {"50k", "1M"} <= texts(figure)
        assert [short_number(v) for v in (0.2, 9_000.0, 2.5e4, 1e6)] == [
            "0.2",
            "9000",
            "25k",
            "1M",
        ]
