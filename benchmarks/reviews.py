"""An LSTM's epoch over film reviews against the usual notebook loop, and NB-SVM.

The notebook looks every word up in a dictionary when its loader asks for a review, and
pads a batch to its longest review, whatever stands beside it. Its reviews are split
into words before the clock starts. Both sides train the same network, a recurrent layer
read by the largest value of each coordinate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns
from nablab import baselines, data, models, training

VOCABULARY, EMBEDDING, HIDDEN, BATCH, RATE = 20_000, 32, 64, 64, 1e-3
LIMIT = 800
OURS, EXACT = "nablab", "nablab, float32"
NOTEBOOK, ALONE = "notebook loop", "notebook loop, one thread"
CUT = "notebook loop, cut like nablab's"

Batch = Mapping[str, Tensor]


def measure(
    spec: str = "imdb", *, repeats: int, steps: int | None, say: Callable[[str], None]
) -> Findings:
    """Time both subjects.

    Args:
        spec: Texts of two classes or more.
        repeats: Turns of the LSTM; NB-SVM is trained once per turn.
        steps: Steps of the notebook loop; its time is scaled to an epoch. None for
            whole epochs.
        say: Told what is measured.
    """
    say("an LSTM's epoch")
    epoch = lstm_epoch(spec, repeats=repeats, steps=steps)
    say("NB-SVM")
    linear = linear_model(spec, repeats=repeats)
    return Findings([*epoch.tables, *linear.tables], [*epoch.goals, *linear.goals])


def lstm_epoch(spec: str, *, repeats: int, steps: int | None) -> Findings:
    """Time an epoch of an LSTM on each side, in turns."""
    corpus = data.corpus(spec, VOCABULARY)
    outputs = len(corpus.classes)
    notebook = Reviews.of(spec)
    sides: dict[str, Callable[[int | None], float]] = {
        OURS: lambda steps: on_one_thread(
            lambda: by_the_lab(corpus, outputs, steps, bfloat16=True)
        ),
        EXACT: lambda steps: on_one_thread(
            lambda: by_the_lab(corpus, outputs, steps, bfloat16=False)
        ),
        NOTEBOOK: lambda steps: by_hand(notebook, outputs, steps),
        ALONE: lambda steps: on_one_thread(lambda: by_hand(notebook, outputs, steps)),
        CUT: lambda steps: by_hand(notebook.cut(LIMIT), outputs, steps),
    }
    for side in sides.values():
        side(2)  # fills caches
    whole = {
        OURS: None,
        EXACT: None,
        NOTEBOOK: steps,
        ALONE: steps,
        CUT: steps,
    }
    seconds = take_turns(
        {
            name: lambda side=side, count=whole[name]: side(count)
            for name, side in sides.items()
        },
        repeats,
    )
    ratios = {
        name: Spread.of(
            [theirs / ours for theirs, ours in zip(values, seconds[OURS], strict=True)]
        )
        for name, values in seconds.items()
    }
    rows = [
        (
            name,
            spread_text(Spread.of(values), " s"),
            spread_text(ratios[name], "x"),
        )
        for name, values in seconds.items()
    ]
    scaled = "" if steps is None else f"; the notebook's from {steps:,} steps, scaled"
    notes = [
        f"{len(corpus.train):,} texts of {spec}, {EMBEDDING} to {HIDDEN} coordinates, "
        f"batches of {BATCH}; nablab uses the first {LIMIT} words of a text, in "
        f"batches of like lengths, in bfloat16 where not said otherwise, on one thread, "
        f"as in its runs; the notebook's on {torch.get_num_threads()} where not said "
        f"otherwise{scaled}. {repeats} turns."
    ]
    table = Table("An epoch of an LSTM", ("side", "per epoch", "ratio"), rows, notes)
    found = significant(min(ratios[NOTEBOOK].median, ratios[ALONE].median))
    return Findings([table], [Goal("an LSTM's epoch", f"{found}x", "3x", "8x")])


def linear_model(spec: str, *, repeats: int) -> Findings:
    """Time NB-SVM on all training texts, tokenizing and scoring included."""
    task = data.text_task(spec)
    train, test = task.texts(), task.texts("test")
    if len(train.classes) != 2:
        return Findings([])
    seconds, right = [], 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        found = baselines.nb_svm(train.texts, train.labels, test.texts)
        seconds.append(time.perf_counter() - start)
        right = found.accuracy(test.labels)
    spread = Spread.of(seconds)
    cells = (f"{100 * right:.2f} %", spread_text(spread, " s"))
    notes = [
        f"{len(train):,} texts of {spec} and {len(test):,} to be scored, words and word "
        f"pairs; from texts to scores; {torch.get_num_threads()} threads."
    ]
    table = Table("NB-SVM", ("model", "accuracy", "time"), [("NB-SVM", *cells)], notes)
    goal = Goal("NB-SVM", " in ".join(cells), "91.0 % in 25 s", "91.5 % in 10 s")
    return Findings([table], [goal])


def on_one_thread(side: Callable[[], float]) -> float:
    """Call it with one thread of PyTorch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return side()
    finally:
        torch.set_num_threads(threads)


