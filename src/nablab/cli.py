"""The command line. torch, numpy and matplotlib are imported inside commands, so help is quick."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Parameter
from rich.table import Table
from rich.text import Text

import nablab
from nablab.consoles import SafeConsole
from nablab.errors import TRACEBACK, Interrupted, NablabError, UsageError, in_short, raised
from nablab.lasting import lasting_output, what_is_lost
from nablab.places import is_there
from nablab.streams import make_readable, only_json, print_json

if TYPE_CHECKING:
    from nablab.lab.runner import Plan
    from nablab.measuring import Kept
    from nablab.runs import Run

Word = TypeVar("Word", str, Path)
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="nablab",
    help="A laboratory for deep learning: ask a question, train over seeds, get a verdict.",
    version=nablab.__version__,
    help_epilogue="Start with: nablab run deep-vs-shallow --preset quick",
)
data_app = App(name="data", help="List and fetch data sets.")
app.command(data_app)
output = SafeConsole(highlight=False)
errors = SafeConsole(stderr=True, highlight=False)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for programs.")]
StoreOption = Annotated[Path | None, Parameter(help="The folder of runs [default: $NABLAB_STORE or ./runs].")]


@app.command(name="list")
def list_experiments(*, as_json: Json = False) -> int:
    """List the experiments."""
    from nablab import catalogue

    entries = catalogue.scan().values()
    if as_json:
        print_json([{"name": e.name, "question": e.question, "error": e.error} for e in entries])
        return DONE
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    for entry in entries:
        table.add_row(entry.name, Text(entry.question, style="red" if entry.error else ""))
    output.print(table)
    output.print("\n'nablab show NAME' explains one; 'nablab run NAME' runs it.", style="dim")
    return DONE


@app.command
def show(name: str, /, *, as_json: Json = False) -> int:
    """Explain an experiment: its question, theory, claims, presets and settings.

    Args:
        name: The experiment; 'nablab list' names them.
    """
    from nablab import catalogue
    from nablab.showing import experiment_facts, print_experiment

    experiment = catalogue.find(name)
    if as_json:
        print_json(experiment_facts(experiment))
    else:
        print_experiment(output, experiment)
    return DONE


@app.command
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
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Run experiments, or what is still missing of them, and write their reports.

    Args:
        tokens: Experiments, and settings such as steps=2_000; 'nablab show NAME' lists the settings.
        preset: A named collection of settings: quick, standard, paper, or another that 'show' lists.
        seeds: Number of seeds per condition [default: the preset's].
        device: cpu, cuda or mps.
        replicas: How the seeds of a condition are trained: auto, batched or sequential.
        jobs: Number of worker processes, or auto: one more for each further core once a run with several
            conditions lasts longer than 5 seconds. The numbers do not depend on it.
        model: Your own network, package.module:factory or path/to/file.py:factory.
        every: Run every experiment of the catalogue.
        dry_run: Print the configuration, the trials, and a measured estimate of time and memory.
        fresh: Forget the run's earlier trials first.
        quiet: Print the verdicts only.
        keep_weights: What the weights of trained networks may take in each trial, such as 20MB; 0 for none.
    """
    from nablab import runs

    plans = _plans(_named(tokens, every), preset, seeds, device, replicas, model, keep_weights)
    if dry_run:
        return _dry_run(plans, as_json)
    code = DONE
    for plan in plans:
        observer = _observer(quiet or as_json)
        try:
            done = runs.run_plan(plan, store=store, jobs=jobs, observer=observer, fresh=fresh)
        finally:
            observer.close()
        state = done.state
        _print_outcome(done, as_json=as_json)
        if state == "interrupted":
            errors.print("Stopped; everything finished is saved. Give the same command again to go on:")
            errors.print(f"  {done.command}", markup=False, soft_wrap=True)
            return INTERRUPTED
        code = code if state == "done" else FAILED
    return code


@app.command(name="runs")
def list_runs(*, as_json: Json = False, store: StoreOption = None) -> int:
    """List the runs in the store, the latest first."""
    from nablab.runs import open_store
    from nablab.showing import print_runs, run_facts

    facts = [run_facts(folder) for folder in open_store(store).runs()]
    if as_json:
        print_json(facts)
    else:
        print_runs(output, facts)
    return DONE


