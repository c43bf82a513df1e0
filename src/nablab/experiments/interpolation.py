"""The error along the straight line through two trained networks: flatness, part 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, isfinite, nan
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
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.data.fields import ImagesField
from nablab.models.fields import NetworkField
from nablab.models.images import NETWORKS
from nablab.settings import Distinct, Epochs, Ge, Le, Positive, Samples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data.tasks import Pair, Task
    from nablab.instruments import Interpolation as Line

    Sets = Mapping[str, Pair]

# In what the second network differs from the first, beside the order of the samples.
ENDS: Mapping[str, tuple[str, ...]] = {
    "order": (),
    "start": ("start",),
    "batch": ("batch",),
    "rate": ("rate",),
    "batch-start": ("batch", "start"),
    "rate-start": ("rate", "start"),
}
OUTSIDE = (-1.0, -0.75, -0.5, -0.25, -0.1, 1.1, 1.25, 1.5, 1.75, 2.0)
# An end is called a minimum if the loss is higher at this distance to both sides.
NEIGHBOR = 0.1
# Frankle et al. 2020 call a network stable below this rise of the error.
STABLE = 0.02
BORDER = {"stable below": STABLE}
# Samples that are measured at once: the maps of more leave the cache.
AT_ONCE = 500
TRAIN, TEST = "train", "test"
# What is recorded of every line, NaN where an end diverged.
METRICS = (
    "error_barrier",
    "loss_barrier",
    "rise_at_ends",
    "accuracy_lost",
    "error_near_ends",
    "train_loss_a",
    "train_loss_b",
    "test_accuracy_a",
    "test_accuracy_b",
    "distance",
)
Ends = Literal["order", "start", "batch", "rate", "batch-start", "rate-start"]


@dataclass(frozen=True)
class Interpolation(Experiment):
    """What lies on the straight line between two trained networks?

    Train twice and join the two weight vectors by a line, theta(alpha) = (1 - alpha) A
    + alpha B. Measure each network on it, from alpha = -1 to 2, without training any of
    them. A barrier is the largest rise above the straight line between the values at
    the two ends. If there is none, the two trainings ended in the same valley.

    Frankle et al. (2020) train two copies of one network, from the same initial
    weights, with the samples in another order, and call the network stable if the error
    rises by less than 2 % of the samples. Small networks on MNIST are stable from the
    start. From different initial weights there is a barrier. Part of it is an illusion:
    hidden units have no order of their own, and two networks that compute the same may
    list them differently. Reordering the units of B to match A's (Ainsworth et al.
    2023) changes no output.

    The line was proposed to see whether a solution is flat: Keskar et al. (2017) drew
    it between a network trained with a small batch and one trained with a large one,
    and the large one stood in the narrower valley. Two caveats: at equal epochs the
    large batch takes fewer steps, so its end is less trained. And a width in alpha
    depends on the distance of the ends and on the scale of the weights, which can
    change while the function stays (Dinh et al. 2017).

    What to expect (standard: LeNet on MNIST, 8 seeds). Between networks of one start
    the test error rises by 0.14 % of the samples, between others by 55 %, and matching
    removes nine tenths of the loss barrier. On the digits (quick) 0.4 and 7 to 8 %. Few
    ends are minima: the loss falls on, for training was not over.

    All first networks of a seed are the same, and all second ones see the samples in
    another order. With batch norm the statistics are collected anew at every point; the
    gain over interpolated ones is recorded. Training a network of the line for an epoch
    before measuring it would measure that epoch, not the line.

    Running time on two cores: quick in seconds, standard six minutes.

    Attributes:
        data: The images: mnist, digits, fashion-mnist, cifar10, a folder or an .npz;
            mnist@10000 for fewer.
        networks: Names or layers of image networks, such as lenet, 784-300-100-10.
        ends: What else differs: order (nothing), start (weights), batch, rate,
            batch-start, rate-start.
        batch_size: Samples per step of the first network.
        large_batch: Of the second one, where the ends differ in batch.
        learning_rate: Of Adam.
        large_rate: Of the second one, where the ends differ in rate.
        epochs: Passes over the training set.
        equal: What networks of different batch size have in common: epochs, or steps
            (slow).
        alphas: Points from one end to the other; ten more lie outside.
        train_samples: The first so many training images measure the line; the test
            split is whole.
    """

    topic: ClassVar[str] = "generalization"

    data: ImagesField = "mnist"
    networks: Annotated[tuple[NetworkField, ...], Distinct()] = ("lenet",)
    ends: Annotated[tuple[Ends, ...], Distinct()] = ("order", "start", "batch", "rate")
    batch_size: Samples = 64
    large_batch: Samples = 1_024
    learning_rate: Positive = 1e-3
    large_rate: Positive = 1e-2
    epochs: Epochs = 2
    equal: Literal["epochs", "steps"] = "epochs"
    alphas: Annotated[int, Ge(3), Le(10_001)] = 21
    train_samples: Annotated[int, Ge(2), Le(10**9)] = 5_000

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "networks": ("784-100-10",),
            "epochs": 8,
            "alphas": 11,
            "seeds": 8,
        },
        "standard": {"seeds": 8},
        # As Frankle et al. 2020, whose LeNet is the dense one: 24,000 steps; 30 values
        # of alpha, here 31.
        "paper": {
            "networks": ("784-300-100-10", "lenet"),
            "ends": tuple(ENDS),
            "batch_size": 60,
            "seeds": 9,
            "epochs": 24,
            "learning_rate": 1.2e-3,
            "alphas": 31,
            "train_samples": 60_000,
        },
        "batch-norm": {
            "networks": ("conv6k5p2-bn-pool-conv16k5-bn-pool-120-84",),
            "seeds": 8,
            "ends": ("order", "start"),
            "epochs": 1,
            "alphas": 11,
            "train_samples": 2_000,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_most(
            "error_barrier",
            STABLE,
            within="network",
            where={"ends": "order"},
            published=Published(STABLE, "Frankle et al. 2020: below it", of="metric"),
            sentence="From the same start the test error rises by less than 2 % of the "
            "samples",
            answer=Answer(
                supported="between two trainings from one start the line stays low",
                refuted="even between two trainings from one start the error rises",
                open="whether the line stays low between trainings from one start",
            ),
        ),
        Claim.greater(
            "error_barrier",
            "start",
            "order",
            by="ends",
            within="network",
            paired=True,
            sentence="Other initial weights make a higher barrier than another order "
            "of samples",
            answer=Answer(
                supported="between trainings from different starts stands a barrier",
                refuted="different starts make no higher barrier",
                open="whether different starts make a higher barrier",
            ),
        ),
        Claim.at_least(
            "barrier_removed",
            0.5,
            within="network",
            where={"ends": "start"},
            quantity="share of the loss barrier that matching removes",
            sentence="Matching the hidden units removes half of the loss barrier",
            answer=Answer(
                supported="matching hidden units removes half of the barrier or more",
                refuted="matching hidden units removes less than half of the barrier",
                open="whether matching hidden units removes half of the barrier",
            ),
        ),
        Claim.at_least(
            "rise_at_ends",
            0.0,
            within="ends",
            quantity="rise of the loss just beyond the ends",
            sentence="Both ends are minima of the training loss along the line (a "
            "course)",
        ),
        Claim.at_least(
            "accuracy_lost",
            0.01,
            quantity="test accuracy lost from alpha = 1.5 to 2",
            sentence="From alpha = 1.5 to 2 the test accuracy falls by 1 % or more (a "
            "course)",
        ),
        Claim.at_most(
            "error_near_ends",
            0.0,
            where={"ends": "batch"},
            quantity="test error near the small batch's end minus the other's",
            sentence="The test error is lower near the end of the small batch (a "
            "course)",
        ),
        Claim.at_least(
            "barrier_of_statistics",
            0.0,
            where={"ends": "start"},
            sentence="Statistics collected anew make the error barrier lower",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="Frankle et al. 2020",
            setting="small networks on MNIST, one start",
            quantity="rise of the test error",
            value="below 0.02",
        ),
        Reported(
            who="Keskar et al. 2017",
            setting="small against large batch",
            quantity="valley along the line",
            value="narrower at the large batch",
        ),
        Reported(
            who="a course",
            quantity="both ends",
            value="minima of the training loss along the line",
        ),
        Reported(
            who="a course",
            quantity="test accuracy from alpha = 1.5 to 2",
            value="falls by 1 % or more",
        ),
        Reported(
            who="a course",
            quantity="test error",
            value="lower near the end of the small batch",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Why can the middle of the line have a lower loss than both ends if they share "
        "their start?",
        "Multiply one ReLU layer by 10 and divide the next by 10. What do the line and "
        "the outputs do?",
        "Run networks=mlp-50,mlp-500,mlp-2000 ends=start. Does matching remove more if "
        "layers are wider?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Goodfellow et al., Qualitatively characterizing network optimization, ICLR "
        "2015, arXiv:1412.6544.",
        "Keskar et al., On large-batch training for deep learning, ICLR 2017, "
        "arXiv:1609.04836.",
        "Dinh et al., Sharp minima can generalize for deep nets, ICML 2017, "
        "arXiv:1703.04933.",
        "Frankle et al., Linear mode connectivity and lottery tickets, ICML 2020, "
        "arXiv:1912.05671.",
        "Ainsworth, Hayase and Srinivasa, Git Re-Basin, ICLR 2023, arXiv:2209.04836.",
    )

    def validate(self) -> None:
        """Check that every network takes the images, in batches of both sizes."""
        sizes = self.batch_size, self.large_batch
        self.compared.check(self.task, batch_sizes=sizes)

    @property
    def task(self) -> Task:
        """The images."""
        return data.image_task(self.data)

    @property
    def compared(self) -> models.Networks:
        """The networks."""
        return models.Networks(self.networks)

    def conditions(self) -> list[Condition]:
        """Combine every network with every pair of ends."""
        return [
            Condition(network=network, ends=ends)
            for network in self.networks
            for ends in self.ends
        ]

    def active_claims(self) -> tuple[Claim, ...]:
        """Select the claims whose ends are run.

        The claim on batch norm is among them if a network has it.
        """
        norm = any(map(normalizes, self.networks))
        return tuple(
            claim
            for claim in super().active_claims()
            if norm or claim.metric != "barrier_of_statistics"
        )

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.compared.builder(str(condition["network"]), self.task)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        task = self.task
        return task.loss, task.prepared()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train both ends for every seed, then measure the line through them."""
        task = self.task
        lab.note(*task.notes)
        differs = ENDS[str(trials.condition["ends"])]
        first = self._train("A", (), task, trials, lab)
        second = self._train("B", differs, task, trials, lab)
        sets = {
            TRAIN: task.prepared(self.train_samples),
            TEST: task.prepared(held_out=True),
        }
        for trial, a, b in lab.each(zip(trials, first, second, strict=True)):
            lab.array(trial, "chance", [1 / task.outputs])
            if not (isfinite(a.final) and isfinite(b.final)):
                lab.record(trial, **dict.fromkeys(METRICS, nan), stop_reason="diverged")
                continue
            line = self._survey(a.module(), b.module(), sets, trial, lab)
            if "start" in differs:
                self._match(a.module(), b.module(), sets, line, trial, lab)

    def _train(
        self, which: str, differs: Sequence[str], task: Task, trials: Trials, lab: Lab
    ) -> training.Training:
        """Train one network per seed, end A or B of the line."""
        images, labels = task.train()
        batch_size = self.large_batch if "batch" in differs else self.batch_size
        # Equal steps are as many as small batches take.
        counted = batch_size if self.equal == "epochs" else self.batch_size
        steps = self.epochs * training.steps_per_epoch(len(images), counted)
        rate = self.large_rate if "rate" in differs else self.learning_rate
        weights = "B" if "start" in differs else "A"
        orders = [lab.seed(trial, f"order of {which}", by=()) for trial in trials]
        starts = [lab.seed(trial, f"weights of {weights}", by=()) for trial in trials]
        build = self.compared.builder(str(trials.condition["network"]), task)
        return lab.train(
            training.Supervised(build, "cross_entropy"),
            (images, labels),
            training.Recipe(
                steps=steps,
                batch_size=batch_size,
                optimizer=training.Adam(learning_rate=rate),
                prepare=task.prepare,
                precision="auto",
                train_samples=min(self.train_samples, len(images)),
                eval_every=steps,
            ),
            seeds=orders,
            starts=starts,
        )

    def _survey(
        self, a: nn.Module, b: nn.Module, sets: Sets, trial: Trial, lab: Lab
    ) -> Line:
        """Measure the line, between the ends and beyond them."""
        import numpy as np

        norm = normalizes(str(trial.condition["network"]))
        inside = np.linspace(0, 1, self.alphas)
        # 0.9 comes in two roundings.
        alphas = np.round([*inside, *OUTSIDE, NEIGHBOR, 1 - NEIGHBOR], 12)
        line = _measured(a, b, sets, alphas, reestimate=norm)
        lab.record(trial, **numbers(line))
        lab.array(trial, "alpha", line.alphas)
        for part, metric in product((TRAIN, TEST), ("loss", "accuracy")):
            lab.array(trial, f"{part}_{metric}", line.values[part][metric])
        if norm:
            # Statistics on the line between the ends' own, as most tools leave them.
            interpolated = _measured(a, b, sets, inside, reestimate=False)
            gain = (
                interpolated.barrier_of("error", data=TEST)[0]
                - line.barrier_of("error", data=TEST)[0]
            )
            lab.record(trial, barrier_of_statistics=gain)
        return line

    def _match(
        self,
        a: nn.Module,
        b: nn.Module,
        sets: Sets,
        line: Line,
        trial: Trial,
        lab: Lab,
    ) -> None:
        """Measure the line again, with the units of the second network reordered."""
        import numpy as np

        from nablab.instruments import match_units

        inside = np.linspace(0, 1, self.alphas)
        norm = normalizes(str(trial.condition["network"]))
        matched = _measured(a, match_units(a, b).module, sets, inside, reestimate=norm)
        removed = 1 - matched.barrier / line.barrier if line.barrier > 0 else nan
        lab.record(
            trial,
            loss_barrier_matched=matched.barrier,
            barrier_removed=removed,
            error_barrier_matched=matched.barrier_of("error", data=TEST)[0],
        )
        lab.array(trial, "matched_alpha", matched.alphas)
        lab.array(trial, "matched_loss", matched.losses)

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Return chance, and the border of what is called stable."""
        found: dict[str, Mapping[str, float]] = {"error_barrier": BORDER}
        chance = records.shared_array("chance")
        if chance is not None:
            for metric in ("test_accuracy_a", "test_accuracy_b"):
                found[metric] = {"chance": float(chance[0])}
        return found

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw the line of each network and what matching does; then all barriers."""
        figures = {}
        for network in self.networks:
            part = records.where(network=network)
            figures[f"line-{network}"] = _along_the_line(part, network)
            if matching := _matching(part, network):
                figures[f"matching-{network}"] = matching
        figures["barrier"] = plots.dots(
            records,
            "error_barrier",
            by="ends",
            panel_by="network",
            y_label="rise of the test error (share)",
            baselines=BORDER,
            title="The barrier between the ends",
            caption="Rise above the straight line. Frankle et al. (2020): stable below "
            "the dashed line.",
        )
        return figures


