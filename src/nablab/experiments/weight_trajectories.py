"""The paths of training through weight space, on their principal components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

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
from nablab.models.fields import NetworkField
from nablab.settings import NotNegative, Positive, Samples, Steps

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.instruments.landscape.matching import Matching
    from nablab.instruments.landscape.trajectories import TrajectoryPCA
    from nablab.training import Training, WeightRecorder
    from nablab.training.engine import FloatArray

    # The tensors of a network by name, and T points of a path.
    Weights = Mapping[str, Tensor]
    Path = Sequence[Weights]

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
# What its deep network had instead: 24 epochs of 469 steps.
OTHER = {"learning_rate": 1e-3, "batch_size": 128, "steps": 24 * 469, "points": 8}
STARTS = SHARED, OWN = "one start", "own starts"
# Runs per figure: as many as there are colors.
SHOWN = 8
IN_IMAGES = "test error (1 - accuracy); numbers: final test accuracy"
UNITS = {"units as trained": "end_distance", "units matched": "end_distance_matched"}
# What is NaN where a network diverged or its layer never moved.
METRICS = (
    "explained_variance",
    "explained_variance_of_layer",
    "above_random_walk",
    "mean_projection_error",
    "layer_agreement",
    "share_near_origin",
    "share_near_mean",
    "end_distance",
    "end_distance_matched",
    "matched_share",
    "matching_gain",
)


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
    activation: Literal[
        "leaky_relu", "relu", "tanh", "sigmoid", "gelu", "silu", "elu"
    ] = "leaky_relu"
    optimizer: Literal["Adam", "AdamW", "RMSprop", "SGD"] = "Adam"
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
            sentence="Two components hold at least 40 % of a path's "
            "variation (Li et al. 2018)",
        ),
        Claim.at_least(
            "above_random_walk",
            0.0,
            within="start",
            quantity="share held beyond a random walk's",
            sentence="Two components hold more of a path than of a random "
            "walk of as many points",
            answer=Answer(
                supported="the path of training is flatter than a "
                "random walk: two directions hold more "
                "of it",
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
            sentence="Paths are dense near the origin: most points are "
            "within half their radius",
        ),
        Claim.less(
            "end_distance",
            SHARED,
            OWN,
            by="start",
            smallest_effect=0.05,
            sentence="Runs from one start end closer together than runs from "
            "different starts",
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
            sentence="Matching the hidden units brings ends of different "
            "starts a tenth closer",
        ),
        Claim.at_least(
            "matching_gain",
            0.0,
            where={"start": OWN},
            sentence="Matching brings the ends closer by more than it "
            "brings the starts closer",
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
        """Check that the layer is one of the network's, and that points are steps."""
        if self.points > self.steps:
            raise UsageError(
                f"points={self.points} must be at most steps={self.steps}: weights are "
                "kept after a step."
            )
        layers = len(models.parse_widths(self.network)) - 1
        self.compared.check(data.task(self.target))
        if self.layer > layers or layers == 1:
            raise UsageError(
                f"layer={self.layer} is impossible: network={self.network} has "
                f"{layers} layers, and at least 2 are needed."
            )

    def conditions(self) -> list[Condition]:
        """Runs from one start, and runs from starts of their own."""
        return [Condition(start=start) for start in STARTS]

    @property
    def compared(self) -> models.Networks:
        """The one network."""
        return models.Networks((self.network,), activation=self.activation)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.builder()()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = data.task(self.target)
        return task.loss, task.prepared()

    def builder(self, start: int | None = None) -> Callable[[], nn.Module]:
        """Return what builds a network; always the same one if ``start`` is a seed."""
        build = self.compared.builder(self.network, data.task(self.target))
        return build if start is None else training.SharedStart(build, start)

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train two networks per seed: a run, and a partner to hold it against."""
        shared = trials.condition["start"] == SHARED
        start = lab.shared_seed("shared start") if shared else None
        task = data.task(self.target)
        every = self.steps // self.points
        recorder = training.WeightRecorder(every=every, replicas=len(trials))
        # All that is needed of partners.
        ends = training.WeightRecorder(every=self.steps)
        result = lab.train(
            training.Supervised(self.builder(start), task.loss),
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
                eval_every=every,
                probes=[recorder, ends],
            ),
            seeds=[
                lab.seed(trial, role) for role in ("run", "partner") for trial in trials
            ],
        )
        lab.note(*task.notes)
        self._keep_all(result, recorder, ends, trials, lab)

    def _keep_all(
        self,
        result: Training,
        recorder: WeightRecorder,
        ends: WeightRecorder,
        trials: Trials,
        lab: Lab,
    ) -> None:
        """Record each path, its picture, and how far from it its partner ends."""
        described: list[tuple[Trial, Weights]] = []
        for k, trial in enumerate(trials):
            # Partners come after all runs, in the same order.
            run, partner = result[k], result[k + len(trials)]
            path, partner_path = recorder.path(k), ends.path(k + len(trials))
            undefined = dict.fromkeys(METRICS, nan)
            lab.record(trial, stop_reason=run.stop_reason, **undefined)
            self._keep(path, result, k, trial, lab)
            # The final loss is NaN where a network diverged.
            if isfinite(run.final) and self._moves(path):
                self._describe(path, recorder.steps, trial, lab)
                described.append((trial, path[-1]))
            if isfinite(run.final) and isfinite(partner.final):
                lab.record(trial, **self._compare(path, partner_path))
        if trials.condition["start"] == OWN:
            self._keep_orders(described, lab)

    def _keep(
        self, path: Path, result: Training, k: int, trial: Trial, lab: Lab
    ) -> None:
        """Keep a path, and the losses and accuracies at its points."""
        lab.array(trial, "path", training.path_array(path))
        found = {name: values[k] for name, values in result.evaluations.items()}
        images = "test_accuracy" in found
        shown = 1 - found["test_accuracy"] if images else found["train_loss"]
        lab.array(trial, "shown", shown)
        for name, values in found.items():
            lab.array(trial, name, values)
            lab.record(trial, **{name: values[-1]})

    def _describe(self, path: Path, steps: Any, trial: Trial, lab: Lab) -> None:
        """Record what two components show of the whole network and of one layer."""
        from scipy.spatial import procrustes

        whole, layer = _pca(path), _pca(path, f"{self._layer_name(path)}.*")
        share, share_of_layer = (
            float(pca.explained_variance_ratio[:2].sum()) for pca in (whole, layer)
        )
        errors = whole.relative_projection_error
        in_plane = (whole.coordinates**2).sum(axis=1) ** 0.5
        lab.record(
            trial,
            explained_variance=share,
            explained_variance_of_layer=share_of_layer,
            above_random_walk=share - float(whole.random_walk[:2].sum()),
            mean_projection_error=errors.mean(),
            layer_agreement=1
            - float(procrustes(whole.coordinates, layer.coordinates)[2]),
            share_near_origin=_share_near(in_plane),
            share_near_mean=_share_near(whole.distance),
        )
        lab.array(trial, "layer", self._layer_columns(path))
        largest = whole.explained_variance_ratio[:10]
        lab.curve(trial, "projection_error", steps, errors)
        lab.curve(trial, "explained_share", range(1, len(largest) + 1), largest)

    def _compare(self, path: Path, partner: Path) -> dict[str, float]:
        """How far two networks are apart, before and after matching their units."""
        start, start_matched = self._distances(path[0], partner[0])
        end, end_matched = self._distances(path[-1], partner[-1])
        return {
            "end_distance": end,
            "end_distance_matched": end_matched,
            "matched_share": end_matched / end,
            # There is nothing to gain at one start.
            "matching_gain": start_matched / start - end_matched / end
            if start
            else nan,
        }

    def _distances(self, first: Weights, second: Weights) -> tuple[float, float]:
        """Relative distances of two networks: as they are, and with units matched."""
        match = self._match(first, second)
        tensors = (*first.values(), *second.values())
        size = sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5
        return match.distance_before / size, match.distance_after / size

    def _match(self, *weights: Weights) -> Matching:
        """Match the hidden units of the second network to those of the first."""
        from nablab.instruments import match_units

        first, second = training.build_replicas(self.builder(), [0, 0])
        for network, own in zip((first, second), weights, strict=True):
            network.load_state_dict(own)
        found: Matching = match_units(first, second)
        return found

    def _keep_orders(self, ends: Sequence[tuple[Trial, Weights]], lab: Lab) -> None:
        """Keep in which order each path has the hidden units of the first run's end.

        An order says for every column of the matched path which one of the path it is.
        """
        for trial, end in ends:
            goal, goal_end = ends[0]
            lab.array(trial, "order", self._match(goal_end, end).entry_order(end))
            # Seeds that are added to a run later have another first run.
            lab.array(trial, "order_of", [goal.seed])

    def _moves(self, path: Path) -> bool:
        """Whether the layer moves at all: the units of a ReLU layer may all be dead."""
        first, after = self._layer_columns(path)
        start, end = training.path_array([path[0], path[-1]])[:, first:after]
        return bool((start != end).any())

    def _layer_name(self, path: Path) -> str:
        """What the parameters of the chosen layer have before their last dot."""
        layers = dict.fromkeys(name.rpartition(".")[0] for name in path[0])
        return list(layers)[self.layer - 1]

    def _layer_columns(self, path: Path) -> tuple[int, int]:
        """The first of the layer's columns in a path's array, and the one after it."""
        layer, columns, before = self._layer_name(path), [], 0
        for name, tensor in path[0].items():
            if name.rpartition(".")[0] == layer:
                columns += [before, before + tensor.numel()]
            before += tensor.numel()
        return columns[0], columns[-1]

    def figures(self, records: Records) -> dict[str, Figure]:
        """The paths, what components hold and miss, and how far apart runs end."""
        planes = plots.paths(
            self._planes(records),
            title="Where training goes",
            value_label=IN_IMAGES if self.data_sets() else "training loss (MSE)",
            caption=f"Up to {SHOWN} runs. In the last row units are matched to those "
            "of the first run's end.",
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
        for axes in ends.figure.axes:
            axes.set_ylim(0, 1.1)
        share = self._shares(records)
        return {"paths": planes, "share": share, "error": error, "ends": ends}

    def _shares(self, records: Records) -> Figure:
        """What each component holds of a path, beside those of a random walk."""
        from nablab.instruments import random_walk_shares

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
        return share

    def _planes(self, records: Records) -> list[plots.Plane]:
        """A row per kind of start and one of matched units; network and layer."""
        planes = []
        for title, runs in _rows_of(records).items():
            seeds: list[Level] = [run.seed for run, _ in runs]
            first, after = runs[0][0].arrays["layer"]
            parts = {
                "whole network": slice(None),
                f"layer {self.layer}": slice(first, after),
            }
            for part, columns in parts.items():
                pca = _pca({run.seed: path[:, columns] for run, path in runs})
                plane = plots.Plane(
                    f"{title} · {part}",
                    dict(zip(seeds, pca.paths.values(), strict=True)),
                    {run.seed: run.arrays["shown"] for run, _ in runs},
                    tuple(pca.explained_variance_ratio[:2]),
                    {
                        run.seed: f"{100 * run.scalars['test_accuracy']:.1f} %"
                        for run, _ in runs
                        if run.scalars.get("test_accuracy")
                    },
                )
                planes.append(plane)
        return planes


def _rows_of(records: Records) -> dict[str, list[tuple[Record, FloatArray]]]:
    """The runs and paths (T, P) in each row of the first figure, without empty rows.

    What diverged or never moved has no layer to show.
    """
    rows = {}
    for start in STARTS:
        runs = [run for run in records.where(start=start) if "layer" in run.arrays]
        rows[start] = [(run, run.arrays["path"]) for run in runs[:SHOWN]]
    goals = [int(run.arrays["order_of"][0]) for run, _ in rows[OWN]]
    rows[f"{OWN}, matched"] = [
        (run, path[:, run.arrays["order"]])
        for (run, path), goal in zip(rows[OWN], goals, strict=True)
        if goal == goals[0]
    ]
    return {title: row for title, row in rows.items() if row}


def _share_near(distances: FloatArray) -> float:
    """Return the share of points within half the largest distance."""
    return float((distances < distances.max() / 2).mean())


def _pca(path: Any, parameters: str = "*") -> TrajectoryPCA:
    """Project one path, or several by label together, on up to two components."""
    from nablab.instruments import trajectory_pca

    points = sum(map(len, path.values())) if isinstance(path, dict) else len(path)
    found: TrajectoryPCA = trajectory_pca(
        path, parameters=parameters, components=min(2, points - 1)
    )
    return found
