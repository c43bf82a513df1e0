"""Instruments from the command line: a model, data and weights by name in, a measurement out.

=================  ==================================================================================
what               how it is named
=================  ==================================================================================
model              ``package.module:factory`` or ``path/to/file.py:factory``
data               a target such as ``sinc`` (its training points); images such as ``mnist``,
                   ``mnist:test@1000`` (the first 1,000 of the test split, normalized) or a folder of them; or
                   ``file.npz`` with the arrays ``x`` and ``y`` (or ``inputs`` and ``targets``); several are
                   several batches
loss               ``mse``, ``cross_entropy`` and others by name, or ``package.module:function`` of
                   (output, target); by default from the targets: whole numbers are classes
weights            one safetensors file for a model, two for an instrument of two models, any number for
                   one of points in weight space
=================  ==================================================================================
"""

from __future__ import annotations

import difflib
import inspect
import io
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nablab import data as targets
from nablab import models, values
from nablab.atomic import write_output
from nablab.errors import UsageError, unknown
from nablab.instruments import INSTRUMENTS
from nablab.instruments.base.losses import LOSSES
from nablab.instruments.base.measurement import Instrument, Measurement
from nablab.instruments.costs import Cost, cost, find_instrument

if TYPE_CHECKING:
    from nablab.data import ImageSet
    from nablab.instruments.base.losses import Loss

