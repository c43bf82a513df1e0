"""Commands on runs in the store: ``runs``, ``report`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nablab.cli.app import (
    DONE,
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


@app.command(name="runs")
@described
def list_runs(*, as_json: Json = False, store: StoreOption = None) -> int:
    """List the runs in the store, the latest first."""
    from nablab.cli.run_table import print_runs, run_facts
    from nablab.runs import open_store

    facts = [run_facts(folder) for folder in open_store(store).runs()]
    if as_json:
        print_json(facts)
    else:
        print_runs(output, facts)
    return DONE


@app.command
@described
def report(
    *references: str,
    output_file: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    store: StoreOption = None,
) -> int:
    """Write the reports of runs again.

    Args:
        references: Run ids (or their beginnings), experiments (their latest run), or
            folders of runs.
        output_file: Where to write it, for one run [default: into the run's folder].
    """
    from nablab.display.sentences import print_damage
    from nablab.runs import open_run

    if not references:
        raise UsageError(
            "Which run? Give a run id or an experiment; 'nablab runs' lists them."
        )
    if output_file and len(references) > 1:
        raise UsageError(
            "--output takes one run; leave it out to write each report "
            "into its run's folder."
        )
    for reference in references:
        run = open_run(reference, store)
        written = run.report(output_file, on_trouble=say_failure)
        print_damage(errors, run.damage)
        output.print(str(written), markup=False, soft_wrap=True)
    return DONE


@app.command
@described
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
        first: A run id (or its beginning), an experiment (its latest run), or a folder
            of a run.
        second: Another.
        output_file: Write an HTML page here, too.
    """
    from nablab.cli.run_table import print_comparison
    from nablab.display.sentences import print_damage
    from nablab.files.atomic import check_output, write_output
    from nablab.runs import open_run

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