@app.command
def report(
    *references: str,
    output_file: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    store: StoreOption = None,
) -> int:
    """Write the report of runs anew.

    Args:
        references: Run ids (or their beginnings), experiments (their latest run), or folders of runs.
        output_file: Where to write it, for one run [default: into the run's folder].
    """
    from nablab.runs import open_run
    from nablab.terminal import print_damage

    if not references:
        raise UsageError("Which run? Give a run id or an experiment; 'nablab runs' lists them.")
    if output_file and len(references) > 1:
        raise UsageError("--output takes one run; leave it out to write each report into its run's folder.")
    for reference in references:
        run = open_run(reference, store)
        written = run.report(output_file, on_trouble=_say_failure)
        print_damage(errors, run.damage)
        output.print(str(written), markup=False, soft_wrap=True)
    return DONE


@app.command
def compare(
    first: str,
    second: str,
    /,
    *,
    output_file: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    store: StoreOption = None,
) -> int:
    """Compare two runs: what differs in their settings, verdicts and numbers.

    Args:
        first: A run id (or its beginning), an experiment (its latest run), or a folder of a run.
        second: Another.
        output_file: Write an HTML page here, too.
    """
    from nablab.atomic import check_output, write_output
    from nablab.runs import open_run
    from nablab.showing import print_comparison
    from nablab.terminal import print_damage

    if output_file:
        check_output(output_file)
    left, right = open_run(first, store).view(), open_run(second, store).view()
    print_damage(errors, dict.fromkeys([*left.damage, *right.damage]))
    print_comparison(output, left, right)
    if output_file:
        from nablab.report.compare import compare as compare_page

        write_output(output_file, compare_page(left, right).encode())
        output.print(f"Page: {output_file}", markup=False, soft_wrap=True)
    return DONE


