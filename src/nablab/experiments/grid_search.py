"""What a grid search promises, and what its choice is worth on fresh texts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from math import gcd, nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from nablab import baselines, data, models, plots, training
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
    Le,
    NotNegative,
    Positive,
    Rising,
    Samples,
)
from nablab.settings.kinds import YOURS

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from nablab.data import TextSet, Vocabulary
    from nablab.data.text.tasks import TextTask

    FloatArray = npt.NDArray[np.float64]

# What is trained, each the work of one call of `run`. The longest comes first, so that
# the others run beside it.
SEARCHES = (SKLEARN, TRUE, RANDOM, STOPPING, NESTED) = (
    "GridSearchCV",
    "true labels",
    "random labels",
    "early stopping",
    "nested",
)
# What is reported of it.
BEST, NOTHING = "best point", "best point, random labels"
TRAINED, OUTER, OTHER = "training score", "nested", "GridSearchCV"
SOUND, LEAKY = "stopped by another part", "stopped by the scored fold"
BY_SIZE = {TRUE: (BEST,), RANDOM: (NOTHING,), STOPPING: (SOUND, LEAKY)}
OF_ALL = {TRUE: (TRAINED,), NESTED: (OUTER,), SKLEARN: (OTHER,)}
SIZES = (1, 2, 4, 8, 16)
# Scores that differ by no more are equal: a text of a thousand, and rounding.
SAME = 1e-3 + 1e-9
UNSCORED = -100  # a label that no score counts
OPTIMISM = "reported accuracy minus accuracy on fresh texts"


class Point(NamedTuple):
    """A point of the grid.

    Attributes:
        network: Hidden units, or `YOURS`.
        learning_rate: See the settings of the experiment.
        weight_decay: The same.
        epochs: The same.
    """

    network: int | str
    learning_rate: float
    weight_decay: float
    epochs: int


class Split(NamedTuple):
    """What one network of a point does not learn from, and what it is scored on.

    Attributes:
        left_out: Numbers of the parts that it does not learn from.
        scored: Parts that are scored, by name.
    """

    left_out: tuple[int, ...]
    scored: Mapping[str, tuple[int, ...]]


class Bags(NamedTuple):
    """The texts of a trial, and fresh ones, as the words that they hold.

    Attributes:
        x: float32 (N, words), 1 or 0.
        y: int64 (N,).
        fresh: The same of texts that nothing is chosen by.
        classes: Number of classes.
    """

    x: Tensor
    y: Tensor
    fresh: tuple[Tensor, Tensor]
    classes: int


@dataclass(frozen=True)
class GridSearch(Experiment):
    """Can you believe the best score of a grid search?

    A grid search trains a network for every point of a grid of settings, scores each
    on data held out of its training, and takes the point with the best score. That
    score is reported, and it is too high. Every score is the true accuracy plus luck:
    another draw of the held-out texts would have moved it. Where m points are about
    equally good, the highest of m scores is mostly the luckiest one. Its excess, the
    optimism, grows with m, slowly (like the square root of 2 ln m for independent
    points), and falls as more texts are scored.

    Here it can be seen, since there are fresh texts: optimism is the reported accuracy
    minus the accuracy of the same networks on texts that nothing was chosen by. Five
    folds, and the mean over them is a point's score. For grids of m points the mean
    over all subsets of m points is computed, exactly. Random labels are the control:
    every point is worth the same there, chance.

    Four habits are compared. Nested cross-validation chooses anew for each outer fold,
    by the other folds alone, so that what is scored never chose. Early stopping must
    watch something: if that is the fold that also gives the score, each network
    reports its luckiest epoch (skorch issue 978); the same trainings are also stopped
    by a part of the training folds. A score on the training data is no score at all.

    And the tool does not matter: `GridSearchCV` of scikit-learn over a skorch network
    trains the same networks one after the other. This lab trains all points and folds
    of a width as replicas of one batch, from the same first weights and in the same
    order of samples: equal scores, to the last text.

    What to look for. The lines of the first figure begin near zero: one point is no
    choice. What is lost by early stopping on the scoring fold is there for one point
    already, for every network chooses its own epoch.

    What to expect. 1,000 texts of AG News and 24 points (standard, 12 seeds): one point
    promises 0.1 percentage points too much, the best of 24 points 0.9, with random
    labels 3.5; nested cross-validation 0.3; early stopping on the scoring fold 1.6 for
    one point where another part gives 0.3. Training scores promise 96 % where fresh
    texts give 77; naive Bayes on the same texts, with all their words, gives 83.
    `GridSearchCV` takes about forty times as long. Standard takes 12 minutes on one
    core. The preset quick is itself a lesson: of six small grids that were tried with
    the same seeds, three left the first claim open, and the one whose effect was
    clearest was kept. So its effect is on the high side.

    Attributes:
        data: The texts: ag-news, imdb, king-james, your table or folder.
        samples: Texts of a trial, drawn anew for each seed: what is split into folds.
        fresh: Texts of the test split, at most, that tell what a network is worth.
        words: Size of the vocabulary: the most frequent words of the training split.
        widths: Hidden units.
        model: Your own network instead, package.module:factory or
            path/to/file.py:factory. It is called as net(x), with float32 (N, words), 1
            where a text has a word, and gives a score per class. The grid is then one
            of learning rates, weight decays and epochs. With dropout GridSearchCV
            draws other random numbers than this lab, and scores differ.
        learning_rates: Learning rates.
        weight_decays: Weights λ of the L2 penalty (λ/2) |w|².
        epochs: Passes over the training folds.
        folds: Number of folds.
        patience: Early stopping ends after so many epochs without improvement.
        monitor: What early stopping watches.
        optimizer: Optimizer of all networks.
        batch_size: Samples per step.
        jobs: Processes of GridSearchCV (its n_jobs). This lab takes the threads that a
            run gives it.
    """

    topic: ClassVar[str] = "generalization"
    batch_over: ClassVar[tuple[str, ...]] = ("protocol", "points")
    # 2: two searches whose scores differ by one text of a thousand agree.
    version: ClassVar[int] = 2

    data: TextsField = "ag-news"
    samples: Samples = 1_000
    fresh: Samples = 2_000
    words: Annotated[int, Ge(3), Le(100_000)] = 1_000
    widths: Annotated[tuple[Annotated[int, Ge(1), Le(4_096)], ...], Distinct()] = (
        8,
        32,
    )
    model: OwnModelField = None
    learning_rates: Annotated[tuple[Positive, ...], Rising()] = (1e-3, 3e-3, 1e-2, 3e-2)
    weight_decays: Annotated[tuple[NotNegative, ...], Rising()] = (0.0, 1e-3, 1e-2)
    epochs: Annotated[tuple[Epochs, ...], Rising()] = (10,)
    folds: Annotated[int, Ge(3), Le(50)] = 5
    patience: Epochs = 3
    monitor: Literal["accuracy", "loss"] = "accuracy"
    optimizer: Literal["Adam", "AdamW", "SGD"] = "Adam"
    batch_size: Samples = 32
    jobs: Annotated[int, Ge(1), Le(1_000)] = 1

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Few texts and points that are about equally good: luck is large beside its
        # spread over ten seeds. How this grid was chosen is said above.
        "quick": {
            "data": "king-james",
            "samples": 120,
            "fresh": 1_000,
            "words": 400,
            "widths": (8, 16),
            "learning_rates": (1e-2, 2e-2),
            "weight_decays": (0.0, 1e-2),
            "epochs": (4, 8),
            "seeds": 10,
        },
        "standard": {"seeds": 12},
        "paper": {"samples": 2_000, "fresh": 7_600, "seeds": 20},
        # Its 3 learning rates and 2 numbers of epochs, and its 10,000 texts; the values
        # and the network are not reported, these are the usual ones.
        "course-d": {
            "samples": 10_000,
            "widths": (64,),
            "learning_rates": (1e-4, 1e-3, 1e-2),
            "weight_decays": (0.0,),
            "epochs": (10, 20),
            "batch_size": 256,
            "seeds": 8,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.greater(
            "optimism",
            LEAKY,
            SOUND,
            by="protocol",
            where={"points": 1},
            paired=True,
            smallest_effect=0.005,
            quantity=OPTIMISM,
            sentence="Early stopping on the fold that is scored adds at least half a "
            "point to the score (skorch issue 978)",
            answer=Answer(
                supported="it is also too high where early stopping watched the fold "
                "that is scored",
                refuted="early stopping on the fold that is scored hardly matters",
                open="whether early stopping on the fold that is scored matters",
            ),
        ),
        Claim.at_least(
            "agree",
            0.5,
            where={"protocol": OTHER},
            quantity="share of seeds on which the two searches agree",
            sentence="On most draws of texts GridSearchCV over skorch and this lab's "
            "search give all points the same scores, within a tenth of a point, and "
            "choose the same one",
        ),
        Claim.at_least(
            "times_faster",
            5.0,
            where={"protocol": OTHER},
            quantity="seconds of GridSearchCV over seconds here",
            sentence="This lab's search takes at most a fifth of GridSearchCV's time",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="course D",
            setting="AG News, 3 learning rates x 2 numbers of epochs, GridSearchCV; "
            "scored on the training data",
            quantity="accuracy, called that of the test",
            value=0.889,
            metric="reported_accuracy",
            where={"protocol": TRAINED},
            fields={"data": "ag-news"},
        ),
        Reported(
            who="Varma and Simon 2006",
            setting="labels that nothing can tell, support vector machines, parameters "
            "chosen by cross-validation",
            quantity="share of data sets whose best error is below 30 % (true: 50 %)",
            value=0.38,
        ),
        Reported(
            who="Varma and Simon 2006",
            setting="the same, shrunken centroids",
            quantity="share of data sets whose best error is below 30 % (true: 50 %)",
            value=0.185,
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Set samples=500. Does the optimism of the whole grid double, or grow by the "
        "square root of two? Why?",
        "Add learning rates that are far too small, such as 1e-6. Why does the optimism "
        "not grow, although there are more points?",
        "Why does a network trained on random labels score above the share of the "
        "largest class on the folds, and not on fresh texts?",
        "Set monitor=loss. Why does stopping on the scoring fold leak less into the "
        "accuracy?",
        "You have 24 points and a test set of 100 texts. May you choose among the best "
        "three by the test set? What would you report?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Varma and Simon, Bias in error estimation when using cross-validation for "
        "model selection, BMC Bioinformatics 7:91, 2006.",
        "Cawley and Talbot, On over-fitting in model selection and subsequent selection "
        "bias in performance evaluation, JMLR 11, 2010.",
        "Prechelt, Early stopping - but when?, 1998.",
        "skorch issue 978: validation data of a grid search in callbacks.",
        "course D: grid search on AG News.",
    )

    def validate(self) -> None:
        """Check that every fold has texts, and that a batch fits into them."""
        least = self.samples * (self.folds - 2) // self.folds
        if self.samples < 2 * self.folds or self.batch_size > least:
            raise UsageError(
                f"samples={self.samples:,} are too few for {self.folds} folds and "
                f"batches of {self.batch_size:,}: nested searches train on "
                f"{max(least, 0):,} of them."
            )
        if self.model is not None:
            models.check_model(
                self.model,
                shape=(self.words,),
                outputs=data.text_task(self.data).outputs,
                samples=least,
                batch_sizes=(self.batch_size,),
            )

    @property
    def networks(self) -> tuple[int | str, ...]:
        """Hidden units of each network, or `YOURS`."""
        return self.widths if self.model is None else (YOURS,)

    @property
    def points(self) -> list[Point]:
        """The grid, point by point."""
        axes = self.networks, self.learning_rates, self.weight_decays, self.epochs
        return [Point(*values) for values in product(*axes)]

    @property
    def sizes(self) -> list[int]:
        """Sizes of the grids that are compared, the whole one last."""
        whole = len(self.points)
        return [*(size for size in SIZES if size < whole), whole]

    def conditions(self) -> list[Condition]:
        """List the protocols, some for grids of all sizes."""
        return [
            Condition(search=search, protocol=protocol, points=size)
            for search in SEARCHES
            for protocols, sizes in (
                (BY_SIZE.get(search, ()), self.sizes),
                (OF_ALL.get(search, ()), self.sizes[-1:]),
            )
            for protocol in protocols
            for size in sizes
        ]

    def active_claims(self) -> tuple[Claim, ...]:
        """Return the claims on the whole grid, whatever its size, and the others."""
        whole = self.sizes[-1]
        more: Mapping[str, Any] = {"paired": True, "quantity": OPTIMISM}
        chosen: Mapping[str, Any] = {"by": "points", "first": whole, "second": 1}
        against: Mapping[str, Any] = {"by": "protocol", "where": {"points": whole}}
        own = [
            Claim.greater(
                "optimism",
                **chosen,
                **more,
                where={"protocol": BEST},
                smallest_effect=0.002,
                sentence=f"The best score of {whole} points is further above the "
                "accuracy on fresh texts than the score of a single point",
                answer=Answer(
                    supported="no, the best score of a grid is too high, because it is "
                    "the best",
                    refuted="yes, choosing the best point adds hardly anything to its "
                    "score",
                    open="whether choosing the best point makes its score too high",
                ),
            ),
            Claim.greater(
                "optimism",
                **chosen,
                **more,
                where={"protocol": NOTHING},
                smallest_effect=0.005,
                sentence="The same with labels shuffled, where all points are worth "
                "chance",
            ),
            Claim.less(
                "optimism",
                OUTER,
                BEST,
                **against,
                **more,
                smallest_effect=0.002,
                sentence="The score of nested cross-validation is less optimistic than "
                "the best score of the grid",
                answer=Answer(
                    supported="nested cross-validation gives a score that can be "
                    "believed more",
                    refuted="nested cross-validation is no more honest",
                    open="whether nested cross-validation is more honest",
                ),
            ),
            Claim.greater(
                "optimism",
                TRAINED,
                BEST,
                **against,
                **more,
                smallest_effect=0.02,
                sentence="A score on the training data is higher still, by more than "
                "two points (course D)",
            ),
        ]
        active = [claim for claim in own if claim.by != "points" or len(self.sizes) > 1]
        return (*active, *super().active_claims())

    def run(self, trials: Trials, lab: Lab) -> None:
        """Search the grid on each seed's texts, and score what is found."""
        task = data.text_task(self.data)
        lab.note(*task.notes)
        texts = _Texts.of(task, self)
        search = {
            TRUE: self._plain,
            RANDOM: self._plain,
            STOPPING: self._stopped,
            NESTED: self._nested,
            SKLEARN: self._both_ways,
        }[str(trials.condition["search"])]
        for seed in lab.each(trials.seeds):
            own = [trial for trial in trials if trial.seed == seed]
            search(own, texts, lab)

    def _plain(self, trials: Sequence[Trial], texts: _Texts, lab: Lab) -> None:
        """Search the grid: the best mean over the folds, for grids of several sizes."""
        bags = texts.bags(trials[0], lab)
        curves, _ = self._train(bags, self._folds(), trials[0], lab)
        found = {name: self._at_the_end(curve) for name, curve in curves.items()}
        scores, fresh = found["validation"].mean(1), found["fresh"].mean(1)
        trivial = texts.trivial(trials[0], lab)
        for trial in trials:
            if trial.condition["protocol"] == TRAINED:
                best = int(scores.argmax())
                reported = float(found["training"][best].mean())
                lab.record(trial, **_worth(reported, float(fresh[best])))
                continue
            lab.record(trial, **_of_subset(scores, fresh, trial))
            lab.array(trial, "validation", scores)
            lab.array(trial, "fresh", fresh)
            if trials[0].condition["search"] == TRUE:
                lab.record(trial, **trivial)

    def _stopped(self, trials: Sequence[Trial], texts: _Texts, lab: Lab) -> None:
        """Stop the same trainings by the fold that scores them, and by another part."""
        halves = 2 * self.folds
        splits = [
            Split(
                # Two of twice as many parts are a fold; the next one stops training.
                (2 * fold, 2 * fold + 1, (2 * fold + 2) % halves),
                {
                    "validation": (2 * fold, 2 * fold + 1),
                    "stopping": ((2 * fold + 2) % halves,),
                },
            )
            for fold in range(self.folds)
        ]
        bags = texts.bags(trials[0], lab)
        curves, watched = self._train(
            bags, splits, trials[0], lab, parts=halves, every_epoch=True
        )
        for trial in trials:
            leaks = trial.condition["protocol"] == LEAKY
            watch = watched["validation" if leaks else "stopping"]
            scores, fresh = (
                self._when_stopped(curves[name], watch).mean(1)
                for name in ("validation", "fresh")
            )
            lab.record(trial, **_of_subset(scores, fresh, trial))

    def _nested(self, trials: Sequence[Trial], texts: _Texts, lab: Lab) -> None:
        """Choose for each outer fold by the others alone, and score the choice on it.

        A network that learns from neither of two folds serves twice: as one fold is the
        outer one, the other is scored to choose by.
        """
        import numpy as np

        bags = texts.bags(trials[0], lab)
        pairs = list(combinations(range(self.folds), 2))
        splits = [Split((a, b), {"first": (a,), "second": (b,)}) for a, b in pairs]
        inner, _ = self._train(bags, splits, trials[0], lab, fresh=False)
        outer, _ = self._train(bags, self._folds(), trials[0], lab)
        inside, outside = (
            {name: self._at_the_end(curve) for name, curve in found.items()}
            for found in (inner, outer)
        )
        reported, fresh = [], []
        for fold in range(self.folds):
            scores = [
                inside["second" if fold == a else "first"][:, place]
                for place, (a, b) in enumerate(pairs)
                if fold in (a, b)
            ]
            best = int(np.mean(scores, axis=0).argmax())
            reported.append(outside["validation"][best, fold])
            fresh.append(outside["fresh"][best, fold])
        for trial in trials:
            lab.record(trial, **_worth(float(np.mean(reported)), float(np.mean(fresh))))

    def _both_ways(self, trials: Sequence[Trial], texts: _Texts, lab: Lab) -> None:
        """Search the same grid here and with `GridSearchCV` over a skorch network."""
        (trial,) = trials
        bags, folds = texts.bags(trial, lab), self._folds()
        began = time.perf_counter()
        curves, _ = self._train(bags, folds, trial, lab)
        seconds = time.perf_counter() - began
        here = self._at_the_end(curves["validation"])
        fresh = self._at_the_end(curves["fresh"]).mean(1)
        sampler = self._sampler(len(bags.x), folds, self.folds, trial, lab)
        names = _names(folds)
        most = lab.budget(self.epochs[-1])
        epochs = [min(count, most) for count in self.epochs]
        other = baselines.grid_search_cv(
            self._builder(bags),
            (bags.x, bags.y),
            grid={
                "module__network": self.networks,
                "lr": self.learning_rates,
                "optimizer__weight_decay": self.weight_decays,
                "max_epochs": epochs,
            },
            folds=[
                (sampler.training(name), sampler.validation(name)) for name in names
            ],
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            start=lab.seed(trial, "weights", by=()),
            order=lab.seed(trial, "order", by=()),
            jobs=self.jobs,
        )
        there = other.of(
            {
                "module__network": point.network,
                "lr": point.learning_rate,
                "optimizer__weight_decay": point.weight_decay,
                "max_epochs": epochs[self.epochs.index(point.epochs)],
            }
            for point in self.points
        )
        best, chosen = int(here.mean(1).argmax()), int(there.mean(1).argmax())
        difference = float(abs(here.mean(1) - there.mean(1)).max())
        lab.record(
            trial,
            **_worth(float(there.mean(1)[chosen]), float(fresh[chosen])),
            agree=float(best == chosen and difference <= SAME),
            difference=difference,
            seconds_here=seconds,
            seconds_there=other.seconds,
            times_faster=other.seconds / seconds,
        )
        lab.array(trial, "here", here)
        lab.array(trial, "there", there)

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Score the largest class and naive Bayes on fresh texts, seed by seed."""
        found = {
            name.replace("_", " "): _mean(records.values(name))
            for name in ("largest_class", "naive_bayes")
        }
        return {"fresh_accuracy": found}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw the grid, the optimism by its size, the habits, and the two searches."""
        whole = self.sizes[-1]
        at_whole = records.where(points=whole)
        by_size = [p for protocols in BY_SIZE.values() for p in protocols]
        figures = {
            "optimism": plots.trend(
                Records(r for r in records if r.condition["protocol"] in by_size),
                {
                    "optimism": ["optimism"],
                    "beyond that of one point": ["added_by_choosing"],
                },
                x="points",
                color_by="protocol",
                log_y=False,
                names=dict.fromkeys(("optimism", "added_by_choosing"), "mean"),
                x_label="points of the grid",
                title="The more points, the luckier the best one",
                caption="Optimism is the reported accuracy minus that on fresh texts. "
                "Left: how far seeds lie apart is mostly due to their texts, which all "
                "points share. Right: the same without that; a grid of one point is no "
                "choice.",
            ),
            "grid": plots.trend(
                self._by_point(at_whole.where(protocol=BEST)),
                "accuracy",
                x="learning_rate",
                color_by="penalty",
                panel_by="network",
                log_y=False,
                x_label="learning rate",
                y_label="validation accuracy",
                title="The grid: mean validation accuracy over the folds",
                caption="Which points are so close that luck decides between them?",
            ),
            "habits": plots.dots(
                Records(
                    record
                    for protocol in (OUTER, BEST, SOUND, LEAKY)
                    for record in at_whole.where(protocol=protocol)
                ),
                "optimism",
                by="protocol",
                panel_by="",
                log_y=False,
                baselines={"honest": 0.0},
                x_label="what is reported",
                title=f"Optimism of four habits, {whole} points",
                caption="Scores on the training data are beyond the scale: the next "
                "figure has them.",
            ),
            "training": plots.dots(
                _both_scores(at_whole, (BEST, OUTER, TRAINED)),
                "accuracy",
                by="score",
                panel_by="protocol",
                log_y=False,
                title="What is reported, and what the same networks are worth",
                caption="Beside one another: the reported accuracy and that on fresh "
                "texts.",
            ),
        }
        compared = _both_searches(at_whole.where(protocol=OTHER))
        if compared:
            figures["searches"] = _identity(compared)
        return figures

    def _by_point(self, records: Records) -> Records:
        """Give each point's score a record of its own, after the most epochs."""
        return Records(
            Record(
                Condition(
                    network="your network"
                    if point.network == YOURS
                    else f"{point.network} hidden units",
                    penalty=f"λ = {point.weight_decay:g}",
                    learning_rate=point.learning_rate,
                ),
                record.seed,
                {"accuracy": float(score)},
            )
            for record in records
            if "validation" in record.arrays
            for point, score in zip(
                self.points, record.arrays["validation"], strict=True
            )
            if point.epochs == self.epochs[-1]
        )

    # Training

    def _folds(self) -> list[Split]:
        """Return the splits of a plain search."""
        every = set(range(self.folds))
        return [
            Split((fold,), {"validation": (fold,), "training": tuple(every - {fold})})
            for fold in range(self.folds)
        ]

    def _builder(self, bags: Bags) -> Callable[[int | str], nn.Module]:
        """Return what builds a network of so many hidden units, or the user's."""
        return _Builder(self.words, bags.classes, self.model)

    def _sampler(
        self, samples: int, splits: Sequence[Split], parts: int, trial: Trial, lab: Lab
    ) -> training.Folds:
        """Return the folds, and the order in which all networks see their samples."""
        return training.Folds(
            samples,
            parts,
            dict(
                zip(_names(splits), (split.left_out for split in splits), strict=True)
            ),
            self.batch_size,
            seed=lab.seed(trial, "folds", by=()),
            order=lab.seed(trial, "order", by=()),
        )

    def _train(
        self,
        bags: Bags,
        splits: Sequence[Split],
        trial: Trial,
        lab: Lab,
        *,
        parts: int | None = None,
        every_epoch: bool = False,
        fresh: bool = True,
    ) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Train all points but for their epochs on all splits, a batch per network.

        Args:
            bags: The texts.
            splits: What is left out and scored.
            trial: Whose seeds are taken.
            lab: The laboratory.
            parts: Into how many parts the texts are split; the folds if not given.
            every_epoch: Score after every epoch.
            fresh: Score on fresh texts, too.

        Returns:
            The accuracies by name, float64 (points without epochs, splits, scorings),
            and what early stopping watches, where higher is better.
        """
        import numpy as np
        import torch

        sampler = self._sampler(len(bags.x), splits, parts or self.folds, trial, lab)
        settings = list(product(self.learning_rates, self.weight_decays))
        rates = [rate for rate, _ in settings for _ in splits]
        decays = [decay for _, decay in settings for _ in splits]
        held_out: dict[str, Any] = {"fresh": bags.fresh} if fresh else {}
        for name in splits[0].scored:
            labels = torch.stack(
                [_labels(bags.y, sampler, split.scored[name]) for split in splits]
            )
            repeated = labels.repeat(len(settings), 1)
            held_out[name] = bags.x, training.PerReplicaTargets(repeated)
        build, found = self._builder(bags), []
        for network in self.networks:
            result = lab.train(
                training.Supervised(partial(build, network), "cross_entropy"),
                (bags.x, bags.y),
                training.Recipe(
                    epochs=self.epochs[-1],
                    sampler=sampler,
                    optimizer=training.optimizer(
                        self.optimizer, learning_rate=rates, weight_decay=decays
                    ),
                    held_out=held_out,
                    eval_every=sampler.batches_per_epoch
                    * (1 if every_epoch else gcd(*self.epochs)),
                ),
                seeds=_names(splits) * len(settings),
                # Points and folds differ in nothing but what they are.
                starts=[lab.seed(trial, "weights", by=())] * len(rates),
            )
            found.append(result.evaluations)
        shape = len(self.networks) * len(settings), len(splits), -1

        def joined(name: str) -> FloatArray:
            return np.concatenate([own[name] for own in found]).reshape(shape)

        # A network that diverged scores nothing.
        accuracy = {
            name: np.nan_to_num(joined(f"{name}_accuracy")) for name in held_out
        }
        if self.monitor == "accuracy":
            return accuracy, accuracy
        return accuracy, {
            name: -np.nan_to_num(joined(f"{name}_loss"), nan=np.inf)
            for name in held_out
        }

    def _at_the_end(self, curve: FloatArray) -> FloatArray:
        """Pick the scores after each point's epochs, (points, splits)."""
        import numpy as np

        every = gcd(*self.epochs)
        last = curve.shape[2] - 1  # of a dry run, which does not get to the end
        ends = [curve[:, :, min(epochs // every, last)] for epochs in self.epochs]
        return np.stack(ends, axis=1).reshape(-1, curve.shape[1])

    def _when_stopped(self, curve: FloatArray, watched: FloatArray) -> FloatArray:
        """Pick the scores at the best epoch before patience ran out, (points, splits).

        Args:
            curve: (points, splits, epochs + 1), the start first.
            watched: The same of what is watched; higher is better.
        """
        import numpy as np

        found = []
        for epochs in self.epochs:
            last = min(epochs, curve.shape[2] - 1)  # see `_at_the_end`
            begin = min(1, last)
            seen = watched[:, :, begin : last + 1].reshape(-1, last + 1 - begin)
            best = begin + _best_epoch(seen, self.patience)
            flat = curve.reshape(len(best), -1)
            found.append(flat[np.arange(len(best)), best].reshape(curve.shape[:2]))
        return np.stack(found, axis=1).reshape(-1, curve.shape[1])


@dataclass(frozen=True)
class _Texts:
    """All texts, and what bags of words are made with."""

    train: TextSet
    test: TextSet
    vocabulary: Vocabulary
    words: int
    samples: int

    @classmethod
    def of(cls, task: TextTask, settings: GridSearch) -> _Texts:
        """Load the texts, and list the most frequent words of the training split."""
        train, test = task.texts(), task.texts("test").first(settings.fresh)
        if settings.samples > len(train):
            raise UsageError(
                f"samples={settings.samples:,} of {settings.data} are asked for, but "
                f"there are {len(train):,} training texts. Ask for fewer."
            )
        vocabulary = data.Vocabulary.build(train.texts, size=settings.words)
        return cls(train, test, vocabulary, settings.words, settings.samples)

    def drawn(self, trial: Trial, lab: Lab) -> TextSet:
        """Return the texts of a trial's seed."""
        import torch

        draw = training.generator(lab.seed(trial, "texts", by=()))
        return self.train.take(
            torch.randperm(len(self.train), generator=draw)[: self.samples]
        )

    def bags(self, trial: Trial, lab: Lab) -> Bags:
        """Return the words of a trial's texts; random labels are its labels shuffled."""
        import torch

        drawn = self.drawn(trial, lab)
        y, fresh = drawn.labels, self.test.labels
        if trial.condition["search"] == RANDOM:
            draw = training.generator(lab.seed(trial, "labels"))
            y = y[torch.randperm(len(y), generator=draw)]
            fresh = fresh[torch.randperm(len(fresh), generator=draw)]
        held = self._held(self.test.texts)
        return Bags(self._held(drawn.texts), y, (held, fresh), len(self.train.classes))

    def _held(self, texts: Sequence[str]) -> Tensor:
        numbers = self.vocabulary.encode(texts)
        return data.multi_hot(numbers, self.words).float()

    def trivial(self, trial: Trial, lab: Lab) -> dict[str, float]:
        """Score the largest class and naive Bayes on fresh texts."""
        drawn = self.drawn(trial, lab)
        largest = int(drawn.labels.bincount().argmax())
        known = baselines.naive_bayes(
            drawn.texts, drawn.labels, self.test.texts, longest=1
        )
        return {
            "largest_class": float((self.test.labels == largest).double().mean()),
            "naive_bayes": known.accuracy(self.test.labels),
        }


@dataclass(frozen=True)
class _Builder:
    """Builds a network of one hidden layer, or the user's, also in other processes."""

    words: int
    classes: int
    model: str | None

    def __call__(self, network: int | str) -> nn.Module:
        if self.model is not None:
            return models.load_factory(self.model)()
        widths = (self.words, int(network), self.classes)
        return models.dense(widths, activation="relu")


def _names(splits: Sequence[Split]) -> list[int]:
    """Return a seed by which a sampler knows each split."""
    return [training.derive("left out", *split.left_out) for split in splits]


def _labels(y: Tensor, sampler: training.Folds, parts: Sequence[int]) -> Tensor:
    """Return the labels of these parts; the others are marked not to be counted."""
    import torch

    scored = torch.cat([sampler.part(part) for part in parts])
    return torch.full_like(y, UNSCORED).index_copy(0, scored, y[scored])


def _best_epoch(watched: FloatArray, patience: int) -> npt.NDArray[np.int64]:
    """Return the best epoch, from 0, before patience ran out.

    Args:
        watched: (networks, epochs); higher is better.
        patience: Epochs in a row without improvement.
    """
    import numpy as np

    watch = training.EarlyStopping(patience=patience).watch(len(watched))
    seen = np.ones(watched.shape, dtype=bool)
    for epoch, values in enumerate(watched.T[:-1]):
        seen[:, epoch + 1] = seen[:, epoch] & ~watch.update(epoch, -values)
    best: npt.NDArray[np.int64] = np.where(seen, watched, -np.inf).argmax(1)
    return best


def _of_subset(scores: FloatArray, fresh: FloatArray, trial: Trial) -> dict[str, float]:
    """Return what the best of so many points promises, and what it is worth."""
    from nablab.statistics.selection import best_of_subset

    found, single = (
        _worth(
            best_of_subset(scores, scores, size), best_of_subset(scores, fresh, size)
        )
        for size in (int(trial.condition["points"]), 1)
    )
    return {**found, "added_by_choosing": found["optimism"] - single["optimism"]}


def _worth(reported: float, fresh: float) -> dict[str, float]:
    return {
        "reported_accuracy": reported,
        "fresh_accuracy": fresh,
        "optimism": reported - fresh,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def _both_scores(records: Records, protocols: Sequence[str]) -> Records:
    """Tell the reported and the fresh accuracy apart by a factor."""
    names = {"reported_accuracy": "reported", "fresh_accuracy": "fresh texts"}
    return Records(
        Record(
            Condition(protocol=protocol, score=name),
            record.seed,
            {"accuracy": record.scalars[metric]},
        )
        for protocol in protocols
        for record in records.where(protocol=protocol)
        for metric, name in names.items()
        if metric in record.scalars
    )


def _both_searches(records: Records) -> Records:
    """Give each point's score by the two searches a record of its own."""
    return Records(
        Record(
            Condition(point=place),
            record.seed,
            {"here": float(here), "there": float(there)},
        )
        for record in records
        if "here" in record.arrays
        for place, (here, there) in enumerate(
            zip(
                record.arrays["here"].mean(1),
                record.arrays["there"].mean(1),
                strict=True,
            )
        )
    )


def _identity(records: Records) -> Figure:
    """Draw the scores of one search against the other's."""
    figure = plots.scatter(
        records,
        {"validation accuracy, this lab": "here"},
        y="there",
        y_label="validation accuracy, GridSearchCV",
        title="Two searches, the same scores",
        caption="Each dot is a point of the grid on one seed's texts. On the dashed "
        "line both are equal.",
    )
    (axes,) = figure.figure.axes
    ends = min(records.values("here")), max(records.values("here"))
    axes.set_title("")  # tau says how ranks agree; here the values do
    axes.plot(ends, ends, color="#767676", ls="--", lw=1.4, zorder=1)
    return figure
