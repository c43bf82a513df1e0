"""The configuration of an experiment: what its fields are set to.

Words ``key=value`` are checked against the types of the fields.

How values are written on the command line:

=====================  ===========================================================
type                   text
=====================  ===========================================================
``int``                ``20000``, ``20_000``, ``2e4``
``float``              ``0.001``, ``1e-3``, ``inf``
``bool``               ``true false yes no on off 1 0``
``str``                as it is
``Literal``            one of the choices
``T | None``           a ``T``, or ``none``
``A | B``              the first member, from strict to lax, that the text fits; text last
``tuple[T, ...]``      ``1,2,3``; ``()`` is empty; commas inside brackets do not split
tuple of tuples        ``1,10,1;1,20,1`` or ``[1,10,1],[1,20,1]``
nested dataclass       ``optimizer.learning_rate=1e-3``
union of dataclasses   ``optimizer=sgd`` takes the class of that name with its defaults
=====================  ===========================================================

Nothing is ever evaluated as Python. This module imports neither torch nor numpy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nablab.contract import Experiment
from nablab.errors import UsageError, unknown
from nablab.settings.conforming import replace
from nablab.settings.hints import fields_of, keys_of, type_of
from nablab.settings.kinds import check_fields
from nablab.settings.reading import parse
from nablab.settings.words import choices_of, in_text, in_words
from nablab.text.docstrings import entries

_E = TypeVar("_E", bound=Experiment)
DEFAULT_SEEDS = 5  # of a preset that names no number


@dataclass(frozen=True)
class FieldDoc:
    """What a user must know of one field.

    Attributes:
        name: The key on the command line; nested fields have dots.
        type: The type in plain words.
        default: The default, written as on the command line.
        choices: The possible values, where they are a short list.
        help: What the field means, from the ``Attributes:`` section of the class's
            docstring.
    """

    name: str
    type: str
    default: str
    choices: tuple[str, ...]
    help: str


def parse_overrides(
    experiment_class: type[Experiment], tokens: Sequence[str]
) -> dict[str, Any]:
    """Turn ``["steps=2e4", "targets=sinc,x**2"]`` into values of the fields' types.

    Args:
        experiment_class: The experiment whose fields the keys name.
        tokens: Words of the form ``key=value``.

    Returns:
        The values by key, in the order given. Keys of nested fields keep their dots.

    Raises:
        UsageError: A word without ``=``, an unknown or repeated key, or a value of
            another type.
    """
    values: dict[str, Any] = {}
    for token in tokens:
        key, equals, text = token.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(
                f"'{token}' is not an override. Write key=value, such as steps=2000. "
                f"Keys of {experiment_class.name}: "
                f"{', '.join(keys_of(experiment_class))}."
            )
        if key in values:
            raise UsageError(f"'{key}' is given twice. Keep one of the two values.")
        values[key] = parse(text.strip(), type_of(experiment_class, key), key)
    return values


def resolve(
    experiment_class: type[_E],
    preset: str,
    overrides: Mapping[str, Any],
    *,
    validate: bool = True,
) -> _E:
    """Build the configured experiment.

    It begins with the defaults, takes the preset's values, then the overrides.

    Args:
        experiment_class: The experiment.
        preset: One of its presets. The preset's key ``seeds`` is not a field and is
            left out here.
        overrides: Values by key, from `parse_overrides` or from Python; the keys may
            have dots.
        validate: Ask the experiment whether the values make sense. False to read a
            finished run, whose user files may be gone.

    Raises:
        UsageError: An unknown preset or key, a value of another type, or values that
            the experiment's own ``validate`` rejects.
    """
    if preset not in experiment_class.presets:
        raise unknown("preset", preset, experiment_class.presets)
    experiment: _E = replace(_preset(experiment_class, preset), overrides)
    if validate:
        check_fields(experiment)
        experiment.validate()
    return experiment


def changes(experiment: Experiment, preset: str) -> list[str]:
    """Return the overrides ``key=value`` that make an experiment from its preset."""
    return list(_changes(experiment, _preset(type(experiment), preset), prefix=""))


def seeds_of(experiment_class: type[Experiment], preset: str) -> int:
    """Return the number of seeds of a preset."""
    return int(experiment_class.presets[preset].get("seeds", DEFAULT_SEEDS))


def _preset(experiment_class: type[_E], preset: str) -> _E:
    """Build the experiment with a preset's values.

    The reserved key ``seeds`` belongs to the run.
    """
    values = {
        key: value
        for key, value in experiment_class.presets[preset].items()
        if key != "seeds"
    }
    experiment: _E = replace(experiment_class(), values)
    return experiment


def _changes(wanted: Any, given: Any, prefix: str) -> Iterable[str]:
    for name in fields_of(type(wanted)):
        new, old = getattr(wanted, name), getattr(given, name)
        if not dataclasses.is_dataclass(new) or isinstance(new, type):
            if new != old:
                yield f"{prefix}{name}={in_text(new)}"
            continue
        if type(new) is not type(old):
            yield f"{prefix}{name}={in_text(new)}"
            old = type(new)()
        yield from _changes(new, old, f"{prefix}{name}.")


def describe(experiment_class: type[Experiment]) -> list[FieldDoc]:
    """Describe every field of an experiment, nested ones after their parent."""
    return list(_describe(experiment_class, experiment_class(), prefix=""))


def _describe(owner: type, instance: Any, prefix: str) -> Iterable[FieldDoc]:
    helps = entries(owner.__doc__, "Attributes")
    for name, hint in fields_of(owner).items():
        value = getattr(instance, name)
        help_ = helps.get(name, "")
        yield FieldDoc(
            prefix + name, in_words(hint), in_text(value), choices_of(hint), help_
        )
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _describe(type(value), value, f"{prefix}{name}.")