def normalizes(network: str) -> bool:
    """Tell whether the network has batch norm."""
    return "-bn" in NETWORKS.get(network, network)


def _measured(
    a: nn.Module, b: nn.Module, sets: Sets, alphas: Any, *, reestimate: bool
) -> Line:
    """Measure the line through two networks, batch norm estimated again or not."""
    from nablab.instruments import interpolate

    return interpolate(
        a,
        b,
        "cross_entropy",
        sets,
        alphas=alphas,
        metrics=("accuracy", "error"),
        batch_size=AT_ONCE,
        predict=training.stacked_predictor(a, sets[TRAIN][0]),
        reestimate_batch_norm=sets[TRAIN] if reestimate else False,
    )


def numbers(line: Line) -> dict[str, float]:
    """Compute the scalars of a line.

    Accuracies and errors are shares of the test split.
    """
    loss_a, loss_b = line.at(0.0), line.at(1.0)
    rises = [
        line.at(end + side) / loss - 1
        for end, loss in ((0.0, loss_a), (1.0, loss_b))
        for side in (-NEIGHBOR, NEIGHBOR)
    ]
    accuracy = {
        alpha: line.at(alpha, metric="accuracy", data=TEST)
        for alpha in (0.0, 1.0, 1.5, 2.0)
    }
    error = line.values[TEST]["error"]
    # The error a quarter of the way around each end, between the two.
    near_a, near_b = (
        float(error[abs(line.alphas - middle) < 0.13].mean())
        for middle in (1 / 8, 7 / 8)
    )
    return {
        "error_barrier": line.barrier_of("error", data=TEST)[0],
        "loss_barrier": line.barrier,
        "rise_at_ends": min(rises),
        "accuracy_lost": accuracy[1.5] - accuracy[2.0],
        "error_near_ends": near_a - near_b,
        "train_loss_a": loss_a,
        "train_loss_b": loss_b,
        "test_accuracy_a": accuracy[0.0],
        "test_accuracy_b": accuracy[1.0],
        "distance": line.distance,
    }


