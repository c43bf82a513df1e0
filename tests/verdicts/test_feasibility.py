"""Which claims so many seeds cannot decide: against `judge` on the clearest data, and
for all presets.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from nablab import catalogue
from nablab.contract import Claim, Condition, Experiment, Record, Records, configuration
from nablab.verdicts import judge, undecidable

MODELS = [Condition(model=model) for model in ("a", "b")]
WIDTHS = [Condition(width=width) for width in (1, 2, 4)]
CASES = {
    "difference": (Claim.less("error", "a", "b", by="model"), MODELS),
    "paired": (Claim.less("error", "a", "b", by="model", paired=True), MODELS),
    "ranks": (Claim.less("error", "a", "b", by="model", scale="ranks"), MODELS),
    "ranks beyond": (
        Claim.less("error", "a", "b", by="model", scale="ranks", smallest_effect=0.3),
        MODELS,
    ),
    "paired ranks": (
        Claim.less("error", "a", "b", by="model", scale="ranks", paired=True),
        MODELS,
    ),
    "bound of ranks": (Claim.at_most("error", 1e3, scale="ranks"), MODELS[:1]),
    "bound": (Claim.at_most("error", 1e3), MODELS[:1]),
    "trend": (Claim.rises("error", by="width"), WIDTHS),
}


def clearest(conditions: list[Condition], seeds: int) -> Records:
    """Results that agree completely and still differ from seed to seed."""
    return Records(
        Record(
            condition,
            seed,
            {"error": 10.0 * place + 1 + 0.0137 * (place + 1) * seed**1.3},
        )
        for place, condition in enumerate(conditions)
        for seed in range(seeds)
    )


@pytest.mark.parametrize("family", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_the_fewest_seeds_decide_and_one_less_does_not(case: str, family: int) -> None:
    claim, conditions = CASES[case]
    # equal p-values: Holm's correction eases for none of them
    claims = [claim] * family
    missing = undecidable(claims, conditions, 2)
    assert len(missing) in (0, family)
    fewest = missing[0].seeds if missing else 2
    assert fewest is not None
    assert undecidable(claims, conditions, fewest) == []
    assert {v.outcome for v in judge(claims, clearest(conditions, fewest))} == {
        "supported"
    }
    if fewest > 2:
        assert {v.outcome for v in judge(claims, clearest(conditions, fewest - 1))} == {
            "inconclusive"
        }


def test_so_few_conditions_are_undecidable_with_any_number_of_seeds() -> None:
    (one,) = undecidable([Claim.correlates("gap", "error", paired=True)], MODELS, 5)
    assert one.claim == "Gap and error rise together"
    assert one.seeds is None


def test_claims_whose_levels_do_not_occur_and_exact_ones_are_no_tests() -> None:
    claims = [
        Claim.less("error", "a", "c", by="model"),
        Claim.equal("parameters", by="model", margin=0.01, exact=True),
        Claim.at_most("error", 1.0, where={"model": "z"}),
        Claim.rises("error", by="width"),
    ]
    assert undecidable(claims, MODELS, 1) == []


def test_every_level_of_a_scope_is_a_test_of_its_own() -> None:
    conditions = [Condition(target=t, model=m) for t in "xyz" for m in "ab"]
    claim = Claim.at_most("error", 1.0, within="target")
    assert [one.claim for one in undecidable([claim], conditions, 5)] == [
        f"Error is at most 1.00 (target {target})" for target in "xyz"
    ]
    assert undecidable([claim], conditions, 6) == []  # 3 tests: 1/64 is below 0.05 / 3


PRESETS = [
    (entry.experiment, preset)
    for entry in catalogue.scan().values()
    if entry.experiment is not None and entry.path.parent == catalogue.BUILT_IN
    for preset in entry.experiment.presets
]


@pytest.mark.parametrize(
    ("experiment_class", "preset"),
    PRESETS,
    ids=[f"{e.name}-{preset}" for e, preset in PRESETS],
)
def test_every_claim_of_a_preset_can_be_decided_or_the_experiment_says_why_not(
    experiment_class: type[Experiment], preset: str
) -> None:
    experiment = configuration.resolve(experiment_class, preset, {}, validate=False)
    seeds = configuration.seeds_of(experiment_class, preset)
    missing = undecidable(experiment.active_claims(), experiment.conditions(), seeds)
    assert bool(missing) == (preset in experiment.undecided), missing


def test_reasons_belong_to_presets() -> None:
    for experiment_class, _ in PRESETS:
        assert set(experiment_class.undecided) <= set(experiment_class.presets)


def test_feasibility_needs_no_numpy() -> None:
    code = (
        "import sys; from nablab.verdicts import undecidable; sys.exit('numpy' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
