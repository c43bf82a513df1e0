"""How the sensitivity of outputs to inputs depends on training.

The batch size, the labels and augmentation are varied.
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
    Record,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.data.fields import ImagesField
from nablab.models.fields import NetworkField, OwnModelField
from nablab.settings import Epochs, Factor, Ge, Le, Positive, Rising, Samples, Steps

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data import Task


DESIGNS = (EPOCHS, STEPS, LOSS) = ("equal epochs", "equal steps", "equal loss")
LEARNED = "all learned"
TRAININGS = (PLAIN, RANDOM, AUGMENTED) = ("true labels", "random labels", "augmented")
MEASURED = (
    "test_loss",
    "test_accuracy",
    "sensitivity",
    "sensitivity_standard_error",
    "logit_sensitivity",
    "misclassified",
    "correct",
    "error_detection",
    "error_detection_by_confidence",
)
SIZES = (64, 256, 1_000, 4_000, 10_000)
KINDS = {"sensitivity": "probabilities", "logit_sensitivity": "logits"}
NAMES = {
    f"{split}_{kind}": split
    for split in ("train", "test")
    for kind in ("loss", "accuracy")
}
BY_SIZE: Mapping[str, Any] = {"by": "batch_size", "within": "design"}
BY_TRAINING: Mapping[str, Any] = {
    "by": "training",
    "where": {"design": LEARNED},
    "scale": "log10",
}
LARGER = Answer(
    supported="trained to one loss, networks of large batches are more sensitive",
    refuted="trained to one loss, networks of large batches are not more sensitive",
    open="whether large batches themselves make a network more sensitive",
)


@dataclass(frozen=True)
class Sensitivity(Experiment):
    """Do large batches make a network more sensitive to its inputs?

    Sensitivity at an input is the Frobenius norm of the Jacobian of the outputs with
    respect to that input: how far they move when pixels move. Norms of weight gradients
    are another quantity (gradient-norm). ``sensitivity`` takes softmax probabilities as
    outputs, as Novak et al. (2018) do, ``logit_sensitivity`` the logits. They differ:
    where a network is sure of itself the softmax is flat, so while training goes on,
    the Jacobian of the logits grows and that of the probabilities shrinks. Both are
    means over test inputs, in units of one standard deviation of the pixels.

    Reports disagree on what a larger batch does to it, and the same networks give all
    of the answers. With a larger batch, as many epochs are fewer steps and end at a
    higher loss; as many steps are more epochs and end at a lower one. In a third
    design, equal loss, training ends below a threshold: what remains there is due to
    the batch size. One optimizer, one learning rate. As Novak et al. did, the networks
    of another part are trained until every training image is right.

    In the part "all learned" batches are equal, and training goes on until 99.9 % of
    the images are right as labeled: with true labels, with random ones, and with images
    shifted at random. ``error_detection`` is the probability that a misclassified test
    input is more sensitive than a correct one (area under the ROC curve),
    ``error_detection_by_confidence`` the same for 1 - the largest probability, without
    a Jacobian.

    What to expect (quick, run with 8 seeds). From a batch of 32 to one of 640 the
    sensitivity rises by 49 % at equal epochs, falls by 28 % at equal steps, and stays
    within 5 % at equal loss. On logits the first two turn over. Random labels raise it
    13 times, augmentation does nothing to it. It tells misclassified inputs by 0.96,
    and so does confidence. On 10,000 images of MNIST (standard, 64 to 10,000) equal
    loss is not equal: the largest batch ends 20 % more sensitive. Random labels raise
    it 24 times, augmentation lowers it 1.3 times.

    Running time on two cores: quick half a minute, standard seven minutes; paper hours
    (estimated).

    Attributes:
        data: The images, at 28 x 28 in gray: mnist, digits, a folder or a .npz;
            mnist@10000 draws so many.
        network: The network by its name or its layers; see
            `nablab.models.image_network`.
        model: Your own network instead: package.module:factory or
            path/to/file.py:factory.
        batch_sizes: Images per step, rising.
        epochs: Passes over the training images at equal epochs.
        steps: Optimizer steps at equal steps.
        loss: Training loss at equal loss.
        batch_size: Images per step in the part "all learned".
        most_steps: Where a loss or an accuracy ends training, it ends after so many
            steps at the latest.
        corrupted: The share of labels drawn anew in the condition "random labels".
        shift: Augmentation moves an image by up to so many pixels.
        inputs: So many test images are measured.
        optimizer: Optimizer of all networks.
        learning_rate: Learning rate of all networks.
        decay: In the part "all learned" the learning rate is multiplied by it after
            every epoch.
    """

    topic: ClassVar[str] = "generalization"

    data: ImagesField = "mnist@10000"
    network: NetworkField = "flatten-300-300"
    model: OwnModelField = None
    batch_sizes: Annotated[tuple[Samples, ...], Rising(least=2)] = SIZES
    epochs: Epochs = 10
    steps: Steps = 100
    loss: Positive = 0.05
    batch_size: Samples = 250
    most_steps: Steps = 6_000
    corrupted: Factor = 1.0
    shift: Annotated[int, Ge(1), Le(14)] = 2
    inputs: Samples = 500
    optimizer: Literal["Adam", "AdamW", "RMSprop", "SGD"] = "Adam"
    learning_rate: Positive = 2e-3
    decay: Factor = 0.99

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits@640",
            "network": "flatten-96-96",
            "batch_sizes": (32, 64, 160, 320, 640),
            "steps": 50,
            "batch_size": 128,
            "most_steps": 1_500,
            "decay": 0.998,
            "inputs": 250,
            "loss": 0.1,
            "seeds": 9,
        },
        "standard": {"seeds": 9},
        "paper": {
            "data": "mnist",
            "network": "flatten-512-512",
            "epochs": 50,
            "steps": 3_000,
            "loss": 0.01,
            "most_steps": 60_000,
            "inputs": 10_000,
            "learning_rate": 1e-3,
            "seeds": 10,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.falls(
            "sensitivity",
            **BY_SIZE,
            sentence="Sensitivity falls as the batch grows (two courses)",
        ),
        Claim.equal(
            "sensitivity",
            margin=0.25,
            **BY_SIZE,
            sentence="Sensitivity is almost constant: within a quarter at all sizes "
            "(one course)",
        ),
        Claim.falls(
            "logit_sensitivity",
            **BY_SIZE,
            quantity="sensitivity of the logits",
            sentence="Measured on logits, sensitivity falls as the batch grows",
        ),
        Claim.greater(
            "sensitivity",
            RANDOM,
            PLAIN,
            smallest_effect=log10(1.1),
            **BY_TRAINING,
            sentence="Random labels raise the sensitivity (Novak et al. 2018)",
            answer=Answer(
                supported="random labels make a network more sensitive",
                refuted="random labels do not make a network more sensitive",
                open="whether random labels make a network more sensitive",
            ),
        ),
        Claim.less(
            "sensitivity",
            AUGMENTED,
            PLAIN,
            smallest_effect=log10(1.1),
            **BY_TRAINING,
            sentence="Augmentation lowers the sensitivity (Novak et al. 2018)",
        ),
        Claim.at_least(
            "error_detection",
            0.6,
            quantity="area under the ROC curve of sensitivity and errors",
            where={"design": LEARNED, "training": PLAIN},
            sentence="Sensitivity tells misclassified test inputs (Novak et al. 2018)",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        *(
            Reported(
                who="Novak et al. 2018",
                setting="trained until every training image is right; figures",
                quantity=f"sensitivity under {change}",
                value=value,
            )
            for change, value in (
                ("full batches", "higher"),
                ("random labels", "higher"),
                ("augmentation", "lower"),
            )
        ),
        Reported(
            who="Novak et al. 2018",
            setting="trained until every training image is right; figures",
            quantity="sensitivity at misclassified inputs",
            value="higher than at others",
        ),
        Reported(
            who="two courses", quantity="sensitivity as the batch grows", value="falls"
        ),
        Reported(
            who="one course",
            quantity="sensitivity as the batch grows",
            value="almost constant",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Multiply the last layer's weights by 10. What happens to the two "
        "sensitivities, and to accuracy?",
        "Two courses and a paper disagree. Which design and which outputs does each "
        "need to be right?",
        "Set optimizer=SGD learning_rate=0.1. Which verdicts turn over, and does the "
        "loss explain it?",
        "Why do sensitivity and confidence tell misclassified inputs equally well? "
        "Start with two classes.",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Novak et al., Sensitivity and generalization in neural networks, ICLR 2018, "
        "arXiv:1802.08760.",
        "Keskar et al., On large-batch training for deep learning, ICLR 2017, "
        "arXiv:1609.04836.",
    )

    def validate(self) -> None:
        """Check that no batch exceeds the images, and that the network takes them."""
        task = self.task
        sizes = (*self.batch_sizes, self.batch_size)
        data.check_batches(self.data, task.samples, sizes)
        self.compared.check(task, batch_sizes=sizes)

    @property
    def task(self) -> Task:
        """The images."""
        return data.image_task(self.data)

    @property
    def compared(self) -> models.Networks:
        """The one network, which may be your own."""
        return models.Networks(() if self.model else (self.network,), self.model)

    def conditions(self) -> list[Condition]:
        """List every batch size in three designs, and three kinds of training."""
        sizes = [
            Condition(design=design, training=PLAIN, batch_size=size)
            for design in DESIGNS
            for size in self.batch_sizes
        ]
        kinds = [
            Condition(design=LEARNED, training=kind, batch_size=self.batch_size)
            for kind in TRAININGS
        ]
        return sizes + kinds

    def active_claims(self) -> tuple[Claim, ...]:
        """Return the class's claims, and one on the smallest and the largest batch."""
        small, large = self.batch_sizes[0], self.batch_sizes[-1]
        extreme = Claim.greater(
            "sensitivity",
            large,
            small,
            by="batch_size",
            where={"design": LOSS},
            scale="log10",
            smallest_effect=log10(1.1),
            sentence=f"At equal loss batches of {large:,} raise the sensitivity (Novak "
            "et al. 2018)",
            answer=LARGER,
        )
        return (*self.claims, extreme)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.compared.builder(self.compared.names[0], self.task)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = self.task
        images, labels = task.prepared()
        if trial.condition["training"] == RANDOM:
            labels = self._redrawn(labels, trial, lab)
        return task.loss, (images, labels)

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train a network per seed and measure how its outputs react to test images."""
        import torch

        condition, task = trials.condition, self.task
        lab.note(*task.notes)
        images, labels = task.train()
        batch_size = int(condition["batch_size"])
        sizes = (*self.batch_sizes, self.batch_size)
        data.check_batches(self.data, len(images), sizes)
        redrawn = condition["training"] == RANDOM
        if redrawn:
            labels = torch.stack([self._redrawn(labels, t, lab) for t in trials])
        augment = data.Augment(shift=self.shift)
        result = lab.train(
            training.Supervised(
                self.compared.builder(self.compared.names[0], task), "cross_entropy"
            ),
            (images, labels),
            training.Recipe(
                batch_size=batch_size,
                optimizer=training.optimizer(
                    self.optimizer, learning_rate=self.learning_rate
                ),
                prepare=task.prepare,
                augment=augment if condition["training"] == AUGMENTED else None,
                # Of training: Jacobians are always in float32.
                precision="auto",
                per_replica_targets=redrawn,
                **self._ending(condition, len(images)),
            ),
            # All conditions start from the same weights: they are compared in pairs.
            seeds=[lab.seed(trial, "weights", by=()) for trial in trials],
        )
        missed = result.stop_reason.count("budget")
        if condition["design"] in (LOSS, LEARNED) and missed:
            lab.note(
                f"{condition}: {missed} of {len(trials)} networks did not get there "
                f"within most_steps={self.most_steps:,} and are measured as they are."
            )
        test = task.prepared(held_out=True)
        for trial, outcome in lab.each(zip(trials, result, strict=True)):
            lab.record(
                trial,
                train_loss=outcome.final,
                train_accuracy=outcome.last()["train_accuracy"],
                steps=outcome.steps_taken,
                stop_reason=outcome.stop_reason,
            )
            # A diverged network has no Jacobian.
            measured = {}
            if isfinite(outcome.final):
                measured = _measure(outcome.module(), *test, self.inputs)
            lab.record(trial, **{name: measured.get(name, nan) for name in MEASURED})
            lab.array(trial, "chance", [1 / task.outputs])

    def _redrawn(self, labels: Tensor, trial: Trial, lab: Seeds) -> Tensor:
        """Return the labels of a seed, a share of them drawn at random."""
        classes, seed = self.task.outputs, lab.seed(trial, "labels", by=())
        return data.corrupt(labels, self.corrupted, classes=classes, seed=seed).labels

    def _ending(self, condition: Condition, samples: int) -> dict[str, Any]:
        """Choose when training ends, and how often it is evaluated to know."""
        epoch = training.steps_per_epoch(samples, int(condition["batch_size"]))
        if condition["design"] == EPOCHS:
            steps = self.epochs * epoch
            return {"steps": steps, "eval_every": steps}
        if condition["design"] == STEPS:
            return {"steps": self.steps, "eval_every": self.steps}
        if condition["design"] == LEARNED:
            return {
                "steps": self.most_steps,
                "eval_every": epoch,
                "stop": [
                    training.Threshold(0.999, metric="train_accuracy", above=True)
                ],
                # At a constant rate no network learned all of the shifted images: they
                # stayed at 99.6 %.
                "schedule": training.Exponential(self.decay ** (1 / epoch)),
            }
        # An evaluation costs a third of an epoch. The loss falls fast, so it is looked
        # at more often.
        return {
            "steps": self.most_steps,
            "eval_every": max(4, epoch // 4),
            "stop": [training.Threshold(self.loss)],
        }

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Return the score of chance."""
        chance = records.shared_array("chance")
        scores = {"error_detection": 0.5}
        if chance is not None:
            scores["test_accuracy"] = float(chance[0])
        return {metric: {"chance": score} for metric, score in scores.items()}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw sensitivity against batch size, what explains it, and labels."""
        by_size = Records(r for r in records if r.condition["design"] in DESIGNS)
        learned = records.where(design=LEARNED)
        against: Mapping[str, Any] = {"x": "batch_size", "color_by": "design"}
        sizes = plots.trend(
            by_size,
            {f"sensitivity of {name}": [metric] for metric, name in KINDS.items()},
            log_y=True,
            names=KINDS,
            title="Sensitivity against batch size",
            **against,
            caption="The design decides which way the lines go; probabilities and "
            "logits go opposite ways.",
        )
        scores = plots.trend(
            by_size,
            {kind: [f"train_{kind}", f"test_{kind}"] for kind in ("loss", "accuracy")},
            names=NAMES,
            title="How far training went",
            caption="Which sizes end at a lower loss?",
            **against,
        )
        kinds = plots.dots(
            learned,
            "sensitivity",
            by="training",
            panel_by="",
            log_y=True,
            title="Labels and augmentation",
            caption="All networks fit their own labels of the training images.",
        )
        errors = plots.dots(
            _by_correctness(learned),
            "sensitivity",
            by="inputs",
            panel_by="training",
            log_y=True,
            title="Misclassified and correct test inputs",
            caption="After random labels nearly every test input is misclassified, so "
            "the two are alike.",
        )
        return {"sizes": sizes, "scores": scores, "kinds": kinds, "errors": errors}


def _measure(module: nn.Module, x: Tensor, y: Tensor, count: int) -> dict[str, float]:
    """Score a network on the test set, and measure it at some of its inputs.

    Args:
        module: In evaluation mode.
        x: Test inputs (N, C, H, W).
        y: Their labels (N,).
        count: How many inputs to measure at, evenly spaced.
    """
    import torch

    from nablab.instruments import input_sensitivity

    logits = metrics.outputs(module, x)
    right, places = logits.argmax(1) == y, data.evenly_spaced(len(x), count)
    wrong = ~right[places].numpy()
    doubt = 1 - logits[places].softmax(1).amax(1).numpy()
    found = input_sensitivity(module, x[places], of="probabilities")
    of_logits = input_sensitivity(module, x[places], of="logits")
    return {
        "test_loss": float(torch.nn.functional.cross_entropy(logits, y)),
        "test_accuracy": float(right.double().mean()),
        "sensitivity": found.mean,
        "sensitivity_standard_error": found.standard_error,
        "logit_sensitivity": of_logits.mean,
        "misclassified": float(found.norms[wrong].mean()) if wrong.any() else nan,
        "correct": float(found.norms[~wrong].mean()) if (~wrong).any() else nan,
        "error_detection": _area(found.norms, wrong),
        "error_detection_by_confidence": _area(doubt, wrong),
    }


def _area(scores: Any, wrong: Any) -> float:
    """Compute the probability that a wrong one scores higher than another.

    This is the area under the ROC curve, NaN where there is no pair to compare.
    """
    from scipy.stats import mannwhitneyu

    pairs = int(wrong.sum()) * int((~wrong).sum())
    return (
        float(mannwhitneyu(scores[wrong], scores[~wrong]).statistic) / pairs
        if pairs
        else nan
    )


def _by_correctness(records: Records) -> Records:
    """Give the two means over test inputs, told apart by a factor."""
    return Records(
        Record(
            Condition(**r.condition, inputs=name),
            r.seed,
            {"sensitivity": r.scalars.get(name, nan)},
        )
        for name in ("misclassified", "correct")
        for r in records
    )
