"""Figures: what is drawn, what is said about incomplete records, and bytes that do not
change.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nablab import plots
from nablab.contract import Condition, Curve, Record, Records
from nablab.plots.frame import power_of_ten, ticks
from nablab.report import exports
from tests.report.conftest import FakeDepth, fake_record

LONG = "the best of all constants that could be guessed"
LIMIT = 300_000


@pytest.fixture(scope="module")
def records() -> Records:
    return Records(
        fake_record(c, s) for c in FakeDepth().conditions() for s in range(5)
    )


def scalars(values: Mapping[str, Sequence[float]], metric: str = "error") -> Records:
    """One record per value, by model."""
    return Records(
        Record(Condition(model=model), seed, {metric: value})
        for model, own in values.items()
        for seed, value in enumerate(own)
    )


def losses(values: Sequence[Sequence[float]], model: str = "deep") -> Records:
    return Records(
        Record(
            Condition(model=model),
            seed,
            {},
            curves={"train_loss": Curve(np.arange(len(v)), np.array(v, float))},
        )
        for seed, v in enumerate(values)
    )


def rows(figure: plots.Figure, **where: Any) -> list[dict[str, Any]]:
    """The rows of the plotted numbers that match."""
    table = figure.table
    found = [
        dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)
    ]
    return [
        row for row in found if all(row[key] == value for key, value in where.items())
    ]


def texts(figure: plots.Figure) -> set[str]:
    import matplotlib.text

    with plots.drawing():
        figure.figure.canvas.draw_idle()
        figure.figure.draw_without_rendering()
    found = figure.figure.findobj(matplotlib.text.Text)
    return {
        artist.get_text()
        for artist in found
        if isinstance(artist, matplotlib.text.Text)
    }


class TestCurves:
    def test_labels_name_axes_panels_and_levels(self, records: Records) -> None:
        figure = plots.curves(records, x_label="full-batch steps", y_label="loss (MSE)")
        wanted = {
            "full-batch steps",
            "loss (MSE)",
            "deep",
            "middle",
            "shallow",
            "sinc",
            "sign_sin",
        }
        assert wanted <= texts(figure)
        assert all(word in figure.alt for word in ("deep", "sinc", "sign_sin"))

    def test_mean_and_interval_are_those_of_the_t_distribution(self) -> None:
        steps = np.arange(50)
        runs = [Curve(steps, np.full(50, float(v))) for v in (1, 2, 6)]
        _, mean, low, high = plots.mean_curve(runs)
        expected = stats.t.interval(0.95, 2, loc=3, scale=stats.sem([1, 2, 6]))
        np.testing.assert_allclose(mean, 3.0)
        np.testing.assert_allclose(low, expected[0])
        np.testing.assert_allclose(high, expected[1])

    def test_mean_on_a_logarithmic_axis_is_geometric(self) -> None:
        runs = [Curve(np.arange(9), np.full(9, v)) for v in (1e-4, 1e-2)]
        np.testing.assert_allclose(plots.mean_curve(runs, log_y=True)[1], 1e-3)

    def test_a_run_that_ended_early_keeps_its_last_value_and_has_a_dot(self) -> None:
        figure = plots.curves(losses([[4.0] * 100, [2.0] * 10]), log_y=False)
        assert rows(figure, series="mean")[-1]["value"] == pytest.approx(3.0)
        assert "ended early" in figure.caption

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_run_that_diverged_is_drawn_so_far_and_left_out_of_the_mean(
        self, bad: float
    ) -> None:
        figure = plots.curves(losses([[1.0] * 20, [5.0] * 10 + [bad] * 10]))
        assert {row["value"] for row in rows(figure, series="run", seed=1)} == {5.0}
        assert {round(row["value"], 9) for row in rows(figure, series="mean")} == {1.0}
        assert "Deep: 1 of 2 runs left out of the mean" in figure.caption

    def test_missing_curves_are_named(self, records: Records) -> None:
        whole = [r for r in records if r.condition["model"] != "middle"]
        empty = Record(Condition(target="sinc", model="middle"), 0, {})
        assert (
            "No runs yet: sinc, middle"
            in plots.curves(Records([*whole, empty])).caption
        )

    def test_a_single_seed_has_no_band_and_says_so(self) -> None:
        figure = plots.curves(losses([[1.0, 0.5, 0.2]]))
        assert "A single seed, so no interval: deep." in figure.caption
        assert all(math.isnan(row["low"]) for row in rows(figure, series="mean"))

    def test_no_records_still_make_a_figure(self) -> None:
        for figure in (
            plots.curves(Records([])),
            plots.dots(Records([]), "error"),
            plots.predictions(Records([])),
        ):
            assert exports.svg(figure, "empty").startswith("<svg")

    def test_thinning_keeps_every_spike(self) -> None:
        x = np.arange(100_000)
        y = np.sin(x / 9_000)
        y[[123, 77_777]] = 40.0, -40.0
        keep = plots.thin(x, y, 200)
        assert {0, 123, 77_777, len(x) - 1} <= set(keep)
        assert len(keep) <= 210

    def test_thinning_a_short_curve_changes_nothing(self) -> None:
        assert plots.thin(np.arange(7), np.zeros(7), 200).tolist() == list(range(7))


class TestDots:
    def test_every_seed_is_drawn_with_its_mean_and_interval(self) -> None:
        from nablab.statistics.contrasts import interval_of_mean

        values = [1.0, 2.0, 4.0, 4.5]
        figure = plots.dots(scalars({"deep": values}), "error")
        assert [row["value"] for row in rows(figure, series="seed")] == values
        (mean,) = rows(figure, series="mean")
        low, high = interval_of_mean(values)
        assert (mean["value"], mean["low"], mean["high"]) == pytest.approx(
            (2.875, low, high)
        )

    def test_a_value_that_is_infinite_makes_the_center_a_median(self) -> None:
        figure = plots.dots(scalars({"deep": [3.0, 5.0, math.inf]}), "error")
        assert rows(figure, series="median")[0]["value"] == 5.0
        assert "never reached the threshold" in figure.caption

    def test_nan_is_said_and_not_drawn(self) -> None:
        caption = plots.dots(scalars({"deep": [3.0, math.nan]}), "error").caption
        assert "Deep: 1 of 2 have no value that can be drawn." in caption

    def test_a_label_stands_where_it_hides_no_dot(self) -> None:
        crowded = {"left": [5.0] * 5, "right": [1.0 + 0.04 * n for n in range(8)]}
        records = Records(
            Record(Condition(width=name), seed, {"error": value})
            for name, values in crowded.items()
            for seed, value in enumerate(values)
        )
        figure = plots.dots(
            records, "error", by="width", panel_by="", baselines={LONG: 1.0}
        )
        [label] = [
            text
            for text in figure.figure.axes[0].texts
            if text.get_text() == f" {LONG} "
        ]
        assert (label.get_ha(), label.get_va()) == ("right", "top")
        free = plots.dots(
            records, "error", by="width", panel_by="", baselines={LONG: 3.0}
        )
        [label] = [
            text for text in free.figure.axes[0].texts if text.get_text() == f" {LONG} "
        ]
        assert (label.get_ha(), label.get_va()) == ("right", "bottom")

    def test_baselines_are_labeled_and_tabled_per_panel(self, records: Records) -> None:
        baselines: Any = {
            "sinc": {"mean of targets": 0.2},
            "sign_sin": {"other mean": 0.9},
        }
        figure = plots.dots(records, "held_out_mse", baselines=baselines)
        assert [
            row["value"]
            for row in rows(figure, series="mean of targets", target="sinc")
        ] == [0.2]
        assert not rows(figure, series="mean of targets", target="sign_sin")
        assert {" mean of targets ", " other mean "} <= texts(figure)

    def test_a_baseline_that_does_not_fit_the_axis_is_said(self) -> None:
        figure = plots.dots(
            scalars({"a": [1.0, 2.0]}), "error", log_y=True, baselines={"floor": 0.0}
        )
        assert "The floor (0) cannot be drawn on this axis." in figure.caption

    @pytest.mark.parametrize(("low", "scale"), [(0.1, "linear"), (0.01, "log")])
    def test_the_axis_is_logarithmic_where_values_span_decades(
        self, low: float, scale: str
    ) -> None:
        figure = plots.dots(scalars({"a": [low, 1.0]}), "error")
        assert figure.figure.axes[0].get_yscale() == scale

    def test_three_panels_stand_in_one_row(self) -> None:
        three = Records(
            Record(Condition(target=t, model="a"), s, {"error": s + 1.0})
            for t in "xyz"
            for s in range(3)
        )
        axes = plots.dots(three, "error").figure.axes
        assert (
            len(
                {
                    round(ax.get_subplotspec().get_position(ax.figure).y0, 6)
                    for ax in axes
                }
            )
            == 1
        )  # type: ignore[union-attr, arg-type]
        assert [bool(ax.get_ylabel()) for ax in axes] == [True, False, False]


class TestPredictions:
    def test_truth_seeds_and_mean_are_drawn(self, records: Records) -> None:
        figure = plots.predictions(records)
        series = {row["series"] for row in rows(figure, target="sinc", model="deep")}
        assert series == {"seed", "mean"}
        assert {row["series"] for row in rows(figure, model="")} == {
            "truth",
            "training",
        }
        assert {"sinc · deep", "sign_sin · shallow", "truth"} <= texts(figure)

    def test_the_frame_follows_the_truth(self, records: Records) -> None:
        astray = records[0]
        wild = dict(astray.arrays) | {"prediction": astray.arrays["prediction"] * 1e6}
        changed = Record(astray.condition, 9, astray.scalars, arrays=wild)
        figure = plots.predictions(Records([*records, changed]))
        assert max(abs(end) for ax in figure.figure.axes for end in ax.get_ylim()) < 10
        assert "Lines that leave the frame are cut." in figure.caption

    def test_more_than_four_models_take_several_rows_with_one_frame(self) -> None:
        x = np.linspace(-1, 1, 20)
        many = Records(
            Record(
                Condition(model=f"m{i}"),
                0,
                {},
                arrays={"x": x, "truth": x, "prediction": x * (1 + i / 9)},
            )
            for i in range(6)
        )
        axes = plots.predictions(many).figure.axes
        assert [ax.get_title(loc="left") for ax in axes] == [f"m{i}" for i in range(6)]
        assert len({ax.get_ylim() for ax in axes}) == 1
        assert [bool(ax.get_ylabel()) for ax in axes] == [
            True,
            False,
            False,
            False,
            True,
            False,
        ]
        assert [bool(ax.get_xlabel()) for ax in axes] == [
            False,
            False,
            True,
            True,
            True,
            True,
        ]

    def test_long_names_do_not_squeeze_the_panels(self) -> None:
        x = np.linspace(-1, 1, 20)
        many = Records(
            Record(
                Condition(
                    target="x*sin(x)+cos(20*x)@-3..3@300", model=f"1-10-20x6-{i}"
                ),
                0,
                {},
                arrays={"x": x, "truth": x, "prediction": x},
            )
            for i in range(4)
        )
        figure = plots.predictions(many)
        texts(figure)
        assert min(ax.get_position().width for ax in figure.figure.axes) > 0.15
        title = figure.figure.axes[0].get_title(loc="left")
        assert title.endswith("@300\n1-10-20x6-0")
        assert "x*sin(x)+cos(20*x)@-3..3@300" in figure.table["target"]

    def test_other_lengths_are_refused(self) -> None:
        arrays = {"x": np.zeros(5), "prediction": np.zeros(4)}
        with pytest.raises(ValueError, match="has 4 values, but 'x' has 5"):
            plots.predictions(
                Records([Record(Condition(model="a"), 0, {}, arrays=arrays)])
            )


class TestStyle:
    def test_more_than_eight_levels_differ_in_line_and_marker(self) -> None:
        looks = plots.styles(range(32)).values()
        assert len({(look.color, look.line) for look in looks}) == 32
        assert len({(look.color, look.marker) for look in looks}) == 32

    def test_twelve_models_are_all_in_the_legend(self) -> None:
        many = Records(
            Record(
                Condition(model=f"m{i}"),
                s,
                {},
                curves={"train_loss": Curve(np.arange(9), np.ones(9))},
            )
            for i in range(12)
            for s in range(2)
        )
        assert {f"m{i}" for i in range(12)} <= texts(plots.curves(many))

    def test_a_condition_keeps_its_color_through_the_report(
        self, records: Records
    ) -> None:
        colors = []
        for figure in FakeDepth().figures(records).values():
            found = re.findall(r"#0072b2|#d55e00|#009e73", exports.svg(figure, "f"))
            colors.append(list(dict.fromkeys(found)))
        assert all(set(own) == {"#0072b2", "#d55e00", "#009e73"} for own in colors)

    def test_importing_plots_imports_neither_numpy_nor_matplotlib(self) -> None:
        code = (
            "import sys, nablab.plots; print({'numpy', 'matplotlib', 'torch'} & "
            "set(sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "set()"


def test_power_of_ten_beyond_the_scale_of_the_axis() -> None:
    assert [power_of_ten(v) for v in (1e-12, 1.0, 1e5)] == ["10⁻¹²", "10⁰", "10⁵"]


def test_ticks_are_plain_text(records: Records) -> None:
    figure, ((ax,),) = plots.canvas()
    ax.set_xlim(0, 20_000)
    ticks(ax, "x", log=False)
    assert "20,000" in texts(plots.Figure("", "", figure))


class TestSvg:
    def test_bytes_do_not_change(self, records: Records) -> None:
        first, second = (exports.svg(plots.curves(records), "loss") for _ in range(2))
        assert first == second

    def test_drawing_again_moves_nothing(self, records: Records) -> None:
        figure = plots.curves(records)
        first = exports.svg(figure, "loss")
        exports.png(figure)
        assert exports.svg(figure, "loss") == first

    def test_png_does_not_change(self) -> None:
        figure = plots.dots(scalars({"a": [1.0, 2.0]}), "error")
        assert exports.png(figure) == exports.png(figure)

    def test_small_enough_and_free_of_fixed_ink(self, records: Records) -> None:
        for name, figure in FakeDepth().figures(records).items():
            text = exports.svg(figure, name)
            assert len(text) < LIMIT, name
            assert "currentColor" in text
            assert text.count("font-family") == 1
            assert "DejaVu" not in text
            assert plots.style.INK not in text
            assert "http" not in text.replace("http://www.w3.org/2000/svg", "")

    def test_many_long_runs_stay_below_the_limit(self) -> None:
        rng = np.random.default_rng(0)
        many = losses([np.exp(rng.normal(0, 1, 20_000)).tolist() for _ in range(40)])
        assert len(exports.svg(plots.curves(many), "many")) < LIMIT

    @pytest.mark.slow
    def test_many_conditions_stay_below_the_limit(self) -> None:
        x, steps = np.linspace(-1, 1, 500), np.arange(500)
        rng = np.random.default_rng(1)
        many = Records(
            Record(
                Condition(target=target, model=f"m{i}"),
                seed,
                {},
                curves={"train_loss": Curve(steps, rng.lognormal(0, 1, 500))},
                arrays={
                    "x": x,
                    "truth": x**2,
                    "prediction": x**2 + rng.normal(0, 0.1, 500),
                },
            )
            for target in "abcd"
            for i in range(12)
            for seed in range(3)
        )
        assert len(exports.svg(plots.curves(many), "many")) < LIMIT
        assert len(exports.svg(plots.predictions(many), "many")) < LIMIT

    def test_names_are_text_never_formulas_or_markup(self) -> None:
        figure = plots.dots(scalars({"$x^2$": [1.0, 2.0], "<b>&": [1.0, 3.0]}), "error")
        text = exports.svg(figure, "odd")
        assert ">$x^2$<" in text
        assert "&lt;b&gt;&amp;" in text
        assert "<b>" not in text


@pytest.mark.parametrize(
    ("steps", "values"),
    [
        ([0], [0.5]),
        ([], []),
        ([1, 10, 100], [math.nan] * 3),
        ([1, 10, 100], [0.0] * 3),
        ([0, 1], [math.inf] * 2),
    ],
)
def test_curves_without_anything_to_draw_on_log_axes(
    steps: list[int], values: list[float]
) -> None:
    curve = Curve(np.array(steps, dtype=np.int64), np.array(values))
    records = Records(
        Record(
            Condition(model="a", target="t"),
            seed,
            {"loss": 1.0},
            curves={"loss": curve},
        )
        for seed in range(2)
    )
    figure = plots.curves(records, curve="loss", log_x=True, log_y=True)
    assert exports.svg(figure, "empty").startswith("<svg")