def build(outputs: int) -> nn.Module:
    """Build the lab's network."""
    return models.TextClassifier(
        models.Recurrent(EMBEDDING, HIDDEN, cell="lstm"),
        vocabulary=VOCABULARY,
        embedding=EMBEDDING,
        outputs=outputs,
    )


def by_the_lab(
    corpus: data.Corpus, outputs: int, steps: int | None, *, bfloat16: bool
) -> float:
    """Train an epoch, or so many steps; return the seconds of an epoch."""
    texts = training.Sequences(
        corpus.train.values,
        corpus.train.starts,
        corpus.train_labels,
        limit=LIMIT,
        keep="first",
    )
    sampler = training.Bucketed(texts.lengths, BATCH)

    def loss_of(net: nn.Module, batch: Batch, moment: Any) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            scores = net(batch["tokens"], batch["lengths"])
        return {"loss": functional.cross_entropy(scores.float(), batch["y"])}

    whole = sampler.batches_per_epoch
    start = time.perf_counter()
    training.train(
        training.Minimize(lambda: build(outputs), loss_of),
        texts,
        training.Recipe(
            steps=steps or whole,
            sampler=sampler,
            optimizer=training.Adam(RATE),
            train_samples=0,
            eval_every=whole,
        ),
        seeds=[0],
        on_note=lambda _: None,
    )
    return (time.perf_counter() - start) * whole / (steps or whole)


class Reviews(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Reviews as a notebook keeps them: lists of words, numbered when asked for.

    Args:
        words: Of each text.
        labels: Of each text.
        numbers: The number of each word that the vocabulary lists.
    """

    def __init__(
        self, words: list[list[str]], labels: list[int], numbers: Mapping[str, int]
    ) -> None:
        self.words, self.labels, self.numbers = words, labels, numbers

    @classmethod
    def of(cls, spec: str) -> Reviews:
        """Split the training texts into words."""
        train = data.text_task(spec).texts()
        vocabulary = data.Vocabulary.build(train.texts, size=VOCABULARY)
        numbers = {word: number for number, word in enumerate(vocabulary.words)}
        words = [data.tokenize(text) for text in train.texts]
        return cls(words, train.labels.tolist(), numbers)

    def cut(self, limit: int) -> Reviews:
        """Return the first words of each."""
        return Reviews([text[:limit] for text in self.words], self.labels, self.numbers)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        numbers = [self.numbers.get(word, models.UNKNOWN) for word in self.words[place]]
        return torch.tensor(numbers), self.labels[place]


class Notebook(nn.Module):
    """The notebook's network."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING, padding_idx=0)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score texts, int64 (N, T)."""
        states, _ = self.lstm(self.embedding(tokens))
        scores: Tensor = self.head(states.amax(1))
        return scores


def by_hand(reviews: Reviews, outputs: int, steps: int | None) -> float:
    """Train an epoch, or so many steps; return the seconds of an epoch."""
    torch.manual_seed(0)
    net = Notebook(outputs)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    loader = torch.utils.data.DataLoader(
        reviews, batch_size=BATCH, shuffle=True, collate_fn=padded
    )
    done = 0
    start = time.perf_counter()
    for tokens, labels in loader:
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(tokens), labels)
        loss.backward()
        optimizer.step()
        done += 1
        if done == steps:
            break
    return (time.perf_counter() - start) * len(loader) / done


def padded(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Pad a batch to its longest review."""
    tokens = pad_sequence([numbers for numbers, _ in samples], batch_first=True)
    return tokens, torch.tensor([label for _, label in samples])
