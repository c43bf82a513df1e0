"""Neurons in NumPy alone: what one layer can learn, and what takes two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from nablab import data, plots
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
    Trial,
    Trials,
)
from nablab.data.fields import ImagesField
from nablab.settings import Distinct, Ge, Gt, Le, Lt, Positive, Rising, Steps

BOUND, ONE_LAYER, TWO_LAYERS, ZERO = "bound", "one layer", "two layers", "zero input"
IMAGES = "images"
# Four of the eight rows of course D's function. Its own samples were not published: of
# all such rows these come nearest to its outputs. The last one is the input of zeros.
ZERO_ROWS = ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0))
ZERO_TARGETS = (1.0, 1.0, 0.0, 1.0)
NEAR = 0.1  # an output this close to its target is right beyond doubt
LINES = 60  # of a boundary that moves, in its figure

Margin = Annotated[float, Gt(0), Lt(1)]
Hidden = Annotated[int, Ge(1), Le(64)]
GateName = Literal["and", "or", "nand", "nor", "xor", "not-xor-and"]


@dataclass
class Path:
    """The weights of a neuron after each of its mistakes."""

    weights: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Perceptrons(Experiment):
    r"""What can one layer of neurons learn?

    A neuron adds up its inputs, each times a weight, and says 1 if the sum is above
    zero. Rosenblatt (1958) let it learn from its mistakes: where its answer is wrong,
    the input is added to the weights, or subtracted from them. Why does this end?
    Suppose some weights of length 1 part the classes with a margin γ: no sample is
    closer to the line between them. The neuron starts with weights of zero. Each
    mistake moves its weights by at least γ along these, so after m mistakes they are at
    least mγ long. But a mistake is made where weights and sample disagree, and so the
    squared length grows by at most R², where R is the length of the longest sample: the
    weights are at most R√m long. Both hold, so m ≤ R²/γ² (Novikoff 1962), however many
    samples there are. With R = 1 and γ = 0.1 that is 100 mistakes.

    Where no line parts the classes, no neuron can be right. For XOR the proof takes
    four lines. Weights a, b and a bias c would need c ≤ 0 (for 0, 0), a + c > 0 and
    b + c > 0 (for 1, 0 and 0, 1), and a + b + c ≤ 0 (for 1, 1). The middle two add up
    to a + b + 2c > 0, the outer two to a + b + 2c ≤ 0. Both cannot be.

    Two layers can: hidden units bend the plane first, and the last unit draws its line
    there. They learn by backpropagation, and whether they get there depends on where
    they start.

    What to look for. How far under the bound are the counted mistakes? A bound must
    hold for the most unlucky order of samples. Two hidden units suffice for XOR. How
    many starts find it?

    Course D trained one unit without a bias. After 1,000 steps its outputs for four
    samples were .952, .997, .060 and .500, and it blamed a vanishing gradient for the
    fourth. The truth is simpler: the fourth input is all zeros, and without a bias the
    sum of nothing is 0 whatever the weights are. The output is σ(0) = .5 for ever. Its
    gradient is not small but zero, since the gradient of a weight is the error times
    the input. Here that unit learns with and without a bias, on four rows of the same
    function (its samples were not published).

    What to expect (standard): mistakes at a hundredth of the bound where the gap is
    narrow (margin 0.02) and at a quarter where it is wide (0.4); XOR with one to three
    rows of four right for a single layer, never all; one hidden unit never, two for
    about two thirds of the starts in batches, four and more for nearly all.

    Attributes:
        margins: Half of the gap between the classes of random points in the unit ball.
        points: How many points.
        dimensions: Of a point; the lines are drawn for 2.
        passes: How often a neuron may see all points, at most.
        gates: Logic gates for one layer: and, or, nand, nor, xor, not-xor-and.
        hard_gates: Gates for two layers.
        hidden_units: Sizes of the hidden layer.
        epochs: How often two layers may see all rows, at most; also the steps of single
            units.
        learning_rate: Of units that follow a gradient.
        loss: What they make small: cross-entropy or squared error. The unit that sees
            course D's samples always takes the squared error, as that did.
        data: Labeled images, yours or some that are known by name, as a further part:
            for each class, a neuron that is to tell it from all others.
        image_size: Height and width to which these are brought.
        image_passes: How often a neuron may see all of them, at most.
    """

    name: ClassVar[str] = "perceptron"
    topic: ClassVar[str] = "from scratch"

    margins: Annotated[tuple[Margin, ...], Rising(least=0)] = (
        0.02,
        0.05,
        0.1,
        0.2,
        0.4,
    )
    points: Annotated[int, Ge(2), Le(100_000)] = 200
    dimensions: Annotated[int, Ge(1), Le(100)] = 2
    passes: Steps = 5_000
    gates: Annotated[tuple[GateName, ...], Distinct()] = get_args(GateName)
    hard_gates: Annotated[tuple[GateName, ...], Distinct()] = ("xor", "not-xor-and")
    hidden_units: Annotated[tuple[Hidden, ...], Rising()] = tuple(range(1, 9))
    epochs: Steps = 2_000
    learning_rate: Positive = 2.0
    loss: Literal["cross-entropy", "squared error"] = "cross-entropy"
    data: ImagesField | None = None
    image_size: Annotated[int, Ge(1), Le(64)] = 8
    image_passes: Steps = 500

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "points": 100,
            "hard_gates": ("xor",),
            "hidden_units": (1, 2, 4, 8),
            "epochs": 500,
            "seeds": 20,
        },
        "standard": {"seeds": 50},
        # Rosenblatt and Novikoff have no setting; the courses' two layers, many starts.
        "paper": {"seeds": 200, "epochs": 10_000},
        # After 1,000 steps at this rate the outputs are .952, .997, .054 and .500; the
        # course had .952, .997, .060 and .500.
        "course-d": {
            "margins": (),
            "gates": ("not-xor-and",),
            "hard_gates": ("not-xor-and",),
            "epochs": 1_000,
            "loss": "squared error",
            "seeds": 50,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_least(
            "most_rows_right",
            0.999,
            where={"part": ONE_LAYER, "separable": "yes"},
            scale="ranks",
            quantity="share of the rows that are right at the best moment",
            sentence="One layer learns every gate that a line parts",
            answer=Answer(
                supported="one layer learns every gate that a line parts",
                refuted="one layer misses gates that a line parts",
                open="whether one layer learns every gate that a line parts",
            ),
        ),
        Claim.at_most(
            "most_rows_right",
            0.999,
            where={"part": ONE_LAYER, "gate": "xor"},
            within="rule",
            scale="ranks",
            quantity="share of the rows that are right at the best moment",
            sentence="One layer never has all four rows of XOR right",
            answer=Answer(
                supported="it never learns XOR",
                refuted="it learns XOR",
                open="whether it never learns XOR",
            ),
        ),
        Claim.rises(
            "solved",
            by="hidden_units",
            where={"part": TWO_LAYERS, "gate": "xor"},
            smallest_effect=0.1,
            quantity="share of starts that solve XOR",
            sentence="With more hidden units more starts of two layers solve XOR",
            answer=Answer(
                supported="two layers do, more often with more hidden units",
                refuted="two layers do not do so more often with more hidden units",
                open="whether two layers do so more often with more hidden units",
            ),
        ),
        Claim.at_most(
            "share_of_bound",
            1.0,
            where={"part": BOUND},
            within="margin",
            quantity="mistakes as a share of R²/γ²",
            sentence="A perceptron makes at most R²/γ² mistakes",
            answer=Answer(
                supported="the mistakes on the way stay under R²/γ²",
                refuted="it makes more mistakes than the theorem allows",
                open="whether the mistakes on the way stay under R²/γ²",
            ),
        ),
        Claim.at_most(
            "share_of_bound",
            0.5,
            where={"part": BOUND},
            quantity="mistakes as a share of R²/γ²",
            sentence="In a random order a perceptron makes less than half of R²/γ² "
            "mistakes",
        ),
        Claim.falls(
            "mistakes",
            by="margin",
            where={"part": BOUND},
            smallest_effect=0.2,
            sentence="Classes that lie further apart cost fewer mistakes",
        ),
        Claim.at_most(
            "distance_from_half",
            1e-6,
            where={"part": ZERO, "bias": "without bias"},
            scale="ranks",
            quantity="largest distance of the fourth output from .5",
            published=Published(0.0, "course D: an output of .500", of="metric"),
            sentence="Without a bias the fourth output is σ(0) = .5 at every step",
        ),
        Claim.greater(
            "fourth_output",
            "with bias",
            "without bias",
            by="bias",
            where={"part": ZERO},
            smallest_effect=0.1,
            sentence="With a bias the same unit learns the fourth sample",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="course D",
            setting="one unit without a bias, 1,000 steps, input of zeros",
            quantity="fourth output",
            value=0.5,
            seeds=1,
            metric="fourth_output",
            where={"part": ZERO, "bias": "without bias"},
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Prove that one hidden unit cannot solve XOR, whatever the last unit does.",
        "Write down weights of two hidden units that solve XOR. Which gates do the "
        "hidden units compute?",
        "Take dimensions=50. The bound does not know the dimension. Do the mistakes?",
        "Take data=digits. Which digits does a plane part from all others? One digit's "
        "mistakes never end: what does its margin say?",
        "Take loss='squared error'. Which starts fail now that did not before, and "
        "what does the factor s (1 - s) have to do with it?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Rosenblatt, The perceptron: a probabilistic model for information storage and "
        "organization in the brain, Psychological Review, 1958.",
        "Novikoff, On convergence proofs on perceptrons, Symposium on the Mathematical "
        "Theory of Automata, 1962.",
        "Minsky, Papert, Perceptrons, MIT Press, 1969.",
        "Rumelhart, Hinton, Williams, Learning representations by back-propagating "
        "errors, Nature, 1986.",
    )

    def conditions(self) -> list[Condition]:
        """List the parts of the experiment, one after the other."""
        from nablab.from_scratch.gates import GATES

        bound = [Condition(part=BOUND, margin=margin) for margin in self.margins]
        one_layer = [
            Condition(
                part=ONE_LAYER,
                gate=name,
                rule=rule,
                separable="yes" if GATES[name].separable else "no",
            )
            for name in self.gates
            for rule in ("perceptron", "sigmoid")
        ]
        two_layers = [
            Condition(part=TWO_LAYERS, gate=name, training=how, hidden_units=units)
            for name in self.hard_gates
            for how in ("batch", "per sample")
            for units in self.hidden_units
        ]
        zero = [
            Condition(part=ZERO, bias=bias) for bias in ("without bias", "with bias")
        ]
        images = [Condition(part=IMAGES, class_number=k) for k in self._classes()]
        return [*bound, *one_layer, *two_layers, *zero, *images]

    def _classes(self) -> range:
        """Return the classes that are told from all others; of two, one is enough."""
        if self.data is None:
            return range(0)
        count = data.image_task(self.data, size=self.image_size).outputs
        return range(count if count > 2 else 1)

    def run(self, trials: Trials, lab: Lab) -> None:
        """See `Experiment.run`."""
        parts = {
            BOUND: self.count_mistakes,
            ONE_LAYER: self.learn_gate,
            TWO_LAYERS: self.learn_with_two_layers,
            ZERO: self.learn_from_zeros,
            IMAGES: self.tell_images_apart,
        }
        for trial in trials:
            parts[str(trial.condition["part"])](trial, lab)

    def count_mistakes(self, trial: Trial, lab: Lab) -> None:
        """Let a perceptron see random points until it makes no more mistakes."""
        import numpy as np

        from nablab.from_scratch.margins import maximum_margin, separable_points

        margin = float(trial.condition["margin"])
        points, classes = separable_points(
            self.points, self.dimensions, margin, lab.rng(trial, "points", by=())
        )
        drawn = self.dimensions == 2  # else many long vectors would be kept in vain
        neuron, path = self._taught(trial, lab, points, classes, self.passes, drawn)
        separated = bool(np.array_equal(neuron.predict(points), classes))
        if not separated:
            lab.note(
                f"Margin {margin:g}: some neurons were still wrong after {self.passes:,} "
                "passes, so their mistakes are fewer than they would become. Raise "
                "passes."
            )
        found = maximum_margin(points, classes)
        bound = float((np.linalg.norm(points, axis=1).max() / found) ** 2)
        lab.record(
            trial,
            mistakes=neuron.mistakes,
            bound=bound,
            share_of_bound=neuron.mistakes / bound,
            largest_margin=found,
            separated=float(separated),
        )
        if drawn:
            lab.array(trial, "points", points)
            lab.array(trial, "classes", classes)
            lab.array(trial, "path", _thinned(path.weights))

    def _taught(
        self,
        trial: Trial,
        lab: Lab,
        points: Any,
        classes: Any,
        passes: int,
        kept: bool,
    ) -> tuple[Any, Path]:
        """Let a perceptron see points in random orders until it makes no more mistakes.

        Args:
            trial: Whose seed and curve it is.
            lab: The laboratory.
            points: float64 (N, inputs).
            classes: float64 (N,), +1 and -1.
            passes: Over all points, at most.
            kept: Whether to keep its weights after each mistake.

        Returns:
            The neuron, and what was kept.
        """
        import numpy as np

        from nablab.from_scratch.neurons import Perceptron

        neuron, path = Perceptron(np.zeros(points.shape[1])), Path()
        order = lab.rng(trial, "order", by=())
        state = {"neuron": neuron, "path": path, "order": order}
        for sweep in lab.steps(passes, state=state):
            before = neuron.mistakes
            for sample in order.permutation(len(points)):
                wrong = neuron.learn(points[sample], classes[sample])
                if wrong and kept:
                    path.weights.append(neuron.weights)
            lab.log(trial, sweep + 1, mistakes=neuron.mistakes)
            if neuron.mistakes == before:
                break
        return neuron, path

    def tell_images_apart(self, trial: Trial, lab: Lab) -> None:
        """Teach a perceptron to tell one class of images from all others.

        Its inputs are the pixels, from 0 to 1, and a constant for the bias.
        """
        import numpy as np

        from nablab.from_scratch.gates import with_constant
        from nablab.from_scratch.margins import maximum_margin

        task = data.image_task(str(self.data), size=self.image_size)
        lab.note(*task.notes)
        chosen = int(trial.condition["class_number"])
        (points, classes), (unseen, unseen_classes) = (
            (
                with_constant(images.flatten(1).double().numpy() / 255),
                np.where(labels.numpy() == chosen, 1.0, -1.0),
            )
            for images, labels in (task.train(), task.held_out())
        )
        neuron, _ = self._taught(
            trial, lab, points, classes, self.image_passes, kept=False
        )
        margin = maximum_margin(points, classes)
        longest = float(np.linalg.norm(points, axis=1).max())
        found = {"bound": (longest / margin) ** 2} if margin else {}
        lab.record(
            trial,
            mistakes=neuron.mistakes,
            largest_margin=margin,
            separated=float(np.array_equal(neuron.predict(points), classes)),
            test_accuracy=float((neuron.predict(unseen) == unseen_classes).mean()),
            always_no=float((unseen_classes < 0).mean()),
            label=task.images().classes[chosen],
            **found,
        )

    def learn_gate(self, trial: Trial, lab: Lab) -> None:
        """Teach one neuron a gate, and note the most rows that it had right at once."""
        from nablab.from_scratch.gates import GATES, with_constant
        from nablab.from_scratch.neurons import Perceptron, SigmoidUnit

        gate = GATES[str(trial.condition["gate"])]
        inputs, values = with_constant(gate.inputs), gate.values
        rng = lab.rng(trial, "weights", by=("gate",))
        weights = rng.normal(size=(inputs.shape[1],))
        neuron = Perceptron(weights)
        unit = SigmoidUnit(weights, self.loss)
        by_rule = trial.condition["rule"] == "perceptron"
        best = Best()
        state = {"neuron": neuron, "unit": unit, "best": best}
        for _ in lab.steps(self.epochs, state=state):
            if by_rule:
                for x, value in zip(inputs, values, strict=True):
                    neuron.learn(x, 2 * value - 1)
                right = neuron.predict(inputs) == 2 * values - 1
            else:
                unit.step(inputs, values, self.learning_rate)
                right = (unit.output(inputs) > 0.5) == (values == 1)
            best.value = max(best.value, float(right.mean()))
            if best.value == 1:
                break
        lab.record(trial, most_rows_right=best.value)

    def learn_with_two_layers(self, trial: Trial, lab: Lab) -> None:
        """Teach two layers a gate, from all rows at once or from one after the other."""
        import numpy as np

        from nablab.from_scratch.gates import GATES
        from nablab.from_scratch.two_layers import TwoLayers

        gate = GATES[str(trial.condition["gate"])]
        inputs, values = gate.inputs, gate.values
        units = int(trial.condition["hidden_units"])
        # Both ways of training start from the same weights.
        rng = lab.rng(trial, "weights", by=("gate", "hidden_units"))
        net = TwoLayers.start(inputs.shape[1], units, rng, self.loss)
        by_sample = trial.condition["training"] == "per sample"
        order = lab.rng(trial, "order", by=())
        passes = Passes()
        state = {"net": net, "order": order, "passes": passes}
        for _ in lab.steps(self.epochs, state=state):
            if by_sample:
                for row in order.permutation(len(inputs)):
                    net.step(inputs[[row]], values[[row]], self.learning_rate)
            else:
                net.step(inputs, values, self.learning_rate)
            passes.made += 1
            if np.abs(net.predict(inputs) - values).max() < NEAR:
                break
        worst = float(np.abs(net.predict(inputs) - values).max())
        lab.record(
            trial,
            solved=float(worst < NEAR),
            epochs=passes.made if worst < NEAR else np.inf,
            largest_error=worst,
        )

    def learn_from_zeros(self, trial: Trial, lab: Lab) -> None:
        """Teach one unit four rows, of which the last one is all zeros."""
        import numpy as np

        from nablab.from_scratch.gates import with_constant
        from nablab.from_scratch.neurons import SigmoidUnit

        inputs, targets = np.array(ZERO_ROWS), np.array(ZERO_TARGETS)
        if trial.condition["bias"] == "with bias":
            inputs = with_constant(inputs)
        weights = lab.rng(trial, "weights", by=()).normal(size=4)
        unit = SigmoidUnit(weights[: inputs.shape[1]], "squared error")
        best = Best()
        for step in lab.steps(self.epochs, state={"unit": unit, "furthest": best}):
            unit.step(inputs, targets, self.learning_rate)
            fourth = float(unit.output(inputs)[3])
            best.value = max(best.value, abs(fourth - 0.5))
            lab.log(trial, step + 1, fourth_output=fourth)
        lab.record(
            trial,
            fourth_output=float(unit.output(inputs)[3]),
            distance_from_half=best.value,
        )

    def figures(self, records: Records) -> dict[str, Figure]:
        """See `Experiment.figures`."""
        figures = {}
        if bound := records.where(part=BOUND):
            figures["mistakes"] = plots.trend(
                bound,
                ("mistakes", "bound"),
                x="margin",
                log_y=True,
                names={"mistakes": "counted mistakes", "bound": "R²/γ²"},
                x_label="margin that was asked for",
                y_label="mistakes",
                title="Counted mistakes and the bound",
                caption="The bound must hold for every order of the samples. A random "
                "order costs far fewer mistakes, above all where the gap is narrow.",
            )
            if self.dimensions == 2:
                figures["boundary"] = plots.boundaries(
                    bound,
                    panel_by="margin",
                    title="The line as it moves, mistake by mistake",
                    caption="The narrower the gap, the more often the line turns "
                    "before it fits.",
                )
        if two := records.where(part=TWO_LAYERS):
            figures["solved"] = plots.trend(
                two,
                "solved",
                x="hidden_units",
                color_by="training",
                panel_by="gate",
                log_x=False,
                log_y=False,
                x_label="hidden units",
                y_label="share of starts that solve the gate",
                title="How many starts succeed",
                caption="A dot is a start: at 1 it solved the gate, at 0 it did not.",
            )
        if one := records.where(part=ONE_LAYER):
            figures["one-layer"] = plots.dots(
                one,
                "most_rows_right",
                by="gate",
                panel_by="rule",
                y_label="share of rows right, at best",
                title="One layer on logic gates",
                caption="The gates that no line parts stay below 1.",
            )
        if zero := records.where(part=ZERO):
            figures["zero-input"] = plots.curves(
                zero,
                "fourth_output",
                color_by="bias",
                panel_by="",
                log_y=False,
                x_label="steps",
                y_label="output for the input of zeros",
                title="Course D's fourth sample",
                caption="Without a bias the output is .5 for ever.",
            )
        if images := records.where(part=IMAGES):
            figures |= _image_figures(images)
        return figures


@dataclass
class Best:
    """The largest value so far, which a loop keeps when it is taken up again."""

    value: float = 0.0


@dataclass
class Passes:
    """How often a network saw all rows, kept like `Best`."""

    made: int = 0


def _thinned(path: list[Any]) -> Any:
    """Keep the first and last of a neuron's weights, and some between."""
    import numpy as np

    if not path:
        return np.zeros((1, 2))
    places = np.unique(np.linspace(0, len(path) - 1, LINES).round().astype(int))
    return np.array([path[place] for place in places])