NAMES = (("x", "y"), ("inputs", "targets"))  # what the arrays of a data file may be called
FIGURES = (".png", ".svg", ".pdf")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        instrument: Its name.
        settings: ``key=value`` words, the instrument's keyword options.
        model: A factory.
        data: Targets or npz files; more than one are batches.
        loss: A loss's name or a function's, or None.
        weights: Safetensors files.
        device: ``cpu``, ``cuda`` or ``mps``.
    """

    instrument: str
    settings: Sequence[str] = ()
    model: str | None = None
    data: Sequence[str] = ()
    loss: str | None = None
    weights: Sequence[Path] = ()
    device: str = "cpu"


def measure(request: Request) -> Measurement:
    """Run an instrument as the command line asks.

    Raises:
        UsageError: An unknown name, a file that cannot be read or does not fit the model, or what the
            instrument refuses.
    """
    chosen = find_instrument(request.instrument)
    options = _options(chosen, request.settings)
    return typing.cast("Measurement", chosen(*_arguments(chosen, request), **options))


def estimate(request: Request) -> Cost:
    """What `measure` would cost, by timing one gradient.

    Raises:
        UsageError: As `measure`; or the instrument takes something else than a model, a loss and data.
    """
    chosen = find_instrument(request.instrument)
    names = _positional(chosen)
    if "data" not in names:
        raise UsageError(f"{chosen.__name__} runs no model: it costs seconds. Leave --cost out.")
    options = _options(chosen, request.settings)
    batches = _data(request)
    loss = _loss(request, batches)
    return cost(chosen.__name__, _model(request, 0), loss, batches, **options)


def instrument_facts() -> list[dict[str, str]]:
    """Name and purpose of every instrument."""
    found = [find_instrument(name) for name in INSTRUMENTS]
    return [{"name": one.__name__, "purpose": _summary(one)} for one in found]


def option_facts(name: str) -> dict[str, Any]:
    """What an instrument does and takes, as plain JSON types."""
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
    """Raise `UsageError` for a picture format that is not written, before anything is measured."""
    if path.suffix not in FIGURES:
        raise unknown("picture format", path.suffix or str(path), FIGURES)


def write_figure(measurement: Measurement, path: Path) -> None:
    """Write a measurement's figure as PNG, SVG or PDF.

    Raises:
        UsageError: The measurement has no figure.
    """
    content = io.BytesIO()
    measurement.plot().savefig(content, format=path.suffix[1:], dpi=200, bbox_inches="tight")
    write_output(path, content.getvalue())


def _summary(chosen: Instrument[..., Any]) -> str:
    return _without_markup(inspect.cleandoc(chosen.__doc__ or "").partition("\n")[0])


SIGNS = {r"\le": "≤", r"\pm": "±", r"\sim": "~", r"\max": "max", r"\|": "||"}


def _without_markup(text: str) -> str:
    r"""A docstring's words without the marks of its markup.

    >>> _without_markup(r"``True`` for :math:`\sigma |x_i|` with :math:`\|x\| \le 1`; see `Objective`.")
    'True for sigma |x_i| with ||x|| ≤ 1; see Objective.'
    """
    for command, sign in SIGNS.items():
        text = text.replace(command, sign)
    text = re.sub(r":\w+:`([^`]*)`", lambda role: re.sub(r"\\([A-Za-z]+)", r"\1", role[1]), text)
    return text.replace("`", "")


def _argument_docs(chosen: Instrument[..., Any]) -> dict[str, str]:
    section = inspect.cleandoc(chosen.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: _without_markup(" ".join(text.split())) for name, text in found}


def _type_in_words(key: str, hint: Any) -> str:
    if key == "dtype":
        return " or ".join(DTYPES)
    if key == "parameters":
        return "names or patterns, separated by commas"
    try:
        values.parse("", hint, key)
    except UsageError:
        pass
    except TypeError:
        return "from Python only"
    return values.in_words(hint)


def _default_in_text(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return values.in_text(value)


def _positional(chosen: Instrument[..., Any]) -> list[str]:
    parameters = inspect.signature(chosen.measure).parameters.values()
    return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


def _arguments(chosen: Instrument[..., Any], request: Request) -> list[Any]:
    arguments: list[Any] = []
    names = _positional(chosen)
    batches = _data(request) if "data" in names else None
    if "model_b" in names and len(request.weights) != 2:
        raise UsageError(
            f"{chosen.__name__} compares two models: give --weights FIRST.safetensors SECOND.safetensors "
            f"({len(request.weights)} given)."
        )
    for name in names:
        if name in ("model", "model_a", "model_b"):
            arguments.append(_model(request, int(name == "model_b")))
        elif name == "loss":
            arguments.append(_loss(request, batches))
        elif name == "data":
            arguments.append(batches)
        elif name == "points":
            arguments.append(_points(request))
        else:
            raise UsageError(f"{chosen.__name__} needs '{name}', which only Python can give.")
    return arguments


def _model(request: Request, place: int) -> nn.Module:
    if request.model is None:
        raise UsageError("Which network? Give --model package.module:factory or path/to/file.py:factory.")
    torch.manual_seed(0)  # without weights the network is a fresh one, the same each time
    module = models.load_factory(request.model)()
    if len(request.weights) > place:
        _load_weights(module, request.weights[place])
    return module.to(request.device).eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"The weights '{path}' cannot be read as safetensors: {error}.") from error


def _load_weights(module: nn.Module, path: Path) -> None:
    state, own = _read_weights(path), module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise UsageError(
            f"The weights '{path}' do not fit {type(module).__name__}: missing "
            f"{', '.join(missing[:5]) or 'nothing'}; not in the network {', '.join(extra[:5]) or 'nothing'}."
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise UsageError(
                f"The weights '{path}' do not fit {type(module).__name__}: '{name}' has shape "
                f"{tuple(tensor.shape)} there and {tuple(own[name].shape)} in the network."
            )
    module.load_state_dict(state)


def _points(request: Request) -> list[dict[str, Tensor]]:
    if len(request.weights) < 2:
        raise UsageError("Give the points in weight space: --weights A.safetensors B.safetensors ...")
    return [_read_weights(path) for path in request.weights]


def _data(request: Request) -> Any:
    if not request.data:
        raise UsageError(
            "Which data? Give --data with a file.npz that holds x and y, with images "
            f"({', '.join(targets.image_set_names())}), or with a target ({', '.join(targets.TARGETS)})."
        )
    batches = [_batch(name) for name in request.data]
    return batches[0] if len(batches) == 1 else batches


def _batch(name: str) -> tuple[Tensor, Tensor]:
    if images := _images(name):
        return images.normalize(images.images), images.labels
    if not name.endswith(".npz"):
        return targets.target(name).train()
    try:
        with np.load(name, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"The data file '{name}' cannot be read: {error}.") from error
    for keys in NAMES:
        if set(keys) <= arrays.keys():
            x, y = (torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in keys)
            break
    else:
        raise UsageError(
            f"The data file '{name}' holds {', '.join(arrays) or 'nothing'}; it must hold x and y, "
            "or inputs and targets."
        )
    if len(x) != len(y):
        raise UsageError(f"The data file '{name}' holds {len(x)} inputs and {len(y)} targets.")
    return _usual(x), _usual(y)


def _images(name: str) -> ImageSet | None:
    """The images of ``NAME``, ``NAME:test`` or ``NAME:test@SAMPLES``; None if the text names no images.

    Raises:
        UsageError: A split or a number of samples that does not exist.
    """
    where, _, samples = name.partition("@")
    place, _, split = where.rpartition(":") if ":" in where else (where, "", "train")
    if place.endswith(".npz") or not targets.is_image_set(place):
        if difflib.get_close_matches(place, targets.image_set_names(), n=1):
            targets.check_image_set(place)  # a typing mistake: says what was meant
        return None
    found = targets.load(place, split=split)
    if samples and not (samples.isdigit() and 0 < int(samples) <= len(found)):
        raise UsageError(f"'@{samples}' in '{name}' is no number of samples from 1 to {len(found):,}.")
    return found.first(int(samples)) if samples else found


def _usual(tensor: Tensor) -> Tensor:
    """Whole numbers of any width as int64, as classes and tokens must be."""
    return tensor if tensor.is_floating_point() else tensor.long()


def _loss(request: Request, batches: Any) -> Loss:
    if request.loss is None:
        target = (batches[0] if isinstance(batches, list) else batches)[1]
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
            raise UsageError(f"'{word}' is not an option. Write key=value; keys: {', '.join(hints)}.")
        if key not in hints:
            raise unknown(f"option of {chosen.__name__}", key, hints)
        options[key] = _value(text, hints[key], key)
    return options


def option_types(chosen: Instrument[..., Any]) -> Mapping[str, Any]:
    """The types of an instrument's keyword options, by name."""
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
        return values.parse(text, hint, key)
    except TypeError:
        raise UsageError(f"'{key}' takes objects that only Python can give.") from None
