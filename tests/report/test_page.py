"""The page: whole, self-contained, escaped, in order, and honest about what is missing."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nablab.contract import Condition, Experiment, Published, Record, Records, Reported
from nablab.errors import StoreError
from nablab.plots import Figure, dots
from nablab.report import sections, tables
from nablab.report.page import render, write_report
from nablab.report.reported import reported_table
from nablab.report.view import RunView
from nablab.text.docstrings import description
from nablab.verdicts import answer, judge
from tests.report.conftest import FakeDepth, fake_record, fake_verdict, fake_view

VOID = {"meta", "link", "br", "hr", "img", "input", "col", "wbr"}
ORDER = [
    "verdicts",
    "figures",
    "theory",
    "numbers",
    "notes",
    "configuration",
    "environment",
    "reproduce",
    "exercises",
    "references",
]


class Page(HTMLParser):
    """What a page holds; fails where a tag is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[int] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += f" {data}"

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def html(view: RunView) -> str:
    return render(view)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def small(records: Records, **changes: object) -> RunView:
    """A view without figures, which are slow to draw."""

    @dataclass(frozen=True)
    class Plain(FakeDepth):
        __doc__ = FakeDepth.__doc__

        def figures(self, records: Records) -> dict[str, Figure]:
            return {}

    return fake_view(Plain(), records, **changes)


def test_tags_are_balanced_and_ids_unique(page: Page) -> None:
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []


def test_every_reference_inside_the_page_has_its_target(html: str, page: Page) -> None:
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    wanted |= {
        i
        for _, key, value in page.attributes
        if key == "aria-labelledby"
        for i in value.split()
    }
    assert wanted
    assert wanted <= set(page.ids)


def test_nothing_is_loaded_and_nothing_runs(html: str, page: Page) -> None:
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object"}
    links = {
        value
        for _, key, value in page.attributes
        if key in ("src", "href", "xlink:href")
    }
    assert all(link.startswith("#") for link in links)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]


def test_sections_come_in_order(page: Page) -> None:
    assert [i for i in page.ids if i in ORDER] == ORDER


def test_headings_do_not_skip_a_level(page: Page) -> None:
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(
        after <= before + 1
        for before, after in zip(page.headings, page.headings[1:], strict=False)
    )


def test_accessible(html: str, page: Page) -> None:
    assert '<html lang="en">' in html
    assert ("meta", "name", "viewport") in page.attributes
    assert page.tags["th"] == sum(
        tag == "th" and key == "scope" for tag, key, _ in page.attributes
    )
    assert (
        page.tags["svg"]
        == sum(tag == "svg" and key == "role" for tag, key, _ in page.attributes)
        == 4
    )


def test_small_enough(html: str) -> None:
    assert len(html.encode()) < 2_000_000


def test_the_page_does_not_change_with_the_same_records(
    view: RunView, html: str
) -> None:
    assert render(view) == html


def test_summary_says_what_was_run_and_where(page: Page) -> None:
    summary = (
        "fake-depth, preset quick: 6 conditions (target: sinc, sign_sin; model: deep, "
        "middle, shallow) with 5 seeds each; 30 trials in 1 min 15 s of work on Abacus "
        "9, 2 cores, device cpu."
    )
    assert summary in page.words


def test_the_title_names_the_data(view: RunView, html: str) -> None:
    class OnImages(FakeDepth):
        """Do leaves differ?"""

        def data_sets(self) -> tuple[str, ...]:
            return ("mnist@10000", "/home/me/my-leaves.npz", "/home/me/my-leaves.npz")

    on_images = render(replace(view, experiment=OnImages()))
    assert "<title>Do leaves differ? Data: mnist@10000, my-leaves.npz" in on_images
    assert (
        '<span class="data">Data: mnist@10000, my-leaves.npz</span></h1>' in on_images
    )
    assert "Data:" not in html.partition("</h1>")[0]


