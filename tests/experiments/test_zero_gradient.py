"""Zero gradient: what it records is recomputed here, and its configuration is checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from nablab import models
from nablab.contract import Record, Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.zero_gradient import ZeroGradient, _shift, penalized
from nablab.instruments.base.objective import Objective
from nablab.instruments.base.replicas import Replicas
from nablab.plots import critical_points as drawn
from tests.experiments.memory import Memory

SEEDS = (0, 1, 2, 3)


def small(**overrides: Any) -> ZeroGradient:
    values = {
        "networks": ("1-3-1",),
        "targets": ("sinc@20",),
        "weight_decays": (0.0, 1e-2),
        "steps": 60,
        "iterations": 60,
        **overrides,
    }
    return resolve(ZeroGradient, "quick", values)


def run(experiment: ZeroGradient) -> list[Memory]:
    labs = []
    for condition in experiment.conditions():
        labs.append(Memory(condition))
        experiment.run(Trials([condition], SEEDS), labs[-1])
    return labs


def records_of(labs: list[Memory]) -> Records:
    return Records(
        Record(
            lab.condition, s, lab.scalars[s], lab.texts[s], {}, lab.arrays.get(s, {})
        )
        for lab in labs
        for s in lab.scalars
    )


@pytest.fixture(scope="module")
def finished() -> tuple[ZeroGradient, Records, list[Memory]]:
    experiment = small()
    labs = run(experiment)
    return experiment, records_of(labs), labs


def test_presets() -> None:
    sizes = {
        preset: len(resolve(ZeroGradient, preset, {}).conditions())
        for preset in ZeroGradient.presets
    }
    assert sizes == {"quick": 2, "standard": 2, "paper": 24}
    assert ZeroGradient.presets["standard"]["seeds"] == 100
    assert [
        models.parameter_count(w) for w in resolve(ZeroGradient, "paper", {}).networks
    ] == [241, 571]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"networks": ("1-100-100-1",)}, r"10,401 parameters.*at most 2,000"),
        ({"networks": ("2-4-1",)}, "must begin and end with 1"),
        ({"targets": ("sink",)}, "There is no target.*'sink'. Did you mean 'sinc'"),
        (
            {"activations": ("tahn",)},
            "value of 'activations' 'tahn'. Did you mean 'tanh'",
        ),
        ({"networks": ()}, "networks is too short: give 1 or more."),
        (
            {"targets": ("sinc", "sinc")},
            "targets names sinc twice: give each one once.",
        ),
        ({"weight_decays": (-1.0,)}, "weight_decays=-1.0 is impossible: it must be 0"),
        ({"noise_factor": -1.0}, "noise_factor=-1.0 is impossible: it must be 0 or"),
        ({"steps": 9}, "steps=9 is impossible: it must be 10 or more."),
        ({"tolerance": 0.0}, "tolerance=0.0 is impossible"),
        ({"radius": float("inf")}, "radius=inf is impossible"),
    ],
)
def test_what_makes_no_sense_is_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(ZeroGradient, "standard", override)


def test_the_penalty_is_the_one_that_adam_minimizes() -> None:
    network = models.dense("1-3-1", "tanh").double()
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    plain, with_penalty = (
        Objective(network, penalized(decay), (x, x.square())) for decay in (0.0, 0.3)
    )
    torch.testing.assert_close(
        with_penalty.gradient(), plain.gradient() + 0.3 * plain.point
    )
    assert with_penalty.loss() == pytest.approx(
        plain.loss() + 0.15 * float(plain.point.square().sum())
    )


def test_trainings_stop_at_steps_of_their_own() -> None:
    experiment = ZeroGradient()
    stops = [experiment.stop(seed) for seed in range(400)]
    assert min(stops) == 10
    assert max(stops) <= 3_000
    assert all(stop % 10 == 0 for stop in stops)
    # the middle of 10 to 3,000 on a logarithmic axis is 173
    assert 100 < np.median(stops) < 300
    assert experiment.stop(5) == experiment.stop(5)


def test_a_seed_is_stopped_alike_under_every_penalty(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, labs = finished
    assert labs[0].options["seeds"] == labs[1].options["seeds"]
    assert len(set(labs[0].options["seeds"])) == len(SEEDS)
    for seed in SEEDS:
        one, other = (
            record.scalars["steps"] for record in records if record.seed == seed
        )
        assert one == other
        assert 10 <= one <= 60
    assert len({record.scalars["steps"] for record in records}) > 1
    assert [lab.options["optimizer"].weight_decay for lab in labs] == [0.0, 1e-2]


def test_the_search_starts_where_training_stopped(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, labs = finished
    for lab, decay in zip(labs, (0.0, 1e-2), strict=True):
        for k, record in enumerate(records.where(weight_decay=decay)):
            x, y = (t.double() for t in _points())
            start = Objective(
                lab.result.module(k), penalized(decay), (x, y), dtype=torch.float64
            )
            assert record.scalars["loss_before"] == pytest.approx(
                start.loss(), rel=1e-12
            )
            norm = float(start.gradient().norm())
            assert record.scalars["gradient_norm_before"] == pytest.approx(
                norm, rel=1e-9
            )


def _points() -> Any:
    from nablab import data

    return data.target("sinc@20").train()


def test_the_records_are_what_was_promised(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    experiment, records, _ = finished
    assert len(records) == 8
    assert any(record.scalars["reached"] for record in records)
    for record in records:
        values, scalars = record.arrays["eigenvalues"], record.scalars
        assert values.shape == (10,)
        assert scalars["reached"] == (scalars["gradient_norm"] <= experiment.tolerance)
        assert (record.notes["reason"] == "gradient below tolerance") == bool(
            scalars["reached"]
        )
        critical = scalars["loss"] if scalars["reached"] else np.nan
        assert scalars["critical_loss"] == pytest.approx(critical, nan_ok=True)
        positive, negative = (
            (values > scalars["floor"]).sum(),
            (values < -scalars["floor"]).sum(),
        )
        assert (scalars["positive"], scalars["negative"]) == (positive, negative)
        assert scalars["zero"] == 10 - positive - negative
        assert scalars["minimal_ratio"] == pytest.approx(positive / 10)
        assert scalars["minimal_ratio_nonzero"] == pytest.approx(
            positive / (positive + negative)
        )
        above_rounding = (values > scalars["noise_floor"]).sum() / 10
        assert scalars["ratio_above_rounding"] == pytest.approx(above_rounding)
        assert scalars["floor"] >= scalars["noise_floor"]


def test_an_inexact_critical_point_leaves_signs_open() -> None:
    """At x = 0.001 the gradient of x^4 is 4e-9 and the second derivative 1.2e-5: it is
    zero at x = 0.
    """
    network = torch.nn.Linear(1, 1, bias=False).double()
    tensors = {"weight": torch.tensor([[[1e-3]], [[0.0]]], dtype=torch.float64)}
    one = torch.ones(1, 1, dtype=torch.float64)
    eigenvalues = np.array([[1.2e-5], [0.0]])
    fourth: Any = lambda output, target: (output**4).mean()  # noqa: E731
    shift = _shift(
        Replicas(network, tensors),
        np.array([True, False]),
        eigenvalues,
        fourth,
        (one, one),
    )
    assert 1e-6 < shift[0] <= 1.2e-5
    assert shift[1] == 0.0


def test_networks_that_diverge_are_recorded_as_such() -> None:
    labs = run(small(weight_decays=(0.0,), learning_rate=1e20))
    assert [labs[0].texts[seed]["reason"] for seed in SEEDS] == [
        "diverged in training"
    ] * len(SEEDS)
    assert all(labs[0].scalars[seed] == {"reached": 0.0} for seed in SEEDS)
    assert set(ZeroGradient().figures(records_of(labs))) == {
        "ratio",
        "reached",
        "spectra",
    }


def test_the_figures_show_every_trial_once(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(records)
    assert list(figures) == ["ratio", "reached", "spectra"]
    for name in ("ratio", "reached"):
        assert len(figures[name].table["seed"]) == len(records)
        ended = figures[name].table["ended at"]
        assert ended.count(drawn.CRITICAL) == sum(
            record.scalars["reached"] for record in records
        )
        labels = [
            text.get_text()
            for ax in figures[name].figure.axes
            for text in ax.get_legend().get_texts()
        ]
        assert sum(int(label.split()[0]) for label in labels) == len(records)
    assert figures["ratio"].figure.axes[0].get_xlabel() == (
        "loss at the end of the search"
    )
    assert figures["reached"].figure.axes[0].get_yscale() == "log"
    rows = sum(
        min(3, 3 * any(r.scalars["reached"] for r in records.where(**c)))
        for c in records.conditions
    )
    assert len(figures["spectra"].table["rank"]) == 10 * rows
    assert set(ZeroGradient().figures(Records(()))) == set(figures)


def test_gradient_flat_points_are_told_from_the_others(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, _ = finished
    record = records[0]
    for reached, reason, kind in (
        (1.0, "gradient below tolerance", drawn.CRITICAL),
        (0.0, "gradient-flat: ||Hg|| / (||H|| ||g||) = 1e-9", drawn.FLAT),
        (0.0, "iterations used up", drawn.OTHER),
    ):
        scalars = {**record.scalars, "reached": reached}
        changed = dataclasses.replace(record, scalars=scalars, notes={"reason": reason})
        assert drawn._kind(changed) == kind
