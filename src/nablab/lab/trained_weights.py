"""The weights that trainings leave.

It is settled here whose they are, what they are called, and how much of them is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nablab.contract import Trial
from nablab.lab.drafts import Draft, Drafts
from nablab.lab.kept_weights import Packed, in_words, pack

if TYPE_CHECKING:
    from nablab.training import Training
    from nablab.training.result import At

HEADER = (
    # the most bytes that name, kind and shape of a tensor take in a safetensors file,
    # unless names are very long
    256
)


class Owners:
    """Remembers which trial asked for which seed.

    So it tells whose network a training made from the seed.

    Trials of several conditions may share a seed on purpose, so that a seed alone does
    not name its trial.

    Args:
        trials: All trials, in their order.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = list(trials)
        # since the last training that took the seed
        self._asked: dict[int, list[Trial]] = {}
        self._had: dict[int, list[Trial]] = {}  # the trials that this training was for

    def ask(self, seed: int, trial: Trial) -> None:
        """Note that an experiment asked for a seed of a trial."""
        asked = self._asked.setdefault(seed, [])
        if trial not in asked:
            asked.append(trial)

    def of(self, seeds: Sequence[int]) -> list[Trial] | None:
        """Return the trial of each network of a training; None if that is not known.

        Args:
            seeds: The seed of each network.
        """
        found = self._in_order(seeds) or self._by_seed(seeds)
        if found is None:
            return None
        owners: dict[int, list[Trial]] = {}
        for seed, trial in zip(seeds, found, strict=True):
            owners.setdefault(seed, []).append(trial)
        for seed in owners.keys() & self._asked.keys():
            del self._asked[seed]
            self._had[seed] = owners[seed]
        return found

    def _candidates(self, seed: int) -> list[Trial]:
        return self._asked.get(seed) or self._had.get(seed) or []

    def _in_order(self, seeds: Sequence[int]) -> list[Trial] | None:
        """Return all trials if each has one network, as experiments usually train."""
        if len(seeds) != len(self._trials):
            return None
        for trial, seed in zip(self._trials, seeds, strict=True):
            candidates = self._candidates(seed)
            if candidates and trial not in candidates:
                return None
        return list(self._trials)

    def _by_seed(self, seeds: Sequence[int]) -> list[Trial] | None:
        """Match the networks of each seed with the trials that asked for it, in order.

        There must be as many of the one as of the other.
        """
        networks = Counter(seeds)
        if any(
            count != len(self._candidates(seed)) for seed, count in networks.items()
        ):
            return None
        waiting = {seed: iter(self._candidates(seed)) for seed in networks}
        return [next(waiting[seed]) for seed in seeds]


def keep(
    training: Training,
    place: int,
    *,
    replica: int,
    layers: Iterable[Drafts],
    draft: Draft,
    most: int,
) -> bool:
    """Keep final and best weights of one network, as far as there is room.

    Args:
        training: What trained it.
        place: The place of the trial among those that are run.
        replica: The place of the network in the training.
        layers: Everything that was said so far, the draft too.
        draft: The trial's draft, where they are kept.
        most: Bytes that the trial's trainings may take in all.

    Returns:
        Whether all of it was kept.
    """
    said = [layer[place] for layer in layers if place in layer]
    left = most - sum(
        map(len, {packed.content for own in said for packed in own.trained.values()})
    )
    number = 1 + sum(
        _is_final(name)
        for own in said
        for name in (*own.trained, *own.weights_left_out)
    )
    ending = "" if number == 1 else f"-{number}"
    final = _packed(training, replica, "final", left)
    found = {"final": final}
    # a learner whose recipe names no goal has no best ones
    if training.parameters(at="best"):
        left -= len(final.content) if final else 0
        differs = _differs(training, replica)
        found["best"] = _packed(training, replica, "best", left) if differs else final
    for name, packed in found.items():
        if packed is None:
            draft.weights_left_out[name + ending] = _size(training, replica)
        else:
            draft.trained[name + ending] = packed
    return None not in found.values()


def note_of(most: int) -> str:
    """Return what to tell the user where something was left out."""
    return (
        f"Weights beyond {in_words(most)} a trial were not kept. --keep-weights SIZE "
        "keeps more, of trials that are still to be trained."
    )


def _is_final(name: str) -> bool:
    return name == "final" or name.startswith("final-")


def _packed(training: Training, replica: int, at: At, left: int) -> Packed | None:
    """Pack the weights of one network; return None if they take more than is left."""
    if _size(training, replica) > left + HEADER * len(training.parameters()):
        return None  # of a large network not even a copy is made
    packed = pack(training.module(replica, at=at))
    return packed if len(packed.content) <= left else None


def _size(training: Training, replica: int) -> int:
    """Estimate, rather too high, the bytes of one network's weights in a file."""
    tensors = training.parameters().values()
    return sum(
        tensor[replica].numel() * tensor.element_size() + HEADER for tensor in tensors
    )


def _differs(training: Training, replica: int) -> bool:
    """Tell whether the best weights differ from the final ones."""
    final, best = training.parameters(), training.parameters(at="best")
    return any(
        not tensor[replica].equal(best[name][replica]) for name, tensor in final.items()
    )