@app.command
def measure(
    *tokens: Annotated[str, Parameter(name="INSTRUMENT [key=value ...]")],
    model: str | None = None,
    data: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    loss: str | None = None,
    weights: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative="")] = (),
    run_reference: Annotated[str | None, Parameter(name="--run")] = None,
    condition: str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    figure: Path | None = None,
    only_cost: Annotated[bool, Parameter(name="--cost", negative="")] = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Measure a network with an instrument; without one, list the instruments.

    Args:
        tokens: The instrument and its options; 'nablab measure INSTRUMENT' alone lists the options.
        model: Your network, package.module:factory or path/to/file.py:factory.
        data: A target such as sinc, images such as mnist:test@1000, or file.npz with x and y; several are
            batches.
        loss: mse, cross_entropy, ... or package.module:function of (output, target) [default: by the data].
        weights: A safetensors file; two or more for instruments that compare networks. With --run the names
            of weights that it kept: final, best, or final-2 of a trial's second network [default: final].
        run_reference: Measure a network that this run kept, on what it was trained on: a run id (or its
            beginning), an experiment (its latest run), or a folder of a run.
        condition: Which condition of the run, "factor=level,..."; as many levels as single it out.
        seed: Which seed of the run [default: 0].
        device: cpu, cuda or mps.
        figure: Write the figure here: .png, .svg or .pdf.
        only_cost: Say what the call would cost, and do not measure.
    """
    from nablab import measuring, showing

    names = [token for token in tokens if "=" not in token]
    if len(names) > 1:
        raise UsageError(f"One instrument at a time: {', '.join(names)}.")
    settings = [token for token in tokens if "=" in token]
    data, late = _without_settings(data)
    weights, later = _without_settings(weights)
    settings += [*late, *later]
    if not names:
        showing.print_instruments(output, measuring.instrument_facts(), as_json=as_json)
        return DONE
    said = (model, run_reference, condition, seed)
    if not data and not weights and said == (None,) * len(said):
        showing.print_instrument(output, measuring.option_facts(names[0]), as_json=as_json)
        return DONE
    kept = _kept(run_reference, condition, seed, store)
    request = measuring.Request(names[0], settings, model, data, loss, weights, device, kept)
    if figure:
        measuring.check_figure(figure)
    if only_cost:
        showing.print_measurement(output, names[0], measuring.estimate(request), as_json=as_json)
        return DONE
    result = measuring.measure(request)
    showing.print_measurement(output, names[0], result, as_json=as_json)
    if figure:
        measuring.write_figure(result, figure)
        errors.print(f"Figure: {figure}", markup=False, soft_wrap=True)
    return DONE


def _kept(reference: str | None, condition: str | None, seed: int | None, store: Path | None) -> Kept | None:
    """The trial whose network is to be measured, if one is named."""
    from nablab.measuring import Kept
    from nablab.runs import open_run

    if reference is None:
        if condition is not None or seed is not None:
            raise UsageError("--condition and --seed say which trial of a run: give --run RUN, too.")
        return None
    return Kept(open_run(reference, store), condition or "", seed or 0)


def _without_settings(words: tuple[Word, ...]) -> tuple[tuple[Word, ...], list[str]]:
    """Words of an option that takes several, without the settings that were written after them."""
    settings = [word for word in words if _is_setting(str(word)) and not is_there(word)]
    return tuple(word for word in words if word not in settings), [str(word) for word in settings]


def _is_setting(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and key.isidentifier()


@data_app.command(name="list")
def list_data(*, as_json: Json = False) -> int:
    """List the data sets: what is here, how large, from where, under which license."""
    from nablab.showing_data import print_sets, set_facts

    if as_json:
        print_json(set_facts())
    else:
        print_sets(output, set_facts())
    return DONE


@data_app.command(name="get")
def get_data(name: str, /) -> int:
    """Fetch a data set, verify it, and say where it lies.

    Args:
        name: The data set; 'nablab data list' names them.
    """
    from nablab.showing_data import get

    get(output, name)
    return DONE


def _named(tokens: Sequence[str], every: bool) -> Sequence[str]:
    """The tokens, with the name of every experiment if that is asked for."""
    if not every:
        return tokens
    from nablab import catalogue

    if tokens:
        raise UsageError(f"--all runs every experiment with its preset; leave out {' '.join(tokens)}.")
    entries = catalogue.scan().values()
    for entry in entries:
        if entry.error:
            errors.print(f"Left out: {entry.name} cannot be imported: {entry.error}", markup=False)
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
    from nablab import catalogue, configuration
    from nablab.runs import make_plan

    names = [token for token in tokens if "=" not in token]
    settings = [token for token in tokens if "=" in token]
    if not names:
        raise UsageError("Which experiment? 'nablab list' names them, such as: nablab run deep-vs-shallow")
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


def _dry_run(plans: Sequence[Plan], as_json: bool) -> int:
    from nablab import terminal
    from nablab.runs import rehearse
    from nablab.showing import dry_run_facts, print_dry_run

    facts = []
    for plan in plans:
        with terminal.measuring(errors, plan) as say:
            facts.append(dry_run_facts(plan, rehearse(plan, on_conditions=say)))
    if as_json:
        print_json(facts)
    else:
        for one in facts:
            print_dry_run(output, one)
    return DONE


def _observer(quiet: bool) -> Any:
    from nablab import terminal

    if quiet:
        return terminal.Quiet(errors)
    return terminal.LiveTable(output) if output.is_terminal else terminal.PlainLines(output)


def _print_outcome(done: Run, *, as_json: bool) -> None:
    from nablab.terminal import print_verdicts

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
        _say_failure(message)
    print_verdicts(output, done.verdicts)
    if report_path.exists():
        output.print(f"\nReport: {report_path}", markup=False, soft_wrap=True)


def _say_failure(message: str) -> None:
    errors.print(f"Failed: {message}", markup=False, style="red", soft_wrap=True)


@lasting_output()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with 0 (done), 1 (a run failed), 2 (usage) or 130 (interrupted)."""
    make_readable()
    try:
        code = _command(arguments)
    except CycloptsError as error:
        code = _fail(f"{error}", error, USAGE)
        errors.print("'nablab --help' and 'nablab COMMAND --help' explain the commands.", style="dim")
    except UsageError as error:
        code = _fail(f"{error}", error, USAGE)
    except (KeyboardInterrupt, Interrupted):
        errors.print("Stopped.")
        code = INTERRUPTED
    except NablabError as error:
        code = _fail(f"{error}", error, FAILED)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:  # standard output; the store names files
            errors.print(what_is_lost(error), markup=False)
            code = FAILED
        else:
            code = _fail(_of_the_system(error), error, FAILED)
    except SystemExit as error:
        code = _fail(f"{raised('A file of yours', error)}", error, FAILED)
    except Exception as error:
        code = _fail(f"{UNFORESEEN} {raised('The command', error)}", error, FAILED)
    sys.exit(code)


UNFORESEEN = "This should not happen, please report it:"


def _command(arguments: Sequence[str] | None) -> int:
    """Parse the words and call their command; with --json nothing else reaches standard output."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False, error_console=errors)
    with only_json(bool(bound.arguments.get("as_json"))):
        return command(*bound.args, **bound.kwargs) or DONE


def _of_the_system(error: OSError) -> str:
    """What the operating system refused, and where."""
    named = str(error.filename) if error.filename is not None else ""
    place = f" ({named if len(named) <= 200 else named[:200] + '…'})" if named else ""
    return f"{error.strerror or in_short(error)}{place}."


def _fail(message: str, error: BaseException, code: int) -> int:
    """Print why a command ended, and where if that is asked for."""
    errors.print(f"Error: {message}", markup=False, soft_wrap=True)
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    return code
