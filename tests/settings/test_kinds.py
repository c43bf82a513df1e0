"""Kinds of fields: from what a field says of itself follow its checks and its facts."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nablab import catalogue
from nablab.contract import Condition, Experiment
from nablab.contract.configuration import describe, resolve
from nablab.data.fields import FunctionField, ImagesField, TaskField
from nablab.errors import UsageError
from nablab.models.fields import NetworkField, NetworkList, OwnModelField
from nablab.settings import Distinct, Rising, Samples, Share
from nablab.settings.hints import fields_of
from nablab.settings.kinds import check_fields, data_sets_of, kinds_of, sources_of
from nablab.settings.reading import parse
from nablab.settings.words import in_text
from tests.settings.values import values_of


@dataclass(frozen=True)
class Asked(Experiment):
    """Do fields check themselves?

    Attributes:
        data: Images.
        target: A function.
        tasks: Either.
        networks: Networks.
        model: Your own.
        shares: Shares.
        sizes: Sizes.
    """

    data: ImagesField = "digits"
    target: FunctionField = "sinc"
    tasks: Annotated[tuple[TaskField, ...], Distinct()] = ("sinc", "mnist@100")
    networks: NetworkList = ("mlp-10",)
    network: NetworkField = "lenet"
    model: OwnModelField = None
    shares: Annotated[tuple[Share, ...], Distinct(least=2)] = (0.0, 1.0)
    sizes: Annotated[tuple[Samples, ...], Rising(least=2)] = (10, 20)
    plain: str = "anything"
    choice: Literal["a", "b"] = "a"

    def conditions(self) -> list[Condition]:
        return [Condition()]


def changed(**values: Any) -> Asked:
    return dataclasses.replace(Asked(), **values)


def test_the_defaults_pass() -> None:
    check_fields(Asked())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "minst"}, "no data set 'minst'|Did you mean 'mnist'"),
        ({"data": "sinc"}, "data=sinc is a function and has no labels"),
        ({"data": "mnist@0"}, "asks for no image"),
        ({"target": "sinq"}, "Did you mean 'sinc'"),
        ({"target": "mnist"}, "mnist"),
        ({"tasks": ("sinc", "sinc")}, "tasks names sinc twice: give each one once."),
        ({"tasks": ()}, "tasks is too short: give 1 or more."),
        ({"tasks": ("sinc", "cifar")}, "Did you mean 'cifar10'"),
        ({"networks": ("mlp-10", "mlp-10")}, "networks names mlp-10 twice"),
        ({"model": "no/such/file.py:build"}, "no/such/file.py"),
        ({"shares": (0.5,)}, "shares is too short: give 2 or more."),
        ({"sizes": (20, 10)}, "sizes=20,10 is impossible: it must be 2 or more"),
        ({"sizes": (10, 10)}, "each larger than the one before"),
        ({"choice": "c"}, "choice"),
        # What is not given from the command line is held against its type, too.
        ({"shares": (0.0, 2.0)}, "shares=2.0 is too large: it must be at most 1."),
        ({"plain": 3}, "'plain' takes: text"),
    ],
)
def test_a_value_that_means_nothing_is_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_fields(changed(**values))


def test_data_sets_follow_from_the_fields() -> None:
    assert data_sets_of(Asked()) == ("digits", "mnist@100")
    again = changed(data="mnist@100")
    assert again.data_sets() == ("mnist@100",)


def test_the_source_of_an_own_model_follows_from_its_field(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def build():\n    pass\n")
    asked = changed(model=f"{file}:build")
    first = sources_of(asked)
    assert list(first) == ["model"]
    file.write_text("def build():\n    return 1\n")
    assert asked.sources() != first
    assert Asked().sources() == {}


def test_show_says_what_a_field_takes() -> None:
    types = {doc.name: doc.type for doc in describe(Asked)}
    assert types["data"] == "labeled images by name, folder or .npz file"
    assert types["shares"] == "numbers from 0 to 1, separated by commas"
    assert types["model"] == "a factory of your own or none"
    assert types["networks"] == "networks by name or layers, separated by commas"


def test_kinds_are_found_at_any_depth() -> None:
    hint = tuple[tuple[NetworkField, ...], ImagesField | None]
    found = [text for _, text in kinds_of(hint, (("a", "b"), "digits"))]
    assert found == ["a", "b", "digits"]
    assert list(kinds_of(hint, ((), None))) == []


def built_in() -> list[type[Experiment]]:
    entries = catalogue.scan().values()
    folder = catalogue.BUILT_IN
    return [e.experiment for e in entries if e.experiment and e.path.parent == folder]


@pytest.mark.parametrize("experiment", built_in(), ids=lambda one: one.name)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_values_that_fit_the_fields_are_taken_or_refused(
    experiment: type[Experiment], draw: st.DataObject
) -> None:
    hints = fields_of(experiment)
    names = draw.draw(st.lists(st.sampled_from(sorted(hints)), max_size=4, unique=True))
    values = {name: draw.draw(values_of(hints[name]), name) for name in names}
    for name, value in values.items():
        assert parse(in_text(value), hints[name], name) == value
    # A refusal is fine; any other error is not.
    with contextlib.suppress(UsageError):
        resolve(experiment, "quick", values)
