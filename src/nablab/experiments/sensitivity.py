"""How the sensitivity of outputs to inputs depends on the batch size, the labels and
augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, log10, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Le

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Lab,
    Record,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.errors import UsageError
from nablab.settings.bounds import Epochs, Samples, Steps

if TYPE_CHECKING:
    from torch import Tensor, nn


DESIGNS = (EPOCHS, STEPS, LOSS) = ("equal epochs", "equal steps", "equal loss")
LEARNED = "all learned"
TRAININGS = (PLAIN, RANDOM, AUGMENTED) = ("true labels", "random labels", "augmented")
MEASURED = ("test_loss", "test_accuracy", "sensitivity", "sensitivity_standard_error", "logit_sensitivity",
            "misclassified", "correct", "error_detection", "error_detection_by_confidence")  # fmt: skip
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

    data: str = "mnist@10000"
    network: str = "flatten-300-300"
    model: str | None = None
    batch_sizes: tuple[Samples, ...] = (64, 256, 1_000, 4_000, 10_000)
    epochs: Epochs = 10
    steps: Steps = 100
    loss: float = 0.05
    batch_size: Samples = 250
    most_steps: Steps = 6_000
    corrupted: float = 1.0
    shift: Annotated[int, Le(14)] = 2
    inputs: Samples = 500
    optimizer: Literal["Adam", "AdamW", "RMSprop", "SGD"] = "Adam"
    learning_rate: float = 2e-3
    decay: float = 0.99

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"data": "digits@640", "network": "flatten-96-96", "batch_sizes": (32, 64, 160, 320, 640),
                  "steps": 50, "batch_size": 128, "most_steps": 1_500, "decay": 0.998, "inputs": 250,
                  "loss": 0.1, "seeds": 9},
        "standard": {"seeds": 9},
        "paper": {"data": "mnist", "network": "flatten-512-512", "epochs": 50, "steps": 3_000, "loss": 0.01,
                  "most_steps": 60_000, "inputs": 10_000, "learning_rate": 1e-3, "seeds": 10},
    }  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.falls("sensitivity", **BY_SIZE,
                    sentence="Sensitivity falls as the batch grows (two courses)"),
        Claim.equal("sensitivity", margin=0.25, **BY_SIZE,
                    sentence="Sensitivity is almost constant: within a quarter at all "
                             "sizes (one course)"),
        Claim.falls("logit_sensitivity", **BY_SIZE, quantity="sensitivity of the "
                                                             "logits",
                    sentence="Measured on logits, sensitivity falls as the batch "
                             "grows"),
        Claim.greater("sensitivity", RANDOM, PLAIN, smallest_effect=log10(1.1), **BY_TRAINING,
                      sentence="Random labels raise the sensitivity (Novak et al. "
                               "2018)",
                      answer=Answer(supported="random labels make a network more "
                                              "sensitive",
                                    refuted="random labels do not make a network more "
                                            "sensitive",
                                    open="whether random labels make a network more "
                                         "sensitive")),
        Claim.less("sensitivity", AUGMENTED, PLAIN, smallest_effect=log10(1.1), **BY_TRAINING,
                   sentence="Augmentation lowers the sensitivity (Novak et al. 2018)"),
        Claim.at_least("error_detection", 0.6, quantity="area under the ROC curve of "
                                                        "sensitivity and errors",
                       where={"design": LEARNED, "training": PLAIN},
                       sentence="Sensitivity tells misclassified test inputs (Novak et "
                                "al. 2018)"),
    )  # fmt: skip
    reported: ClassVar[tuple[Reported, ...]] = (
        *(Reported(who="Novak et al. 2018", setting="trained until every training "
                                                    "image is right; figures",
                   quantity=f"sensitivity under {change}", value=value)
          for change, value in (("full batches", "higher"), ("random labels", "higher"),
                                ("augmentation", "lower"))),
        Reported(who="Novak et al. 2018", setting="trained until every training image "
                                                  "is right; figures",
                 quantity="sensitivity at misclassified inputs", value="higher than at others"),
        Reported(who="two courses", quantity="sensitivity as the batch grows", value="falls"),
        Reported(who="one course", quantity="sensitivity as the batch grows", value="almost constant"),
    )  # fmt: skip
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
        """Check the numbers, the data and the network; no data are fetched."""
        for key in (
            "learning_rate",
            "loss",
            "epochs",
            "steps",
            "batch_size",
            "most_steps",
            "inputs",
        ):
            if not 0 < getattr(self, key) < inf:
                raise UsageError(
                    f"{key}={getattr(self, key)} is impossible: it must "
                    "be above 0 and finite."
                )
        for key in ("corrupted", "decay"):
            if not 0 < getattr(self, key) <= 1:
                raise UsageError(
                    f"{key}={getattr(self, key)} must be above 0 and at most 1."
                )
        if not 1 <= self.shift <= 14:
            raise UsageError(
                f"shift={self.shift} is no augmentation of 28 pixels: it "
                "must be from 1 to 14."
            )
        sizes = self.batch_sizes
        if len(sizes) < 2 or sizes[0] < 1 or sorted(set(sizes)) != list(sizes):
            raise UsageError(
                f"batch_sizes={list(sizes)} must be two or more, rising, from 1."
            )
        task = data.image_task(self.data)
        self._check_sizes(task.samples)
        form: Any = {"shape": task.shape, "outputs": task.outputs}
        form |= {
            "samples": task.train_samples,
            "batch_sizes": (*self.batch_sizes, self.batch_size),
        }
        models.check_network(self.network, **form)
        if self.model is not None:
            models.check_model(self.model, **form)

    def _check_sizes(self, samples: int | None) -> None:
        largest = max(*self.batch_sizes, self.batch_size)
        if samples is not None and largest > samples:
            raise UsageError(f"A batch of {largest:,} exceeds the {samples:,} training "
                             f"images of {self.data}: take smaller batches or more "
                             "images.")  # fmt: skip

    def conditions(self) -> list[Condition]:
        """Every batch size in three designs, and three kinds of training with equal
        batches.
        """
        levels = [
            (design, PLAIN, size) for design in DESIGNS for size in self.batch_sizes
        ]
        levels += [(LEARNED, training, self.batch_size) for training in TRAININGS]
        return [
            Condition(design=d, training=t, batch_size=size) for d, t, size in levels
        ]

    def sources(self) -> Mapping[str, str]:
        """The user's network: a changed file makes a new run."""
        return {"model": models.source_hash(self.model)} if self.model else {}

    def data_sets(self) -> tuple[str, ...]:
        """The images."""
        return (self.data,)

    def active_claims(self) -> tuple[Claim, ...]:
        """Those of the class, and one on the smallest and the largest batch of this
        configuration.
        """
        small, large = self.batch_sizes[0], self.batch_sizes[-1]
        novak = (
            f"At equal loss batches of {large:,} raise the sensitivity (Novak et "
            "al. 2018)"
        )
        extreme = Claim.greater("sensitivity", large, small, by="batch_size", where={"design": LOSS},
                                scale="log10", smallest_effect=log10(1.1), sentence=novak,
                                answer=LARGER)  # fmt: skip
        return (*self.claims, extreme)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        task = data.task(self.data)
        form: Any = {"shape": task.shape, "outputs": task.outputs}
        return models.network_builder(self.network, **form, model=self.model)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = data.task(self.data)
        images, labels = task.prepared()
        own = self._labels(
            trial.condition,
            labels,
            task.outputs,
            Trials([trial.condition], [trial.seed]),
            lab,
        )
        return task.loss, (images, own if own.ndim == 1 else own[0])

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train one network per seed and measure how its outputs react to test images."""
        condition = trials.condition
        task = data.task(self.data)
        for note in task.notes:
            lab.note(note)
        images, labels = task.train()
        self._check_sizes(len(images))
        build = models.network_builder(
            self.network, shape=task.shape, outputs=task.outputs, model=self.model
        )
        result = lab.train(
            training.Supervised(build, "cross_entropy"),
            (images, self._labels(condition, labels, task.outputs, trials, lab)),
            training.Recipe(
                batch_size=int(condition["batch_size"]),
                optimizer=getattr(training, self.optimizer)(
                    learning_rate=self.learning_rate
                ),
                prepare=task.prepare,
                augment=data.Augment(shift=self.shift)
                if condition["training"] == AUGMENTED
                else None,
                precision="auto",  # of training; Jacobians are always in float32
                own_labels=condition["training"] == RANDOM,
                **self._ending(condition, len(images)),
            ),
            # shared by all conditions
            seeds=[lab.seed(trial, "weights", by=()) for trial in trials],
        )
        missed = result.stop_reason.count("budget")
        if condition["design"] in (LOSS, LEARNED) and missed:
            lab.note(f"{condition}: {missed} of {len(trials)} networks did not get "
                     f"there within most_steps={self.most_steps:,} and are measured as "
                     "they are.")  # fmt: skip
        test = task.prepared(held_out=True)
        for k, trial in enumerate(trials):
            accuracy = result.evaluations["train_accuracy"][k]
            lab.record(trial, train_loss=result.final[k], train_accuracy=accuracy[accuracy == accuracy][-1],
                       steps=int(result.steps_taken[k]), stop_reason=result.stop_reason[k])  # fmt: skip
            diverged = not isfinite(result.final[k])  # then there is no Jacobian
            found = (
                {}
                if diverged
                else _measure(result.module(k).eval(), *test, self.inputs)
            )
            lab.record(trial, **{name: found.get(name, nan) for name in MEASURED})

    def _labels(
        self,
        condition: Condition,
        labels: Any,
        classes: int,
        trials: Trials,
        lab: Seeds,
    ) -> Any:
        """The labels (N,), or (K, N) if each seed has random ones of its own."""
        if condition["training"] != RANDOM:
            return labels
        import torch

        draws = [lab.seed(trial, "labels", by=()) for trial in trials]
        return torch.stack(
            [
                data.corrupt(labels, self.corrupted, classes=classes, seed=n)[0]
                for n in draws
            ]
        )

    def _ending(self, condition: Condition, samples: int) -> dict[str, Any]:
        """When training ends, and how often it is evaluated to know."""
        per_epoch = -(-samples // int(condition["batch_size"]))
        if condition["design"] in (EPOCHS, STEPS):
            steps = (
                self.epochs * per_epoch if condition["design"] == EPOCHS else self.steps
            )
            return {"steps": steps, "eval_every": steps}
        if condition["design"] == LEARNED:
            stop = training.Threshold(0.999, metric="train_accuracy", above=True)
            # At a constant rate no network learned all of the shifted images: they
            # stayed at 99.6 %.
            falls = training.Exponential(self.decay ** (1 / per_epoch))
            return {
                "steps": self.most_steps,
                "eval_every": per_epoch,
                "stop": [stop],
                "schedule": falls,
            }
        # An evaluation costs a third of an epoch. The loss falls fast, so it is looked
        # at more often.
        often = max(4, per_epoch // 4)
        return {
            "steps": self.most_steps,
            "eval_every": often,
            "stop": [training.Threshold(self.loss)],
        }

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Chance."""
        share = 1 / data.task(self.data).outputs
        return {"test_accuracy": {"chance": share}, "error_detection": {"chance": 0.5}}

    def figures(self, records: Records) -> dict[str, plots.Figure]:
        """Sensitivity against batch size, what explains it, and what labels and
        augmentation do to it.
        """
        by_size = Records(r for r in records if r.condition["design"] in DESIGNS)
        learned = records.where(design=LEARNED)
        against: Mapping[str, Any] = {"x": "batch_size", "color_by": "design"}
        sizes = plots.trend(
            by_size, {f"sensitivity of {name}": [metric] for metric, name in KINDS.items()}, log_y=True,
            names=KINDS, title="Sensitivity against batch size", **against,
            caption="The design decides which way the lines go; probabilities and "
                    "logits go opposite ways.",
        )  # fmt: skip
        scores = plots.trend(
            by_size, {kind: [f"train_{kind}", f"test_{kind}"] for kind in ("loss", "accuracy")}, names=NAMES,
            title="How far training went", caption="Which sizes end at a lower loss?", **against,
        )  # fmt: skip
        kinds = plots.dots(
            learned, "sensitivity", by="training", panel_by="", log_y=True, title="Labels and augmentation",
            caption="All networks fit their own labels of the training images.",
        )  # fmt: skip
        errors = plots.dots(
            _by_correctness(learned), "sensitivity", by="inputs", panel_by="training", log_y=True,
            title="Misclassified and correct test inputs",
            caption="After random labels nearly every test input is misclassified, so "
                    "the two are alike.",
        )  # fmt: skip
        return {"sizes": sizes, "scores": scores, "kinds": kinds, "errors": errors}


