"""A network that overfits texts, and what L1, L2, dropout and early stopping change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, log10
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from nablab import baselines, data, models, plots, training
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
from nablab.data.fields import TextsField
from nablab.errors import UsageError
from nablab.models.fields import OwnModelField
from nablab.settings import (
    Distinct,
    Epochs,
    Ge,
    Gt,
    Le,
    Lt,
    NotNegative,
    Positive,
    Samples,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data import TextSet
    from nablab.training import Outcome, Training

Kind = Literal[
    "L1-subgradient", "L1-proximal", "L2", "L1+L2", "dropout", "early-stopping"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUBGRADIENT, PROXIMAL, L2, BOTH, DROPOUT, STOPPING = KINDS
PENALTIES = (SUBGRADIENT, PROXIMAL, L2, BOTH)
NONE = "none"
PATH, CHOSEN = "path", "chosen"
# A weight below it looks like a zero in a histogram, and is none.
NEAR_ZERO = 1e-3
# Weights of the networks that train side by side: each is held five times, as itself,
# in Adam's two means, and as the best and the last of a training; 0.2 GB in all.
MOST_NUMBERS = 10_000_000
SPLITS = ("train", "validation", "test")

Rate = Annotated[float, Gt(0), Lt(1)]
Words = Annotated[int, Ge(3), Le(200_000)]
AGAINST_NONE: Mapping[str, Any] = {
    "by": "kind",
    "where": {"part": CHOSEN},
    "paired": True,
    "smallest_effect": 0.005,
    "quantity": "test accuracy",
}


def _helps(kind: str, what: str) -> Claim:
    """Claim that a kind of regularization, tuned on validation texts, helps."""
    return Claim.greater(
        "test_accuracy",
        kind,
        NONE,
        **AGAINST_NONE,
        sentence=f"{what[0].upper()}{what[1:]} raises test accuracy by at least half a "
        "point",
        answer=Answer(
            supported=f"{what} helps",
            refuted=f"{what} does not help",
            open=f"whether {what} helps",
        ),
    )


@dataclass(frozen=True)
class Regularization(Experiment):
    """Which regularization helps a network that overfits?

    A network reads which of the most frequent words stand in a text (a vector of ones
    and zeros, "multi-hot") and names the text's class. It has far more weights than
    there are texts: it learns the training texts by heart, and its errors on other
    texts grow more confident. Each method here is to prevent that:

    - L2 adds (lambda / 2) |w|^2 to the loss: every step pulls each weight w towards 0
      by a share of its size, so that large weights shrink most.
    - L1 adds lambda |w|_1: it pulls every weight equally, whatever its size, so that
      weights that are of little use end at 0. How it is minimized matters. Its
      derivative is +lambda or -lambda and jumps at 0: following it (the subgradient),
      a weight overshoots 0 at every step and is never exactly 0. The proximal step
      goes without the penalty, then moves each weight towards 0 by learning rate times
      lambda, and no further than to 0. A weight of 0.0003 moved by 0.0005 becomes
      exactly 0. Under Adam both divide by the same scale of each weight.
    - L1+L2 adds half of each (the elastic net), by the proximal step.
    - Dropout sets each hidden value to 0 with some probability while training, so that
      no unit can rely on another one.
    - Early stopping ends training once the loss on validation texts has not fallen by
      minimum_delta for some epochs in a row (the patience), and takes the weights of
      the best epoch. An improvement starts the count again.

    On equal terms: all have the same network, texts, first weights, order of texts,
    learning rate and epochs. Each runs over a path of strengths. Its strength is then
    chosen for each seed by accuracy on validation texts; the test texts decide nothing.
    Penalties count every weight and bias, as PyTorch's weight decay does.

    What to expect. With 23,000 news texts and 10,000 words (standard, 8 seeds) all of
    it helps: 85.7 % of the test texts without regularization, 87.2 to 87.3 % with
    penalties, 88.2 % with early stopping after 3 of 12 epochs, 88.6 % with dropout of
    0.8; logistic regression on every word and pair of words has 89.1 %. With 2,000
    texts and 1,000 words (limited, 8 seeds) only dropout and early stopping help: 75.7
    % without, 79.6 and 80.2 % with them. There L1 makes three quarters of the weights
    exactly 0 at no cost, but nothing better. From lambda = 0.003 on L1 leaves a network
    that learns nothing at all. Time on two cores: standard about six minutes.

    What to look for. Which of the paths has its best value inside, and not at the weak
    end, where it is no regularization? How many weights can be exactly 0 before
    accuracy falls? Where does the validation loss turn, and what does accuracy do
    there? The lines of naive Bayes and logistic regression are the control: they take
    two seconds.

    Attributes:
        data: Texts with labels: ag-news, imdb, king-james, your table or folder;
            ag-news@4000 for 4,000 of its training texts. Validation texts are cut off
            from them.
        validation: Training texts that are held out for all choices.
        words: Most frequent words that the network reads, two of them reserved for
            padding and unknown ones.
        hidden: Units of the hidden layers.
        model: Your own network instead, package.module:factory or
            path/to/file.py:factory. It takes float32 (N, words).
        kinds: Regularizations to compare with none.
        penalties: Weights lambda of L1, L2 and L1+L2.
        rates: Probabilities of dropout.
        patiences: Epochs without improvement before early stopping.
        minimum_delta: By how much the validation loss must fall to count as improved.
        learning_rate: Of Adam.
        batch_size: Texts per step.
        epochs: Passes over the training texts, at most.
    """

    topic: ClassVar[str] = "generalization"
    batch_over: ClassVar[tuple[str, ...]] = ("part", "strength")

    data: TextsField = "ag-news@25000"
    validation: Samples = 2_000
    words: Words = 10_000
    hidden: str = "64-64"
    model: OwnModelField = None
    kinds: Annotated[tuple[Kind, ...], Distinct(least=0)] = KINDS
    penalties: Annotated[tuple[NotNegative, ...], Distinct()] = (
        1e-5,
        3e-5,
        1e-4,
        3e-4,
        1e-3,
        3e-3,
        1e-2,
        3e-2,
    )
    rates: Annotated[tuple[Rate, ...], Distinct()] = (
        0.3,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    )
    patiences: Annotated[tuple[Epochs, ...], Distinct()] = (1, 2, 4, 8)
    minimum_delta: NotNegative = 1e-3
    # With batches of 250 and half the rate a network takes four times as long, and
    # scores within 0.3 points on the validation texts.
    learning_rate: Positive = 2e-3
    batch_size: Samples = 1_000
    epochs: Epochs = 12

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "king-james@2000",
            "validation": 1_000,
            "words": 1_000,
            "penalties": (1e-5, 1e-4, 1e-3, 1e-2),
            "rates": (0.2, 0.4, 0.6, 0.8),
            "learning_rate": 1e-3,
            "batch_size": 100,
            "epochs": 30,
            "seeds": 8,
        },
        "standard": {"seeds": 8},
        # Few texts: overfitting at its clearest.
        "limited": {
            "data": "ag-news@4000",
            "words": 1_000,
            "patiences": (1, 2, 4, 8, 16),
            "learning_rate": 1e-3,
            "batch_size": 100,
            "epochs": 40,
            "seeds": 8,
        },
        # All 120,000 texts, as in Zhang et al. 2015.
        "paper": {
            "data": "ag-news",
            "validation": 7_600,
            "words": 20_000,
            "seeds": 8,
        },
        "course-d": {
            "data": "ag-news@11000",
            "validation": 1_000,
            "words": 1_000,
            "penalties": (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            "patiences": (1, 2, 4, 8, 16),
            "learning_rate": 1e-4,
            "batch_size": 256,
            "epochs": 40,
            "seeds": 8,
        },
        # The network that it let overfit, with its learning rate.
        "course-d-overfitting": {
            "data": "ag-news@11000",
            "validation": 1_000,
            "words": 1_000,
            "hidden": "64-128-256-512",
            "penalties": (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            "patiences": (1, 2, 4, 8, 16),
            "learning_rate": 1e-2,
            "batch_size": 256,
            "epochs": 40,
            "seeds": 8,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_least(
            "accuracy_gap",
            0.05,
            where={"kind": NONE},
            published=Published(0.196, "course D, its overfitting network", "metric"),
            quantity="training accuracy minus validation accuracy",
            sentence="Without regularization the network overfits: training accuracy "
            "is at least 5 points above validation accuracy",
        ),
        _helps(DROPOUT, "dropout"),
        _helps(STOPPING, "early stopping"),
        _helps(L2, "an L2 penalty"),
        _helps(PROXIMAL, "an L1 penalty (proximal)"),
        _helps(BOTH, "L1 with L2"),
        Claim.less(
            "test_loss",
            STOPPING,
            NONE,
            by="kind",
            where={"part": CHOSEN},
            paired=True,
            scale="log10",
            smallest_effect=log10(1.1),
            sentence="Early stopping lowers the test loss by at least a tenth",
        ),
        Claim.greater(
            "zeros",
            PROXIMAL,
            SUBGRADIENT,
            by="kind",
            where={"part": PATH},
            paired=True,
            smallest_effect=0.1,
            quantity="share of weights that are exactly 0",
            sentence="At equal lambda the proximal step leaves at least a tenth more of "
            "the weights at exactly 0 than the subgradient",
        ),
        Claim.rises(
            "zeros",
            by="strength",
            where={"kind": PROXIMAL, "part": PATH},
            quantity="share of weights that are exactly 0",
            sentence="With the proximal step more weights are exactly 0 the larger "
            "lambda is",
        ),
        Claim.at_least(
            "above_linear",
            -0.015,
            where={"kind": DROPOUT, "part": CHOSEN},
            quantity="test accuracy minus that of logistic regression",
            sentence="With dropout the network comes within 1.5 points of logistic "
            "regression on TF-IDF",
        ),
        Claim.greater(
            "test_accuracy",
            1e-3,
            0.0,
            by="strength",
            where={"kind": SUBGRADIENT, "part": PATH},
            paired=True,
            quantity="test accuracy",
            sentence="L1 with lambda 0.001 is better than none (course D)",
        ),
        Claim.greater(
            "test_accuracy",
            1e-2,
            0.0,
            by="strength",
            where={"kind": L2, "part": PATH},
            paired=True,
            quantity="test accuracy",
            sentence="L2 with lambda 0.01 is better than none (course D)",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="course D",
            setting="AG News, 10,000 texts, multi-hot of 1,000 words, 1000-64-64-4 "
            "(68,484 parameters), Adam 1e-4, batch 256, 40 epochs",
            quantity="test accuracy",
            value=0.843,
            metric="test_accuracy",
            where={"kind": NONE},
            fields={"data": "ag-news@11000", "hidden": "64-64"},
        ),
        *(
            Reported(
                who="course D",
                setting="the same texts, 1000-64-128-256-512-4 (239,044 parameters), "
                "Adam 1e-2",
                quantity=f"{split} accuracy",
                value=value,
                metric=f"{split}_accuracy",
                where={"kind": NONE},
                fields={"data": "ag-news@11000", "hidden": "64-128-256-512"},
            )
            for split, value in (("train", 0.999), ("validation", 0.803))
        ),
        *(
            Reported(
                who=who,
                setting=f"AG News, 120,000 texts, {setting}",
                quantity="test accuracy",
                value=value,
            )
            for who, setting, value in (
                ("Zhang et al. 2015", "bag of words, logistic regression", 0.8881),
                ("Zhang et al. 2015", "TF-IDF of n-grams, the same", 0.9236),
                ("Zhang et al. 2015", "character CNN", 0.9049),
                ("Joulin et al. 2017", "fastText, bigrams", 0.925),
                ("Howard and Ruder 2018", "ULMFiT, pretrained", 0.9499),
            )
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Why does the subgradient leave no weight at exactly 0, although the penalty "
        "is the same? Follow one weight of 0.0003 through three steps by hand.",
        "The validation loss of the network without regularization rises for many "
        "epochs while its accuracy hardly falls. How can both be true?",
        "Run --preset limited. Which of the penalties still helps, and why would a "
        "penalty on weights do little where a network reads each word a few times?",
        "Set words=1000,2000,5000 one after the other. Which kinds gain most?",
        "Early stopping counts epochs without improvement and starts again at each "
        "improvement. What goes wrong if the count is never reset, as in course D?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Parikh, Boyd, Proximal algorithms, Foundations and Trends in Optimization "
        "1(3), 2014.",
        "Yun, Lozano, Yang, Adaptive proximal gradient methods for structured neural "
        "networks, NeurIPS 2021.",
        "Srivastava et al., Dropout: a simple way to prevent neural networks from "
        "overfitting, JMLR 15, 2014.",
        "Prechelt, Early stopping, but when?, 1998.",
        "Zou, Hastie, Regularization and variable selection via the elastic net, 2005.",
        "Zhang, Zhao, LeCun, Character-level convolutional networks for text "
        "classification, arXiv:1509.01626.",
    )

    def validate(self) -> None:
        """Check the network, and that texts are left to train on."""
        task = data.text_task(self.data)
        if self.validation >= task.train_samples:
            raise UsageError(
                f"validation={self.validation} leaves nothing to train on: {self.data} "
                f"has {task.train_samples:,} training texts. Give fewer."
            )
        network: Mapping[str, Any] = {"shape": (self.words,), "outputs": task.outputs}
        models.Networks((self._spec(task.outputs),)).check(
            models.Form(**network, train_samples=task.train_samples)
        )
        if self.model is not None:
            models.check_model(self.model, **network)

    def conditions(self) -> list[Condition]:
        """List the path of every kind, and the strength that is chosen on it."""
        found = [Condition(part=CHOSEN, kind=NONE)]
        for kind in self.kinds:
            found += [
                Condition(part=PATH, kind=kind, strength=strength)
                for strength in self._strengths(kind)
            ]
            found.append(Condition(part=CHOSEN, kind=kind))
        return found

    def _strengths(self, kind: str) -> tuple[float, ...]:
        if kind == DROPOUT:
            return self.rates
        if kind == STOPPING:
            return tuple(map(float, self.patiences))
        return self.penalties

    def _spec(self, classes: int) -> str:
        return f"{self.words}-{self.hidden}-{classes}"

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        rate = 0.0
        if condition["kind"] == DROPOUT:
            rate = float(condition.get("strength", self.rates[0]))
        return self._builder(data.text_task(self.data).outputs, rate)()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        train, _ = self._split(lab)
        bags = self._bags(train, [train])[0]
        return "cross_entropy", (bags.float(), train.labels)

    def _builder(self, classes: int, rate: float = 0.0) -> Callable[[], nn.Module]:
        build = models.network_builder(
            self._spec(classes),
            shape=(self.words,),
            outputs=classes,
            model=self.model,
        )
        return (lambda: models.with_dropout(build(), rate)) if rate else build

    def _split(self, lab: Seeds) -> tuple[TextSet, TextSet]:
        """Return the texts to learn from, and those that choices are made by."""
        texts = data.text_task(self.data).texts()
        return texts.hold_out(self.validation, seed=lab.shared_seed("validation"))

    def _bags(self, train: TextSet, sets: Sequence[TextSet]) -> list[Tensor]:
        """Tell which frequent words of the training texts stand in the texts of sets.

        Returns:
            For each set uint8 (N, words), 1 or 0.
        """
        vocabulary = data.Vocabulary.build(train.texts, size=self.words)
        return [
            data.multi_hot(vocabulary.encode(texts.texts), self.words) for texts in sets
        ]

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train the path of one kind, then choose on the validation texts."""
        train, validation = self._split(lab)
        test = data.text_task(self.data).texts("test")
        lab.note(*train.notes, *test.notes)
        texts = train, validation, test
        bags = self._bags(train, texts)
        labels = [part.labels for part in texts]
        sets = dict(zip(SPLITS, zip(bags, labels, strict=True), strict=True))
        kind = str(trials.condition["kind"])
        path = [trial for trial in trials if trial.condition["part"] == PATH]
        path = path or list(trials)
        linear = _linear(train, test)
        found: dict[Trial, Trained] = {}
        for batch in self._batches(kind, path, len(train.classes)):
            result = self._trained(kind, batch, sets, len(train.classes), lab)
            for place, trial in enumerate(batch):
                outcome = result[place]
                scores = _scores(outcome, _weights(result, place), kind == STOPPING)
                scores["above_linear"] = scores["test_accuracy"] - linear["logistic"]
                found[trial] = Trained.of(outcome, scores)
        for trial in trials:
            chosen = trial if trial in found else _choose(found, trial.seed)
            net = found[chosen]
            lab.record(trial, **net.scores, stop_reason=net.stop_reason)
            if trial is not chosen:
                lab.record(trial, chosen_strength=chosen.condition["strength"])
            for name, values in net.curves.items():
                lab.curve(trial, name, net.epochs, values)
            if kind == NONE:
                lab.array(trial, "trivial", list(linear.values()))

    def _batches(
        self, kind: str, path: Sequence[Trial], classes: int
    ) -> list[Sequence[Trial]]:
        """Cut the networks of a kind into those that train side by side."""
        # Dropout is a part of the network, so its rates train one after the other.
        if kind == DROPOUT:
            rates = {trial.condition["strength"]: None for trial in path}
            return [[t for t in path if t.condition["strength"] == r] for r in rates]
        size = sum(part.numel() for part in self._builder(classes)().parameters())
        together = max(1, MOST_NUMBERS // size)
        return [
            path[start : start + together] for start in range(0, len(path), together)
        ]

    def _trained(
        self,
        kind: str,
        trials: Sequence[Trial],
        sets: Mapping[str, tuple[Tensor, Tensor]],
        classes: int,
        lab: Lab,
    ) -> Training:
        """Train one network per trial, all of a kind, side by side."""
        import torch

        strengths = [float(trial.condition.get("strength", 0.0)) for trial in trials]
        stop = training.EarlyStopping(
            metric="validation_loss",
            patience=[max(1, round(strength)) for strength in strengths],
            minimum_delta=self.minimum_delta,
        )
        return lab.train(
            training.Supervised(
                self._builder(classes, strengths[0] if kind == DROPOUT else 0.0),
                "cross_entropy",
            ),
            sets["train"],
            training.Recipe(
                epochs=self.epochs,
                batch_size=self.batch_size,
                optimizer=training.Adam(
                    learning_rate=self.learning_rate, **_penalty(kind, strengths)
                ),
                prepare=torch.Tensor.float,
                held_out={name: sets[name] for name in SPLITS[1:]},
                eval_every=training.steps_per_epoch(
                    len(sets["train"][1]), self.batch_size
                ),
                best="validation_loss",
                stop=[stop] if kind == STOPPING else [],
            ),
            # The same first weights and order of texts for all: paired comparisons.
            seeds=[lab.seed(trial, "weights", by=()) for trial in trials],
        )

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Score the largest class, naive Bayes and logistic regression."""
        trivial = records.shared_array("trivial")
        if trivial is None:
            return {}
        logistic, bayes, largest = map(float, trivial)
        return {
            "test_accuracy": {
                "largest class": largest,
                "naive Bayes": bayes,
                "logistic regression": logistic,
            }
        }

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw what each kind gives, its path, the zeros, and overfitting in time."""
        chosen = records.where(part=CHOSEN)
        linear = dict(self.baselines(records).get("test_accuracy", {}))
        linear.pop("largest class", None)
        figures = {
            "outcome": plots.dots(
                chosen,
                "test_accuracy",
                by="kind",
                baselines=linear,
                x_label="",
                y_label="test accuracy",
                title="Test accuracy of each kind, its strength chosen on validation "
                "texts",
            )
        }
        path = records.where(part=PATH)
        penalized = Records(r for r in path if r.condition["kind"] in PENALTIES)
        if penalized:
            figures["penalties"] = _against_strength(
                penalized, chosen, "weight of the penalty, lambda", log_x=True
            )
            # With none, so that the kinds have the colors of the other figures.
            none = chosen.where(kind=NONE)
            figures["zeros"] = _zeros(Records([*none, *penalized]))
        if own := path.where(kind=DROPOUT):
            figures[DROPOUT] = _against_strength(
                own, chosen, "probability of dropout", log_x=False
            )
        if own := path.where(kind=STOPPING):
            figures[STOPPING] = _against_patience(own)
        figures["time"] = _through_time(chosen)
        return figures


def _penalty(kind: str, strengths: Sequence[float]) -> dict[str, Any]:
    """Return the optimizer's numbers for a kind, one per network."""
    half = [strength / 2 for strength in strengths]
    numbers: dict[str, dict[str, Any]] = {
        SUBGRADIENT: {"l1": strengths},
        PROXIMAL: {"proximal_l1": strengths},
        L2: {"weight_decay": strengths},
        BOTH: {"proximal_l1": half, "weight_decay": half},
    }
    return numbers.get(kind, {})


def _weights(result: Training, place: int) -> Tensor:
    """Return the final weights of one network in a row, without its biases."""
    import torch

    named = result.parameters().items()
    matrices = [tensor[place] for _, tensor in named if tensor.ndim > 2]
    return torch.cat([matrix.flatten() for matrix in matrices])


def _scores(outcome: Outcome, weights: Tensor, restored: bool) -> dict[str, float]:
    """Compute what is recorded of one network.

    Early stopping has restored the weights of the lowest validation loss.
    """
    import numpy as np

    curves = outcome.curves
    place = int(np.nanargmin(curves["validation_loss"])) if restored else -1
    scores = {name: float(values[place]) for name, values in curves.items()}
    return {
        **scores,
        "accuracy_gap": scores["train_accuracy"] - scores["validation_accuracy"],
        "zeros": float((weights == 0).double().mean()),
        "near_zeros": float((weights.abs() < NEAR_ZERO).double().mean()),
        "epochs": outcome.steps_taken / outcome.steps_per_epoch,
    }


@dataclass(frozen=True, eq=False)
class Trained:
    """What is kept of a network: its weights would take gigabytes in all.

    Attributes:
        scores: Numbers by name.
        curves: By name, at each epoch.
        epochs: Where the curves were evaluated.
        stop_reason: Why training ended.
    """

    scores: Mapping[str, float]
    curves: Mapping[str, Any]
    epochs: Any
    stop_reason: str

    @classmethod
    def of(cls, outcome: Outcome, scores: Mapping[str, float]) -> Trained:
        """Copy it, so that what it was a part of can go."""
        curves = {name: values.copy() for name, values in outcome.curves.items()}
        return cls(scores, curves, outcome.epochs.copy(), outcome.stop_reason)


def _choose(found: Mapping[Trial, Trained], seed: int) -> Trial:
    """Return the trial of a seed that classifies most validation texts rightly.

    Of several the first, which is the weakest; one that diverged comes last.
    """

    def score(trial: Trial) -> float:
        accuracy = found[trial].scores["validation_accuracy"]
        return -1.0 if isnan(accuracy) else accuracy

    return max((trial for trial in found if trial.seed == seed), key=score)


def _linear(train: TextSet, test: TextSet) -> dict[str, float]:
    """Score what needs no network on the test texts."""
    given = train.texts, train.labels, test.texts
    largest = train.labels.bincount().argmax()
    return {
        "logistic": baselines.logistic_regression(*given).accuracy(test.labels),
        "bayes": baselines.naive_bayes(*given).accuracy(test.labels),
        "largest": float((test.labels == largest).double().mean()),
    }


def _against_strength(
    path: Records, chosen: Records, x_label: str, *, log_x: bool
) -> Figure:
    """Draw accuracies against the strength of one kind or of several."""
    none = chosen.where(kind=NONE).values("validation_accuracy")
    line = {"validation, none": sum(none) / len(none)} if none else {}
    figure = plots.trend(
        path,
        ["train_accuracy", "validation_accuracy"],
        x="strength",
        panel_by="kind",
        log_x=log_x,
        log_y=False,
        horizontal=line,
        names={"train_accuracy": "training", "validation_accuracy": "validation"},
        x_label=x_label,
        y_label="accuracy",
        title=f"Accuracy against the {x_label}",
        caption="Left: hardly any regularization. Right: so much that the training "
        "texts are not learned."
        if log_x
        else "",
    )
    for axes in figure.figure.axes:
        # The interval of few seeds may reach far beyond what an accuracy can be.
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), min(high, 1.03))
    return figure


