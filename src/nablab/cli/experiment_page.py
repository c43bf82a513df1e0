"""The page of an experiment in the terminal and as JSON."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nablab.cli.lines import in_lines, reflow, without_quotes
from nablab.cli.seed_warnings import print_warnings, warnings_of_preset
from nablab.contract import Claim, Experiment, Reported, configuration, plain
from nablab.settings.words import in_text
from nablab.text.docstrings import description
from nablab.text.naming import words


def experiment_facts(experiment: type[Experiment]) -> dict[str, Any]:
    """Collect everything `nablab show` knows, as plain JSON types."""
    return {
        "name": experiment.name,
        "topic": experiment.topic,
        "question": experiment.question(),
        "page": inspect.cleandoc(experiment.__doc__ or ""),
        "presets": {name: dict(preset) for name, preset in experiment.presets.items()},
        "settings": [vars(field) for field in configuration.describe(experiment)],
        "needs": [plain(one) for one in experiment.needs],
        "undecided": {
            name: lines
            for name in experiment.presets
            if (lines := warnings_of_preset(experiment, name))
        },
        "reported": [plain(one) for one in experiment.reported],
        "exercises": list(experiment.exercises),
        "references": list(experiment.references),
    }


def print_experiment(console: Console, experiment: type[Experiment]) -> None:
    """Print the page of an experiment.

    It has the docstring, claims, presets, settings, exercises and references.
    """
    console.print(
        Text(
            f"{experiment.name}: {without_quotes(experiment.question())}", style="bold"
        )
    )
    console.print(Text(f"\n{reflow(without_quotes(description(experiment.__doc__)))}"))
    _print_points(
        console, "Claims, each tested and answered with a verdict", _claims(experiment)
    )
    _print_points(
        console, "What others reported", [_reported(one) for one in experiment.reported]
    )
    console.print(Text("\nPresets (--preset NAME)", style="bold"))
    for name, values in experiment.presets.items():
        settings = [_setting(key, value) for key, value in values.items()] or [
            "the defaults below"
        ]
        console.print(Text(name, style="cyan"))
        console.print(
            Padding(
                Text("\n".join(in_lines(settings, console.width - 4))), (0, 0, 0, 4)
            )
        )
        print_warnings(console, warnings_of_preset(experiment, name), indent=4)
    console.print(Text("\nSettings (key=value), with their defaults", style="bold"))
    for field in configuration.describe(experiment):
        _print_setting(console, field)
    _print_points(
        console,
        "Needs a finished run that left its weights (--weights-from RUN)",
        [f"{one.experiment}, its weights '{one.weights}'" for one in experiment.needs],
    )
    _print_points(console, "Exercises", experiment.exercises)
    _print_points(console, "References", experiment.references)
    console.print(f"\nRun it: nablab run {experiment.name} --preset quick", style="dim")


def _print_setting(console: Console, field: configuration.FieldDoc) -> None:
    lines = in_lines([f"{field.name}={field.default}"], console.width)
    console.print(Text("\n".join(lines), style="cyan"))
    meaning = Text(without_quotes(field.help))
    meaning.append(
        f" One of: {', '.join(field.choices)}."
        if field.choices
        else f" ({field.type})",
        "dim",
    )
    console.print(Padding(meaning, (0, 0, 0, 4)))


def _print_points(console: Console, title: str, points: Sequence[str]) -> None:
    """Print a list with a title, or nothing where the list is empty."""
    if not points:
        return
    console.print(Text(f"\n{title}", style="bold"))
    table = Table.grid(padding=(0, 1, 0, 0))
    for number, point in enumerate(points, 1):
        table.add_row(f"{number}.", Text(without_quotes(point)))
    console.print(table)


def _claims(experiment: type[Experiment]) -> list[str]:
    """List the sentences of the claims, those on levels of a factor only once.

    This needs no torch.
    """
    return list(dict.fromkeys(map(_claim, experiment.claims)))


def _reported(one: Reported) -> str:
    """Put what somebody else reported on one line."""
    who = one.who + (f" ({one.setting})" if one.setting else "")
    value = one.value if isinstance(one.value, str) else f"{one.value:.4g}"
    seeds = (
        ""
        if one.seeds is None
        else f", {one.seeds} seed{'' if one.seeds == 1 else 's'}"
    )
    source = f" [{one.source}]" if one.source else ""
    return f"{who}: {one.quantity} {value}{seeds}{source}"


def _claim(claim: Claim) -> str:
    text = claim.sentence
    if not text:  # only an experiment of the user's own leaves it out
        from nablab.verdicts.wording import sentence

        text = sentence(claim, claim.where)
    within = f" (for every {words(claim.within)})" if claim.within else ""
    return f"{text.rstrip('.')}{within}."


def _setting(key: str, value: Any) -> str:
    """Write a setting of a preset as the command line does."""
    return f"--seeds {value}" if key == "seeds" else f"{key}={in_text(value)}"
