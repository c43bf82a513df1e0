"""Analogies by arithmetic with word vectors, asked with and without the input words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from nablab import data, plots
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Figure,
    Lab,
    Needs,
    Record,
    Records,
    Reported,
    Trial,
    Trials,
)
from nablab.data.fields import QuestionsField, TextsField, VectorsField
from nablab.errors import UsageError
from nablab.settings import Distinct, Ge, Le, Rising

if TYPE_CHECKING:
    from torch import Tensor

    from nablab.data import AnalogySet, WordVectors

COUNTS, RANDOM = "counts", "random"
# What claims are about stands in their `where`; `active_claims` puts the names in.
LEARNED, NETWORK, GLOVE = "learned", "network", "glove"
CANDIDATES = 4
NEAREST = 6  # words in a list of neighbors
MAPPED = 8  # pairs on a map
SUM = re.compile(r"\S+( [+-] \S+)*")
Network = Literal["rnn", "lstm", "gru", "bilstm", "transformer", "cnn"]
NETWORKS: tuple[Network, ...] = ("rnn", "lstm", "gru", "bilstm", "transformer", "cnn")


def embeddings_of(network: str) -> Needs:
    """Name what sentiment's networks leave: words with their vectors."""
    return Needs("sentiment", "embedding", where={"network": network, "change": "none"})


