"""Recurrent networks, a Transformer and convolutions tell whether a review praises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import nan
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

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
    Trial,
    Trials,
)
from nablab.contract.configuration import parse_overrides
from nablab.data.fields import TextsField
from nablab.errors import UsageError
from nablab.models.fields import OwnModelField
from nablab.settings import Distinct, Epochs, Ge, Le, Lt, Positive, Samples
from nablab.settings.kinds import YOURS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data import Corpus
    from nablab.training import Moment, Sequences

Network = Literal["rnn", "lstm", "gru", "bilstm", "transformer", "cnn"]
NETWORKS: tuple[Network, ...] = get_args(Network)
NONE = "none"
LAST, REPAIRED = "read=last", "read=last+start=orthogonal+clip_norm=1"
WRONG = "mistake=loss-over-the-batch"
FIRST, END = "limit=100", "limit=100+keep=last"
# What a change of one condition may set: not what all conditions share.
SHARED = (
    "data",
    "networks",
    "model",
    "changes",
    "tuned",
    "scored_on",
    "validation",
    "words",
)
# Half a point is 125 of the 25,000 test reviews; seeds differ by about as much.
BETTER: Mapping[str, Any] = {"smallest_effect": 0.005, "quantity": "accuracy"}
DECADES: Mapping[str, Any] = {"scale": "log10", "smallest_effect": 1.0}
# Texts that are scored while a network learns, at once, and for gradients and attention.
WATCHED, AT_ONCE, LOOKED_AT = 500, 128, 32
EVALUATIONS = 5
# Words between the end and where the remaining gradient is read off.
BACK = 50

FEW_SEEDS = (
    "its claims take nine seeds together, and each seed costs ten minutes on two "
    "cores; --seeds 9 gives them."
)

Count = Annotated[int, Ge(1), Le(4_096)]
Left = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class Sentiment(Experiment):
    """Does a recurrent network or a Transformer read reviews better?

    A review is a list of words, each word a vector that is learned. What differs is how
    the vectors become one decision. A recurrent network reads word after word and keeps
    a state: h_t is made of h_(t-1) and word t. In a Transformer each word looks at all
    others and takes a weighted mean of them (attention). A convolution looks for phrases
    of 3, 4 or 5 words. Here all get the same reviews, the same number of steps and the
    same vectors' size; what they give for the words is read by the largest value of
    each coordinate over the review. They share one learning rate, but for the
    Transformer: on held-out training reviews half the rate and more dropout gave it a
    point.

    The plain recurrent network has a known illness. Read at its last state alone, its
    loss depends on word t through a product of T - t matrices. If each shrinks vectors
    by a factor of 0.6, then after 50 words 0.6^50, 1e-11, of the gradient is left, and
    nothing is learned of what stood there. The figure of gradients shows it: the norm
    of the loss's gradient by the state after each word, against the distance from the
    end. An untrained LSTM is no better: its forget gates are half open, and 0.5^50 is
    less. But a gate's opening is learned. Two cures are tried for the plain network: a
    start with orthogonal matrices, which shrink nothing, with long gradients clipped;
    and reading all states instead of the last, which gives every word a short way to
    the loss.

    A batch is padded to its longest review. Padding must not count: a mask keeps it out
    of what is read and out of attention, and the backward half of the BiLSTM starts at
    the last word of each review, not at the padding. Course D's BiLSTM got 69 %, and
    its cross-entropy ran over the reviews of a batch, not over the classes. That loss
    asks which reviews of the batch are the positive ones. It does not change when the
    same number is added to all scores, so where to draw the line between the classes
    is never learned. One condition has this mistake. Look at its accuracy, and at the
    area under the ROC curve, which tells how well texts are ranked whatever the line.

    Linear models see no order at all, only which words and word pairs a review has.
    They stand beside: naive Bayes, logistic regression on TF-IDF, and NB-SVM for two
    classes. A network that does not beat them has learned nothing that needs a network.

    What to expect (standard, means of nine seeds, test accuracy in percent): plain RNN
    86.7, LSTM 88.3, GRU 88.8, BiLSTM 88.8, Transformer 88.0, CNN 89.0, and NB-SVM 91.5:
    no network reaches the linear model. The plain RNN read at its last state has 70.3,
    with both cures 75.8, and seeds lie 30 points apart there; the LSTM 85.5. The last
    100 words of a review give 84.6, its first 100 give 81.7. The BiLSTM with the loss
    over the batch has 86.4: that mistake costs two points, and does not explain the
    course's 69.

    Attention is drawn for one text. Compare it with the second row, which replaces one
    word at a time by the unknown word and shows how far the score moves. Where the two
    differ, attention does not explain (Jain and Wallace 2019).

    The settings of the preset quick were chosen for half a minute and for clear
    verdicts, after looking at both; those of standard were not.

    Running time on two cores: quick half a minute, standard about 50 minutes.

    Attributes:
        data: Labeled texts.
        networks: Networks that are compared.
        model: Your own network as a further condition: package.module:factory or
            path/to/file.py:factory. It is called as net(tokens, lengths), with numbers
            of words (N, T), 0 behind the end, below the setting words, and lengths
            (N,); it gives a score per class, or one score for two classes.
        changes: Further conditions, a network with settings of its own:
            network:setting=value, several settings joined by +.
        tuned: Settings that a network has of its own, written like changes. These were
            chosen on held-out training reviews.
        words: Size of the vocabulary; rarer words are all one unknown word.
        limit: Words of a text that are used, at most.
        keep: Which of a longer text: its first words or its last.
        read: How a text's states become one: the last one, or over all words the max of
            each coordinate or the mean.
        embedding: Coordinates of a word vector; of a Transformer's states, too.
        hidden: Coordinates of a recurrent state; half of them each way in a BiLSTM.
        filters: Filters of a convolution, for each width.
        heads: Attention heads.
        feed_forward: Hidden units of a Transformer's layer.
        layers: Layers of a Transformer.
        positions: Whether a Transformer is told where a word stands.
        dropout: Share of coordinates left out in training; a third of it inside a
            Transformer.
        word_dropout: Share of words replaced by the unknown word in training.
        start: First weights from state to state of a recurrent network.
        mistake: A mistake to reproduce: none, or a cross-entropy over the batch.
        learning_rate: Learning rate of Adam.
        schedule: one-cycle (a rise over a tenth of the steps, then down to zero) or
            constant.
        clip_norm: Longest gradient; longer ones are scaled to it.
        batch_size: Texts per step; texts of like lengths stand together.
        epochs: Passes over the training texts.
        scored_on: What accuracy is measured on: test texts, or validation texts held
            out of training, for whoever chooses settings.
        validation: Training texts held out when scored_on=validation.
        precision: What products are computed in; auto takes bfloat16 where the
            processor has instructions for it.
    """

    topic: ClassVar[str] = "text"

    data: TextsField = "imdb"
    networks: Annotated[tuple[Network, ...], Distinct(least=0)] = NETWORKS
    model: OwnModelField = None
    changes: Annotated[tuple[str, ...], Distinct(least=0)] = (
        f"rnn:{LAST}",
        f"rnn:{REPAIRED}",
        f"lstm:{LAST}",
        f"lstm:{FIRST}",
        f"lstm:{END}",
        f"bilstm:{WRONG}",
    )
    tuned: Annotated[tuple[str, ...], Distinct(least=0)] = (
        "transformer:learning_rate=2e-3+dropout=0.45",
    )
    words: Annotated[int, Ge(10), Le(1_000_000)] = 20_000
    limit: Annotated[int, Ge(1), Le(100_000)] = 800
    keep: Literal["first", "last"] = "first"
    read: Literal["last", "max", "mean"] = "max"
    embedding: Count = 32
    hidden: Count = 64
    filters: Count = 64
    heads: Count = 2
    feed_forward: Count = 128
    layers: Annotated[int, Ge(1), Le(24)] = 1
    positions: bool = True
    dropout: Left = 0.3
    word_dropout: Left = 0.1
    start: Literal["default", "orthogonal"] = "default"
    mistake: Literal["none", "loss-over-the-batch"] = "none"
    learning_rate: Positive = 4e-3
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    clip_norm: Positive | None = None
    batch_size: Samples = 64
    epochs: Epochs = 3
    scored_on: Literal["test", "validation"] = "test"
    validation: Samples = 5_000
    precision: Literal["float32", "bfloat16", "auto"] = "auto"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Nine seeds, so that a clear answer is one; without the GRU and the CNN for that.
        # What takes longest comes first, so that the rest runs beside it.
        "quick": {
            "data": "king-james@1500",
            "networks": ("transformer", "bilstm", "lstm", "rnn"),
            "changes": (f"bilstm:{WRONG}", f"rnn:{LAST}", f"rnn:{REPAIRED}"),
            "words": 3_000,
            "limit": 12,
            "embedding": 24,
            "hidden": 32,
            "feed_forward": 48,
            "dropout": 0.1,
            "word_dropout": 0.0,
            "learning_rate": 0.02,
            "batch_size": 128,
            "epochs": 5,
            "tuned": (),
            "seeds": 9,
        },
        "standard": {},
        "paper": {
            "tuned": (),
            "words": 30_000,
            "embedding": 128,
            "hidden": 128,
            "filters": 128,
            "heads": 4,
            "feed_forward": 256,
            "learning_rate": 2e-3,
            "seeds": 10,
        },
        "course-d": {
            "networks": ("rnn", "lstm", "gru", "bilstm"),
            "changes": (
                f"bilstm:{WRONG}",
                "transformer:embedding=32+read=mean",
            ),
            "tuned": (),
            "words": 10_000,
            "limit": 500,
            "keep": "last",
            "read": "last",
            "embedding": 10,
            "hidden": 32,
            "dropout": 0.0,
            "word_dropout": 0.0,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "batch_size": 256,
            "epochs": 10,
        },
        "one-at-a-time": {
            "networks": ("transformer",),
            "changes": tuple(
                f"transformer:{change}"
                for change in (
                    "heads=1",
                    "heads=4",
                    "heads=8",
                    "feed_forward=32",
                    "feed_forward=512",
                    "dropout=0",
                    "dropout=0.3",
                    "dropout=0.6",
                    "layers=2",
                    "positions=no",
                    "read=mean",
                    "limit=200",
                )
            ),
            "scored_on": "validation",
            "seeds": 3,
        },
    }
    undecided: ClassVar[Mapping[str, str]] = {
        "standard": FEW_SEEDS,
        "course-d": FEW_SEEDS,
        "one-at-a-time": "it is there to choose settings on held-out reviews, and three "
        "seeds show which differ by much.",
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.greater(
            "accuracy",
            "transformer",
            "lstm",
            by="network",
            where={"change": NONE},
            **BETTER,
            published=Published(0.8531 - 0.8202, "course D, one seed"),
            sentence="The Transformer reads better than the LSTM",
            answer=Answer(
                supported="the Transformer reads better than the LSTM",
                refuted="the Transformer does not read better than the LSTM",
                open="whether the Transformer reads better than the LSTM",
            ),
        ),
        Claim.at_least(
            "lead_over_linear",
            0.0,
            within="network",
            where={"change": NONE},
            smallest_effect=0.005,
            quantity="accuracy minus that of the linear model",
            sentence="It is right at least as often as the linear model that knows no "
            "order",
            answer=Answer(
                supported="it beats or equals a linear model of words and word pairs",
                refuted="it does not reach a linear model of words and word pairs",
                open="whether it reaches a linear model of words and word pairs",
            ),
        ),
        Claim.less(
            "accuracy",
            LAST,
            NONE,
            by="change",
            where={"network": "rnn"},
            paired=True,
            **BETTER,
            sentence="A plain RNN reads worse by its last state than by all its states",
            answer=Answer(
                supported="a plain RNN must not be read at its last state alone",
                refuted="a plain RNN can be read at its last state alone",
                open="whether a plain RNN can be read at its last state alone",
            ),
        ),
        Claim.greater(
            "accuracy",
            REPAIRED,
            LAST,
            by="change",
            where={"network": "rnn"},
            paired=True,
            **BETTER,
            sentence="Read at its last state, an RNN gains by an orthogonal start and "
            "clipping",
        ),
        Claim.less(
            "gradient_left_at_end",
            "rnn",
            "lstm",
            by="network",
            where={"change": LAST},
            **DECADES,
            quantity=f"gradient left {BACK} words before the end",
            sentence=f"Of the gradient, less is left {BACK} words back in an RNN than "
            "in an LSTM",
        ),
        Claim.greater(
            "gradient_left_at_start",
            REPAIRED,
            LAST,
            by="change",
            where={"network": "rnn"},
            paired=True,
            **DECADES,
            quantity=f"gradient left {BACK} words before the end, untrained",
            sentence="Orthogonal first weights leave more of the gradient",
        ),
        Claim.less(
            "accuracy",
            LAST,
            NONE,
            by="change",
            where={"network": "lstm"},
            paired=True,
            **BETTER,
            sentence="An LSTM reads worse by its last state than by all its states",
        ),
        Claim.greater(
            "accuracy",
            END,
            FIRST,
            by="change",
            where={"network": "lstm"},
            paired=True,
            **BETTER,
            sentence="The last 100 words of a text tell more than its first 100",
        ),
        Claim.less(
            "accuracy",
            WRONG,
            NONE,
            by="change",
            where={"network": "bilstm"},
            paired=True,
            **BETTER,
            sentence="A cross-entropy over the batch costs the BiLSTM accuracy",
            answer=Answer(
                supported="a loss over the batch makes a BiLSTM worse",
                refuted="a loss over the batch does not make a BiLSTM worse",
                open="whether a loss over the batch makes a BiLSTM worse",
            ),
        ),
        Claim.at_most(
            "accuracy",
            0.75,
            where={"network": "bilstm", "change": WRONG},
            smallest_effect=0.02,
            published=Published(0.6920, "course D, one seed", of="metric"),
            sentence="That loss alone explains the course's BiLSTM: at most 75 % are "
            "right",
        ),
        Claim.equal(
            "ranked_right",
            by="change",
            margin=0.02,
            where={"network": "bilstm"},
            quantity="area under the ROC curve",
            sentence="With the loss over the batch the texts are ranked as well",
        ),
        Claim.greater(
            "accuracy",
            "bilstm",
            "lstm",
            by="network",
            where={"change": NONE},
            **BETTER,
            sentence="Reading both ways helps the LSTM",
        ),
        Claim.at_most(
            "attention_tau",
            0.5,
            where={"network": "transformer", "change": NONE},
            quantity="Kendall's tau of attention with the effect of a word",
            sentence="Attention ranks words unlike what leaving them out does (tau below "
            "0.5)",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        *(
            Reported(
                who="course D",
                setting=f"last 500 tokens, {parameters:,} parameters, 10 epochs",
                seeds=1,
                quantity="test accuracy",
                value=value,
                metric="accuracy",
                where={"network": network, "change": change},
                fields={"data": "imdb", "embedding": 10, "hidden": 32},
            )
            for network, change, parameters, value in (
                ("rnn", NONE, 101_441, 0.6950),
                ("lstm", NONE, 105_665, 0.8202),
                ("gru", NONE, 104_257, 0.8434),
                ("transformer", "embedding=32+read=mean", 349_921, 0.8531),
            )
        ),
        Reported(
            who="course D",
            setting="BiLSTM, cross-entropy over the batch",
            seeds=1,
            quantity="test accuracy",
            value=0.6920,
            metric="accuracy",
            where={"network": "bilstm", "change": WRONG},
            fields={"data": "imdb", "embedding": 10, "hidden": 32},
        ),
        *(
            Reported(
                who=who,
                setting=setting,
                quantity="test accuracy",
                value=value,
                metric="accuracy",
                where={"network": network, "change": NONE},
                fields={"data": "imdb", "scored_on": "test"},
            )
            for who, setting, network, value in (
                ("Dai and Le 2015", "LSTM, tuned, with dropout", "lstm", 0.865),
                (
                    "Johnson and Zhang 2016",
                    "bidirectional LSTM on one-hot words, max over states",
                    "bilstm",
                    0.9186,
                ),
                ("Keras example", "small Transformer, 200 words", "transformer", 0.868),
                ("Keras example", "CNN, 400 words", "cnn", 0.875),
            )
        ),
        Reported(
            who="a well-known tutorial",
            setting="plain RNN, padded, no mask",
            quantity="test accuracy",
            value=0.4787,
            metric="accuracy",
            where={"network": "rnn", "change": LAST},
            fields={"data": "imdb", "scored_on": "test"},
        ),
        Reported(
            who="Wang and Manning 2012",
            setting="NB-SVM on words and word pairs",
            quantity="test accuracy",
            value="0.9122",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Sort the words of each review before training (a tokenizer of your own will do). "
        "Which network loses most, and what does that say?",
        "The loss over the batch does not change when a number is added to all scores. "
        "Find the threshold on validation texts. How many of the lost points come back?",
        "Set changes=transformer:positions=no. How much of reviews is in the order of "
        "words?",
        "Start an LSTM with forget-gate bias 1 (Jozefowicz et al. 2015). What happens to "
        "the gradient at the start, and does it matter at the end?",
        "Run the preset one-at-a-time. Choose settings by it, then score once on the "
        "test texts. Did the gain survive?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Maas et al., Learning word vectors for sentiment analysis, ACL 2011.",
        "Wang and Manning, Baselines and bigrams: simple, good sentiment and topic "
        "classification, ACL 2012.",
        "Hochreiter and Schmidhuber, Long short-term memory, Neural Computation 9 "
        "(1997).",
        "Pascanu et al., On the difficulty of training recurrent neural networks, ICML "
        "2013, arXiv:1211.5063.",
        "Saxe et al., Exact solutions to the nonlinear dynamics of learning in deep "
        "linear neural networks, ICLR 2014, arXiv:1312.6120.",
        "Kim, Convolutional neural networks for sentence classification, EMNLP 2014, "
        "arXiv:1408.5882.",
        "Dai and Le, Semi-supervised sequence learning, NeurIPS 2015, arXiv:1511.01432.",
        "Johnson and Zhang, Supervised and semi-supervised text categorization using "
        "LSTM for region embeddings, ICML 2016, arXiv:1602.02373.",
        "Vaswani et al., Attention is all you need, NeurIPS 2017, arXiv:1706.03762.",
        "Jain and Wallace, Attention is not explanation, NAACL 2019, arXiv:1902.10186.",
    )

    def validate(self) -> None:
        """Check that there is a network, and that each change and network can be."""
        if not self.conditions():
            raise UsageError("There is no network to train: name one in networks.")
        for condition in self.conditions():
            name, own = str(condition["network"]), self.changed(condition)
            if name == YOURS:
                task = data.text_task(self.data)
                models.check_text_network(own.build(name)(), self.words, task.outputs)
            else:
                own.encoder(name)

    def conditions(self) -> list[Condition]:
        """List every network as set, then with each change."""
        names = [*self.networks, *([YOURS] if self.model else [])]
        return [Condition(network=name, change=NONE) for name in names] + [
            Condition(network=name, change=change)
            for name, change in (_parts("changes", text) for text in self.changes)
        ]

    def active_claims(self) -> tuple[Claim, ...]:
        """Select the claims whose conditions are run."""
        mistaken = f"bilstm:{WRONG}" in self.changes and "bilstm" in self.networks
        return tuple(
            claim
            for claim in super().active_claims()
            if claim.kind != "equality" or mistaken
        )

    def changed(self, condition: Condition) -> Self:
        """Return the experiment with the settings of one condition.

        Raises:
            UsageError: A setting is none of a network, or its value is bad.
        """
        own = self
        for text in self.tuned:
            name, settings = _parts("tuned", text)
            if name == condition["network"]:
                own = own._with("tuned", settings)
        change = str(condition["change"])
        return own if change == NONE else own._with("changes", change)

    def _with(self, field: str, settings: str) -> Self:
        """Return the experiment with these settings, joined by +."""
        values = parse_overrides(type(self), settings.split("+"))
        if shared := [name for name in values if name in SHARED]:
            raise UsageError(
                f"{field}: {shared[0]} is the same for all conditions. Set it beside "
                f"{field}, or change another setting."
            )
        return dataclasses.replace(self, **values)

    def encoder(self, name: str) -> nn.Module:
        """Build what reads the word vectors."""
        if name == "cnn":
            return models.Convolutions(self.embedding, self.filters)
        if name == "transformer":
            return models.TransformerEncoder(
                self.embedding,
                heads=self.heads,
                feed_forward=self.feed_forward,
                layers=self.layers,
                dropout=self.dropout / 3,
                positions=self.positions,
            )
        both = name == "bilstm"
        return models.Recurrent(
            self.embedding,
            max(1, self.hidden // 2) if both else self.hidden,
            cell="lstm" if both else name,  # type: ignore[arg-type]
            both_ways=both,
            start=self.start,
        )

    def build(self, name: str) -> Callable[[], nn.Module]:
        """Return what makes a fresh network."""
        if name == YOURS:
            return models.load_factory(str(self.model))
        classes = data.text_task(self.data).outputs
        return lambda: models.TextClassifier(
            self.encoder(name),
            vocabulary=self.words,
            embedding=self.embedding,
            outputs=1 if classes == 2 else classes,
            read=self.read,
            dropout=self.dropout,
            word_dropout=self.word_dropout,
        )

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.changed(condition).build(str(condition["network"]))()

    def sequences(self, corpus: Corpus) -> tuple[Sequences, Sequences]:
        """Cut texts to their first or last words: training texts, scored texts."""
        pairs = (
            (corpus.train, corpus.train_labels),
            (corpus.scored, corpus.scored_labels),
        )
        train, scored = (
            training.Sequences(
                texts.values, texts.starts, labels, limit=self.limit, keep=self.keep
            )
            for texts, labels in pairs
        )
        return train, scored

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train a network per seed, then score, and look into it."""
        condition = trials.condition
        own, name = self.changed(condition), str(condition["network"])
        seed = lab.shared_seed("validation")
        held_out = self.validation if self.scored_on == "validation" else 0
        corpus = data.corpus(self.data, self.words, held_out=held_out, seed=seed)
        lab.note(*corpus.notes)
        linear = _linear(self.data, held_out, seed)
        train, scored = own.sequences(corpus)
        sampler = training.Bucketed(train.lengths, own.batch_size)
        steps = own.epochs * sampler.batches_per_epoch
        reading = Reading(own.precision, own.mistake != NONE)
        result = lab.train(
            training.Minimize(
                own.build(name), reading, clip_norm=own.clip_norm, read=reading.scores
            ),
            train,
            training.Recipe(
                steps=steps,
                sampler=sampler,
                optimizer=training.Adam(learning_rate=own.learning_rate),
                schedule=training.Linear(warmup_steps=steps // 10)
                if own.schedule == "one-cycle"
                else training.Constant(),
                train_samples=0,
                held_out={own.scored_on: _some(scored, WATCHED)},
                metrics={"accuracy": training.Accuracy()},
                eval_every=max(1, steps // EVALUATIONS),
                best=f"{own.scored_on}_accuracy",
            ),
            seeds=[lab.seed(trial, "weights", by=("network",)) for trial in trials],
        )
        seconds = float(result.seconds[-1]) / len(trials)
        for trial, outcome in lab.each(zip(trials, result, strict=True)):
            net = outcome.module()
            scores = _scores(net, scored, reading)
            accuracy = float((scores.argmax(1) == scored.labels).double().mean())
            epochs = outcome.steps / outcome.steps_per_epoch
            watched = outcome.curves[f"{own.scored_on}_accuracy"]
            lab.curve(trial, "accuracy", outcome.steps, watched)
            lab.array(trial, "epochs", epochs)
            lab.array(trial, "linear", list(linear.values()))
            lab.record(
                trial,
                accuracy=accuracy,
                ranked_right=_ranked_right(scores, scored.labels),
                lead_over_linear=accuracy - list(linear.values())[-1],
                train_loss=float(
                    outcome.measures["loss"][-len(outcome.steps) :].mean()
                ),
                parameters=sum(part.numel() for part in net.parameters()),
                seconds=seconds,
                unknown_words=corpus.vocabulary.unknown_share(corpus.scored),
                stop_reason=outcome.stop_reason,
            )
            if condition["change"] == NONE and name != YOURS:
                lab.weights(trial, "embedding", _word_vectors(name, net, corpus))
            self._through_time(trial, lab, net, scored, own.build(name))
            self._attention(trial, lab, net, scored, corpus)

    def _through_time(
        self,
        trial: Trial,
        lab: Lab,
        net: nn.Module,
        texts: Sequences,
        build: Callable[[], nn.Module],
    ) -> None:
        """Keep how the gradient shrinks back through a recurrent network's states.

        What is left of it is recorded where the last state is read: elsewhere every
        state has a way of its own to the loss.
        """
        if getattr(getattr(net, "encoder", None), "backwards", self) is not None:
            return  # no recurrent network, or one that reads both ways
        seeds = [lab.seed(trial, "weights", by=("network",))]
        fresh = training.build_replicas(build, seeds)[0]
        for when, network in (("start", fresh), ("end", net)):
            norms = _state_gradients(network, texts)
            distance = range(len(norms))
            lab.curve(trial, f"gradient at the {when}", distance, norms)
            if getattr(network, "read", "last") != "last":
                continue
            left = norms[min(BACK, len(norms) - 1)] / norms[0] if norms[0] else nan
            # What float64 cannot hold is at most its smallest number.
            lab.record(trial, **{f"gradient_left_at_{when}": max(float(left), 1e-300)})

    def _attention(
        self,
        trial: Trial,
        lab: Lab,
        net: nn.Module,
        texts: Sequences,
        corpus: Corpus,
    ) -> None:
        """Keep attention beside the effect of each word, and how they agree."""
        if not hasattr(getattr(net, "encoder", None), "attention"):
            return
        whole = _on_cpu(net)
        looked_at = [_word_by_word(whole, texts, place) for place in _short(texts)]
        taus = [_tau(attention, effect) for _, attention, effect in looked_at]
        if looked_at:
            # The text of which the network knows the most words is drawn.
            tokens, attention, effect = min(
                looked_at, key=lambda found: found[0].count(models.UNKNOWN)
            )
            words = " ".join(corpus.vocabulary.words[token] for token in tokens)
            lab.record(trial, text=words)
            lab.array(trial, "attention", attention)
            lab.array(trial, "effect", effect)
        known = [tau for tau in taus if tau == tau]
        lab.record(trial, attention_tau=sum(known) / len(known) if known else nan)

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Score the largest class and the linear models."""
        values = records.shared_array("linear")
        if values is None:
            return {}
        # NB-SVM is for two classes.
        names = LINEAR if len(values) == len(LINEAR) else LINEAR[:-1]
        return {"accuracy": dict(zip(names, map(float, values), strict=True))}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw accuracy, what changes do, cost, gradients through time, attention."""
        linear = dict(self.baselines(records).get("accuracy", {}))
        linear.pop(LINEAR[0], None)
        base = records.where(change=NONE)
        label = f"{self.scored_on} accuracy"
        figures = {
            "accuracy": plots.dots(
                base,
                "accuracy",
                by="network",
                panel_by="",
                baselines=linear,
                y_label=label,
                title=f"{label.capitalize()} of each network",
                caption="Lines: linear models that see no order beyond word pairs.",
            ),
        }
        if self.changes:
            figures["changes"] = _changes(records, label)
        figures["cost"] = plots.scatter(
            base,
            {"parameters": "parameters", "seconds of training": "seconds"},
            y="accuracy",
            color_by="network",
            y_label=label,
            title="What accuracy costs",
            caption="Seconds are those of the machine that trained.",
        )
        figures["learning"] = plots.curves(
            base,
            "accuracy",
            color_by="network",
            panel_by="",
            log_y=False,
            y_label=label,
            title="How fast each network learns",
            caption=f"On {WATCHED:,} {self.scored_on} texts, so a point is off by up to "
            "three points.",
        )
        figures["learning"].figure.axes[0].set_ylim(-0.02, 1.02)
        figures["through_time"] = _back_through_time(records)
        if attended := [record for record in base if "attention" in record.arrays]:
            figures["attention"] = _attended(attended[0])
        return figures


LINEAR = ("largest class", "naive Bayes", "logistic regression", "NB-SVM")
SAID = {
    NONE: "all states",
    LAST: "last state",
    REPAIRED: "last state, repaired",
    FIRST: "first 100 words",
    END: "last 100 words",
    WRONG: "loss over the batch",
}


@dataclass(frozen=True)
class Reading:
    """The loss of a batch of texts, as `nablab.training.Minimize` takes it.

    Attributes:
        precision: What products are computed in.
        over_the_batch: Whether the softmax goes over the texts of a batch: course D's
            mistake.
    """

    precision: str
    over_the_batch: bool = False

    def __call__(
        self, net: nn.Module, batch: Mapping[str, Tensor], moment: Moment
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy of the right classes."""
        axis = 0 if self.over_the_batch else 1
        chances = self.scores(net, batch).log_softmax(axis)
        return {"loss": -chances.gather(1, batch["y"][:, None]).mean()}

    def scores(self, net: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return a score per class, float32 (N, classes).

        Of two classes a network may score one: the other's score is then 0.
        """
        import torch

        tokens = batch["tokens"]
        kind = tokens.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16(kind)):
            scores: Tensor = net(tokens, batch["lengths"])
        scores = scores.float()
        if scores.shape[1] > 1:
            return scores
        return torch.cat([torch.zeros_like(scores), scores], dim=1)

    def bfloat16(self, kind: str) -> bool:
        """Tell whether to multiply in bfloat16 on this kind of device.

        Half the time for an LSTM with AVX-512, where matrix tiles are not needed.
        """
        import torch

        if self.precision != "auto":
            return self.precision == "bfloat16"
        has = (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        return kind == "cpu" and bool(has)


@lru_cache(maxsize=1)
def _linear(spec: str, held_out: int, seed: int) -> Mapping[str, float]:
    """Return the accuracy of the largest class and of linear models."""
    from nablab.data.text.corpus import split

    train, scored = split(spec, held_out=held_out, seed=seed)
    largest = int(train.labels.bincount().argmax())
    given = train.texts, train.labels, scored.texts
    models = [baselines.naive_bayes, baselines.logistic_regression]
    if len(train.classes) == 2:
        models.append(baselines.nb_svm)
    found = [model(*given).accuracy(scored.labels) for model in models]
    chance = float((scored.labels == largest).double().mean())
    return dict(zip(LINEAR, [chance, *found], strict=False))


def _parts(field: str, change: str) -> tuple[str, str]:
    """Split ``network:setting=value``, an entry of a field, at the colon.

    Raises:
        UsageError: There is no such network, or no setting.
    """
    name, colon, settings = change.partition(":")
    if not colon or name not in (*NETWORKS, YOURS) or "=" not in settings:
        raise UsageError(
            f"{field}: '{change}' is none. Write network:setting=value, such as "
            f"rnn:read=last, with one of the networks {', '.join(NETWORKS)}."
        )
    return name, settings


def _word_vectors(name: str, net: nn.Module, corpus: Corpus) -> dict[str, Tensor]:
    """Return a network's word vectors with their words, as `WordVectors` reads them.

    In float16, which is enough for angles between them.
    """
    words = corpus.vocabulary.words
    table = net.get_parameter("embedding.weight").detach()[: len(words)]
    kept = data.WordVectors(name=name, words=words, vectors=table).tensors()
    return kept | {"embedding.weight": table.half()}


def _some(texts: Sequences, count: int) -> training.Dataset:
    """Return so many texts, of all lengths."""
    import torch

    places = torch.linspace(0, len(texts) - 1, min(count, len(texts))).long()
    return training.Subset(texts, places)


def _scores(net: nn.Module, texts: Sequences, reading: Reading) -> Tensor:
    """Return a score per class of all texts, float32 (N, classes)."""
    import torch

    device = next(net.parameters()).device
    texts = texts.to(device)
    with torch.no_grad():
        places = torch.split(torch.arange(len(texts), device=device), AT_ONCE)
        return torch.cat([reading.scores(net, texts.batch(p)) for p in places]).cpu()


def _ranked_right(scores: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve, the mean of one class against the rest."""
    from sklearn.metrics import roc_auc_score

    if not bool(scores.isfinite().all()):
        return nan
    classes = (
        range(scores.shape[1])[-1:] if scores.shape[1] == 2 else range(scores.shape[1])
    )
    areas = [roc_auc_score(labels == one, scores[:, one]) for one in classes]
    return float(sum(areas) / len(areas))


def _state_gradients(net: nn.Module, texts: Sequences) -> Any:
    """Return the mean norm of the gradient by each state, the last one first.

    float64 (T,), of the longest texts, cut to the length of the shortest of them.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from nablab.instruments import state_gradient_norms
    from nablab.models.sequences import pooled

    places = torch.arange(len(texts))[-LOOKED_AT:]
    length = int(texts.lengths[places].min())
    batch = dataclasses.replace(texts, limit=length).batch(places)
    wide = _on_cpu(net).double()

    def loss_of(states: Tensor) -> Tensor:
        scores = wide.head(pooled(states, batch["lengths"], wide.read))
        if scores.shape[1] == 1:
            scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
        return cross_entropy(scores, batch["y"], reduction="sum")

    x = wide.vectors(batch["tokens"]).detach()
    norms = state_gradient_norms(wide.encoder.forwards, x, loss_of)
    return norms.mean(0).flip(0).numpy()


def _short(texts: Sequences) -> list[int]:
    """Choose texts that a figure has room for, the longest first."""
    import torch

    fitting = torch.nonzero((texts.lengths >= 10) & (texts.lengths <= 60))[:, 0].flip(0)
    chosen = torch.linspace(0, max(0, len(fitting) - 1), min(LOOKED_AT, len(fitting)))
    return fitting[chosen.long()].tolist()


def _word_by_word(
    whole: Any, texts: Sequences, place: int
) -> tuple[list[int], Any, Any]:
    """Return a text's words, the attention that each gets, and its effect.

    The effect is how far the chance of the network's class falls, in logarithms, when
    the word is replaced by the unknown word.
    """
    import torch

    reading = Reading("float32")
    batch = texts.batch(torch.tensor([place]))
    tokens, lengths = batch["tokens"], batch["lengths"]
    count = tokens.shape[1]
    without = tokens.repeat(count, 1)
    without.fill_diagonal_(models.UNKNOWN)
    with torch.no_grad():
        attention = whole.encoder.attention(whole.vectors(tokens), lengths)
        both = {
            "tokens": torch.cat([tokens, without]),
            "lengths": lengths.repeat(count + 1),
        }
        chances = reading.scores(whole, both).log_softmax(1)
    decided = int(chances[0].argmax())
    effect = chances[0, decided] - chances[1:, decided]
    return tokens[0].tolist(), attention.mean((0, 1, 2, 3)).numpy(), effect.numpy()


def _on_cpu(net: nn.Module) -> Any:
    """Return a copy in evaluation mode."""
    import copy

    return copy.deepcopy(net).cpu().eval()


def _tau(attention: Any, effect: Any) -> float:
    """Return Kendall's tau of attention with the size of the effect."""
    from scipy.stats import kendalltau

    return float(kendalltau(attention, abs(effect)).statistic)


def _named(record: Record, **more: Any) -> Condition:
    """Return a condition with one factor that tells network and change."""
    network, change = record.condition["network"], str(record.condition["change"])
    said = SAID.get(change, change.replace("+", ", "))
    return Condition(condition=f"{network}, {said}", **more)


def _changes(records: Records, label: str) -> Figure:
    """Draw the accuracy of each network that was changed, as set and changed."""
    changed = {r.condition["network"] for r in records if r.condition["change"] != NONE}
    return plots.dots(
        Records(
            Record(_named(record), record.seed, record.scalars)
            for name in records.levels("network")
            for record in records.where(network=name)
            if name in changed
        ),
        "accuracy",
        by="condition",
        panel_by="",
        y_label=label,
        x_label="",
        title="What one change does",
        caption="Repaired: an orthogonal start, and long gradients clipped.",
    )


def _back_through_time(records: Records) -> Figure:
    """Draw the gradient by each state against the distance from the end."""
    names = {"before training": "start", "after training": "end"}
    return plots.curves(
        Records(
            Record(
                _named(record, when=when),
                record.seed,
                {},
                curves={"norm": record.curves[f"gradient at the {name}"]},
            )
            for when, name in names.items()
            for record in records
            if f"gradient at the {name}" in record.curves
        ),
        "norm",
        color_by="condition",
        panel_by="when",
        x_label="words before the end",
        y_label="norm of the gradient by the state",
        title="How far back a recurrent network learns",
        caption="See how many words back the gradient is a millionth of that at the "
        "end: from there on nothing is learned.",
    )


def _attended(record: Record) -> Figure:
    """Draw the words of one text, shaded by attention and by their effect."""
    words = [{"<unknown>": "[?]"}.get(w, w) for w in record.notes["text"].split()]
    return plots.shaded_words(
        {
            "attention that a word gets": (words, record.arrays["attention"].tolist()),
            "what leaving it out takes from the score": (
                words,
                record.arrays["effect"].tolist(),
            ),
        },
        title="Attention for one text, beside what each word does",
        caption="Where the darkest words differ, attention does not tell why.",
    )
