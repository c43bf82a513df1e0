"""Two runs side by side, on the page and as rows for the terminal."""

from __future__ import annotations

import math

import pytest

from nablab.contract import Condition, Record, Records
from nablab.report.compare import compare, compare_rows
from nablab.report.view import RunView
from tests.report.conftest import FakeDepth, fake_verdict, fake_view
from tests.report.test_page import Page


@pytest.fixture(scope="module")
def other(records: Records) -> RunView:
    sinc = Records(
        Record(
            r.condition,
            r.seed,
            {**r.scalars, "held_out_mse": 2 * r.scalars["held_out_mse"]},
        )
        for r in records
        if r.condition["target"] == "sinc" and r.seed < 3
    )
    third = Records(
        [
            *sinc,
            Record(
                Condition(target="sawtooth", model="deep"), 0, {"held_out_mse": 1.0}
            ),
        ]
    )
    experiment = FakeDepth(steps=3_000, targets=("sinc", "sawtooth"))
    verdicts = [fake_verdict("refuted"), fake_verdict(claim="Only here", scope={})]
    return fake_view(
        experiment,
        third,
        run_id="fake-depth-b2",
        verdicts=verdicts,
        seeds=3,
        environment={"torch": "2.13.0"},
    )


def section(a: RunView, b: RunView, title: str) -> tuple[list[str], list[list[str]]]:
    return next(
        (header, rows)
        for name, header, rows in compare_rows(a, b)
        if name.split(":")[0] == title
    )


def test_settings_that_differ_and_no_others(view: RunView, other: RunView) -> None:
    header, rows = section(view, other, "Settings that differ")
    assert header == ["setting", "fake-depth-a1", "fake-depth-b2"]
    assert rows == [
        ["seeds", "5", "3"],
        ["steps", "2000", "3000"],
        ["targets", "sinc,sign_sin", "sinc,sawtooth"],
    ]


def test_environment_that_differs(view: RunView, other: RunView) -> None:
    _, rows = section(view, other, "Environment that differs")
    assert ["torch", "2.12.0", "2.13.0"] in rows
    assert ["nablab", "0.1.0", "–"] in rows


def test_verdicts_side_by_side(view: RunView, other: RunView) -> None:
    _, rows = section(view, other, "Verdicts")
    effect = "4.0 times lower (2.0 to 7.9)"
    assert rows == [
        [
            view.verdicts[0].claim,
            f"+ supported: {effect}",
            f"− refuted: {effect}",
            "differs",
        ],
        ["Only here", "–", f"+ supported: {effect}", "only in one"],
    ]


def test_numbers_have_intervals_counts_and_a_ratio(
    view: RunView, other: RunView, records: Records
) -> None:
    header, rows = section(view, other, "Held-out MSE")
    assert header == [
        "target",
        "model",
        "fake-depth-a1",
        "fake-depth-b2",
        "second / first",
    ]
    found = {(row[0], row[1]): row[2:] for row in rows}
    assert found["sign_sin", "deep"][1:] == ["–", "–"]
    assert found["sawtooth", "deep"] == ["–", "1 (n = 1)", "–"]
    first, second, _ = found["sinc", "deep"]
    assert first.endswith("; n = 5)")
    assert second.endswith("; n = 3)")
    assert " to " in first


def test_the_ratio_is_that_of_geometric_means(view: RunView) -> None:
    twice = Records(
        Record(
            r.condition,
            r.seed,
            {"held_out_mse": 2 * r.scalars["held_out_mse"], "parameters": 600.0},
        )
        for r in view.records
    )
    double = fake_view(view.experiment, twice, run_id="b")
    assert {row[-1] for row in section(view, double, "Held-out MSE")[1]} == {"× 2"}
    assert {row[-1] for row in section(view, double, "Parameters")[1]} == {"28", "29"}
    assert {row[-1] for row in section(view, double, "Train MSE")[1]} == {"–"}


def test_a_mean_is_not_compared_with_a_median(view: RunView) -> None:
    endless = Records(
        Record(r.condition, r.seed, {"parameters": math.inf if r.seed == 0 else 600.0})
        for r in view.records
    )
    _, rows = section(
        view, fake_view(view.experiment, endless, run_id="b"), "Parameters"
    )
    assert {row[-1] for row in rows} == {"–"}
    assert {row[-2] for row in rows} == {"600 (median; 1 of 5 infinite; n = 5)"}


def test_titles_say_what_the_numbers_are(view: RunView, other: RunView) -> None:
    titles = [title for title, _, _ in compare_rows(view, other)]
    assert "Held-out MSE: geometric mean, 95 % interval" in titles
    assert "Parameters: the same for all seeds" in titles


def test_a_run_against_itself_differs_in_nothing(view: RunView) -> None:
    found = compare_rows(view, view)
    assert [rows for _, _, rows in found[:2]] == [[], []]
    assert found[2][2][0][-1] == "none"
    assert found[0][1][1:] == ["fake-depth-a1 (first)", "fake-depth-a1 (second)"]


def test_every_row_is_as_long_as_its_header(view: RunView, other: RunView) -> None:
    for title, header, rows in compare_rows(view, other):
        assert all(len(row) == len(header) for row in rows), title


def test_the_page_holds_every_cell_and_loads_nothing(
    view: RunView, other: RunView
) -> None:
    page = Page(compare(view, other))
    for title, _, rows in compare_rows(view, other):
        assert title in page.words
        assert all(" ".join(cell.split()) in page.words for row in rows for cell in row)
    assert not page.tags.keys() & {"script", "link", "img"}
    assert len(set(page.ids)) == len(page.ids)
    assert "This run is not complete. 10 of 18 trials are done." in page.words


def test_names_are_text_never_markup(view: RunView) -> None:
    bad = "<script>alert(1)</script>"
    records = Records([Record(Condition(model=bad), 0, {bad: 1.0})])
    hostile = fake_view(view.experiment, records, run_id=bad, command=bad, preset=bad)
    page = Page(compare(view, hostile))
    assert "script" not in page.tags
    assert bad in page.words
