"""Features that were learned on other images, and what they are worth on a few."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from nablab import baselines, data, metrics, models, plots, training
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
from nablab.errors import UsageError
from nablab.models.fields import OwnModelField, WeightsField
from nablab.settings import (
    Distinct,
    Epochs,
    Ge,
    Le,
    Pixels,
    Positive,
    Rising,
    Samples,
    Steps,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.baselines import LinearProbe
    from nablab.data import ImageSet

Method = Literal[
    "linear-on-pixels",
    "random-features",
    "linear-probe",
    "probe-at-own-size",
    "frozen",
    "drifting-statistics",
    "last-block",
    "everything",
    "from-scratch",
]
METHODS: tuple[Method, ...] = get_args(Method)
PIXELS, RANDOM, PROBE, OWN_SIZE, FROZEN, DRIFTING, LAST, EVERYTHING, SCRATCH = METHODS
# Solved for their optimum; the others take steps.
PROBED = (PIXELS, RANDOM, PROBE, OWN_SIZE)
UNTRAINED = (PIXELS, RANDOM, SCRATCH)  # what needs no trained trunk
LITE, RESNET, SMALL = "efficientnet-lite0", "resnet18", "small"
TOLERANCE = 1e-7  # of a probe: its accuracy is settled long before its last digits
SETTLING, EVALUATIONS = 512, 5
FEW, MANY = 10, 1_000
BETTER: Mapping[str, Any] = {
    "by": "method",
    "paired": True,
    "smallest_effect": 0.005,
    "quantity": "test accuracy",
}

Count = Annotated[int, Ge(1), Le(1_000_000)]
Width = Annotated[int, Ge(1), Le(4_096)]


@dataclass(frozen=True)
class TransferLearning(Experiment):
    """What do features that were learned on other images give?

    A network that was trained to tell many classes apart has learned to see edges,
    textures and parts. Its last layer is about those classes; what stands before it,
    the trunk, is not. Transfer learning keeps the trunk and learns a new last layer,
    the head, on images of one's own, of which there may be few.

    There are degrees of it. A linear probe leaves the trunk as it is: then the features
    of an image never change, are computed once, and the head is a logistic regression.
    That problem is convex and is solved here to its optimum, with the L2 penalty that
    is best on images held out. Fine-tuning trains weights of the trunk, too: those of
    the last block, or all. It starts from the probe's head, so that a random head does
    not spoil the features at first (Kumar et al. 2022). With few images every weight
    that may change is one more to overfit with; with many, features that adapt win.

    What is it worth? Beside it stand a linear model on pixels, the same network with
    random weights as trunk (what does the architecture alone give?), and the same
    network trained from scratch on the same images for the same number of steps.

    One mistake is made often. To freeze weights it is not enough to give them no
    gradient: a batch norm in training mode takes mean and variance from the batch and
    moves its running statistics toward the new images. Then the features of an image
    depend on which others stand beside it, and at test time they are others still.
    ``drifting-statistics`` makes this mistake and ``frozen`` does not; all else is
    equal.

    What to look for. How many labeled images is a trained trunk worth? Where does
    fine-tuning overtake the probe? What does the mistake cost, or did moving the
    statistics to the new images help?

    Where the trunk comes from is said in the notes, and nothing is called ImageNet that
    is not. ``efficientnet-lite0`` comes with weights trained on ImageNet, Apache 2.0;
    ``resnet18`` needs a file of yours, or is trained here; ``small`` is trained here:
    on the classes that the target does not have, or on the images ``source``. ImageNet
    has photographs of what CIFAR-10's classes show, so this transfer is an easy one.

    What to expect. There is no reference run yet. On digits (quick) a trunk that
    learned five classes does not help with the other five: with 10 images a class the
    linear probe reaches 70 %, random features 82 %, from scratch 95 %, a linear model
    on pixels 94 %. With 80 they reach 87, 91, 98 and 97 %, and fine-tuning everything
    93 %. A frozen trunk whose statistics drift reads 69 and 79 %, one and four points
    more than one whose statistics are fixed: the statistics move to the new digits. On
    CIFAR-10 with EfficientNet, one seed at 64 pixels, the same mistake cost 11 points
    with 10 images a class and 12 with 100.

    The test split is scored once; penalties and the moment to stop are chosen on
    ``validation`` images. Frozen and drifting-statistics are scored at the end.

    Attributes:
        data: cifar10, mnist, digits, or yours: a folder or a file.npz; cifar10@20000
            for fewer training images.
        classes: Numbers of the target's classes, from 0; empty for all of them.
        source: Images that the trunk is trained on here; none for the classes of the
            data that are not in ``classes``.
        channels: 1 for gray, 3 for color.
        trunk: The network: small, resnet18 or efficientnet-lite0.
        model: Your own network instead: package.module:factory or
            path/to/file.py:factory. It needs a method features(x) that returns (N, D),
            and its last linear layer reads D numbers; last_block may name its last
            parts.
        weights: A file with the weights of the trunk: safetensors, or what torch.save
            wrote. The number of classes may differ. None: those of ImageNet for
            efficientnet-lite0; others are trained here.
        widths: Channels of the small trunk's convolutions.
        pixels: Height and width to which images are brought for the trunk, bilinearly.
        images: Labelled images per class.
        methods: What is compared.
        penalties: Weights λ of the probe's L2 penalty to choose from.
        steps: Optimizer steps, the same for every number of images.
        batch_size: Images per step.
        learning_rate: Of Adam in fine-tuning; it rises and falls over the steps.
        head_learning_rate: The same of frozen and drifting-statistics.
        scratch_learning_rate: The same from scratch, and of a trunk that is trained
            here.
        source_epochs: Passes over the source images.
        validation: Training images held out to choose by.
        test_images: Test images that are scored, at most.
        precision: Of features that are computed once. bfloat16 takes half the time or
            less where the processor multiplies it; training is in float32.
    """

    topic: ClassVar[str] = "images"
    # All numbers of images share the features of a trunk.
    batch_over: ClassVar[tuple[str, ...]] = ("images",)

    data: ImagesField = "cifar10@20000"
    classes: Annotated[tuple[Annotated[int, Ge(0), Le(10_000)], ...], Rising(0)] = ()
    source: ImagesField | None = None
    channels: Literal[1, 3] = 3
    trunk: Literal["small", "resnet18", "efficientnet-lite0"] = "efficientnet-lite0"
    model: OwnModelField = None
    weights: WeightsField = None
    widths: tuple[Width, ...] = (32, 64, 128)
    pixels: Pixels = 64
    images: Annotated[tuple[Count, ...], Rising()] = (10, 100, 1_000)
    methods: Annotated[tuple[Method, ...], Distinct()] = METHODS
    penalties: Annotated[tuple[Positive, ...], Rising()] = (3e-3, 0.03, 0.3, 3.0)
    steps: Steps = 200
    batch_size: Samples = 32
    learning_rate: Positive = 5e-4
    head_learning_rate: Positive = 3e-3
    scratch_learning_rate: Positive = 3e-3
    source_epochs: Epochs = 10
    validation: Samples = 1_000
    test_images: Samples = 2_000
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "classes": (5, 6, 7, 8, 9),
            "channels": 1,
            "trunk": SMALL,
            "widths": (16, 32, 32),
            "pixels": 8,
            "images": (10, 80),
            "methods": tuple(m for m in METHODS if m != OWN_SIZE),
            "steps": 60,
            # Of 0.003 to 1 on validation images: from here on it gains little.
            "head_learning_rate": 0.3,
            "scratch_learning_rate": 1e-2,
            "source_epochs": 12,
            "validation": 100,
            "test_images": 500,
            "precision": "float32",
            "seeds": 9,
        },
        "standard": {"seeds": 8},
        # Six classes teach the trunk, the four kinds of vehicles are to be learned.
        "other-classes": {
            "data": "cifar10",
            "classes": (0, 1, 8, 9),
            "trunk": SMALL,
            "widths": (32, 64, 128, 128),
            "pixels": 32,
            "methods": tuple(m for m in METHODS if m != OWN_SIZE),
            "seeds": 8,
        },
        # At the size that the trunk was trained at.
        "paper": {
            "data": "cifar10",
            "pixels": 224,
            "steps": 2_000,
            "validation": 5_000,
            "test_images": 10_000,
            "seeds": 8,
        },
        # Course D's ResNet-18 had weights of ImageNet, which no registry serves: add
        # trunk=resnet18 weights=PATH where you have them.
        "course-d": {
            "data": "cifar10",
            "pixels": 32,
            "images": (900,),
            "methods": (PIXELS, PROBE, FROZEN, DRIFTING),
            "steps": 1_500,
            "batch_size": 64,
            "test_images": 10_000,
            "seeds": 8,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.greater(
            "test_accuracy",
            PROBE,
            SCRATCH,
            **BETTER,
            where={"images": FEW},
            sentence="With 10 images a class a linear probe beats the network trained "
            "from scratch",
            answer=Answer(
                supported="with ten images a class features learned elsewhere beat "
                "training from scratch",
                refuted="with ten images a class features learned elsewhere do not beat "
                "training from scratch",
                open="whether features learned elsewhere help with ten images a class",
            ),
        ),
        Claim.greater(
            "test_accuracy",
            EVERYTHING,
            PROBE,
            **BETTER,
            where={"images": MANY},
            sentence="With 1,000 images a class fine-tuning everything beats the linear "
            "probe",
            answer=Answer(
                supported="with a thousand images a class fine-tuning beats a linear "
                "probe",
                refuted="with a thousand images a class fine-tuning does not beat a "
                "linear probe",
                open="whether fine-tuning beats a linear probe with a thousand images "
                "a class",
            ),
        ),
        Claim.less(
            "test_accuracy",
            DRIFTING,
            FROZEN,
            **BETTER,
            within="images",
            sentence="Batch norm in training mode costs a frozen trunk accuracy",
            answer=Answer(
                supported="frozen weights with drifting statistics cost accuracy",
                refuted="drifting statistics do not cost accuracy here",
                open="whether drifting statistics cost accuracy",
            ),
        ),
        Claim.greater(
            "test_accuracy",
            PROBE,
            RANDOM,
            **BETTER,
            within="images",
            sentence="A trained trunk gives better features than the same network with "
            "random weights",
        ),
        Claim.greater(
            "test_accuracy",
            PROBE,
            OWN_SIZE,
            **BETTER,
            within="images",
            sentence="Enlarging small images helps a trunk that was trained on large "
            "ones",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="course D",
            setting="CIFAR-10, 9,000 images, ResNet-18 of ImageNet, weights frozen, "
            "statistics drifting, 374 s",
            seeds=1,
            quantity="test accuracy",
            value=0.73,
            metric="test_accuracy",
            where={"method": DRIFTING, "images": 900},
            fields={"classes": ()},
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "How many weights does each method train? With ten images a class, which of them "
        "could fit any labels at all?",
        "A batch norm has momentum m. After how many steps in training mode has its "
        "running mean forgotten half of what it learned?",
        "Set pixels=32, 64, 96, 128 with methods=linear-probe. Why do features of "
        "enlarged images help, although no pixel is new?",
        "Run the preset other-classes with the animals as target, classes=2,3,4,5,6,7. "
        "Do vehicles teach as much about animals as animals about vehicles?",
        "Is a linear model on pixels beaten by random features? What does that say of "
        "convolutions and pooling?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Ioffe and Szegedy, Batch normalization: accelerating deep network training by "
        "reducing internal covariate shift, ICML 2015, arXiv:1502.03167.",
        "Yosinski et al., How transferable are features in deep neural networks?, NIPS "
        "2014, arXiv:1411.1792.",
        "He et al., Deep residual learning for image recognition, CVPR 2016, "
        "arXiv:1512.03385.",
        "Kornblith, Shlens, Le, Do better ImageNet models transfer better?, CVPR 2019, "
        "arXiv:1805.08974.",
        "Tan and Le, EfficientNet: rethinking model scaling for convolutional neural "
        "networks, ICML 2019, arXiv:1905.11946.",
        "Kumar et al., Fine-tuning can distort pretrained features and underperform "
        "out-of-distribution, ICLR 2022, arXiv:2202.10054.",
        "Böhning, Multinomial logistic regression algorithm, Annals of the Institute of "
        "Statistical Mathematics 44, 1992.",
    )

    @property
    def taught_here(self) -> bool:
        """Whether the trunk is trained here, not elsewhere."""
        own = self.model is not None or self.trunk != LITE
        return own and self.weights is None

    @property
    def needs_trunk(self) -> bool:
        """Whether anything that is compared starts from a trained trunk."""
        return any(method not in UNTRAINED for method in self.methods)

    @property
    def origin(self) -> str:
        """What the trunk is and where it comes from, as a sentence."""
        name = self.trunk if self.model is None else f"your network {self.model}"
        if self.weights is not None:
            return f"The trunk is {name} with the weights of {Path(self.weights).name}."
        if not self.taught_here:
            return f"The trunk is {name}, trained on ImageNet."
        if self.source is not None:
            return f"The trunk is {name}, trained here on {self.source}."
        return (
            f"The trunk is {name}, trained here on the classes of {self.data} that are "
            "not to be learned."
        )

    def data_sets(self) -> tuple[str, ...]:
        """Name the images, and the weights where they are of a registry."""
        weights = (LITE,) if self.needs_trunk and not self.taught_here else ()
        return (*super().data_sets(), *(weights if self.weights is None else ()))

    def validate(self) -> None:
        """Check the network, its weights, and that there are images to learn from."""
        task = data.image_task(self.data, size=self.pixels, channels=self.channels)
        self._check_channels()
        if self.classes and self.classes[-1] >= task.outputs:
            raise UsageError(
                f"classes={self.classes[-1]} is none of {self.data}: it has "
                f"{task.outputs} classes, 0 to {task.outputs - 1}."
            )
        targets = len(self.classes) or task.outputs
        if targets < 2:
            raise UsageError("One class is nothing to tell apart: name two or more.")
        taught = self.taught_here and self.needs_trunk and self.source is None
        if taught and task.outputs - targets < 2:
            raise UsageError(
                f"A trunk that is trained here needs two other classes of {self.data} or "
                "more, and all but "
                f"{task.outputs - targets} are to be learned. Name fewer in classes, "
                "other images in source, or a file in weights."
            )
        if not self.widths:
            raise UsageError("The small trunk has no layers: give widths.")
        halved = self.pixels >> (len(self.widths) - 1)
        if self.model is None and self.trunk == SMALL and halved < 1:
            raise UsageError(
                f"{self.pixels} pixels cannot be halved {len(self.widths) - 1} times: "
                "give fewer widths or more pixels."
            )
        least = targets * self.images[0]
        singles = [n for n in self.images if targets * n % self.batch_size == 1]
        if singles or self.batch_size < 2:
            raise UsageError(
                f"batch_size={self.batch_size} leaves a batch of one image, which has no "
                "variance for batch norm: take another one."
            )
        if least < 2:
            raise UsageError("One image is nothing to learn from: ask for more.")
        net = self.builder(targets)
        models.check_trunk(net, (self.channels, self.pixels, self.pixels))
        models.last_block_of(net)
        if self.weights is not None:
            self._put_weights(net)

    def _check_channels(self) -> None:
        data.check_color(self.data, self.channels)
        if self.source is not None:
            data.check_color(self.source, self.channels)
        if self.model is None and self.trunk != SMALL and self.channels != 3:
            raise UsageError(
                f"trunk={self.trunk} reads images in color, of 3 channels, and "
                f"channels={self.channels}: take trunk=small or images in color."
            )

    def conditions(self) -> list[Condition]:
        """List every method with every number of images."""
        return [
            Condition(method=method, images=count)
            for method in self.methods
            for count in self.images
        ]

    def builder(self, classes: int) -> nn.Module:
        """Build the network with random weights and so many classes."""
        from torch import nn

        if self.model is not None:
            net = models.load_factory(self.model)()
            head = net.get_submodule(models.head_of(net))
            width = int(head.in_features)  # type: ignore[arg-type]
            return models.replace_head(net, nn.Linear(width, classes))
        if self.trunk == RESNET:
            return models.resnet18(classes)
        if self.trunk == LITE:
            # Without dropout: what is compared shall differ by what is trained alone.
            return models.efficientnet_lite0(classes, dropout=0.0)
        return models.SmallTrunk(self.channels, classes, widths=self.widths)

    def _put_weights(self, net: nn.Module) -> tuple[str, ...]:
        """Give a network the weights of the user's file or of the registry."""
        from nablab.files.weights import read_weights, set_trunk_weights

        head = models.head_of(net)
        if self.weights is not None:
            path = Path(self.weights)
            return set_trunk_weights(net, read_weights(path), path, head=head)
        found = data.load_pretrained(LITE)
        set_trunk_weights(net, found.tensors, found.name, head=head)
        return (f"{found.name}: {found.license}. {found.citation}.",)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        from torch import nn

        method = str(condition["method"])
        if method in PROBED:
            return super().network_of(condition)
        task = data.image_task(self.data, size=self.pixels, channels=self.channels)
        net = self.builder(len(self.classes) or task.outputs)
        if method == FROZEN:
            head = net.get_submodule(models.head_of(net))
            assert isinstance(head, nn.Linear)
            return head
        return self._part_of(net, method)

    def _part_of(self, net: nn.Module, method: str) -> nn.Module:
        """Freeze what a method does not train."""
        if method in (EVERYTHING, SCRATCH):
            return models.FineTuned(net)
        if method == LAST:
            return models.FineTuned(net, models.last_block_of(net))
        return models.FineTuned(net, (models.head_of(net),), fixed_statistics=False)

    def run(self, trials: Trials, lab: Lab) -> None:
        """Learn the target by one method, from every number of images."""
        target = _target(self, lab.shared_seed("validation"))
        lab.note(*target.notes)
        method = str(trials.condition["method"])
        trunks = self._trunks(trials, lab, target)
        if method in PROBED:
            for trial in lab.each(trials):
                self._probe(trial, lab, target, trunks[trial.seed])
            return
        for trial in trials:
            self._train(trial, lab, target, trunks[trial.seed])

    def _trunks(self, trials: Trials, lab: Lab, target: Target) -> dict[int, Trunk]:
        """Return the trunk of each seed."""
        method = str(trials.condition["method"])
        first = {trial.seed: trial for trial in reversed(trials)}
        if method == PIXELS:
            return dict.fromkeys(first, Trunk.of_pixels(target))
        if method in UNTRAINED:
            return {
                seed: self._untrained(lab.seed(trial, "untrained", by=()), target)
                for seed, trial in first.items()
            }
        lab.note(self.origin)
        if not self.taught_here:
            size = self.own_size if method == OWN_SIZE else self.pixels
            trunk, notes = _loaded(replace(self, pixels=size), target)
            lab.note(*notes)
            return dict.fromkeys(first, trunk)
        seeds = {seed: lab.seed(one, "source", by=()) for seed, one in first.items()}
        for seed in lab.each(seeds.values(), name="the trunk on its own images"):
            _taught(self, seed, target)
        return {seed: _taught(self, one, target) for seed, one in seeds.items()}

    @property
    def own_size(self) -> int:
        """Height and width that images have before they are enlarged."""
        return _stored_size(self.data)

    def _untrained(self, seed: int, target: Target) -> Trunk:
        """Make a trunk of random weights, with the statistics of unlabeled images."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.builder(len(target.train.classes))
        trunk = Trunk.of(net, self, target)
        some = torch.split(target.train.images[:SETTLING], self.batch_size)
        models.settle_statistics(net, (trunk.prepare(part) for part in some))
        return Trunk.of(net, self, target)

    def _probe(self, trial: Trial, lab: Lab, target: Target, trunk: Trunk) -> None:
        """Fit a probe on features that are computed once."""
        places = target.labeled(int(trial.condition["images"]), trial, lab)
        began = time.perf_counter()
        probe = self._fitted(trunk, target, places)
        seconds = time.perf_counter() - began
        logits = {
            "validation": probe(trunk.validation()),
            "test": probe(trunk.test()),
        }
        self._record(trial, lab, target, logits, seconds)
        trained = probe.weight.numel() + probe.bias.numel()
        lab.record(trial, trained_parameters=trained, penalty=probe.penalty)
        lab.weights(trial, "probe", {"weight": probe.weight, "bias": probe.bias})

    def _fitted(self, trunk: Trunk, target: Target, places: Tensor) -> LinearProbe:
        return baselines.linear_probe(
            trunk.train(places),
            target.train.labels[places],
            classes=len(target.train.classes),
            penalties=self.penalties,
            held_out=(trunk.validation(), target.validation.labels),
            tolerance=TOLERANCE,
        )

    def _train(self, trial: Trial, lab: Lab, target: Target, trunk: Trunk) -> None:
        """Train a head, a part of the network or all of it, by steps."""
        from torch import nn

        method = str(trial.condition["method"])
        places = target.labeled(int(trial.condition["images"]), trial, lab)
        classes, labels = len(target.train.classes), target.train.labels[places]
        validation, test = target.validation.images, target.test.images
        if method == FROZEN:
            inputs = trunk.train(places)
            validation, test = trunk.validation(), trunk.test()
        else:
            inputs = target.train.images[places]
        probe = None
        if method in (LAST, EVERYTHING):
            probe = self._fitted(trunk, target, places)

        def build() -> nn.Module:
            if method == FROZEN:
                return nn.Linear(inputs.shape[1], classes)
            net = copy.deepcopy(trunk.net)
            if method != SCRATCH:
                models.replace_head(net, _head(trunk, classes, probe))
            return self._part_of(net, method)

        result = lab.train(
            training.Supervised(build, "cross_entropy"),
            (inputs, labels),
            training.Recipe(
                steps=self.steps,
                batch_size=self.batch_size,
                optimizer=training.Adam(learning_rate=self._rate(method)),
                schedule=training.Cosine(warmup_steps=self.steps // 5),
                prepare=None if method == FROZEN else trunk.prepare,
                held_out={"validation": (validation, target.validation.labels)},
                train_samples=self.batch_size,
                eval_every=max(1, self.steps // EVALUATIONS),
                best="validation_accuracy",
            ),
            # The same head and batches with and without the mistake.
            seeds=[
                lab.seed(trial, "weights", by=("images",))
                if method in (FROZEN, DRIFTING)
                else lab.seed(trial, "weights")
            ],
        )
        # The head of a frozen trunk is compared at its end: the best step on validation
        # may be the first, before any statistics have drifted, and would hide the cost.
        at: Literal["final", "best"]
        at = "final" if method in (FROZEN, DRIFTING) else "best"
        logits = {
            "validation": result.predict(validation, at=at)[0].cpu(),
            "test": result.predict(test, at=at)[0].cpu(),
        }
        self._record(trial, lab, target, logits, float(result.seconds[-1]))
        module = result[0].module(at=at)
        trained = [p.numel() for p in module.parameters() if p.requires_grad]
        lab.record(trial, trained_parameters=sum(trained))
        if at == "best":
            lab.record(trial, best_step=result[0].best_step)
        if method == DRIFTING:
            assert isinstance(module, models.FineTuned)
            moved = models.moved_statistics(trunk.net, module.net)
            lab.record(trial, statistics_moved=moved)

    def _rate(self, method: str) -> float:
        if method in (FROZEN, DRIFTING):
            return self.head_learning_rate
        return self.scratch_learning_rate if method == SCRATCH else self.learning_rate

    def _record(
        self,
        trial: Trial,
        lab: Lab,
        target: Target,
        logits: Mapping[str, Tensor],
        seconds: float,
    ) -> None:
        for split in ("validation", "test"):
            labels = getattr(target, split).labels
            right = (logits[split].argmax(dim=1) == labels).double().mean()
            lab.record(trial, **{f"{split}_accuracy": float(right)})
        constant = metrics.constant_accuracy(target.train.labels, target.test.labels)
        lab.record(trial, seconds=seconds, constant_accuracy=constant)

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        if trial.condition["method"] in (*PROBED, FROZEN):
            return super().objective(trial, lab)
        target = _target(self, lab.shared_seed("validation"))
        places = target.labeled(int(trial.condition["images"]), trial, lab)
        prepare = _prepare(self.builder(2), self, target)
        train = target.train
        return "cross_entropy", (prepare(train.images[places]), train.labels[places])

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Score always saying the most frequent class of the training images."""
        scores = records.values("constant_accuracy")
        if not scores:
            return {}
        return {"test_accuracy": {"always the most frequent class": scores[0]}}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw accuracy against the number of images, by method, and the mistake."""
        main = [r for r in records if r.condition["method"] != DRIFTING]
        figures = {
            "accuracy": plots.trend(
                Records(main),
                "test_accuracy",
                x="images",
                color_by="method",
                log_y=False,
                x_label="labeled images per class",
                y_label="test accuracy",
                title="What a trunk is worth, by the number of labeled images",
                caption=f"{self.origin} Read it sideways, too: how many images does "
                "from-scratch need to reach what the probe has with ten?",
            )
        }
        pair = [r for r in records if r.condition["method"] in (FROZEN, DRIFTING)]
        if pair:
            figures["mistake"] = plots.dots(
                _by_count(pair),
                "test_accuracy",
                by="method",
                panel_by="count",
                log_y=False,
                y_label="test accuracy",
                title="Frozen weights, with and without frozen statistics",
                caption="The same head, the same batches. The only difference is the "
                "mode of batch norm while the head is trained.",
            )
        return figures


@dataclass(frozen=True, eq=False)
class Target:
    """The images to be learned, their labels counted from 0.

    Attributes:
        train: To draw labeled images from.
        validation: To choose by.
        test: To score once.
        source: What a trunk is trained on here; None where it comes from elsewhere.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    source: ImageSet | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the user."""
        return self.train.notes

    def labeled(self, count: int, trial: Trial, lab: Seeds) -> Tensor:
        """Draw the places of so many images per class; fewer are a part of more.

        Raises:
            UsageError: A class has fewer.
        """
        import torch

        draw = torch.Generator().manual_seed(lab.seed(trial, "labeled", by=()))
        order = torch.randperm(len(self.train), generator=draw)
        labels = self.train.labels[order]
        chosen = []
        for number, name in enumerate(self.train.classes):
            own = order[labels == number]
            if len(own) < count:
                raise UsageError(
                    f"images={count:,} asks for more than there are: class {name} has "
                    f"{len(own):,} training images that are not held out."
                )
            chosen.append(own[:count])
        return torch.cat(chosen).sort().values


@dataclass(frozen=True, eq=False)
class Trunk:
    """A network, and the features of all splits, computed when they are asked for."""

    net: Any
    prepare: Any
    train: Any
    validation: Any
    test: Any

    @classmethod
    def of(cls, net: nn.Module, experiment: TransferLearning, target: Target) -> Trunk:
        """Put a network into use."""
        prepare = _prepare(net, experiment, target)
        rounds = experiment.precision == "bfloat16"
        splits = [
            models.CachedFeatures(net.eval(), part.images, prepare, bfloat16=rounds)
            for part in (target.train, target.validation, target.test)
        ]
        return cls(net, prepare, *splits)

    @classmethod
    def of_pixels(cls, target: Target) -> Trunk:
        """Take the pixels for features, from 0 to 1."""

        def flat(images: Tensor) -> Any:
            return lambda places=slice(None): images[places].flatten(1) / 255

        parts = (target.train, target.validation, target.test)
        return cls(None, None, *(flat(part.images) for part in parts))


def _prepare(
    net: nn.Module, experiment: TransferLearning, target: Target
) -> data.Resize:
    """Return what makes the network's input: in the colors that it was trained on."""
    mean, std = target.train.mean, target.train.std
    if not experiment.taught_here and hasattr(net, "mean") and hasattr(net, "std"):
        mean, std = tuple(net.mean), tuple(net.std)  # type: ignore[arg-type]
    return data.Resize(experiment.pixels, data.Normalize(mean, std))