def test_theory_has_neither_the_question_nor_the_fields() -> None:
    class Documented(Experiment):
        """Why?

        Because.

        Attributes:
            steps: How many.

                Really.

        More.
        """

    assert description(Documented.__doc__) == "Because.\n\nMore."


def test_a_verdict_is_a_word_with_a_mark_an_effect_and_a_reason(page: Page) -> None:
    assert "+ supported The deep network has a lower held-out error" in page.words
    assert "4.0 times lower (2.0 to 7.9)" in page.words
    assert "smallest effect of interest: a factor of 1.58" in page.words


def test_each_outcome_has_its_own_mark(records: Records) -> None:
    verdicts = [fake_verdict("refuted"), fake_verdict("inconclusive", seeds_needed=12)]
    words = Page(render(small(records, verdicts=verdicts))).words
    assert "− refuted The deep" in words
    assert "? inconclusive The deep" in words
    assert "about 12 needed to decide" in words


def test_seeds_needed_are_said_once(records: Records) -> None:
    verdict = fake_verdict(
        "inconclusive", seeds_needed=12, reason="About 12 seeds would decide."
    )
    assert "needed to decide" not in render(small(records, verdicts=[verdict]))


@pytest.mark.parametrize(
    ("published", "unit", "measured", "distance", "text"),
    [
        (
            Published(-1.0, "x"),
            "log10 ratio",
            -0.6,
            0.4,
            "Published 10 times lower (x). Measured here: 3.98 times lower. Distance: "
            "a factor of 2.51.",
        ),
        (
            Published(961.0, "a course", of="metric"),
            "Cliff's delta",
            721.0,
            -240.0,
            "Published 961 (a course). Measured here: 721. Distance: −240 (25 % "
            "lower).",
        ),
        (
            Published(0.5, "a course"),
            "Kendall's tau",
            None,
            None,
            "Published 0.5 (Kendall's tau) (a course). Not measured here",
        ),
    ],
)
def test_published_and_measured_stand_side_by_side(
    records: Records,
    published: Published,
    unit: str,
    measured: float | None,
    distance: float | None,
    text: str,
) -> None:
    verdict = fake_verdict(
        unit=unit,
        published=published,
        measured_for_published=measured,
        distance=distance,
    )
    assert text in Page(render(small(records, verdicts=[verdict]))).words


@pytest.mark.parametrize(
    "state", ["running", "interrupted", "crashed", "failed", "incomplete"]
)
def test_an_unfinished_run_says_so_and_how_much_is_done(
    records: Records, state: str
) -> None:
    words = Page(render(small(Records(records[:7]), state=state))).words
    assert sections.STATES[state] in words
    assert "7 of 30 trials are done." in words
    assert ("More will follow." in words) == (state == "running")


def test_a_run_that_says_done_without_all_trials_is_not_complete(
    records: Records,
) -> None:
    assert "29 of 30 trials are done." in render(small(Records(records[1:])))


def test_a_finished_run_has_no_banner(html: str) -> None:
    assert 'class="banner"' not in html


def test_conditions_without_trials_stay_in_the_table(records: Records) -> None:
    rows = sections.condition_tables(small(Records(records[:5])), {})[0].rows
    assert [(levels, trials) for levels, trials, _ in rows][:2] == [
        (["sinc", "deep"], 5),
        (["sinc", "middle"], 0),
    ]
    assert rows[1][2][0] == ("–", "")


def test_a_run_without_any_trial_has_a_page(experiment: FakeDepth) -> None:
    page = Page(render(fake_view(experiment, Records([]), state="failed", verdicts=[])))
    assert "0 of 30 trials are done." in page.words
    assert "There is no verdict: no trial is done yet." in page.words


