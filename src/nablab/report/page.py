"""The report of a run: one HTML page that stands alone, with figures and numbers as files beside it."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from nablab.atomic import write_bytes
from nablab.experiment import Experiment, Records
from nablab.plots import Figure
from nablab.report import exports, prose, sections, tables

if TYPE_CHECKING:
    import jinja2

    from nablab.verdicts import Verdict


@dataclass(frozen=True)
class RunView:
    """What a report needs to know of a run.

    Attributes:
        experiment: The configured experiment.
        preset: The preset it started from.
        run_id: The run's name in the store.
        state: ``done``, ``interrupted``, ``crashed``, ``failed``, ``running`` or ``incomplete``.
        records: The finished trials.
        verdicts: The answers to the claims, in the order of the claims.
        environment: Versions, processor, cores, threads, device, git state, and ``seconds``.
        notes: Automatic choices and caveats, one sentence or two each.
        command: The command that makes this run.
        seeds: Planned number of seeds per condition.
    """

    experiment: Experiment
    preset: str
    run_id: str
    state: str
    records: Records
    verdicts: list[Verdict]
    environment: Mapping[str, Any]
    notes: Sequence[str]
    command: str
    seeds: int


def write_report(view: RunView, folder: Path) -> Path:
    """Write the report and everything beside it into ``folder``, each file atomically.

    The files are ``figures/<name>.svg``, ``.png`` and ``.csv``, ``scalars.csv``, ``verdicts.csv``
    and, last, ``report.html``.

    Returns:
        The path of the page.

    Raises:
        StoreError: A file cannot be written.
    """
    figures, trouble = _figures(view)
    for name, figure in figures.items():
        base = folder / "figures" / name
        write_bytes(base.with_suffix(".svg"), exports.svg(figure, name).encode())
        write_bytes(base.with_suffix(".png"), exports.png(figure))
        write_bytes(base.with_suffix(".csv"), exports.csv_of_columns(figure.table).encode())
    for name, (header, rows) in {
        "scalars.csv": tables.scalar_rows(view.records),
        "verdicts.csv": tables.verdict_rows(view.verdicts),
    }.items():
        write_bytes(folder / name, exports.csv_of_rows(header, rows).encode())
    page = folder / "report.html"
    write_bytes(page, _page(view, figures, trouble).encode())
    return page


def render(view: RunView) -> str:
    """The whole page as text: inline pictures and styles, no script, nothing to load."""
    return _page(view, *_figures(view))


def _figures(view: RunView) -> tuple[dict[str, Figure], str]:
    """The experiment's figures by a name that is safe in files and ids, and what went wrong."""
    try:
        drawn = view.experiment.figures(view.records)
    # Hours of training must not go without a report because of a mistake in a drawing.
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {}, f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
    named: dict[str, Figure] = {}
    for name, figure in drawn.items():
        slug = base = exports.slug(name)
        number = 2
        while slug in named:
            slug, number = f"{base}-{number}", number + 1
        named[slug] = figure
    return named, ""


def _page(view: RunView, figures: Mapping[str, Figure], trouble: str) -> str:
    experiment = view.experiment
    return environment().get_template("report.html.j2").render(
        question=experiment.question() or experiment.name,
        view=view,
        summary=sections.summary(view),
        banner=sections.banner(view),
        verdicts=[sections.verdict_card(verdict) for verdict in view.verdicts],
        figures=[
            {"id": name, "title": f.title, "caption": f.caption, "svg": Markup(exports.svg(f, f"svg-{name}"))}
            for name, f in figures.items()
        ],
        trouble=trouble,
        theory=prose.render(sections.theory(experiment)),
        condition_tables=sections.condition_tables(view),
        trials=tables.trial_rows(view.records),
        configuration=sections.configuration(experiment),
        environment=sections.environment(view),
        exercises=[prose.inline(text) for text in experiment.exercises],
        references=[prose.inline(text) for text in experiment.references],
    )


@functools.cache
def environment() -> jinja2.Environment:
    """The templates; all text is escaped unless it is marked as HTML."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("nablab.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
