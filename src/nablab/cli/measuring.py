"""Measure by names: a model, data and weights as the command line writes them.

=======  ===========================================================================
what     how it is named
=======  ===========================================================================
model    ``package.module:factory`` or ``path/to/file.py:factory``
data     a target such as ``sinc`` (its training points); images such as ``mnist``,
         ``mnist:test@1000`` (the first 1,000 of the test split, normalized) or a
         folder of them; or ``file.npz`` with the arrays ``x`` and ``y`` (or
         ``inputs`` and ``targets``); several are several batches
loss     ``mse``, ``cross_entropy`` and others by name, or ``package.module:function``
         of (output, target); by default from the targets: whole numbers are classes
weights  one safetensors file for a model, two for an instrument of two models, any
         number for one of points in weight space; with a run, the names of weights
         that it kept
run      a run, with a condition and a seed: its kept network, on the data it was
         trained on
=======  ===========================================================================
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nablab import models
from nablab.cli.measured_data import Pair, as_loss_needs, check_fit, read_data
from nablab.errors import NablabError, UsageError, raised, unknown
from nablab.files.atomic import write_output
from nablab.files.weights import load_weights, read_weights
from nablab.instruments import INSTRUMENTS
from nablab.instruments.base.losses import LOSSES
from nablab.instruments.base.measurement import Instrument, Measurement, Size
from nablab.instruments.costs import Cost, cost, find_instrument
from nablab.lab.memory import check_memory
from nablab.plots.frame import matplotlib_as_shipped
from nablab.runs import check_device
from nablab.settings.reading import parse
from nablab.settings.words import in_text, in_words
from nablab.text.docstrings import entries, summary

if TYPE_CHECKING:
    from nablab.instruments.base.losses import Loss
    from nablab.runs import Run

FIGURES = (".png", ".svg", ".pdf")
FLOAT_BYTES = 4
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Kept:
    """A trial of a run, whose network is to be measured.

    Attributes:
        run: The run.
        condition: Some of its levels, such as ``model=deep``.
        seed: The trial's seed.
    """

    run: Run
    condition: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        instrument: Its name.
        settings: ``key=value`` words, the instrument's keyword options.
        model: A factory.
        data: Targets or npz files; more than one are batches.
        loss: A loss's name or a function's, or None.
        weights: Safetensors files; of a kept trial, the names of its weights.
        device: ``cpu``, ``cuda`` or ``mps``.
        kept: A trial, in place of a model; without ``data`` what it was trained on is
            taken.
    """

    instrument: str
    settings: Sequence[str] = ()
    model: str | None = None
    data: Sequence[str] = ()
    loss: str | None = None
    weights: Sequence[Path] = ()
    device: str = "cpu"
    kept: Kept | None = None


def measure(request: Request) -> Measurement:
    """Run an instrument as the command line asks.

    Raises:
        UsageError: An unknown name, a file that cannot be read or does not fit the
            model, or what the instrument refuses.
        CodeError: The network, the loss or PyTorch raised an error that nobody foresaw.
    """
    chosen = find_instrument(request.instrument)
    options = _options(chosen, request.settings)
    prepared = _prepare(chosen, request)
    with _in_one_sentence(f"Measuring {chosen.__name__}"):
        _check_memory(chosen, prepared.found, options)
        given = [prepared.found[name] for name in _positional(chosen)]
        result = typing.cast("Measurement", chosen(*given, **options))
    return (
        dataclasses.replace(result, notes=(*result.notes, *prepared.notes))
        if prepared.notes
        else result
    )