@lru_cache(maxsize=2)
def _target(experiment: TransferLearning, seed: int) -> Target:
    """Load and split the images; the same for all methods."""
    size = _stored_size(experiment.data)
    task = data.image_task(experiment.data, size=size, channels=experiment.channels)
    train, test = task.images("train"), task.images("test")
    names = experiment.classes or tuple(range(len(train.classes)))
    source = None
    if experiment.taught_here and experiment.source is not None:
        other = data.image_task(
            experiment.source, size=size, channels=experiment.channels
        )
        source = other.images("train")
    elif experiment.taught_here and experiment.needs_trunk:
        rest = tuple(n for n in range(len(train.classes)) if n not in names)
        source = _only(train, rest)
    rest_of_train, validation = _only(train, names).hold_out(
        experiment.validation, seed=seed
    )
    scored = _only(test, names).first(experiment.test_images)
    return Target(rest_of_train, validation, scored, source)


@lru_cache(maxsize=8)
def _stored_size(spec: str) -> int:
    """Return the height of images as they are."""
    name = data.data_set_of(spec)
    return int(data.load(name).images.shape[2])


def _only(images: ImageSet, classes: tuple[int, ...]) -> ImageSet:
    """Keep some classes, counted anew from 0."""
    import torch

    number = torch.full((len(images.classes),), -1)
    number[list(classes)] = torch.arange(len(classes))
    labels = number[images.labels]
    kept = replace(images.take(labels >= 0), labels=labels[labels >= 0])
    return replace(kept, classes=tuple(images.classes[n] for n in classes))


