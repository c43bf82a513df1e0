"""Stopping rules on curves whose answer is known by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablab.errors import UsageError
from nablab.training import EarlyStopping, Plateau, Threshold
from nablab.training.stopping import check_metrics


def first_stop(rule, values, every=10):
    """The step at which the rule first holds on one replica's evaluations, or None."""
    watch = rule.watch(1)
    for row, value in enumerate(values):
        if watch.update(row * every, np.array([value], dtype=np.float64))[0]:
            return row * every
    return None


def test_threshold_stops_at_or_below_its_value():
    assert first_stop(Threshold(0.5), [2, 1, 0.5, 3]) == 20
    assert first_stop(Threshold(0.5), [2, 1, np.nan, 0.51]) is None


def test_patience_counts_evaluations_since_the_last_improvement():
    assert first_stop(EarlyStopping(patience=2), [5, 4, 4.5, 3, 3.5, 3.2, 1]) == 50


def test_an_improvement_must_exceed_minimum_delta():
    slow = [5, 4.95, 4.9, 4.85]
    assert first_stop(EarlyStopping(patience=2), slow) is None
    assert first_stop(EarlyStopping(patience=2, minimum_delta=0.1), slow) == 20
    assert first_stop(EarlyStopping(patience=3, minimum_delta=0.1), slow) is None, (
        "small steps add up"
    )


def test_each_replica_may_have_its_own_patience():
    rule = EarlyStopping(patience=[1, 3])
    watch = rule.watch(2)
    held = [
        watch.update(row, np.array([value, value])).tolist()
        for row, value in enumerate([5.0, 4.0, 6.0, 7.0, 8.0])
    ]
    assert held[1:4] == [[False, False], [True, False], [True, False]]
    assert held[4] == [True, True]
    assert rule == EarlyStopping(patience=(1, 3))
    with pytest.raises(UsageError, match="patience has 2 values for 3 replicas"):
        rule.watch(3)
    with pytest.raises(UsageError, match="patience must be at least 1"):
        EarlyStopping(patience=[3, 0])


def test_a_plateau_is_judged_over_its_whole_window():
    falling = [1 / (1 + row) for row in range(8)]
    assert first_stop(Plateau(30, 0.01), falling) is None
    assert first_stop(Plateau(30, 0.01), [*falling, *[falling[-1]] * 5]) == 100


def test_a_plateau_that_ends_within_the_window_is_crossed():
    flat_then_falling = [1.0] * 4 + [0.5, 0.25, 0.12, 0.06]
    assert first_stop(Plateau(50, 0.01), flat_then_falling) is None
    assert first_stop(Plateau(30, 0.01), flat_then_falling) == 30


def test_noise_around_a_falling_best_is_no_plateau_and_noise_above_it_is_no_progress():
    noisy = [1.0, 5.0, 0.8, 5.0, 0.6, 5.0, 0.4, 5.0]
    assert first_stop(Plateau(30, 0.01), noisy) is None
    assert first_stop(Plateau(30, 0.01), [1.0, 5.0, 4.0, 3.0, 2.0]) == 30


def test_a_loss_of_zero_has_converged_and_a_missing_one_has_not():
    assert first_stop(Plateau(20), [0.0, 0.0, 0.0]) == 20
    assert first_stop(Plateau(20), [1.0, np.nan, np.nan, np.nan]) is None


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40), st.integers(1, 60))
def test_plateau_equals_its_definition(values, window):
    rule = Plateau(window, 0.05)
    watch = rule.watch(1)
    for row, value in enumerate(values):
        holds = watch.update(row * 10, np.array([value]))[0]
        began = [
            earlier for earlier in range(row + 1) if earlier * 10 <= row * 10 - window
        ]
        then = min(values[: began[-1] + 1]) if began else None
        assert holds == (
            then is not None and then - min(values[: row + 1]) <= 0.05 * then
        )


def test_replicas_are_judged_alone():
    watch = Plateau(10, 0.1).watch(2)
    watch.update(0, np.array([1.0, 1.0]))
    assert watch.update(10, np.array([0.5, 0.99])).tolist() == [False, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(patience=0),
        lambda: EarlyStopping(minimum_delta=-1.0),
        lambda: Plateau(0),
        lambda: Plateau(10, 1.0),
    ],
)
def test_impossible_rules_are_refused(make):
    with pytest.raises(UsageError, match="must be"):
        make()


def test_a_rule_for_a_metric_that_is_not_evaluated_is_named():
    with pytest.raises(
        UsageError, match=r"'held_out_loss'.*train_loss.*early stopping"
    ):
        check_metrics((EarlyStopping(),), ["train_loss"])