def _check_memory(
    chosen: Instrument[..., Any], found: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Refuse a measurement that would hold more numbers than fit, before they are made."""
    if "loss" not in found:
        return
    parameters = inspect.signature(chosen.measure).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    model = found["model" if "model" in found else "model_a"]
    batches = found["data"] if isinstance(found["data"], list) else [found["data"]]
    size = Size(
        sum(p.numel() for p in model.parameters()), sum(len(x) for x, _ in batches), 1
    )
    expected = chosen.expected(size, **{**defaults, **options})
    # the instrument itself refuses options that make no sense
    if math.isfinite(expected.numbers):
        check_memory(
            FLOAT_BYTES * int(expected.numbers), f"{chosen.__name__} of this network"
        )


def estimate(request: Request) -> Cost:
    """Estimate what `measure` would cost; see `nablab.instruments.cost`.

    Raises:
        UsageError: As `measure`; or the instrument takes something else than a model, a
            loss and data.
        CodeError: As `measure`.
    """
    chosen = find_instrument(request.instrument)
    names = _positional(chosen)
    if "data" not in names:
        raise UsageError(
            f"{chosen.__name__} runs no model: it costs seconds. Leave --cost out."
        )
    options = _options(chosen, request.settings)
    if "model_b" in names:
        request = dataclasses.replace(
            request, weights=(*request.weights, *request.weights)[:2]
        )
    found = _prepare(chosen, request).found
    model = found["model" if "model" in names else "model_a"]
    with _in_one_sentence(f"Measuring {chosen.__name__}"):
        return cost(chosen.__name__, model, found["loss"], found["data"], **options)


@contextmanager
def _in_one_sentence(doing: str) -> Iterator[None]:
    """Turn what the user's code or PyTorch raises into one sentence.

    Nablab's own errors are sentences already.
    """
    try:
        yield
    except NablabError:
        raise
    except (Exception, SystemExit) as error:
        raise raised(doing, error) from error


def instrument_facts() -> list[dict[str, str]]:
    """List the name and purpose of every instrument."""
    found = [find_instrument(name) for name in INSTRUMENTS]
    return [{"name": one.__name__, "purpose": _summary(one)} for one in found]


def option_facts(name: str) -> dict[str, Any]:
    """Describe what an instrument does and takes, as plain JSON types."""
    chosen = find_instrument(name)
    defaults = inspect.signature(chosen.measure).parameters
    options = [
        {
            "name": key,
            "type": _type_in_words(key, hint),
            "default": _default_in_text(defaults[key].default),
            "help": _argument_docs(chosen).get(key, ""),
        }
        for key, hint in option_types(chosen).items()
    ]
    return {
        "name": chosen.__name__,
        "purpose": _summary(chosen),
        "takes": _positional(chosen),
        "options": options,
    }


def check_figure(path: Path) -> None:
    """Refuse a picture format that is not written, before anything is measured.

    Raises:
        UsageError: The format is not written.
    """
    if path.suffix not in FIGURES:
        raise unknown("picture format", path.suffix or str(path), FIGURES)


def write_figure(measurement: Measurement, path: Path) -> None:
    """Write a measurement's figure as PNG, SVG or PDF.

    Raises:
        UsageError: The measurement has no figure.
    """
    content = io.BytesIO()
    with matplotlib_as_shipped(), _in_one_sentence("Drawing the figure"):
        measurement.plot().savefig(
            content, format=path.suffix[1:], dpi=200, bbox_inches="tight"
        )
    write_output(path, content.getvalue())


def _summary(chosen: Instrument[..., Any]) -> str:
    return _without_markup(summary(chosen.__doc__))


SIGNS = {r"\le": "≤", r"\pm": "±", r"\sim": "~", r"\max": "max", r"\|": "||"}


def _without_markup(text: str) -> str:
    r"""Remove the marks of a docstring's markup.

    >>> _without_markup(r"``True`` for :math:`\sigma |x_i|`, :math:`\|x\| \le 1`; `A`.")
    'True for sigma |x_i|, ||x|| ≤ 1; A.'
    """
    for command, sign in SIGNS.items():
        text = text.replace(command, sign)
    text = re.sub(
        r":\w+:`([^`]*)`", lambda role: re.sub(r"\\([A-Za-z]+)", r"\1", role[1]), text
    )
    return text.replace("`", "")


def _argument_docs(chosen: Instrument[..., Any]) -> dict[str, str]:
    found = entries(chosen.__doc__, "Args")
    return {name: _without_markup(text) for name, text in found.items()}


def _type_in_words(key: str, hint: Any) -> str:
    if key == "dtype":
        return " or ".join(DTYPES)
    if key == "parameters":
        return "names or patterns, separated by commas"
    try:
        parse("", hint, key)
    except UsageError:
        pass
    except TypeError:
        return "from Python only"
    return in_words(hint)


def _default_in_text(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return in_text(value)


def _positional(chosen: Instrument[..., Any]) -> list[str]:
    parameters = inspect.signature(chosen.measure).parameters.values()
    return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


@dataclass(frozen=True)
class _Prepared:
    """What a request names, by the names of an instrument's arguments.

    It also has what must be said of it.
    """

    found: Mapping[str, Any]
    notes: tuple[str, ...]


def _prepare(chosen: Instrument[..., Any], request: Request) -> _Prepared:
    """Read what the request names.

    The network, the data and the loss are held against each other.
    """
    check_device(request.device)
    names = _positional(chosen)
    if "model_b" in names and len(request.weights) != 2:
        how = (
            "final final-2" if request.kept else "FIRST.safetensors SECOND.safetensors"
        )
        raise UsageError(
            f"{chosen.__name__} compares two models: give --weights {how} "
            f"({len(request.weights)} given)."
        )
    if request.kept and request.model is not None:
        raise UsageError(
            "Give --model or --run, one of the two: a run builds its networks itself."
        )
    found: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if "data" in names:
        batches, loss = _data(request)
        found["loss"] = (
            loss
            if request.loss is None and loss is not None
            else _loss(request, batches[0][1])
        )
        batches = as_loss_needs(batches, found["loss"])
        found["data"] = batches[0] if len(batches) == 1 else batches
    for place, name in enumerate(
        name for name in names if name in ("model", "model_a", "model_b")
    ):
        found[name], said = _model(request, place)
        notes += said
        if "loss" in names:
            check_fit(
                found[name],
                found["loss"],
                batches,
                request.data or ["The trial's own data"],
            )
    if "points" in names:
        found["points"] = _points(request)
    for name in names:
        if name not in found:
            raise UsageError(
                f"{chosen.__name__} needs '{name}', which only Python can give."
            )
    return _Prepared(found, notes)


def _data(request: Request) -> tuple[list[Pair], Any]:
    """Read the batches, and the loss that comes with them if they are a trial's own."""
    if request.kept is None or request.data:
        return read_data(request.data), None
    loss, pair = request.kept.run.objective(request.kept.condition, request.kept.seed)
    return [pair], loss


def _model(request: Request, place: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Load the network with the weights of this place among the files.

    What must be said of them comes with it.
    """
    if request.kept is not None:
        kept, name = request.kept, str([*request.weights, Path("final")][place])
        trained = kept.run.model(kept.condition, kept.seed, at=name)
        return trained.to(request.device).eval(), ()
    if request.model is None:
        raise UsageError(
            "Which network? Give --model package.module:factory or "
            "path/to/file.py:factory, or --run RUN for one that a run kept."
        )
    # without weights the network is a fresh one, the same each time
    torch.manual_seed(0)
    module = models.load_factory(request.model)()
    given = request.weights[place : place + 1]
    notes = tuple(note for path in given for note in load_weights(module, path))
    return module.to(request.device).eval(), notes


def _points(request: Request) -> list[dict[str, Tensor]]:
    if len(request.weights) < 2:
        raise UsageError(
            "Give the points in weight space: --weights A.safetensors B.safetensors ..."
        )
    if kept := request.kept:
        return [
            kept.run.weights(kept.condition, kept.seed, str(name))
            for name in request.weights
        ]
    return [read_weights(path) for path in request.weights]


def _loss(request: Request, target: Tensor) -> Loss:
    if request.loss is None:
        return "mse" if target.is_floating_point() else "cross_entropy"
    if ":" in request.loss:
        function: Loss = models.load_function(request.loss)
        return function
    if request.loss not in LOSSES:
        raise unknown("loss", request.loss, LOSSES)
    return request.loss


def _options(chosen: Instrument[..., Any], settings: Sequence[str]) -> dict[str, Any]:
    hints = option_types(chosen)
    options: dict[str, Any] = {}
    for word in settings:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(
                f"'{word}' is not an option. Write key=value; keys: {', '.join(hints)}."
            )
        if key not in hints:
            raise unknown(f"option of {chosen.__name__}", key, hints)
        options[key] = _value(text, hints[key], key)
    return options


def option_types(chosen: Instrument[..., Any]) -> Mapping[str, Any]:
    """Return the types of an instrument's keyword options, by name."""
    hints = typing.get_type_hints(chosen.measure)
    parameters = inspect.signature(chosen.measure).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def _value(text: str, hint: Any, key: str) -> Any:
    if key == "dtype":
        if text not in DTYPES:
            raise unknown("value of 'dtype'", text, DTYPES)
        return DTYPES[text]
    if key == "parameters":
        return tuple(text.split(","))
    try:
        return parse(text, hint, key)
    except TypeError:
        raise UsageError(f"'{key}' takes objects that only Python can give.") from None
