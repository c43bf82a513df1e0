"""The command ``measure``: an instrument on a network of the user's or of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from nablab.cli.app import DONE, Json, StoreOption, app, described, errors, output
from nablab.errors import UsageError
from nablab.files.places import is_there

if TYPE_CHECKING:
    from nablab.cli.measuring import Kept

Word = TypeVar("Word", str, Path)


@app.command
@described
def measure(
    *tokens: Annotated[str, Parameter(name="INSTRUMENT [key=value ...]")],
    model: str | None = None,
    data: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative="")
    ] = (),
    loss: str | None = None,
    weights: Annotated[
        tuple[Path, ...], Parameter(consume_multiple=True, negative="")
    ] = (),
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
        tokens: The instrument and its options; 'nablab measure INSTRUMENT' alone lists
            the options.
        model: Your network, package.module:factory or path/to/file.py:factory.
        data: A target such as sinc, images such as mnist:test@1000, or file.npz with x
            and y; several are batches.
        loss: mse, cross_entropy, ... or package.module:function of (output, target)
            [default: by the data].
        weights: A safetensors file, or tensors that torch.save wrote; two or more for
            instruments that compare networks.
            With --run the names of weights that it kept: final, best, or final-2 of a
            trial's second network [default: final].
        run_reference: Measure a network that this run kept, on what it was trained on:
            a run id (or its beginning), an experiment (its latest run), or a folder of
            a run.
        condition: Which condition of the run, "factor=level,..."; as many levels as
            single it out.
        seed: Which seed of the run [default: 0].
        device: cpu, cuda or mps.
        figure: Write the figure here: .png, .svg or .pdf.
        only_cost: Say what the call would cost, and do not measure.
    """
    from nablab.cli import instrument_tables, measuring

    names = [token for token in tokens if "=" not in token]
    if len(names) > 1:
        raise UsageError(f"One instrument at a time: {', '.join(names)}.")
    settings = [token for token in tokens if "=" in token]
    data, late = _without_settings(data)
    weights, later = _without_settings(weights)
    settings += [*late, *later]
    if not names:
        instrument_tables.print_instruments(
            output, measuring.instrument_facts(), as_json=as_json
        )
        return DONE
    said = (model, run_reference, condition, seed)
    if not data and not weights and said == (None,) * len(said):
        instrument_tables.print_instrument(
            output, measuring.option_facts(names[0]), as_json=as_json
        )
        return DONE
    kept = _kept(run_reference, condition, seed, store)
    request = measuring.Request(
        names[0], settings, model, data, loss, weights, device, kept
    )
    if figure:
        measuring.check_figure(figure)
    if only_cost:
        instrument_tables.print_measurement(
            output, names[0], measuring.estimate(request), as_json=as_json
        )
        return DONE
    result = measuring.measure(request)
    instrument_tables.print_measurement(output, names[0], result, as_json=as_json)
    if figure:
        measuring.write_figure(result, figure)
        errors.print(f"Figure: {figure}", markup=False, soft_wrap=True)
    return DONE


def _kept(
    reference: str | None, condition: str | None, seed: int | None, store: Path | None
) -> Kept | None:
    """Find the trial whose network is to be measured, if one is named."""
    from nablab.cli.measuring import Kept
    from nablab.runs import open_run

    if reference is None:
        if condition is not None or seed is not None:
            raise UsageError(
                "--condition and --seed say which trial of a run: give --run RUN, too."
            )
        return None
    return Kept(open_run(reference, store), condition or "", seed or 0)


def _without_settings(words: tuple[Word, ...]) -> tuple[tuple[Word, ...], list[str]]:
    """Split the words of an option from the settings that were written after them.

    The option takes several words.
    """
    settings = [word for word in words if _is_setting(str(word)) and not is_there(word)]
    return tuple(word for word in words if word not in settings), [
        str(word) for word in settings
    ]


def _is_setting(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and key.isidentifier()