def _image_figures(records: Records) -> dict[str, Figure]:
    """Draw mistakes beside the bound, and the share of unseen images that is right."""
    mistakes = {"counted mistakes": "mistakes", "R²/γ²": "bound"}
    shares = {"perceptron": "test_accuracy", "always 'no'": "always_no"}
    return {
        "images": plots.dots(
            _by_label(records, mistakes),
            "value",
            by="label",
            panel_by="what",
            log_y=True,
            same_y=True,
            y_label="mistakes",
            x_label="class against all others",
            title="Which classes a plane parts from all others",
            caption="A class without a bound is not parted by any plane from the "
            "others: its mistakes would never end.",
        ),
        "images-accuracy": plots.dots(
            _by_label(records, shares),
            "value",
            by="label",
            panel_by="what",
            log_y=False,
            same_y=True,
            y_label="test accuracy",
            x_label="class against all others",
            title="What a perceptron is worth on unseen images",
            caption="A neuron that always says 'no' is right for all other classes.",
        ),
    }


def _by_label(records: Records, metrics: Mapping[str, str]) -> Records:
    """Give each class's values records of their own, under the name of the class."""
    return Records(
        Record(
            Condition(what=what, label=str(record.notes["label"])),
            record.seed,
            {"value": record.scalars[metric]},
        )
        for what, metric in metrics.items()
        for record in records
        if metric in record.scalars
    )
