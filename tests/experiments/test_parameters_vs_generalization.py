"""Parameters against generalization: what it records is recomputed here, and its
settings are checked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, models, training
from nablab.contract import Records, Trials
from nablab.contract.configuration import parse_overrides, resolve
from nablab.errors import UsageError
from nablab.experiments.parameters_vs_generalization import (
    DESCENT,
    FEATURES,
    ONE,
    PAIRS,
    TAPERED,
    ParametersVsGeneralization,
)
from tests.experiments.memory import Memory


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> ParametersVsGeneralization:
    values = {
        "hidden": ("4", "12", "40", "6-5"),
        "epochs": 3,
        "ratios": (0.1, 0.5, 1.0, 2.0),
        "samples": 60,
        "descent_epochs": 5,
    }
    return resolve(ParametersVsGeneralization, "quick", {**values, **overrides})


def run(
    experiment: ParametersVsGeneralization, seeds: Sequence[int] = (0, 1)
) -> list[Memory]:
    labs = []
    for condition in experiment.conditions():
        labs.append(Memory(condition))
        experiment.run(Trials([condition], seeds), labs[-1])  # type: ignore[arg-type]
    return labs


@pytest.fixture(scope="module")
def finished() -> tuple[ParametersVsGeneralization, list[Memory]]:
    experiment = small()
    return experiment, run(experiment)


@pytest.fixture(scope="module")
def records(finished: tuple[ParametersVsGeneralization, list[Memory]]) -> Records:
    return Records(record for lab in finished[1] for record in lab.records())


class TestConfiguration:
    def test_the_sizes_are_those_that_were_reported(self) -> None:
        sizes = {
            str(c["hidden"]): c["parameters"]
            for c in resolve(ParametersVsGeneralization, "paper", {}).conditions()
            if "hidden" in c
        }
        assert (sizes["50"], sizes["2000"]) == (39_760, 1_590_010)
        assert (sizes["5-9"], sizes["350-600"]) == (4_079, 491_360)
        assert {*PAIRS, *TAPERED} <= set(sizes)
        assert TAPERED[0] == "2-1"
        assert TAPERED[-1] == "22-11"
        assert len(TAPERED) == 11

    def test_the_presets(self) -> None:
        standard = resolve(ParametersVsGeneralization, "standard", {})
        assert (standard.data, standard.epochs, standard.batch_size) == (
            "mnist",
            10,
            600,
        )
        assert len([hidden for hidden in standard.hidden if hidden.isdecimal()]) == 10
        assert resolve(ParametersVsGeneralization, "quick", {}).data == "digits"
        assert {
            c["part"]
            for c in resolve(ParametersVsGeneralization, "converged", {}).conditions()
        } == {ONE}

    def test_sizes_are_ordered_and_marked(self) -> None:
        sizes = [
            c
            for c in small(hidden=("200", "3", "6-5", "20")).conditions()
            if "hidden" in c
        ]
        assert [(c["hidden"], c["part"], c["size"]) for c in sizes] == [
            ("3", ONE, "up to 10,000"),
            ("20", ONE, "above 10,000"),
            ("200", ONE, "above 10,000"),
            ("6-5", "2 hidden layers", "up to 10,000"),
        ]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"epochs": 0}, "epochs=0 is impossible"),
            ({"learning_rate": math.inf}, "learning_rate=inf is impossible"),
            ({"hidden": (), "ratios": ()}, "There is nothing to run"),
            ({"hidden": (), "noise": ()}, "There is nothing to run"),
            ({"hidden": ("5", "5")}, "hidden names 5 twice: give each one once."),
            ({"ratios": (1.0, 1.0)}, "ratios names 1.0 twice: give each one once."),
            (
                {"ratios": (0.0,)},
                "ratios=0.0 is impossible: it must be above 0 and at most 100",
            ),
            ({"noise": (1.5,)}, "noise=1.5 is too large: it must be at most 1"),
            ({"hidden": ("5-x",)}, "is not a list of layer widths"),
            ({"data": "minst"}, "Did you mean 'mnist'"),
        ],
    )
    def test_what_cannot_work_is_refused_before_any_work(
        self, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            small(**settings)

    def test_more_samples_than_images_are_refused(self) -> None:
        experiment = small(hidden=(), samples=5_000)
        with pytest.raises(
            UsageError, match="samples=5000 is too many: digits has 1,297 images"
        ):
            run(experiment)

    def test_settings_from_the_command_line(self) -> None:
        settings = parse_overrides(
            ParametersVsGeneralization, ["hidden=5,10-20", "ratios=0.5,1", "noise=0.1"]
        )
        experiment = resolve(ParametersVsGeneralization, "quick", settings)
        assert (experiment.hidden, experiment.ratios, experiment.noise) == (
            ("5", "10-20"),
            (0.5, 1.0),
            (0.1,),
        )


class TestClaims:
    def test_levels_are_those_of_the_configuration(self) -> None:
        pairs = [
            (c.first, c.second) for c in small().active_claims() if c.by == "hidden"
        ]
        assert pairs == [("40", "4"), ("40", "12"), ("40", "12")]

    def test_published_values_stand_only_beside_their_own_setting(self) -> None:
        def published(preset: str, **settings: Any) -> list[float]:
            claims = resolve(
                ParametersVsGeneralization, preset, settings
            ).active_claims()
            return [claim.published.value for claim in claims if claim.published]

        assert published("standard") == [0.9816]
        assert published("quick") == []
        assert published("standard", epochs=100) == []
        assert published("standard", data="fashion-mnist") == []

    def test_claims_without_their_levels_are_dropped(self) -> None:
        metrics = {claim.by for claim in small(noise=(0.1,)).active_claims()}
        assert metrics == {"parameters", "hidden"}
        ratios = [
            (c.first, c.second) for c in small().active_claims() if c.by == "ratio"
        ]
        assert ratios == [(1.0, 0.5), (1.0, 2.0), (0.5, 0.1), (1.0, 0.5)]
        assert {c.by for c in small(hidden=("5", "10")).active_claims()} == {
            "parameters",
            "ratio",
        }

    def test_standard_can_decide_with_five_seeds(self) -> None:
        """The smallest p of two groups of five is 1 in 252; Holm multiplies it by the
        number of tests.
        """
        experiment = resolve(ParametersVsGeneralization, "standard", {})
        claims = experiment.active_claims()
        # two parts have sizes
        tests = len(claims) + sum(bool(claim.within) for claim in claims)
        assert tests / 252 < 0.05


class TestSizes:
    def test_the_scores_are_those_of_the_networks(
        self, finished: tuple[Any, list[Memory]]
    ) -> None:
        lab = finished[1][1]
        assert lab.condition["hidden"] == "12"
        for split in ("train", "test"):
            images = data.load("digits", split=split, size=28, channels=1)
            outputs = lab.result.predict(images.images)
            for k in range(2):
                accuracy = float(
                    (outputs[k].argmax(1) == images.labels).double().mean()
                )
                loss = float(
                    torch.nn.functional.cross_entropy(outputs[k], images.labels)
                )
                # The lab's precision may be bfloat16, predict's is float32.
                assert lab.scalars[k][f"{split}_accuracy"] == pytest.approx(
                    accuracy, abs=0.01
                )
                assert lab.scalars[k][f"{split}_loss"] == pytest.approx(loss, rel=0.02)
        scalars = lab.scalars[0]
        assert (
            scalars["accuracy_gap"]
            == scalars["train_accuracy"] - scalars["test_accuracy"]
        )

    def test_the_network_has_the_stated_parameters_and_no_activation_on_the_logits(
        self, finished: tuple[Any, list[Memory]]
    ) -> None:
        for lab in finished[1]:
            if "hidden" in lab.condition and lab.asked:
                network = lab.options["build"]()
                assert (
                    sum(p.numel() for p in network.parameters())
                    == lab.condition["parameters"]
                )
                assert isinstance(network[-1], torch.nn.Linear)

    def test_training_never_sees_the_test_split(
        self, finished: tuple[Any, list[Memory]]
    ) -> None:
        test = {
            image.tobytes()
            for image in data.load("digits", split="test", size=28).images.numpy()
        }
        images, _ = finished[1][0].options["data"]
        shared = sum(image.tobytes() in test for image in images.numpy())
        assert len(images) == 1_297
        assert shared == 0
        assert not finished[1][0].options.get("stop")

    def test_weights_differ_by_seed_and_size(
        self, finished: tuple[Any, list[Memory]]
    ) -> None:
        seeds = [
            seed for lab in finished[1] if lab.asked for seed in lab.options["seeds"]
        ]
        assert len(set(seeds)) == len(seeds)


class TestThreshold:
    def test_the_width_follows_from_the_ratio(
        self, finished: tuple[Any, list[Memory]]
    ) -> None:
        for lab in finished[1]:
            if lab.condition["part"] != DESCENT or not lab.asked:
                continue
            parameters = sum(p.numel() for p in lab.options["build"]().parameters())
            assert lab.scalars[0]["fitted_parameters"] == parameters
            # A unit has 64 + 1 + 10 parameters; the nearest width is at most half a
            # unit off, and the ten biases of the output.
            assert abs(parameters - float(lab.condition["ratio"]) * 600) <= 75 / 2 + 10

    def test_trained_networks_and_random_features_get_the_same_images_and_labels(
        self,
    ) -> None:
        experiment = small(hidden=(), ratios=(1.0,), samples=40)
        trained, solved = run(experiment, seeds=(3,))
        images, labels = trained.options["data"]
        assert images.shape == (40, 1, 8, 8)
        # With as many features as make interpolation certain the twin reproduces
        # exactly these labels.
        mine = data.load("digits", size=8).hold_out(
            40, seed=training.derive("samples", 0)
        )[1]
        noisy = data.corrupt(
            mine.labels, 0.2, classes=10, seed=training.derive("labels", "0.2", 3)
        ).labels
        torch.testing.assert_close(images, mine.images)
        torch.testing.assert_close(labels[0], noisy)
        assert (labels[0] != mine.labels).any()
        assert solved.scalars[3]["fitted_parameters"] == 400

    def test_errors_count_against_noisy_labels_in_training_and_true_ones_in_the_test(
        self, finished: tuple[Any, list[Memory]]
    ) -> None:
        lab = next(lab for lab in finished[1] if lab.condition["part"] == DESCENT)
        test = data.load("digits", split="test", size=8)
        images, labels = lab.options["data"]
        for x, y, name in (
            (images, labels, "train"),
            (test.images, test.labels, "test"),
        ):
            wrong = (lab.result.predict(x).argmax(2) != y).double().mean(1)
            assert [lab.scalars[k][f"{name}_error"] for k in range(2)] == pytest.approx(
                wrong.tolist()
            )

    def test_the_twin_is_recomputed(self) -> None:
        experiment = small(hidden=(), ratios=(2.0,), samples=40)
        lab = run(experiment, seeds=(3,))[1]
        train = data.load("digits", size=8)
        mine, test = (
            train.hold_out(40, seed=training.derive("samples", 0))[1],
            data.load("digits", split="test"),
        )
        noisy = data.corrupt(
            mine.labels, 0.2, classes=10, seed=training.derive("labels", "0.2", 3)
        ).labels
        seed = training.derive("directions", *map(str, lab.condition.values()), 3)
        drawn = (
            torch.randn(80, 64, generator=training.generator(seed), dtype=torch.float64)
            / 8
        )
        phi, phi_test = (
            (train.normalize(x).flatten(1).double() @ drawn.T).clamp(min=0)
            for x in (mine.images, test.images)
        )
        goal, truth = (torch.eye(10).double()[y] - 0.1 for y in (noisy, test.labels))
        guess = phi_test @ torch.linalg.pinv(phi) @ goal
        assert lab.scalars[3]["test_mse"] == pytest.approx(
            float((guess - truth).square().mean()), rel=1e-6
        )
        wrong = float((guess.argmax(1) != test.labels).double().mean())
        assert lab.scalars[3]["test_error"] == pytest.approx(wrong)
        assert lab.scalars[3]["train_error"] == 0
        assert lab.scalars[3]["train_mse"] == pytest.approx(0, abs=1e-12)

    def test_the_peak_of_the_twin_stands_at_the_threshold(
        self, records: Records
    ) -> None:
        own = records.where(part=FEATURES)
        errors = {r: own.where(ratio=r).values("test_mse") for r in own.levels("ratio")}
        for seed in range(2):
            assert max(errors, key=lambda ratio: errors[ratio][seed]) == 1.0

    @pytest.mark.slow
    def test_double_descent_of_trained_networks(self) -> None:
        """Fresh seeds, quick settings: the test error rises to one half of N K and
        falls again.
        """
        experiment = resolve(
            ParametersVsGeneralization,
            "quick",
            {"hidden": (), "ratios": (0.1, 0.5, 8.0)},
        )
        found = {}
        for condition in experiment.conditions():
            if condition["part"] == DESCENT:
                lab = Memory(condition)
                experiment.run(Trials([condition], range(100, 108)), lab)  # type: ignore[arg-type]
                found[condition["ratio"]] = [
                    lab.scalars[seed]["test_error"] for seed in range(100, 108)
                ]
        low, peak, end = (np.mean(found[ratio]) for ratio in (0.1, 0.5, 8.0))
        assert peak > low + 0.01
        assert peak > end + 0.01


class TestReport:
    def test_the_baselines_are_those_of_the_classes(self, records: Records) -> None:
        found = {
            metric: next(iter(v.values()))
            for metric, v in small().baselines(records).items()
        }
        train, test = (
            data.load("digits", split=split).labels for split in ("train", "test")
        )
        shares = torch.bincount(train).double() / len(train)
        hit = float((test == int(shares.argmax())).double().mean())
        assert found["test_accuracy"] == pytest.approx(hit)
        assert found["test_error"] == pytest.approx(1 - hit)
        assert found["test_loss"] == pytest.approx(
            float(
                torch.nn.functional.cross_entropy(
                    shares.log().expand(len(test), 10), test
                )
            )
        )
        blind = (shares - torch.eye(10)[test]).square().mean()
        assert found["test_mse"] == pytest.approx(float(blind), rel=1e-6)

    def test_the_figures_say_what_they_show(self, records: Records) -> None:
        figures = small().figures(records)
        assert list(figures) == ["sizes", "gap", "descent", "twin"]
        assert {ax.get_ylabel() for ax in figures["sizes"].figure.axes} == {
            "accuracy",
            "loss",
        }
        table = figures["twin"].table
        pairs = zip(table["ratio"], table["series"], strict=True)
        assert [ratio for ratio, series in pairs if series == "mean"] == [
            0.1,
            0.5,
            1.0,
            2.0,
        ]
        assert "No runs" not in figures["sizes"].caption

    @pytest.mark.parametrize("parts", [{"hidden": ()}, {"ratios": ()}, {}])
    def test_incomplete_records_still_make_figures(self, parts: dict[str, Any]) -> None:
        experiment = dataclasses.replace(small(), **parts)
        assert experiment.figures(Records([]))

    def test_models_are_the_catalogues(self) -> None:
        assert models.parameter_count("784-50-10") == models.parameter_count_of(
            "mlp-50"
        )
