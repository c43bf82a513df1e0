"""What ``nablab.run`` refuses, in the words of Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nablab
from nablab.errors import StoreError, UsageError
from nablab.runs.wording import in_python, told_in_python


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("with --store FOLDER or NABLAB_STORE.", "with store=FOLDER or NABLAB_STORE."),
        ("fewer --jobs if memory was short", "fewer jobs if memory was short"),
        ("(--jobs 1 works without).", "(jobs=1 works without)."),
        ("--fresh would delete it", "fresh=True would delete it"),
        ("--keep-weights SIZE", "keep_weights=SIZE"),
        ("'seeds' is an option: --seeds N.", "'seeds' is an option: seeds=N."),
        ("a -- dash, -x and a---b", "a -- dash, -x and a---b"),
        ("", ""),
    ],
)  # fmt: skip
def test_options_are_named_as_arguments(text: str, told: str) -> None:
    assert in_python(text) == told


def test_a_command_stays_as_it_is_given_in_a_terminal() -> None:
    text = "This runs what is missing: nablab run toy --seeds 3 --store FOLDER"
    assert in_python(text) == text


def test_an_error_stays_the_same_error() -> None:
    error = StoreError("leave out --fresh", 3)
    with (
        pytest.raises(StoreError, match="leave out fresh=True") as caught,
        told_in_python(),
    ):
        raise error
    assert caught.value is error
    assert error.args[1] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds=0 is impossible"),
        ({"seeds": "3"}, "seeds=3 is impossible"),
        ({"seeds": 2.0}, "seeds=2.0 is impossible"),
        ({"seeds": True}, "seeds=True is impossible"),
        ({"jobs": 0}, "jobs=0 is impossible"),
        ({"jobs": "2"}, "jobs=2 is impossible"),
        ({"jobs": 1.5}, "jobs=1.5 is impossible"),
        ({"jobs": None}, "jobs=None is impossible"),
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"device": "tpu"}, "Did you mean 'cpu'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        nablab.run("toy", preset="quick", **arguments)
    assert not (tmp_path / "runs").exists()


def test_a_number_of_another_library_will_do() -> None:
    import numpy as np

    run = nablab.run("toy", preset="quick", seeds=np.int64(2), jobs=np.int64(1))  # type: ignore[arg-type]
    assert run.seeds == 2
    assert type(run.seeds) is int


@pytest.mark.parametrize("targets", ["sinc", ("sinc",), ["sinc"]])
def test_one_text_is_a_list_of_one(targets: Any) -> None:
    from nablab.runs import make_plan

    plan = make_plan("deep-vs-shallow", overrides={"targets": targets})
    assert plan.experiment.configuration()["targets"] == ["sinc"]


def test_a_text_is_split_as_on_the_command_line() -> None:
    from nablab.runs import make_plan

    plan = make_plan("deep-vs-shallow", overrides={"targets": "sinc,sign_sin"})
    assert plan.experiment.configuration()["targets"] == ["sinc", "sign_sin"]


def test_a_store_that_cannot_be_written_names_the_argument(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="store=FOLDER") as caught:
        nablab.run("toy", preset="quick", store=tmp_path / "file")
    assert "--" not in str(caught.value)
