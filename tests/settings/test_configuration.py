"""Overrides are parsed against the fields' types, and every mistake gets one clear
message.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import pytest
from annotated_types import Le
from hypothesis import given
from hypothesis import strategies as st

from nablab import catalogue
from nablab.contract import Experiment
from nablab.contract.configuration import changes, describe, parse_overrides, resolve
from nablab.errors import UsageError
from nablab.settings.hints import fields_of


@dataclass(frozen=True)
class Adam:
    """A stand-in.

    Attributes:
        learning_rate: Size of a step.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class SGD:
    """Another stand-in."""

    learning_rate: float = 1e-2
    momentum: float = 0.0


@dataclass(frozen=True)
class Everything(Experiment):
    """Does every type work?

    Text before the fields.

    Attributes:
        steps: Optimizer steps. The second
            sentence is on a line of its own: with a colon.
        rate: Learning rate.

    Notes:
        not: A field.
    """

    steps: int = 100
    rate: float = 0.1
    fused: bool = False
    title: str = "plain"
    mode: Literal["slow", "fast", 3] = "slow"
    limit: float | None = None
    label: int | str = 1
    widths: tuple[int, ...] = (1, 10, 1)
    names: tuple[str, ...] = ("a", "b")
    interval: tuple[float, float] = (0.0, 1.0)
    networks: tuple[tuple[int, ...], ...] = ((1, 10, 1),)
    optimizer: Adam | SGD = field(default_factory=Adam)
    inner: Adam = field(default_factory=Adam)

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"steps": 5, "seeds": 3},
        "standard": {},
        "paper": {"optimizer": SGD(), "optimizer.momentum": 0.9},
    }

    def validate(self) -> None:
        if self.steps < 1:
            raise UsageError("steps must be positive")


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("steps=20000", 20000),
        ("steps=20_000", 20000),
        ("steps=2e4", 20000),
        ("rate=1e-3", 1e-3),
        ("rate=2", 2.0),
        ("rate=inf", float("inf")),
        ("fused=YES", True),
        ("fused=off", False),
        ("fused=1", True),
        ("title=a=b", "a=b"),
        ("title=", ""),
        ("mode=fast", "fast"),
        ("mode=3", 3),
        ("limit=none", None),
        ("limit=0.5", 0.5),
        ("label=7", 7),
        ("label=seven", "seven"),
        ("widths=1,2,3", (1, 2, 3)),
        ("widths=[1, 2, 3]", (1, 2, 3)),
        ("widths=4", (4,)),
        ("widths=4,", (4,)),
        ("widths=()", ()),
        ("widths=", ()),
        ("names=min(x,1),x**2", ("min(x,1)", "x**2")),
        ("names=(x),(y)", ("(x)", "(y)")),
        ("interval=-1,2e0", (-1.0, 2.0)),
        ("networks=1,10,1;1,20,1", ((1, 10, 1), (1, 20, 1))),
        ("networks=[1,10,1],[1,20,1]", ((1, 10, 1), (1, 20, 1))),
        ("networks=((1,10,1),(1,20,1))", ((1, 10, 1), (1, 20, 1))),
        ("networks=1,10,1", ((1, 10, 1),)),
        ("networks=[1,10,1]", ((1, 10, 1),)),
        ("networks=()", ()),
        ("optimizer.momentum=0.9", 0.9),
        ("optimizer=sgd", SGD()),
        ("inner.betas=0.8,0.9", (0.8, 0.9)),
    ],
)
def test_text_becomes_the_value_of_the_type(token: str, value: object) -> None:
    key = token.partition("=")[0]
    parsed = parse_overrides(Everything, [token])
    assert parsed == {key: value}
    assert type(parsed[key]) is type(value)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("steps", r"'steps' is not an override. Write key=value"),
        ("=5", r"'=5' is not an override"),
        ("stesp=5", r"no key 'stesp'. Did you mean 'steps'\? Choices: steps, rate"),
        ("optimizer.momentun=1", r"Did you mean 'optimizer.momentum'"),
        ("steps.x=5", r"no key 'steps.x'"),
        ("seeds=5", r"--seeds N"),
        (
            "steps=2.5",
            r"steps='2.5' does not fit. 'steps' takes: whole number. Example: steps=2",
        ),
        (
            "steps=1e999999999",
            "too large: it must be at most 9,223,372,036,854,775,807",
        ),
        ("steps=nan", r"takes: whole number"),
        ("rate=fast", r"'rate' takes: number. Example: rate=1e-3."),
        ("rate=nan", r"takes: number"),
        ("fused=maybe", r"takes: true or false"),
        (
            "mode=fats",
            r"no value of 'mode' 'fats'. Did you mean 'fast'\? Choices: slow, fast, 3.",
        ),
        ("limit=much", r"'limit' takes: number or none"),
        ("widths=1,x", r"takes: whole number"),
        (
            "interval=1",
            r"it has 1 parts instead of 2.*2 values, separated by commas: number, nu",
        ),
        (
            "optimizer=adm",
            r"Did you mean 'adam'\? Choices: adam, sgd. Its parts are set by optimizer",
        ),
    ],
)
def test_a_wrong_word_is_answered(token: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_overrides(Everything, [token])


def test_a_key_given_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match="'steps' is given twice"):
        parse_overrides(Everything, ["steps=1", "steps=2"])


