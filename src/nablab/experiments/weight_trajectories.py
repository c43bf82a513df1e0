"""The paths of training through weight space, projected on their principal components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Le

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Lab,
    Level,
    Record,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.errors import UsageError
from nablab.settings.bounds import Samples, Steps

if TYPE_CHECKING:
    from torch import Tensor, nn

    # T points, each the tensors of a network by name
    Path = Sequence[Mapping[str, Any]]

# A course's recipe: 45 epochs of 60 steps, and the weights at the start and every 3
# epochs; 8 runs.
COURSE: Mapping[str, Any] = {
    "target": "mnist",
    "network": "784-10-20-10",
    "layer": 2,
    "activation": "relu",
    "learning_rate": 4e-4,
    "weight_decay": 1e-4,
    "batch_size": 1_000,
    "steps": 45 * 60,
    "points": 15,
    "seeds": 8,
}
OTHER = {"learning_rate": 1e-3, "batch_size": 128, "steps": 24 * 469, "points": 8}
STARTS = SHARED, OWN = "one start", "own starts"
SHOWN = 8  # runs per figure: as many as there are colors
DESCRIPTION = (
    *("explained_variance", "explained_variance_of_layer", "above_random_walk"),
    *(
        "mean_projection_error",
        "layer_agreement",
        "share_near_origin",
        "share_near_mean",
    ),
)
IN_IMAGES = "test error (1 - accuracy); numbers: final test accuracy"
UNITS = {"units as trained": "end_distance", "units matched": "end_distance_matched"}
COMPARISON = ("end_distance", "end_distance_matched", "matched_share", "matching_gain")


@dataclass(frozen=True)
class WeightTrajectories(Experiment):
    """Where does training go in weight space?

    A network of P weights is a point in P dimensions, and training draws a path. To see
    it, project it on its principal components: with the T centered points as the rows
    of X, the Gram matrix XXᵀ = VΛVᵀ (T × T) gives the coordinates VΛ^½ and, in Λ, the
    share of each component. Two components seem to hold most of a path's variation.
    That is less than it seems: a random walk in many dimensions has 6/π² + 6/(2π)² = 76
    % there (Antognini and Sohl-Dickstein 2018). Every path looks flat. The order of
    hidden units is arbitrary, so distances say little before units are matched
    (Ainsworth et al. 2023).

    Each seed trains a run and a partner. With one start, only the order of samples
    differs, and claims hold for that start. Distances are divided by √(‖a‖² + ‖b‖²): 1
    for random vectors. ``layer_agreement`` is 1 if one picture becomes the other by
    moving, turning, mirroring and scaling (Procrustes).

    What to expect of sinc (16 seeds). Two components hold 88 % (one start) and 91 %
    (own starts) of a path, 12 and 15 points more than of a random walk, yet they miss a
    third of a point's distance from the mean. Layer 4 agrees with the whole by 0.93 and
    0.96. Runs from one start end at a distance of 0.43, others at 1.00, or 0.73 with
    units matched; but untrained networks come as close (0.75), by choice of the order.

    A random walk has a third of its points within half its radius. Beware of the joint
    picture: eight runs from own starts are nearly orthogonal, seven components hold 13
    to 15 % each. All end 9 to 10 from the mean, and in the plane some end 2 from it.

    Running time on two cores: quick and standard under half a minute, mnist two
    minutes, paper more.

    Attributes:
        target: What to learn: sinc or an expression of x as in deep-vs-shallow; mnist,
            digits or your images.
        network: The dense network by its widths; images of 28 x 28 pixels are 784
            inputs.
        layer: The layer whose weights and biases are looked at alone, counted from 1.
        activation: Activation of the hidden layers.
        optimizer: Optimizer.
        learning_rate: Learning rate.
        weight_decay: Weight decay.
        batch_size: Samples per step. Batches are what tells runs from one start apart.
        steps: Optimizer steps.
        points: The weights are kept at the start and so many times after it, at equal
            distances.
    """

    topic: ClassVar[str] = "optimization"

    version: ClassVar[int] = 2

    target: str = "sinc"
    network: str = "1-10-20x6-1"
    layer: Annotated[int, Le(1_000)] = 4
    activation: Literal[
        "leaky_relu", "relu", "tanh", "sigmoid", "gelu", "silu", "elu"
    ] = "leaky_relu"
    optimizer: Literal["Adam", "AdamW", "RMSprop", "SGD"] = "Adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: Samples = 50
    steps: Steps = 3_600
    points: Annotated[int, Le(10_000)] = 40

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"steps": 1_200, "seeds": 8},
        "standard": {"seeds": 16},
        "paper": {"steps": 12_000, "seeds": 30},
        "sgd": {
            "optimizer": "SGD",
            "learning_rate": 0.05,
            "steps": 12_000,
            "seeds": 16,
        },
        "mnist": COURSE,
        "mnist-wide": {**COURSE, "network": "784-500-50-10"},
        "mnist-deep": {**COURSE, **OTHER, "network": "784-256-128-64-10"},
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_least(
            "explained_variance",
            0.4,
            within="start",
            sentence="Two components hold at least 40 % of a path's variation (Li et "
            "al. 2018)",
        ),
        Claim.at_least(
            "above_random_walk",
            0.0,
            within="start",
            quantity="share held beyond a random walk's",
            sentence="Two components hold more of a path than of a random walk of as "
            "many points",
            answer=Answer(
                supported="the path of training is flatter than a random walk: two "
                "directions hold more of it",
                refuted="the path of training is no flatter than a random walk",
                open="whether the path is flatter than a random walk",
            ),
        ),
        Claim.at_least(
            "layer_agreement",
            0.9,
            within="start",
            sentence="The picture of one layer looks like that of the whole network",
        ),
        Claim.at_least(
            "share_near_origin",
            0.5,
            within="start",
            sentence="Paths are dense near the origin: most points are within half "
            "their radius",
        ),
        Claim.less(
            "end_distance",
            SHARED,
            OWN,
            by="start",
            smallest_effect=0.05,
            sentence="Runs from one start end closer together than runs from different "
            "starts",
            answer=Answer(
                supported="runs from one start end closer together than others",
                refuted="runs from one start end no closer together than others",
                open="whether runs from one start end closer together",
            ),
        ),
        Claim.at_most(
            "matched_share",
            0.9,
            where={"start": OWN},
            sentence="Matching the hidden units brings ends of different starts a "
            "tenth closer",
        ),
        Claim.at_least(
            "matching_gain",
            0.0,
            where={"start": OWN},
            sentence="Matching brings the ends closer by more than it brings the "
            "starts closer",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="Li et al. 2018",
            quantity="share of a path's variation in two components",
            value="0.4 to 0.9",
        ),
        Reported(
            who="Antognini and Sohl-Dickstein 2018",
            setting="random walk in many dimensions, formula",
            quantity="share of a path's variation in two components",
            value=0.76,
        ),
        Reported(
            who="one course", quantity="points of a path", value="dense near the origin"
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Project a random walk in 2,361 dimensions with trajectory_pca. Could you tell "
        "it from a run?",
        "Take --preset sgd. Which paths become straighter, and what does a straight "
        "path say about the loss?",
        "Set layer=1 and then layer=8. Which layer alone looks most like the whole, "
        "and is it the largest?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Li et al., Visualizing the loss landscape of neural nets, NeurIPS 2018, "
        "arXiv:1712.09913.",
        "Antognini, Sohl-Dickstein, PCA of high dimensional random walks, NeurIPS "
        "2018, arXiv:1806.08805.",
        "Ainsworth et al., Git Re-Basin: merging modulo permutation symmetries, ICLR "
        "2023, arXiv:2209.04836.",
    )

    def validate(self) -> None:
        """Check the numbers, the target, the network, and that the layer is one of its."""
        for key in ("learning_rate", "batch_size", "steps"):
            if not 0 < getattr(self, key) < float("inf"):
                raise UsageError(
                    f"{key}={getattr(self, key)} is impossible: it must be above 0 and "
                    "finite."
                )
        if self.weight_decay < 0:
            raise UsageError(
                f"weight_decay={self.weight_decay} is impossible: it must not be "
                "negative."
            )
        if not 2 <= self.points <= self.steps:
            raise UsageError(
                f"points={self.points} is impossible: it must be from 2 to "
                f"steps={self.steps}."
            )
        task, layers = (
            data.task(self.target),
            len(models.parse_widths(self.network)) - 1,
        )
        models.check_network(self.network, shape=task.shape, outputs=task.outputs)
        if not 1 <= self.layer <= layers or layers == 1:
            has = (
                f"network={self.network} has {layers} layers, and at least 2 are needed"
            )
            raise UsageError(f"layer={self.layer} is impossible: {has}.")

    def data_sets(self) -> tuple[str, ...]:
        """The images, if it is images that are learned."""
        return data.image_sets([self.target])

    def conditions(self) -> list[Condition]:
        """Runs from one start, and runs from starts of their own."""
        return [Condition(start=start) for start in STARTS]

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.builder(None)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = data.task(self.target)
        return task.loss, task.prepared()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train two networks per seed: a run, and a partner to hold it against."""
        condition = trials.condition
        task, runs = data.task(self.target), len(trials)
        recorder = training.WeightRecorder(
            every=self.steps // self.points, replicas=runs
        )
        # all that is needed of partners
        ends = training.WeightRecorder(every=self.steps)
        optimizer = getattr(training, self.optimizer)
        build = self.builder(
            lab.shared_seed("shared start") if condition["start"] == SHARED else None
        )
        result = lab.train(
            training.Supervised(build, task.loss),
            task.train(),
            training.Recipe(
                steps=self.steps,
                batch_size=self.batch_size,
                optimizer=optimizer(
                    learning_rate=self.learning_rate, weight_decay=self.weight_decay
                ),
                prepare=task.prepare,
                held_out={task.held_out_name: task.held_out()},
                eval_every=recorder.every,
                probes=[recorder, ends],
            ),
            seeds=[
                lab.seed(trial, role) for role in ("run", "partner") for trial in trials
            ],
        )
        for note in task.notes:
            lab.note(note)
        found = result.evaluations
        shown = 1 - found["test_accuracy"] if task.data_set else found["train_loss"]
        for k, trial in enumerate(trials):
            path, partner = recorder.path(k), ends.path(k + runs)
            losses = result.final[[k, k + runs]].tolist()  # NaN if diverged
            lab.record(
                trial,
                stop_reason=result.stop_reason[k],
                **dict.fromkeys(DESCRIPTION + COMPARISON, nan),
            )
            lab.array(trial, "path", training.path_array(path))
            lab.array(trial, "shown", shown[k])
            for name, values in found.items():
                lab.array(trial, name, values[k])
                lab.record(trial, **{name: values[k, -1]})
            if isfinite(losses[0]) and self._moves(path):
                self._describe(path, recorder.steps, trial, lab)
            if isfinite(sum(losses)):
                lab.record(trial, **self._compare(path, partner))

    def builder(self, start: int | None) -> Callable[[], nn.Module]:
        """What builds one network; the same one each time where ``start`` gives a seed."""
        if start is None:
            task = data.task(self.target)
            form: Any = {
                "shape": task.shape,
                "outputs": task.outputs,
                "activation": self.activation,
            }
            return lambda: models.network(self.network, **form)
        return training.SharedStart(self.builder(None), start)

    def _describe(self, path: Path, steps: Any, trial: Trial, lab: Lab) -> None:
        """Record what two components show of one path: of the whole network and of one
        layer.
        """
        from scipy.spatial import procrustes

        whole, layer = _pca(path), _pca(path, self._layer_names(path))
        shares = [
            float(pca.explained_variance_ratio[:2].sum()) for pca in (whole, layer)
        ]
        agreement = 1 - float(procrustes(whole.coordinates, layer.coordinates)[2])
        above = shares[0] - float(whole.random_walk[:2].sum())
        errors, largest = (
            whole.relative_projection_error,
            whole.explained_variance_ratio[:10],
        )
        # in the plane, in all dimensions
        radii = ((whole.coordinates**2).sum(axis=1) ** 0.5, whole.distance)
        near = [float((radius < radius.max() / 2).mean()) for radius in radii]
        found = (*shares, above, errors.mean(), agreement, *near)
        lab.record(trial, **dict(zip(DESCRIPTION, found, strict=True)))
        lab.curve(trial, "projection_error", steps, errors)
        lab.curve(trial, "explained_share", range(1, len(largest) + 1), largest)

    def _compare(self, path: Path, partner: Path) -> dict[str, float]:
        """How far the two networks start and end from each other, before and after
        matching units.
        """
        found = []
        for a, b in ((path[0], partner[0]), (path[-1], partner[-1])):
            match, tensors = self._match(a, b), (*a.values(), *b.values())
            size = sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5
            found.append((match.distance_before / size, match.distance_after / size))
        start, end = found
        # nothing to gain at one start
        gain = start[1] / start[0] - end[1] / end[0] if start[0] else nan
        return dict(zip(COMPARISON, (*end, end[1] / end[0], gain), strict=True))

    def _match(self, *weights: Mapping[str, Any]) -> Any:
        from nablab.instruments import match_units

        networks = training.build_replicas(self.builder(None), [0, 0])
        for network, own in zip(networks, weights, strict=True):
            network.load_state_dict(own)
        return match_units(*networks)

    def _moves(self, path: Path) -> bool:
        """Whether the layer moves at all: the units of a ReLU layer may all be dead."""
        names = [
            name for name in path[0] if name.startswith(self._layer_names(path)[:-1])
        ]
        return any(bool((path[0][name] != path[-1][name]).any()) for name in names)

    def _layer_names(self, path: Path) -> str:
        """The parameters of the chosen layer, as a pattern."""
        return f"{list(dict.fromkeys(name.rpartition('.')[0] for name in path[0]))[self.layer - 1]}.*"

    def figures(self, records: Records) -> dict[str, plots.Figure]:
        """The paths in two dimensions, what the components hold, and how far apart the
        runs end.
        """
        from nablab.instruments import random_walk_shares

        planes = plots.paths(
            self._planes(records),
            title="Where training goes",
            value_label=IN_IMAGES if self.data_sets() else "training loss (MSE)",
            caption=f"Up to {SHOWN} runs. In the last row units are matched to those "
            "of the first run's end.",
        )
        share = plots.curves(
            records,
            "explained_share",
            color_by="start",
            panel_by="",
            x_label="component",
            y_label="share of the variance",
            title="What each component holds of a single path",
            caption="The dashed line is a random walk of as many points.",
        )
        walk = random_walk_shares(self.steps // (self.steps // self.points) + 1)[:10]
        share.figure.axes[0].plot(
            range(1, len(walk) + 1), walk, color="#767676", ls="--", lw=1.4, zorder=1
        )
        error = plots.curves(
            records,
            "projection_error",
            color_by="start",
            panel_by="",
            log_y=False,
            y_label="relative projection error",
            title="What two components miss of each point",
            caption="Error / distance from the mean point. 0: the point lies in the "
            "plane.",
        )
        ends = plots.dots(
            plots.metrics_side_by_side(
                records, UNITS, metric="end_distance", factor="units"
            ),
            "end_distance",
            by="start",
            panel_by="units",
            log_y=False,
            y_label="relative distance",
            title="How far two runs end from each other",
            caption="1: the two have as little in common as random vectors.",
        )
        for ax in ends.figure.axes:
            ax.set_ylim(0, 1.1)
        return {"paths": planes, "share": share, "error": error, "ends": ends}

    def _planes(self, records: Records) -> list[plots.Plane]:
        """A row per kind of start, and one with matched units: the whole network, and
        the layer.
        """
        planes = []
        for title, runs in self._rows_of(records).items():
            values: dict[Level, Any] = {
                record.seed: record.arrays["shown"] for record, _ in runs
            }
            scores = {r.seed: r.scalars.get("test_accuracy") for r, _ in runs}
            ends: Any = {
                seed: f"{100 * score:.1f} %" for seed, score in scores.items() if score
            }
            of_layer = self._layer_names(runs[0][1])
            for part, names in (
                ("whole network", "*"),
                (f"layer {self.layer}", of_layer),
            ):
                pca = _pca({record.seed: path for record, path in runs}, names)
                xy = dict(zip(values, pca.paths.values(), strict=True))
                panel: Any = (
                    f"{title} · {part}",
                    xy,
                    values,
                    tuple(pca.explained_variance_ratio[:2]),
                    ends,
                )
                planes.append(plots.Plane(*panel))
        return planes

    def _rows_of(self, records: Records) -> dict[str, list[tuple[Record, Path]]]:
        usable = [
            r
            for r in records
            if "path" in r.arrays and isfinite(r.scalars["train_loss"])
        ]
        runs: Any = [
            (r, training.path_from_array(r.arrays["path"], self.builder(0)()))
            for r in usable
        ]
        runs = [run for run in runs if self._moves(run[1])]
        rows = {
            start: [r for r in runs if r[0].condition["start"] == start][:SHOWN]
            for start in STARTS
        }
        if rows[OWN]:
            goal = rows[OWN][0][1][-1]
            matches = [
                (record, path, self._match(goal, path[-1]))
                for record, path in rows[OWN]
            ]
            rows[f"{OWN}, matched"] = [
                (r, [match.permute(p) for p in path]) for r, path, match in matches
            ]
        return {title: row for title, row in rows.items() if row}


def _pca(path: Any, parameters: str = "*") -> Any:
    from nablab.instruments import trajectory_pca

    points = sum(map(len, path.values())) if isinstance(path, dict) else len(path)
    return trajectory_pca(path, parameters=parameters, components=min(2, points - 1))
