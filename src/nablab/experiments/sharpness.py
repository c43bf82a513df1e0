"""Five measures of how flat a minimum is, against generalization.

The batch size and the learning rate are varied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, log10, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from nablab import data, metrics, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Figure,
    Lab,
    Published,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.data.fields import ImagesField
from nablab.models.fields import NetworkField, OwnModelField
from nablab.settings import (
    Distinct,
    Epochs,
    Ge,
    Le,
    NotNegative,
    Positive,
    Rising,
    Samples,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data.tasks import Pair, Task
    from nablab.training import Outcome


# A batch of one sample has no batch norm.
BatchSize = Annotated[int, Ge(2), Le(10**9)]
SIZES = (64, 256, 1_000, 4_000, 10_000)
KESKAR = "keskar_sharpness"
MEASURES = {
    KESKAR: "Keskar's sharpness",
    "average_sharpness": "average-case sharpness",
    "adaptive_sharpness": "adaptive worst case",
    "largest_eigenvalue": "largest eigenvalue",
    "trace": "trace of the Hessian",
}
HALF = "keskar_sharpness_5e_4"
SCORES = ("test_loss", "test_accuracy", "gap")
F1 = "keskar-f1"
TELLS = Answer(
    supported="where it is sharper the gap to the test images is wider",
    refuted="where it is sharper the gap to the test images is narrower",
    open="whether sharpness tells how well a network generalizes",
)


@dataclass(frozen=True)
class Sharpness(Experiment):
    """Do large batches end in sharp minima, and does sharpness tell how well a network
    generalizes?

    Keskar et al. (2017) say yes to both. Their sharpness is 100 (max f(x + z) - f(x)) /
    (1 + f(x)), where f is the training loss and z lies in the box of half-width ε
    (|x_i| + 1), searched by ten iterations of L-BFGS-B. They trained a network on MNIST
    (F1, five hidden layers of 512 units with batch norm) with batches of 256 and of
    6,000, a tenth of the data; the large batches ended far sharper. But a ReLU network
    computes the same function when a unit's inputs are scaled up and its outputs down,
    and the box then catches other networks: sharpness is no property of the function
    (Dinh et al. 2017).

    So here are five, of the same networks: Keskar's; the average rise of the loss under
    Gaussian changes of the weights (σ = 0.01); the largest rise when each weight
    changes by at most 0.5 % (adaptive, unmoved by rescaling; Auto-PGD); the largest
    eigenvalue of the Hessian; and its trace (Hutchinson, 20 products). Each is held
    against the gap, the training accuracy minus the test accuracy, by Kendall's tau
    over all batch sizes and learning rates. Beside them the training loss, the trivial
    measure: networks that are trained as many epochs with larger batches take fewer
    steps and are not at a minimum yet. The preset equal-loss ends all trainings at one
    loss and shows what remains.

    Batch norm is measured in eval mode, with the running statistics that training left,
    as the network is used. They lag behind the weights after few steps. All measures
    take the same evenly spaced training images, in float32, and worst cases are lower
    bounds: as good as their search.

    What to expect. Keskar's sharpness rises with the batch (quick, 5 seeds: tau 0.37,
    0.07 to 0.60, too few seeds for a verdict; 3.1 times from 40 to 640), and no measure
    tells the gap: the taus lie from -0.33 to -0.01. On MNIST (standard, rate 0.001,
    medians of 5 seeds) it is 6, 51, 746, 454 and 94 from a batch of 64 to one of
    10,000, whose 40 steps have not reached a minimum. On Keskar's own network (preset
    keskar) batches of 10,000 end 106 times as sharp as batches of 64 (39 to 209;
    published 147, for 6,000 against 256), and 5 seeds cannot tell their test accuracies
    apart. A high tau over batch sizes alone may be nothing but the batch size.

    Running time on two cores: quick 40 seconds, standard four minutes, keskar thirteen,
    paper hours (estimated).

    Attributes:
        data: The images, at 28 x 28 in gray: mnist, digits, a folder or a .npz;
            mnist@10000 draws so many.
        network: The network by its name or its layers; see
            `nablab.models.image_network`.
        model: Your own network instead: package.module:factory or
            path/to/file.py:factory.
        batch_sizes: Images per step, rising.
        learning_rates: Learning rates; every batch size is trained with each.
        epochs: Passes over the training images, the same for all.
        target_loss: Training ends when the training loss gets down to it; 0 for never.
        measured: So many training images are measured.
        both_radii: Measure Keskar's sharpness at ε = 5e-4, too.
        optimizer: Optimizer of all networks.
    """

    topic: ClassVar[str] = "generalization"

    data: ImagesField = "mnist@10000"
    network: NetworkField = "flatten-256-bn-256-bn"
    model: OwnModelField = None
    batch_sizes: Annotated[tuple[BatchSize, ...], Rising(least=2)] = SIZES
    learning_rates: Annotated[tuple[Positive, ...], Distinct()] = (1e-3, 4e-3)
    epochs: Epochs = 40
    target_loss: NotNegative = 0.0
    measured: Samples = 1_000
    both_radii: bool = False
    optimizer: Literal["Adam", "AdamW", "RMSprop", "SGD"] = "Adam"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits@640",
            "network": "flatten-32-bn-32-bn",
            "batch_sizes": (40, 80, 160, 320, 640),
            "learning_rates": (2e-3, 8e-3),
            "epochs": 20,
            "measured": 320,
            "seeds": 5,
        },
        "standard": {"seeds": 5},
        "equal-loss": {"epochs": 100, "target_loss": 0.05, "seeds": 5},
        "keskar": {
            "network": F1,
            "learning_rates": (1e-3,),
            "both_radii": True,
            "seeds": 5,
        },
        "paper": {
            "data": "mnist",
            "network": F1,
            "batch_sizes": (256, 6_000),
            "learning_rates": (1e-3,),
            "epochs": 100,
            "measured": 60_000,
            "both_radii": True,
            "seeds": 5,
        },
    }
    undecided: ClassVar[Mapping[str, str]] = {
        "keskar": "five batch sizes at one learning rate are too few conditions for a "
        "correlation with the gap; the preset is there to compare batches.",
        "paper": "Keskar et al. trained with two batch sizes, and two conditions show "
        "no correlation with the gap; the preset is there to compare them.",
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.rises(
            KESKAR,
            by="batch_size",
            quantity="Keskar's sharpness",
            sentence="Keskar's sharpness rises with the batch size",
            answer=Answer(
                supported="yes, larger batches end in sharper minima",
                refuted="no, larger batches end in minima that are less sharp",
                open="whether larger batches end in sharper minima",
            ),
        ),
        *(
            Claim.correlates(
                metric,
                "gap",
                paired=True,
                quantity=name,
                sentence="The gap rises with "
                f"{name if 'Keskar' in name else 'the ' + name}",
                answer=TELLS if metric == KESKAR else None,
            )
            for metric, name in MEASURES.items()
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        *(
            Reported(
                who="Keskar et al. 2017",
                setting=f"MNIST, F1, batches of {batch:,}",
                quantity=quantity,
                value=value,
                metric=metric,
                where={"batch_size": batch},
                fields={"data": "mnist", "network": F1, "measured": 60_000},
            )
            for batch, sharpness, accuracy in (
                (256, "1.23 ± 0.83", 0.9803),
                (6_000, "205 ± 70", 0.9781),
            )
            for quantity, value, metric in (
                ("sharpness at ε = 1e-3", sharpness, KESKAR),
                ("test accuracy", accuracy, "test_accuracy"),
            )
        ),
        Reported(
            who="Andriushchenko et al. 2023",
            setting="many measures on many networks",
            quantity="correlation with generalization",
            value="mostly none, and for some of the wrong sign",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Scale one layer by 10 and the next by 1/10. Which measures change, and which "
        "do not?",
        "Take --preset equal-loss. How much of the ratio between large and small "
        "batches remains?",
        "Draw the gap against the training loss. Does any measure say more than that?",
        "The eigenvalue is a limit of small changes. Why may Keskar's box still order "
        "networks differently?",
        "Set optimizer=SGD learning_rates=0.05,0.2. Whose tau changes its sign?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Keskar et al., On large-batch training for deep learning, ICLR 2017, "
        "arXiv:1609.04836.",
        "Dinh et al., Sharp minima can generalize for deep nets, ICML 2017, "
        "arXiv:1703.04933.",
        "Andriushchenko et al., A modern look at the relationship between sharpness "
        "and generalization, ICML 2023, arXiv:2302.07011.",
    )

    def validate(self) -> None:
        """Check that no batch exceeds the images, and that the network takes them."""
        task = self.task
        data.check_batches(self.data, task.samples, self.batch_sizes)
        self.compared.check(task, batch_sizes=self.batch_sizes)

    @property
    def task(self) -> Task:
        """The images."""
        return data.image_task(self.data)

    @property
    def compared(self) -> models.Networks:
        """The one network, which may be your own."""
        return models.Networks(() if self.model else (self.network,), self.model)

    def conditions(self) -> list[Condition]:
        """Combine every batch size with every learning rate."""
        return [
            Condition(batch_size=size, learning_rate=rate)
            for rate in self.learning_rates
            for size in self.batch_sizes
        ]

    def active_claims(self) -> tuple[Claim, ...]:
        """Return the class's claims, and two on the smallest and the largest batch."""
        small, large = self.batch_sizes[0], self.batch_sizes[-1]
        f1 = self.model is None and self.network == F1
        source = "Keskar et al. 2017, F1 on 60,000 images, batches of 256 and 6,000"
        ratio = Claim.greater(
            KESKAR,
            large,
            small,
            by="batch_size",
            scale="log10",
            smallest_effect=log10(5),
            published=Published(log10(205 / 1.23), source) if f1 else None,
            quantity="Keskar's sharpness",
            sentence=f"Batches of {large:,} end at least five times as sharp as "
            f"batches of {small:,}",
        )
        accuracy = Claim.greater(
            "test_accuracy",
            small,
            large,
            by="batch_size",
            smallest_effect=0.001,
            published=Published(0.9803 - 0.9781, source) if f1 else None,
            sentence=f"Batches of {small:,} give a higher test accuracy than batches "
            f"of {large:,}",
        )
        return (ratio, accuracy, *self.claims)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.compared.builder(self.compared.names[0], self.task)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        return self.task.loss, self.task.prepared()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train a network per seed and measure the surroundings of where it ends."""
        condition, task = trials.condition, self.task
        lab.note(*task.notes)
        images, labels = task.train()
        batch_size = int(condition["batch_size"])
        data.check_batches(self.data, len(images), self.batch_sizes)
        epoch = training.steps_per_epoch(len(images), batch_size)
        steps = self.epochs * epoch
        result = lab.train(
            training.Supervised(
                self.compared.builder(self.compared.names[0], task), "cross_entropy"
            ),
            (images, labels),
            training.Recipe(
                steps=steps,
                batch_size=batch_size,
                optimizer=training.optimizer(
                    self.optimizer, learning_rate=float(condition["learning_rate"])
                ),
                prepare=task.prepare,
                # Of training: measures are always in float32.
                precision="auto",
                stop=[training.Threshold(self.target_loss)] if self.target_loss else [],
                eval_every=max(2, epoch // 4) if self.target_loss else steps,
            ),
            # All conditions start from the same weights: they are compared in pairs.
            seeds=[lab.seed(trial, "weights", by=()) for trial in trials],
        )
        missed = result.stop_reason.count("budget")
        if self.target_loss and missed:
            lab.note(
                f"{condition}: {missed} of {len(trials)} networks did not get down to "
                f"a loss of {self.target_loss} in {self.epochs} epochs and are "
                "measured as they are."
            )
        inputs, targets = task.prepared()
        places = data.evenly_spaced(len(inputs), self.measured)
        chosen, test = (inputs[places], targets[places]), task.prepared(held_out=True)
        for trial, outcome in lab.each(zip(trials, result, strict=True)):
            lab.array(trial, "chance", [1 / task.outputs])
            self._record(trial, outcome, chosen, test, lab)

    def _record(
        self, trial: Trial, outcome: Outcome, chosen: Pair, test: Pair, lab: Lab
    ) -> None:
        """Record how far training went, and measure where it ended."""
        accuracy = outcome.last()["train_accuracy"]
        lab.record(
            trial,
            train_loss=outcome.final,
            train_accuracy=accuracy,
            steps=outcome.steps_taken,
            stop_reason=outcome.stop_reason,
        )
        # At a diverged network there is nothing to measure.
        values = dict.fromkeys((*SCORES, *MEASURES), nan)
        if isfinite(outcome.final):
            module = outcome.module()
            values = _scores(module, test, accuracy) | self._measures(module, chosen)
        lab.record(trial, **values)

    def _measures(self, module: nn.Module, chosen: Pair) -> dict[str, float]:
        """Compute the five measures, on some of the training images."""
        from nablab.instruments import hessian_eigenvalues, hessian_trace, sharpness

        at = (module, "cross_entropy", chosen)
        # Ten pairs of draws and 20 products leave errors of a few per cent, far less
        # than seeds differ by.
        largest = hessian_eigenvalues(*at, tolerance=1e-2, certify=False)
        keskar = sharpness(*at, definition="keskar", radius=1e-3)
        average = sharpness(*at, definition="average", draws=10)
        adaptive = sharpness(*at, definition="adaptive")
        trace = hessian_trace(*at, method="hutchinson", products=20)
        values = {
            KESKAR: keskar.sharpness,
            "average_sharpness": average.sharpness,
            "adaptive_sharpness": adaptive.sharpness,
            "largest_eigenvalue": float(largest.values[0]),
            "trace": trace.value,
        }
        if self.both_radii:
            half = sharpness(*at, definition="keskar", radius=5e-4)
            values[HALF] = half.sharpness
        return values

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Return the score of chance."""
        chance = records.shared_array("chance")
        if chance is None:
            return {}
        return {"test_accuracy": {"chance": float(chance[0])}}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw each measure by batch size, against the gap, and how training went."""
        against: Mapping[str, Any] = {"x": "batch_size", "color_by": "learning_rate"}
        measures = plots.trend(
            records,
            {name: [metric] for metric, name in MEASURES.items()},
            log_y=True,
            **against,
            names=dict.fromkeys(MEASURES, "measure"),
            title="Five measures against the batch size",
            caption="Which measures rise together, and where do they part?",
        )
        scores = plots.trend(
            records,
            {
                "loss (cross-entropy)": ["train_loss", "test_loss"],
                "accuracy": ["train_accuracy", "test_accuracy"],
            },
            **against,
            names={
                f"{split}_{kind}": split
                for split in ("train", "test")
                for kind in ("loss", "accuracy")
            },
            title="How far training went",
            caption="Equal epochs are fewer steps for larger batches.",
        )
        gap = plots.scatter(
            records,
            {
                "training loss": "train_loss",
                **{name: metric for metric, name in MEASURES.items()},
            },
            y="gap",
            color_by="batch_size",
            y_label="gap (train − test accuracy)",
            title="Does sharpness tell the gap?",
            caption="The training loss is the trivial measure: does any other say "
            "more?",
        )
        return {"measures": measures, "gap": gap, "scores": scores}


def _scores(module: nn.Module, test: Pair, train_accuracy: float) -> dict[str, float]:
    """Score the test split, and take the gap to the training accuracy."""
    from torch.nn.functional import cross_entropy

    images, labels = test
    logits = metrics.outputs(module, images)
    accuracy = float((logits.argmax(1) == labels).double().mean())
    return {
        "test_loss": float(cross_entropy(logits, labels)),
        "test_accuracy": accuracy,
        "gap": train_accuracy - accuracy,
    }
