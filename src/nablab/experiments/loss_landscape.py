"""The error surface around solutions: lines and planes through weight space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Figure,
    Lab,
    Record,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.data.fields import TaskField
from nablab.errors import UsageError
from nablab.models.fields import Activation, NetworkField
from nablab.settings import Distinct, Ge, Le, Positive, Samples, Steps

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data.tasks import Task

# 571 parameters each, for functions of one variable.
NETWORKS: Mapping[str, str] = {"deep": "1-5-10-10-10-10-10-5-1", "shallow": "1-190-1"}
# Images in one call; the first layer of LeNet takes 75 MB for them.
AT_ONCE = 4_000
# Of one seed: three initial weights; B and C are there to be compared with A.
SOLUTIONS = ("A", "B", "C")
# What is recorded of every trial, NaN where a network diverged.
METRICS = (
    "train_loss",
    "held_out_loss",
    "line_rise",
    "barrier",
    "nonconvex_share",
    "path_explained",
    "path_beyond_walk",
    "path_error",
    "plane_interval",
)


@dataclass(frozen=True)
class LossLandscape(Experiment):
    """What does the error surface look like where training starts, passes and ends?

    A network of 571 weights has a loss on a space of 571 dimensions, and a picture has
    two. Every picture here is a cut through that space, and what it shows depends on
    the cut.

    The straight line from the initial weights to the solution was the first to be
    drawn. Goodfellow et al. (2015) found that the loss falls along it without a bump,
    on all networks they tried, although no training path is straight. Later work found
    exceptions (Lucas et al. 2021). The line between two solutions is another matter:
    there the loss climbs (Frankle et al. 2020 measure the climb as a barrier), partly
    because two networks may compute the same with their hidden units in another order.
    Random planes need a scale: double one ReLU layer and halve the next, and the
    function stays while all slopes change. Li et al. (2018) give every filter of a
    direction the norm of the weights' filter, which undoes that. They found that depth
    makes surfaces less convex. The plane of a path's two principal components shows the
    path best, but a random walk of 41 steps would fill it by 90 %, too, so a path that
    looks flat proves nothing by itself (Antognini and Sohl-Dickstein 2018).

    Three networks per seed learn from different initial weights: A is measured, B and C
    are there to be compared with. The plane of the path carries circles: the distance
    of each point from the plane, to scale. Where a circle is wide, the colors under the
    point are not its loss.

    What to expect (10 seeds, 10,000 steps). On sinc 16 of 20 lines fall without a bump
    of 1 %. On sign_sin 18 of 20 climb, up to eight times the initial loss: the claim of
    2015 does not carry over to a target with jumps. Between solutions every line has a
    barrier, 1 to 200 times the variance of the targets: a network halfway is worse than
    a constant. Around the deep network 54 % of the random plane is not convex, around
    the shallow one 32 %. Two components hold 86 to 99.6 % of a path: the deep one on
    sinc is no flatter than a random walk.

    The preset mnist asks the same of images: cross-entropy, minibatches, lines on the
    first images of both splits, planes on random training images. All 16 lines fall.
    Between two LeNets the loss rises by 0.80 of the best constant's, between two
    networks of one hidden layer by 0.14.

    Running time on two cores: quick and standard about half a minute, mnist six
    minutes, paper ten.

    Attributes:
        targets: What to learn: a function (sinc, sign_sin, quadratic_sine or an
            expression of x), or images (mnist, digits, a folder; mnist@10000 for
            fewer).
        networks: For functions names (deep, shallow: 571 parameters each) or widths
            such as 1-30-30-1; for images lenet, 784-100-10 or other image networks.
        activation: Activation of the hidden layers.
        learning_rate: Learning rate of Adam.
        batch_size: Samples per step; none for the full batch.
        steps: Optimizer steps.
        subset: Images on which lines and planes are measured; functions are measured on
            all points.
        resolution: Points along each side of a plane, an odd number.
        extent: Half the side of the random plane; at 1 a step is as long as the weights
            of a filter.
        alphas: Points on a line, from -0.5 to 1.5.
        path_points: Points of the training path that are kept.
    """

    topic: ClassVar[str] = "optimization"

    targets: Annotated[tuple[TaskField, ...], Distinct()] = ("sinc", "sign_sin")
    networks: Annotated[tuple[NetworkField, ...], Distinct()] = ("deep", "shallow")
    activation: Activation = "leaky_relu"
    learning_rate: Positive = 1e-3
    batch_size: Samples | None = None
    steps: Steps = 10_000
    subset: Annotated[int, Ge(20), Le(10**9)] = 1_000
    resolution: Annotated[int, Ge(5), Le(1_001)] = 25
    extent: Positive = 1.0
    alphas: Annotated[int, Ge(5), Le(10_001)] = 81
    path_points: Annotated[int, Ge(3), Le(10_000)] = 40

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "targets": ("sinc",),
            "steps": 4_000,
            "resolution": 21,
            "alphas": 61,
            "seeds": 8,
        },
        "standard": {"seeds": 10},
        "paper": {"steps": 20_000, "resolution": 51, "alphas": 201, "seeds": 30},
        "mnist": {
            "targets": ("mnist",),
            "networks": ("lenet", "784-100-10"),
            "activation": "relu",
            "batch_size": 128,
            "steps": 938,
            "resolution": 21,
            "alphas": 41,
            "seeds": 8,
        },
    }
    version: ClassVar[int] = 2
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_most(
            "line_rise",
            0.01,
            within="target",
            quantity="rise on the way, over the initial loss",
            sentence="From start to solution the loss never rises by 1 % of the "
            "initial one",
            answer=Answer(
                supported="on the straight line from the start to the solution the "
                "loss only falls",
                refuted="on the straight line from the start to the solution the loss "
                "climbs on the way",
                open="whether the loss only falls from the start to the solution",
            ),
        ),
        Claim.at_least(
            "barrier",
            0.1,
            quantity="barrier, over the best constant's loss",
            sentence="Between two solutions the loss rises by a tenth of the best "
            "constant's",
            answer=Answer(
                supported="between two solutions stands a barrier",
                refuted="between two solutions there is hardly a barrier",
                open="whether a barrier stands between two solutions",
            ),
        ),
        Claim.at_least(
            "path_beyond_walk",
            0.0,
            within="model",
            quantity="share held beyond a random walk's",
            sentence="Two directions hold more of the path than of a random walk",
        ),
        Claim.greater(
            "nonconvex_share",
            "deep",
            "shallow",
            by="model",
            smallest_effect=0.05,
            quantity="share of the plane that is not convex",
            sentence="The plane around the deep network's solution is less convex",
            answer=Answer(
                supported="the surface is less convex around a deep network",
                refuted="the surface is not less convex around a deep network",
                open="whether the surface is less convex around a deep network",
            ),
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="Goodfellow et al. 2015",
            setting="all networks that they tried",
            quantity="loss from the initial weights to the solution",
            value="falls without a bump",
        ),
        Reported(
            who="Lucas et al. 2021", quantity="the same", value="exceptions exist"
        ),
        Reported(
            who="Li et al. 2018",
            quantity="surface around the solution",
            value="less convex with depth",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "The mean of two solutions computes neither function. Why may the order of "
        "hidden units be to blame?",
        "Set extent=0.1. What happens to the difference between deep and shallow, and "
        "what does that say?",
        "Halve learning_rate and double steps. Do more of the lines fall without a "
        "bump?",
        "The random plane does not move the biases. What if they moved by their norm, "
        "too?",
        "On which share of the path do the circles reach the next contour? What is "
        "known of the loss there?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Goodfellow et al., Qualitatively characterizing network optimization, ICLR "
        "2015, arXiv:1412.6544.",
        "Li et al., Visualizing the loss landscape of neural nets, NeurIPS 2018, "
        "arXiv:1712.09913.",
        "Garipov et al., Loss surfaces, mode connectivity, fast ensembling, NeurIPS "
        "2018, arXiv:1802.10026.",
        "Antognini and Sohl-Dickstein, PCA of high dimensional random walks, NeurIPS "
        "2018, arXiv:1806.08805.",
        "Frankle et al., Linear mode connectivity and lottery tickets, ICML 2020, "
        "arXiv:1912.05671.",
        "Lucas et al., Analyzing monotonic linear interpolation, ICML 2021, "
        "arXiv:2104.11044.",
    )

    def validate(self) -> None:
        """Check that planes have a middle, and that networks take the targets."""
        if self.resolution % 2 == 0:
            raise UsageError(
                f"resolution={self.resolution} is impossible: it must be odd, so that "
                "the solution is a point of the grid."
            )
        for task in map(data.task, self.targets):
            specs = tuple(spec_of(network, task) for network in self.networks)
            compared = models.Networks(specs, activation=self.activation)
            compared.check(task, batch_sizes=[self.batch_size])

    def conditions(self) -> list[Condition]:
        """Combine every target with every network."""
        return [
            Condition(model=name, target=target)
            for target in self.targets
            for name in self.networks
        ]

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        task = data.task(str(condition["target"]))
        return self.builder(str(condition["model"]), task)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = data.task(str(trial.condition["target"]))
        return task.loss, task.prepared()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train three solutions per seed, then measure the surface around the first."""
        task = data.task(str(trials.condition["target"]))
        lab.note(*task.notes)
        recorder = training.WeightRecorder(every=max(1, self.steps // self.path_points))
        build = self.builder(str(trials.condition["model"]), task)
        result = lab.train(
            training.Supervised(build, task.loss),
            task.train(),
            training.Recipe(
                steps=self.steps,
                batch_size=self.batch_size,
                optimizer=training.Adam(learning_rate=self.learning_rate),
                prepare=task.prepare,
                train_samples=self.subset if task.data_set else None,
                eval_every=self.steps,
                probes=[recorder],
            ),
            seeds=[
                lab.seed(trial, f"weights of {name}")
                for trial in trials
                for name in SOLUTIONS
            ],
        )
        for place, trial in lab.each(enumerate(trials)):
            first = len(SOLUTIONS) * place
            own = result[first : first + len(SOLUTIONS)]
            lab.array(trial, "constant_loss", [task.constant_loss()])
            if not all(isfinite(outcome.final) for outcome in own):
                lab.record(trial, **dict.fromkeys(METRICS, nan), stop_reason="diverged")
                continue
            solutions = [outcome.module() for outcome in own]
            start = own[0].module()
            start.load_state_dict(recorder.path(first)[0])
            self._measure_lines(task, start, solutions, trial, lab)
            self._measure_planes(task, solutions, recorder.path(first), trial, lab)

    def builder(self, name: str, task: Task) -> Callable[[], nn.Module]:
        """Return what builds one fresh network of a condition."""
        spec, activation = spec_of(name, task), self.activation
        return lambda: models.network(
            spec, shape=task.shape, outputs=task.outputs, activation=activation
        )

    def _measure_lines(
        self,
        task: Task,
        start: nn.Module,
        solutions: Sequence[nn.Module],
        trial: Trial,
        lab: Lab,
    ) -> None:
        """Measure the line from the start to a solution, and that to another one."""
        from nablab.instruments import interpolate
        from nablab.instruments.landscape.shapes import largest_rise

        images = bool(task.data_set)
        few = self.subset if images else None
        sets = {
            "train": task.prepared(few),
            "held_out": task.prepared(few, held_out=True),
        }
        line, between = (
            interpolate(
                a,
                b,
                task.loss,
                sets,
                low=-0.5,
                high=1.5,
                count=self.alphas,
                metrics="accuracy" if images else (),
            )
            for a, b in ((start, solutions[0]), (solutions[0], solutions[1]))
        )
        lab.record(
            trial,
            train_loss=line.at(1.0),
            held_out_loss=line.at(1.0, data="held_out"),
            line_rise=largest_rise(line),
            barrier=between.barrier / task.constant_loss(),
        )
        for name, curve in (("line", line), ("between", between)):
            lab.array(trial, f"{name}_alpha", curve.alphas)
            for part, values in curve.values.items():
                lab.array(trial, f"{name}_{part}", values["loss"])
                if images:
                    lab.array(trial, f"{name}_{part}_accuracy", values["accuracy"])

    def _measure_planes(
        self,
        task: Task,
        solutions: Sequence[nn.Module],
        path: Sequence[Any],
        trial: Trial,
        lab: Lab,
    ) -> None:
        """Measure a random plane, that of the path, that through three solutions."""
        import numpy as np

        from nablab.instruments import loss_plane, random_walk_shares
        from nablab.instruments.landscape.shapes import (
            nonconvex_share,
            relative_interval,
        )

        first, second, third = solutions
        samples = task.prepared()
        few = self.subset if task.data_set and self.subset < len(samples[1]) else None
        around = partial(
            loss_plane,
            first,
            task.loss,
            samples,
            batch_size=AT_ONCE,
            resolution=self.resolution,
            seed=lab.seed(trial, "directions", by=()),
            subset=few,
        )
        plane = around(extent=self.extent)
        trail = around(path=path)
        three = around(through=[second, third])
        # From the solution.
        distances = np.sqrt((trail.path**2).sum(axis=1) + trail.path_error**2)
        explained = float(trail.explained.sum())
        walk = float(random_walk_shares(len(path), "last")[:2].sum())
        lab.record(
            trial,
            nonconvex_share=nonconvex_share(plane),
            path_explained=explained,
            path_beyond_walk=explained - walk,
            path_error=float(trail.path_error.max() / distances.max()),
            plane_interval=relative_interval(plane),
        )
        for name, measured in (("plane", plane), ("trail", trail), ("three", three)):
            lab.array(trial, f"{name}_alphas", measured.alphas)
            lab.array(trial, f"{name}_betas", measured.betas)
            lab.array(trial, f"{name}_values", measured.losses)
        lab.array(trial, "trail_marks", trail.path)
        lab.array(trial, "trail_errors", trail.path_error)
        lab.array(trial, "three_marks", three.models)

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Give the loss of the mean, and what two directions hold of a random walk."""
        from nablab.instruments import random_walk_shares

        walk = float(random_walk_shares(self.path_points + 1, "last")[:2].sum())
        constants = {
            spec: records.where(target=spec).shared_array("constant_loss")
            for spec in self.targets
        }
        means = {
            f"{spec}: best constant": float(loss[0])
            for spec, loss in constants.items()
            if loss is not None
        }
        return {
            "train_loss": means,
            "path_explained": {"random walk of as many points": walk},
        }

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw the two lines, then the three planes of the first seed."""
        figures = {
            "line": _lines(
                records,
                "line",
                x_label="alpha (0: initial weights, 1: solution)",
                title="From the start to the solution",
                caption="See where lines rise between the two vertical ones: a "
                "straight way down is no rule.",
            ),
            "between": _lines(
                records,
                "between",
                x_label="alpha (0: solution A, 1: solution B)",
                title="Between two solutions",
                caption="Both ends are low. See how far the middle lies above them.",
            ),
            "plane": plots.surfaces(
                records,
                "plane",
                title="Random plane around a solution",
                caption="The cross is the solution; a step of 1 is as long as each "
                "filter's weights.",
            ),
            "path": plots.surfaces(
                records,
                "trail",
                marks="path",
                equal=True,
                title="The plane of the path",
                labels=("principal component 1", "principal component 2"),
                caption="From the open circle to the cross. The thin circle around a "
                "point is its distance from the plane, to scale: where it is "
                "wide, the colors are not the point's loss.",
            ),
            "solutions": plots.surfaces(
                records,
                "three",
                marks="letters",
                equal=True,
                labels=("distance", "distance"),
                title="The plane through three solutions",
                caption="A, B and C started from different weights. See the ridge "
                "between any two of them.",
            ),
        }
        if panels := _accuracy_panels(records):
            figures["accuracy"] = plots.line_panels(
                panels,
                title="Accuracy along both lines",
                caption="See how short the way is on which a solution keeps its "
                "accuracy.",
            )
        return figures


def _lines(
    records: Records, line: str, *, x_label: str, title: str, caption: str
) -> Figure:
    """Draw the training and the held-out loss along one of the two lines."""
    kinds = ["cross-entropy" if _scored(record) else "MSE" for record in records]
    return plots.lines(
        records,
        f"{line}_alpha",
        f"{line}_train",
        more={"held_out": f"{line}_held_out"},
        y_label=f"training loss ({', '.join(dict.fromkeys(kinds))})",
        x_label=x_label,
        title=title,
        caption=caption,
    )


def _accuracy_panels(records: Records) -> list[plots.LinePanel]:
    """Collect the accuracies along both lines, of those targets that have any."""
    scored = Records(record for record in records if _scored(record))
    return [
        plots.LinePanel(
            f"{name}: {spec}",
            f"{part} accuracy",
            plots.lines_of(
                scored.where(target=spec),
                f"{array}_alpha",
                f"{array}_{key}_accuracy",
                by="model",
            ),
            limits=(0.0, 1.0),
        )
        for spec in scored.levels("target")
        for array, name in (("line", "start to solution"), ("between", "A to B"))
        for key, part in (("train", "training"), ("held_out", "test"))
    ]


def _scored(record: Record) -> bool:
    """Tell whether a trial has accuracies, as those of images have."""
    return "line_train_accuracy" in record.arrays


def spec_of(network: str, task: Task) -> str:
    """Return the layers of a network.

    ``deep`` and ``shallow`` are known for functions.
    """
    return network if task.data_set else NETWORKS.get(network, network)
