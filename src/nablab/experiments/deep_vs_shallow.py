"""Dense networks of one size and different depth learn functions of one variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, log10, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Figure,
    Lab,
    Level,
    Published,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.data.fields import FunctionField
from nablab.errors import UsageError
from nablab.models.fields import Activation, NetworkList, OwnModelField
from nablab.settings import Distinct, NotNegative, Positive, Steps
from nablab.settings.kinds import YOURS
from nablab.training.fields import OptimizerName

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data import Target

TRIOS: Mapping[str, Mapping[str, str]] = {
    # 571, 572 and 571 parameters.
    "equal": {
        "deep": "1-5-10-10-10-10-10-5-1",
        "middle": "1-10-18-15-4-1",
        "shallow": "1-190-1",
    },
    # 2,361, 1,511 and 701 parameters, as one course compared them. It gave the middle
    # one's count only.
    "unmatched": {
        "deep": "1-10-20x6-1",
        "middle": "1-20-25-35-1",
        "shallow": "1-20-30-1",
    },
    "none": {},
}
PAPER_TARGETS = ("sinc", "sign_sin", "quadratic_sine", "sawtooth")
MEAN, SPLINE = "mean of the training targets", "cubic spline through the points"
# Under these settings a training here is the one that courses reported: a step is an
# epoch.
SINC: Mapping[str, Any] = {"trio": "equal", "optimizer": "Adam", "threshold": 1e-3}
SIGN_SIN: Mapping[str, Any] = {"trio": "equal", "optimizer": "Adam", "steps": 20_000}
# Losses span decades, so they are compared by their ratio; a factor of 1.5 is the
# smallest that matters here.
DECADES: Mapping[str, Any] = {
    "by": "model",
    "scale": "log10",
    "smallest_effect": log10(1.5),
}


@dataclass(frozen=True)
class DeepVsShallow(Experiment):
    """Does depth help at an equal number of parameters?

    One hidden layer is enough in principle: with enough units it comes as close as you
    like to any continuous function on an interval (Cybenko 1989; Leshno et al. 1993).
    The theorem does not say how many units that takes. A layer of n ReLU units draws at
    most n + 1 straight pieces. Layers compose, and composition can double the pieces at
    every layer: the tent map, 2x up to 1/2 and 2 - 2x after it, composed k times is a
    sawtooth of 2^(k-1) teeth and 2^k pieces. A network of k layers with two units each
    equals it, and one hidden layer needs 2^k - 1 units (Telgarsky 2016). So depth wins
    in what can be represented. Whether gradient descent finds it is another question,
    and the one asked here: three networks of 571 or 572 parameters with seven, four and
    one hidden layers learn the same few points.

    What to expect (10 seeds, 20,000 steps). On the smooth sinc most networks get below
    0.001: the deep one after about 1,100 steps, the shallow one after about 1,900. On
    the discontinuous sign_sin depth makes steeper jumps: seven of ten deep networks end
    below every shallow one (0.07 to 0.12), but the worst gives up a wave and ends at
    0.25. Look at the spread over seeds before you look at the mean. On the sawtooth (k
    = 4) an exact network of 25 parameters exists and no deep one finds it; the shallow
    networks end lowest. With 30 seeds (paper) the shallow networks also win on
    quadratic_sine, 24 times lower, and the two questions on sinc and sign_sin stay
    open. What depth can represent is not what training finds.

    Two courses trained the same networks at the same learning rate, one seed each, and
    found opposite rankings on sign_sin: the spread over seeds exceeds the effect. That
    is why every number here comes with several seeds.

    Networks train on evenly spaced points and are scored midway between them, so that a
    jump cannot be learned by heart. Nobody is stopped at the threshold: that would make
    all losses equal. ``converged`` means that the best loss fell by less than 1 % over
    the last tenth of the steps; a rule on one small change of the loss would call every
    plateau an end.

    Running time on two cores: quick and standard under half a minute, paper about five
    minutes; without a C compiler quick takes two minutes. The preset unmatched repeats
    a comparison of networks whose sizes differ, and says so.

    Attributes:
        targets: What to learn: sinc, sign_sin, quadratic_sine, sine_plus_x,
            cosine_over_x, sawtooth, sawtooth-K for 2^K pieces, or an expression of x
            such as x*sin(x)@-3..3@300 (domain, points).
        trio: The networks deep, middle and shallow: equal in size, unmatched in size,
            or none.
        networks: Further dense networks by their widths, such as 1-30-30-1,1-10-20x6-1.
        model: Your own network as a further condition: package.module:factory or
            path/to/file.py:factory.
        activation: Activation of the hidden layers.
        optimizer: Optimizer, on the full batch.
        learning_rate: Learning rate.
        weight_decay: L2 penalty; above 0 it bounds the loss that can be reached.
            Decoupled for AdamW.
        steps: Optimizer steps; one step is one epoch.
        threshold: The training loss whose first crossing is counted in steps.
    """

    topic: ClassVar[str] = "optimization"

    targets: Annotated[tuple[FunctionField, ...], Distinct()] = ("sinc", "sign_sin")
    trio: Literal["equal", "unmatched", "none"] = "equal"
    networks: NetworkList = ()
    model: OwnModelField = None
    activation: Activation = "leaky_relu"
    optimizer: OptimizerName = "Adam"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    steps: Steps = 20_000
    threshold: Positive = 1e-3

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "targets": ("sinc", "sign_sin", "sawtooth"),
            "steps": 8_000,
            "seeds": 7,
        },
        "standard": {"seeds": 10},
        "paper": {"targets": PAPER_TARGETS, "steps": 25_000, "seeds": 30},
        "unmatched": {"trio": "unmatched", "activation": "relu", "seeds": 10},
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        # Trials of one seed share nothing but the data, for the architectures differ:
        # not paired.
        Claim.less(
            "held_out_mse",
            "deep",
            "shallow",
            within="target",
            **DECADES,
            sentence="The deep network has a lower held-out error than the shallow one",
            answer=Answer(
                supported="at an equal number of parameters the deep network errs less",
                refuted="at an equal number of parameters depth does not help",
                open="whether depth helps",
            ),
        ),
        Claim.less(
            "train_mse",
            "deep",
            "shallow",
            where={"target": "sign_sin"},
            **DECADES,
            published=Published(
                log10(0.052 / 0.184), "one course, one seed; another course: 0.36"
            ),
            sentence="On sign_sin the deep network has a lower training loss than the "
            "shallow one",
        ),
        Claim.less(
            "steps_to_threshold",
            "deep",
            "shallow",
            by="model",
            where={"target": "sinc"},
            scale="ranks",
            smallest_effect=0.3,
            published=Published(
                961, "one course, one seed, at 0.001; shallow 2,186", of="metric"
            ),
            sentence="On sinc the deep network gets below the threshold sooner than "
            "the shallow one",
        ),
        Claim.at_least(
            "held_out_mse",
            1e-3,
            where={"target": "sawtooth", "model": "deep"},
            sentence="Training does not find the sawtooth, although a smaller network "
            "equals it",
            answer=Answer(
                supported="training misses a sawtooth that a smaller deep network "
                "could represent",
                refuted="training finds the sawtooth",
                open="whether training finds the sawtooth",
            ),
        ),
        Claim.equal(
            "parameters",
            by="model",
            margin=0.01,
            exact=True,
            sentence="The compared networks have the same number of parameters within "
            "1 %",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        *(
            Reported(
                who="a course",
                setting=f"sinc, {model} network, Adam",
                seeds=1,
                value=epochs,
                quantity="epochs until the loss is 0.001",
                metric="steps_to_threshold",
                where={"target": "sinc", "model": model},
                fields=SINC,
            )
            for model, epochs in {"deep": 961, "middle": 857, "shallow": 2_186}.items()
        ),
        *(
            Reported(
                who=who,
                setting=f"sign_sin, {model} network, 20,000 epochs",
                seeds=1,
                value=loss,
                quantity="training loss",
                metric="train_mse",
                where={"target": "sign_sin", "model": model},
                fields=SIGN_SIN,
            )
            for who, losses in (
                ("a course", (0.052, 0.122, 0.184)),
                ("another course", (0.423, 0.098, 0.184)),
            )
            for model, loss in zip(("deep", "middle", "shallow"), losses, strict=True)
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "How many straight pieces can each of the three networks draw at most? Count "
        "them in a trained one.",
        "Set activation=tanh. Which verdicts turn over, and why might smooth units "
        "help on sinc?",
        "Some deep networks predict a constant on the sawtooth. At which layer does "
        "the signal die?",
        "Find the largest K for which training learns sawtooth-K. Does depth raise it?",
        "Set weight_decay=1e-4. Which loss can no longer be reached, and what does "
        "that do to the ranking?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Cybenko, Approximation by superpositions of a sigmoidal function, 1989.",
        "Leshno et al., Multilayer networks with a nonpolynomial activation "
        "approximate any function, 1993.",
        "Telgarsky, Benefits of depth in neural networks, COLT 2016, arXiv:1602.04485.",
    )

    @property
    def widths(self) -> dict[str, str]:
        """The dense networks of this configuration: condition name to widths."""
        return {**TRIOS[self.trio], **{widths: widths for widths in self.networks}}

    @property
    def names(self) -> list[str]:
        """The networks of this configuration, yours last."""
        return [*self.widths, *([YOURS] if self.model else [])]

    def validate(self) -> None:
        """Check that there is something to compare, and that it takes one number."""
        if not self.names:
            raise UsageError("There is nothing to compare: give at least one network.")
        compared = models.Networks((*self.widths.values(),), self.model)
        compared.check(data.task(self.targets[0]))

    def conditions(self) -> list[Condition]:
        """Combine every target with every network."""
        return [
            Condition(model=name, target=target)
            for target in self.targets
            for name in self.names
        ]

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.builder(str(condition["model"]))()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        return "mse", data.target(str(trial.condition["target"])).train()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train a network per seed and score it between the training points."""
        build = self.builder(str(trials.condition["model"]))
        target = data.target(str(trials.condition["target"]))
        x_held_out, y_held_out = target.held_out()
        result = lab.train(
            training.Supervised(build),
            target.train(),
            training.Recipe(
                steps=self.steps,
                optimizer=training.optimizer(
                    self.optimizer,
                    learning_rate=self.learning_rate,
                    weight_decay=self.weight_decay,
                ),
                held_out={"held_out": (x_held_out, y_held_out)},
                converged=training.Plateau(window_steps=max(1, self.steps // 10)),
                eval_every=max(1, self.steps // 200),
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        errors = _errors(result.predict(x_held_out), y_held_out)
        errors_at_best = _errors(result.predict(x_held_out, at="best"), y_held_out)
        steps_to_threshold = result.steps_to(self.threshold)
        for place, trial in enumerate(trials):
            lab.record(
                trial,
                train_mse=result.final[place],
                held_out_mse=errors[place],
                best_train_mse=result.best[place],
                held_out_mse_at_best=errors_at_best[place],
                steps_to_threshold=steps_to_threshold[place],
                parameters=_count(build()),
                converged=bool(result.converged[place]),
                stop_reason=result.stop_reason[place],
            )
            lab.curve(trial, "train_mse", *_thinned(result.train_loss[place]))
            held_out = result.evaluations["held_out_loss"][place]
            lab.curve(trial, "held_out_mse", result.evaluation_steps, held_out)
            lab.array(trial, "reference_errors", [*_references(target).values()])
        self._keep_predictions(target, result, trials, lab)
        sizes = {name: _count(self.builder(name)()) for name in self.names}
        if max(sizes.values()) > 1.01 * min(sizes.values()):
            listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            lab.note(
                f"Sizes differ ({listed} parameters): size, not depth, may explain a "
                "better score."
            )

    def builder(self, name: str) -> Callable[[], nn.Module]:
        """Return what builds one fresh network of a condition."""
        if name == YOURS and self.model is not None:
            return models.load_factory(self.model)
        widths = self.widths[name]
        return lambda: models.dense(widths, self.activation)

    def _keep_predictions(
        self, target: Target, result: training.Training, trials: Trials, lab: Lab
    ) -> None:
        """Keep the truth and what every network says, for a figure."""
        import numpy as np
        import torch

        x = np.sort(np.concatenate([target.grid(), target.midpoints()]))
        # Figures are some 800 pixels wide.
        x = x[:: ceil(len(x) / 1_200)]
        outputs = result.predict(torch.from_numpy(x).float()[:, None])
        predictions = outputs[..., 0].cpu().numpy()
        for place, trial in enumerate(trials):
            lab.array(trial, "x", x.astype(np.float32))
            lab.array(trial, "truth", target.truth(x).astype(np.float32))
            lab.array(trial, "prediction", predictions[place])

    def active_claims(self) -> tuple[Claim, ...]:
        """Select the claims whose targets and networks this configuration runs."""
        return tuple(
            claim
            for claim in super().active_claims()
            if len(self.names) > 1 or claim.kind != "equality"
        )

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Collect the errors to compare with, for every target.

        They are those of the mean, a spline and an exact network.
        """
        errors = {
            f"{spec}: {name}": error
            for spec in self.targets
            for name, error in _kept_references(records, spec).items()
        }
        return {"held_out_mse": errors}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw loss against steps, truth and predictions, and the final errors."""
        means: dict[Level, Mapping[str, float]] = {}
        for spec in self.targets:
            errors = _kept_references(records, spec)
            means[spec] = {MEAN: errors[MEAN]} if errors else {}
        return {
            "loss": plots.curves(
                records,
                curve="train_mse",
                log_x=True,
                x_label="steps (full batch)",
                y_label="training loss (MSE)",
                title="Loss against steps",
                caption="See how far the seeds of one network lie apart, and the long "
                "plateaus before a fall.",
            ),
            "predictions": plots.predictions(
                records,
                title="Truth and predictions",
                caption="See the jumps and the outer waves: a network that gave up "
                "there is nearly flat.",
            ),
            "error": plots.dots(
                records,
                "held_out_mse",
                log_y=True,
                baselines=means,
                y_label="held-out error (MSE)",
                title="Final error between the training points",
                caption="A network at the line has learned nothing but the mean.",
            ),
        }


def _references(target: Target) -> dict[str, float]:
    """Compute held-out errors to compare with.

    They are those of the mean, a cubic spline, and an exact network.
    """
    import numpy as np
    from scipy.interpolate import CubicSpline

    x, seen = target.midpoints(), target.truth(target.grid())
    predictions = {MEAN: seen.mean(), SPLINE: CubicSpline(target.grid(), seen)(x)}
    depth = data.sawtooth_depth(target.name)
    if depth is not None and target.low >= 0 and target.high <= 1:
        exact = models.sawtooth_network(depth)(target.held_out()[0])[:, 0]
        predictions[_exact(depth)] = exact.detach().numpy()
    truth = target.truth(x)
    return {
        name: float(np.mean((prediction - truth) ** 2))
        for name, prediction in predictions.items()
    }


def _kept_references(records: Records, spec: str) -> dict[str, float]:
    """Read what `_references` gave for a target from the records."""
    errors = records.where(target=spec).shared_array("reference_errors")
    if errors is None:
        return {}
    names = [MEAN, SPLINE, _exact(data.sawtooth_depth(spec) or 0)]
    return dict(zip(names, map(float, errors), strict=False))


def _exact(depth: int) -> str:
    """Name the network that is the sawtooth of this depth."""
    return f"exact network, {6 * depth + 1} parameters"


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _errors(predictions: Tensor, y: Tensor) -> Any:
    """Compute the mean squared error per replica, NaN if it diverged.

    Args:
        predictions: (K, N, 1).
        y: (N, 1).

    Returns:
        float64 (K,).
    """
    errors = (predictions.cpu().double() - y.double()).square().mean(dim=(1, 2))
    return errors.nan_to_num(nan, posinf=nan).numpy()


def _thinned(losses: Any) -> tuple[Any, Any]:
    """Choose about 500 steps, evenly spaced on a log axis, while the loss is finite."""
    import numpy as np

    steps = np.unique(np.geomspace(1, len(losses), 500).astype(np.int64)) - 1
    steps = steps[np.isfinite(losses[steps])]
    return steps, losses[steps]
