"""Error rates and power, measured: a few cases always, all of them in the slow tests."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from tests.verdicts import grid
from tests.verdicts.simulation import (
    RUNS,
    Advice,
    Case,
    advice_cases,
    allowed,
    bound,
    family,
    measure,
    null_cases,
    power_cases,
    trend,
    two_groups,
)

QUICK = [
    two_groups("sd 3 against 1", 5, "linear"),
    two_groups("normal", 5, "linear", 1.0, smallest_effect=1.0),
    two_groups("lognormal", 10, "linear", paired=True),
    two_groups("sd 3 against 1, twice as many of the latter", 5, "ranks"),
    bound("lognormal", 5, "linear", -1),
    trend("normal", 5),
    family(0.0, 5),
]


def label(case: Case) -> str:
    return f"{case.name}, {case.seeds} seeds"


@pytest.mark.parametrize("case", QUICK, ids=label)
def test_a_null_effect_is_rarely_supported_or_refuted(case: Case) -> None:
    rates = measure(case)
    assert rates.supported <= allowed()
    assert rates.refuted <= allowed()


THIN = [
    grid.difference("heavy tails", 5, 2),
    grid.difference("0 or 1, 50 %", 7, 1, paired=True),
    grid.bound("skewed to the left", 5, 4),
    grid.bound("0 or 1, 10 %", 10, 2),
    grid.trend("ties", 4, 4),
    grid.correlation("normal", 5, 4, "rates"),
    grid.equality("skewed to the right", 5, 2),
]


@pytest.mark.parametrize("case", THIN, ids=label)
def test_a_thin_sample_of_the_grid(case: Case) -> None:
    rates = measure(case, runs=150, resamples=grid.RESAMPLES)
    assert max(rates.supported, rates.refuted) <= allowed(0.05, 150)


def test_a_simulation_can_find_a_wrong_rule() -> None:
    """Without a threshold an effect of one standard deviation is supported often."""
    case = two_groups("normal", 10, "linear", 1.0)
    assert measure(case, runs=200).supported > 0.4


@pytest.mark.parametrize("case", [c for c in power_cases() if c.seeds == 10], ids=label)
def test_a_true_effect_is_found_with_the_stated_power(case: Case) -> None:
    rates = measure(case, runs=300)
    assert rates.each >= case.power - 2 * math.sqrt(case.power * (1 - case.power) / 300)
    assert rates.refuted == 0


def test_the_number_of_resamples_hardly_matters() -> None:
    case = two_groups("sd 3 against 1", 10, "linear")
    few, many = measure(case, runs=200), measure(case, runs=200, resamples=9_999)
    assert abs(few.supported - many.supported) <= 0.02
    assert abs(few.refuted - many.refuted) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("shape", grid.SHAPES)
@pytest.mark.parametrize("kind", grid.KINDS)
def test_no_cell_of_the_grid_is_decided_too_often(kind: str, shape: str) -> None:
    """Every number of seeds and of trials a seed; all cells together take about an hour
    of one core.
    """
    wrong = []
    for case in grid.cells(kind, shape):
        rates = grid.rates(case)
        if max(rates.supported, rates.refuted) > allowed():
            wrong.append((label(case), rates))
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("case", list(null_cases()), ids=label)
def test_every_null_effect_is_rarely_supported_or_refuted(case: Case) -> None:
    rates = measure(case)
    assert rates.supported <= allowed(), rates
    assert rates.refuted <= allowed(), rates


@pytest.mark.slow
@pytest.mark.parametrize("case", list(power_cases()), ids=label)
def test_every_true_effect_is_found_with_the_stated_power(case: Case) -> None:
    assert measure(case).each >= case.power


def slow_advice() -> Iterator[Advice]:
    yield from advice_cases()


@pytest.mark.slow
def test_the_advised_number_of_seeds_decides_about_four_times_in_five() -> None:
    for advice in slow_advice():
        assert 0.72 <= advice.decided <= 0.92, f"{advice} of {RUNS} runs"
