"""Small convolutional networks on color photos, one change at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from nablab import baselines, data, metrics, models, plots, training
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
from nablab.errors import UsageError
from nablab.models.fields import Activation, NetworkField, OwnModelField
from nablab.settings import Distinct, Epochs, Ge, Le, Pixels, Positive, Samples
from nablab.settings.kinds import YOURS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.baselines import FastImages
    from nablab.data import ImageSet, Task
    from nablab.training import Outcome, Training

SIMPLE, CHOSEN, FAST = "simple", "best on validation", "fast"
Budget = Literal[80, 90, 94]
Network = Literal["deep", "wide deep", "narrow simple"]
NETWORKS: tuple[Network, ...] = get_args(Network)
DEEP, WIDE, NARROW = NETWORKS
Pool = Literal["max", "mean"]
POOLS: Mapping[Pool, str] = {"max": "pool", "mean": "mean2"}
# Training images that are scored, images that a trial keeps, and tiles of its maps.
TRAIN_SAMPLES, SHOWN, MAPS = 5_000, 10, 32
# Images whose score a fast training watches: a pass over more would cost it time.
FAST_SAMPLES = 2_000
# A point is a hundred test images of CIFAR-10, and about what seeds differ by.
BETTER: Mapping[str, Any] = {"by": "variant", "smallest_effect": 0.01}
MOST_FILTERS = 4_096

Layers = Annotated[int, Ge(1), Le(8)]
Filters = Annotated[int, Ge(1), Le(MOST_FILTERS)]
Kernel = Annotated[int, Ge(1), Le(31)]


@dataclass(frozen=True)
class Variant:
    """One network and how it is trained.

    Attributes:
        network: Its layers; empty for the user's own.
        activation: After every convolution.
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Of Adam.
    """

    network: str
    activation: Activation
    epochs: int
    batch_size: int
    learning_rate: float


def _on_budget(percent: int, seconds: int) -> tuple[Claim, Claim]:
    """Claim that the fast recipe reaches its accuracy in its time."""
    where = {"variant": f"{FAST} {percent}"}
    reads = f"reads {percent} % of the test images"
    return (
        Claim.at_least(
            "test_accuracy",
            percent / 100,
            where=where,
            sentence=f"The fast recipe for {percent} % {reads}",
            answer=Answer(
                supported=f"this lab's own recipe {reads}",
                refuted=f"this lab's own recipe does not read {percent} % of the test "
                "images",
                open=f"whether this lab's own recipe {reads}",
            ),
        ),
        Claim.at_most(
            "seconds",
            seconds,
            where=where,
            sentence=f"The fast recipe for {percent} % trains in {seconds:,} seconds",
        ),
    )


@dataclass(frozen=True)
class CifarCnn(Experiment):
    """What makes a small convolutional network better at color photos?

    A convolution looks for one pattern at every place. Pooling keeps the largest answer
    of each 2 x 2 pixels, or their mean. A dense layer turns what is left into scores of
    the classes. Course D's simple network is one of each: 32 filters of 3 x 3 pixels,
    pooling, ten outputs. A convolution has (channels × height × width + 1) × filters
    parameters, a dense layer (inputs + 1) × outputs. That is (3 · 9 + 1) · 32 = 896 and
    (32 · 16 · 16 + 1) · 10 = 81,930, together 82,826. The formula stands beside the
    count of the real network in every row of the table.

    Its deep network had 13,210 parameters and did worse, so the course wrote that deeper
    is worse. But a second pooling leaves a quarter of the inputs to the dense layer: the
    deep network is the smaller one. (The course gives the count alone. A second
    convolution of 16 filters of 2 x 2 pixels has it; the arrangement is ours.) Depth and
    size are told apart by two more networks: the deep one with as many filters as give
    it the simple one's parameters, and the simple one with the deep one's.

    Then eight changes of the simple network, one at a time: a second convolution, twice
    the filters, larger kernels, ELU, mean pooling, twice the epochs, smaller batches, a
    larger learning rate. Course D chose the best of eight on the test images and
    reported its score there: 72.25 %. A score by which one has chosen is too good: the
    luckiest wins. Here the best on validation images is chosen, seed by seed, and then
    the test images are looked at once. What choosing on the test images would have added
    is measured, too (``peeking_gain``); for that alone every network is scored on them
    (``peeked_accuracy``).

    How far can one go? The last part (preset fast) is this lab's own recipe at three
    budgets, for 80, 90 and 94 % on test images: a first layer that is computed and not
    trained, deeper blocks with batch norm, images that are shifted and mirrored, and
    orthogonalized steps. Its ``averaged_accuracy`` is the mean answer to six views of
    each test image, which is another method and told apart.

    What to look for. In the first figure, compare the four networks of two sizes and two
    depths. Which of the eight changes helps more than seeds differ? In the confusion
    matrix, which two classes are mixed up, and what do the hardest images show? Do the
    filters of the first layer look for colors or for edges? They are drawn from a copy:
    course D's plot scaled the weights themselves.

    What to expect. There is no reference run yet. On 9,000 photos, six epochs, two
    seeds: simple 55.7 % of the test images and deep 55.8 with a sixth of its
    parameters; wide deep 59.8 at the simple one's size, narrow simple 47.3 at the deep
    one's. The second convolution was the best change in both seeds. On digits (quick) it
    is the other way round, 94.9 against 86.7 %: of 8 x 8 pixels a second pooling
    leaves too little.

    Attributes:
        data: cifar10, digits, or yours: a folder or a file.npz; cifar10@10000 for fewer
            training images.
        size: Height and width in pixels to which images are brought.
        channels: 1 for gray, 3 for color.
        layers: Convolutions, each followed by pooling. Of this list and the next seven
            the first entry is the simple network's, each other one is a change.
        filters: Of each convolution.
        kernels: Pixels of a side of each filter.
        activations: After each convolution.
        pools: max or mean, of 2 x 2 pixels.
        epochs: Passes over the training images.
        batch_sizes: Images per step.
        learning_rates: Of Adam, constant.
        networks: Those that tell depth from size.
        deep: Layers of the deep network.
        budgets: Of the fast recipe, by the accuracy in percent that they are made for.
        model: Your own network as a further one: package.module:factory or
            path/to/file.py:factory.
        validation: Training images held out, by which the best change is chosen; 0
            where there is nothing to choose.
        precision: auto takes bfloat16 where the processor multiplies it fast.
    """

    topic: ClassVar[str] = "images"
    # One call trains all networks of a seed: the best of them is one of its trials.
    batch_over: ClassVar[tuple[str, ...]] = ("variant",)

    data: ImagesField = "cifar10@20000"
    size: Pixels = 32
    channels: Literal[1, 3] = 3
    layers: Annotated[tuple[Layers, ...], Distinct()] = (1, 2)
    filters: Annotated[tuple[Filters, ...], Distinct()] = (32, 64)
    kernels: Annotated[tuple[Kernel, ...], Distinct()] = (3, 5)
    activations: Annotated[tuple[Activation, ...], Distinct()] = ("relu", "elu")
    pools: Annotated[tuple[Pool, ...], Distinct()] = ("max", "mean")
    epochs: Annotated[tuple[Epochs, ...], Distinct()] = (8, 16)
    batch_sizes: Annotated[tuple[Samples, ...], Distinct()] = (64, 32)
    learning_rates: Annotated[tuple[Positive, ...], Distinct()] = (1e-3, 3e-3)
    networks: Annotated[tuple[Network, ...], Distinct(least=0)] = NETWORKS
    deep: NetworkField = "conv32k3p1-pool-conv16k2p1-pool"
    budgets: Annotated[tuple[Budget, ...], Distinct(least=0)] = ()
    model: OwnModelField = None
    validation: Annotated[int, Ge(0), Le(10**9)] = 5_000
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "size": 8,
            "channels": 1,
            "epochs": (8, 16),
            "validation": 300,
            "seeds": 8,
        },
        "standard": {"seeds": 8},
        "paper": {
            "data": "cifar10",
            "layers": (1, 2, 3),
            "filters": (32, 16, 64),
            "activations": ("relu", "elu", "gelu"),
            "epochs": (10, 5, 20),
            "batch_sizes": (64, 32, 128, 256),
            "learning_rates": (1e-3, 3e-4, 3e-3),
            "seeds": 8,
        },
        # The course names the changes, not their sizes, and not its epochs.
        "course-d": {"data": "cifar10", "epochs": (10, 20), "seeds": 8},
        # 94 takes a quarter of an hour and more a seed: budgets=94.
        "fast": {
            "data": "cifar10",
            "layers": (1,),
            "filters": (32,),
            "kernels": (3,),
            "activations": ("relu",),
            "pools": ("max",),
            "epochs": (10,),
            "batch_sizes": (64,),
            "learning_rates": (1e-3,),
            "networks": (),
            "budgets": (80, 90),
            "validation": 0,
            "seeds": 7,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.less(
            "test_accuracy",
            DEEP,
            SIMPLE,
            **BETTER,
            published=Published(0.6222 - 0.6381, "course D, one seed"),
            sentence="At equal epochs the deep network reads test images worse than the "
            "simple one (course D)",
            answer=Answer(
                supported="the deep network, which is much smaller, reads worse than "
                "the simple one",
                refuted="the deep network, though much smaller, does not read worse "
                "than the simple one",
                open="whether the small deep network reads worse than the simple one",
            ),
        ),
        Claim.greater(
            "test_accuracy",
            WIDE,
            SIMPLE,
            **BETTER,
            sentence="With as many parameters as the simple network the deep one reads "
            "better than it",
            answer=Answer(
                supported="at equal size the deeper network reads better",
                refuted="at equal size the deeper network does not read better",
                open="whether depth alone helps",
            ),
        ),
        Claim.greater(
            "test_accuracy",
            DEEP,
            NARROW,
            **BETTER,
            sentence="With as few parameters as the deep network the simple one reads "
            "worse than it",
        ),
        Claim.greater(
            "test_accuracy",
            WIDE,
            DEEP,
            **BETTER,
            sentence="At equal depth more filters read better",
        ),
        Claim.greater(
            "test_accuracy",
            CHOSEN,
            SIMPLE,
            **BETTER,
            paired=True,
            sentence="The best change on validation images beats the simple network on "
            "test images",
            answer=Answer(
                supported="one change, chosen on validation images, makes the simple "
                "network better",
                refuted="no change that validation images would choose makes the "
                "simple network better by a point",
                open="whether one change makes the simple network better",
            ),
        ),
        Claim.at_most(
            "peeking_gain",
            0.02,
            where={"variant": CHOSEN},
            quantity="best accuracy on the test images minus that of the network chosen "
            "on validation images",
            sentence="Choosing on the test images instead adds at most two points to "
            "what is reported",
        ),
        Claim.at_least(
            "test_accuracy",
            0.7225,
            where={"variant": CHOSEN},
            published=Published(
                0.7225, "course D: best of eight on the test images", of="metric"
            ),
            sentence="The best of the changes, chosen on validation images, reads what "
            "course D reported",
        ),
        *(
            claim
            for percent, seconds in ((80, 90), (90, 480), (94, 2_400))
            for claim in _on_budget(percent, seconds)
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(
            who="course D",
            setting=setting,
            quantity="test accuracy",
            value=value,
            seeds=1,
            metric="test_accuracy",
            where={"variant": variant},
            fields={"data": "cifar10", "channels": 3, "size": 32},
        )
        for setting, variant, value in (
            ("CIFAR-10, simple network, 82,826 parameters", SIMPLE, 0.6381),
            ("CIFAR-10, deep network, 13,210 parameters", DEEP, 0.6222),
            ("CIFAR-10, best of eight, chosen on the test images", CHOSEN, 0.7225),
        )
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Count the parameters of the deep network by hand. Which layer lost most to the "
        "second pooling?",
        "Take filters=32,8,16,64,128. How does accuracy grow with the number of filters, "
        "and what does it cost in seconds?",
        "Draw nine coins a thousand times each with the same bias. How far above it is "
        "the luckiest, and what has that to do with choosing on test images?",
        "Combine the two changes that helped most: give model your network. Do their "
        "gains add up?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Krizhevsky, Learning multiple layers of features from tiny images, 2009.",
        "Clevert, Unterthiner, Hochreiter, Fast and accurate deep network learning by "
        "exponential linear units (ELUs), ICLR 2016, arXiv:1511.07289.",
        "Cawley and Talbot, On over-fitting in model selection and subsequent selection "
        "bias in performance evaluation, JMLR 11, 2010.",
    )

    @property
    def task(self) -> Task:
        """The images in their form."""
        return data.image_task(self.data, size=self.size, channels=self.channels)

    @property
    def changes(self) -> dict[str, Variant]:
        """The simple network, then those with one change, by what was changed."""
        lists: Mapping[str, Sequence[Any]] = {
            "layers": self.layers,
            "filters": self.filters,
            "kernel": self.kernels,
            "activation": self.activations,
            "pool": self.pools,
            "epochs": self.epochs,
            "batch size": self.batch_sizes,
            "learning rate": self.learning_rates,
        }
        first = {name: levels[0] for name, levels in lists.items()}
        found = {SIMPLE: _variant(first)}
        for name, levels in lists.items():
            for level in levels[1:]:
                found[f"{name} {level}"] = _variant({**first, name: level})
        return found

    @property
    def variants(self) -> dict[str, Variant]:
        """All that is trained, by name."""
        found = self.changes
        simple = found[SIMPLE]
        if DEEP in self.networks:
            found[DEEP] = replace(simple, network=self.deep)
        if WIDE in self.networks:
            wide = self._of_size(self.deep, simple.network)
            found[WIDE] = replace(simple, network=wide)
        if NARROW in self.networks:
            narrow = self._of_size(simple.network, self.deep)
            found[NARROW] = replace(simple, network=narrow)
        if self.model:
            found[YOURS] = replace(simple, network="")
        return found

    def validate(self) -> None:
        """Check that images are left to train on, and that the networks take them."""
        task = self.task
        data.check_color(self.data, self.channels)
        if len(self.changes) > 1 and not self.validation:
            raise UsageError(
                "validation=0 leaves no images by which to choose the best change: "
                "hold some out, or give one entry in each list."
            )
        if self.validation >= (task.samples or inf):
            raise UsageError(
                f"validation={self.validation} leaves no image of {self.data} to train "
                "on."
            )
        trained = task.train_samples - self.validation
        form = models.Form(task.shape, task.outputs, trained)
        for variant in self.variants.values():
            specs = (variant.network,) if variant.network else ()
            networks = models.Networks(specs, None if specs else self.model)
            networks.check(form, batch_sizes=[variant.batch_size])
        for budget in self.budgets:
            self._check_fast(budget)

    def conditions(self) -> list[Condition]:
        """List the simple network, the changes, their best, and the other networks."""
        names = list(self.variants)
        count = len(self.changes)
        chosen = [CHOSEN] if count > 1 else []
        fast = [f"{FAST} {budget}" for budget in self.budgets]
        names = [*names[:count], *chosen, *names[count:], *fast]
        return [Condition(variant=name) for name in names]

    def active_claims(self) -> tuple[Claim, ...]:
        """Tell the parameters in claims on size, and leave out what does not fit."""
        here = (self.data, self.size, self.channels) == ("cifar10", 32, 3)
        claims = []
        for claim in super().active_claims():
            # What is reported and what the budgets are made for is of CIFAR-10.
            if claim.kind == "bound" and claim.metric != "peeking_gain" and not here:
                continue
            sides = [claim.first, claim.second]
            if claim.kind == "difference" and not {CHOSEN, YOURS} & {*sides}:
                counts = [f"{self._formula(str(side)):,}" for side in sides]
                told = f"{claim.sentence}: {counts[0]} against {counts[1]} parameters"
                claim = replace(claim, sentence=told)
            claims.append(claim if here else replace(claim, published=None))
        return tuple(claims)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        name = str(condition["variant"])
        if name.startswith(FAST):
            return self._fast(name).learner(self.task.images("train")).build()
        return self._builder(name)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        train, _ = self._split(lab)
        return "cross_entropy", (train.normalize(train.images), train.labels)

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train every network, choose the best by seed, and look at the test images."""
        (train, kept), test = self._split(lab), self.task.images("test")
        lab.note(*train.notes, *test.notes)
        scores: dict[int, dict[str, tuple[float, float]]] = {}
        variants, changes = self.variants, self.changes
        for name, own in _by_variant(trials):
            if name == CHOSEN:
                continue
            if name.startswith(FAST):
                self._run_fast(self._fast(name), own, train, kept, test, lab)
                continue
            result = self._train(name, variants[name], own, train, kept, lab)
            logits = result.predict(test.images).cpu()
            for place, (trial, outcome) in enumerate(zip(own, result, strict=True)):
                seconds = float(result.seconds[-1]) / len(own)
                self._record(trial, outcome, seconds, lab)
                score = self._look(trial, outcome, logits[place], train, test, lab)
                if name in changes and kept is not None:
                    valid = _last(outcome)["validation_accuracy"]
                    scores.setdefault(trial.seed, {})[name] = (valid, score)
        for trial in trials:
            if trial.condition["variant"] == CHOSEN:
                lab.record(trial, **_choice(scores[trial.seed]))

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Score always saying the most frequent class of the training images."""
        scores = records.values("constant_accuracy")
        if not scores:
            return {}
        constant = {"always the most frequent class": scores[0]}
        return {"test_accuracy": constant, "validation_accuracy": constant}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw scores of networks and changes, and what the simple network shows."""
        fast = [f"{FAST} {budget}" for budget in self.budgets]
        named = [SIMPLE, *NETWORKS, CHOSEN, YOURS, *fast]
        compared = Records(r for r in records if r.condition["variant"] in named)
        changed = Records(
            r for r in records if r.condition["variant"] in {*self.changes, CHOSEN}
        )
        figures = {
            "networks": plots.dots(
                compared,
                "test_accuracy",
                by="variant",
                panel_by="",
                log_y=False,
                x_label="network",
                y_label="test accuracy",
                title="Test accuracy",
                caption="Deep and narrow simple have few parameters, simple and wide "
                "deep many.",
            ),
            "size": plots.trend(
                Records(r for r in compared if "parameters" in r.scalars),
                "test_accuracy",
                color_by="variant",
                log_y=False,
                x_label="parameters",
                y_label="test accuracy",
                title="Test accuracy against size",
                caption="Networks of one size stand one above the other and differ in "
                "depth.",
            ),
            "changes": plots.dots(
                changed,
                "validation_accuracy",
                by="variant",
                panel_by="",
                log_y=False,
                x_label="change of the simple network",
                y_label="validation accuracy",
                title="One change at a time",
                caption="The best of each seed stands at the right: it is chosen by "
                "these very scores, which is why it looks so good here.",
            ),
            "epochs": self._epochs(compared),
        }
        return figures | self._seen(records)

    def _epochs(self, records: Records) -> Figure:
        splits = {
            "validation images": "validation_accuracy",
            "training images": "train_accuracy",
        }
        return plots.curves(
            plots.side_by_side(records, splits, curve="accuracy", factor="images"),
            "accuracy",
            color_by="variant",
            panel_by="images",
            log_y=False,
            x_label="epochs",
            y_label="accuracy",
            title="Accuracy against epochs",
            caption="Where training images are read better and better and validation "
            "images are not, the network learns by heart.",
        )

    def _seen(self, records: Records) -> dict[str, Figure]:
        """Draw the confusion matrix, the hardest images, filters and maps."""
        figures = {}
        fast = [f"{FAST} {budget}" for budget in self.budgets]
        best = fast[-1] if fast else SIMPLE
        rows = records.where(variant=best)
        if counted := [r.arrays for r in rows if "confusion" in r.arrays]:
            names = counted[0]["class_names"].tobytes().decode().split("\n")
            figures["confusion"] = plots.confusion(
                [arrays["confusion"] for arrays in counted],
                names,
                title="Which class is taken for which",
                caption=f"The network {best} on test images, all seeds together.",
            )
        named = [SIMPLE, DEEP, WIDE, YOURS, *fast]
        shown = Records(r for r in records if r.condition["variant"] in named)
        figures["hardest"] = plots.mistakes(
            shown,
            by="variant",
            title="The hardest images",
            caption=f"Up to {SHOWN} test images of one seed's networks, the one with "
            "the largest loss first.",
        )
        filters, maps = {}, {}
        for record in shown:
            name = str(record.condition["variant"])
            if "filters" in record.arrays and name not in filters:
                filters[name] = plots.filter_pictures(record.arrays["filters"])
            if "maps" in record.arrays and name not in maps:
                maps["test image"] = record.arrays["mapped"]
                maps[name] = record.arrays["maps"]
        if filters:
            figures["filters"] = plots.tiles(
                filters,
                title="Filters of the first layer",
                caption="One seed's. Weight zero is gray; each filter has its own "
                "scale. Of color images all three channels are shown."
                + (" Those of the fast recipe are computed." if fast else ""),
            )
        if maps:
            figures["maps"] = plots.tiles(
                maps,
                title="What the first layer sees in one image",
                caption="Each map is what one filter gives, after the activation, from "
                "black at its least to white at its most. They stand in the order of "
                "the filters.",
            )
        return figures

    # Networks and training

    def _formula(self, name: str) -> int:
        """Count parameters by formula."""
        return models.count_parameters(
            self.variants[name].network,
            shape=self.task.shape,
            outputs=self.task.outputs,
        )

    def _of_size(self, spec: str, of: str) -> str:
        """Give the last convolution as many filters as bring its network to a size."""
        shape, outputs = self.task.shape, self.task.outputs

        def count(network: str) -> int:
            return models.count_parameters(network, shape=shape, outputs=outputs)

        wanted = count(of)
        # Parameters grow with the filters of one layer in a straight line.
        one, two = count(_with_filters(spec, 1)), count(_with_filters(spec, 2))
        filters = round((wanted - one) / max(1, two - one)) + 1
        return _with_filters(spec, min(MOST_FILTERS, max(1, filters)))

    def _builder(self, name: str) -> Callable[[], nn.Module]:
        variant = self.variants.get(name)
        if variant is None:
            raise UsageError(
                f"'{name}' is another network in each seed: the note 'chosen' of its "
                "trial says which. Ask for that one."
            )
        specs = (variant.network,) if variant.network else ()
        networks = models.Networks(
            specs, None if specs else self.model, variant.activation
        )
        return networks.builder(networks.names[0], self.task)

    def _split(self, lab: Seeds) -> tuple[ImageSet, ImageSet | None]:
        """Return the images to train on and those held out, if any."""
        images = self.task.images("train")
        if not self.validation:
            return images, None
        # The same for all networks and seeds: their scores on them are compared.
        seed = lab.shared_seed("validation")
        return images.hold_out(self.validation, seed=seed)

    def _train(
        self,
        name: str,
        variant: Variant,
        trials: Sequence[Trial],
        train: ImageSet,
        kept: ImageSet | None,
        lab: Lab,
    ) -> Training:
        return lab.train(
            training.Supervised(self._builder(name), "cross_entropy"),
            (train.images, train.labels),
            training.Recipe(
                epochs=variant.epochs,
                batch_size=variant.batch_size,
                optimizer=training.Adam(variant.learning_rate),
                prepare=train.normalize,
                precision=self.precision,
                held_out=_held_out(kept),
                train_samples=TRAIN_SAMPLES,
                eval_every=training.steps_per_epoch(len(train), variant.batch_size),
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )

    def _record(self, trial: Trial, outcome: Outcome, seconds: float, lab: Lab) -> None:
        """Record what the evaluations of one network say."""
        last, name = _last(outcome), str(trial.condition["variant"])
        if "validation_accuracy" in last:
            lab.record(
                trial,
                validation_accuracy=last["validation_accuracy"],
                gap=last["train_accuracy"] - last["validation_accuracy"],
            )
        lab.record(
            trial,
            train_accuracy=last["train_accuracy"],
            seconds=seconds,
            parameters=sum(p.numel() for p in outcome.module().parameters()),
            stop_reason=outcome.stop_reason,
        )
        if name in self.variants and name != YOURS:
            lab.record(trial, parameters_by_formula=self._formula(name))
        # The first evaluation is before training.
        for curve in ("train_accuracy", "validation_accuracy"):
            if curve in last:
                values = outcome.curves[curve][1:]
                lab.curve(trial, curve, outcome.epochs[1:], values)

    def _look(
        self,
        trial: Trial,
        outcome: Outcome,
        logits: Tensor,
        train: ImageSet,
        test: ImageSet,
        lab: Lab,
    ) -> float:
        """Look at the test images; return the accuracy there."""
        name, answers = str(trial.condition["variant"]), logits.argmax(dim=1)
        score = float((answers == test.labels).double().mean())
        if outcome.stop_reason == "diverged":
            score = nan
        if name in self.changes:
            lab.record(trial, peeked_accuracy=score)
        if name == SIMPLE or name not in self.changes:
            constant = metrics.constant_accuracy(train.labels, test.labels)
            lab.record(trial, test_accuracy=score, constant_accuracy=constant)
            matrix = metrics.confusion_matrix(
                answers, test.labels, classes=len(test.classes)
            )
            lab.array(trial, "confusion", matrix.numpy())
            places, _, given = metrics.largest_losses(logits, test.labels, most=SHOWN)
            for key, array in plots.mistake_arrays(test, places, given).items():
                lab.array(trial, key, array)
        if name in (SIMPLE, *self.networks, YOURS):
            self._look_inside(trial, outcome.module().cpu(), test, lab)
        return score

    # The fast recipe

    def _fast(self, name: str) -> FastImages:
        return baselines.BUDGETS[int(name.removeprefix(f"{FAST} "))]

    def _check_fast(self, budget: int) -> None:
        """Refuse images that are too small for the fast networks."""
        import torch

        own, (channels, *_) = baselines.BUDGETS[budget], self.task.shape
        values = channels * own.patch**2
        net = models.FastConvolutional(
            torch.zeros(values, channels, own.patch, own.patch),
            widths=[1] * len(own.widths),
            convolutions=own.convolutions,
            stride=own.stride,
        )
        try:
            net.eval()(torch.zeros(1, *self.task.shape))
        except RuntimeError as error:
            raise UsageError(
                f"The fast network for {budget} % needs larger images than {self.size} "
                f"x {self.size}: take size=32, or budgets without {budget}."
            ) from error

    def _run_fast(
        self,
        own: FastImages,
        trials: Sequence[Trial],
        train: ImageSet,
        kept: ImageSet | None,
        test: ImageSet,
        lab: Lab,
    ) -> None:
        """Train by the fast recipe, and score with and without several views."""
        began = time.perf_counter()
        learner = own.learner(train)  # computes the first layer
        whitening = time.perf_counter() - began
        recipe = own.recipe(train, held_out=_held_out(kept))
        result = lab.train(
            learner,
            own.samples(train),
            replace(recipe, train_samples=FAST_SAMPLES),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        seconds = float(result.seconds[-1]) / len(trials)
        for trial, outcome in lab.each(zip(trials, result, strict=True)):
            net = outcome.module()
            logits = baselines.answers(net, train.normalize, test.images)
            self._record(trial, outcome, whitening + seconds, lab)
            score = self._look(trial, outcome, logits["plain"], train, test, lab)
            right = (logits["averaged"].argmax(1) == test.labels).double()
            averaged = float(right.mean())
            lab.record(
                trial, averaged_accuracy=averaged, averaging_gain=averaged - score
            )
            lab.array(trial, "filters", net.get_buffer("filters")[:MAPS].numpy())

    def _look_inside(
        self, trial: Trial, net: nn.Module, test: ImageSet, lab: Lab
    ) -> None:
        """Keep the first filters, and their maps of the first test image."""
        first = models.first_convolution(net)
        if first is None:
            return
        image = test.images[:1]
        after = models.activated(net, first)
        maps = models.outputs_inside(net, after, test.normalize(image))[0]
        lab.array(trial, "filters", first.weight.detach()[:MAPS].numpy())
        lab.array(trial, "mapped", image.numpy())
        lab.array(trial, "maps", plots.map_pictures(maps[:MAPS].numpy()))


def _variant(levels: Mapping[str, Any]) -> Variant:
    """Return the network of one level of each factor."""
    kernel = levels["kernel"]
    block = f"conv{levels['filters']}k{kernel}p{kernel // 2}-{POOLS[levels['pool']]}"
    return Variant(
        "-".join([block] * levels["layers"]),
        levels["activation"],
        levels["epochs"],
        levels["batch size"],
        levels["learning rate"],
    )


def _last(outcome: Outcome) -> dict[str, float]:
    """Return the last values of all curves; a diverged network has no score."""
    last = outcome.last()
    return dict.fromkeys(last, nan) if outcome.stop_reason == "diverged" else last


def _with_filters(spec: str, filters: int) -> str:
    """Change the filters of the last convolution.

    >>> _with_filters("conv32k3p1-pool-conv16k2p1-pool", 5)
    'conv32k3p1-pool-conv5k2p1-pool'
    """
    before, found, after = spec.rpartition("conv")
    if not found:
        raise UsageError(
            f"'{spec}' has no convolution whose filters could be changed: take another "
            "deep network, or networks=deep."
        )
    return f"{before}conv{filters}k{after.partition('k')[2]}"


def _held_out(kept: ImageSet | None) -> dict[str, Any]:
    return {} if kept is None else {"validation": (kept.images, kept.labels)}


def _by_variant(trials: Trials) -> Iterator[tuple[str, list[Trial]]]:
    """Yield the trials of each variant."""
    for condition in trials.conditions:
        name = str(condition["variant"])
        yield name, [t for t in trials if t.condition["variant"] == name]


def _choice(scores: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Choose by validation accuracy, and say what the test accuracy is and could be.

    Args:
        scores: By name, the accuracies on validation and on test images; those of
            diverged networks are NaN and never chosen.

    >>> found = _choice({"a": (0.5, 0.45), "b": (0.6, 0.5), "c": (0.55, 0.52)})
    >>> found["chosen"], found["test_accuracy"], round(found["peeking_gain"], 2)
    ('b', 0.5, 0.02)
    """
    valid = {name: pair for name, pair in scores.items() if pair[1] == pair[1]}
    if not valid:
        return {"chosen": "none", "test_accuracy": nan, "validation_accuracy": nan}
    chosen = max(valid, key=lambda name: valid[name][0])
    promised, score = valid[chosen]
    peeked = max(valid, key=lambda name: valid[name][1])
    return {
        "chosen": chosen,
        "chosen_by_peeking": peeked,
        "validation_accuracy": promised,
        "test_accuracy": score,
        "optimism": promised - score,
        "peeked_accuracy": valid[peeked][1],
        "peeking_gain": valid[peeked][1] - score,
    }
