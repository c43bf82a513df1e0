"""Networks learn images whose labels are drawn at random, in part or all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import inf, log10, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
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
from nablab.data.fields import ImagesField
from nablab.errors import UsageError
from nablab.models.fields import NetworkList, OwnModelField
from nablab.settings import Distinct, Epochs, Factor, Positive, Samples, Share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data import Task
    from nablab.training import Outcome

# Channels, pixels, and how many of them are kept in the middle.
FORMS = {"gray": (1, 28, 28), "color": (3, 32, 32), "zhang": (3, 32, 28)}
SPLITS = {"training": "train", "test": "test"}
PARTS = {
    "unchanged label": "unchanged",
    "changed label": "changed",
    "true class": "truth_of_changed",
}
ALL_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class RandomLabels(Experiment):
    """Can a network fit random labels?

    A network can be large enough to give any images any labels: for N images of d
    pixels, 2 N + d weights suffice (Zhang et al. 2017). So the question is not whether
    such weights exist, but whether gradient descent finds them, how soon, and what is
    left of the test accuracy. Each training label is drawn anew over all classes with
    probability s, the share; one redrawn label in ten is the old one by chance. At
    share 1 labels say nothing about images. Network and optimizer are those of share 0,
    where they generalize: neither alone explains that. Test labels are the true ones.

    What to look for. What follows from the image is learned first, the rest by heart
    (Arpit et al. 2017): at share 0.5 images with changed labels first get their true
    class, and the test accuracy is highest before the network memorizes. At share 1 one
    label in ten is unchanged by chance, and nothing tells it from the others: the
    control. The dashed line in the first figure is what copying the label of one
    neighbor of the right class would score, 1 - s (1 - 1 / classes).

    What to expect (standard, run with 7 seeds): 36 epochs instead of 4.6; test accuracy
    97.2, 64.6 and 10.2 %. Time on two cores: standard 4.5 minutes; full (60,000 images)
    80 s a network.

    Attributes:
        data: mnist, fashion-mnist, cifar10, digits, your folder of images or .npz file;
            mnist@10000 for 10,000 of its training images.
        networks: Networks by name or layers, such as mlp-500,lenet,cnn-205k or
            flatten-512-bn-512.
        model: Your own network as a further condition: package.module:factory or
            path/to/file.py:factory.
        shares: With which probability each training label is redrawn; 0 leaves all
            labels true.
        form: gray (28 x 28 pixels), color (32 x 32), or zhang: color, the middle 28 x
            28 pixels of 32 x 32, each image scaled by its own mean and deviation
            instead of the training set's.
        optimizer: Optimizer; SGD with momentum 0.9.
        learning_rate: Learning rate.
        decay: What multiplies the learning rate after every epoch.
        batch_size: Samples per step.
        epochs: Passes over the training set, at most.
        memorized: The training accuracy at which a network has memorized its labels and
            training ends.
        early_epochs: The epoch at which early accuracies are taken.
        chance_margin: How far from chance the test accuracy at share 1 may lie and
            still count as chance.
    """

    topic: ClassVar[str] = "generalization"

    data: ImagesField = "mnist@20000"
    networks: NetworkList = ("flatten-512-bn-512-bn-512-bn",)
    model: OwnModelField = None
    shares: Annotated[tuple[Share, ...], Distinct()] = (0.0, 0.5, 1.0)
    form: Literal["gray", "color", "zhang"] = "gray"
    optimizer: Literal["Adam", "AdamW", "SGD"] = "Adam"
    learning_rate: Positive = 4e-4
    decay: Positive = 0.95
    batch_size: Samples = 250
    epochs: Epochs = 80
    memorized: Factor = 0.999
    early_epochs: Epochs = 1
    chance_margin: Positive = 0.01

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "networks": ("flatten-256-bn-256-bn",),
            "shares": ALL_SHARES,
            "learning_rate": 4e-3,
            "decay": 0.97,
            "batch_size": 200,
            "epochs": 80,
            "early_epochs": 3,
            "chance_margin": 0.05,
            "seeds": 8,
        },
        "standard": {"seeds": 8},
        "full": {
            "data": "mnist",
            "learning_rate": 1e-3,
            "decay": 0.97,
            "batch_size": 500,
            "seeds": 8,
        },
        # As Zhang et al. 2017: SGD with momentum 0.9, rate 0.01, times 0.95 after every
        # epoch.
        "paper": {
            "data": "cifar10",
            "form": "zhang",
            "networks": ("mlp-512x3", "mlp-512"),
            "shares": ALL_SHARES,
            "optimizer": "SGD",
            "learning_rate": 0.01,
            "decay": 0.95,
            "batch_size": 128,
            "epochs": 300,
            "seeds": 9,
        },
        "course": {
            "data": "mnist",
            "networks": ("mlp-500",),
            "shares": (0.0, 1.0),
            "learning_rate": 1e-4,
            "decay": 1.0,
            "batch_size": 100,
            "epochs": 1_000,
            "seeds": 8,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_least(
            "train_accuracy",
            0.999,
            within="network",
            published=Published(
                1.0, "Zhang et al., 3 x 512; 1 x 512: 0.9934", of="metric"
            ),
            quantity="training accuracy",
            sentence="The network memorizes its labels, whatever the share of random "
            "ones",
            answer=Answer(
                supported="yes, the network learns its labels by heart however many of "
                "them are random",
                refuted="no, the network does not learn all its labels by heart",
                open="whether the network learns random labels by heart",
            ),
        ),
        Claim.falls(
            "test_accuracy",
            by="share",
            within="network",
            sentence="Test accuracy falls as the share of random labels rises",
            answer=Answer(
                supported="the more labels are random, the less test accuracy is left",
                refuted="test accuracy does not fall with the share of random labels",
                open="whether test accuracy falls with the share of random labels",
            ),
        ),
        Claim.rises(
            "epochs_to_memorize",
            by="share",
            within="network",
            sentence="Memorizing takes longer the more labels are random (also course "
            "E)",
        ),
        Claim.greater(
            "epochs_to_memorize",
            1.0,
            0.0,
            by="share",
            within="network",
            scale="log10",
            smallest_effect=log10(1.5),
            published=Published(log10(3.5), "Zhang et al.: 1.5 to 3.5"),
            sentence="Random labels take at least 1.5 times as long as the true ones",
            answer=Answer(
                supported="random labels take at least 1.5 times as long to learn",
                refuted="random labels take hardly longer to learn",
                open="whether random labels take much longer to learn",
            ),
        ),
        Claim.at_most(
            "above_chance",
            0.01,
            within="network",
            where={"share": 1.0},
            published=Published(0.0048, "Zhang et al., CIFAR-10: 10.48 %", of="metric"),
            quantity="test accuracy minus chance",
            sentence="With random labels only, the test accuracy is not above chance",
        ),
        Claim.at_least(
            "above_chance",
            -0.01,
            within="network",
            where={"share": 1.0},
            quantity="test accuracy minus chance",
            sentence="With random labels only, the test accuracy is not below chance",
        ),
        Claim.greater(
            "clean_lead",
            0.5,
            1.0,
            by="share",
            within="network",
            smallest_effect=0.05,
            quantity="early lead in accuracy of unchanged labels",
            sentence="Early on, unchanged labels are ahead of changed ones (control: "
            "share 1)",
        ),
        Claim.greater(
            "cost_of_memorizing",
            0.5,
            0.0,
            by="share",
            within="network",
            smallest_effect=0.02,
            quantity="test accuracy lost while memorizing",
            sentence="At share 0.5 memorizing costs test accuracy that was there early "
            "on",
        ),
        Claim.at_most(
            "tau_of_losses",
            0.0,
            within="network",
            where={"share": 1.0},
            smallest_effect=0.5,
            quantity="Kendall's tau of test loss with training loss",
            sentence="On random labels the test loss rises as the training loss falls "
            "(courses)",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        *(
            Reported(
                who="Zhang et al. 2017",
                setting=f"CIFAR-10, MLP of {units} units, {kind} labels",
                quantity=f"{split} accuracy",
                value=value,
                metric=f"{SPLITS[split]}_accuracy",
                where={"network": network, "share": share},
                fields={"data": "cifar10", "form": "zhang"},
            )
            for network, units, share, kind, accuracies in (
                ("mlp-512x3", "3 x 512", 1.0, "random", (1.0, 0.1048)),
                ("mlp-512x3", "3 x 512", 0.0, "true", (1.0, 0.5239)),
                ("mlp-512", "1 x 512", 1.0, "random", (0.9934, 0.1061)),
                ("mlp-512", "1 x 512", 0.0, "true", (1.0, 0.5051)),
            )
            for split, value in zip(SPLITS, accuracies, strict=True)
        ),
        Reported(
            who="Zhang et al. 2017",
            setting="CIFAR-10, random against true labels",
            quantity="time to fit, relative",
            value="1.5 to 3.5",
        ),
        *(
            Reported(
                who="course A",
                setting="MNIST, 784-500-10, Adam 1e-4, batch 100, random labels, 1,000 "
                "epochs",
                quantity=quantity,
                value=value,
                metric=metric,
                where={"network": "mlp-500", "share": 1.0},
                fields={
                    "data": "mnist",
                    "learning_rate": 1e-4,
                    "batch_size": 100,
                    "epochs": 1_000,
                },
            )
            for quantity, value, metric in (
                ("training loss", 0.0588, "train_loss"),
                ("test accuracy", 0.0992, "test_accuracy"),
            )
        ),
        Reported(
            who="courses B and E",
            setting="random labels, training stopped there and called fitted",
            quantity="training loss",
            value="about 2",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Why does the test accuracy at share 0.5 first rise and then fall? Which "
        "labels are learned when?",
        "Is the network above or below the line of copying one neighbor's label at "
        "share 0.5? Why?",
        "Set data=mnist@5000. Does memorizing take fewer epochs, or fewer optimizer "
        "steps?",
        "Set networks=mlp-10-20. How many labels can it memorize, and how many "
        "parameters is that each?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Zhang et al., Understanding deep learning requires rethinking generalization, "
        "arXiv:1611.03530.",
        "Arpit et al., A closer look at memorization in deep networks, "
        "arXiv:1706.05394.",
    )

    def validate(self) -> None:
        """Check that the early epoch is reached, and that networks take the images."""
        if self.early_epochs > self.epochs:
            raise UsageError(
                f"early_epochs={self.early_epochs} must be at most "
                f"epochs={self.epochs}."
            )
        self.compared.check(self.seen, batch_sizes=[self.batch_size])

    def conditions(self) -> list[Condition]:
        """Combine every network with every share."""
        return [
            Condition(network=name, share=share)
            for name in self.compared.names
            for share in self.shares
        ]

    def active_claims(self) -> tuple[Claim, ...]:
        """Select the claims of the shares that are run, with this margin for chance."""
        return tuple(
            replace(claim, bound=-claim.sign * self.chance_margin)
            if claim.metric == "above_chance"
            else claim
            for claim in super().active_claims()
        )

    @property
    def compared(self) -> models.Networks:
        """The networks, yours last."""
        return models.Networks(self.networks, self.model)

    @property
    def task(self) -> Task:
        """The images, before their middle is cut out."""
        channels, size, _ = FORMS[self.form]
        return data.image_task(self.data, size=size, channels=channels)

    @property
    def seen(self) -> models.Form:
        """The images as a network sees them."""
        channels, _, kept = FORMS[self.form]
        task = self.task
        return models.Form((channels, kept, kept), task.outputs, task.train_samples)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.compared.builder(str(condition["network"]), self.seen)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = self.task
        images, truth = self._cropped(task.train())
        labels = self._drawn(truth, trial, lab)
        return "cross_entropy", (self._prepare(task)(images), labels)

    def _prepare(self, task: Task) -> Callable[[Tensor], Tensor]:
        """Return what makes inputs of images."""
        return data.Whiten() if self.form == "zhang" else task.images().normalize

    def _cropped(self, split: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cut out the middle of each image, and keep the labels."""
        images, labels = split
        return data.center_crop(images, self.seen.shape[-1]), labels

    def _drawn(self, truth: Tensor, trial: Trial, lab: Seeds) -> Tensor:
        """Return the labels of a trial: the share of its condition is redrawn."""
        share, seed = float(trial.condition["share"]), lab.seed(trial, "labels")
        return data.corrupt(truth, share, classes=self.task.outputs, seed=seed).labels

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train a network per seed, on labels of its own, until it memorizes them."""
        import torch

        task = self.task
        lab.note(*task.notes)
        images, truth = self._cropped(task.train())
        test = self._cropped(task.held_out())
        labels = torch.stack([self._drawn(truth, trial, lab) for trial in trials])
        parts = data.by_truth(labels, truth)
        epoch = training.steps_per_epoch(len(images), self.batch_size)
        build = self.compared.builder(str(trials.condition["network"]), self.seen)
        result = lab.train(
            training.Supervised(build, "cross_entropy"),
            (images, labels),
            training.Recipe(
                epochs=self.epochs,
                batch_size=self.batch_size,
                optimizer=training.optimizer(
                    self.optimizer, learning_rate=self.learning_rate, momentum=0.9
                ),
                schedule=training.StepDecay(every=epoch, factor=self.decay),
                per_replica_targets=True,
                prepare=self._prepare(task),
                precision="auto",
                # The parts are training images: they cost no further prediction.
                held_out={"test": test}
                | {
                    name: (images, training.PerReplicaTargets(part))
                    for name, part in parts.items()
                },
                eval_every=epoch,
                stop=[
                    training.Threshold(
                        self.memorized, metric="train_accuracy", above=True
                    )
                ],
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        chance = 1 / task.outputs
        largest_class = float(test[1].bincount().max()) / len(test[1])
        for trial, outcome in zip(trials, result, strict=True):
            for name, values in outcome.curves.items():
                lab.curve(trial, name, outcome.epochs, values)
            lab.array(trial, "trivial", [chance, largest_class])
            scores = self._scores(outcome, chance)
            lab.record(trial, **scores, stop_reason=outcome.stop_reason)
            if scores["epochs_to_memorize"] == inf:
                lab.note(
                    f"{trial.condition}, seed {trial.seed}: not memorized. Training "
                    f"ended at an accuracy of {scores['train_accuracy']:.2%} "
                    f"({outcome.stop_reason})."
                )

    def _scores(self, outcome: Outcome, chance: float) -> dict[str, float]:
        """Compute what is recorded of one trial."""
        from scipy.stats import kendalltau

        early, end = outcome.at(epoch=self.early_epochs), outcome.last()
        train_loss, test_loss = (
            outcome.curves["train_loss"],
            outcome.curves["test_loss"],
        )
        # A trial that ended at once has no curve to rank.
        ranked = len(train_loss) > 1
        return {
            "train_accuracy": end["train_accuracy"],
            "test_accuracy": end["test_accuracy"],
            "train_loss": end["train_loss"],
            "test_loss": end["test_loss"],
            "epochs_to_memorize": outcome.first_epoch(
                "train_accuracy", at_least=self.memorized
            ),
            "clean_lead": early["unchanged_accuracy"] - early["changed_accuracy"],
            "cost_of_memorizing": early["test_accuracy"] - end["test_accuracy"],
            "above_chance": end["test_accuracy"] - chance,
            "tau_of_losses": float(kendalltau(train_loss, test_loss)[0])
            if ranked
            else nan,
        }

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Score chance, the largest test class, and copying one neighbor's label."""
        trivial = records.shared_array("trivial")
        chance, largest_class = (nan, nan) if trivial is None else map(float, trivial)
        copied = {
            f"one neighbor's label, share {share:g}": 1 - share * (1 - chance)
            for share in self.shares
        }
        scores = {"chance": chance, "largest class": largest_class, **copied}
        return {"test_accuracy": scores}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw what random labels cost, both splits, and what comes first.

        Both splits are followed through training.
        """
        figures = {"outcome": self._outcome(records)}
        splits = _panels(records, SPLITS)
        for kind in ("accuracy", "loss"):
            figures[kind] = plots.curves(
                splits,
                kind,
                color_by="share",
                panel_by="panel",
                x_label="epochs",
                log_y=kind == "loss",
                title=f"Training and test {kind} while labels are learned",
                caption="Training: on the labels as given. Test: on the true ones.",
            )
        corrupted = Records(r for r in records if r.condition["share"])
        figures["parts"] = plots.curves(
            _panels(corrupted, PARTS),
            "accuracy",
            color_by="panel",
            panel_by="share",
            x_label="epochs",
            log_y=False,
            y_label="share of training images",
            title="Which labels are learned first",
            caption="Changed labels differ from the true ones; some redrawn ones do "
            "not.",
        )
        for axes in (*figures["accuracy"].figure.axes, *figures["parts"].figure.axes):
            axes.set_ylim(-0.02, 1.03)
        return figures

    def _outcome(self, records: Records) -> Figure:
        """Draw both accuracies and the epochs until memorized, by share."""
        figure = plots.trend(
            records,
            {
                "accuracy": ["train_accuracy", "test_accuracy"],
                "epochs until memorized": ["epochs_to_memorize"],
            },
            x="share",
            color_by="network",
            log_x=False,
            names={
                "train_accuracy": "training",
                "test_accuracy": "test",
                "epochs_to_memorize": "training",
            },
            x_label="share of redrawn labels",
            title="What random labels cost",
            caption="Dashed: copying one neighbor's label (see text).",
        )
        chance = self.baselines(records)["test_accuracy"]["chance"]
        figure.figure.axes[0].plot(
            [0, 1], [1, chance], color="#767676", ls="--", lw=1.4, zorder=1
        )
        return figure


def _panels(records: Records, panels: Mapping[str, str]) -> Records:
    """Repeat the records once per panel.

    The curves of the panel's part become accuracy and loss.
    """
    panelled = []
    several = len(records.levels("network")) > 1
    for record, (panel, part) in product(records, panels.items()):
        name = f"{record.condition['network']} · {panel}" if several else panel
        share = f"{record.condition['share']:.0%} redrawn"
        curves = {
            kind: record.curves[f"{part}_{kind}"]
            for kind in ("accuracy", "loss")
            if record.curves
        }
        condition = Condition(panel=name, share=share)
        panelled.append(Record(condition, record.seed, {}, curves=curves))
    return Records(panelled)
