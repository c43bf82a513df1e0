"""The report of a run.

One HTML page that stands alone, with figures and numbers as files beside it.
"""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from nablab.contract import Experiment, Figure
from nablab.files.atomic import write_bytes
from nablab.plots.frame import matplotlib_as_shipped
from nablab.report import exports, prose, sections, tables
from nablab.report.reported import reported_table
from nablab.report.view import RunView
from nablab.text.docstrings import description
from nablab.verdicts.answering import answer

if TYPE_CHECKING:
    import jinja2


Tell = Callable[[str], None]


def write_report(
    view: RunView, folder: Path, *, on_trouble: Tell = lambda _: None
) -> Path:
    """Write the report and everything beside it into ``folder``, each file atomically.

    The files are ``figures/<name>.svg``, ``.png`` and ``.csv``, ``scalars.csv``,
    ``verdicts.csv`` and, last, ``report.html``.

    Args:
        view: The run.
        folder: Where to write.
        on_trouble: Hears of figures and baselines that are missing because code raised
            an error; the page says it, too.

    Returns:
        The path of the page.

    Raises:
        StoreError: A file cannot be written.
    """
    answers = _answers(view, on_trouble)
    for name, (figure, svg) in answers.figures.items():
        base = folder / "figures" / name
        write_bytes(base.with_suffix(".svg"), svg.encode())
        write_bytes(base.with_suffix(".png"), exports.png(figure))
        write_bytes(
            base.with_suffix(".csv"), exports.csv_of_columns(figure.table).encode()
        )
    for name, (header, rows) in {
        "scalars.csv": tables.scalar_rows(view.records),
        "verdicts.csv": tables.verdict_rows(view.verdicts),
    }.items():
        write_bytes(folder / name, exports.csv_of_rows(header, rows).encode())
    page = folder / "report.html"
    write_bytes(page, _page(view, answers).encode())
    return page


def render(view: RunView, *, on_trouble: Tell = lambda _: None) -> str:
    """Render the whole page: inline pictures and styles, no script, nothing to load."""
    return _page(view, _answers(view, on_trouble))


@dataclass(frozen=True)
class _Answers:
    """What the experiment's own code made of the records, and what went wrong there.

    Hours of training must not go without a report because of a mistake in a drawing, so
    an error in this code is printed on the page instead of raised.

    Attributes:
        figures: By a name that is unique and safe in files and ids: the figure, and it
            as SVG.
        baselines: Metric, then name, then value.
        troubles: Sentences about errors.
    """

    figures: Mapping[str, tuple[Figure, str]]
    baselines: Mapping[str, Mapping[str, float]]
    troubles: Sequence[str]


def _answers(view: RunView, on_trouble: Tell) -> _Answers:
    troubles: list[str] = []
    figures: dict[str, tuple[Figure, str]] = {}
    baselines: dict[str, Mapping[str, float]] = {}
    if len(view.records):
        try:
            with matplotlib_as_shipped():
                named = _named(_figures_of(view))
            figures = {
                name: (figure, exports.svg(figure, f"svg-{name}"))
                for name, figure in named.items()
            }
        except (Exception, SystemExit) as error:
            troubles.append(f"The figures could not be drawn. {_place(error)}")
        try:
            baselines = view.experiment.baselines(view.records)
        except (Exception, SystemExit) as error:
            troubles.append(f"The baselines could not be computed. {_place(error)}")
    for trouble in troubles:
        on_trouble(trouble)
    return _Answers(figures, baselines, troubles)


def _figures_of(view: RunView) -> Mapping[str, Figure]:
    """Those that the experiment draws; plain ones if it does not say how."""
    if type(view.experiment).figures is not Experiment.figures:
        return view.experiment.figures(view.records)
    from nablab.plots import default_figures

    tested = [claim.metric for claim in view.experiment.active_claims()]
    return default_figures(view.records, tested)


def _place(error: BaseException) -> str:
    """Describe an error with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({Path(last.filename).name}, line "
        f"{last.lineno})"
    )


def _named(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Give the figures names that are unique and safe in files and ids."""
    named: dict[str, Figure] = {}
    for name, figure in figures.items():
        slug = base = exports.slug(name)
        number = 2
        while slug in named:
            slug, number = f"{base}-{number}", number + 1
        named[slug] = figure
    return named


def _page(view: RunView, answers: _Answers) -> str:
    experiment = view.experiment
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            question=experiment.question() or experiment.name,
            data=", ".join(
                dict.fromkeys(Path(spec).name for spec in experiment.data_sets())
            ),
            view=view,
            answer=answer(view.verdicts),
            headline=sections.headline(view),
            summary=sections.summary(view),
            banner=sections.banner(view),
            tally=sections.tally(view.verdicts),
            shared=sections.shared(view.verdicts),
            verdicts=sections.verdict_rows(view),
            reported=reported_table(experiment, view.records),
            figures=[
                {"id": name, "title": f.title, "caption": f.caption, "svg": Markup(svg)}
                for name, (f, svg) in answers.figures.items()
            ],
            troubles=answers.troubles,
            theory=prose.render(description(type(experiment).__doc__)),
            condition_tables=sections.condition_tables(view, answers.baselines),
            trials=tables.trial_rows(view.records),
            configuration=sections.configuration(experiment),
            environment=sections.environment(view),
            exercises=[prose.inline(text) for text in experiment.exercises],
            references=[prose.inline(text) for text in experiment.references],
        )
    )


@functools.cache
def environment() -> jinja2.Environment:
    """Load the templates; all text is escaped unless it is marked as HTML."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("nablab.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["firm"] = _firm
    return made


def _firm(text: str) -> str:
    """Keep a power of ten, and a count, from breaking across lines."""
    return re.sub(
        r" × |(?<=n) = (?=\d)", lambda found: found[0].replace(" ", "\u00a0"), text
    )
