"""The paths of training through weight space, projected on their principal components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nablab import data, models, plots, training
from nablab.errors import UsageError
from nablab.experiment import Claim, Condition, Experiment, Lab, Level, Record, Records

if TYPE_CHECKING:
    from torch import nn

    Path = Sequence[Mapping[str, Any]]  # T points, each the tensors of a network by name

STARTS = SHARED, OWN = "one start", "own starts"
SHOWN = 8  # runs per figure: as many as there are colors
DESCRIPTION = (
    *("explained_variance", "explained_variance_of_layer", "above_random_walk"),
    *("mean_projection_error", "layer_agreement"),
)
COMPARISON = ("end_distance", "end_distance_matched", "matched_share", "matching_gain")


@dataclass(frozen=True)
class WeightTrajectories(Experiment):
    """Where does training go in weight space?

    A network of P weights is a point in P dimensions, and training draws a path. To see it, project it on
    its principal components: with the T centered points as the rows of X, the Gram matrix XXᵀ = VΛVᵀ (T ×
    T) gives the coordinates VΛ^½ and, in Λ, the share of each component. Li et al. (2018) find 40 to 90 %
    of a path's variation in two components. That is less than it seems: a random walk in many dimensions
    has 6/π² + 6/(2π)² = 76 % there (Antognini and Sohl-Dickstein 2018). Every path looks flat.

    The order of hidden units is arbitrary. Runs from different weights list their units in different
    orders, so their distance says little before units are matched (Ainsworth et al. 2023).

    Each seed trains a run and a partner on minibatches. With one start, all networks begin at one point
    and only the order of samples differs; claims about them hold for that start. Distances are divided by
    √(‖a‖² + ‖b‖²): 1 for random vectors. ``layer_agreement`` is 1 if one picture becomes the other by
    moving, turning, mirroring and scaling (Procrustes).

    What to expect (16 seeds, 3,600 steps). Two components hold 88 % (one start) and 91 % (own starts) of
    a path, 12 and 15 points more than of a random walk, yet they miss a third of a point's distance from
    the mean. The picture of layer 4 agrees with that of the whole network by 0.93 and 0.96, at worst by
    0.71. Runs from one start end at a distance of 0.43, others at 1.00. Matching units brings these to
    0.73, but untrained networks come as close (0.75): nearly all of it is the choice among very many
    orders.

    Beware of the joint picture. Eight runs from own starts are nearly orthogonal: seven components hold
    13 to 15 % each, and the plane shows two. All runs end 9 to 10 from the mean; in the plane some end 2
    from it. One course reported paths that are dense near the origin. Such a crowd is what the plane does
    not show.

    Running time on two cores: quick and standard under half a minute, paper a minute or two.

    Attributes:
        target: What to learn: sinc, sign_sin, quadratic_sine or an expression of x; see deep-vs-shallow.
        network: The dense network by its widths.
        layer: The layer whose weights and biases are looked at alone, counted from 1.
        activation: Activation of the hidden layers.
        optimizer: Optimizer.
        learning_rate: Learning rate.
        batch_size: Samples per step. Batches are what tells runs from one start apart.
        steps: Optimizer steps.
        points: The weights are kept at the start and so many times after it, at equal distances.
    """

    target: str = "sinc"
    network: str = "1-10-20x6-1"
    layer: int = 4
    activation: Literal["leaky_relu", "relu", "tanh", "sigmoid", "gelu", "silu", "elu"] = "leaky_relu"
    optimizer: Literal["Adam", "AdamW", "RMSprop", "SGD"] = "Adam"
    learning_rate: float = 1e-3
    batch_size: int = 50
    steps: int = 3_600
    points: int = 40

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"steps": 1_200, "seeds": 8},
        "standard": {"seeds": 16},
        "paper": {"steps": 12_000, "seeds": 30},
        "sgd": {"optimizer": "SGD", "learning_rate": 0.05, "steps": 12_000, "seeds": 16},
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_least("explained_variance", 0.4, within="start",
                       sentence="Two components hold at least 40 % of a path's variation (Li et al. 2018)"),
        Claim.at_least("above_random_walk", 0.0, within="start",
                       sentence="Two components hold more of a path than of a random walk of as many points"),
        Claim.at_least("layer_agreement", 0.9, within="start",
                       sentence="The picture of one layer looks like that of the whole network"),
        Claim.less("end_distance", SHARED, OWN, by="start", smallest_effect=0.05,
                   sentence="Runs from one start end closer together than runs from different starts"),
        Claim.at_most("matched_share", 0.9, where={"start": OWN},
                      sentence="Matching the hidden units brings ends of different starts a tenth closer"),
        Claim.at_least("matching_gain", 0.0, where={"start": OWN},
                       sentence="Matching brings the ends closer by more than it brings the starts closer"),
    )  # fmt: skip
    exercises: ClassVar[tuple[str, ...]] = (
        "Project a random walk in 2,361 dimensions with trajectory_pca. Could you tell it from a run?",
        "Take preset=sgd. Which paths become straighter, and what does a straight path say about the loss?",
        "Set layer=1 and then layer=8. Which layer alone looks most like the whole, and is it the largest?",
        "Center the paths at their last point, as Li et al. do. Why does the first component grow?",
        "Leaky ReLU lets a unit scale its inputs up and its outputs down. How would you match up to that?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Li et al., Visualizing the loss landscape of neural nets, NeurIPS 2018, arXiv:1712.09913.",
        "Antognini, Sohl-Dickstein, PCA of high dimensional random walks, NeurIPS 2018, arXiv:1806.08805.",
        "Ainsworth et al., Git Re-Basin: merging modulo permutation symmetries, ICLR 2023, arXiv:2209.04836.",
    )

    def validate(self) -> None:
        """Check the numbers, the target, the network, and that the layer is one of its."""
        for key in ("learning_rate", "batch_size", "steps"):
            if not 0 < getattr(self, key) < float("inf"):
                raise UsageError(f"{key}={getattr(self, key)} is impossible: it must be above 0 and finite.")
        if not 2 <= self.points <= self.steps:
            raise UsageError(f"points={self.points} is impossible: it must be from 2 to steps={self.steps}.")
        widths = models.parse_widths(self.network)
        if len(widths) < 3 or widths[0] != 1 or widths[-1] != 1:
            raise UsageError(f"network: {list(widths)} needs a hidden layer, 1 input and 1 output: 1-9-1.")
        if not 1 <= self.layer < len(widths):
            raise UsageError(f"layer={self.layer} is impossible: there are {len(widths) - 1} layers.")
        data.target(self.target)

    def conditions(self) -> list[Condition]:
        """Runs from one start, and runs from starts of their own."""
        return [Condition(start=start) for start in STARTS]

    def run(self, condition: Condition, seeds: Sequence[int], lab: Lab) -> None:
        """Train two networks per seed: a run, and a partner to hold it against."""
        recorder = training.WeightRecorder(every=self.steps // self.points)
        result = lab.train(
            self.builder(lab.seed(0, "shared start") if condition["start"] == SHARED else None),
            data.target(self.target).train(),
            seeds=[lab.seed(seed, role, **condition) for role in ("run", "partner") for seed in seeds],
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=getattr(training, self.optimizer)(learning_rate=self.learning_rate),
            eval_every=recorder.every,
            probes=[recorder],
        )
        for k, seed in enumerate(seeds):
            path, partner = recorder.path(k), recorder.path(k + len(seeds))
            losses = result.final[[k, k + len(seeds)]].tolist()  # NaN if diverged
            lab.record(seed, train_mse=losses[0], stop_reason=result.stop_reason[k])
            lab.record(seed, **dict.fromkeys((*DESCRIPTION, *COMPARISON), nan))
            lab.array(seed, "path", _rows(path))
            lab.array(seed, "loss", result.evaluations["train_loss"][k])
            if isfinite(losses[0]) and self._moves(path):
                self._describe(path, recorder.steps, seed, lab)
            if isfinite(sum(losses)):
                lab.record(seed, **self._compare(path, partner))

    def builder(self, start: int | None) -> Callable[[], nn.Module]:
        """What builds one network; the same one each time where ``start`` gives a seed."""
        if start is None:
            return lambda: models.dense(self.network, self.activation)
        return lambda: training.build_replicas(self.builder(None), [start])[0]

    def _describe(self, path: Path, steps: Any, seed: int, lab: Lab) -> None:
        """Record what two components show of one path: of the whole network and of one layer."""
        from scipy.spatial import procrustes

        whole, layer = _pca(path), _pca(path, self._layer_names)
        shares = [float(pca.explained_variance_ratio[:2].sum()) for pca in (whole, layer)]
        # 1 where one picture turns into the other by moving, turning, mirroring and scaling it.
        agreement = 1 - float(procrustes(whole.coordinates, layer.coordinates)[2])
        above = shares[0] - float(whole.random_walk[:2].sum())
        errors, largest = whole.relative_projection_error, whole.explained_variance_ratio[:10]
        lab.record(seed, **dict(zip(DESCRIPTION, (*shares, above, errors.mean(), agreement), strict=True)))
        lab.curve(seed, "projection_error", steps, errors)
        lab.curve(seed, "explained_share", range(1, len(largest) + 1), largest)

    def _compare(self, path: Path, partner: Path) -> dict[str, float]:
        """How far the two networks start and end from each other, before and after matching units."""
        start, end = (_distances(self._match(path[i], partner[i]), path[i], partner[i]) for i in (0, -1))
        gain = start[1] / start[0] - end[1] / end[0] if start[0] else nan  # nothing to gain at one start
        return dict(zip(COMPARISON, (*end, end[1] / end[0], gain), strict=True))

    def _match(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> Any:
        from nablab.instruments import match_units

        networks = training.build_replicas(self.builder(None), [0, 0])
        for network, weights in zip(networks, (a, b), strict=True):
            network.load_state_dict(weights)
        return match_units(*networks)

    def _moves(self, path: Path) -> bool:
        """Whether the layer moves at all: the units of a ReLU layer may all be dead."""
        names = [name for name in path[0] if name.startswith(self._layer_names[:-1])]
        return any(bool((path[0][name] != path[-1][name]).any()) for name in names)

    @property
    def _layer_names(self) -> str:
        """The parameters of the chosen layer; every other module is an activation."""
        return f"{2 * (self.layer - 1)}.*"

    def figures(self, records: Records) -> dict[str, plots.Figure]:
        """The paths in two dimensions, what the components hold, and how far apart the runs end."""
        from nablab.instruments import random_walk_shares

        planes = plots.paths(
            self._planes(records), title="Where training goes",
            caption=f"Up to {SHOWN} runs. In the last row units are matched to those of the first run's end.",
        )  # fmt: skip
        share = plots.curves(
            records, "explained_share", color_by="start", panel_by="", x_label="component",
            y_label="share of the variance", title="What each component holds of a single path",
            caption="The dashed line is a random walk of as many points.",
        )  # fmt: skip
        walk = random_walk_shares(self.steps // (self.steps // self.points) + 1)[:10]
        share.figure.axes[0].plot(range(1, len(walk) + 1), walk, color="#767676", ls="--", lw=1.4, zorder=1)
        error = plots.curves(
            records, "projection_error", color_by="start", panel_by="", log_y=False,
            y_label="relative projection error", title="What two components miss of each point",
            caption="Error / distance from the mean point. 0: the point lies in the plane.",
        )  # fmt: skip
        ends = plots.dots(
            _by_units(records), "end_distance", by="start", panel_by="units", log_y=False,
            y_label="relative distance", title="How far two runs end from each other",
            caption="1: the two have as little in common as random vectors.",
        )  # fmt: skip
        for ax in ends.figure.axes:
            ax.set_ylim(0, 1.1)
        return {"paths": planes, "share": share, "error": error, "ends": ends}

    def _planes(self, records: Records) -> list[plots.Plane]:
        """A row per kind of start, and one with matched units: the whole network, and the layer."""
        planes = []
        for title, runs in self._rows_of(records).items():
            values: dict[Level, Any] = {record.seed: record.arrays["loss"] for record, _ in runs}
            for part, names in (("whole network", "*"), (f"layer {self.layer}", self._layer_names)):
                pca = _pca({record.seed: path for record, path in runs}, names)
                xy = dict(zip(values, pca.paths.values(), strict=True))
                first, second = pca.explained_variance_ratio[:2]
                planes.append(plots.Plane(f"{title} · {part}", xy, values, (first, second)))
        return planes

    def _rows_of(self, records: Records) -> dict[str, list[tuple[Record, Path]]]:
        usable = [r for r in records if "path" in r.arrays and isfinite(r.scalars["train_mse"])]
        runs = [(record, self._tensors(record.arrays["path"])) for record in usable]
        runs = [run for run in runs if self._moves(run[1])]
        rows = {start: [r for r in runs if r[0].condition["start"] == start][:SHOWN] for start in STARTS}
        if rows[OWN]:
            goal = rows[OWN][0][1][-1]
            matches = [(record, path, self._match(goal, path[-1])) for record, path in rows[OWN]]
            rows[f"{OWN}, matched"] = [(r, [match.permute(p) for p in path]) for r, path, match in matches]
        return {title: row for title, row in rows.items() if row}

    def _tensors(self, rows: Any) -> Path:
        """The points (T, P) as tensors by parameter."""
        import torch

        parameters = dict(self.builder(0)().named_parameters())
        parts = torch.split(torch.from_numpy(rows), [p.numel() for p in parameters.values()], dim=1)
        shaped = [part.reshape(-1, *p.shape) for part, p in zip(parts, parameters.values(), strict=True)]
        return [dict(zip(parameters, point, strict=True)) for point in zip(*shaped, strict=True)]


def _pca(path: Any, parameters: str = "*") -> Any:
    from nablab.instruments import trajectory_pca

    points = sum(map(len, path.values())) if isinstance(path, dict) else len(path)
    return trajectory_pca(path, parameters=parameters, components=min(2, points - 1))


def _rows(path: Path) -> Any:
    """The points as one float32 array (T, P)."""
    import torch

    return torch.stack([torch.cat([t.reshape(-1) for t in point.values()]) for point in path]).numpy()


def _distances(match: Any, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float]:
    """Distances before and after matching; two random vectors have a distance of about 1."""
    size = sum(float(tensor.square().sum()) for point in (a, b) for tensor in point.values()) ** 0.5
    return match.distance_before / size, match.distance_after / size


def _by_units(records: Records) -> Records:
    """The distances of the ends, with a factor that says whether units are matched."""
    names = {"units as trained": "end_distance", "units matched": "end_distance_matched"}
    return Records(
        Record(Condition(**r.condition, units=units), r.seed, {"end_distance": r.scalars.get(name, nan)})
        for units, name in names.items()
        for r in records
    )
