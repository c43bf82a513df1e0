"""The paths of training through weight space, on their principal components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    Level,
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
from nablab.settings import Ge, Le, NotNegative, Positive, Samples, Steps
from nablab.training.fields import OptimizerName

if TYPE_CHECKING:
    from torch import Tensor, nn

    # T points, each the tensors of a network by name.
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
# Runs per figure: as many as there are colors.
SHOWN = 8
DESCRIPTION = (
    "explained_variance",
    "explained_variance_of_layer",
    "above_random_walk",
    "mean_projection_error",
    "layer_agreement",
    "share_near_origin",
    "share_near_mean",
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

    target: TaskField = "sinc"
    network: NetworkField = "1-10-20x6-1"
    layer: Annotated[int, Ge(1), Le(1_000)] = 4
    activation: Activation = "leaky_relu"
    optimizer: OptimizerName = "Adam"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    batch_size: Samples = 50
    steps: Steps = 3_600
    points: Annotated[int, Ge(2), Le(10_000)] = 40

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
        """Check that the network takes the target, and that the layer is one of its."""
        if self.points > self.steps:
            raise UsageError(
                f"points={self.points} is impossible: it must be at most "
                f"steps={self.steps}."
            )
        self.compared.check(data.task(self.target))
        layers = len(models.parse_widths(self.network)) - 1
        if self.layer > layers or layers == 1:
            raise UsageError(
                f"layer={self.layer} is impossible: network={self.network} has "
                f"{layers} layers, and at least 2 are needed."
            )

    @property
    def compared(self) -> models.Networks:
        """The one network."""
        return models.Networks((self.network,), activation=self.activation)

    def conditions(self) -> list[Condition]:
        """List runs from one start, and runs from starts of their own."""
        return [Condition(start=start) for start in STARTS]

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self._build()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = data.task(self.target)
        return task.loss, task.prepared()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train two networks per seed: a run, and a partner to hold it against."""
        task, runs = data.task(self.target), len(trials)
        shared = trials.condition["start"] == SHARED
        recorder = training.WeightRecorder(
            every=self.steps // self.points, replicas=runs
        )
        seeds = [
            lab.seed(trial, role) for role in ("run", "partner") for trial in trials
        ]
        # All that is needed of partners.
        ends = training.WeightRecorder(every=self.steps)
        result = lab.train(
            training.Supervised(self._build, task.loss),
            task.train(),
            training.Recipe(
                steps=self.steps,
                batch_size=self.batch_size,
                optimizer=training.optimizer(
                    self.optimizer,
                    learning_rate=self.learning_rate,
                    weight_decay=self.weight_decay,
                ),
                prepare=task.prepare,
                held_out={task.held_out_name: task.held_out()},
                eval_every=recorder.every,
                probes=[recorder, ends],
            ),
            seeds=seeds,
            starts=[lab.shared_seed("shared start")] * len(seeds) if shared else None,
        )
        lab.note(*task.notes)
        curves = result.evaluations
        shown = 1 - curves["test_accuracy"] if task.data_set else curves["train_loss"]
        for place, trial in enumerate(trials):
            path, partner = recorder.path(place), ends.path(place + runs)
            lab.record(
                trial,
                stop_reason=result.stop_reason[place],
                **dict.fromkeys(DESCRIPTION + COMPARISON, nan),
            )
            lab.array(trial, "path", training.path_array(path))
            lab.array(trial, "shown", shown[place])
            for name, values in curves.items():
                lab.array(trial, name, values[place])
                lab.record(trial, **{name: values[place, -1]})
            # The loss is NaN where a network diverged.
            finished, both = (
                all(isfinite(result.final[k]) for k in networks)
                for networks in ([place], [place, place + runs])
            )
            if finished and self._moves(path):
                self._describe(path, recorder.steps, trial, lab)
            if both:
                lab.record(trial, **self._compare(path, partner))

    def _build(self) -> nn.Module:
        return self.compared.builder(self.network, data.task(self.target))()

    def _describe(self, path: Path, steps: Any, trial: Trial, lab: Lab) -> None:
        """Record what two components show of a path, of all weights and of a layer."""
        from scipy.spatial import procrustes

        whole, layer = _pca(path), _pca(path, self._layer_names(path))
        share = float(whole.explained_variance_ratio[:2].sum())
        errors = whole.relative_projection_error
        in_plane = (whole.coordinates**2).sum(axis=1) ** 0.5
        disparity = procrustes(whole.coordinates, layer.coordinates)[2]
        lab.record(
            trial,
            explained_variance=share,
            explained_variance_of_layer=float(layer.explained_variance_ratio[:2].sum()),
            above_random_walk=share - float(whole.random_walk[:2].sum()),
            mean_projection_error=errors.mean(),
            layer_agreement=1 - float(disparity),
            share_near_origin=_share_within_half(in_plane),
            share_near_mean=_share_within_half(whole.distance),
        )
        largest = whole.explained_variance_ratio[:10]
        lab.curve(trial, "projection_error", steps, errors)
        lab.curve(trial, "explained_share", range(1, len(largest) + 1), largest)

    def _compare(self, path: Path, partner: Path) -> dict[str, float]:
        """Measure how far two networks are apart, before and after matching units."""
        distances = []
        for a, b in ((path[0], partner[0]), (path[-1], partner[-1])):
            match, tensors = self._match(a, b), (*a.values(), *b.values())
            size = sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5
            distances.append(
                (match.distance_before / size, match.distance_after / size)
            )
        (start, start_matched), (end, end_matched) = distances
        # From one start there is nothing to gain.
        gain = start_matched / start - end_matched / end if start else nan
        return {
            "end_distance": end,
            "end_distance_matched": end_matched,
            "matched_share": end_matched / end,
            "matching_gain": gain,
        }

    def _match(self, *weights: Mapping[str, Any]) -> Any:
        from nablab.instruments import match_units

        networks = training.build_replicas(self._build, [0, 0])
        for network, own in zip(networks, weights, strict=True):
            network.load_state_dict(own)
        return match_units(*networks)

    def _moves(self, path: Path) -> bool:
        """Tell whether the layer moves at all.

        The units of a ReLU layer may all be dead.
        """
        prefix = self._layer_names(path)[:-1]
        names = [name for name in path[0] if name.startswith(prefix)]
        return any(bool((path[0][name] != path[-1][name]).any()) for name in names)

    def _layer_names(self, path: Path) -> str:
        """Write the parameters of the chosen layer as a pattern."""
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in path[0]))
        return f"{layers[self.layer - 1]}.*"

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw the paths in a plane, what components hold, and how runs end apart."""
        return {
            "paths": plots.paths(
                self._planes(records),
                title="Where training goes",
                value_label=IN_IMAGES if self.data_sets() else "training loss (MSE)",
                caption=f"Up to {SHOWN} runs. In the last row units are matched to "
                "those of the first run's end.",
            ),
            "share": self._shares(records),
            "error": plots.curves(
                records,
                "projection_error",
                color_by="start",
                panel_by="",
                log_y=False,
                y_label="relative projection error",
                title="What two components miss of each point",
                caption="Error / distance from the mean point. 0: the point lies in "
                "the plane.",
            ),
            "ends": _ends(records),
        }

    def _shares(self, records: Records) -> Figure:
        """Draw what each component holds, beside a random walk."""
        from nablab.instruments import random_walk_shares

        figure = plots.curves(
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
        figure.figure.axes[0].plot(
            range(1, len(walk) + 1), walk, color="#767676", ls="--", lw=1.4, zorder=1
        )
        return figure

    def _planes(self, records: Records) -> list[plots.Plane]:
        """List the planes of all weights and of a layer, a row per kind of start.

        A further row has matched units.
        """
        planes = []
        for title, runs in self._rows_of(records).items():
            values: dict[Level, Any] = {r.seed: r.arrays["shown"] for r, _ in runs}
            ends: dict[Level, str] = {
                record.seed: f"{100 * record.scalars['test_accuracy']:.1f} %"
                for record, _ in runs
                if record.scalars.get("test_accuracy")
            }
            paths = {record.seed: path for record, path in runs}
            for part, names in (
                ("whole network", "*"),
                (f"layer {self.layer}", self._layer_names(runs[0][1])),
            ):
                pca = _pca(paths, names)
                coordinates = dict(zip(values, pca.paths.values(), strict=True))
                shares = tuple(pca.explained_variance_ratio[:2])
                planes.append(
                    plots.Plane(f"{title} · {part}", coordinates, values, shares, ends)
                )
        return planes

    def _rows_of(self, records: Records) -> dict[str, list[tuple[Record, Path]]]:
        """Collect the runs that moved, by kind of start, and the own starts matched."""
        network = self._build()  # whose parameters a kept path is laid out as
        runs: list[tuple[Record, Path]] = [
            (record, training.path_from_array(record.arrays["path"], network))
            for record in records
            if "path" in record.arrays and isfinite(record.scalars["train_loss"])
        ]
        rows = {
            start: [
                (record, path)
                for record, path in runs
                if record.condition["start"] == start and self._moves(path)
            ][:SHOWN]
            for start in STARTS
        }
        if rows[OWN]:
            _, goal = rows[OWN][0]
            matches = [(r, p, self._match(goal[-1], p[-1])) for r, p in rows[OWN]]
            matched: list[tuple[Record, Path]] = [
                (record, [match.permute(point) for point in path])
                for record, path, match in matches
            ]
            rows[f"{OWN}, matched"] = matched
        return {title: row for title, row in rows.items() if row}


def _ends(records: Records) -> Figure:
    """Draw how far two runs end from each other, before and after matching units."""
    figure = plots.dots(
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
    for axes in figure.figure.axes:
        axes.set_ylim(0, 1.1)
    return figure


def _share_within_half(radii: Any) -> float:
    """Compute the share of points that are nearer than half the farthest."""
    return float((radii < radii.max() / 2).mean())


def _pca(path: Any, parameters: str = "*") -> Any:
    """Compute two principal components of one path, or of several by seed."""
    from nablab.instruments import trajectory_pca

    points = sum(map(len, path.values())) if isinstance(path, dict) else len(path)
    return trajectory_pca(path, parameters=parameters, components=min(2, points - 1))
