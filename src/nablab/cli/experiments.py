"""Commands on experiments: ``list``, ``show`` and ``run``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from nablab.cli.app import (
    DONE,
    FAILED,
    INTERRUPTED,
    Json,
    StoreOption,
    app,
    described,
    errors,
    output,
    say_failure,
)
from nablab.cli.streams import print_json
from nablab.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from nablab.lab.runner import Plan
    from nablab.runs import Run

STOPPED_AT_ONCE = (
    "Stopped at once. What was done is kept, and conditions in work are kept as they "
    "were last saved. Give the same command again to go on."
)


@app.command(name="list")
@described
def list_experiments(*, as_json: Json = False) -> int:
    """List the experiments by topic."""
    from nablab import catalogue

    topics = catalogue.by_topic(catalogue.scan().values())
    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "topic": topic,
                    "question": entry.question,
                    "error": entry.error,
                }
                for topic, entries in topics.items()
                for entry in entries
            ]
        )
        return DONE
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    for place, (topic, entries) in enumerate(topics.items()):
        table.add_row(Text(f"{'' if place == 0 else chr(10)}{topic}", style="dim"))
        for entry in entries:
            style = "red" if entry.error else ""
            table.add_row(f"  {entry.name}", Text(entry.question, style=style))
    output.print(table)
    output.print(
        "\n'nablab show NAME' explains one; 'nablab run NAME' runs it.", style="dim"
    )
    return DONE


@app.command
@described
def show(name: str, /, *, as_json: Json = False) -> int:
    """Explain an experiment: its question, theory, claims, presets and settings.

    Args:
        name: The experiment; 'nablab list' names them.
    """
    from nablab import catalogue
    from nablab.cli.experiment_page import experiment_facts, print_experiment

    experiment = catalogue.find(name)
    if as_json:
        print_json(experiment_facts(experiment))
    else:
        print_experiment(output, experiment)
    return DONE


@app.command
@described
def run(
    *tokens: Annotated[str, Parameter(name="NAME... [key=value ...]")],
    preset: str = "standard",
    seeds: int | None = None,
    device: str = "cpu",
    replicas: str = "auto",
    jobs: int | Literal["auto"] = "auto",
    model: str | None = None,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
    keep_weights: str = "4MB",
    weights_from: Annotated[tuple[str, ...] | None, Parameter(negative="")] = None,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Run experiments, or what is still missing of them, and write their reports.

    Args:
        tokens: Experiments, and settings such as steps=2_000; 'nablab show NAME' lists
            the settings.
        preset: A named collection of settings: quick, standard, paper, or another that
            'show' lists.
        seeds: Number of seeds per condition [default: the preset's].
        device: cpu, cuda or mps.
        replicas: How the seeds of a condition are trained: auto, batched or sequential.
        jobs: Number of worker processes, or auto: one more for each further core once a
            run with several conditions lasts longer than 5 seconds. The numbers do not
            depend on it.
        model: Your own network, package.module:factory or path/to/file.py:factory.
        every: Run every experiment of the catalogue.
        dry_run: Print the configuration, the trials, and a measured estimate of time
            and memory.
        fresh: Forget the run's earlier trials first.
        quiet: Print the verdicts only.
        keep_weights: What the weights of trained networks may take in each trial, such
            as 20MB; 0 for none.
        weights_from: A run to take weights from, for an experiment that needs those of
            another one [default: the finished run that was used last].
    """
    from nablab import runs

    plans = _plans(
        _named(tokens, every), preset, seeds, device, replicas, model, keep_weights
    )
    chosen = weights_from or ()
    if dry_run:
        found = runs.open_store(store)
        settled = [runs.with_sources(plan, found, chosen) for plan in plans]
        return _dry_run(settled, as_json)
    _check_needs(plans, store, chosen)
    code = DONE
    for plan in plans:
        observer = _observer(quiet or as_json, jobs)
        try:
            done = runs.run_plan(
                plan,
                store=store,
                jobs=jobs,
                observer=observer,
                fresh=fresh,
                weights_from=chosen,
            )
        except KeyboardInterrupt:
            observer.close()
            errors.print(STOPPED_AT_ONCE)
            return INTERRUPTED
        finally:
            observer.close()
        state = done.state
        _print_outcome(done, as_json=as_json)
        if state == "interrupted":
            errors.print(
                "Stopped; everything finished is saved. Give the same command "
                "again to go on:"
            )
            errors.print(f"  {done.command}", markup=False, soft_wrap=True)
            return INTERRUPTED
        code = code if state == "done" else FAILED
    return code