def _against_patience(path: Records) -> Figure:
    """Draw accuracies and the epochs that were trained against the patience."""
    return plots.trend(
        path,
        {"accuracy": ["train_accuracy", "validation_accuracy"], "epochs": ["epochs"]},
        x="strength",
        log_x=False,
        log_y=False,
        names={
            "train_accuracy": "training",
            "validation_accuracy": "validation",
            "epochs": "epochs until the stop",
        },
        x_label="patience in epochs",
        title="What patience costs and what it gains",
        caption="As the weights of the best epoch are taken in any case, waiting "
        "longer helps only where the validation loss has several valleys.",
    )


def _zeros(penalized: Records) -> Figure:
    """Draw accuracy against weights that are zero, and against those that look so."""
    return plots.scatter(
        penalized,
        {
            "share of weights that are exactly 0": "zeros",
            f"share of weights below {NEAR_ZERO:g}": "near_zeros",
        },
        y="test_accuracy",
        color_by="kind",
        log_x=False,
        y_label="test accuracy",
        title="Sparsity against accuracy",
        caption="The subgradient makes weights small and none of them 0.",
    )


def _through_time(chosen: Records) -> Figure:
    """Draw losses through training, and where early stopping takes its weights."""
    named = {"train": "training loss", "validation": "validation loss"}
    panelled = [
        Record(
            Condition(panel=title, kind=record.condition["kind"]),
            record.seed,
            {},
            curves={"loss": record.curves[f"{split}_loss"]},
        )
        for split, title in named.items()
        for record in chosen
        if f"{split}_loss" in record.curves
    ]
    figure = plots.curves(
        Records(panelled),
        "loss",
        color_by="kind",
        panel_by="panel",
        x_label="epochs",
        title="Loss through training, at the chosen strengths",
        caption="Early stopping ends where its lines end; the dotted line is the epoch "
        "whose weights it takes, on average.",
    )
    best = [
        int(record.curves["validation_loss"].values.argmin())
        for record in chosen.where(kind=STOPPING)
        if "validation_loss" in record.curves
    ]
    if best:
        for axes in figure.figure.axes:
            axes.axvline(sum(best) / len(best), color="#767676", ls=":", lw=1.4)
    return figure