@lru_cache(maxsize=2)
def _loaded(
    experiment: TransferLearning, target: Target
) -> tuple[Trunk, tuple[str, ...]]:
    """Return the trunk that was trained elsewhere; the same for all seeds."""
    net = experiment.builder(len(target.train.classes))
    notes = experiment._put_weights(net)
    return Trunk.of(net, experiment, target), notes


@lru_cache(maxsize=64)
def _taught(experiment: TransferLearning, seed: int, target: Target) -> Trunk:
    """Train a trunk on the source images; kept for the other methods of a process."""
    source = target.source
    assert source is not None
    steps = experiment.source_epochs * training.steps_per_epoch(
        len(source), experiment.batch_size
    )
    result = training.train(
        training.Supervised(
            lambda: experiment.builder(len(source.classes)), "cross_entropy"
        ),
        (source.images, source.labels),
        training.Recipe(
            steps=steps,
            batch_size=experiment.batch_size,
            optimizer=training.Adam(learning_rate=experiment.scratch_learning_rate),
            schedule=training.Cosine(warmup_steps=steps // 5),
            prepare=_prepare(experiment.builder(2), experiment, target),
            train_samples=experiment.batch_size,
            eval_every=steps,
        ),
        seeds=[seed],
    )
    return Trunk.of(result[0].module(), experiment, target)


def _head(trunk: Trunk, classes: int, probe: LinearProbe | None) -> nn.Linear:
    """Make a head, with a probe's weights if there is one."""
    import torch
    from torch import nn

    old = trunk.net.get_submodule(models.head_of(trunk.net))
    head = nn.Linear(old.in_features, classes)
    if probe is not None:
        with torch.no_grad():
            head.weight.copy_(probe.weight)
            head.bias.copy_(probe.bias)
    return head


def _by_count(records: list[Record]) -> Records:
    """Say the number of images in words, for the titles of panels."""
    return Records(
        Record(
            Condition(
                method=record.condition["method"],
                count=f"{record.condition['images']:,} images a class",
            ),
            record.seed,
            record.scalars,
        )
        for record in records
    )
