"""A small made-up experiment with synthetic records, as the store would give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nablab.contract import Claim, Condition, Curve, Experiment, Record, Records
from nablab.plots import Figure, curves, dots, predictions
from nablab.report.view import RunView
from nablab.verdicts import Outcome, Verdict

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FakeDepth(Experiment):
    """Does depth help at an equal number of parameters?

    A network with several hidden layers can fold its input: each layer of width two
    doubles the number of linear pieces, so `k` layers make 2^k teeth where one hidden
    layer needs 2^k units (Telgarsky 2016). Whether gradient descent finds such folds is
    another question.

    What to look for:

    - The loss of the deep network falls *sooner*, but its seeds spread wider.
    - On `sign_sin` no network is exact: a jump is not continuous.

    1. Equal sizes: 571, 572 and 571 parameters.
    2. Held-out points lie between the training points.
    """

    steps: int = 2_000
    learning_rate: float = 1e-3
    targets: tuple[str, ...] = ("sinc", "sign_sin")

    claims = (
        Claim.less(
            "held_out_mse",
            "deep",
            "shallow",
            by="model",
            within="target",
            scale="log10",
        ),
        Claim.less(
            "steps_to_0.001",
            "deep",
            "shallow",
            by="model",
            where={"target": "sinc"},
            scale="ranks",
        ),
    )
    exercises = (
        "Why does the shallow network fail on `sign_sin`? Plot its units before and "
        "after training.",
        "Give every network twice the parameters. Which verdicts change?",
    )
    references = (
        "Telgarsky (2016). Benefits of depth in neural networks. COLT. "
        "arXiv:1602.04485",
        "Eldan and Shamir (2016). The power of depth for feedforward neural networks. "
        "COLT.",
    )

    def conditions(self) -> list[Condition]:
        return [
            Condition(target=t, model=m)
            for t in self.targets
            for m in ("deep", "middle", "shallow")
        ]

    def figures(self, records: Records) -> dict[str, Figure]:
        baselines = {"mean of the targets": 0.2, "noise floor": 1e-5}
        return {
            "loss": curves(
                records,
                "train_loss",
                y_label="training loss (MSE)",
                caption="Depth falls first.",
            ),
            "predictions": predictions(
                records, caption="The jump of sign_sin is where all fail."
            ),
            "held_out_error": dots(
                records, "held_out_mse", baselines=baselines, caption="Lower is better."
            ),
            "steps": dots(records, "steps_to_0.001", y_label="steps to 0.001"),
        }

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        return {"held_out_mse": {"mean of the targets": 0.2, "noise floor": 1e-5}}


def truth_of(target: str, x: Floats) -> Floats:
    return np.sinc(5 * x) if target == "sinc" else np.sign(np.sin(5 * np.pi * x))


def fake_record(condition: Condition, seed: int, steps: int = 2_000) -> Record:
    levels = sorted(map(str, condition.values()))
    rng = np.random.default_rng([seed, *"".join(levels).encode()])
    rank = ["deep", "middle", "shallow"].index(str(condition.get("model", "deep")))
    hard = condition.get("target") == "sign_sin"
    floor = (5e-2 if hard else 2e-4) * 3**rank * rng.lognormal(0, 0.6)
    at = np.arange(steps)
    loss = (floor + 0.3 * np.exp(-at / (120 * (1 + rank)))) * rng.lognormal(
        0, 0.08, steps
    )
    x = np.linspace(-1, 1, 401)
    train_x = x[::2]
    true = truth_of(str(condition.get("target")), x)
    kernel = np.hanning(5 + 8 * rank)
    blurred = np.convolve(true, kernel / kernel.sum(), "same") + rng.normal(
        0, 0.03
    ) * np.cos(7 * x)
    reached = np.flatnonzero(loss < 1e-3)
    return Record(
        condition,
        seed,
        scalars={
            "train_mse": float(loss[-1]),
            "held_out_mse": float(np.mean((blurred - true) ** 2)),
            "steps_to_0.001": float(reached[0]) if len(reached) else float("inf"),
            "parameters": 571.0 + (rank == 1),
        },
        notes={"stopped": "budget"},
        curves={"train_loss": Curve(at, loss)},
        arrays={
            "x": x,
            "prediction": blurred[:, None],
            "truth": true,
            "train_x": train_x,
            "train_y": truth_of(str(condition.get("target")), train_x),
        },
    )


@pytest.fixture(scope="session")
def experiment() -> FakeDepth:
    return FakeDepth()


@pytest.fixture(scope="session")
def records(experiment: FakeDepth) -> Records:
    return Records(fake_record(c, s) for c in experiment.conditions() for s in range(5))


def fake_verdict(outcome: Outcome = "supported", **changes: Any) -> Verdict:
    facts: dict[str, Any] = {
        "claim": "The deep network has a lower held-out error than the shallow one "
        "(target sinc)",
        "scope": {"target": "sinc"},
        "outcome": outcome,
        "effect": -0.6,
        "interval": (-0.9, -0.3),
        "unit": "log10 ratio",
        "effect_text": "4.0 times lower (2.0 to 7.9)",
        "p_value": 0.004,
        "p_adjusted": 0.02,
        "seeds": 5,
        "seeds_needed": None,
        "reason": "The whole 95 % interval lies beyond the smallest effect of "
        "interest.",
        "smallest_effect": 0.2,
    }
    return Verdict(**{**facts, **changes})


def fake_view(experiment: Experiment, records: Records, **changes: Any) -> RunView:
    facts: dict[str, Any] = {
        "experiment": experiment,
        "preset": "quick",
        "run_id": "fake-depth-a1",
        "state": "done",
        "records": records,
        "verdicts": [fake_verdict()],
        "environment": {
            "nablab": "0.1.0",
            "torch": "2.12.0",
            "processor": "Abacus 9",
            "cores": 2,
            "threads": 1,
            "device": "cpu",
            "git": "",
            "seconds": 75.0,
        },
        "notes": ("sign_sin: two networks differ in size.",),
        "command": "nablab run fake-depth --preset quick --seeds 5",
        "seeds": 5,
    }
    return RunView(**{**facts, **changes})


@pytest.fixture(scope="session")
def view(experiment: FakeDepth, records: Records) -> RunView:
    return fake_view(experiment, records)