@given(
    st.integers(-(10**15), 10**15),
    st.floats(allow_nan=False),
    st.lists(st.integers(-99, 99)),
)
def test_numbers_survive_the_way_through_text(
    whole: int, number: float, widths: list[int]
) -> None:
    tokens = [
        f"steps={whole}",
        f"rate={number!r}",
        f"widths={','.join(map(str, widths))}",
    ]
    assert parse_overrides(Everything, tokens) == {
        "steps": whole,
        "rate": number,
        "widths": tuple(widths),
    }


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused_with_a_usage_error(text: str) -> None:
    for key in (
        "steps",
        "rate",
        "fused",
        "mode",
        "limit",
        "widths",
        "interval",
        "networks",
        "optimizer",
    ):
        with contextlib.suppress(UsageError):
            parse_overrides(Everything, [f"{key}={text}"])


def test_overrides_beat_the_preset_and_the_preset_beats_the_default() -> None:
    assert resolve(Everything, "standard", {}).steps == 100
    assert resolve(Everything, "quick", {}).steps == 5
    assert resolve(Everything, "quick", {"steps": 7}).steps == 7


def test_dotted_keys_reach_into_nested_dataclasses() -> None:
    assert resolve(Everything, "paper", {}).optimizer == SGD(momentum=0.9)
    assert resolve(Everything, "standard", {"inner.learning_rate": 1}).inner == Adam(
        learning_rate=1.0
    )
    assert resolve(
        Everything, "standard", {"inner": {"learning_rate": 1}}
    ).inner == Adam(learning_rate=1.0)
    with pytest.raises(UsageError, match="no key 'momentum'"):
        # the default is Adam
        resolve(Everything, "standard", {"optimizer.momentum": 0.5})
    chosen = parse_overrides(Everything, ["optimizer.momentum=0.5", "optimizer=sgd"])
    assert resolve(Everything, "standard", chosen).optimizer == SGD(momentum=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "200"}, "steps='200' does not fit. 'steps' takes: whole number"),
        ({"steps": True}, "steps=True does not fit"),
        ({"steps": 2.0}, "steps=2.0 does not fit"),
        ({"rate": float("nan")}, "rate=nan does not fit"),
        ({"mode": "other"}, "Choices: slow, fast, 3"),
        ({"widths": "1,x"}, "takes: whole number"),
        ({"widths": 3}, "whole numbers, separated by commas"),
        ({"steps": 10**30}, "too large"),
        ({"rate": 10**400}, "rate='a very long number' does not fit"),
        ({"interval": (1.0,)}, "it has 1 parts instead of 2"),
        ({"stesp": 1}, "Did you mean 'steps'"),
        ({"steps": 0}, "steps must be positive"),
    ],
)
def test_values_from_python_are_checked_too(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(Everything, "standard", values)


@dataclass(frozen=True)
class Bounded(Experiment):
    """Are bounds kept?"""

    epochs: Annotated[int, Le(100)] = 1
    limit: Annotated[int, Le(100)] | None = None
    name: Annotated[int, Le(100)] | str = 1
    sizes: tuple[Annotated[int, Le(100)], ...] = (1,)
    networks: tuple[tuple[Annotated[int, Le(100)], ...], ...] = ((1,),)
    pair: tuple[Annotated[float, Le(0.5)], int] = (0.0, 1)


@pytest.mark.parametrize(
    ("token", "bound"),
    [
        ("epochs=101", "100"),
        ("epochs=1e12", "100"),
        ("epochs=1e999999999", "100"),
        ("limit=101", "100"),
        ("name=101", "100"),
        ("sizes=1,2,101", "100"),
        ("networks=1,2;3,101", "100"),
        ("pair=0.6,1", "0.5"),
        ("pair=inf,1", "0.5"),
    ],
)
def test_a_number_beyond_the_bound_of_its_field(token: str, bound: str) -> None:
    key = token.partition("=")[0]
    with pytest.raises(
        UsageError, match=f"{key}=.* is too large: it must be at most {bound}[.]"
    ):
        parse_overrides(Bounded, [token])
    value = {"sizes": (1, 101), "networks": ((1, 101),), "pair": (0.6, 1)}.get(key, 101)
    with pytest.raises(UsageError, match=f"too large: it must be at most {bound}[.]"):
        resolve(Bounded, "standard", {key: value})


def test_numbers_up_to_the_bound_are_taken() -> None:
    tokens = [
        "epochs=100",
        "limit=none",
        "name=many",
        "sizes=100,1",
        "networks=100;1",
        "pair=0.5,7",
    ]
    values = parse_overrides(Bounded, tokens)
    assert list(values.values()) == [
        100,
        None,
        "many",
        (100, 1),
        ((100,), (1,)),
        (0.5, 7),
    ]
    assert {doc.name: doc.type for doc in describe(Bounded)}[
        "sizes"
    ] == "whole numbers at most 100, separated by commas"
    assert {doc.name: doc.type for doc in describe(Bounded)}[
        "limit"
    ] == "whole number at most 100 or none"


def test_every_whole_number_of_every_experiment_has_a_bound() -> None:
    bare = []
    for entry in catalogue.scan().values():
        if entry.path.parent != catalogue.BUILT_IN:
            continue
        assert entry.experiment
        for name, hint in fields_of(entry.experiment).items():
            bare += [(entry.name, name) for part in parts_of(hint) if part is int]
    assert not bare


def parts_of(hint: Any) -> list[Any]:
    """The types that a hint is made of; one with a bound stands for itself."""
    if get_origin(hint) is Annotated:
        return [hint]
    return [hint, *(part for inner in get_args(hint) for part in parts_of(inner))]


@pytest.mark.parametrize(
    ("text", "value"),
    [("sinc", ("sinc",)), ("a,min(x,1)", ("a", "min(x,1)")), ("()", ())],
)
def test_a_text_from_python_stands_for_a_tuple(
    text: str, value: tuple[str, ...]
) -> None:
    assert resolve(Everything, "standard", {"names": text}).names == value


@pytest.mark.parametrize("key", ["preset", "seeds", "device", "jobs", "store"])
def test_an_option_taken_for_a_key_is_named(key: str) -> None:
    with pytest.raises(UsageError, match=f"'{key}' is an option of its own: --{key}"):
        parse_overrides(Everything, [f"{key}=x"])


def test_a_finished_run_can_be_read_without_validation() -> None:
    assert resolve(Everything, "standard", {"steps": 0}, validate=False).steps == 0


def test_lists_and_whole_numbers_from_python_are_taken() -> None:
    experiment = resolve(
        Everything, "standard", {"widths": [1, 2], "rate": 1, "networks": [[1, 2], [3]]}
    )
    assert experiment.widths == (1, 2)
    assert isinstance(experiment.rate, float)
    assert experiment.networks == ((1, 2), (3,))


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no preset 'qick'\. Did you mean 'quick'"):
        resolve(Everything, "qick", {})


def test_a_preset_with_an_unknown_key_is_found_out() -> None:
    class Wrong(Everything):
        presets: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"stpes": 1}}

    with pytest.raises(UsageError, match="Did you mean 'steps'"):
        resolve(Wrong, "quick", {})