def test_cells_say_what_is_missing_or_infinite() -> None:
    values = [1.0, 3.0, math.inf, math.nan]
    records = Records(
        Record(Condition(model="a"), s, {"steps": v, "size": 7.0})
        for s, v in enumerate(values)
    )

    @dataclass(frozen=True)
    class One(Experiment):
        def conditions(self) -> list[Condition]:
            return [Condition(model="a")]

    (table,) = sections.condition_tables(
        fake_view(One(), records, seeds=4), {"size": {"most": 9.0}}
    )
    assert table.rows == [
        (["a"], 4, [("3", "median; 1 of 3 infinite; 3 of 4 trials"), ("7", "")])
    ]
    assert table.headings[1] == ("size", "the same for all seeds")
    assert table.baselines == [("most", ["", "9"])]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"a": [1.0, 2.0], "b": [1.0, 1.0]}, "mean, 95 % interval"),
        ({"a": [math.inf, 2.0], "b": [1.0, 3.0]}, "mean, 95 % interval, or median"),
        ({"a": [math.inf, 2.0]}, "median"),
        ({"a": [2.0], "b": [3.0]}, "mean"),
        ({"a": [2.0, 2.0], "b": [3.0, 3.0]}, "the same for all seeds"),
        ({"a": [math.nan]}, ""),
    ],
)
def test_headings_say_what_the_numbers_are(
    values: dict[str, list[float]], kind: str
) -> None:
    records = Records(
        Record(Condition(model=m), s, {"error": v})
        for m, own in values.items()
        for s, v in enumerate(own)
    )
    rows = tables.condition_rows(records, records.conditions, set())
    assert sections.heading("error", rows) == ("error", kind)


def test_baselines_and_notes_are_printed(page: Page) -> None:
    assert "mean of the targets 0.2" in page.words
    assert "sign_sin: two networks differ in size." in page.words


def test_names_are_text_never_markup() -> None:
    bad = "<script>alert(1)</script>"

    @dataclass(frozen=True)
    class Hostile(Experiment):
        """Is <script>alert(0)</script> harmless?

        Says `<script>` and <img src=x onerror=alert(2)>.
        """

        label: str = bad
        exercises = (bad,)
        references = (bad,)

        def conditions(self) -> list[Condition]:
            return [Condition(model=bad), Condition(model='"><svg onload=alert(3)>')]

        def figures(self, records: Records) -> dict[str, Figure]:
            return {
                bad: dots(records, bad, baselines={bad: 1.0}, title=bad, caption=bad)
            }

        def baselines(self, records: Records) -> dict[str, dict[str, float]]:  # type: ignore[override]
            return {bad: {bad: 1.0}}

    records = Records(
        Record(c, seed, {bad: float(seed)}, {bad: bad})
        for c in Hostile().conditions()
        for seed in range(3)
    )
    verdicts = [
        fake_verdict(
            claim=bad,
            scope={bad: bad},
            effect_text=bad,
            reason=bad,
            published=Published(1.0, bad),
        )
    ]
    view = fake_view(
        Hostile(),
        records,
        notes=[bad],
        command=bad,
        run_id=bad,
        preset=bad,
        verdicts=verdicts,
        environment={"git": bad, "processor": bad},
    )
    page = Page(render(view))
    assert not page.tags.keys() & {"script", "img"}
    assert page.tags["svg"] == 1
    assert bad in page.words


def test_an_error_in_a_drawing_is_printed_not_raised(records: Records) -> None:
    @dataclass(frozen=True)
    class Broken(FakeDepth):
        """Does it break?"""

        def figures(self, records: Records) -> dict[str, Figure]:
            raise ZeroDivisionError("by nothing")

    words = Page(render(fake_view(Broken(), records))).words
    assert (
        "The figures could not be drawn. ZeroDivisionError: by nothing "
        "(test_page.py, line"
    ) in words
    assert "mean of the targets 0.2" in words