@dataclass(frozen=True)
class WordAnalogies(Experiment):
    """Does king - man + woman give queen?

    A table of word vectors holds a list of numbers for each word. Where one direction
    stands for "female" whatever the person, the step from man to woman leads from king
    to queen. So the question "man is to woman as king is to what?" is answered by the
    word whose vector points most nearly as woman - man + king does. "Nearly" is the
    cosine of the angle, and all vectors are taken at length 1.

    There is a catch, and most demonstrations do not tell it. The step is short, so the
    sum still lies nearest to king. Nearly everywhere the three words of the question
    are therefore left out of the answers. That is the score in the literature, and here
    it is "accuracy". Beside it stands the accuracy with all words allowed, and how
    often the answer then was a word of the question.

    Two more numbers keep the score honest. One is what the nearest neighbor of the
    third word alone would score, which knows nothing of the relation (Linzen 2016): the
    neighbor of king is often queen anyway. The other is the accuracy among four
    candidates, of which guessing gets one in four: a small choice makes any vectors
    look clever.

    The vectors are GloVe (from 6 billion words), counts of a text (positive mutual
    information and a singular value decomposition, with nothing learned by gradient),
    the embeddings of the sentiment experiment's networks, your own, and random ones as
    the control. They are asked at several numbers of dimensions: the directions in
    which the vectors are longest. Networks keep the dimensions that they were trained
    with.

    What a seed is. The pairs of a set are divided into folds, and a seed asks the questions
    among the pairs of its fold: with 16 folds and 16 seeds every pair is asked about, and
    no two seeds share one. With one fold every seed asks all questions.
    Counted vectors are made anew for each seed, of texts drawn with replacement.

    What to expect (standard): of GloVe in 100 dimensions, the words of the question
    left out, 93 % of capitals and 64 to 71 % of the other sets; with all words allowed
    69 % and 10 to 31 %. In 10 dimensions fewer than 10 %. The quick preset counts 8,000
    verses, where a fifth of the family questions is right. Embeddings of the sentiment
    experiment's LSTM and BiLSTM (standard, five seeds) answer at most one question in a
    thousand. Time on two cores: both under a minute.

    Attributes:
        vectors: glove, glove@50000 for the first 50,000 words, or your own file: a word
            and its vector a line (.txt, .vec, .gz), or .npz with words and vectors.
        texts: Texts to count words of, such as king-james, imdb or your own table.
        networks: Networks of a finished run of sentiment whose embeddings are asked,
            too, such as lstm,gru.
        sets: family, plural, comparative, capital, or your own file: four words a line,
            or pairs to ask with each other, with lines such as ": family" between sets.
        dimensions: How many directions of the vectors are kept.
        folds: Into how many folds the pairs are divided; 1 asks all questions at each seed.
        window: How far words may stand apart to be counted.
        min_count: How often a word must occur to be counted.
        queries: What the figure of neighbors shows: words, or sums with spaces around
            the signs.
    """

    topic: ClassVar[str] = "text"
    batch_over: ClassVar[tuple[str, ...]] = ("set", "dimensions")
    needs: ClassVar[tuple[Needs, ...]] = tuple(map(embeddings_of, NETWORKS))

    vectors: Annotated[tuple[VectorsField, ...], Distinct(least=0)] = ("glove@50000",)
    texts: TextsField | None = None
    networks: Annotated[tuple[Network, ...], Distinct(least=0)] = ()
    sets: Annotated[tuple[QuestionsField, ...], Distinct()] = (
        "family",
        "plural",
        "comparative",
        "capital",
    )
    dimensions: Annotated[
        tuple[Annotated[int, Ge(2), Le(10_000)], ...], Rising(least=1)
    ] = (10, 25, 50, 100)
    folds: Annotated[int, Ge(1), Le(1_000)] = 16
    window: Annotated[int, Ge(1), Le(100)] = 5
    min_count: Annotated[int, Ge(1), Le(1_000_000)] = 5
    queries: tuple[str, ...] = (
        "king",
        "woman - man + king",
        "spain - madrid + rome",
        "good",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "vectors": (),
            "texts": "king-james",
            "sets": ("family", "plural"),
            "folds": 1,
            "queries": ("king", "woman - man + king", "hands - hand + word", "good"),
            "seeds": 8,
        },
        "standard": {"seeds": 16},
        # All 400,000 words, as Pennington et al. 2014 ask.
        "paper": {"vectors": ("glove",), "seeds": 16},
        # Whose vectors are those of a network that reads reviews; see sentiment.
        "course-d": {
            "vectors": (),
            "networks": ("bilstm",),
            "folds": 1,
            "queries": ("king", "woman - man + king", "spain - madrid + rome", "film"),
            "seeds": 5,
        },
    }
    undecided: ClassVar[Mapping[str, str]] = {
        "course-d": "it takes the networks of sentiment's preset course-d, which has "
        "five seeds.",
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_least(
            "accuracy",
            1 / 3,
            within="set",
            where={"vectors": LEARNED},
            quantity="accuracy, the words of the question left out",
            sentence="More than a third of the questions are answered, their own words "
            "left out",
            answer=Answer(
                supported="yes, such questions are answered, if their own words are left "
                "out",
                refuted="no, such questions are seldom answered, even if their own words "
                "are left out",
                open="whether a third of such questions is answered",
            ),
        ),
        Claim.at_least(
            "lost_by_allowing",
            0.1,
            within="set",
            where={"vectors": LEARNED},
            quantity="accuracy lost by allowing all words",
            sentence="With all words allowed as answers, at least 10 points of accuracy "
            "are lost",
            answer=Answer(
                supported="much of the score is owed to leaving the words of the "
                "question out",
                refuted="little is owed to leaving the words of the question out",
                open="how much is owed to leaving the words of the question out",
            ),
        ),
        Claim.at_least(
            "answers_that_are_inputs",
            0.5,
            within="set",
            where={"vectors": LEARNED},
            quantity="share of answers that are words of the question",
            sentence="With all words allowed, most answers are words of the question",
        ),
        Claim.at_least(
            "gain_of_offset",
            0.05,
            within="set",
            where={"vectors": LEARNED},
            quantity="accuracy above that of the third word's neighbor",
            sentence="The step between words adds at least 5 points to what the third "
            "word's neighbor scores",
        ),
        Claim.rises(
            "accuracy",
            by="dimensions",
            within="set",
            where={"vectors": LEARNED},
            sentence="Accuracy rises with the number of dimensions",
            answer=Answer(
                supported="more dimensions answer more questions",
                refuted="more dimensions do not answer more questions",
                open="whether more dimensions answer more questions",
            ),
        ),
        Claim.at_least(
            "accuracy",
            1 / 3,
            within="set",
            where={"vectors": NETWORK},
            quantity="accuracy, the words of the question left out",
            sentence="The embeddings of a network that reads reviews answer more than "
            "a third of the questions (course D)",
            answer=Answer(
                supported="yes, of embeddings trained on sentiment, too",
                refuted="embeddings trained on sentiment do not know analogies",
                open="whether embeddings trained on sentiment know analogies",
            ),
        ),
        Claim.at_most(
            "accuracy_of_four",
            0.35,
            within="set",
            where={"vectors": NETWORK},
            quantity="accuracy among four candidates",
            sentence="Among four candidates the embeddings of such a network are right "
            "hardly more often than guessing, 25 %",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        *(
            Reported(
                who="Pennington et al. 2014",
                setting="GloVe of 1.6 billion words, 100 dimensions; questions of "
                "word2vec, input words left out",
                quantity=f"accuracy, {kind} questions (here: {name})",
                value=value,
                metric="accuracy",
                where={"vectors": GLOVE, "dimensions": 100, "set": name},
            )
            for kind, value, names in (
                ("semantic", 0.675, ("family", "capital")),
                ("syntactic", 0.543, ("plural", "comparative")),
            )
            for name in names
        ),
        *(
            Reported(
                who="Pennington et al. 2014",
                setting="GloVe of 6 billion words, 300 dimensions; the same questions",
                quantity=f"accuracy, {kind} questions",
                value=value,
            )
            for kind, value in (("semantic", 0.774), ("syntactic", 0.670))
        ),
        Reported(
            who="course D",
            setting="embeddings of 10 dimensions trained on sentiment; the answer chosen "
            "from 3 or 4 candidates",
            quantity="answers that were told as a success",
            value="king : man gives prophet; italy gives spain",
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Draw king, man, woman and queen as arrows in the plane. How long must the step "
        "from man to woman be so that woman - man + king lies nearer to queen than to "
        "king?",
        "Capitals lose little when all words are allowed, plurals nearly all. What do "
        "you learn from the neighbors of a plural and of a capital?",
        "Write a file with ten pairs of your own (two words a line) and run it with "
        "sets=./mine.txt folds=1. Which relations have a direction, which have none?",
        "How likely is it that vectors which know nothing answer two questions of four "
        "candidates each? And that one of ten students sees that?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Mikolov, Yih, Zweig, Linguistic regularities in continuous space word "
        "representations, NAACL 2013.",
        "Pennington, Socher, Manning, GloVe: Global vectors for word representation, "
        "EMNLP 2014.",
        "Levy and Goldberg, Linguistic regularities in sparse and explicit word "
        "representations, CoNLL 2014; Neural word embedding as implicit matrix "
        "factorization, NIPS 2014.",
        "Linzen, Issues in evaluating semantic spaces using word analogies, "
        "arXiv:1606.07736.",
        "Nissim, van Noord, van der Goot, Fair is better than sensational: man is to "
        "doctor as woman is to doctor, arXiv:1905.09866.",
    )

    def validate(self) -> None:
        """Check that there is something to ask, that names tell it apart, and sums."""
        if not self.learned and not self.networks:
            raise UsageError(
                "There are no vectors to ask: give vectors=glove@50000, "
                "texts=king-james or networks=lstm."
            )
        twice = {name for name in self.tables if self.tables.count(name) > 1}
        if twice:
            raise UsageError(
                f"Two of the vectors are called '{twice.pop()}', and reports could not "
                "tell them apart. Rename one of the files."
            )
        for query in self.queries:
            if not SUM.fullmatch(query):
                raise UsageError(
                    f"'{query}' is neither a word nor a sum of words: write spaces "
                    "around the signs, such as 'woman - man + king'."
                )
        self.conditions()  # two sets of one name are refused there

    @property
    def learned(self) -> list[str]:
        """What the vectors are called that are asked at several dimensions."""
        names = [data.data_set_of(spec) for spec in self.vectors]
        short = [Path(name).name.partition(".")[0] or name for name in names]
        return short + [COUNTS] * (self.texts is not None)

    @property
    def tables(self) -> list[str]:
        """The names of all vectors, the random ones last."""
        return [*self.learned, *self.networks, RANDOM]

    @property
    def _questions(self) -> dict[str, AnalogySet]:
        """The sets of questions by name; a user's file may hold several."""
        found = [one for spec in self.sets for one in data.load_analogies(spec)]
        names = [one.name for one in found]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(
                f"Two of the sets are called '{twice}', and reports could not tell them "
                "apart. Rename one of them in its file."
            )
        return {one.name: one for one in found}

    def conditions(self) -> list[Condition]:
        """Combine vectors, dimensions and sets; networks keep their dimensions."""
        found = []
        for name in self.tables:
            for dimensions in () if name in self.networks else self.dimensions:
                found += [
                    Condition(vectors=name, dimensions=dimensions, set=one)
                    for one in self._questions
                ]
            if name in self.networks:
                found += [Condition(vectors=name, set=one) for one in self._questions]
        return found

    def active_needs(self) -> tuple[Needs, ...]:
        """Return what the networks that are named left."""
        return tuple(map(embeddings_of, self.networks))

    def active_claims(self) -> tuple[Claim, ...]:
        """Make each claim of the vectors that are run, at their largest dimension."""
        names: dict[str, Sequence[str]] = {
            LEARNED: self.learned,
            NETWORK: self.networks,
        }
        found = []
        for claim in self.claims:
            kind = str(claim.where["vectors"])
            for name in names[kind]:
                where: dict[str, Any] = {"vectors": name}
                if claim.kind != "trend" and kind != NETWORK:
                    where["dimensions"] = self.dimensions[-1]
                if claim.kind != "trend" or len(self.dimensions) > 1:
                    found.append(replace(claim, where=where))
        return tuple(found)

    def run(self, trials: Trials, lab: Lab) -> None:
        """Ask the questions, the seeds of one table of vectors after the other."""
        for seed in lab.each(trials.seeds):
            own = [trial for trial in trials if trial.seed == seed]
            table = self._table(own[0], lab)
            lab.note(*table.notes)
            tables: dict[int, WordVectors] = {0: table}
            for trial in own:
                kept = int(trial.condition.get("dimensions", 0))
                if kept not in tables:
                    tables[kept] = _reduced(table, kept)
                self._ask(trial, tables[kept], lab)
                if seed == min(trials.seeds) and kept in (0, self.dimensions[-1]):
                    near = _nearest(tables[kept], self.queries)
                    lab.array(trial, "neighbors", _packed(near))

    def _table(self, trial: Trial, lab: Lab) -> WordVectors:
        """Return the vectors of a trial, with all their dimensions."""
        name = str(trial.condition["vectors"])
        if name in self.networks:
            kept = lab.weights_of(embeddings_of(name), trial)
            return _without_reserved(data.WordVectors.of_tensors(name, kept))
        if name == RANDOM:
            return self._random(trial, lab)
        if name == COUNTS:
            return self._counted(trial, lab)
        return _loaded(self.vectors[self.learned.index(name)])

    def _counted(self, trial: Trial, lab: Lab) -> WordVectors:
        """Count words of the texts that are drawn for this seed."""
        from nablab.baselines import count_vectors

        return count_vectors(
            self._drawn(trial, lab),
            dimensions=self.dimensions[-1],
            window=self.window,
            min_count=self.min_count,
            name=COUNTS,
        )

    def _drawn(self, trial: Trial, lab: Lab) -> list[str]:
        """Draw the texts to count, with replacement: another draw for each seed."""
        texts = data.text_task(str(self.texts)).texts().texts
        draws = lab.rng(trial, "texts", by=()).integers(len(texts), size=len(texts))
        return [texts[place] for place in draws.tolist()]

    def _random(self, trial: Trial, lab: Lab) -> WordVectors:
        """Draw random vectors for the words of the first table that needs no network."""
        import torch

        if self.vectors:
            words = _loaded(self.vectors[0]).words
        elif self.texts:
            drawn = self._drawn(trial, lab)
            words = data.Vocabulary.build(drawn, min_count=self.min_count).words
        else:
            # Few words make it easier to be right by chance, which a control may be.
            pairs = [pair for one in self._questions.values() for pair in one.pairs]
            words = tuple(dict.fromkeys(word for pair in pairs for word in pair))
        rng = lab.rng(trial, "random", by=())
        shape = len(words), self.dimensions[-1]
        vectors = torch.from_numpy(rng.standard_normal(shape, "float32"))
        return data.WordVectors(name=RANDOM, words=words, vectors=vectors)

    def _ask(self, trial: Trial, table: WordVectors, lab: Lab) -> None:
        """Ask the questions of a trial's fold and record the scores."""
        from nablab.metrics import flat_map, score_analogies

        whole = self._questions[str(trial.condition["set"])]
        round_of_seeds, fold = divmod(trial.seed, self.folds)
        if round_of_seeds and self.folds > 1:
            lab.note(
                f"There are more seeds than folds ({self.folds}): pairs are asked about "
                "again in other company, and intervals are narrower than they should be."
            )
        seed = lab.shared_seed(f"folds of {whole.name}, {round_of_seeds}")
        questions = whole.folds(self.folds, seed)[fold]
        numbers = questions.numbers(table)
        score = score_analogies(table.vectors, numbers)
        third = score_analogies(table.vectors, numbers, rule="third")
        multiplied = score_analogies(table.vectors, numbers, rule="multiply")
        few = lab.rng(trial, "candidates", by=("set",))
        lab.record(
            trial,
            questions=score.questions,
            out_of_vocabulary=score.out_of_vocabulary,
            accuracy=score.accuracy,
            accuracy_with_inputs=score.accuracy_with_inputs,
            lost_by_allowing=score.accuracy - score.accuracy_with_inputs,
            answers_that_are_inputs=score.answers_that_are_inputs,
            accuracy_multiplied=multiplied.accuracy,
            accuracy_of_third=third.accuracy,
            gain_of_offset=score.accuracy - third.accuracy,
            accuracy_of_four=_accuracy_of_few(
                table, numbers, whole.numbers(table)[:, 3], few
            ),
        )
        known = questions.known_to(table).pairs[:MAPPED]
        if len(known) > 1:
            words = [word for pair in known for word in pair]
            flat = flat_map(table.unit[[table.find(word) for word in words]])
            lab.record(
                trial,
                map_variance_share=flat.variance_share,
                map_kept_neighbors=flat.kept_neighbors,
            )
            lab.array(trial, "map", flat.points.numpy())
            lab.array(trial, "map_words", _packed(words))

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Return what guessing scores among a few candidates."""
        return {"accuracy_of_four": {"guessing": 1 / CANDIDATES}}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw accuracies, dimensions, neighbors and maps."""
        full = Records(
            record
            for record in records
            if record.condition.get("dimensions", self.dimensions[-1])
            == self.dimensions[-1]
        )
        return {
            "accuracy": _accuracies(full),
            "dimensions": plots.trend(
                Records(
                    record
                    for record in records
                    if record.condition["vectors"] in self.learned
                ),
                "accuracy",
                x="dimensions",
                color_by="set",
                panel_by="vectors",
                log_y=False,
                y_label="accuracy, inputs left out",
                title="Accuracy against the number of dimensions",
                caption="The directions kept are those in which the vectors are longest.",
            ),
            "neighbors": _neighbors(full),
            "map": self._maps(full),
        }

    def _maps(self, full: Records) -> Figure:
        """Draw the pairs of the first seed, of the first vectors that are not random."""
        name = (*self.learned, *self.networks)[0]
        maps = {}
        for record in full.where(vectors=name):
            panel = str(record.condition["set"])
            if panel not in maps and "map" in record.arrays:
                share = record.scalars["map_variance_share"]
                kept = record.scalars["map_kept_neighbors"]
                note = f"variance shown {share:.0%}, nearest word kept {kept:.0%}"
                words = _unpacked(record.arrays["map_words"])
                maps[panel] = plots.WordMap(words, record.arrays["map"], note)
        return plots.word_maps(
            maps,
            title=f"Maps of pairs ({name})",
            caption="Where a relation has a direction, its lines are parallel. The plane "
            "distorts: above each map stands the share of the variance that it shows, "
            "and the share of words whose nearest other word is also nearest on it.",
        )


@lru_cache(maxsize=2)
def _loaded(spec: str) -> WordVectors:
    """Load vectors once per process."""
    return data.load_vectors(spec)


def _without_reserved(table: WordVectors) -> WordVectors:
    """Leave out what stands for padding and for unknown words, which are no words."""
    from nablab.data.text.vocabulary import RESERVED

    first = len(RESERVED) if table.words[: len(RESERVED)] == RESERVED else 0
    return replace(table, words=table.words[first:], vectors=table.vectors[first:])


@lru_cache(maxsize=8)
def _reduced(table: WordVectors, dimensions: int) -> WordVectors:
    """Reduce a table once, if it is the same for all seeds."""
    return table.reduced(dimensions)


def _accuracy_of_few(
    table: WordVectors, numbers: Tensor, answers: Tensor, rng: Any
) -> float:
    """Score questions whose answer is chosen among four of the set's answers.

    The three wrong ones are drawn from the answers to other questions, never words of
    the question itself.

    Args:
        table: The vectors.
        numbers: int64 (Q, 4): the questions, negative for words without a vector.
        answers: int64: the answers to all questions of the set.
        rng: Draws the wrong answers.

    Returns:
        The accuracy; NaN where the set has too few answers.
    """
    import numpy as np
    import torch

    from nablab.metrics import analogy_answers

    known = numbers[(numbers >= 0).all(dim=1)]
    others = np.unique(answers[answers >= 0].numpy())
    if not len(known) or len(others) < CANDIDATES + 1:
        return float("nan")
    few = [
        [row[3], *rng.choice(np.setdiff1d(others, row), CANDIDATES - 1, replace=False)]
        for row in known.tolist()
    ]
    # Ties go to the first candidate, so the right one must not stand there always.
    candidates = torch.from_numpy(rng.permuted(np.array(few, np.int64), axis=1))
    chosen = analogy_answers(table.vectors, known, candidates=candidates)
    return float((chosen == known[:, 3]).double().mean())


def _nearest(table: WordVectors, queries: Sequence[str]) -> list[str]:
    """List what lies nearest to words and sums, each list as a line of JSON."""
    lines = []
    for query in queries:
        signs = {"+": 1.0, "-": -1.0}
        parts = re.findall(r"(?:([+-]) )?(\S+)", query)
        terms = [(signs.get(sign, 1.0), table.find(word)) for sign, word in parts]
        places = [place for _, place in terms if place is not None]
        near: list[tuple[str, float]] = []
        if len(places) == len(terms):
            weights = table.unit.new_tensor([[sign] for sign, _ in terms])
            near = table.neighbors((weights * table.unit[places]).sum(dim=0), NEAREST)
        given = {table.words[place] for place in places}
        found = [(word, round(cosine, 4), word in given) for word, cosine in near]
        lines.append(json.dumps([query, found]))
    return lines


def _packed(lines: Sequence[str]) -> Any:
    """Write lines as an array of bytes, which `Lab.array` keeps."""
    import numpy as np

    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


def _unpacked(array: Any) -> list[str]:
    text: str = array.tobytes().decode()
    return text.split("\n")


def _accuracies(full: Records) -> Figure:
    """Draw accuracies by set: how each table answers, and what needs no relation."""
    kinds = {
        "inputs left out": "accuracy",
        "all words allowed": "accuracy_with_inputs",
        "third word's neighbor": "accuracy_of_third",
    }
    learned = Records(r for r in full if r.condition["vectors"] != RANDOM)
    long = plots.metrics_side_by_side(
        learned, kinds, metric="accuracy", factor="answer"
    )
    control = full.where(vectors=RANDOM)
    several = len(learned.levels("vectors")) > 1
    rows = [
        Record(
            Condition(set=r.condition["set"], answer=_answer(r, several)),
            r.seed,
            r.scalars,
        )
        for r in long
    ]
    rows += [
        Record(
            Condition(set=r.condition["set"], answer="random vectors"),
            r.seed,
            {"accuracy": r.scalars["accuracy"]},
        )
        for r in control
        if "accuracy" in r.scalars
    ]
    return plots.dots(
        Records(rows),
        "accuracy",
        by="answer",
        panel_by="set",
        log_y=False,
        x_label=" ",
        y_label="accuracy",
        title="Accuracy by what may be an answer",
        caption="What leaving the words of the question out is worth, and what the "
        "nearest neighbor of the third word would score.",
    )


def _answer(record: Record, several: bool) -> str:
    vectors, answer = record.condition["vectors"], record.condition["answer"]
    return f"{vectors}, {answer}" if several else str(answer)


def _neighbors(full: Records) -> Figure:
    """Draw the neighbors of words and sums, a row for each table but the random one."""
    lists: dict[str, dict[str, list[plots.Near]]] = {}
    for record in full:
        name = str(record.condition["vectors"])
        if name in lists or name == RANDOM or "neighbors" not in record.arrays:
            continue
        rows = [json.loads(line) for line in _unpacked(record.arrays["neighbors"])]
        lists[name] = {
            query: [plots.Near(*one) for one in found] for query, found in rows
        }
    return plots.neighbor_lists(
        lists,
        title="What lies nearest",
        caption="Cosines with a word, or with a sum of words at length 1.",
    )
