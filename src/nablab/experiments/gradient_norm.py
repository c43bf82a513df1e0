"""The norm of the gradient while networks learn functions of one variable or images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Le

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Curve,
    Experiment,
    Lab,
    Published,
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

DEEP = "1-5-10x5-5-1"  # 571 parameters
DENSE = "784-256-128-64-10"
YOURS = "yours"
# Norms span decades, so they are compared by their ratio; a factor of 1.5 is the
# smallest that matters.
DECADES: Mapping[str, Any] = {"scale": "log10", "smallest_effect": log10(1.5)}
# stretches of the training whose mean norms are compared, so that single spikes do not
# count
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

    targets: tuple[str, ...] = ("sinc", "sine_plus_x@2000")
    networks: tuple[str, ...] = (DEEP, "1-500-1", "1-10-30x3-1")
    model: str | None = None
    activation: Literal[
        "leaky_relu", "relu", "tanh", "sigmoid", "gelu", "silu", "elu"
    ] = "relu"
    optimizer: Literal["Adam", "AdamW", "RMSprop", "SGD"] = "Adam"
    learning_rate: float = 1e-3
    batch_size: Samples | None = None
    minibatch: Samples = 32
    samples: Samples | None = None
    steps: Steps = 2_000
    measurements: Annotated[int, Le(100_000)] = 100

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"targets": ("sinc",), "networks": (DEEP, "1-500-1"), "seeds": 10},
        "standard": {"seeds": 10},
        "paper": {"targets": ("sinc", "sine_plus_x@20000"), "seeds": 30},
        "mnist": {"targets": ("mnist",), "networks": ("lenet", DENSE), "batch_size": 64, "minibatch": 64,
                  "samples": 6_000, "steps": 2 * 938, "measurements": 40, "seeds": 8},
    }  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_most("norm_at_end_over_start", 1.0, within="model", **DECADES,
                      quantity="gradient norm at the end over that at the start",
                      sentence="The gradient norm is lower at the end of training than "
                               "at its start",
                      answer=Answer(supported="the gradient's norm ends lower than it "
                                              "began",
                                    refuted="the gradient's norm does not end lower "
                                            "than it began",
                                    open="whether the norm ends lower than it began")),
        *(Claim.at_least("norm_at_peak_over_start", 1.5, within="target", where={"model": model},
                         scale="log10", quantity="highest gradient norm over that at "
                                                 "the start",
                         sentence=f"The norm of {model} first rises to 1.5 times its "
                                  "start or more")
          for model in (DEEP, "1-500-1", "1-10-30x3-1", "lenet", DENSE)),
        Claim.at_least("share_falling", 0.95, within="model",
                       quantity="share of twentieths that are lower than the one "
                                "before",
                       sentence="The norm declines steadily: every twentieth of the "
                                "training is lower",
                       answer=Answer(supported="the norm declines steadily",
                                     refuted="on the way the norm does not decline "
                                             "steadily",
                                     open="whether the norm declines steadily")),
        Claim.at_least("tau_with_loss", 0.0, within="model", smallest_effect=0.2,
                       quantity="Kendall's tau of norm with loss",
                       sentence="Norm and loss fall and level off together (Kendall's "
                                "tau over steps)"),
        Claim.at_most("norm_at_1800_over_100", 1.0, where={"model": DEEP, "target": "sinc"}, **DECADES,
                      quantity="norm at step 1,800 over that at step 100",
                      published=Published(0.0057 / 0.0428, "course A, one seed", of="metric"),
                      sentence="On sinc the norm falls between steps 100 and 1,800"),
        Claim.at_least("minibatch_over_full_norm", 1.5, within="model", scale="log10",
                       quantity="minibatch norm over full-batch norm",
                       sentence="At the end the minibatch norm is one and a half times "
                                "the full one or more"),
    )  # fmt: skip
    reported: ClassVar[tuple[Reported, ...]] = (
        *(Reported(who="course A", setting="sinc, network of 571 parameters, epoch "
                                           f"{epoch:,}", seeds=1,
                   quantity="gradient norm", value=norm, metric=f"norm_at_{epoch}",
                   where={"model": DEEP, "target": "sinc"},
                   fields={"optimizer": "Adam", "learning_rate": 1e-3})
          for epoch, norm in {100: 0.0428, 1_800: 0.0057}.items()),
        Reported(who="course C", setting="one training", quantity="course of the norm", seeds=1,
                 value="rises first, then falls and levels off together with the loss"),
        Reported(who="course E", setting="one training", quantity="course of the norm", seeds=1,
                 value="declines steadily"),
    )  # fmt: skip
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

    @property
    def names(self) -> list[str]:
        """The networks of this configuration, yours last."""
        return [*self.networks, *([YOURS] if self.model else [])]

    def validate(self) -> None:
        """Check every number, target and network, and the user's own one on a few
        points.
        """
        for key in (
            "learning_rate",
            "steps",
            "measurements",
            "minibatch",
            "batch_size",
            "samples",
        ):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(
                    f"{key}={value} is impossible: it must be above 0 and finite."
                )
        if len(set(self.targets)) < len(self.targets) or len(set(self.names)) < len(
            self.names
        ):
            raise UsageError(
                "targets and networks name each one once; one of them is given twice."
            )
        if not self.targets or not self.names:
            raise UsageError(
                "There is nothing to train: give at least one of targets "
                "and one network."
            )
        for task in map(data.task, self.targets):
            form: Any = {"shape": task.shape, "outputs": task.outputs}
            form |= {"samples": task.train_samples, "batch_sizes": [self.batch_size]}
            for network in self.networks:
                models.check_network(network, **form)
            if self.model is not None:
                models.check_model(self.model, **form)

    def data_sets(self) -> tuple[str, ...]:
        """The images among the targets."""
        return data.image_sets(self.targets)

    def conditions(self) -> list[Condition]:
        """Every target with every network."""
        return [
            Condition(model=name, target=target)
            for target in self.targets
            for name in self.names
        ]

    def sources(self) -> Mapping[str, str]:
        """The user's network: a changed file makes a new run."""
        return {"model": models.source_hash(self.model)} if self.model else {}

    def active_claims(self) -> tuple[Claim, ...]:
        """The claims whose target, network and steps this configuration runs."""
        run = {*self.targets, *self.names}
        claims = (claim for claim in self.claims if set(claim.where.values()) <= run)
        return tuple(
            c
            for c in claims
            if c.metric != "norm_at_1800_over_100" or self.steps >= 1_800
        )

    def builder(self, name: str, task: data.Task) -> Callable[[], nn.Module]:
        """What builds one fresh network of a condition."""
        if name == YOURS and self.model is not None:
            return models.load_factory(self.model)
        form: Any = {
            "shape": task.shape,
            "outputs": task.outputs,
            "activation": self.activation,
        }
        return lambda: models.network(name, **form)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.builder(
            str(condition["model"]), data.task(str(condition["target"]))
        )()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = data.task(str(trial.condition["target"]))
        return task.loss, task.prepared()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train one network per seed and measure its gradients on the way."""
        import numpy as np

        condition = trials.condition

        task = data.task(str(condition["target"]))
        build, pair = self.builder(str(condition["model"]), task), task.train()
        every = max(1, self.steps // self.measurements)
        how: Any = {"loss": task.loss, "prepare": task.prepare}
        sizes: Any = {"minibatch": self.minibatch, "samples": self.samples}
        probe = training.GradientNorms(build, pair, every=every, **sizes, **how)
        result = lab.train(
            training.Supervised(build, task.loss),
            pair,
            training.Recipe(
                steps=self.steps,
                batch_size=self.batch_size,
                optimizer=getattr(training, self.optimizer)(
                    learning_rate=self.learning_rate
                ),
                prepare=task.prepare,
                # the first points are no sample
                train_samples=self.samples if task.data_set else None,
                eval_every=every,
                probes=[probe],
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        estimate = (
            f"The full-batch norm is an estimate from {self.samples} samples; "
            "see sampling_error."
        )
        for note in (*task.notes, *([estimate] if probe.norm_errors.size else [])):
            lab.note(note)
        evaluated = np.searchsorted(result.evaluation_steps, probe.steps)
        layers, errors = _layers(probe.parts), probe.norm_errors
        ratios = {
            name: value
            for name, value in probe.part_ratios.items()
            if name.endswith("weight")
        }
        for k, trial in enumerate(trials):
            loss = result.evaluations["train_loss"][k][evaluated]
            lab.curve(trial, "training loss", probe.steps, loss)
            lab.curve(trial, "full-batch norm", probe.steps, probe.norms[k])
            lab.curve(
                trial,
                f"norm on {self.minibatch} samples",
                probe.steps,
                probe.minibatch_norms[k],
            )
            for name, norms in _three(layers).items():
                lab.curve(trial, f"norm, {name}", probe.steps, norms[k])
            # the last step has no update after it
            for name, values in _three(ratios).items():
                lab.curve(trial, f"ratio, {name}", probe.steps[:-1], values[k, :-1])
            lab.record(
                trial,
                train_loss=result.final[k],
                sampling_error=float((errors[k] / probe.norms[k]).mean())
                if errors.size
                else 0.0,
                stop_reason=result.stop_reason[k],
                **_statistics(
                    probe.steps, probe.norms[k], probe.minibatch_norms[k], loss
                ),
            )

    def figures(self, records: Records) -> dict[str, plots.Figure]:
        """Norms and loss in one figure, then norms and update-to-weight ratios layer by
        layer.
        """
        losses = " or ".join(
            dict.fromkeys(task.loss_name for task in map(data.task, self.targets))
        )
        cases: Any = {"curve": "value", "color_by": "curve", "panel_by": "case"}
        both = plots.curves(
            _by_curve(records, lambda name: ", " not in name), **cases,
            y_label=f"gradient norm, loss ({losses})", title="Gradient norm and loss",
            caption="See where the minibatch norm parts from the full one: from there "
                    "on it shows noise.",
        )  # fmt: skip
        layers = plots.curves(
            _by_curve(records, lambda name: name.startswith("norm, ")), **cases,
            y_label="gradient norm of one layer", title="Gradient norm of each layer",
            caption="Weights and bias together; the first layer is next to the input.",
        )  # fmt: skip
        ratios = plots.curves(
            _by_curve(records, lambda name: name.startswith("ratio, ")), **cases,
            y_label="update-to-weight ratio of one step", title="Update-to-weight "
                                                                "ratio of each layer",
            caption="Weights only. With Adam a falling ratio means that gradients keep "
                    "changing direction.",
        )  # fmt: skip
        return {"norms": both, "layers": layers, "ratios": ratios}


def _by_curve(records: Records, wanted: Callable[[str], bool]) -> Records:
    """One record per wanted curve, so that a figure can color by curve and have a panel
    per case.
    """
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
        # after the middle layer
        for name in sorted(record.curves, key=lambda name: "last" in name)
        if wanted(name)
    )


def _layers(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Norms by layer: the parameters of one module together."""
    import numpy as np

    squares: dict[str, Any] = {}
    for name, norms in parts.items():
        layer = name.rpartition(".")[0]
        squares[layer] = squares.get(layer, 0) + np.square(norms)
    return {layer: np.sqrt(total) for layer, total in squares.items()}


