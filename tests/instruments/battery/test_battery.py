"""Every instrument on every form of model: the truth or a refusal, without a trace."""

from __future__ import annotations

import re
import warnings
from functools import cache
from typing import Any

import pytest

from nablab.errors import UsageError
from tests.instruments.battery.case import EITHER, REFUSAL, VALUE, Case, make
from tests.instruments.battery.instruments import INSTRUMENTS, answer
from tests.instruments.battery.models import MODELS
from tests.instruments.battery.purity import State
from tests.instruments.battery.truth import Truth

# Run by `make test`: these models with every instrument, and every model with these
# instruments.
FAST_MODELS = ("dense", "shared by alias")
FAST_INSTRUMENTS = ("gradient_norm", "hessian_matrix")
# A remedy is something to do.
REMEDY = re.compile(
    r"\b(ask|call|choose|convert|cut|give|leave|measure|mend|move|pass|put|raise|reshape|run|set|switch|use|wrap|"
    r"write)\b",
    re.IGNORECASE,
)


def cells() -> list[Any]:
    """One for each instrument and model; what `make test` leaves out is marked slow."""
    found = []
    for instrument in INSTRUMENTS:
        for model in MODELS:
            fast = model in FAST_MODELS or instrument in FAST_INSTRUMENTS
            marks = () if fast else (pytest.mark.slow,)
            found.append(
                pytest.param(
                    instrument, model, marks=marks, id=f"{instrument} on {model}"
                )
            )
    return found


@cache
def truth_of(model: str) -> Truth:
    """The truth of a model, computed once for all instruments."""
    return Truth(MODELS[model])


@pytest.mark.parametrize(("instrument", "model"), cells())
def test_gives_the_truth_or_a_refusal_and_changes_nothing(
    instrument: str, model: str
) -> None:
    case = make(MODELS[model])
    before = State(case)
    result, refusal = attempt(instrument, case)
    changed = before.differences(case)
    expected = answer(instrument, case.row)
    if refusal is not None:
        check_sentence(refusal)
        assert expected is not VALUE, f"refused: {refusal}"
    else:
        assert expected is not REFUSAL, (
            f"a number where nothing can be measured: {result}"
        )
        INSTRUMENTS[instrument].check(result, truth_of(model), case)
    assert not changed, "\n".join(changed)


def attempt(instrument: str, case: Case) -> tuple[Any, UsageError | None]:
    """The result of an instrument, or its refusal."""
    with warnings.catch_warnings():
        # PyTorch warns about the models; the number is what counts.
        warnings.simplefilter("ignore")
        try:
            return INSTRUMENTS[instrument].measure(case), None
        except UsageError as error:
            return None, error


def check_sentence(refusal: UsageError) -> None:
    """One or two lines in plain words that name something to do."""
    text = str(refusal)
    assert text.count("\n") <= 1, text
    assert 20 < len(text) <= 700, text
    assert REMEDY.search(text), f"no remedy: {text}"


@pytest.mark.parametrize(
    "model", [m for m, row in MODELS.items() if row.answer in (VALUE, EITHER)]
)
@pytest.mark.slow
def test_the_truth_is_the_derivative_of_the_plain_loss(model: str) -> None:
    truth = truth_of(model)
    step = 1e-6
    for place in range(0, len(truth.point), max(1, len(truth.point) // 8)):
        ahead, behind = truth.point.clone(), truth.point.clone()
        ahead[place] += step
        behind[place] -= step
        slope = (truth.loss(ahead) - truth.loss(behind)) / (2 * step)
        assert slope == pytest.approx(float(truth.slope[place]), abs=1e-7)
