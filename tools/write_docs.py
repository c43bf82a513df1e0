"""Write docs/experiments/*.md from the experiments and their reference runs.

``python tools/write_docs.py`` writes the pages again. ``--reference RUN`` first copies
the verdicts, figures and environment of a run in the store to become the reference run
of its experiment; a run of another preset than standard becomes a further one.
``--judge`` answers the claims of all reference runs again from their stored numbers:
after a change of the statistics or of a claim's words. ``--check`` writes nothing and
fails if a page is not what would be written.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from nablab import catalogue, open_run
from nablab.contract import (
    Condition,
    Experiment,
    Record,
    Records,
    Reported,
    configuration,
)
from nablab.report.reported import measured, table_of
from nablab.report.sections import MARKS
from nablab.settings.words import in_text
from nablab.text.docstrings import description
from nablab.text.durations import duration
from nablab.verdicts import Verdict, answer, judge

DOCS = Path(__file__).resolve().parents[1] / "docs" / "experiments"


def copy_reference(reference: str) -> None:
    """Keep what a page shows of a run: small files only, no trials."""
    run = open_run(reference)
    run.write()
    preset = run.folder.config().preset
    target = DOCS / (
        run.experiment.name
        if preset == "standard"
        else f"{run.experiment.name}-{preset}"
    )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("config.json", "verdicts.json", "scalars.csv"):
        shutil.copy(run.folder.path / name, target / name)
    environment = dict(run.view().environment)
    seconds, started = environment.pop("seconds"), environment.pop("started")
    (target / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
    for figure in sorted((run.folder.path / "figures").glob("*.png")):
        shutil.copy(figure, target / figure.name)
    facts = {"command": run.command, "seeds": run.seeds, "trials": len(run.records)}
    facts["date"] = time.strftime("%Y-%m-%d", time.gmtime(started[1]))
    facts["seconds"] = round(seconds)
    # of all processes together; runs of earlier versions knew the time by the clock
    facts["of_work"] = True
    (target / "run.json").write_text(json.dumps(facts, indent=1) + "\n")


def judge_again() -> None:
    """Write the verdicts of every reference run from its ``scalars.csv``.

    Nothing is trained.
    """
    for path in sorted(DOCS.glob("*/scalars.csv")):
        experiment = _configured(path.parent)
        verdicts = judge(experiment.active_claims(), _records(path, experiment))
        content = {"verdicts": [verdict.to_dict() for verdict in verdicts]}
        (path.parent / "verdicts.json").write_text(json.dumps(content, indent=1) + "\n")


def _configured(folder: Path) -> Experiment:
    """Return the experiment as a reference run was configured."""
    config = _read(folder / "config.json")
    found = catalogue.find(config["experiment"])
    return configuration.resolve(
        found, config["preset"], config["configuration"], validate=False
    )


def _records(path: Path, experiment: Experiment) -> Records:
    """Read the trials of a tidy table.

    The experiment knows of what type a factor's levels are.
    """
    conditions = {
        tuple((factor, str(level)) for factor, level in condition.items()): condition
        for condition in experiment.conditions()
    }
    trials: dict[tuple[Condition, int], dict[str, float]] = {}
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            metric, value, seed = (
                row.pop("metric"),
                float(row.pop("value")),
                int(row.pop("seed")),
            )
            condition = conditions[
                tuple((factor, level) for factor, level in row.items() if level)
            ]
            trials.setdefault((condition, seed), {})[metric] = value
    return Records(
        Record(condition, seed, scalars)
        for (condition, seed), scalars in trials.items()
    )


def page(experiment: type[Experiment]) -> str:
    """Write the Markdown page of one experiment."""
    parts = [
        f"# {experiment.question()}",
        f"`nablab run {experiment.name}`",
        description(experiment.__doc__),
        *_references(experiment),
    ]
    parts += _reported(experiment)
    parts += ["## Presets", _table(("preset", "settings"), _presets(experiment))]
    fields = [
        (f"`{f.name}`", f"`{f.default}`" if f.default else "", f"{f.help} ({f.type})")
        for f in configuration.describe(experiment)
    ]
    parts += ["## Settings", _table(("key", "default", "meaning"), fields)]
    parts += [
        "## Exercises",
        "\n".join(f"{i}. {text}" for i, text in enumerate(experiment.exercises, 1)),
    ]
    parts += ["## References", "\n".join(f"- {line}" for line in experiment.references)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _presets(experiment: type[Experiment]) -> list[tuple[str, str]]:
    rows = []
    for name, values in experiment.presets.items():
        settings = ", ".join(
            f"`{key}={in_text(value)}`" for key, value in values.items()
        )
        rows.append((f"`{name}`", settings or "the defaults below"))
    return rows


def _references(experiment: type[Experiment]) -> list[str]:
    """Write the section on the reference run and those of other presets."""
    return [part for folder in _folders(experiment) for part in _reference(folder)]


def _folders(experiment: type[Experiment]) -> list[Path]:
    """Find the reference runs of an experiment, that of the preset standard first."""
    presets = [preset for preset in experiment.presets if preset != "standard"]
    folders = [
        DOCS / experiment.name,
        *(DOCS / f"{experiment.name}-{preset}" for preset in presets),
    ]
    return [folder for folder in folders if (folder / "run.json").exists()]


def _reported(experiment: type[Experiment]) -> list[str]:
    """Write what others reported beside the reference run that repeats the setting."""
    if not experiment.reported:
        return []
    table = table_of(
        experiment.reported, [_beside(one, experiment) for one in experiment.reported]
    )
    return ["## What others reported", _table(table.header, table.rows)]


def _beside(one: Reported, experiment: type[Experiment]) -> str:
    """Write what the first reference run of the same setting measured, with its preset.

    Empty without one.
    """
    for folder in _folders(experiment):
        configured = _configured(folder)
        if found := measured(
            one, configured, _records(folder / "scalars.csv", configured)
        ):
            return f"{found}, {_read(folder / 'config.json')['preset']}"
    return ""


def _reference(folder: Path) -> list[str]:
    run, environment = _read(folder / "run.json"), _read(folder / "environment.json")
    verdicts = [
        Verdict.from_dict(content)
        for content in _read(folder / "verdicts.json")["verdicts"]
    ]
    machine = (
        f"{environment['processor']}, {environment['cores']} cores, torch "
        f"{environment['torch']}"
    )
    rows = [
        (f"{MARKS[v.outcome]} {v.outcome}", v.claim, v.effect_text, v.reason)
        for v in verdicts
    ]
    figures = [
        f"![{path.stem}]({folder.name}/{path.name})"
        for path in sorted(folder.glob("*.png"))
    ]
    took = duration(run["seconds"]) + (" of work" if run.get("of_work") else "")
    intro = (
        f"`{run['command']}`: {run['trials']} trials in {took} on {machine}, "
        f"{run['date']}."
    )
    preset = _read(folder / "config.json")["preset"]
    title = (
        "## Reference run"
        if preset == "standard"
        else f"## Reference run of the preset {preset}"
    )
    return [
        title,
        intro,
        answer(verdicts),
        _table(("verdict", "claim", "effect", "why"), rows),
        *figures,
    ]


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", metavar="RUN")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.reference:
        copy_reference(options.reference)
    if options.judge:
        judge_again()
    stale = []
    for entry in catalogue.scan().values():
        if entry.path.parent != catalogue.BUILT_IN or entry.experiment is None:
            continue
        path, text = DOCS / f"{entry.name}.md", page(entry.experiment)
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    for path in stale:
        print(f"{'stale' if options.check else 'written'}: {path}")
    return int(bool(stale) and options.check)


if __name__ == "__main__":
    sys.exit(main())