def test_describe_says_what_each_field_takes() -> None:
    docs = {doc.name: doc for doc in describe(Everything)}
    assert docs["steps"].help == (
        "Optimizer steps. The second sentence is on a line of its own: with a colon."
    )
    assert docs["rate"].help == "Learning rate."
    assert docs["mode"].choices == ("slow", "fast", "3")
    assert docs["limit"].type == "number or none"
    assert docs["limit"].default == "none"
    assert docs["networks"].default == "1,10,1"
    assert docs["networks"].type == (
        "groups, separated by semicolons, of whole numbers, separated by commas"
    )
    assert docs["optimizer"].choices == ("adam", "sgd")
    assert docs["inner.learning_rate"].help == "Size of a step."
    assert "not" not in docs


def test_defaults_shown_by_describe_can_be_typed_back() -> None:
    tokens = [
        f"{doc.name}={doc.default}"
        for doc in describe(Everything)
        if "." not in doc.name
    ]
    assert (
        resolve(Everything, "standard", parse_overrides(Everything, tokens))
        == Everything()
    )


def test_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys, nablab.contract.configuration; print({'torch', 'numpy', "
        "'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"


@pytest.mark.parametrize("preset", ["quick", "paper"])
@pytest.mark.parametrize(
    "tokens",
    [
        [],
        ["steps=7", "limit=0.5", "fused=true"],
        ["names=((x))", "widths=()", "networks=1,2;3,4"],
        ["names=(x+1)*(x-1),min(x,1)"],
        ["networks=1,2"],
        ["optimizer=sgd", "optimizer.momentum=0.25"],
        ["inner.betas=0.5,0.6"],
    ],
)
def test_changes_are_the_words_that_make_the_same_experiment_again(
    preset: str, tokens: list[str]
) -> None:
    experiment = resolve(Everything, preset, parse_overrides(Everything, tokens))
    words = changes(experiment, preset)
    assert resolve(Everything, preset, parse_overrides(Everything, words)) == experiment
    assert len(words) <= len(tokens)


def test_a_stored_configuration_gives_the_experiment_back() -> None:
    experiment = resolve(Everything, "paper", {"widths": (3, 4), "limit": 2.0})
    stored = json.loads(json.dumps(experiment.configuration()))
    assert resolve(Everything, "paper", stored) == experiment
