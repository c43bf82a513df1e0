"""Where training stops, the gradient is not zero.

Search for zero from there and see what kind it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Figure,
    Lab,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.data.fields import FunctionField
from nablab.errors import UsageError
from nablab.models.fields import Activation, NetworkField
from nablab.settings import Distinct, Ge, Le, NotNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data.tasks import Pair
    from nablab.instruments import Replicas
    from nablab.instruments.base.losses import Loss
    from nablab.training import Context, Probe

# Beyond, the eigenvectors of 100 Hessians in every iteration take hours.
MOST_PARAMETERS = 2_000
# Steps. Earlier, the networks are the same as their initial weights.
FIRST_STOP = 10
# The tolerance and the iterations that show how exact a critical point is.
EXACT, FURTHER = 1e-16, 30


@dataclass(frozen=True)
class ZeroGradient(Experiment):
    """What kind of points have zero gradient?

    Where the gradient g of the loss is zero, the Hessian H, the matrix of second
    derivatives, tells what kind of point it is. Each eigenvalue is the curvature along
    one direction. If none is negative, no direction leads down and the point is a
    minimum, else a saddle. The minimal ratio is the share of positive ones. Where
    eigenvalues of random signs are likely, saddles should outnumber minima, and the
    more so the higher the loss (Dauphin et al. 2014).

    How zero is reached: every network trains by itself and stops at a step of its own,
    drawn from 10 to 3,000 on a logarithmic scale, for points of different loss are
    needed. From there Levenberg-Marquardt lowers ||g|| in float64, to 1e-8. A search
    that ends elsewhere says so. Where ||Hg|| is small against ||H|| ||g||, it is stuck
    in a gradient-flat region, as most published ones were (Frye et al. 2021).

    How the ratio is counted: by all eigenvalues of the exact Hessian, as (positive,
    zero, negative). An eigenvalue below the floor is zero: c eps P max|lambda|, plus
    the measured rounding of the Hessian, plus how far up to 30 further steps still move
    the eigenvalues. The last part matters most: where a product of small weights is
    zero, a gradient of 1e-8 lies far from the point and leaves eigenvalues of 1e-3
    open. ``ratio_above_rounding`` leaves it out. Beside it stands the share of random
    neighbors of higher loss.

    What to expect (100 networks of 241 parameters). Without weight decay 45 reach zero,
    all of them at the constant function (loss 0.0869), with 1 to 9 positive
    eigenvalues, up to 8 negative and 224 to 240 zero. All others use up their
    iterations far from where they began: what they approach may lie at infinity.
    Counted above rounding, wherever the search ended, the ratio falls with the loss
    (tau -0.57), but mostly at points that are not critical. Weight decay of 0.001
    bounds the weights: 71 reach zero, 18 at losses of 0.017 to 0.023 and 53 near 0.088,
    and 20 end gradient-flat. At the 71 the ratio does fall with the loss (tau -0.52),
    by little: its median is 0.93 at the low losses and 0.92 at the high ones, and one
    of the high ones is a minimum, with 241 positive eigenvalues. The penalty was chosen
    after five were tried, as one that leaves critical points of different loss; 100
    fresh seeds (100 to 199) confirm the verdict: 70 points, tau -0.67. Nearly all
    neighbors at a distance of 0.1 are higher at every critical point: sampling sees the
    few steep directions, not the signs.

    ReLU layers have flat directions by construction: scaling a unit's inputs up and its
    outputs down changes nothing, a unit that is never active has no influence, and
    inside a linear piece the second derivative of the activation is zero. Their points
    of zero gradient come as sets, and a kink may have none.

    Mistakes of published solutions: counting positive entries of the Hessian; float32
    and a threshold of 0, which call half of the zeros positive; a Gauss-Newton block,
    positive semidefinite by construction; one network trained 100 times; plateaus
    called minima; the sign of a Lanczos density's bulk.

    Running time on two cores: quick 15 seconds, standard two and a half minutes with
    --jobs 2, paper hours.

    Attributes:
        networks: Dense networks by their widths, such as 1-8-8-8-8-1.
        targets: What to learn; of a target with many points, write how many, as in
            cosine_over_x@300.
        activations: Activations of the hidden layers: tanh, sigmoid, silu, gelu, elu,
            relu or leaky_relu.
        weight_decays: Penalties; half of each times the squared norm of all weights is
            added to the loss.
        learning_rate: Learning rate of Adam, on the full batch.
        steps: The latest step at which a training is stopped.
        tolerance: The norm of the gradient that counts as zero.
        iterations: Iterations of the search.
        noise_factor: c in the noise floor.
        radius: Distance of the random neighbors whose loss is compared with the
            point's.
    """

    topic: ClassVar[str] = "optimization"

    version: ClassVar[int] = 2

    networks: Annotated[tuple[NetworkField, ...], Distinct()] = ("1-8-8-8-8-1",)
    targets: Annotated[tuple[FunctionField, ...], Distinct()] = ("sinc",)
    activations: Annotated[tuple[Activation, ...], Distinct()] = ("tanh",)
    weight_decays: Annotated[tuple[NotNegative, ...], Distinct()] = (0.0, 1e-3)
    learning_rate: Positive = 1e-3
    steps: Annotated[int, Ge(FIRST_STOP), Le(10**9)] = 3_000
    tolerance: Positive = 1e-8
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 200
    noise_factor: NotNegative = 1.0
    radius: Positive = 0.1

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "networks": ("1-6-6-1",),
            "targets": ("sinc@100",),
            "iterations": 100,
            "seeds": 24,
        },
        "standard": {"seeds": 100},
        "paper": {
            "networks": ("1-8-8-8-8-1", "1-5-10-10-10-10-10-5-1"),
            "targets": ("sinc", "cosine_over_x@300", "sine_plus_x@300"),
            "activations": ("tanh", "leaky_relu"),
            "iterations": 400,
            "seeds": 100,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.correlates(
            "minimal_ratio",
            "critical_loss",
            sign=-1,
            within="weight_decay",
            smallest_effect=0.1,
            sentence="At critical points, the minimal ratio falls as the loss rises",
            answer=Answer(
                supported="at points of zero gradient, the higher the loss the fewer "
                "directions lead up",
                refuted="at points of zero gradient, a higher loss does not go with "
                "fewer directions that lead up",
                open="whether fewer directions lead up where the loss is higher",
            ),
        ),
        Claim.at_least(
            "reached",
            0.5,
            within="weight_decay",
            quantity="share of searches that reach zero gradient",
            sentence="At least half of the searches end in a true critical point",
            answer=Answer(
                supported="at least half of the searches reach such a point",
                refuted="fewer than half of the searches reach such a point",
                open="whether half of the searches reach such a point",
            ),
        ),
        Claim.correlates(
            "ratio_above_rounding",
            "loss",
            sign=-1,
            within="weight_decay",
            smallest_effect=0.1,
            sentence="As courses count, wherever the search ends: a higher minimal "
            "ratio goes with a lower loss",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="Dauphin et al. 2014",
            setting="theory, for eigenvalues of random signs",
            quantity="saddles against minima",
            value="more saddles, the more so the higher the loss",
        ),
        Reported(
            who="Frye et al. 2021",
            quantity="published critical points",
            value="mostly gradient-flat regions",
        ),
        Reported(
            who="published solutions of courses",
            setting="float32, threshold 0",
            quantity="minimal ratio",
            value="0.50 to 0.54",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "A network whose last weights are zero is constant. When is its gradient zero? "
        "Find it in a figure.",
        "Set tolerance=1e-4. Which verdicts turn over, and how many of the points are "
        "still critical?",
        "Set activations=relu. How many eigenvalues are zero at a critical point? "
        "Along which directions?",
        "Multiply the loss by 100. Which recorded numbers change, and what does that "
        "say of a threshold?",
        "Why is the share of neighbors with a higher loss near 1 where many "
        "eigenvalues are negative?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Dauphin et al., Identifying and attacking the saddle point problem, NeurIPS "
        "2014, arXiv:1406.2572.",
        "Pascanu et al., On the saddle point problem for non-convex optimization, "
        "2014, arXiv:1405.4604.",
        "Frye et al., Critical point-finding methods reveal gradient-flat regions of "
        "deep network losses, Neural Computation 2021, arXiv:2003.10397.",
        "Fukumizu and Amari, Local minima and plateaus in hierarchical structures of "
        "multilayer perceptrons, Neural Networks 2000.",
    )

    def validate(self) -> None:
        """Check that the networks are small enough, and of one variable."""
        for widths in map(models.parse_widths, self.networks):
            size = models.parameter_count(widths)
            if widths[0] != 1 or widths[-1] != 1 or size > MOST_PARAMETERS:
                raise UsageError(
                    f"networks: {list(widths)} with {size:,} parameters is unusable. "
                    "It must begin and end with 1, as 1-9-1, and have at most "
                    f"{MOST_PARAMETERS:,}: each step takes the Hessian."
                )

    def conditions(self) -> list[Condition]:
        """Combine every network, target and activation with every penalty."""
        return [
            Condition(
                network=network,
                target=target,
                activation=activation,
                weight_decay=decay,
            )
            for network in self.networks
            for target in self.targets
            for activation in self.activations
            for decay in self.weight_decays
        ]

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        activation: Any = condition["activation"]
        return models.dense(str(condition["network"]), activation)

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        points = data.target(str(trial.condition["target"])).train()
        return penalized(float(trial.condition["weight_decay"])), points

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train for a while, search for zero gradient from there, count eigenvalues."""
        from nablab.instruments import Replicas

        condition = trials.condition
        points = data.target(str(condition["target"])).train()
        decay = float(condition["weight_decay"])
        # Networks of one seed begin alike and stop at the same step, whatever their
        # penalty.
        shared = [factor for factor in condition if factor != "weight_decay"]
        stops = [self.stop(lab.seed(trial, "stop", by=shared)) for trial in trials]
        result = lab.train(
            training.Supervised(lambda: self.network_of(condition)),
            points,
            training.Recipe(
                steps=self.steps,
                optimizer=training.Adam(
                    learning_rate=self.learning_rate, weight_decay=decay
                ),
                probes=[_stopping_at(stops)],
                eval_every=self.steps,
            ),
            seeds=[lab.seed(trial, "weights", by=shared) for trial in trials],
        )
        trained = []
        for place, (trial, outcome) in enumerate(zip(trials, result, strict=True)):
            if outcome.stop_reason == "diverged":
                lab.record(trial, reached=False, reason="diverged in training")
                continue
            trained.append(place)
            lab.record(trial, train_mse=outcome.final, steps=outcome.steps_taken)
        if trained:
            tensors = {name: t[trained] for name, t in result.parameters().items()}
            replicas = Replicas(self.network_of(condition), tensors)
            self._search(replicas, points, [trials[place] for place in trained], lab)

    def _search(
        self, replicas: Replicas, points: Pair, trials: Sequence[Trial], lab: Lab
    ) -> None:
        """Search for a critical point near each network, and record what kind it is."""
        from nablab.instruments import find_critical_point, inertia

        loss = penalized(float(trials[0].condition["weight_decay"]))
        # Arrays, one value a network: `Replicas` were given.
        found: Any = find_critical_point(
            replicas,
            loss,
            points,
            tolerance=self.tolerance,
            max_iterations=self.iterations,
            # L-BFGS before takes longer and gets less far than the second-order steps
            # alone.
            lbfgs_iterations=0,
        )
        kind: Any = inertia(
            found.replicas,
            loss,
            points,
            noise_factor=self.noise_factor,
            radii=(self.radius,),
        )
        floor = kind.noise_floor + _shift(
            found.replicas, found.reached, kind.eigenvalues, loss, points
        )
        for place, trial in enumerate(trials):
            values = kind.eigenvalues[place]
            positive = int(sum(values > floor[place]))
            negative = int(sum(values < -floor[place]))
            decided, reached = positive + negative, bool(found.reached[place])
            lab.record(
                trial,
                loss_before=found.loss_before[place],
                loss=kind.loss[place],
                critical_loss=kind.loss[place] if reached else nan,
                reached=reached,
                gradient_norm_before=found.gradient_norm_before[place],
                gradient_norm=kind.gradient_norm[place],
                flatness=kind.flatness[place],
                positive=positive,
                zero=len(values) - decided,
                negative=negative,
                minimal_ratio=positive / len(values),
                minimal_ratio_nonzero=positive / decided if decided else nan,
                ratio_above_rounding=kind.minimal_ratio[place],
                noise_floor=kind.noise_floor[place],
                floor=floor[place],
                neighbor_ratio=kind.neighbor_ratio[place, 0],
                distance=found.distance[place],
                iterations=int(found.iterations[place]),
                reason=found.reason[place],
            )
            lab.array(trial, "eigenvalues", values)

    def stop(self, seed: int) -> int:
        """Choose the step at which a training ends, in tens.

        It is drawn log-uniform up to `steps`.
        """
        import numpy as np

        share = float(np.random.default_rng(seed).uniform())
        return round(float(FIRST_STOP * (self.steps / FIRST_STOP) ** share) / 10) * 10

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw minimal ratio against loss, searches that reached zero, and spectra."""
        ratio = plots.outcomes(
            records,
            "loss",
            "minimal_ratio",
            ("loss at the end of the search", "minimal ratio"),
            "Minimal ratio against loss",
            "Only filled circles are critical points and can speak for the claim. A "
            "column of them has the loss of the best constant function: places on one "
            "critical set.",
        )
        reached = plots.outcomes(
            records,
            "gradient_norm_before",
            "gradient_norm",
            ("norm of the gradient before the search", "norm of the gradient after it"),
            "How many searches reached zero gradient",
            "The line is the tolerance. What stays above it is no critical point, "
            "however small it is.",
            self.tolerance,
        )
        return {"ratio": ratio, "reached": reached, "spectra": plots.spectra(records)}


def penalized(weight_decay: float) -> Loss:
    """Return the mean squared error, penalized unless the weight decay is 0.

    The penalty is half the weight decay times the squared norm of the weights.
    """
    from nablab.instruments import Penalized

    return Penalized("mse", weight_decay) if weight_decay else "mse"


def _shift(
    replicas: Replicas, reached: Any, eigenvalues: Any, loss: Loss, points: Pair
) -> Any:
    """Measure how far further steps still move the eigenvalues of reached points.

    These are the points that reached zero.

    Returns:
        float64 (K,); 0 where zero was not reached.
    """
    import numpy as np

    from nablab.instruments import find_critical_point, inertia

    shift, places = np.zeros(len(eigenvalues)), np.flatnonzero(reached)
    if len(places):
        nearer = find_critical_point(
            replicas.select(places.tolist()),
            loss,
            points,
            tolerance=EXACT,
            max_iterations=FURTHER,
            lbfgs_iterations=0,
        )
        again = inertia(nearer.replicas, loss, points, neighbors=0)
        shift[places] = np.abs(again.eigenvalues - eigenvalues[places]).max(axis=1)
    return shift


def _stopping_at(stops: Sequence[int]) -> Probe:
    """Make a probe that ends each replica at a step of its own."""

    class Stopping(training.Probe):
        every = 10

        def on_step_end(self, context: Context) -> None:
            for replica, stop in enumerate(stops):
                if context.step == stop:
                    context.stop(replica)

    return Stopping()
