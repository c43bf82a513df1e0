"""CSV that reads back as it was, and names that are safe."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablab.contract import Condition, Published, Record, Records
from nablab.report import exports, tables
from tests.report.conftest import fake_verdict

TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20)


@given(st.lists(st.tuples(TEXT, st.floats()), min_size=1))
def test_columns_read_back_as_they_were(rows: list[tuple[str, float]]) -> None:
    names, values = [row[0] for row in rows], [row[1] for row in rows]
    header, *found = csv.reader(
        io.StringIO(exports.csv_of_columns({"name": names, "value": values}))
    )
    assert header == ["name", "value"]
    assert all(
        row[0] in (name, f"'{name}") for row, name in zip(found, names, strict=True)
    )
    for row, value in zip(found, values, strict=True):
        assert float(row[1]) == value or math.isnan(value)


@pytest.mark.parametrize(
    "text", ["=1+1", "@SUM(A1)", "+cmd", "-2+3", "\t=1", "\r=1", "\n=1", "=", "-"]
)
def test_text_never_becomes_a_formula(text: str) -> None:
    records = Records([Record(Condition(model=text), 0, {text: -0.5})])
    for table in (
        exports.csv_of_rows(*tables.scalar_rows(records)),
        exports.csv_of_columns({text: [text]}),
    ):
        rows = list(csv.reader(io.StringIO(table, newline="")))
        assert not any(
            cell[:1] in "=+@\t\r\n-"
            for row in rows
            for cell in row
            if cell not in ("-0.5", "0")
        )
        assert any(
            cell == f"'{text}".replace("\r", "\n") for row in rows for cell in row
        )
    assert (
        exports.csv_of_rows(["x"], [["-0.5"], ["-inf"], ["+1e3"], [-2]])
        == "x\n-0.5\n-inf\n+1e3\n-2\n"
    )


def test_scalars_are_tidy_and_keep_all_digits() -> None:
    records = Records(
        [
            Record(
                Condition(model="a, b", width=3),
                0,
                {"error": 0.1 + 0.2, "steps": math.inf},
            ),
            Record(Condition(model='say "c"'), 1, {"error": math.nan}),
        ]
    )
    header, rows = tables.scalar_rows(records)
    found = list(csv.DictReader(io.StringIO(exports.csv_of_rows(header, rows))))
    assert [
        (row["model"], row["width"], row["seed"], row["metric"]) for row in found
    ] == [
        ("a, b", "3", "0", "error"),
        ("a, b", "3", "0", "steps"),
        ('say "c"', "", "1", "error"),
    ]
    assert float(found[0]["value"]) == 0.1 + 0.2
    assert found[1]["value"] == "inf"
    assert found[2]["value"] == "nan"


def test_verdicts_have_one_row_each() -> None:
    published = Published(-0.5, "a course", of="effect")
    given_ = [
        fake_verdict(published=published, measured_for_published=-0.6, distance=-0.1),
        fake_verdict("inconclusive", effect=None, interval=None, seeds_needed=12),
    ]
    header, rows = tables.verdict_rows(given_)
    first, second = csv.DictReader(io.StringIO(exports.csv_of_rows(header, rows)))
    assert (first["low"], first["high"], first["published"], first["distance"]) == (
        "-0.9",
        "-0.3",
        "-0.5",
        "-0.1",
    )
    assert first["scope"] == "target = sinc"
    assert (second["effect"], second["low"], second["seeds_needed"]) == ("", "", "12")


@given(TEXT)
def test_slugs_are_safe_in_files_and_ids(name: str) -> None:
    slug = exports.slug(name)
    assert slug
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
