"""The norm of the gradient while networks learn functions of one variable or images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log10, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Curve,
    Experiment,
    Figure,
    Lab,
    Published,
    Record,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.data.fields import TaskField
from nablab.models.fields import Activation, NetworkList, OwnModelField
from nablab.settings import Distinct, Ge, Le, Positive, Samples, Steps
from nablab.training.fields import OptimizerName

if TYPE_CHECKING:
    from torch import Tensor, nn

DEEP = "1-5-10x5-5-1"  # 571 parameters
DENSE = "784-256-128-64-10"
# Norms span decades, so they are compared by their ratio; a factor of 1.5 is the
# smallest that matters.
DECADES: Mapping[str, Any] = {"scale": "log10", "smallest_effect": log10(1.5)}
# Stretches of the training whose mean norms are compared: single spikes do not count.
BLOCKS = 20


@dataclass(frozen=True)
class GradientNorm(Experiment):
    """How does the gradient shrink while a network learns?

    The gradient g of the training loss points where the loss rises fastest, and its
    norm |g| says how steep the surface is at the present weights. At a minimum it is
    zero. So it is tempting to read a small norm as "nearly done", but a plateau has a
    small gradient as well, and so has a network whose signal has died. That is why the
    loss is drawn beside the norm, on the same axis.

    Two norms are easily confused. The full-batch norm belongs to the loss over all
    samples. A minibatch of B samples has the gradient g plus noise, and the mean of its
    squared norm is |g|^2 + tr(S)/B, where S is the covariance of single samples'
    gradients. As training goes on |g|^2 falls and the noise takes over: the minibatch
    norm levels off while the true gradient still shrinks. A curve made of minibatch
    norms shows the noise. McCandlish et al. 2018 turn the ratio tr(S)/|g|^2 into the
    largest batch size that pays.

    A third number says what the optimizer makes of the gradient: the update-to-weight
    ratio, the length of one step over the length of the weights; near 0.001 is healthy
    by rule of thumb. Adam divides the mean of recent gradients by their recent size, so
    a gradient that keeps its direction makes steps of one length however small it is.
    Steps shrink where the direction keeps turning over: the network then bounces across
    a valley, and the norm jitters instead of going to zero.

    What to expect (10 seeds). The norm falls by two to four decades, and not steadily:
    on sinc a third to a half of all twentieths of the training are higher than the one
    before, for Adam bounces. Whether it rises first depends on the task: on sinc it
    drops from the first step on; on sine_plus_x, whose values reach 10, it rises in the
    two deep networks (3.4 and 2.5 times) and not in the shallow one. On sinc the loss
    goes on falling while the norm jitters: Kendall's tau between them is 0.25 to 0.4.
    At the end the norm on 32 samples is 7 to 45 times the full one, so a curve of
    minibatch norms shows noise. And a small norm is no proof of success: look for the
    deep network on sinc whose norm is below all others while its loss stays at 0.087,
    that of a constant. On MNIST (2 seeds, two epochs) the norm of LeNet rose 9 and 21
    times, that of a dense network 5 and 6 times, while the loss fell. There the
    full-batch norm is estimated from a sample, without the bias that tr(S)/n would give
    it; ``sampling_error`` is its error.

    Running time on two cores: quick ten seconds, standard half a minute, mnist and
    paper some ten minutes.

    Attributes:
        targets: What to learn: functions as in deep-vs-shallow (sinc, x*sin(x)@-3..3),
            or images (mnist).
        networks: Dense networks by their widths, such as 1-5-10x5-5-1; for images also
            names such as lenet.
        model: Your own network as a further condition: package.module:factory or
            path/to/file.py:factory.
        activation: Activation of the hidden layers.
        optimizer: Optimizer.
        learning_rate: Learning rate.
        batch_size: Samples per training step; all of them if not given.
        minibatch: Samples of the minibatch whose gradient is measured beside the full
            one.
        samples: Estimate full-batch norm and loss from so many samples; all of them if
            not given.
        steps: Optimizer steps.
        measurements: How many times the gradient is measured on the way.
    """

    topic: ClassVar[str] = "optimization"

    version: ClassVar[int] = 2

    targets: Annotated[tuple[TaskField, ...], Distinct()] = ("sinc", "sine_plus_x@2000")
    networks: NetworkList = (DEEP, "1-500-1", "1-10-30x3-1")
    model: OwnModelField = None
    activation: Activation = "relu"
    optimizer: OptimizerName = "Adam"
    learning_rate: Positive = 1e-3
    batch_size: Samples | None = None
    minibatch: Samples = 32
    samples: Samples | None = None
    steps: Steps = 2_000
    measurements: Annotated[int, Ge(1), Le(100_000)] = 100

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"targets": ("sinc",), "networks": (DEEP, "1-500-1"), "seeds": 10},
        "standard": {"seeds": 10},
        "paper": {"targets": ("sinc", "sine_plus_x@20000"), "seeds": 30},
        "mnist": {
            "targets": ("mnist",),
            "networks": ("lenet", DENSE),
            "batch_size": 64,
            "minibatch": 64,
            "samples": 6_000,
            "steps": 2 * 938,
            "measurements": 40,
            "seeds": 8,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_most(
            "norm_at_end_over_start",
            1.0,
            within="model",
            **DECADES,
            quantity="gradient norm at the end over that at the start",
            sentence="The gradient norm is lower at the end of training than at its "
            "start",
            answer=Answer(
                supported="the gradient's norm ends lower than it began",
                refuted="the gradient's norm does not end lower than it began",
                open="whether the norm ends lower than it began",
            ),
        ),
        *(
            Claim.at_least(
                "norm_at_peak_over_start",
                1.5,
                within="target",
                where={"model": model},
                scale="log10",
                quantity="highest gradient norm over that at the start",
                sentence=f"The norm of {model} first rises to 1.5 times its start or "
                "more",
            )
            for model in (DEEP, "1-500-1", "1-10-30x3-1", "lenet", DENSE)
        ),
        Claim.at_least(
            "share_falling",
            0.95,
            within="model",
            quantity="share of twentieths that are lower than the one before",
            sentence="The norm declines steadily: every twentieth of the training is "
            "lower",
            answer=Answer(
                supported="the norm declines steadily",
                refuted="on the way the norm does not decline steadily",
                open="whether the norm declines steadily",
            ),
        ),
        Claim.at_least(
            "tau_with_loss",
            0.0,
            within="model",
            smallest_effect=0.2,
            quantity="Kendall's tau of norm with loss",
            sentence="Norm and loss fall and level off together (Kendall's tau over "
            "steps)",
        ),
        Claim.at_most(
            "norm_at_1800_over_100",
            1.0,
            where={"model": DEEP, "target": "sinc"},
            **DECADES,
            quantity="norm at step 1,800 over that at step 100",
            published=Published(0.0057 / 0.0428, "course A, one seed", of="metric"),
            sentence="On sinc the norm falls between steps 100 and 1,800",
        ),
        Claim.at_least(
            "minibatch_over_full_norm",
            1.5,
            within="model",
            scale="log10",
            quantity="minibatch norm over full-batch norm",
            sentence="At the end the minibatch norm is one and a half times the full "
            "one or more",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        *(
            Reported(
                who="course A",
                setting=f"sinc, network of 571 parameters, epoch {epoch:,}",
                seeds=1,
                quantity="gradient norm",
                value=norm,
                metric=f"norm_at_{epoch}",
                where={"model": DEEP, "target": "sinc"},
                fields={"optimizer": "Adam", "learning_rate": 1e-3},
            )
            for epoch, norm in {100: 0.0428, 1_800: 0.0057}.items()
        ),
        Reported(
            who="course C",
            setting="one training",
            quantity="course of the norm",
            seeds=1,
            value="rises first, then falls and levels off together with the loss",
        ),
        Reported(
            who="course E",
            setting="one training",
            quantity="course of the norm",
            seeds=1,
            value="declines steadily",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Set optimizer=SGD and learning_rate=0.05. Does the norm still jitter at the "
        "end, and why not?",
        "Set minibatch=2 and minibatch=128. Where do the two norms part, and does the "
        "formula predict it?",
        "Find a stretch where the loss stands still. Is the gradient small there, or "
        "does it bounce?",
        "Which layer has the largest gradient at the start and at the end? Try "
        "activation=sigmoid.",
        "Set batch_size=32. What limits the loss now, and what would you do with the "
        "learning rate?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "McCandlish et al., An empirical model of large-batch training, 2018, "
        "arXiv:1812.06162.",
        "Kingma and Ba, Adam: a method for stochastic optimization, ICLR 2015, "
        "arXiv:1412.6980.",
    )

    def validate(self) -> None:
        """Check that every network takes every target, and its last batch."""
        for task in map(data.task, self.targets):
            self.compared.check(task, batch_sizes=[self.batch_size])

    def conditions(self) -> list[Condition]:
        """Combine every target with every network."""
        return [
            Condition(model=name, target=target)
            for target in self.targets
            for name in self.compared.names
        ]

    def active_claims(self) -> tuple[Claim, ...]:
        """Select the claims whose target, network and steps this configuration runs."""
        return tuple(
            claim
            for claim in super().active_claims()
            if claim.metric != "norm_at_1800_over_100" or self.steps >= 1_800
        )

    @property
    def compared(self) -> models.Networks:
        """The networks, yours last."""
        return models.Networks(self.networks, self.model, self.activation)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        task = data.task(str(condition["target"]))
        return self.compared.builder(str(condition["model"]), task)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = data.task(str(trial.condition["target"]))
        return task.loss, task.prepared()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train one network per seed and measure its gradients on the way."""
        task = data.task(str(trials.condition["target"]))
        build = self.compared.builder(str(trials.condition["model"]), task)
        samples, every = task.train(), max(1, self.steps // self.measurements)
        probe = training.GradientNorms(
            build,
            samples,
            every=every,
            minibatch=self.minibatch,
            samples=self.samples,
            loss=task.loss,
            prepare=task.prepare,
        )
        result = lab.train(
            training.Supervised(build, task.loss),
            samples,
            training.Recipe(
                steps=self.steps,
                batch_size=self.batch_size,
                optimizer=training.optimizer(
                    self.optimizer, learning_rate=self.learning_rate
                ),
                prepare=task.prepare,
                # The first points of a function are no sample of them.
                train_samples=self.samples if task.data_set else None,
                eval_every=every,
                probes=[probe],
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        lab.note(*task.notes)
        if probe.norm_errors.size:
            lab.note(
                f"The full-batch norm is an estimate from {self.samples} samples; see "
                "sampling_error."
            )
        for place, trial in enumerate(trials):
            self._record(place, trial, result, probe, lab)

    def _record(
        self,
        place: int,
        trial: Trial,
        result: training.Training,
        probe: training.GradientNorms,
        lab: Lab,
    ) -> None:
        """Record the norms of one trial, of all weights and by layer, and its loss."""
        import numpy as np

        evaluated = np.searchsorted(result.evaluation_steps, probe.steps)
        loss = result.evaluations["train_loss"][place][evaluated]
        norms, minibatch = probe.norms[place], probe.minibatch_norms[place]
        lab.curve(trial, "training loss", probe.steps, loss)
        lab.curve(trial, "full-batch norm", probe.steps, norms)
        lab.curve(trial, f"norm on {self.minibatch} samples", probe.steps, minibatch)
        for name, layer in _three(_layers(probe.parts)).items():
            lab.curve(trial, f"norm, {name}", probe.steps, layer[place])
        weights = {n: r for n, r in probe.part_ratios.items() if n.endswith("weight")}
        # The last step has no update after it.
        for name, ratios in _three(weights).items():
            lab.curve(trial, f"ratio, {name}", probe.steps[:-1], ratios[place, :-1])
        sampling_error = 0.0
        if probe.norm_errors.size:
            sampling_error = float((probe.norm_errors[place] / norms).mean())
        lab.record(
            trial,
            train_loss=result.final[place],
            sampling_error=sampling_error,
            stop_reason=result.stop_reason[place],
            **_statistics(probe.steps, norms, minibatch, loss),
        )

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw norms and loss in one figure, then norms and update ratios by layer."""
        images = data.image_sets(self.targets)
        kinds = ["cross-entropy" if t in images else "MSE" for t in self.targets]
        losses = " or ".join(dict.fromkeys(kinds))
        return {
            "norms": _curves(
                _by_curve(records, lambda name: ", " not in name),
                y_label=f"gradient norm, loss ({losses})",
                title="Gradient norm and loss",
                caption="See where the minibatch norm parts from the full one: from "
                "there on it shows noise.",
            ),
            "layers": _curves(
                _by_curve(records, lambda name: name.startswith("norm, ")),
                y_label="gradient norm of one layer",
                title="Gradient norm of each layer",
                caption="Weights and bias together; the first layer is next to the "
                "input.",
            ),
            "ratios": _curves(
                _by_curve(records, lambda name: name.startswith("ratio, ")),
                y_label="update-to-weight ratio of one step",
                title="Update-to-weight ratio of each layer",
                caption="Weights only. With Adam a falling ratio means that gradients "
                "keep changing direction.",
            ),
        }


def _curves(records: Records, *, y_label: str, title: str, caption: str) -> Figure:
    """Draw curves by color, with a panel per case."""
    return plots.curves(
        records,
        curve="value",
        color_by="curve",
        panel_by="case",
        y_label=y_label,
        title=title,
        caption=caption,
    )


def _by_curve(records: Records, wanted: Callable[[str], bool]) -> Records:
    """Make one record per wanted curve, with its name and case as the condition."""
    return Records(
        Record(
            Condition(
                curve=name,
                case=f"{record.condition['model']} on {record.condition['target']}",
            ),
            record.seed,
            {},
            curves={"value": Curve(*record.curves[name])},
        )
        for record in records
        # The last layer comes after the middle one.
        for name in sorted(record.curves, key=lambda name: "last" in name)
        if wanted(name)
    )


def _layers(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Compute norms by layer: the parameters of one module together."""
    import numpy as np

    squares: dict[str, Any] = {}
    for name, norms in parts.items():
        layer = name.rpartition(".")[0]
        squares[layer] = squares.get(layer, 0) + np.square(norms)
    return {layer: np.sqrt(total) for layer, total in squares.items()}


def _three(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the first, the middle and the last layer, or what there is of them."""
    values = list(layers.values())
    names = {
        0: "first layer",
        len(values) // 2: "middle layer",
        len(values) - 1: "last layer",
    }
    return {name: values[place] for place, name in sorted(names.items())}


def _statistics(steps: Any, norms: Any, minibatch: Any, loss: Any) -> dict[str, float]:
    """Compute what the claims are about, from one run; NaN if it ended early."""
    import numpy as np
    from scipy.stats import kendalltau

    with np.errstate(divide="ignore", invalid="ignore"):
        full, noisy = np.log10(norms), np.log10(minibatch)
    quarter, tail = max(2, len(full) // 4), max(1, len(full) // 10)
    blocks = np.array_split(full, min(BLOCKS, len(full)))
    means = np.array([block.mean() for block in blocks])
    at_100, at_1800 = (full[np.abs(steps - step).argmin()] for step in (100, 1_800))
    end, noisy_end = full[-tail:].mean(), noisy[-tail:].mean()
    falling = float(np.mean(np.diff(means) < 0))
    return {
        "first_norm": float(norms[0]),
        "final_norm": float(10**end),
        "norm_at_end_over_start": float(10 ** (end - full[0])),
        "norm_at_peak_over_start": float(10 ** (full[:quarter].max() - full[0])),
        "share_falling": falling if np.isfinite(means).all() else nan,
        "tau_with_loss": float(kendalltau(norms, loss).statistic),
        "norm_at_1800_over_100": float(10 ** (at_1800 - at_100)),
        "norm_at_100": float(10**at_100),
        "norm_at_1800": float(10**at_1800),
        "minibatch_over_full_norm": float(10 ** (noisy_end - end)),
    }
