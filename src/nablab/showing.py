"""How experiments, runs, comparisons and estimates look in the terminal and as JSON."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nablab import configuration
from nablab.errors import StoreError, UsageError
from nablab.experiment import Claim, Condition, Experiment, Reported, plain, shared_levels, text_of
from nablab.naming import words
from nablab.showing_seeds import undecided_claims, warnings, warnings_of_preset
from nablab.streams import print_json
from nablab.terminal import print_damage
from nablab.values import in_text

if TYPE_CHECKING:
    from nablab.lab.contents import Config
    from nablab.lab.runner import Plan
    from nablab.lab.session import Estimate
    from nablab.lab.store import RunFolder
    from nablab.report.view import RunView

T = TypeVar("T")
SHORT = 12  # numbers of an array that the terminal lists
MEASURE_EXAMPLE = (
    "nablab measure hessian_trace --model my_network.py:build --data data.npz --figure trace.png"
)


def experiment_facts(experiment: type[Experiment]) -> dict[str, Any]:
    """Everything `nablab show` knows, as plain JSON types."""
    return {
        "name": experiment.name,
        "question": experiment.question(),
        "page": inspect.cleandoc(experiment.__doc__ or ""),
        "presets": {name: dict(preset) for name, preset in experiment.presets.items()},
        "settings": [vars(field) for field in configuration.describe(experiment)],
        "undecided": {
            name: lines for name in experiment.presets if (lines := warnings_of_preset(experiment, name))
        },
        "reported": [plain(one) for one in experiment.reported],
        "exercises": list(experiment.exercises),
        "references": list(experiment.references),
    }


def print_experiment(console: Console, experiment: type[Experiment]) -> None:
    """The page of an experiment: its docstring, claims, presets, settings, exercises and references."""
    page = inspect.cleandoc(experiment.__doc__ or "").split("\nAttributes:")[0]
    question, _, rest = page.partition("\n")
    console.print(Text(f"{experiment.name}: {_without_quotes(question)}", style="bold"))
    console.print(Text(f"\n{reflow(_without_quotes(rest))}"))
    _print_points(console, "Claims, each tested and answered with a verdict", _claims(experiment))
    _print_points(console, "What others reported", [_reported(one) for one in experiment.reported])
    console.print(Text("\nPresets (--preset NAME)", style="bold"))
    for name, values in experiment.presets.items():
        settings = [_setting(key, value) for key, value in values.items()] or ["the defaults below"]
        console.print(Text(name, style="cyan"))
        console.print(Padding(Text("\n".join(_lines(settings, console.width - 4))), (0, 0, 0, 4)))
        _print_warnings(console, warnings_of_preset(experiment, name), indent=4)
    console.print(Text("\nSettings (key=value), with their defaults", style="bold"))
    for field in configuration.describe(experiment):
        _print_setting(console, field)
    _print_points(console, "Exercises", experiment.exercises)
    _print_points(console, "References", experiment.references)
    console.print(f"\nRun it: nablab run {experiment.name} --preset quick", style="dim")


def _print_warnings(console: Console, lines: Sequence[str], *, indent: int = 0) -> None:
    """Which claims stay open; nothing where all can be decided."""
    for line in lines:
        console.print(Padding(Text(_without_quotes(line), style="yellow"), (0, 0, 0, indent)))


def _print_setting(console: Console, field: configuration.FieldDoc) -> None:
    lines = _lines([f"{field.name}={field.default}"], console.width)
    console.print(Text("\n".join(lines), style="cyan"))
    meaning = Text(_without_quotes(field.help))
    meaning.append(f" One of: {', '.join(field.choices)}." if field.choices else f" ({field.type})", "dim")
    console.print(Padding(meaning, (0, 0, 0, 4)))


def _print_points(console: Console, title: str, points: Sequence[str]) -> None:
    """A list with a title; nothing where there is no point."""
    if not points:
        return
    console.print(Text(f"\n{title}", style="bold"))
    table = Table.grid(padding=(0, 1, 0, 0))
    for number, point in enumerate(points, 1):
        table.add_row(f"{number}.", Text(_without_quotes(point)))
    console.print(table)


def _claims(experiment: type[Experiment]) -> list[str]:
    """The sentences of the claims, those on levels of a factor once; needs no torch."""
    return list(dict.fromkeys(map(_claim, experiment.claims)))


def _reported(one: Reported) -> str:
    """What somebody else reported, on one line."""
    who = one.who + (f" ({one.setting})" if one.setting else "")
    value = one.value if isinstance(one.value, str) else f"{one.value:.4g}"
    seeds = "" if one.seeds is None else f", {one.seeds} seed{'' if one.seeds == 1 else 's'}"
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
    """A setting of a preset as the command line writes it."""
    return f"--seeds {value}" if key == "seeds" else f"{key}={in_text(value)}"


def _lines(parts: Sequence[str], width: int) -> list[str]:
    """Words in lines of this width; one that is longer is broken after commas, else where it must be.

    >>> _lines(["steps=8", "targets=sinc,sign_sin,sawtooth"], 16)
    ['steps=8', 'targets=sinc,', 'sign_sin,', 'sawtooth']
    """
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 1 + len(part) <= width:
            lines[-1] += f" {part}"
            continue
        lines.append("")
        for piece in re.findall(rf"[^,;]{{1,{max(1, width - 1)}}}[,;]?|[,;]", part):
            if lines[-1] and len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    return lines


def _without_quotes(text: str) -> str:
    """A docstring's words without the backquotes of its markup.

    >>> _without_quotes("``True`` is what `nablab.run` takes")
    'True is what nablab.run takes'
    """
    return text.replace("`", "")


def reflow(text: str) -> str:
    r"""Join the lines of each paragraph, so that the terminal wraps them; lists and indented blocks stay.

    >>> reflow("one\ntwo\n\n- three\n- four")
    'one two\n\n- three\n- four'
    """
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    shaped = re.compile(r"^(\s{2,}|[-*] )", re.MULTILINE)
    return "\n\n".join(b.rstrip() if shaped.search(b) else " ".join(b.split()) for b in blocks)


def run_facts(folder: RunFolder) -> dict[str, Any]:
    """One line of `nablab runs`, as plain JSON types."""
    from nablab.lab.provenance import seconds_of
    from nablab.lab.status import state_of

    damage: list[str] = []

    def whole(look: Callable[[], T]) -> T | None:
        try:
            return look()
        except StoreError as error:
            damage.append(str(error))
            return None

    config, status, verdicts = whole(folder.config), whole(folder.status), whole(folder.verdicts)
    trials, damaged = (whole(folder.count_trials) if config else None) or (None, [])
    outcomes = [verdict.outcome for verdict in verdicts.verdicts] if verdicts else []
    report = folder.path / "report.html"
    return {
        "experiment": config.experiment if config else folder.path.parent.name,
        "run": folder.path.name,
        "preset": config.preset if config else "",
        "settings": changed_settings(config) if config else [],
        "seeds": status.seeds if status else None,
        "state": state_of(status) if status else "incomplete",
        "trials": trials,
        "trials_wanted": status.trials if status else None,
        "seconds": seconds_of(folder),
        "changed": folder.changed,
        "verdicts": {kind: outcomes.count(kind) for kind in ("supported", "refuted", "inconclusive")},
        "folder": str(folder.path),
        "report": str(report) if report.exists() else None,
        "damage": [*damage, *(f"{error} The run's command trains it again." for error in damaged)],
    }


def print_runs(console: Console, facts: Sequence[Mapping[str, Any]]) -> None:
    """The runs of the store: two lines each, or more where they are longer than the terminal is wide."""
    from nablab.terminal import now_text

    if not facts:
        console.print("There are no runs here yet. 'nablab run deep-vs-shallow --preset quick' makes one.")
        return
    for fact in facts:
        done = "?" if fact["trials"] is None else fact["trials"]
        trials = f"{done} of {fact['trials_wanted'] or '?'} trials"
        counts = [f"{count} {kind}" for kind, count in fact["verdicts"].items() if count]
        head = [
            f"{fact['experiment']}/{fact['run']}",
            f"{fact['state']},",
            f"{trials},",
            now_text(fact["changed"]),
        ]
        lines = _lines(head, console.width)
        line = Text("\n".join(lines))
        line.stylize("bold", 0, len(head[0]))
        console.print(line)
        what = [word for word in (fact["preset"], *fact.get("settings", ())) if word]
        what[-1:] = [f"{word}:" for word in what[-1:] if counts] or what[-1:]
        below = "\n".join(_lines([*what, ", ".join(counts)], console.width - 4))
        console.print(Padding(Text(below.rstrip(), style="dim"), (0, 0, 0, 4)))
    print_damage(console, [text for fact in facts for text in fact["damage"]])


def changed_settings(config: Config) -> list[str]:
    """What a run changed in its preset, as ``key=value`` words; nothing where its experiment is gone."""
    from nablab import catalogue

    try:
        experiment_class = catalogue.find(config.experiment)
        experiment = configuration.resolve(
            experiment_class, config.preset, config.configuration, validate=False
        )
    except UsageError:
        return []
    return configuration.changes(experiment, config.preset)


def dry_run_facts(plan: Plan, estimates: Sequence[Estimate]) -> dict[str, Any]:
    """What a dry run found, as plain JSON types. Memory is the peak of this process so far, in bytes."""
    from nablab.lab.memory import peak_bytes

    conditions = [
        {
            "condition": dict(shared_levels(group)),
            "conditions": [dict(condition) for condition in group],
            "seconds": e.seconds,
            "engine": e.engine,
            "steps": e.steps,
            "may_end_early": e.may_end_early,
            "run_in_full": e.run_in_full,
        }
        for group, e in zip(plan.groups, estimates, strict=True)
    ]
    return {
        "experiment": plan.experiment.name,
        "run": plan.identity.run_id,
        "preset": plan.preset,
        "configuration": plan.experiment.configuration(),
        "seeds": plan.seeds,
        "trials": len(plan.conditions) * plan.seeds,
        "device": plan.device,
        "replicas": plan.replicas,
        "conditions": conditions,
        "undecided": undecided_claims(plan.experiment, plan.seeds),
        "warnings": warnings(plan.experiment, plan.preset, plan.seeds),
        "seconds": sum(e.seconds for e in estimates),
        "may_end_early": any(e.may_end_early for e in estimates),
        "peak_memory_bytes": peak_bytes(),
    }


def print_dry_run(console: Console, facts: Mapping[str, Any]) -> None:
    """The configuration, the trials and the estimate."""
    from nablab.durations import duration

    console.print(Text(f"{facts['experiment']} ({facts['preset']}), run {facts['run']}", style="bold"))
    settings = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for key, value in facts["configuration"].items():
        settings.add_row(Text(key, style="cyan"), Text(in_text(value)))
    settings.add_row(Text("device", style="cyan"), facts["device"])
    settings.add_row(Text("replicas", style="cyan"), facts["replicas"])
    console.print(settings)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("condition", "seeds", "steps", "engine"):
        table.add_column(title, overflow="fold")
    table.add_column("estimate", justify="right")
    for row in facts["conditions"]:
        name = text_of([Condition(**condition) for condition in row["conditions"]])
        most = "at most " if row["may_end_early"] else ""
        seeds = str(facts["seeds"])
        steps = f"{most}{row['steps']:,}" if row["steps"] else ""
        engine = "run in full" if row["run_in_full"] else row["engine"]
        table.add_row(Text(name), seeds, steps, engine, f"{most}{duration(row['seconds'])}")
    console.print(table)
    memory = facts["peak_memory_bytes"] / 1e9
    about = "at most about" if facts["may_end_early"] else "about"
    more = " Training may end before its last step, and then sooner." if facts["may_end_early"] else ""
    if any(row["run_in_full"] for row in facts["conditions"]):
        more += (
            " What is marked 'run in full' calls none of lab.train, lab.steps and lab.budget: if it has a "
            "loop of its own, nothing of that could be left out, so it was run to its end and thrown away."
        )
    console.print(
        f"\n{facts['trials']} trials, {about} {duration(facts['seconds'])} of training and {memory:.1f} GB "
        "at the peak, measured on a few steps of every condition in one process. Starting up and writing "
        f"the report come on top.{more} Nothing was stored."
    )
    if facts["warnings"]:
        console.print()
        _print_warnings(console, facts["warnings"])


def print_comparison(console: Console, first: RunView, second: RunView) -> None:
    """Two runs side by side: what differs, then verdicts, then numbers."""
    from nablab.report.compare import compare_rows

    for title, header, rows in compare_rows(first, second):
        console.print(Text(f"\n{title}", style="bold"))
        if not rows:
            console.print("nothing differs")
            continue
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        console.print(table)


def print_instruments(console: Console, facts: Sequence[Mapping[str, str]], *, as_json: bool) -> None:
    """The list of instruments."""
    if as_json:
        print_json(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for one in facts:
        table.add_row(Text(one["name"], style="bold"), Text(one["purpose"]))
    console.print(table)
    console.print("\n'nablab measure INSTRUMENT' lists its options; such as:", style="dim")
    console.print(MEASURE_EXAMPLE, style="dim", soft_wrap=True)


def print_instrument(console: Console, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """What one instrument does and takes."""
    if as_json:
        print_json(facts)
        return
    console.print(Text(f"{facts['name']}: {facts['purpose']}", style="bold"))
    console.print(f"\nTakes {', '.join(facts['takes'])}. Options (key=value):\n")
    table = Table("option", "default", "takes", "meaning", box=None, pad_edge=False)
    for option in facts["options"]:
        table.add_row(*(Text(option[key]) for key in ("name", "default", "type", "help")))
    console.print(table)
    console.print(f"\n{MEASURE_EXAMPLE}", style="dim", soft_wrap=True)


def print_measurement(console: Console, name: str, result: Any, *, as_json: bool) -> None:
    """The numbers of a measurement, a line each; long arrays give their shape, range and mean."""
    if as_json:
        print_json(result.to_dict())
        return
    console.print(Text(name, style="bold"))
    facts = {field: getattr(result, field) for field in result.to_dict()}
    notes = facts.pop("notes", ())
    table = Table(box=None, show_header=False, pad_edge=False)
    for field, value in facts.items():
        if text := _in_short(value):  # what was not asked for is empty
            table.add_row(words(field), Text(text))
    console.print(table)
    for note in notes:
        console.print(f"Note: {note}", markup=False)


def _in_short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_in_short(part)}" for key, part in value.items())
    if hasattr(value, "shape") and hasattr(value, "size"):
        return _array_in_short(value)
    if isinstance(value, (tuple, list)):
        return ", ".join(_in_short(part) for part in value)
    return str(value)


def _array_in_short(array: Any) -> str:
    if array.size <= SHORT:
        return ", ".join(_in_short(part) for part in array.reshape(-1).tolist())
    shape = " x ".join(map(str, array.shape))
    if array.dtype.kind not in "fiu":
        return f"{shape} values"
    return f"{shape} numbers, {array.min():.4g} to {array.max():.4g}, mean {array.mean():.4g}"