class TestFiles:
    def test_everything_is_written_and_matches_the_page(
        self, view: RunView, html: str, tmp_path: Path
    ) -> None:
        page = write_report(view, tmp_path / "run")
        assert page == tmp_path / "run" / "report.html"
        assert page.read_text() == html
        names = {
            f"{name}.{end}"
            for name in ("loss", "predictions", "held-out-error", "steps")
            for end in ("svg", "png", "csv")
        }
        assert {path.name for path in (tmp_path / "run/figures").iterdir()} == names
        assert {path.name for path in (tmp_path / "run").iterdir()} == {
            "figures",
            "report.html",
            "scalars.csv",
            "verdicts.csv",
        }
        assert (tmp_path / "run/figures/loss.png").read_bytes().startswith(b"\x89PNG")
        assert (
            len((tmp_path / "run/scalars.csv").read_text().splitlines()) == 1 + 30 * 4
        )

    def test_figures_with_names_alike_do_not_overwrite_each_other(
        self, records: Records, tmp_path: Path
    ) -> None:
        @dataclass(frozen=True)
        class Alike(FakeDepth):
            """Same?"""

            def figures(self, records: Records) -> dict[str, Figure]:
                return {
                    name: dots(records, "parameters") for name in ("a b", "a-b", "A b")
                }

        write_report(fake_view(Alike(), records), tmp_path)
        assert {path.name for path in tmp_path.glob("figures/*.svg")} == {
            "a-b.svg",
            "a-b-2.svg",
            "a-b-3.svg",
        }

    def test_a_folder_that_cannot_be_written_says_so(
        self, records: Records, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="is a file"):
            write_report(small(records), tmp_path / "file")


def test_view_changes_show(view: RunView, html: str) -> None:
    assert render(replace(view, preset="paper")) != html


def test_contrast_of_text_is_enough_in_both_modes() -> None:
    css = (Path(sections.__file__).parent / "templates/style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    for block in (light, dark):
        colors = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block))
        for name in ("ink", "soft", "link", "supported", "refuted", "inconclusive"):
            assert contrast(colors[name], colors["page"]) >= 4.5, name
        assert contrast(colors["ink"], colors["warn"]) >= 4.5
        assert contrast(colors["soft"], colors["tint"]) >= 4.5


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colors after WCAG 2.2."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_one_record_per_condition_is_enough_for_a_page() -> None:
    experiment = FakeDepth(targets=("sinc",))
    records = Records(fake_record(c, 0, steps=50) for c in experiment.conditions())
    assert "A single seed, so no interval" in render(
        fake_view(experiment, records, seeds=1)
    )


def test_the_tally_counts_outcomes() -> None:
    outcomes = ["supported", "inconclusive", "refuted", "inconclusive"]
    verdicts = [fake_verdict(outcome=outcome) for outcome in outcomes]
    assert sections.tally(verdicts).startswith("1 supported, 1 refuted, 2 inconclusive")
    assert sections.tally(verdicts[:1]) == ""


# --- at one glance ------------------------------------------------------------


def judged(records: Records, **changes: object) -> RunView:
    """A view whose verdicts are the real ones."""
    return small(records, verdicts=judge(FakeDepth.claims, records), **changes)


def test_the_answer_comes_first_then_rows_then_figures(
    view: RunView, records: Records
) -> None:
    html = render(replace(view, verdicts=judge(FakeDepth.claims, records)))
    places = [
        html.index(part)
        for part in ('class="answer"', 'class="claim ', "<figure", 'id="theory"')
    ]
    assert places == sorted(places)
    verdicts = judge(FakeDepth.claims, records)
    assert answer(verdicts) in Page(html).words


def test_every_claim_is_one_row_with_a_drawing_that_has_a_title(
    records: Records,
) -> None:
    page = Page(render(judged(records)))
    rows = [
        value
        for tag, key, value in page.attributes
        if (tag, key) == ("details", "class")
    ]
    assert [row.split()[0] for row in rows] == ["how-to", "claim", "claim", "claim"]
    assert page.tags["title"] == 1 + 3
    assert (
        page.tags["svg"]
        == sum(tag == "svg" and key == "role" for tag, key, _ in page.attributes)
        == 3
    )


def test_the_details_of_a_claim_hold_what_a_statistician_asks(records: Records) -> None:
    words = Page(render(judged(records))).words
    for part in (
        "permutation of Welch's t",
        "Holm's correction for 3 claims",
        "95 % interval: bootstrap",
    ):
        assert part in words
    assert "before correction" in words
    assert "after it" in words