def _along_the_line(records: Records, network: str) -> Figure:
    """Draw loss and accuracy on both splits along the line."""
    panels = [
        plots.LinePanel(
            f"{kind}, {split}",
            unit,
            plots.lines_of(records, "alpha", f"{split}_{kind}"),
            log=kind == "loss",
            limits=(0.0, 1.0 if kind == "accuracy" else inf),
        )
        for kind, unit in (("loss", "cross-entropy (nats)"), ("accuracy", "share"))
        for split in (TRAIN, TEST)
    ]
    return plots.line_panels(
        panels,
        title=f"Loss and accuracy along the line, {network}",
        caption="Colors: in what the ends differ. See where the loss rises, and "
        "accuracy falls.",
    )


def _matching(records: Records, network: str) -> Figure | None:
    """Draw what matching the units does, where the ends have other first weights."""
    before = plots.lines_of(records, "alpha", "train_loss", within=(0.0, 1.0))
    matched = plots.lines_of(records, "matched_alpha", "matched_loss")
    panels = [
        plots.LinePanel(
            f"ends: {ends}",
            "training cross-entropy (nats)",
            {"as trained": before[ends], "units matched": runs},
            log=True,
        )
        for ends, runs in matched.items()
    ]
    if not panels:
        return None
    return plots.line_panels(
        panels,
        columns=min(2, len(panels)),
        skip=4,
        title=f"Matching the units, {network}",
        caption="Both lines join networks that compute the same two functions.",
    )