def _measure(module: nn.Module, x: Any, y: Any, count: int) -> dict[str, float]:
    """Scores on the test set (N, C, H, W), and sensitivities at ``count`` of its
    inputs, evenly spaced.
    """
    import torch

    from nablab.instruments import input_sensitivity

    with torch.no_grad():
        logits = torch.cat([module(part) for part in x.split(1_000)])
    right, count = logits.argmax(1) == y, min(count, len(x))
    places = torch.arange(count) * len(x) // count
    wrong, doubt = ~right[places].numpy(), 1 - logits[places].softmax(1).amax(1).numpy()
    found, logit = (
        input_sensitivity(module, x[places], of=of)
        for of in ("probabilities", "logits")
    )
    means = [
        float(found.norms[kind].mean()) if kind.any() else nan
        for kind in (wrong, ~wrong)
    ]
    scores = (
        float(torch.nn.functional.cross_entropy(logits, y)),
        float(right.double().mean()),
    )
    areas = _area(found.norms, wrong), _area(doubt, wrong)
    values = (*scores, found.mean, found.standard_error, logit.mean, *means, *areas)
    return dict(zip(MEASURED, values, strict=True))


def _area(scores: Any, wrong: Any) -> float:
    """The probability that a wrong one scores higher than another (area under the ROC
    curve), or NaN.
    """
    from scipy.stats import mannwhitneyu

    pairs = int(wrong.sum()) * int((~wrong).sum())
    return (
        float(mannwhitneyu(scores[wrong], scores[~wrong]).statistic) / pairs
        if pairs
        else nan
    )


def _by_correctness(records: Records) -> Records:
    """The two means over test inputs, told apart by a factor."""
    return Records(
        Record(
            Condition(**r.condition, inputs=name),
            r.seed,
            {"sensitivity": r.scalars.get(name, nan)},
        )
        for name in ("misclassified", "correct")
        for r in records
    )