def _three(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The first, the middle and the last of the layers, or what there is of them."""
    values = list(layers.values())
    names = {
        0: "first layer",
        len(values) // 2: "middle layer",
        len(values) - 1: "last layer",
    }
    return {name: values[place] for place, name in sorted(names.items())}


def _statistics(steps: Any, norms: Any, minibatch: Any, loss: Any) -> dict[str, float]:
    """What the claims are about, from one run; NaN if it ended early."""
    import numpy as np
    from scipy.stats import kendalltau

    with np.errstate(divide="ignore", invalid="ignore"):
        full, noisy = np.log10(norms), np.log10(minibatch)
    quarter, tail = max(2, len(full) // 4), max(1, len(full) // 10)
    means = np.array(
        [block.mean() for block in np.array_split(full, min(BLOCKS, len(full)))]
    )
    ends = [full[np.abs(steps - step).argmin()] for step in (100, 1_800)]
    return {
        "first_norm": float(norms[0]),
        "final_norm": float(10 ** full[-tail:].mean()),
        "norm_at_end_over_start": float(10 ** (full[-tail:].mean() - full[0])),
        "norm_at_peak_over_start": float(10 ** (full[:quarter].max() - full[0])),
        "share_falling": float(np.mean(np.diff(means) < 0))
        if np.isfinite(means).all()
        else float("nan"),
        "tau_with_loss": float(kendalltau(norms, loss).statistic),
        "norm_at_1800_over_100": float(10 ** (ends[1] - ends[0])),
        "norm_at_100": float(10 ** ends[0]),
        "norm_at_1800": float(10 ** ends[1]),
        "minibatch_over_full_norm": float(
            10 ** (noisy[-tail:].mean() - full[-tail:].mean())
        ),
    }