def test_details_are_shown_on_a_click_and_in_print() -> None:
    css = (Path(sections.__file__).parent / "templates/style.css").read_text()
    screen, printed = css.split("@media print")
    assert re.search(r"\.more \{ display: none;", screen)
    assert re.search(r"details\[open\] \+ \.more \{ display: block; \}", screen)
    assert re.search(r"\.more \{ display: block;", printed)


def test_what_all_claims_share_is_said_once(records: Records) -> None:
    verdicts = [
        fake_verdict(
            claim=f"Claim {n} (network flatten-256)", scope={"network": "flatten-256"}
        )
        for n in range(3)
    ]
    words = Page(render(small(records, verdicts=verdicts))).words
    assert words.count("network flatten-256") == 1
    assert "all for network flatten-256." in words
    alone = Page(render(small(records, verdicts=verdicts[:1]))).words
    assert "Claim 0 (network flatten-256)." in alone


def test_the_head_says_what_was_run_and_when(records: Records) -> None:
    facts = {"started": (1_800_000_000.0, 1_800_090_000.0)}
    words = Page(render(small(records, environment=facts))).words
    assert "plain, preset quick, 5 seeds, 2027-01-15 to 2027-01-16." in words


def test_numbers_have_a_real_minus(records: Records) -> None:
    verdict = fake_verdict(effect_text="tau -0.5 for 1-190-1")
    assert (
        "Tau −0.5 for 1-190-1."
        in Page(render(small(records, verdicts=[verdict]))).words
    )


def test_what_others_reported_stands_beside_what_was_measured(records: Records) -> None:
    @dataclass(frozen=True)
    class WithReports(FakeDepth):
        """Does depth help?"""

        reported = (
            Reported(
                who="a course",
                quantity="parameters",
                value=571.0,
                seeds=1,
                metric="parameters",
                where={"model": "deep"},
                fields={"steps": 2_000},
            ),
            Reported(
                who="a paper",
                quantity="parameters",
                value=571.0,
                metric="parameters",
                where={"model": "deep"},
                fields={"steps": 9_000},
            ),
            Reported(who="a book", source="page 3", quantity="slope", value="falls"),
        )

        def figures(self, records: Records) -> dict[str, Figure]:
            return {}

    table = reported_table(WithReports(), records)
    assert table.header == ("who", "what", "reported", "seeds", "measured here")
    assert table.rows == [
        ("a course", "parameters", "571", "1", "571 (10 seeds)"),
        # another setting: nothing is comparable
        ("a paper", "parameters", "571", "–", "–"),
        ("a book (page 3)", "slope", "falls", "–", "–"),
    ]
    assert table.beside
    page = Page(render(fake_view(WithReports(), records)))
    assert "This run repeats none of these settings" not in page.words
    other = Page(render(fake_view(WithReports(steps=7), records)))
    assert "This run repeats none of these settings" in other.words
    assert "reported" in page.ids
    assert "a book (page 3) slope falls" in page.words


def test_wide_parts_say_that_there_is_more_on_a_phone() -> None:
    css = (Path(sections.__file__).parent / "templates/style.css").read_text()
    phone = css[css.index("@media screen and (max-width: 40rem)") :]
    assert re.search(r"\.swipe \{ display: block; \}", phone)
    assert re.search(r"\.scroll \{[^}]*var\(--shade\)", css)


def test_an_experiment_that_draws_nothing_gets_plain_figures(
    records: Records,
) -> None:
    class Undrawn(FakeDepth):
        __doc__ = FakeDepth.__doc__
        figures = Experiment.figures

    html = render(fake_view(Undrawn(), records))
    curves = {name for record in records for name in record.curves}
    drawn = {f"svg-curve-{name.replace('_', '-')}" for name in curves}
    assert drawn
    assert all(name in html for name in drawn)