def _named(tokens: Sequence[str], every: bool) -> Sequence[str]:
    """Return the tokens, or the names of all experiments if that is asked for."""
    if not every:
        return tokens
    from nablab import catalogue

    if tokens:
        raise UsageError(
            "--all runs every experiment with its preset; leave out "
            f"{' '.join(tokens)}."
        )
    entries = catalogue.scan().values()
    for entry in entries:
        if entry.error:
            errors.print(
                f"Left out: {entry.name} cannot be imported: {entry.error}",
                markup=False,
            )
    return [entry.name for entry in entries if not entry.error]


def _plans(
    tokens: Sequence[str],
    preset: str,
    seeds: int | None,
    device: str,
    replicas: str,
    model: str | None,
    keep_weights: str,
) -> list[Plan]:
    from nablab import catalogue
    from nablab.contract import configuration
    from nablab.runs import make_plan

    names = [token for token in tokens if "=" not in token]
    settings = [token for token in tokens if "=" in token]
    if not names:
        raise UsageError(
            "Which experiment? 'nablab list' names them, such as: nablab "
            "run deep-vs-shallow"
        )
    if model is not None:
        settings.append(f"model={model}")
    plans = []
    for name in names:
        overrides = configuration.parse_overrides(catalogue.find(name), settings)
        plans.append(
            make_plan(
                name,
                preset=preset,
                seeds=seeds,
                device=device,
                replicas=replicas,
                keep_weights=keep_weights,
                overrides=overrides,
            )
        )
    return plans


def _check_needs(
    plans: Sequence[Plan], store: Path | None, weights_from: Sequence[str]
) -> None:
    """Refuse, before any work, plans whose weights no run here or before them leaves."""
    from nablab import runs

    made: set[str] = set()
    for plan in plans:
        if not made.intersection(
            one.experiment for one in plan.experiment.active_needs()
        ):
            runs.with_sources(plan, runs.open_store(store), weights_from)
        made.add(plan.experiment.name)


def _dry_run(plans: Sequence[Plan], as_json: bool) -> int:
    from nablab.cli.dry_run_table import dry_run_facts, measuring, print_dry_run
    from nablab.runs import rehearse

    facts = []
    for plan in plans:
        with measuring(errors, plan) as say:
            facts.append(dry_run_facts(plan, rehearse(plan, on_conditions=say)))
    if as_json:
        print_json(facts)
    else:
        for one in facts:
            print_dry_run(output, one)
    return DONE


def _observer(quiet: bool, jobs: int | Literal["auto"]) -> Any:
    from nablab.display.live import LiveTable
    from nablab.display.plain import PlainLines, Quiet

    if quiet:
        return Quiet(errors)
    # with auto the run reports when other processes help
    processes = 1 if jobs == "auto" else jobs
    if output.is_terminal:
        return LiveTable(output, jobs=processes)
    return PlainLines(output, jobs=processes)


def _print_outcome(done: Run, *, as_json: bool) -> None:
    from nablab.cli.verdict_lines import print_verdicts

    report_path = done.folder.path / "report.html"
    if as_json:
        verdicts = [verdict.to_dict() for verdict in done.verdicts]
        print_json(
            {
                "experiment": done.experiment.name,
                "run": done.folder.path.name,
                "state": done.state,
                "folder": str(done.folder.path),
                "report": str(report_path) if report_path.exists() else None,
                "messages": list(done.messages),
                "verdicts": verdicts,
            }
        )
        return
    for message in done.messages:
        say_failure(message)
    if done.state != "done" and done.verdicts:
        wanted = len(done.experiment.conditions()) * done.seeds
        output.print(
            f"On {len(done.records):,} of {wanted:,} trials, so all of it may change:",
            highlight=False,
        )
    print_verdicts(output, done.verdicts)
    if report_path.exists():
        output.print(f"\nReport: {report_path}", markup=False, soft_wrap=True)
